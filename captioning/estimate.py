"""
Cost and time before anything is spent, from rules at first and from what was measured as soon as there is something.

For N images: tokens sent = N x (tokens of the prompt + tokens of an image), tokens answered = N x the mean so far, or
`max_tokens` as an upper bound. The time is the largest of N / rpm, tokens / tpm and N x seconds an answer / requests
at a time.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .endpoint_config import EndpointConfig
from .payload import fitted_size, image_tokens, text_tokens


LEAST_MEASURED = 10  # answers before their mean is taken instead of the rule
SECONDS_PER_ANSWER = 10.0  # of a long caption by a hosted model, until measured


@dataclass
class Measured:
    """
    Sums over the answers that came with counts.

    Args:
        answers (`int`): Their number.
        prompt_tokens (`int`): Sent.
        completion_tokens (`int`): Answered.
        seconds (`float`): From request to answer.
    """

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """
        Count one answer.

        Args:
            prompt_tokens (`int`): Sent.
            completion_tokens (`int`): Answered.
            seconds (`float`): It took.
        """
        self.answers += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.seconds += seconds

    @property
    def enough(self) -> bool:
        """Whether the means are worth more than the rules (`bool`)."""
        return self.answers >= LEAST_MEASURED


@dataclass(frozen=True)
class Estimate:
    """
    What a job will take.

    Args:
        images (`int`): Their number.
        prompt_tokens (`int`): To be sent.
        completion_tokens (`int`): To be answered; the most possible unless `measured`.
        cost (`float`, *optional*): In the currency of the prices; `None` without prices.
        seconds (`float`): At the given limits.
        bound_by (`str`): What decides the time: `rpm`, `tpm` or `latency`.
        measured (`bool`): Whether the token counts are means of answers instead of rules.
        affordable (`int`, *optional*): Images that `max_cost` does for; `None` without one.
    """

    images: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float
    bound_by: str
    measured: bool
    affordable: int | None

    def lines(self) -> list[str]:
        """
        The estimate for people.

        Returns:
            `list[str]`: Lines of text.
        """
        source = "means of the answers so far" if self.measured else "by rule; answers counted at their bound"
        lines = [
            f"{self.images} images: {self.prompt_tokens} tokens sent, {self.completion_tokens} answered ({source}).",
            f"At least {self.seconds / 3600:.2f} hours, bound by {self.bound_by}.",
        ]
        lines.append("Cost unknown: give both prices." if self.cost is None else f"Cost {self.cost:.2f}.")
        if self.affordable is not None and self.affordable < self.images:
            lines.append(f"The budget does for {self.affordable} of them.")
        return lines


def estimate_job(
    config: EndpointConfig,
    images: int,
    prompts: Iterable[str],
    sizes: Iterable[tuple[int, int]] = (),
    measured: Measured | None = None,
    concurrency: int = 8,
) -> Estimate:
    """
    Estimate tokens, cost and time of a job; nothing is sent.

    Args:
        config (`EndpointConfig`): Prices, limits and sizes.
        images (`int`): Number of images.
        prompts (`Iterable[str]`): Texts of the prompts, or a sample of them.
        sizes (`Iterable[tuple[int, int]]`, *optional*): Width and height in pixels of a sample of the images; without
            one every image counts as a square of `image_side`.
        measured (`Measured`, *optional*): Of earlier answers; counts from ten on.
        concurrency (`int`, defaults to 8): Requests at a time.

    Returns:
        `Estimate`: Totals.
    """
    seconds = SECONDS_PER_ANSWER
    if measured is not None and measured.enough:
        sent = measured.prompt_tokens / measured.answers
        answered = measured.completion_tokens / measured.answers
        seconds = measured.seconds / measured.answers
    else:
        side = config.image_side
        sample = [fitted_size(*size, side) for size in sizes] or [(side, side)]
        texts = [text_tokens(text) for text in prompts] or [0]
        sent = sum(texts) / len(texts) + sum(image_tokens(*size, config) for size in sample) / len(sample)
        answered = float(config.max_tokens)
    times = {"latency": images * seconds / concurrency}
    if config.rpm is not None:
        times["rpm"] = images * 60 / config.rpm
    if config.tpm is not None:
        times["tpm"] = images * (sent + answered) * 60 / config.tpm
    bound_by = max(times, key=lambda name: times[name])
    each = config.cost(sent, answered)
    affordable = None
    if config.max_cost is not None and each is not None:
        affordable = math.floor(config.max_cost / each) if each else images
    return Estimate(
        images=images,
        prompt_tokens=math.ceil(images * sent),
        completion_tokens=math.ceil(images * answered),
        cost=None if each is None else images * each,
        seconds=times[bound_by],
        bound_by=bound_by,
        measured=measured is not None and measured.enough,
        affordable=affordable,
    )
