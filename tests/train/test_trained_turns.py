"""Turns of weight 0: context that is read, not trained and not asked; from the labels to a run's metrics."""

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_dirs import arguments, read_lines, settings_for
from sample_dirs import make_image, processor, renderer, save_image, write_rows

from phi3v_data.cli.base import make_group
from phi3v_data.cli.base import run as run_program
from phi3v_data.errors import UserError
from phi3v_data.schema import Sample, Turn
from phi3v_train import build
from phi3v_train.cli.app import COMMANDS, HELP
from phi3v_train.data.collate import batch_shape, collate
from phi3v_train.data.encode import EncodedSample, EncodeOptions, Encoder, Provenance, SampleError, prompt_turns
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_source
from phi3v_train.evaluation.prompts import Rows, measure_rows, truth_of
from phi3v_train.models.loading import load_processor
from phi3v_train.models.locate import locate
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor
from phi3v_train.models.registry import OTHER, family_names, make_renderer
from phi3v_train.models.renderer import NO_LABEL
from phi3v_train.run import run
from phi3v_train.settings import resolve

PLACE = Provenance("dir", "train", 0, "x")


def conversation(*weights: int, name: str = "x", images: tuple[str, ...] = ()) -> Sample:
    """Turns whose answers are `one`, `two`, `three`, ...; the first has the images."""
    answers = ("one", "two", "three", "four")
    turns = [
        Turn(user=f"question {n}", assistant=answers[n], weight=weight, images=() if n else images)
        for n, weight in enumerate(weights)
    ]
    return Sample(id=name, source="s", conversations=tuple(turns))


def encode(sample: Sample, **options: Any) -> EncodedSample:
    images = [make_image(0) for _ in sample.images]
    return Encoder(renderer(), EncodeOptions(**options)).encode(sample, images, num_crops=1, provenance=PLACE)


def trained_text(encoded: EncodedSample) -> str:
    """The supervised tokens as text, `|` between stretches that are apart."""
    tokenizer, parts, ids = processor().tokenizer, [], []
    for token, label in zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True):
        if label != NO_LABEL:
            assert label == token
            ids.append(token)
        elif ids:
            parts.append(tokenizer.decode(ids))
            ids = []
    return "|".join([*parts, tokenizer.decode(ids)] if ids else parts)


@pytest.mark.parametrize(
    ("weights", "trained"),
    [
        ((1, 1, 1), "one<|end|>|two<|end|>|three<|end|> \n<|endoftext|>"),
        ((0, 1, 1), "two<|end|>|three<|end|> \n<|endoftext|>"),
        ((1, 0, 1), "one<|end|>|three<|end|> \n<|endoftext|>"),
        ((1, 1, 0), "one<|end|>|two<|end|>"),
        ((0, 0, 1), "three<|end|> \n<|endoftext|>"),
        ((0, 1, 0), "two<|end|>"),
    ],
)
def test_answers_of_weight_0_and_their_end_are_not_trained(weights: tuple[int, ...], trained: str) -> None:
    sample = conversation(*weights, images=("a.png",))
    encoded, whole = encode(sample), encode(conversation(1, 1, 1, images=("a.png",)))
    assert encoded.input_ids.tolist() == whole.input_ids.tolist()
    assert trained_text(encoded) == trained
    assert encoded.num_supervised == sum(label != NO_LABEL for label in encoded.labels.tolist())


@given(st.lists(st.integers(0, 1), min_size=1, max_size=4), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_labels_are_those_of_the_whole_without_the_turns_of_weight_0(weights: list[int], limit: int) -> None:
    """For any weights and any cut: what is supervised is what would be, minus the answers of weight 0."""
    whole = conversation(*[1] * len(weights))
    options = {"max_length": limit, "truncate": "turns"}
    try:
        expected = encode(whole, **options)
    except SampleError as error:
        with pytest.raises(SampleError, match=re.escape(str(error))):
            encode(conversation(*weights), **options)
        return
    kept = len(weights) - expected.dropped_turns
    if not any(weights[:kept]):
        with pytest.raises(SampleError, match="weight 0, so nothing of it"):
            encode(conversation(*weights), **options)
        return
    encoded = encode(conversation(*weights), **options)
    assert encoded.input_ids.tolist() == expected.input_ids.tolist()
    labels, turn = expected.labels.tolist(), -1
    for place, label in enumerate(labels):
        if label != NO_LABEL and labels[place - 1] == NO_LABEL:
            turn += 1
        if encoded.labels[place] != label:
            assert (encoded.labels[place], weights[turn]) == (NO_LABEL, 0)
        elif label != NO_LABEL:
            assert weights[turn] == 1


@pytest.mark.parametrize("family", [name for name in family_names() if name != OTHER])
def test_every_family_trains_the_turns_of_weight_1_only(family: str) -> None:
    """The stretches of labels are those of the whole sample, without those of the turns of weight 0."""
    files = locate(f"tiny:{family}")
    encoder = Encoder(make_renderer(files.family, load_processor(files)))
    budget = 1 if family == "phi3v" else None  # the others have budgets of their own

    def stretches(*weights: int) -> list[tuple[int, ...]]:
        tokens = encoder.tokenize(conversation(*weights, images=("a.png",)), [(64, 48)], num_crops=budget)
        found = groupby(enumerate(tokens.labels.tolist()), key=lambda pair: pair[1] != NO_LABEL)
        assert all(label in (NO_LABEL, token) for token, label in zip(tokens.input_ids, tokens.labels, strict=True))
        return [tuple(place for place, _ in group) for supervised, group in found if supervised]

    first, second, third = stretches(1, 1, 1)
    for weights in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 1, 0)):
        kept = zip((first, second, third), weights, strict=True)
        assert stretches(*weights) == [stretch for stretch, weight in kept if weight], weights


