"""Lengths in tokens: exact for images, exact for text with a tokenizer, and said where they are not."""

import json
import sys
from pathlib import Path

import pytest
from validate_builders import found, row, turn, write
from validate_images import encoded, make_image

from phi3v_data.errors import NotFoundError
from phi3v_data.validate import validate
from phi3v_train.models.phi3v.family import PHI3V

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
TOKENIZER = GOLDEN / "tiny_tokenizer"


def total(directory: Path, **options: object) -> int:
    """Tokens of all samples."""
    return validate(directory, use_receipt=False, **options).stats["tokens"]["sum"]  # type: ignore[arg-type]


def test_image_tokens_are_those_of_the_golden_table(tmp_path: Path) -> None:
    table = json.loads((GOLDEN / "token_count_table.json").read_text())
    rows = table if isinstance(table, list) else next(value for value in table.values() if isinstance(value, list))
    sizes = {(num_crops, width, height): tokens for num_crops, width, height, tokens, padded in rows if min(padded) > 0}
    chosen = {key: tokens for key, tokens in sizes.items() if key[1] * key[2] < 300_000}
    for num_crops in {key[0] for key in chosen}:
        cases = [key for key in chosen if key[0] == num_crops][:12]
        files = {f"images/{w}x{h}.png": encoded(make_image(w + h, (w, h))) for _, w, h in cases}
        lines = [row(f"{w}x{h}", turn(f"{w} {h}", images=(f"{w}x{h}.png",))) for _, w, h in cases]
        directory = write(tmp_path / str(num_crops), {"train.jsonl": lines, **files})
        report = validate(directory, num_crops=num_crops)
        assert report.stats["image_tokens"]["sum"] == sum(chosen[key] for key in cases)
        assert report.stats["num_crops"] == num_crops


SAMPLES = [
    row("plain", turn("What is two and two?", "four")),
    row("system", turn("Is it red?", " no "), system="Answer in one word."),
    row("image", turn("What is shown?", "a square", images=("a.png",))),
    row("three", turn("Compare.", "größer 火", images=("a.png", "b.png", "a.png"))),
    row("turns", turn("One?", "1", images=("a.png",)), turn("Two?", "2"), turn("Three?", "3", images=("b.png",))),
    row("inside", turn("Is this a cat or that?", "this", images=("a.png", "b.png"), image_offsets=[7, 17])),
    row("mixed", turn("Same as this?", "yes", images=("a.png", "b.png", "a.png"), image_offsets=[0, 0, 13])),
    row("spaces", turn("  two  spaces \n\n", "\nnewline ")),
]


@pytest.mark.parametrize("value", SAMPLES, ids=lambda value: value["id"])
def test_with_a_tokenizer_the_length_is_that_of_training(tmp_path: Path, value: dict[str, object]) -> None:
    pytest.importorskip("torch")
    from PIL import Image

    from phi3v_data.schema import Sample
    from phi3v_train.data.encode import Encoder
    from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
    from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
    from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer

    files = {"images/a.png": encoded(make_image(1, (300, 200))), "images/b.png": encoded(make_image(2, (100, 400)))}
    write(tmp_path, {"train.jsonl": [value], **files})
    processor = Phi3VProcessor(Phi3VImageProcessor(num_crops=4), Phi3VTokenizer.from_pretrained(TOKENIZER))
    sample = Sample.model_validate(value)
    sizes = []
    for path in sample.images:
        with Image.open(tmp_path / "images" / path) as image:
            sizes.append(image.size)
    expected = len(Encoder(PHI3V.renderer(processor)).tokenize(sample, sizes, num_crops=4).input_ids)
    assert total(tmp_path, num_crops=4, tokenizer=TOKENIZER) == expected


def test_too_long_is_an_error_when_exact_and_a_warning_when_estimated(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    write(tmp_path, {"train.jsonl": [row("a"), row("b", turn("word " * 300))]})
    estimated = validate(tmp_path, max_tokens=100)
    assert [(item.line, item.severity) for item in estimated.problems] == [(2, "warning")]
    assert estimated.problems[0].message.startswith("about ")
    assert estimated.ok
    assert estimated.stats["text_tokens"] == "estimated"
    exact = validate(tmp_path, max_tokens=100, tokenizer=TOKENIZER)
    assert [(item.line, item.severity) for item in exact.problems] == [(2, "error")]
    assert not exact.ok
    assert exact.stats["text_tokens"] == "exact"
    length = int(exact.problems[0].message.split()[0])
    assert validate(tmp_path, max_tokens=length, tokenizer=TOKENIZER).problems == ()


def test_the_estimate_is_of_the_right_order(tmp_path: Path) -> None:
    """Against the ids of the official tokenizer, over its golden prompts."""
    cases = json.loads((GOLDEN / "official_tokenizer_ids.json").read_text())["cases"]
    case = cases["text_system"]
    write(tmp_path, {"train.jsonl": [row("a", turn("Is the table red?", "no"), system="Answer in one word.")]})
    assert total(tmp_path) == pytest.approx(len(case["input_ids_rle"]) + 2, rel=0.4)


def test_past_4096_tokens_the_rope_switches(tmp_path: Path) -> None:
    files = {f"images/{n}.png": encoded(make_image(n, (50, 50))) for n in range(2)}
    rows = [row("one", turn("q", images=("0.png",))), row("two", turn("r", images=("0.png", "1.png")))]
    report = validate(write(tmp_path, {"train.jsonl": rows, **files}))
    assert [(item.code, item.line, item.severity) for item in report.problems] == [("rope-switch", 2, "info")]
    assert report.ok
    assert validate(tmp_path, num_crops=4).problems == ()


def test_num_crops_comes_from_the_option_then_the_manifest_then_16(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": [row("a")]})
    assert validate(tmp_path).stats["num_crops"] == 16
    manifest = {"format": 1, "name": "x", "task": "vqa", "num_crops": 4, "splits": {}}
    write(tmp_path, {"dataset.json": json.dumps(manifest)})
    assert validate(tmp_path).stats["num_crops"] == 4
    assert validate(tmp_path, num_crops=9).stats["num_crops"] == 9
    with pytest.raises(ValueError, match="num_crops"):
        validate(tmp_path, num_crops=17)


def test_a_tokenizer_that_cannot_be_used_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    write(tmp_path, {"train.jsonl": [row("a")], "bad/tokenizer.json": "{}"})
    with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
        validate(tmp_path, tokenizer=tmp_path)
    assert "cannot be read" in found(validate(tmp_path, tokenizer=tmp_path / "bad"), "check-skipped")[0].message
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    report = validate(tmp_path, tokenizer=TOKENIZER, use_receipt=False)
    assert "not installed" in found(report, "check-skipped")[0].message
    assert report.stats["text_tokens"] == "estimated"
