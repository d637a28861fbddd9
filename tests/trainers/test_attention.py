"""Varlen attention and the loss on label positions, against each sample alone in float64."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.tiny import tiny_model
from trainers import label_loss
from trainers.attention import VARLEN, backend_for, use_varlen_attention, varlen_attention
from trainers.label_loss import add_label_loss, weigh_labels


LENGTHS = (24, 9, 37)


def make_samples(image_token: int) -> list[dict]:
    """Three samples, the second without an image; the second half of each is trained."""
    torch.manual_seed(1)
    samples = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(5, 300, (length,))
        labels = ids.clone()
        labels[: length // 2] = -100
        if number != 1:
            ids[1:5] = image_token
        samples.append({"input_ids": ids, "labels": labels, "images": int(number != 1)})
    return samples


def pack(samples: list[dict]) -> dict:
    boundaries = torch.tensor([0, *(len(sample["input_ids"]) for sample in samples)]).cumsum(0).int()
    return {
        "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
        "labels": torch.cat([sample["labels"] for sample in samples])[None],
        "position_ids": torch.cat([torch.arange(len(sample["input_ids"])) for sample in samples])[None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }


@pytest.fixture
def double():
    model, processor = tiny_model()
    pixels = torch.randn(2, 3, 28, 28, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    return model.double(), make_samples(processor.image_token_id), pixels


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def alone(model, samples, pixels, normalisation) -> torch.Tensor:
    """The loss by its definition: every sample on its own, logits everywhere."""
    sums, counts, seen = [], [], 0
    for sample in samples:
        given = pixels[seen : seen + 1] if sample["images"] else None
        seen += sample["images"]
        logits = model(input_ids=sample["input_ids"][None], pixel_values=given).logits[0]
        sums.append(torch.nn.functional.cross_entropy(logits[:-1], sample["labels"][1:], reduction="sum"))
        counts.append((sample["labels"][1:] != -100).sum())
    if normalisation == "tokens":
        return sum(sums) / sum(counts)
    return sum(total / count for total, count in zip(sums, counts, strict=True)) / len(samples)


@pytest.mark.parametrize("normalisation", ["tokens", "samples"])
@pytest.mark.parametrize("chunk", [2048, 7])
def test_packed_loss_and_gradients_equal_those_of_each_sample_alone(double, normalisation, chunk, monkeypatch):
    model, samples, pixels = double
    expected = alone(model, samples, pixels, normalisation)
    expected.backward()
    wanted = gradients(model)
    model.zero_grad()
    monkeypatch.setattr(label_loss, "CHUNK", chunk)
    use_varlen_attention(model)
    add_label_loss(model)
    batch = pack(samples)
    weights, count = weigh_labels(batch["labels"], batch["cu_seq_lens_q"], normalisation)
    loss = model(**batch, pixel_values=pixels, label_weights=weights.double(), use_cache=False).loss / count
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12 if normalisation == "tokens" else 1e-7)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    tolerance = 1e-10 if normalisation == "tokens" else 1e-6  # the weights 1/n are float32
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=tolerance, atol=tolerance, msg=name)


def test_grouped_heads_attend_as_in_transformers():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 46, 8, dtype=torch.double) for heads in (4, 2, 2))
    boundaries = torch.tensor([0, 9, 46], dtype=torch.int32)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    output, _ = varlen_attention(module, query, key, value, None, cu_seq_lens_q=boundaries, max_length_q=37)
    for start, end in ((0, 9), (9, 46)):
        sample = (tensor[:, :, start:end] for tensor in (query, key, value))
        expected, _ = sdpa_attention_forward(module, *sample, None)
        torch.testing.assert_close(output[:, start:end], expected)


def test_a_sample_does_not_see_the_one_before_it(double):
    model, samples, _ = double
    use_varlen_attention(model)
    texts = [{**sample, "images": 0} for sample in samples[1:2] * 2]
    batch = {name: value for name, value in pack(texts).items() if name != "labels"}
    before = model(**batch, use_cache=False).logits
    batch["input_ids"][0, :9] = 7
    after = model(**batch, use_cache=False).logits
    assert not torch.equal(before[:, :9], after[:, :9]) and torch.equal(before[:, 9:], after[:, 9:])


def test_padded_batches_and_generation_are_as_with_sdpa(double):
    model, samples, pixels = double
    ids = torch.nn.utils.rnn.pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s["input_ids"]) for s in samples], batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    expected = model(**inputs).logits[mask.bool()]
    one = {"input_ids": samples[0]["input_ids"][None], "pixel_values": pixels[:1]}
    words = model.generate(**one, max_new_tokens=5, do_sample=False)
    use_varlen_attention(model)
    add_label_loss(model)
    torch.testing.assert_close(model(**inputs).logits[mask.bool()], expected)
    assert torch.equal(model.generate(**one, max_new_tokens=5, do_sample=False), words)
    assert model.config.text_config._attn_implementation == VARLEN
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_packed_positions_without_boundaries_are_refused(double):
    model, samples, pixels = double
    use_varlen_attention(model)
    batch = pack(samples)
    with pytest.raises(ValueError, match="`cu_seq_lens_q` is missing"):
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], pixel_values=pixels, use_cache=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 9], dtype=torch.int32)}, "run from 0 to 9, the row has 70 tokens"),
        ({"attention_mask": torch.ones(1, 70, dtype=torch.long)}, "no attention mask"),
    ],
)
def test_boundaries_that_do_not_fit_are_refused(double, changes, reason):
    model, samples, pixels = double
    use_varlen_attention(model)
    attention_mask = changes.pop("attention_mask", None)
    batch = {**pack(samples), **changes}
    if attention_mask is not None:
        attention_mask[0, -1] = 0
    with pytest.raises(ValueError, match=reason):
        model(**batch, attention_mask=attention_mask, pixel_values=pixels, use_cache=False)


def test_the_kernel_follows_the_device_and_the_precision():
    assert backend_for(torch.device("cpu"), torch.bfloat16) == "sdpa_by_sample"
    assert backend_for(torch.device("cuda"), torch.float32) == "sdpa_by_sample"
    assert backend_for(torch.device("cuda"), torch.bfloat16) in ("torch_varlen", "flash_attn")


def test_logits_never_exist_for_the_whole_batch(double, monkeypatch):
    model, samples, pixels = double
    monkeypatch.setattr(label_loss, "CHUNK", 7)
    use_varlen_attention(model)
    rows, head = [], model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: rows.append(len(hidden)) or head(hidden))
    add_label_loss(model)
    batch = pack(samples)
    weights, _ = weigh_labels(batch["labels"], batch["cu_seq_lens_q"], "tokens")
    model(**batch, pixel_values=pixels, label_weights=weights, use_cache=False).loss.backward()
    assert max(rows) <= 7 and sum(rows) == 2 * int(weights.sum())  # once forward, once again for the backward pass


def test_weights_count_rows_of_a_padded_batch_as_samples():
    labels = torch.tensor([[5, 6, -100, -100], [-100, 7, 8, 9], [-100, -100, -100, -100]])
    weights, count = weigh_labels(labels, None, "samples")
    assert count == 2
    torch.testing.assert_close(weights, torch.tensor([[0, 1, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 0, 0]]))
    weights, count = weigh_labels(labels, None, "tokens")
    assert count == 4 and weights.sum() == 4
