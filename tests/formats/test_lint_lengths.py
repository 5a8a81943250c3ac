"""Lengths in tokens of a file's rows: as those of the directory that an import makes of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from in_process import Cli, make_cli
from PIL import Image

from phi3v_data.importing import import_rows
from phi3v_data.lint import lint_file
from phi3v_data.lint.lengths import LengthSettings
from phi3v_data.schema import Report
from phi3v_data.validate import validate

CHATS = Path(__file__).parents[1] / "data" / "chat_formats"
TOKENIZER = Path(__file__).parents[1] / "data" / "golden" / "tiny_tokenizer"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def found(report: Report, *codes: str) -> list[tuple[int | None, str, str, str]]:
    """Line, code, severity and message of the findings about lengths."""
    wanted = codes or ("too-long", "rope-switch", "image-aspect")
    return [(item.line, item.code, item.severity, item.message) for item in report.problems if item.code in wanted]


def swift(messages: list[tuple[str, str]], **more: Any) -> str:
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in messages], **more}) + "\n"


MIXED = (
    swift([("user", "<image>What is it?"), ("assistant", "A cat.")], images=["a.png"]),
    swift([("system", "Be brief."), ("user", "é?\n"), ("assistant", "No."), ("user", "Why?"), ("assistant", "So.")]),
    swift([("user", "See <image> and <image>"), ("assistant", "Two.")], images=["a.png", "b.png"]),
    swift([("user", "Which?"), ("assistant", "This.")], rejected_response="That one, which is a longer answer."),
    swift([("user", "Which?"), ("assistant", "This, a longer answer.")], rejected_response="That."),
    swift(
        [("user", "Rain?"), ("tool_call", '{"name": "w", "arguments": {}}'), ("tool_response", "rain, all day"),
         ("assistant", "Yes.")],
        tools='[{"name": "w"}]',
    ),
)  # fmt: skip


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (640, 480)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (90, 1200)).save(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "data.jsonl").write_text("".join(MIXED))
    return tmp_path / "in" / "data.jsonl"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_crops": 4},
        {"model": "qwen2_5_vl", "image_options": {"max_pixels": 200_704}},
        {"model": "llava_onevision"},
        {"tokenizer": TOKENIZER},
    ],
    ids=["usual", "num_crops", "max_pixels", "several images count otherwise", "tokenizer"],
)
def test_the_lengths_of_a_file_are_those_of_the_directory_that_an_import_makes(
    options: dict[str, Any], mixed: Path, tmp_path: Path
) -> None:
    """A limit of one token reports each row with its length."""
    if "tokenizer" in options:
        pytest.importorskip("tokenizers")
    import_rows("swift", mixed, tmp_path / "set", workers=0)
    expected = found(validate(tmp_path / "set", max_tokens=1, **options))
    assert [line for line, code, *_ in expected if code == "too-long"] == [1, 2, 3, 4, 5, 6]
    model = options.pop("model", None)
    report = lint_file(mixed, model=model, lengths=LengthSettings(max_tokens=1, **options))
    assert found(report) == expected


def test_the_estimate_counts_tools_and_the_longer_answer_of_a_pair(mixed: Path) -> None:
    """Bytes of the texts by hand: 3.6 per token, 12 per turn, 2 per row for Phi-3-vision."""

    def length(num_bytes: int) -> str:
        return f"about {math.ceil(num_bytes / 3.6) + 12 + 2} tokens, over the limit of 1"

    report = lint_file(mixed, lengths=LengthSettings(max_tokens=1))
    messages = {line: message for line, *_, message in found(report, "too-long")}
    assert messages[4] == length(len("Which?") + len("That one, which is a longer answer."))
    assert messages[5] == length(len("Which?") + len("This, a longer answer."))
    tools = len('[{"name": "w"}]') + len('{"name": "w", "arguments": {}}') + len("rain, all day")
    assert messages[6] == length(len("Rain?") + tools + len("Yes."))


def test_a_tokenizer_counts_the_same_texts_exactly(mixed: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))

    def size(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    report = lint_file(mixed, lengths=LengthSettings(max_tokens=1, tokenizer=TOKENIZER))
    lengths = {line: int(message.split()[0]) for line, *_, message in found(report, "too-long")}
    pair, chosen = "That one, which is a longer answer.", "This."
    assert lengths[4] - size(pair) == lengths[5] - size("This, a longer answer.") > size(chosen)
    assert {severity for *_, severity, _ in found(report, "too-long")} == {"error"}


def test_rows_of_parquet_and_packed_rows_are_counted_too(mixed: Path, tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
    (tmp_path / "packed.jsonl").write_text(json.dumps([row, row]) + "\n" + json.dumps([row]) + "\n")
    lengths = LengthSettings(max_tokens=20)
    report = lint_file(tmp_path / "packed.jsonl", format="qwen", lengths=lengths)
    assert found(report) == [(1, "too-long", "warning", "about 32 tokens, over the limit of 20")]
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    pq.write_table(pa.Table.from_pylist([{"messages": messages, "images": []}]), tmp_path / "data.parquet")
    report = lint_file(tmp_path / "data.parquet", format="trl", lengths=LengthSettings(max_tokens=14))
    assert found(report) == [(1, "too-long", "warning", "about 16 tokens, over the limit of 14")]


def test_rows_that_no_sample_can_hold_and_images_that_cannot_be_read_have_no_tokens(tmp_path: Path) -> None:
    open_end = swift([("user", "Why?"), ("assistant", "So."), ("user", "And?" * 99)])
    missing = swift([("user", "<image>Why?"), ("assistant", "So.")], images=["none.png"])
    (tmp_path / "data.jsonl").write_text(open_end + missing)
    report = lint_file(tmp_path / "data.jsonl", format="swift", lengths=LengthSettings(max_tokens=1))
    assert found(report) == [(2, "too-long", "warning", "about 19 tokens, over the limit of 1")]
    assert found(report, "image-missing")[0][0] == 2


def test_an_image_that_the_processor_cannot_take_is_named_with_its_field(cli: Cli, tmp_path: Path) -> None:
    Image.new("RGB", (3, 900)).save(tmp_path / "thin.png")
    (tmp_path / "data.jsonl").write_text(
        swift([("user", "<image>Why?"), ("assistant", "So.")], images=["thin.png"], id="t")
    )
    code, out, _ = cli("validate", tmp_path / "data.jsonl", "--model", "qwen2_5_vl", "--max_pixels", 200704, "--json")
    [problem] = [item for item in json.loads(out)["problems"] if item["code"] == "image-aspect"]
    assert (code, problem["line"], problem["field"]) == (1, 1, "images[0]")


def test_the_command_takes_the_options_and_refuses_what_the_model_does_not_have(cli: Cli, mixed: Path) -> None:
    code, out, _ = cli("validate", mixed, "--max_tokens", 600, "--num_crops", 1, "--json")
    assert [(item["code"], item["line"]) for item in json.loads(out)["problems"] if item["code"] == "too-long"] == [
        ("too-long", 3)
    ]
    code, _, error = cli("validate", mixed, "--model", "qwen2_5_vl", "--num_crops", 4)
    assert (code, "--num_crops 4: images of the model family qwen2_5_vl are limited by --max_pixels" in error) == (
        2,
        True,
    )
