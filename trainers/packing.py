"""
Padding-free batches: the samples of a micro-batch one behind the other in a single row.

Attention must not cross from one sample into the next. Positions that restart say so to transformers' own masks, the
cumulated lengths to kernels for sequences of various lengths; an attention mask, even one of ones, would undo both.
"""

# R rows, T tokens of all rows, N images of all rows, H and W sides of the square that the tower takes

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch

from modeling_sharegpt4v import ShareGPT4VProcessor
from modeling_sharegpt4v.images_sharegpt4v import fit_image

from .tokenised import image_length, tokenise_batch


IGNORED = -100


class PackedCollator:
    """
    From tokenised rows to one packed micro-batch.

    Args:
        processor (`ShareGPT4VProcessor`): Processor of the model.
        pad (`bool`, *optional*): Whether images are padded to a square or cut to one; by default what
            `processor.image_processor.do_pad` says.
        normalise (`bool`, defaults to `True`): Whether `pixel_values` are exactly those of the processor. If not, they
            are 8-bit, a quarter of the size, decoded the fast way of [`fit_image`], and laid out channels last:
            normalise them on the device with [`normalise_pixels`].

    Raises:
        `ValueError`: The image processor does not make the squares that [`fit_image`] makes.
    """

    def __init__(self, processor: ShareGPT4VProcessor, pad: bool | None = None, normalise: bool = True):
        images = processor.image_processor
        height, width, short = images.crop_size["height"], images.crop_size["width"], images.size["shortest_edge"]
        if not height == width == short:
            raise ValueError(
                f"Images must be resized and cropped to one square, got {height} x {width} from a shortest edge of "
                f"{short}. Set `size` and `crop_size` of the image processor to the side that the tower takes."
            )
        self.processor = processor
        self.normalise = normalise
        self._side = height
        self._mode: Literal["pad", "crop"] = "pad" if (images.do_pad if pad is None else pad) else "crop"
        red, green, blue = (int(255 * mean) for mean in images.image_mean)
        self._background = (red, green, blue)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Collate.

        Args:
            rows (`Sequence[dict]`): R rows of [`~trainers.tokenised.tokenise_rows`].

        Returns:
            `dict`: What [`pack_rows`] returns, and `pixel_values` of (N, 3, H, W) if there are images.

        Raises:
            `ValueError`: An image cannot be read; the message names the row.
        """
        batch = pack_rows(rows, self.processor)
        squares = [self._fit(image, row["id"]) for row in rows for image in row["images"] or ()]
        if squares:
            pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)  # (N, 3, H, W)
            batch["pixel_values"] = normalise_pixels(pixels, self.processor) if self.normalise else pixels
        return batch

    def _fit(self, image: Any, name: str) -> np.ndarray:
        if isinstance(image, dict):  # as `datasets` stores it
            image = image["path"] if image["bytes"] is None else image["bytes"]
        try:
            return fit_image(image, self._side, self._background, self._mode, exact=self.normalise)
        except (ValueError, OSError) as error:
            raise ValueError(f"An image of sample {name!r} cannot be read: {error}") from error


class OnlineCollator(PackedCollator):
    """
    From conversation rows to one packed micro-batch, for datasets that are streamed.

    Args:
        processor (`ShareGPT4VProcessor`): Processor of the model.
        pad (`bool`, *optional*): As in the parent class.
        normalise (`bool`, defaults to `True`): As in the parent class.
        max_length (`int`, *optional*): As for [`~trainers.tokenised.tokenise_batch`].
        on_too_long (`str`, defaults to `"error"`): As for [`~trainers.tokenised.tokenise_batch`].

    Raises:
        `ValueError`: As in the parent class.
    """

    def __init__(
        self,
        processor: ShareGPT4VProcessor,
        pad: bool | None = None,
        normalise: bool = True,
        max_length: int | None = None,
        on_too_long: Literal["error", "drop_turns"] = "error",
    ):
        super().__init__(processor, pad, normalise)
        self.max_length = max_length
        self.on_too_long = on_too_long

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Tokenise and collate.

        Args:
            rows (`Sequence[dict]`): R conversation rows.

        Returns:
            `dict`: As in the parent class.

        Raises:
            `ValueError`: As in the parent class and from [`~trainers.tokenised.tokenise_batch`].
        """
        return super().__call__(tokenise_batch(rows, self.processor, self.max_length, self.on_too_long))


def pack_rows(rows: Sequence[dict[str, Any]], processor: ShareGPT4VProcessor) -> dict[str, Any]:
    """
    Put tokenised rows one behind the other, with the tokens of their images in full.

    Args:
        rows (`Sequence[dict]`): R rows with `input_ids` (one token an image) and `label_spans`.
        processor (`ShareGPT4VProcessor`): Processor of the model.

    Returns:
        `dict`: `input_ids`, `labels` (-100 where nothing is learned, and at the first token of every row) and
            `position_ids` (from 0 in every row) of (1, T), `cu_seq_lens_q` and `cu_seq_lens_k` of (R + 1,), and
            `max_length_q` and `max_length_k`.
    """
    pieces = [np.asarray(row["input_ids"], dtype=np.int64) for row in rows]
    starts = [0, *accumulate(map(len, pieces))]  # of every row, and the end of the last, in one token an image
    ids = np.concatenate(pieces)
    labels = np.full_like(ids, IGNORED)
    for row, offset in zip(rows, starts[:-1], strict=True):
        spans = row["label_spans"]
        for start, end in zip(spans[::2], spans[1::2], strict=True):
            trained = slice(offset + start, offset + end)
            labels[trained] = ids[trained]
    labels[starts[:-1]] = IGNORED
    copies = np.where(ids == processor.image_token_id, image_length(processor), 1)
    ends = np.zeros(len(ids) + 1, dtype=np.int64)
    copies.cumsum(out=ends[1:])
    bounds = ends[starts]  # (R + 1,)
    lengths = np.diff(bounds)
    longest = int(lengths.max())
    positions = np.arange(bounds[-1])
    positions -= bounds[:-1].repeat(lengths)
    cumulated = torch.from_numpy(bounds.astype(np.int32))
    return {
        "input_ids": torch.from_numpy(ids.repeat(copies).reshape(1, -1)),
        "labels": torch.from_numpy(labels.repeat(copies).reshape(1, -1)),
        "position_ids": torch.from_numpy(positions.reshape(1, -1)),
        "cu_seq_lens_q": cumulated,
        "cu_seq_lens_k": cumulated,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def normalise_pixels(pixel_values: torch.Tensor, processor: ShareGPT4VProcessor) -> torch.Tensor:
    """
    Normalise 8-bit pixels where they lie, bit for bit as the image processor does.

    Args:
        pixel_values (`torch.Tensor`): 8-bit pixels of (N, 3, H, W).
        processor (`ShareGPT4VProcessor`): Processor of the model.

    Returns:
        `torch.Tensor`: `float32` of (N, 3, H, W) on the same device.
    """
    images = processor.image_processor
    mean, std = torch.tensor(images.image_mean), torch.tensor(images.image_std)
    # A pixel has one of 256 values, so each is computed once, in the precisions of the image processor.
    levels = (torch.arange(256, dtype=torch.float64) * images.rescale_factor).float()
    table = ((levels[:, None] - mean) / std).to(pixel_values.device)  # (256, 3)
    planes = [table[:, channel][pixel_values[:, channel].int()] for channel in range(3)]
    return torch.stack(planes, dim=1)
