"""Encoded samples to the tensors of one forward pass, padded or packed.

Padding is known from lengths, never from token ids: an answer may end in the very id that pads. The images of a batch
are joined by the model family's `Renderer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from phi3v_train.data.encode import EncodedPrompt, EncodedSample, Ids
from phi3v_train.models.renderer import NO_LABEL, ImageArrays, PaddingSide, Renderer

Arrays: TypeAlias = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Counts of a batch: `num_tokens` without padding, `num_supervised` tokens that have a label."""

    num_samples: int
    num_tokens: int
    num_supervised: int
    num_images: int


def collate_arrays(samples: Sequence[EncodedSample], renderer: Renderer, *, pack: bool = False) -> Arrays:
    """The batch as numpy arrays, for worker processes; see `collate`."""
    ids = [renderer.model_ids(sample.input_ids) for sample in samples]
    labels = [_without_first(sample.labels) for sample in samples]
    more = [renderer.token_inputs(sample.input_ids, sample.images) for sample in samples]
    if pack:
        arrays: Arrays = {
            "input_ids": np.concatenate(ids)[None],
            "position_ids": np.concatenate([np.arange(len(row), dtype=np.int64) for row in ids])[None],
            "labels": np.concatenate(labels)[None],
            **renderer.packed_inputs([len(row) for row in ids]),
        }
    else:
        arrays = _pad(ids, renderer.pad_token_id, renderer.padding_side)
        arrays["labels"] = _fill(labels, NO_LABEL, renderer.padding_side)
    for name in more[0]:
        columns = [each[name] for each in more]
        arrays[name] = _packed(columns) if pack else _fill_columns(columns, renderer.padding_side)
    return {**arrays, **_images([sample.images for sample in samples], renderer)}


def collate(samples: Sequence[EncodedSample], renderer: Renderer, *, pack: bool = False) -> dict[str, Any]:
    """The model's keyword arguments for `samples`, as torch tensors.

    Padded: `input_ids`, `attention_mask`, `labels` (b, longest). Packed: `input_ids`, `labels` and `position_ids`
    (1, all tokens), positions beginning at 0 with each sample and no mask: an all-ones mask would hide from attention
    code that there are several. The first label of each sample is -100: the token before belongs to another one.
    Where there are images: what `Renderer.collate_images` makes of them, in order of the rows.
    """
    return to_tensors(collate_arrays(samples, renderer, pack=pack))


def collate_prompts(prompts: Sequence[EncodedPrompt], renderer: Renderer) -> dict[str, Any]:
    """Prompts to the arguments of `generate`: padded on the left, so that all answers begin in one column."""
    arrays = _pad([renderer.model_ids(prompt.input_ids) for prompt in prompts], renderer.pad_token_id, "left")
    more = [renderer.prompt_inputs(prompt.input_ids, prompt.images) for prompt in prompts]
    for name in more[0]:
        arrays[name] = _fill_columns([each[name] for each in more], "left")
    return to_tensors({**arrays, **_images([prompt.images for prompt in prompts], renderer)})


def to_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Torch tensors on the same memory."""
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def batch_shape(samples: Sequence[EncodedSample]) -> BatchShape:
    """Counts over a micro-batch."""
    return BatchShape(
        num_samples=len(samples),
        num_tokens=sum(len(sample.input_ids) for sample in samples),
        num_supervised=sum(int((_without_first(sample.labels) != NO_LABEL).sum()) for sample in samples),
        num_images=sum(len(sample.images) for sample in samples),
    )


def _without_first(labels: Ids) -> Ids:
    """Labels whose first is -100: no token of the same sample predicts it."""
    if len(labels) and labels[0] != NO_LABEL:
        labels = labels.copy()
        labels[0] = NO_LABEL
    return labels


def _pad(rows: Sequence[Ids], pad_token_id: int, side: PaddingSide) -> Arrays:
    ones = [np.ones(len(row), dtype=np.int64) for row in rows]
    return {"input_ids": _fill(rows, pad_token_id, side), "attention_mask": _fill(ones, 0, side)}


def _fill(rows: Sequence[Ids], value: int, side: PaddingSide) -> Ids:
    """Rows of unequal length as one array, `value` where there is none."""
    longest = max(len(row) for row in rows)
    result = np.full((len(rows), longest), value, dtype=np.int64)
    for target, row in zip(result, rows, strict=True):
        if side == "right":
            target[: len(row)] = row
        else:
            target[longest - len(row) :] = row
    return result


def _fill_columns(rows: Sequence[NDArray[Any]], side: PaddingSide) -> NDArray[Any]:
    """Arrays (..., T) of each sample as one (..., samples, longest), 0 where there is none."""
    longest = max(row.shape[-1] for row in rows)
    result = np.zeros((*rows[0].shape[:-1], len(rows), longest), rows[0].dtype)
    for index, row in enumerate(rows):
        start = 0 if side == "right" else longest - row.shape[-1]
        result[..., index, start : start + row.shape[-1]] = row
    return result


def _packed(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays (..., T) of each sample as one (..., 1, all tokens)."""
    return np.concatenate(rows, axis=-1)[..., None, :]


def _images(rows: Sequence[Sequence[ImageArrays]], renderer: Renderer) -> Arrays:
    """Inputs of the images of all rows; nothing where no row has an image."""
    images = [image for row in rows for image in row]
    return renderer.collate_images(images) if images else {}
