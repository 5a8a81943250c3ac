"""Several samples in one row or batch: each sees only itself, and no neighbour changes it."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from golden_model import distance, golden_case, golden_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface

from phi3v_train.models.phi3v import Phi3VForConditionalGeneration, packing
from phi3v_train.models.phi3v.packing import plan_layout, shifted_labels

SWITCH = {"original_max_position_embeddings": 64, "max_position_embeddings": 4096}
GENERATOR = torch.Generator().manual_seed(5)


def text(length: int) -> Tensor:
    return torch.randint(3, 420, (length,), generator=GENERATOR)


def positions_of(samples: list[Tensor]) -> Tensor:
    return torch.cat([torch.arange(len(sample)) for sample in samples])[None]


def bounds_of(samples: list[Tensor]) -> Tensor:
    return torch.tensor([0, *(len(sample) for sample in samples)]).cumsum(0).int()


def right_padded(samples: list[Tensor], pad: int = 429) -> tuple[Tensor, Tensor]:
    width = max(len(sample) for sample in samples)
    ids = torch.stack([torch.nn.functional.pad(sample, (0, width - len(sample)), value=pad) for sample in samples])
    mask = torch.stack([(torch.arange(width) < len(sample)).long() for sample in samples])
    return ids, mask


def logits_alone(model: Phi3VForConditionalGeneration, samples: list[Tensor]) -> list[Tensor]:
    return [model(input_ids=sample[None], use_cache=False).logits[0] for sample in samples]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("how", ["positions", "bounds", "positions and a mask of ones"])
def test_a_packed_row_equals_its_samples_alone_across_the_rope_switch(attention: str, how: str) -> None:
    model = golden_model(attention, **SWITCH)
    samples = [text(length) for length in (40, 65, 1, 100, 64, 1, 1, 7)]
    row = torch.cat(samples)[None]
    layout: dict[str, Tensor] = {"position_ids": positions_of(samples)}
    if how == "bounds":
        layout = {"cu_seq_lens_q": bounds_of(samples)}
    elif how == "positions and a mask of ones":
        layout["attention_mask"] = torch.ones_like(row)
    packed = model(input_ids=row, **layout).logits[0]
    for logits, alone in zip(packed.split([len(s) for s in samples]), logits_alone(model, samples), strict=True):
        assert distance(logits, alone) < 1e-5


def test_a_short_sample_does_not_change_when_a_long_one_joins_its_batch_or_row() -> None:
    model = golden_model(**SWITCH)
    short, long = text(40), text(90)
    alone, long_alone = logits_alone(model, [short, long])
    ids, mask = right_padded([short, long])
    for use_cache in (True, False):
        batch = model(input_ids=ids, attention_mask=mask, use_cache=use_cache).logits
        assert distance(batch[0, :40], alone) < 1e-5
        assert distance(batch[1], long_alone) < 1e-5
    row = model(input_ids=torch.cat((short, long))[None], position_ids=positions_of([short, long])).logits
    assert distance(row[0, :40], alone) < 1e-5


def test_packed_rows_with_tails_of_padding_and_several_rows() -> None:
    model = golden_model(**SWITCH)
    samples = [text(length) for length in (30, 70, 20, 50)]
    rows = [torch.cat(samples[:2]), torch.cat(samples[2:])]
    ids, mask = right_padded(rows)
    positions, _ = right_padded([positions_of(samples[:2])[0], positions_of(samples[2:])[0]], pad=0)
    alone = logits_alone(model, samples)
    for given_mask in ({"attention_mask": mask}, {}):
        logits = model(input_ids=ids, position_ids=positions, **given_mask).logits
        assert distance(logits[0, :30], alone[0]) < 1e-5
        assert distance(logits[0, 30:100], alone[1]) < 1e-5
        assert distance(logits[1, :20], alone[2]) < 1e-5
        assert distance(logits[1, 20:70], alone[3]) < 1e-5


def test_packed_images_loss_and_gradients_equal_singles() -> None:
    model = golden_model()
    cases = [golden_case(name) for name in ("square_nc4", "text_only", "multiturn_two_images_nc4", "wide_nc4")]
    num_labels = sum(int((case.labels[:, 1:] >= 0).sum()) for case in cases)
    for case in cases:
        model(**case.inputs, labels=case.labels, num_items_in_batch=num_labels).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ids = [case.inputs["input_ids"][0] for case in cases]
    labels = torch.cat([case.labels for case in cases], dim=1)
    labels[0, bounds_of(ids)[:-1].long()] = 5  # a first label that a careless collator left in
    with_images = [case for case in cases if "pixel_values" in case.inputs]
    images = {name: torch.cat([case.inputs[name] for case in with_images]) for name in ("pixel_values", "image_sizes")}
    output = model(input_ids=torch.cat(ids)[None], position_ids=positions_of(ids), labels=labels, **images)
    mean = sum(case.figures["loss"] * int((case.labels[:, 1:] >= 0).sum()) for case in cases) / num_labels
    assert abs(output.loss.item() - mean) < 1e-5
    output.loss.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-3, atol=1e-6)
    for case, logits in zip(cases, output.logits[0].split([len(i) for i in ids]), strict=True):
        assert distance(logits[case.tensors["logits_positions"]], case.tensors["logits"]) < 1e-4


def test_unequal_samples_in_a_batch_equal_singles() -> None:
    model = golden_model()
    cases = [golden_case(name) for name in ("wide_nc4", "text_system", "square_nc4")]
    ids, mask = right_padded([case.inputs["input_ids"][0] for case in cases])
    labels, _ = right_padded([case.labels[0] for case in cases], pad=-100)
    images = {
        name: torch.cat([case.inputs[name] for case in (cases[0], cases[2])])
        for name in ("pixel_values", "image_sizes")
    }
    logits = model(input_ids=ids, attention_mask=mask, labels=labels, **images).logits
    for case, row in zip(cases, logits, strict=True):
        assert distance(row[case.tensors["logits_positions"]], case.tensors["logits"]) < 1e-4


def test_packed_rows_and_a_cache_do_not_go_together() -> None:
    samples = [text(5), text(6)]
    with pytest.raises(ValueError, match="packed rows cannot use a cache"):
        golden_model()(input_ids=torch.cat(samples)[None], position_ids=positions_of(samples), use_cache=True)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3), left=st.booleans())
def test_layout_finds_every_sample(rows: list[list[int]], left: bool) -> None:
    """Positions, lengths, starts and shifted labels of padded packed rows against a count by hand."""
    width = max(sum(row) for row in rows)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(positions)
    labels = torch.full_like(positions, -100)
    lengths, starts, targets = torch.zeros_like(positions), [], torch.full_like(positions, -100)
    for index, row in enumerate(rows):
        column = width - sum(row) if left else 0
        for length in row:
            span = slice(column, column + length)
            starts.append(index * width + column)
            positions[index, span] = torch.arange(length)
            mask[index, span] = 1
            labels[index, span] = torch.arange(column, column + length) + 1000
            lengths[index, span] = length
            targets[index, column : column + length - 1] = labels[index, column + 1 : column + length]
            column += length
    layout = plan_layout(len(rows), width, torch.device("cpu"), attention_mask=mask, position_ids=positions)
    assert layout.sample_starts == tuple(starts)
    assert torch.equal(layout.lengths.expand_as(positions)[mask.bool()], lengths[mask.bool()])
    assert torch.equal(shifted_labels(labels, layout), targets)
    if layout.segments is not None:
        assert list(layout.segments.lengths) == [length for row in rows for length in row]
        flat = layout.segments.flatten(labels)
        assert torch.equal(layout.segments.restore(flat, len(rows), width)[mask.bool()], labels[mask.bool()])


def test_bounds_describe_one_row_only() -> None:
    with pytest.raises(ValueError, match="one packed row, but the batch has 2"):
        golden_model()(input_ids=torch.stack((text(6), text(6))), cu_seq_lens_q=torch.tensor([0, 6, 12]))


def varied_lengths(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """Output of kernels for samples of varied lengths: (t, heads, d) by the samples' bounds."""
    pieces = []
    for begin, end in pairwise(bounds.tolist()):
        parts = (tensor[begin:end].transpose(0, 1)[None] for tensor in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
        pieces.append(mixed[0].transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("kernel", ["flash", "varlen"])
def test_kernels_for_varied_lengths_get_the_bounds_of_the_samples(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """The kernels need a GPU; here stand-ins with their interfaces take their place."""
    model = golden_model(**SWITCH)
    samples = [text(length) for length in (40, 65, 1, 100)]
    alone = logits_alone(model, samples)
    calls: list[int] = []

    def flash(module: object, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any) -> tuple[Any, ...]:
        assert mask is None
        assert options["max_length_q"] == options["max_length_k"] == 100
        assert torch.equal(options["cu_seq_lens_q"], options["cu_seq_lens_k"])
        calls.append(1)
        flat = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return varied_lengths(*flat, options["cu_seq_lens_q"])[None], None

    def varlen(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *rest: Any) -> Tensor:
        assert query.shape == key.shape
        assert starts.dtype == torch.int32
        calls.append(1)
        return varied_lengths(query, key, value, starts)

    if kernel == "flash":
        AttentionInterface.register("flash_attention_stand_in", flash)
        model.config._attn_implementation = "flash_attention_stand_in"
    else:
        monkeypatch.setattr(packing, "_fits_varlen", lambda query: True)
        monkeypatch.setattr(packing, "varlen_kernel", lambda: varlen)
    logits = model(input_ids=torch.cat(samples)[None], position_ids=positions_of(samples)).logits[0]
    assert len(calls) == model.config.num_hidden_layers
    for row, expected in zip(logits.split([len(s) for s in samples]), alone, strict=True):
        assert distance(row, expected) < 1e-5


def test_the_installed_torch_has_the_kernel_by_a_known_signature() -> None:
    kernel = packing.varlen_kernel()
    assert kernel is not None
    assert kernel.keywords in ({"is_causal": True}, {"window_size": (-1, 0)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_packed_kernels_in_half_precision_equal_singles(attention: str) -> None:
    """torch's kernel for samples of varied lengths (sdpa), flash-attn where it is installed."""
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = golden_model(attention, dtype=torch.bfloat16, **SWITCH).to("cuda")
    reference = golden_model("eager", **SWITCH).to("cuda")
    samples = [text(length).to("cuda") for length in (40, 65, 1, 100)]
    layout = {"position_ids": positions_of(samples).to("cuda")}
    packed = model(input_ids=torch.cat(samples)[None], **layout)
    expected = reference(input_ids=torch.cat(samples)[None], **layout)
    assert distance(packed.logits.float(), expected.logits) < 0.5
    packed.logits.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.model.layers.parameters())
