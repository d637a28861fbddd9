"""Captions as conversations of one turn, all with the same question; images are neither read nor copied."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher

from dataset_scripts.schema import CONVERSATION_FEATURES, ROLES


MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SHOWN = 3  # rows named in an error


def as_conversations(rows: Dataset | IterableDataset, instruction: str | None) -> Dataset | IterableDataset:
    """
    Conversation rows as they are, and caption rows with a question.

    Args:
        rows (`Dataset` or `IterableDataset`): Rows of either type.
        instruction (`str`, *optional*): The question; without it caption rows are refused.

    Returns:
        `Dataset` or `IterableDataset`: Conversation rows.

    Raises:
        `ValueError`: The rows are of neither type, or captions without a question.
    """
    if rows.column_names is None:
        raise ValueError("The columns of this stream are not known. Give `features` to the `map` that it comes from.")
    if is_captions(rows) and instruction:
        return ask_one_question(rows, instruction)
    if missing := {"images", "messages"} - set(rows.column_names):
        raise ValueError(
            f"The dataset lacks the columns {sorted(missing)} of a conversation row. Captions are built for training "
            "with `sharegpt4v data build` or `join` and `--rows conversations`, or trained as they are with an "
            "`instruction`, the question that they answer."
        )
    return rows


def is_captions(rows: Dataset | IterableDataset) -> bool:
    """
    Whether rows are caption rows and not conversation rows.

    Args:
        rows (`Dataset` or `IterableDataset`): Rows of either type.

    Returns:
        `bool`: True if they have captions and no messages.
    """
    names = set(rows.column_names or ())
    return {"image", "caption"} <= names and "messages" not in names


def ask_one_question(rows: Dataset | IterableDataset, instruction: str) -> Dataset | IterableDataset:
    """
    Conversation rows in which every caption answers the same question.

    Args:
        rows (`Dataset` or `IterableDataset`): Caption rows, or conversation rows of one image and one turn, whose
            answer is the caption.
        instruction (`str`): The question.

    Returns:
        `Dataset` or `IterableDataset`: As many conversation rows, in the same order.

    Raises:
        `ValueError`: A conversation has more turns or another number of images; the message names the first ones.
    """
    captions = is_captions(rows)
    if missing := {"id", "source"} - set(rows.column_names or ("id", "source")):
        raise ValueError(f"The dataset lacks the columns {sorted(missing)} of a caption or conversation row.")
    if isinstance(rows, IterableDataset):
        features = CONVERSATION_FEATURES.copy()
        if rows.features is not None:
            features["images"] = [rows.features["image"]] if captions else rows.features["images"]
        return rows.map(_ask, fn_kwargs={"instruction": instruction}, remove_columns=rows.column_names).cast(features)
    table = rows.data.table
    if captions:
        answers, images = table["caption"].cast(pa.string()), _in_lists(table["image"])
    else:
        rows = _of_one_turn(rows)
        table = rows.data.table
        answers, images = _answers(table["messages"]), table["images"]
    columns = {"id": table["id"], "source": table["source"], "images": images}
    columns["messages"] = pa.chunked_array([_messages(chunk, instruction) for chunk in answers.chunks], MESSAGES)
    features = CONVERSATION_FEATURES.copy()
    features["images"] = [rows.features["image"]] if captions else rows.features["images"]
    info = rows.info.copy()
    info.features = features
    fingerprint = Hasher.hash([rows._fingerprint, instruction])
    return Dataset(
        pa.table(columns), info=info, split=rows.split, indices_table=rows._indices, fingerprint=fingerprint
    )


def _ask(row: dict, instruction: str) -> dict:
    if "caption" in row:
        images, caption = [row["image"]], row["caption"]
    else:
        images, caption = row["images"], row["messages"][-1]["content"]
        if len(row["messages"]) != 2 or len(images) != 1:
            raise ValueError(_refusal([row["id"]], 1))
    turn = [{"role": "user", "content": instruction}, {"role": "assistant", "content": caption}]
    return {"id": row["id"], "source": row["source"], "images": images, "messages": turn}


def _in_lists(images: pa.ChunkedArray) -> pa.ChunkedArray:
    """Each image as a list of one, around the same buffers."""
    lists = [pa.ListArray.from_arrays(np.arange(len(chunk) + 1, dtype=np.int32), chunk) for chunk in images.chunks]
    return pa.chunked_array(lists, pa.list_(images.type))


def _of_one_turn(rows: Dataset) -> Dataset:
    """The rows, written anew if the table below them has others that were not selected."""
    table = rows.data
    turns = pc.fill_null(pc.list_value_length(table.column("messages")), 0)
    images = pc.fill_null(pc.list_value_length(table.column("images")), 0)
    wrong = pc.invert(pc.and_(pc.equal(turns, 2), pc.equal(images, 1))).to_numpy()
    selected = np.arange(len(wrong)) if rows._indices is None else np.asarray(rows._indices.column(0))
    if (refused := selected[wrong[selected]]).size:
        ids = table.column("id").take(pa.array(refused[:SHOWN])).to_pylist()
        raise ValueError(_refusal(ids, len(refused)))
    return rows.flatten_indices() if wrong.any() else rows


def _refusal(ids: list[str], count: int) -> str:
    return (
        f"{count:,} rows are not one image with one caption, first: {', '.join(map(str, ids))}. A captioner learns "
        "from caption rows, or from conversations of one image and one turn."
    )


def _answers(messages: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of conversations of one turn, the second text each."""
    contents = [pc.struct_field(chunk.flatten(), "content") for chunk in messages.chunks]
    return pa.chunked_array([texts.take(np.arange(1, len(texts), 2)) for texts in contents], pa.string())


def _messages(answers: pa.Array, instruction: str) -> pa.Array:
    count = len(answers)
    order = np.zeros((count, 2), np.int64)  # the question, and each answer behind it
    order[:, 1] = np.arange(1, count + 1)
    texts = pa.concat_arrays([pa.array([instruction], pa.string()), answers]).take(order.ravel())
    roles = pa.array(ROLES, pa.string()).take(np.tile([0, 1], count))
    turns = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    return pa.ListArray.from_arrays(np.arange(0, 2 * count + 1, 2, dtype=np.int32), turns)
