"""
Our models in lmms-eval: `python -m lmms_eval --model sharegpt4v --model_args pretrained=FOLDER --tasks TASK`.

lmms-eval 0.7.3 finds [`manifest`] by the entry point group `lmms_eval.models` (its `models/registry_v2.py`) and asks
through the simple interface of `api/model.py`: a prompt without a mark for the image, and the images beside it.
Questions are answered by the same [`evaluation.model.LocalModel`] as in our own runner, in batches of one kind and
near in length, so that equal prompts get equal texts.

What a task asks for is kept to: `max_new_tokens`, and that answers are greedy. Stop sequences are not: lmms-eval puts
a blank line into every task that names none, at which no script of LLaVA or ShareGPT4V stops, and it would cut off the
longer answers of MM-Vet.

Nothing else imports this module, as lmms-eval is optional.
"""

from itertools import groupby
from typing import Any

from PIL import Image
from tqdm import tqdm

from .catalogue import benchmark
from .images import ImageMode, Question
from .lmms_files import TASKS


try:
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest
except ImportError as error:
    raise ImportError(
        'This module is a plugin of lmms-eval: `pip install -e ".[lmms-eval]"`, then '
        "`pip install --no-deps lmms-eval==0.7.3`."
    ) from error

NAME = "sharegpt4v"
MAX_NEW_TOKENS = 1024  # where a task has no bound, as lmms-eval's own LLaVA class
IMAGE_MARK = "<image>"
PADDED = "mme"  # whose way with images a task of another name has
# A task of one's own cannot have the name of one that lmms-eval ships.
BENCHMARKS = {task: name for name, task in TASKS.items()} | {f"{NAME}_{name}": name for name in TASKS}


def manifest() -> ModelManifest:
    """
    What lmms-eval registers.

    Returns:
        `ModelManifest`: Name and class of the model.
    """
    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.{ShareGPT4V.__name__}")


class ShareGPT4V(lmms):
    """
    An image-text-to-text model of transformers' Auto classes, as lmms-eval asks one.

    Args:
        pretrained (`str`): Folder or name on the Hub.
        batch_size (`int` or `str`, defaults to 1): Questions at a time and process.
        device (`str`, defaults to `"auto"`): `auto` gives each process a GPU, or the processor where there is none.
        dtype (`str`, defaults to `"auto"`): Type of the weights, that of the files by default.
        images (`str`, defaults to `"official"`): How an image becomes a square: as the script of the benchmark has it
            whose task is asked (of lmms-eval, or of one's own by the name `sharegpt4v_<benchmark>`), padded in other
            tasks; or always `pad`, `crop` or `native`.
        trust_remote_code (`bool`, defaults to `False`): Whether code of its repository may run.
        revision (`str`, *optional*): Commit, tag or branch on the Hub.
        max_batch_size (`int`, *optional*): Not needed; lmms-eval passes it.

    Raises:
        `ValueError`: The batch size is no whole number, or the way of the images is unknown.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str = "auto",
        images: ImageMode = "official",
        trust_remote_code: bool = False,
        revision: str | None = None,
        max_batch_size: int | None = None,
    ):
        from .model import LocalModel
        from .processes import this_process

        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` must be a whole number from 1, got {batch_size!r}.")
        if images not in ("official", "pad", "crop", "native"):
            raise ValueError(f"`images` must be official, pad, crop or native, got {images!r}.")
        self.batch_size, self.images = int(batch_size), images
        process, self.device = this_process(device)  # lmms-eval counts requests of all processes on the device
        self._rank, self._world_size = process.rank, process.world
        if process.world > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()  # lmms-eval waits for the other processes with it
        self.answerer = LocalModel(pretrained, self.device, dtype, trust_remote_code, revision)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """
        Answer questions greedily.

        Args:
            requests (`list[Instance]`): lmms-eval's.

        Returns:
            `list[str]`: In the order of the requests, without outer spaces.

        Raises:
            `ValueError`: A task wants what these models do not do: sampling, beams, several images, video.
        """
        order = sorted(
            range(len(requests)), key=lambda place: (_bound(requests[place]), -len(requests[place].args[0]))
        )
        texts: dict[int, str] = {}
        with tqdm(total=len(order), desc=NAME, unit="question", disable=self.rank > 0 or None) as bar:
            for bound, places in groupby(order, key=lambda place: _bound(requests[place])):
                for chunk in _chunks(list(places), self.batch_size):
                    texts |= self._answers({place: requests[place].args for place in chunk}, bound)
                    bar.update(len(chunk))
        for place, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args[:2], texts[place])
        return [texts[place] for place in range(len(requests))]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """
        Not there: the benchmarks of this repository are answered in words.

        Args:
            requests (`list[Instance]`): lmms-eval's.

        Raises:
            `NotImplementedError`: Always.
        """
        raise NotImplementedError("sharegpt4v answers in words: take a task of `output_type: generate_until`.")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """
        Not there: each question is asked by itself.

        Args:
            requests (`list[Instance]`): lmms-eval's.

        Raises:
            `NotImplementedError`: Always.
        """
        raise NotImplementedError("sharegpt4v is asked once a question: take a task of `output_type: generate_until`.")

    def _answers(self, asked: dict[int, tuple[Any, ...]], bound: int) -> dict[int, str]:
        questions = {place: self._question(bound, *arguments) for place, arguments in asked.items()}
        texts: dict[int, str] = {}
        for bare in (False, True):  # a batch has images, or none
            places = [place for place, question in questions.items() if (question.image is None) == bare]
            if places:
                answers = self.answerer.answer([questions[place] for place in places])
                texts |= dict(zip(places, answers, strict=True))
        return texts

    def _question(
        self, bound: int, context: str, settings: dict[str, Any], to_visual: Any, doc: Any, task: str, split: str
    ) -> Question:
        where = f"Task {task}, question {doc}"
        if settings.get("num_beams", 1) > 1 or settings.get("do_sample", (settings.get("temperature") or 0) > 0):
            raise ValueError(f"{where} asks for sampling or beams: these answers are greedy. Change its settings.")
        visuals = (to_visual(self.task_dict[task][split][doc]) if to_visual else None) or []
        if len(visuals) > 1 or not all(isinstance(visual, Image.Image) for visual in visuals):
            kinds = ", ".join(type(visual).__name__ for visual in visuals)
            raise ValueError(f"{where} has {kinds}: a question here has one image, or none.")
        if IMAGE_MARK in context:
            raise ValueError(f"{where} has the mark {IMAGE_MARK} in its prompt: the image goes before it by itself.")
        mode = self.answerer.image_mode(benchmark(BENCHMARKS.get(task, PADDED)), self.images)
        return Question(context, visuals[0] if visuals else None, mode, bound)


def _bound(request: Any) -> int:
    return int(request.args[1].get("max_new_tokens", MAX_NEW_TOKENS))


def _chunks(places: list[int], size: int) -> list[list[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]
