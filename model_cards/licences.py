"""Whose rights are in a model or a dataset: the terms of each source, and the licence identifiers of the Hub."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """
    A source of images, texts or weights.

    Args:
        title (`str`): Its name on a card.
        terms (`str`): What its terms are, and what follows for whoever uses the repository.
        link (`str`): Page of the terms.
    """

    title: str
    terms: str
    link: str


CC_BY_NC = "https://creativecommons.org/licenses/by-nc/4.0/"
# Names of image sources are those of the column `source`.
SOURCES = {
    "sharegpt4v-captions": Source(
        "ShareGPT4V captions",
        "CC BY-NC 4.0: research, not commercial use. They were written by GPT4-Vision or by a captioner that learned "
        "from it, so OpenAI's terms of use apply beside the licence.",
        "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V",
    ),
    "vicuna": Source(
        "Vicuna v1.5",
        "Fine-tuned from Llama 2, so the Llama 2 Community License and its acceptable use policy bind this model.",
        "https://ai.meta.com/llama/license/",
    ),
    "clip": Source("OpenAI CLIP ViT-L/14", "MIT.", "https://github.com/openai/CLIP/blob/main/LICENSE"),
    "llava-instruct": Source(
        "LLaVA-1.5 instruction mix",
        "CC BY 4.0 for the annotations, with OpenAI's terms of use for what GPT wrote and the terms of each data set "
        "in the mix.",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    ),
    "coco": Source(
        "COCO 2017",
        "Annotations CC BY 4.0; photographs stay under the Flickr licences of their authors.",
        "https://cocodataset.org/#termsofuse",
    ),
    "lcs": Source(
        "LAION-CC-SBU 558K",
        "Images stay with their owners; LLaVA-Pretrain passes on the terms of CC-3M and of BLIP.",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
    ),
    "sam": Source(
        "SA-1B",
        "SA-1B Dataset Research License of Meta, accepted by each user before the download. Its images may not be "
        "handed on, so they are not rehosted here.",
        "https://ai.meta.com/datasets/segment-anything-downloads/",
    ),
    "textcaps": Source(
        "TextCaps", "Annotations CC BY 4.0; images of Open Images under CC BY 2.0.", "https://textvqa.org/textcaps/"
    ),
    "web-celebrity": Source(
        "Pictures of public figures from the web",
        "Rights stay with their owners, and the persons shown have rights of their own; not rehosted here.",
        "https://github.com/ShareGPT4Omni/ShareGPT4V/blob/master/docs/Data.md",
    ),
    "web-landmark": Source(
        "Pictures of landmarks from the web",
        "Rights stay with their owners; not rehosted here.",
        "https://github.com/ShareGPT4Omni/ShareGPT4V/blob/master/docs/Data.md",
    ),
    "wikiart": Source(
        "WikiArt",
        "Research that is not commercial; works may be protected.",
        "https://www.wikiart.org/en/terms-of-use",
    ),
    "gqa": Source(
        "GQA",
        "Questions CC BY 4.0; images of Visual Genome.",
        "https://cs.stanford.edu/people/dorarad/gqa/about.html",
    ),
    "ocr_vqa": Source(
        "OCR-VQA", "Book covers that stay with their publishers; for research.", "https://ocr-vqa.github.io/"
    ),
    "textvqa": Source(
        "TextVQA", "Annotations CC BY 4.0; images of Open Images under CC BY 2.0.", "https://textvqa.org/dataset/"
    ),
    "vg": Source(
        "Visual Genome",
        "Annotations CC BY 4.0; photographs of COCO and YFCC100M under the licences of their authors.",
        "https://homes.cs.washington.edu/~ranjay/visualgenome/about.html",
    ),
    "text": Source(
        "Conversations without images",
        "Shared by users of ShareGPT and taken over from LLaVA-1.5; OpenAI's terms of use apply.",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    ),
}
# Sources whose images may not be handed on, not even as part of another dataset.
NOT_REHOSTED = ("sam", "web-celebrity", "web-landmark")
# Sources that leave no choice: what has them (a model, a dataset), and the licences that it can be under.
BINDING = {
    "vicuna": ("model", ("llama2", "other")),
    "sharegpt4v-captions": ("dataset", ("cc-by-nc-4.0", "other")),
}
# Identifiers that the Hub knows (https://huggingface.co/docs/hub/repositories-licenses).
LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0
    gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl
    apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
    lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
    """.split()
)
RELATIONS = ("finetune", "adapter", "merge", "quantized")