def test_a_sample_that_trains_nothing_is_refused() -> None:
    with pytest.raises(SampleError, match="its only turn has weight 0, so nothing of it is trained or scored: give"):
        encode(conversation(0))
    with pytest.raises(SampleError, match="all its 2 turns have weight 0"):
        encode(conversation(0, 0))
    cut = len(encode(conversation(1)).input_ids)
    with pytest.raises(SampleError, match=f"its first 1 turn within --max_length {cut} has weight 0"):
        encode(conversation(0, 1), max_length=cut, truncate="turns")


def test_evaluation_asks_trained_turns_only(tmp_path: Path) -> None:
    rows = [conversation(1, 0, 1, 0, name="a"), conversation(0, 1, name="b"), conversation(1, name="c")]
    directory = write_rows(tmp_path / "d", rows, "val")
    source = open_source(directory, "val", num_crops=1)
    asked: dict[str, list[tuple[str, int]]] = {}
    for turns in ("last", "first", "all"):
        specs = measure_rows(Reader([source], Encoder(renderer())), Rows(0, 3, turns))  # type: ignore[arg-type]
        asked[turns] = [(spec.id, spec.turn) for spec in specs]
        truth = truth_of(source.split, turns)  # type: ignore[arg-type]
        assert [(each["id"], each["turn"]) for each in truth] == asked[turns]
    assert asked["last"] == [("a", 2), ("b", 1), ("c", 0)]
    assert asked["first"] == [("a", 0), ("b", 1), ("c", 0)]
    assert asked["all"] == [("a", 0), ("a", 2), ("b", 1), ("c", 0)]
    with pytest.raises(SampleError, match="all its 2 turns have weight 0"):
        prompt_turns(conversation(0, 0), "all")


def test_accepted_answers_are_those_of_the_last_turn_only(tmp_path: Path) -> None:
    row = conversation(1, 0).model_copy(update={"answers": ("two", "2")})
    source = open_source(write_rows(tmp_path / "d", [row], "val"), "val", num_crops=1)
    assert truth_of(source.split, "last")[0]["answers"] == ["one"]


def test_a_row_without_a_scored_turn_is_refused_with_its_line(tmp_path: Path) -> None:
    rows = [conversation(1, name="a"), conversation(0, name="b")]
    source = open_source(write_rows(tmp_path / "d", rows, "val"), "val", num_crops=1)
    place = rf"^{tmp_path}/d/set_val.jsonl:2 \(id 'b'\): its only turn has weight 0"
    with pytest.raises(UserError, match=place):
        measure_rows(Reader([source], Encoder(renderer())), Rows(0, 2, "last"))
    with pytest.raises(UserError, match=place):
        truth_of(source.split, "last")


def weighted_directory(directory: Path) -> Path:
    """Rows with and without images, some with turns of weight 0."""
    weights = [(1,), (0, 1), (1, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1), (0, 0, 1), (1, 1)]
    rows = [
        conversation(*each, name=f"r{n}", images=(save_image(directory, f"{n}.png", n),) if n % 3 else ())
        for n, each in enumerate(weights)
    ]
    return write_rows(directory, rows)


