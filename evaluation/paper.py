"""
Published figures to hold one's own against: reference, not target, and comparable only on the same split and judge.

Sources: ShareGPT4V (arXiv:2311.12793), Table 3, for the eleven benchmarks, with the authors' model zoo
(InternLM/InternLM-XComposer, `projects/ShareGPT4V/docs/ModelZoo.md`) for both sizes of ShareGPT4V and for its GQA and
TextVQA; LLaVA-1.5 (arXiv:2310.03744) for its own figures of GQA, TextVQA and POPE.
"""

from dataclasses import dataclass


TABLE = "arXiv:2311.12793, Table 3"
MODEL_ZOO = "ShareGPT4V model zoo"
LLAVA_PAPER = "arXiv:2310.03744"
MODELS = ("ShareGPT4V-7B", "ShareGPT4V-13B", "LLaVA-1.5-7B", "LLaVA-1.5-13B")


@dataclass(frozen=True)
class PaperFigure:
    """
    A figure of a benchmark as papers print it.

    Args:
        column (`str`): Its heading in the table.
        benchmark (`str`): Name of the benchmark here.
        figure (`str`): Which figure of its headline.
        values (`tuple[float | None, ...]`): Of each of `MODELS`.
        split (`str`): What the published figures are of.
        scale (`float`, defaults to 1): What a figure here is multiplied by to be in the paper's unit.
        same_split (`bool`, defaults to `True`): Whether what is scored here is that split.
        judge (`str`, *optional*): The language model that graded.
        sources (`tuple[str, str]`): Of ShareGPT4V's figures, and of LLaVA-1.5's.
    """

    column: str
    benchmark: str
    figure: str
    values: tuple[float | None, ...]
    split: str
    scale: float = 1.0
    same_split: bool = True
    judge: str | None = None
    sources: tuple[str, str] = (f"{TABLE}, and {MODEL_ZOO}", TABLE)

    def by_model(self) -> dict[str, float | None]:
        """
        The published figures.

        Returns:
            `dict[str, float | None]`: By model; `None` where none is published.
        """
        return dict(zip(MODELS, self.values, strict=True))


FIGURES = (
    PaperFigure("LLaVA^W", "llava_bench", "relative", (72.6, 79.9, 63.4, 70.7), "60 questions", judge="gpt-4-0314"),
    PaperFigure("MME^P", "mme", "perception_total", (1567.4, 1618.7, 1510.7, 1531.3), "ten tasks, at most 2000"),
    PaperFigure("MME^C", "mme", "cognition_total", (376.4, 303.2, 316.1, 295.4), "four tasks, at most 800"),
    PaperFigure("MMB", "mmbench", "Overall", (68.8, 68.5, 64.3, 67.7), "dev, mmbench_dev_20230712", 100.0),
    PaperFigure("MMB^CN", "mmbench_cn", "Overall", (62.2, 63.7, 58.3, 63.6), "dev, mmbench_dev_cn_20231003", 100.0),
    PaperFigure("SEED^I", "seed", "image accuracy", (69.7, 70.8, 66.2, 68.2), "14233 image questions"),
    PaperFigure("MM-Vet", "mmvet", "total", (37.6, 43.1, 30.5, 35.4), "218 questions", judge="gpt-4-0613"),
    PaperFigure("QBench", "qbench", "accuracy", (63.4, 65.2, 58.7, 62.1), "dev, 1495 questions", 100.0),
    PaperFigure("SQA^I", "scienceqa", "img_accuracy", (68.4, 71.2, 66.8, 71.6), "test, 2017 questions with an image"),
    PaperFigure("VQAv2", "vqav2", "overall", (80.6, 81.0, 78.5, 80.0), "test-dev", same_split=False),
    PaperFigure("VizWiz", "vizwiz", "overall", (57.2, 55.6, 50.0, 53.6), "test", same_split=False),
    PaperFigure(
        "GQA", "gqa", "accuracy", (63.3, 64.8, 62.0, 63.3), "testdev_balanced", sources=(MODEL_ZOO, LLAVA_PAPER)
    ),
    PaperFigure(
        "TextVQA",
        "textvqa",
        "accuracy",
        (60.4, 62.2, 58.2, 61.3),
        "validation, with OCR tokens",
        sources=(MODEL_ZOO, LLAVA_PAPER),
    ),
    PaperFigure(
        "POPE",
        "pope",
        "f1_score",
        (None, None, None, 85.9),
        "8910 questions, mean of three F1",
        100.0,
        sources=(MODEL_ZOO, LLAVA_PAPER),
    ),
)


def paper_figure(benchmark: str, figure: str) -> PaperFigure | None:
    """
    What papers print for a figure.

    Args:
        benchmark (`str`): Name of the benchmark.
        figure (`str`): Name of the figure in its headline.

    Returns:
        `PaperFigure`, *optional*: `None` where none is published.
    """
    return next((one for one in FIGURES if (one.benchmark, one.figure) == (benchmark, figure)), None)
