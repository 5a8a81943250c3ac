"""Padding from lengths, packing with positions, and the same loss either way."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_dirs import PAD, mixed_directory, processor

from phi3v_train.data.collate import batch_shape, collate, collate_prompts
from phi3v_train.data.encode import EncodedPrompt, EncodedSample, Encoder, Provenance
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_sources
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.models.renderer import NO_LABEL, Renderer

RENDERER = PHI3V.renderer(processor())


def on_the_left() -> Renderer:
    """A renderer of a family that pads on the left."""
    renderer = PHI3V.renderer(processor())
    renderer.padding_side = "left"
    return renderer


def sample(ids: list[int], labels: list[int] | None = None, images: int = 0) -> EncodedSample:
    labels = ids if labels is None else labels
    arrays = tuple(
        {"canvases": np.full((336, 672, 3), index, dtype=np.uint8), "image_sizes": np.array([336, 672])}
        for index in range(images)
    )
    supervised = sum(label != NO_LABEL for label in labels)
    return EncodedSample(np.array(ids), np.array(labels), arrays, supervised, Provenance("d", "train", 0, "x"))


rows = st.lists(st.lists(st.integers(0, 511), min_size=1, max_size=20), min_size=1, max_size=6)


@given(rows, st.sampled_from(["left", "right"]))
def test_padding_comes_from_lengths(rows, side):
    batch = collate([sample(row) for row in rows], RENDERER if side == "right" else on_the_left())
    longest = max(map(len, rows))
    assert batch["input_ids"].shape == batch["labels"].shape == (len(rows), longest)
    for ids, mask, labels, row in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist(), rows, strict=True
    ):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        assert ids[place] == row
        assert mask[place] == [1] * len(row)
        assert sum(mask) == len(row)
        assert labels[place] == [NO_LABEL, *row[1:]]
        assert set(ids) <= {*row, PAD}
    assert "canvases" not in batch


@given(rows)
def test_packing_loses_nothing_and_marks_the_borders(rows):
    samples = [sample(row) for row in rows]
    batch = collate(samples, RENDERER, pack=True)
    assert batch["input_ids"].tolist() == [[token for row in rows for token in row]]
    assert batch["position_ids"].tolist() == [[place for row in rows for place in range(len(row))]]
    assert batch["labels"].tolist() == [[label for row in rows for label in (NO_LABEL, *row[1:])]]
    assert "attention_mask" not in batch
    shape = batch_shape(samples)
    assert shape.num_supervised == int((batch["labels"] != NO_LABEL).sum())
    assert shape.num_tokens == sum(map(len, rows))


def test_canvases_travel_flat_in_the_order_of_the_rows():
    batch = collate([sample([1, 2], images=2), sample([3]), sample([4], images=1)], RENDERER)
    assert batch["image_sizes"].tolist() == [[336, 672]] * 3
    assert batch["canvases"].dtype == torch.uint8
    assert batch["canvases"].shape == (3 * 336 * 672 * 3,)
    assert batch["canvases"].view(3, -1)[:, 0].tolist() == [0, 1, 0]
    assert batch_shape([sample([1, 2], images=2)]).num_images == 2


def test_the_callers_labels_are_left_alone():
    one = sample([5, 6])
    collate([one], RENDERER)
    assert one.labels.tolist() == [5, 6]


def test_prompts_are_padded_on_the_left():
    prompts = [
        EncodedPrompt(np.array(ids), (), 0, ("a",), Provenance("d", "val", 0, "x")) for ids in ([1, 2, PAD], [3])
    ]
    batch = collate_prompts(prompts, RENDERER)
    assert batch["input_ids"].tolist() == [[1, 2, PAD], [PAD, PAD, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("pack", [False, True])
def test_the_batch_of_any_rows_is_what_the_model_counts(tmp_path, pack):
    """Runs of image ids are as long as the canvases beside them say, row by row."""
    reader = Reader(open_sources([mixed_directory(tmp_path)], "train", num_crops=4), Encoder(RENDERER))
    samples = [reader.encode(SampleRef(0, row, 0)) for row in range(8)]
    batch = collate(samples, RENDERER, pack=pack)
    grids = [(height // 336, width // 336) for height, width in batch["image_sizes"].tolist()]
    tokens = [(h * w + 1) * 144 + 1 + (h + 1) * 12 for h, w in grids]
    assert int((batch["input_ids"] < 0).sum()) == sum(tokens)
    assert batch["canvases"].numel() == sum(h * w * 336 * 336 * 3 for h, w in grids)
    assert (batch["labels"][batch["input_ids"] < 0] == NO_LABEL).all()


@torch.no_grad()
def test_the_model_gives_one_loss_padded_packed_and_alone(tmp_path):
    reader = Reader(open_sources([mixed_directory(tmp_path)], "train", num_crops=1), Encoder(RENDERER))
    samples = [reader.encode(SampleRef(0, row, 0)) for row in (0, 1, 2, 4)]
    model = tiny_model().eval()

    def loss(rows, **how):
        batch = collate(rows, **{"renderer": RENDERER, **how})
        return model(**batch, num_items_in_batch=batch_shape(samples).num_supervised).loss.item()

    alone = sum(loss([row]) for row in samples)
    assert alone > 0
    for how in ({}, {"renderer": on_the_left()}, {"pack": True}):
        assert loss(samples, **how) == pytest.approx(alone, abs=1e-6)
