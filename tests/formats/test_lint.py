"""Files of other tools are checked where they are: each fault at its line and field, no good row blamed."""

import base64
import gzip
import io
import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from broken_files import BAD, CASES, PNG, Broken, write_images
from in_process import Cli, make_cli
from more_broken_files import MORE
from PIL import Image

from phi3v_data.formats.consumers.azure import Azure
from phi3v_data.formats.consumers.limits import LIMITS
from phi3v_data.lint import images, lint_file, runner


def inside(element: str, field: str | None) -> str:
    """A field of an element of an array, as a finding names it."""
    between = "" if not field or field.startswith("[") else "."
    return f"{element}{between}{field or ''}"


CHATS = Path(__file__).parents[1] / "data" / "chat_formats"


@pytest.mark.parametrize("layout", ["lines", "array", "minified"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.format}: {case.name}")
def test_a_broken_row_is_named_with_its_line_and_field_and_no_other(case: Broken, layout: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    path, line = case.write(tmp_path, layout)
    report = lint_file(path, format=case.format, consumer=case.consumer)
    found = {(item.code, item.line, item.field) for item in report.problems if item.line is not None}
    field = inside(f"[{BAD}]", case.field) if layout == "minified" else case.field  # else the line tells the row
    assert (case.code, line, field) in found
    assert {item.line for item in report.problems if item.line is not None} == {line}
    assert len(found) == 1, found


@pytest.mark.parametrize("case", MORE, ids=lambda case: f"{case.format}: {case.name}")
def test_a_row_that_is_broken_in_another_way_is_named_and_no_other(case: Broken, tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "folder.png").mkdir()
    path, line = case.write(tmp_path, "array")
    report = lint_file(path, format=case.format, consumer=case.consumer)
    found = {(item.code, item.field) for item in report.problems if item.line == line}
    assert (case.code, case.field) in found
    assert {item.line for item in report.problems if item.line is not None and item.severity != "info"} <= {line}


def test_an_unknown_detail_of_an_image_is_named_among_many_rows_that_are_alike(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        image = {"type": "image_url", "image_url": {"url": PNG, "detail": "best" if number == 40 else "low"}}
        text = {"type": "text", "text": f"What is {number}?"}
        messages = [{"role": "user", "content": [image, text]}, {"role": "assistant", "content": f"It is {number}."}]
        rows.append(json.dumps({"messages": messages}) + "\n")
    (path := tmp_path / "rows.jsonl").write_text("".join(rows))
    (found,) = lint_file(path, format="openai").problems
    assert (found.code, found.line, found.field) == ("wrong-type", 41, "messages[0].content[0].image_url.detail")
    assert "'detail' is 'best', OpenAI takes low, high, auto" in found.message


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGB", "WEBP"), ("RGBA", "PNG")]
)
def test_azure_takes_images_of_two_modes(mode: str, kind: str, tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new(mode, (8, 6)).save(data, kind)
    value = f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": value}}, {"type": "text", "text": "What?"}]
    ask = {"role": "user", "content": content}
    rows = [{"messages": [ask, {"role": "assistant", "content": str(number)}]} for number in range(10)]
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(item.line, item.message) for item in lint_file(path, format="openai", consumer="azure").problems]
    said = f"the image has mode {mode}, Azure takes RGB and RGBA (2026-11-28)"
    expected = [] if mode in ("RGB", "RGBA") else [(line, said) for line in range(1, 11)]
    assert [each for each in found if "image" in each[1]] == expected


@pytest.mark.parametrize("tool", ["llama-factory", "trl", "axolotl"])
def test_an_answer_of_weight_0_that_is_trained_is_named_among_many_rows_that_are_alike(
    tool: str, tmp_path: Path
) -> None:
    rows = []
    for number in range(60):
        texts = [{"role": role, "content": [{"type": "text", "text": f"{number}?"}]} for role in ("user", "assistant")]
        if tool == "llama-factory":
            texts = [{**each, "content": f"{number}?"} for each in texts]
        rows.append({"images": None if tool == "axolotl" else [], "messages": [*texts, *texts]})
        if number > 20:
            rows[-1]["messages"][1] = {**texts[1], "weight": int(number != 40)}
    (path := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = lint_file(path, format={"llama-factory": "sharegpt"}.get(tool, tool), consumer=tool).problems
    assert [(item.code, item.line, item.field) for item in found] == [("key-ignored", 41, "messages[1].weight")]


def test_blocks_in_a_file_of_ms_swift_are_told_the_formats_that_have_them(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Ho"}]
    (path := tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    [found] = lint_file(path, format="swift").problems
    assert (found.code, found.hint) == ("wrong-type", "give --format openai or axolotl")
    assert found.message.endswith("not a text: ms-swift reads blocks, which other formats have")
    assert lint_file(path, format="openai", consumer="ms-swift").problems == ()
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": "Hi"}]
    path.write_text(json.dumps({"images": ["a.png"], "messages": messages}) + "\n")
    [found] = lint_file(path, consumer="ms-swift").problems
    assert (found.code, found.hint) == ("wrong-type", "give --format trl")


def test_ms_swift_cannot_encode_a_system_message_of_blocks(tmp_path: Path) -> None:
    """Its template asserts that the system message is a text, after it has joined the blocks of the others."""
    text = [{"type": "text", "text": "Hi"}]
    messages = [{"role": role, "content": text} for role in ("system", "user", "assistant")]
    (path := tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    for name in ("openai", "trl"):
        [found] = lint_file(path, format=name, consumer="ms-swift").problems
        assert (found.code, found.field, found.severity) == ("wrong-type", "messages[0].content", "error")
        assert "does not join the blocks of a system message: it cannot encode the row" in found.message
    fields = [item.field for item in lint_file(path, format="swift").problems]
    assert fields == ["messages[0].content", "messages[1].content", "messages[2].content"]


def test_numbers_of_rows_and_sizes_of_images_are_limits_of_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With limits that a short file exceeds; the image has 79 bytes."""
    limits = replace(LIMITS["azure"], max_rows=30, rows_with_images=20, image_bytes=60)
    monkeypatch.setattr(Azure, "limits", limits)
    image = {"type": "image_url", "image_url": {"url": PNG}}
    lines = []
    for number in range(31):
        content = [*([image] if number < 21 else []), {"type": "text", "text": f"What is {number}?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"It is {number}."}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (path := tmp_path / "rows.jsonl").write_text("".join(lines))
    found = lint_file(path, format="openai", consumer="azure").problems
    assert {item.code for item in found} == {"over-limit"}
    field = "messages[0].content[0].image_url.url"
    assert [(item.line, item.field) for item in found if item.line] == [(line, field) for line in range(1, 22)]
    assert [item.message for item in found if not item.line] == [
        "the file has 31 rows, Azure takes 30 (2026-11-28)",
        "the file has 21 rows with images, Azure takes 20 (2026-11-28)",
    ]


@pytest.fixture
def lint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`phi3v-data validate`: exit code, stdout, stderr."""
    call = make_cli(capsys, monkeypatch)
    return lambda *args: call("validate", *args)


SAMPLES = {
    "ms_swift/data.jsonl": "swift",
    "openai/data_url.jsonl": "openai",
    "sharegpt/data_messages.json": "sharegpt",
    "sharegpt/data_conversations.json": "sharegpt",
    "trl/data.jsonl": "trl",
}


@pytest.mark.parametrize("file", SAMPLES)
def test_the_five_samples_are_clean_in_their_format(lint: Cli, file: str) -> None:
    code, out, error = lint(CHATS / file, "--json")
    report = json.loads(out)
    assert (code, report["problems"], report["ok"]) == (0, [], True)
    assert report["summary"]["samples"] == 5
    assert report["summary"]["images"] == 4
    assert report["summary"]["turns"] == 7
    assert report["stats"]["format"] == SAMPLES[file]
    assert f"format {SAMPLES[file]} (" in error


def test_in_the_sample_of_llava_only_the_system_message_that_llava_cannot_read_is_named(lint: Cli) -> None:
    code, out, _ = lint(CHATS / "llava" / "data.json", "--json")
    found = [(item["code"], item["line"], item["field"]) for item in json.loads(out)["problems"]]
    assert (code, found) == (1, [("system-message", 79, "conversations[0].from")])


def test_relative_paths_in_openais_format_are_warnings_for_openai_and_errors_for_azure(lint: Cli) -> None:
    path = CHATS / "openai" / "relative.jsonl"
    assert lint(path)[0] == 0
    assert lint(path, "--strict")[0] == 1
    code, out, _ = lint(path, "--for", "azure", "--json")
    report = json.loads(out)
    assert (code, report["summary"]["problems"]) == (1, {"image-source": 6, "over-limit": 1})


def test_the_format_is_guessed_when_plain_and_else_asked_for(lint: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}] * 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"x": 1}\n')
    assert "format swift (2 of the first 3 rows have it)" in lint(path)[2]
    path.write_text('{"x": 1}\n')
    code, _, error = lint(path)
    assert code == 2
    assert "give --format, one of axolotl" in error
    rows[0] = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, error = lint(path)
    assert code == 2
    assert "may be s" in error
    assert "sharegpt" in error
    assert "swift" in error


def test_a_guessed_file_is_read_as_the_tool_that_is_asked_for_reads_it(lint: Cli) -> None:
    code, _, error = lint(CHATS / "ms_swift" / "data.jsonl", "--for", "llama-factory")
    assert code == 0
    assert "format sharegpt (as LLaMA-Factory reads it), checked for llama-factory" in error
    code, out, _ = lint(CHATS / "ms_swift" / "data.jsonl", "--for", "trl", "--json")
    found = {(item["code"], item["line"]) for item in json.loads(out)["problems"]}
    assert (code, found) == (1, {("image-moved", line) for line in (1, 2, 3, 5)})


def test_an_entry_of_dataset_info_gives_names_of_columns_and_roles(tmp_path: Path) -> None:
    row = {"talk": [{"who": "q", "says": "<image>Hi"}, {"who": "z", "says": "Ho"}], "pics": ["a.png"]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    entry = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "pics"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "q", "assistant_tag": "a"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    report = lint_file(tmp_path / "rows.json")
    assert report.stats["format_reason"] == "entry 'mine' of dataset_info.json"
    assert [(item.code, item.field) for item in report.problems] == [
        ("role-unknown", "talk[1].who"),
        ("image-missing", "pics[0]"),
    ]


SETTINGS: list[tuple[str, dict[str, object], list[tuple[str, str]]]] = [
    ("formatting openai", {"formatting": "openai", "columns": {"messages": "messages"}},
     [("system-text-added", "formatting")]),
    ("columns without messages", {"columns": {"images": "images"}}, [("settings-invalid", "columns.messages")]),
    ("tags without roles",
     {"columns": {"messages": "messages"}, "tags": {"role_tag": "role", "content_tag": "content"}},
     [("settings-invalid", "tags.user_tag"), ("settings-invalid", "tags.assistant_tag")]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), [case[1:] for case in SETTINGS], ids=[case[0] for case in SETTINGS])
def test_an_entry_that_llama_factory_reads_otherwise_is_named(
    settings: dict[str, object], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([chat("Hi")]))
    entry = {"file_name": "rows.json", "formatting": "sharegpt", **settings}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    found = [item for item in lint_file(tmp_path / "rows.json").problems if item.file == "dataset_info.json"]
    assert [(item.code, item.field) for item in found] == [(code, f"mine.{field}") for code, field in expected]


def test_images_that_a_model_sees_otherwise_are_named_with_the_codes_of_a_directory(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 6)), Image.new("RGB", (8, 6), "red")
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    Image.new("I;16", (8, 6)).save(tmp_path / "deep.png")
    turned = Image.Exif()
    turned[274] = 6
    first.save(tmp_path / "turned.jpg", exif=turned)
    first.save(tmp_path / "other.png", "JPEG")
    first.save(tmp_path / "stray.jpg")
    data = (tmp_path / "stray.jpg").read_bytes()
    (tmp_path / "stray.jpg").write_bytes(data[:20] + bytes(6) + data[20:])  # behind its first segment
    names = {
        "two.gif": "image-animated",
        "deep.png": "image-mode",
        "turned.jpg": "image-orientation",
        "other.png": "image-format-mismatch",
        "stray.jpg": "image-stray-bytes",
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(chat(f"{name}?", name)) + "\n" for name in names))
    found = [(item.line, item.code, item.field) for item in lint_file(path).problems]
    assert found == [(line, code, "images[0]") for line, code in enumerate(names.values(), 1)]


def test_a_folder_with_a_file_of_another_tool_is_told_so_in_one_sentence(lint: Cli, tmp_path: Path) -> None:
    shutil.copytree(CHATS / "llava", tmp_path / "set")
    code, out, error = lint(tmp_path / "set")
    assert (code, out) == (2, "")
    assert "'data.json' has rows in the format llava" in error
    assert f"`phi3v-data import llava {tmp_path / 'set' / 'data.json'} --out_dir OUT` converts it" in error


def test_images_are_looked_for_in_the_folder_given_and_each_use_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / "rows.jsonl"
    row = {"image": ["a.png", "cut.png"], "conversations": [{"from": "human", "value": "<image><image>Hi"}]}
    row["conversations"].append({"from": "gpt", "value": "Ho"})
    path.write_text("".join(json.dumps({"id": number, **row}) + "\n" for number in range(3)))
    report = lint_file(path, format="llava")
    assert report.summary.problems["image-missing"] == 6
    assert "--images_root" in next(item.hint for item in report.problems if item.code == "image-missing")
    report = lint_file(path, format="llava", images_root=tmp_path)
    found = [(item.code, item.line, item.field) for item in report.problems if item.severity == "error"]
    assert found == [("image-unreadable", line, "image[1]") for line in (1, 2, 3)]
    assert report.summary.problems["duplicate-sample"] == 2
    assert report.summary.images == 2


def test_quick_reads_headers_only(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "late.png").write_bytes(data[:-20] + b"\0" * 8 + data[-12:])
    path = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Ho"}]
    path.write_text(json.dumps({"messages": messages, "images": ["late.png"]}) + "\n")
    assert lint_file(path, level="quick").ok
    assert not lint_file(path).ok


def chat(text: str, *images: object) -> dict[str, object]:
    """A row of ms-swift."""
    messages = [{"role": "user", "content": "<image>" * len(images) + text}, {"role": "assistant", "content": "Ho"}]
    return {"messages": messages, "images": list(images)}


def test_rows_of_parquet_are_named_by_their_number_and_their_images_checked(tmp_path: Path) -> None:
    write_images(tmp_path)
    good, cut = ({"bytes": (tmp_path / name).read_bytes(), "path": name} for name in ("a.png", "cut.png"))
    rows = [chat("One?", good), chat("Two?", good), chat("Three?", good, cut), chat("<video>", good)]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=2)
    report = lint_file(tmp_path / "rows.parquet")
    assert [(item.code, item.line, item.field) for item in report.problems] == [
        ("image-unreadable", 3, "images[1]"),
        ("placeholder-in-text", 4, "messages[0].content"),
    ]
    assert (report.summary.samples, report.summary.images, report.stats["format"]) == (4, 2, "swift")


def test_trl_is_warned_once_of_a_row_with_literal_placeholders(tmp_path: Path) -> None:
    texts = ["<image> here?", "An <image>.", [{"type": "text", "text": "And <image>?"}], "Ho"]
    roles = ["user", "assistant"] * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    rows = [{"messages": messages[:1] + messages[3:]}, {"messages": messages}, {"messages": messages[2:]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = lint_file(tmp_path / "rows.jsonl", format="trl")
    assert report.ok
    found = [item for item in report.problems if item.code == "placeholder-in-text"]
    assert [(item.severity, item.line, item.field) for item in found] == [
        ("warning", 1, "messages[0].content"),
        ("warning", 2, "messages[0].content"),
        ("warning", 3, "messages[0].content[0].text"),
    ]


def test_gzip_is_read_and_equal_rows_and_ids_are_named(tmp_path: Path) -> None:
    rows = [{"id": f"r{number}", **chat("What is it?" * (number + 1))} for number in range(30)]
    rows[20]["messages"] = rows[3]["messages"]
    rows[25]["id"] = "r7"
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    report = lint_file(tmp_path / "rows.jsonl.gz")
    assert [(item.code, item.severity, item.line, item.message) for item in report.problems] == [
        ("file-encoding", "warning", None, "ms-swift goes by the end of a file's name, and stops at a gzip file"),
        ("duplicate-sample", "warning", 21, "the row has the same messages and images as that of line 4"),
        ("duplicate-id", "info", 26, "the id is also that of line 8"),
    ]


def test_a_file_of_a_conversations_directory_is_told_so(lint: Cli, tmp_path: Path) -> None:
    own_rows(tmp_path / "set", {"conversations": [turn("What is shown?", "a.png")]})
    code, _, error = lint(tmp_path / "set" / "train.jsonl")
    assert code == 2
    assert "is a file of a conversations directory: validate its folder" in error


def test_images_are_checked_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_MANY_IMAGES", 0)
    monkeypatch.setattr(images, "BATCH", 2)
    write_images(tmp_path)
    names = ["a.png", "b.png", "cut.png", "gif.gif", "none.png", "Photo.PNG"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(chat(f"{number}?", names[number % 6])) + "\n" for number in range(40)))
    report = lint_file(path, workers=2)
    expected = {"cut.png": "image-unreadable", "none.png": "image-missing"}
    assert [(item.line, item.code) for item in report.problems] == [
        (number + 1, expected[names[number % 6]]) for number in range(40) if names[number % 6] in expected
    ]
    assert report.summary.images == 6


def test_urls_are_counted_and_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(chat("What?", "https://example.org/a.png")) + "\n")
    report = lint_file(path)
    assert [(item.code, item.severity, item.line) for item in report.problems] == [("check-skipped", "info", None)]
    assert report.ok


def test_options_of_the_other_kind_are_refused(lint: Cli, tmp_path: Path) -> None:
    code, _, error = lint(CHATS / "trl" / "data.jsonl", "--fresh")
    assert code == 2
    assert "--fresh cannot be used with a file" in error
    code, _, error = lint(tmp_path, "--format", "trl")
    assert code == 2
    assert "--format cannot be used with a directory" in error
    code, _, error = lint(CHATS / "trl" / "data.jsonl", "--for", "tlr")
    assert code == 2
    assert error == "error: --for: no tool 'tlr'; did you mean trl?\n"


def test_a_report_can_be_a_page(lint: Cli, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert lint(CHATS / "llava" / "data.json", "--html", page)[0] == 1
    assert "system-message" in page.read_text()


def own_rows(directory: Path, *rows: dict[str, object]) -> None:
    """A bare conversations directory with images a.png, b.png and gif.gif."""
    (directory / "images").mkdir(parents=True)
    write_images(directory / "images")
    lines = [json.dumps({"id": f"r{number}", "source": "t", **row}) + "\n" for number, row in enumerate(rows)]
    (directory / "train.jsonl").write_text("".join(lines))


def turn(user: str, *images: str, **more: object) -> dict[str, object]:
    return {"images": list(images), "user": user, "assistant": "A shape.", **more}


def test_a_directory_is_checked_as_a_consumer_would_read_its_export(lint: Cli, tmp_path: Path) -> None:
    own_rows(
        tmp_path / "set",
        {"conversations": [turn("What is shown?", "a.png")]},
        {"conversations": [turn("And here?", "b.png")], "system": "Be terse."},
        {"conversations": [turn("Hello."), turn("(assistant) Is it red?", "a.png", image_offsets=[0])]},
        {"conversations": [turn("Is this one red?", "gif.gif", image_offsets=[8])]},
        {"conversations": [turn("Hi."), turn("Is this green?", "a.png", image_offsets=[8])], "system": "Be kind."},
    )

    def found(*args: str) -> list[tuple[str, int, str]]:
        report = json.loads(lint(tmp_path / "set", "--json", *args)[1])
        ignored = ("image-orphan", "leak-image")
        return [
            (item["code"], item["line"], item["field"]) for item in report["problems"] if item["code"] not in ignored
        ]

    assert found() == []
    assert found("--for", "qwen") == [
        ("system-message", 2, "system"),
        ("assistant-word", 3, "conversations[1].user"),
        ("text-stripped", 4, "conversations[0].user"),
        ("system-message", 5, "system"),
        ("text-stripped", 5, "conversations[1].user"),
    ]
    assert found("--for", "llava") == [
        ("system-message", 2, "system"),
        ("image-moved", 4, "conversations[0].user"),
        ("system-message", 5, "system"),
        ("image-moved", 5, "conversations[1].user"),
    ]
    assert json.loads(lint(tmp_path / "set", "--json", "--for", "llava")[1])["problems"][-1]["severity"] == "warning"
    assert found("--for", "llama-factory") == []
    assert found("--for", "together") == [("over-limit", 4, "conversations[0].images[0]")]
    assert lint(tmp_path / "set", "--for", "qwen")[0] == 1


def test_the_commands_of_the_section_on_checks_run(lint: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (CHATS.parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("## Check")[2].partition("```sh\n")[2].partition("```")[0]
    commands = [shlex.split(line.partition("#")[0])[2:] for line in section.splitlines()]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHATS / "llava", tmp_path, dirs_exist_ok=True)
    shutil.copy("data.json", "llava.json")
    shutil.copy(CHATS / "openai" / "data_url.jsonl", "train.jsonl")
    own_rows(tmp_path / "data" / "chat", {"conversations": [turn("What is shown?", "a.png")]})
    codes = [lint(*command)[0] for command in commands]
    assert codes == [1, 1, 0, 0]  # the system message, which neither LLaVA nor Qwen reads


def test_what_is_neither_a_file_nor_a_folder(lint: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name in ("rows.jsonl", "loop.json"):
        code, _, err = lint(tmp_path / name, "--format", "swift")
        assert code == 2
        path = tmp_path / name
        assert (
            err == f"error: {path}: is neither a file nor a folder; give a conversations directory or a file of rows\n"
        )