@torch.no_grad()
@pytest.mark.parametrize("pack", [False, True])
def test_the_loss_is_the_mean_over_what_is_supervised(tmp_path: Path, pack: bool) -> None:
    """Against cross-entropy of the logits of each row alone, at positions found by the text of its answers."""
    model, processing = tiny_model().eval(), tiny_processor(1)
    rendering = PHI3V.renderer(processing)
    reader = Reader([open_source(weighted_directory(tmp_path), "train", num_crops=1)], Encoder(rendering))
    samples = [reader.encode(SampleRef(0, row, 0)) for row in range(8)]
    total, count = 0.0, 0
    for row, encoded in enumerate(samples):
        batch = collate([encoded], rendering)
        del batch["labels"]
        chances = torch.log_softmax(model(**batch).logits[0].double(), -1)
        ids = encoded.input_ids.tolist()
        place = 0
        sample = reader.sources[0].split[row]
        for n, turn in enumerate(sample.conversations):
            last = n == len(sample.conversations) - 1
            text = turn.assistant + ("<|end|>\n<|endoftext|>" if last else "<|end|>")
            answer = processing.tokenizer(text, add_special_tokens=False)["input_ids"]
            place = next(at for at in range(place, len(ids)) if ids[at : at + len(answer)] == answer)
            if turn.weight:
                total -= sum(chances[at - 1, ids[at]].item() for at in range(place, place + len(answer)))
                count += len(answer)
            place += len(answer)
    shape = batch_shape(samples)
    assert shape.num_supervised == count
    loss = model(**collate(samples, rendering, pack=pack), num_items_in_batch=count).loss.item()
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_a_run_counts_supervised_tokens_only_and_evaluates(tmp_path: Path) -> None:
    directory = weighted_directory(tmp_path / "d")
    write_rows(directory, [conversation(0, 1, name="v"), conversation(1, 0, name="w")], "val")
    out = tmp_path / "out"
    changes = {"batch_size": 8, "max_steps": 1, "logging_steps": 1, "eval_after": True, "max_new_tokens": 2}
    run(resolve(settings_for(directory, out, **changes)), quiet=True)
    tokenizer = tiny_processor(1).tokenizer
    count = 0
    for line in read_lines(directory / "set_train.jsonl"):
        turns = line["conversations"]
        for turn in turns:
            text = turn["assistant"] + ("<|end|>\n<|endoftext|>" if turn is turns[-1] else "<|end|>")
            count += turn.get("weight", 1) * len(tokenizer(text, add_special_tokens=False)["input_ids"])
    (logged,) = [line for line in read_lines(out / "metrics.jsonl") if "loss" in line]
    assert logged["supervised_tokens"] == count
    (predictions,) = out.rglob("predictions*.jsonl")
    assert [(line["id"], line["turn"]) for line in read_lines(predictions)] == [("v", 1), ("w", 0)]


def test_loss_and_gradient_do_not_depend_on_the_division_of_the_batch(tmp_path: Path) -> None:
    """Micro-batches with few and with many supervised tokens, a short last batch, packed and padded."""
    directory = weighted_directory(tmp_path / "d")
    logged = []
    for name, changes in (
        ("whole", {"batch_size_per_gpu": 6}),
        ("single", {"batch_size_per_gpu": 1}),
        ("pairs", {"batch_size_per_gpu": 2}),
        ("packed", {"batch_size_per_gpu": 3, "pack": True}),
    ):
        out = tmp_path / name
        run(resolve(settings_for(directory, out, **{"batch_size": 6, "logging_steps": 1, **changes})), quiet=True)
        logged.append([line for line in read_lines(out / "metrics.jsonl") if "loss" in line])
    whole, *others = logged
    assert len(whole) == 2
    for lines in others:
        for line, expected in zip(lines, whole, strict=True):
            assert line["supervised_tokens"] == expected["supervised_tokens"]
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("spelling", ['"weight": 0', '"weight":0', '"weight" : -0', '"\\u0077eight": 0'])
def test_a_row_that_trains_nothing_stops_a_run_that_does_not_validate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    """Wherever it is among many rows, before a model is loaded."""
    monkeypatch.setattr(build, "load_base", lambda *_, **__: pytest.fail("a model was loaded first"))
    rows = [json.dumps(conversation(0, 1, name=f"r{n}").to_row()) for n in range(500)]
    rows[333] = json.dumps(conversation(0, 0, name="none").to_row()).replace('"weight": 0', spelling)
    rows[444] = rows[333].replace("none", "also")
    (tmp_path / "d_train.jsonl").write_text("\n".join(rows))
    with pytest.raises(SystemExit) as stop:
        run_program(
            make_group("phi3v-train", HELP, COMMANDS),
            ["run", *arguments(settings_for(tmp_path, tmp_path / "out", skip_validation=True))],
        )
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/d_train.jsonl:334 (id 'none'): all its 2 turns have weight 0, so nothing of it is trained "
        "or scored: give weight 1 to an answer, or remove the row (2 such rows; `phi3v-data validate` lists them)\n"
    )
    with pytest.raises(UserError, match=r"2 errors in the data, the first at d_train.jsonl:334 .*\(nothing-trained\)"):
        run(resolve(settings_for(tmp_path, tmp_path / "out")), quiet=True)
