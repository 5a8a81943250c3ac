"""Attention within the samples of a packed row equals attention under a mask over all pairs of tokens."""

import pytest
import torch
from torch.nn import functional

from phi3v_data.schema import Sample, Turn
from phi3v_train.data.collate import collate
from phi3v_train.data.encode import Encoder, Provenance
from phi3v_train.models.huggingface import attention
from phi3v_train.models.registry import get_family, make_renderer

LENGTHS = (3, 7, 1, 5)


@pytest.mark.parametrize("window", [None, 2])
def test_samples_see_themselves_only(window: int | None) -> None:
    """With fewer heads of keys than of queries; a window of 2 sees a token and the one before."""
    torch.manual_seed(0)
    total = sum(LENGTHS)
    query, key, value = (torch.randn(1, heads, total, 8) for heads in (4, 2, 2))
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    places = torch.arange(total)
    distance = places[:, None] - places
    seen = (owner[:, None] == owner) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    wide = [tensor.repeat_interleave(2, dim=1) for tensor in (key, value)]
    expected = functional.scaled_dot_product_attention(query, *wide, attn_mask=seen, scale=0.5)
    found, _ = attention.by_sample(
        None, query, key, value, None, scaling=0.5, sliding_window=window, samples=list(LENGTHS)
    )
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=1e-6)


def test_a_packed_batch_is_computed_so_and_a_padded_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where activations are computed again in the backward pass."""
    family = get_family("qwen3_vl")
    renderer = make_renderer(family, family.tiny_processor())
    encoder = Encoder(renderer)
    rows = [
        encoder.encode(
            Sample(id=str(n), source="s", conversations=(Turn(user="Say it " * n, assistant="yes " * n),)),
            [], num_crops=None, provenance=Provenance("d", "s", n, str(n)),
        )
        for n in (1, 4)
    ]  # fmt: skip
    calls: list[int] = []
    original = functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *more: object, **options: object) -> torch.Tensor:
        calls.append(query.shape[2])
        result: torch.Tensor = original(query, *more, **options)  # type: ignore[arg-type]
        return result

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    model = family.tiny_model(0).train()
    model.model.visual.requires_grad_(False)  # else it runs as well
    model.gradient_checkpointing_enable()
    lengths = [len(row.input_ids) for row in rows]
    loss, _ = family.loss(model, collate(rows, renderer, pack=True), 1.0)
    assert calls == lengths * 2, "two layers, each sample by itself"
    torch.autograd.backward(loss)
    assert calls == lengths * 4
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    calls.clear()
    padded, _ = family.loss(model, collate(rows, renderer), 1.0)
    torch.autograd.backward(padded)
    assert set(calls) <= {max(lengths)}
    torch.testing.assert_close(padded, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=0, atol=1e-5)
