"""Options of the endpoint annotator, and where its key comes from: the environment or a file, never an option."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit


POSITIVE = (
    "max_tokens", "image_side", "image_bytes", "rpm", "tpm", "connect_timeout", "read_timeout", "deadline",
    "max_attempts", "backoff", "max_pause", "circuit_failures", "circuit_seconds", "circuit_trips", "max_cost",
    "tokens_per_image",
)  # fmt: skip
PER_MILLION = 1_000_000


@dataclass
class EndpointConfig:
    """Arguments of [`~captioning.endpoint.EndpointAnnotator`]: any chat endpoint that speaks OpenAI's protocol."""

    model: str = field(metadata={"help": "Model name that the endpoint knows."})
    base_url: str = field(
        default="https://api.openai.com/v1", metadata={"help": "Address up to `/v1`, without user name and password."}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY",
        metadata={"help": "Environment variable that holds the key; empty if the endpoint wants none."},
    )
    env_file: str | None = field(
        default=None, metadata={"help": "File of NAME=value lines that holds the key where the environment does not."}
    )
    max_tokens: int = field(default=1024, metadata={"help": "Upper bound on an answer, in tokens."})
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = field(
        default="max_tokens",
        metadata={"help": "What the endpoint calls that bound; reasoning models the latter."},
    )
    temperature: float | None = field(default=None, metadata={"help": "Of sampling; the endpoint's own by default."})
    stream: bool = field(default=False, metadata={"help": "Receive answers in pieces, so stalls show early."})
    detail: Literal["auto", "low", "high"] = field(default="auto", metadata={"help": "Resolution the model looks at."})
    image_side: int = field(default=1024, metadata={"help": "Longest side of an image that is sent, in pixels."})
    image_quality: int = field(default=90, metadata={"help": "JPEG quality of an image that is sent, 40 to 95."})
    image_bytes: int = field(
        default=1_000_000, metadata={"help": "Upper bound on its JPEG file; quality, then size, give way to it."}
    )
    tokens_per_image: int | None = field(
        default=None, metadata={"help": "Tokens of one image for estimates; OpenAI's tiles rule by default."}
    )
    rpm: int | None = field(default=None, metadata={"help": "Requests a minute, spread evenly."})
    tpm: int | None = field(default=None, metadata={"help": "Tokens a minute, of requests and answers together."})
    connect_timeout: float = field(default=10.0, metadata={"help": "Seconds to connect."})
    read_timeout: float = field(default=120.0, metadata={"help": "Seconds without a byte from the endpoint."})
    deadline: float = field(
        default=900.0, metadata={"help": "Seconds for one image from its first request on, with retries and waits."}
    )
    max_attempts: int = field(default=6, metadata={"help": "Requests for one image."})
    backoff: float = field(
        default=1.0, metadata={"help": "Seconds before the first retry; they double up to 60, plus as much at random."}
    )
    max_pause: float = field(
        default=3600.0, metadata={"help": "Longest pause in seconds that an endpoint may ask for before the job ends."}
    )
    circuit_failures: int = field(
        default=10, metadata={"help": "Failures in a row after which requests stop for `circuit_seconds`."}
    )
    circuit_seconds: float = field(default=30.0, metadata={"help": "Seconds before one request tries again."})
    circuit_trips: int = field(default=5, metadata={"help": "Such stops in a row after which the job ends."})
    input_price: float | None = field(default=None, metadata={"help": "Price of a million tokens sent."})
    output_price: float | None = field(default=None, metadata={"help": "Price of a million tokens answered."})
    max_cost: float | None = field(
        default=None, metadata={"help": "Stop before more than this is spent; needs both prices."}
    )

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        if not self.model:
            raise ValueError("`model` is empty. Name a model that the endpoint has.")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        if not 40 <= self.image_quality <= 95:
            raise ValueError(f"`image_quality` must be from 40 to 95, got {self.image_quality}.")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"`temperature` must be at least 0, got {self.temperature}.")
        prices = (self.input_price, self.output_price)
        if any(price is not None and price < 0 for price in prices):
            raise ValueError(f"`input_price` and `output_price` must be at least 0, got {prices}.")
        if self.max_cost is not None and None in prices:
            raise ValueError("`max_cost` needs `input_price` and `output_price`: without them no cost is known.")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """
        Price of tokens.

        Args:
            prompt_tokens (`float`): Sent.
            completion_tokens (`float`): Answered.

        Returns:
            `float`, *optional*: In the currency of the prices; `None` without prices.
        """
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / PER_MILLION


def read_key(config: EndpointConfig) -> str:
    """
    The key of the endpoint: from the environment, else from `env_file`.

    Args:
        config (`EndpointConfig`): Says where.

    Returns:
        `str`: The key; empty if the endpoint wants none.

    Raises:
        `ValueError`: There is none, or it cannot be sent in a header. The message never shows it.
        `FileNotFoundError`: The file is missing.
    """
    name = config.api_key_env
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key and config.env_file is not None:
        key = _read_env_file(Path(config.env_file)).get(name, "")
    if not key:
        where = f" or in {config.env_file}" if config.env_file is not None else ""
        raise ValueError(
            f"There is no key in the environment variable {name}{where}. Set it, or set `api_key_env` to an empty "
            "text if the endpoint wants no key."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"The key in {name} has blanks or characters that no key has. Copy it again.")
    return key


def _read_env_file(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} to read the key from.")
    values = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            values[name.strip()] = value.strip().strip("\"'")
    return values


def _check_url(url: str) -> None:
    # Nothing of the address is shown where it may hold a secret.
    try:
        parts = urlsplit(url)
        secret = parts.username is not None or parts.password is not None or "@" in parts.netloc
        _ = parts.port
    except ValueError:
        raise ValueError("`base_url` is no address. Give one such as https://api.openai.com/v1.") from None
    if secret or parts.query or parts.fragment:
        raise ValueError(
            "`base_url` must not hold a user name, a password, a query or a fragment (not shown here): addresses are "
            "stored beside captions. Put the key in an environment variable and name it in `api_key_env`."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"`base_url` must begin with http:// or https:// and a host, got {url!r}.")
