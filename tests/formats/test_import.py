"""`phi3v-data import`: files of other tools become a conversations directory."""

import base64
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import Cli, make_cli
from kills import killed_before
from own_format import OWN
from toy_converter import tree

from phi3v_data.draft import Options
from phi3v_data.errors import UserError
from phi3v_data.exporting.request import ExportRequest
from phi3v_data.exporting.run import export_set
from phi3v_data.formats.import_options import ImportOptions, ImportSettings
from phi3v_data.formats.importing import ImportRows
from phi3v_data.importing import import_rows
from phi3v_data.lint import lint_file
from phi3v_data.sources.source import Source
from phi3v_data.testing import check_converter

SAMPLES = Path(__file__).parents[1] / "data" / "chat_formats"
LAYOUTS = [
    ("llava", "llava/data.json", ""),
    ("swift", "ms_swift/data.jsonl", ""),
    ("openai", "openai/relative.jsonl", ""),
    ("openai", "openai/data_url.jsonl", ""),
    ("trl", "trl/data.jsonl", ""),
    ("sharegpt", "sharegpt/data_messages.json", ""),
    ("sharegpt", "sharegpt", "demo_conversations"),
    ("axolotl", "sharegpt/data_conversations.json", ""),
]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    call = make_cli(capsys, monkeypatch)

    def in_this_process(*args: object, **kwargs: Any) -> tuple[int, str, str]:
        here = ("--workers", 0) if args[0] == "import" and "--workers" not in args and "--help" not in args else ()
        return call(*args, *here, **kwargs)

    return in_this_process


def rows_of(out: Path, split: str = "train") -> list[dict[str, Any]]:
    [file] = out.glob(f"*{split}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def rejects_of(out: Path) -> list[tuple[str, str]]:
    lines = (out / "rejects.jsonl").read_text().splitlines()
    return [(row["reason"], row["message"]) for row in map(json.loads, lines)]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_row(number: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"{number}."}]
    return {"messages": messages, **more}


def run(source: Path, out: Path, name: str = "auto", **options: Any) -> None:
    import_rows(name, source, out, options=options, workers=0)


@pytest.mark.parametrize(("name", "file", "entry"), LAYOUTS)
@pytest.mark.parametrize("guessed", [False, True], ids=["named", "auto"])
def test_the_five_samples_of_every_layout_become_the_same_rows(
    cli: Cli, tmp_path: Path, name: str, file: str, entry: str, guessed: bool
) -> None:
    if name == "axolotl":  # their sample with the images in the blocks
        if guessed:
            name = "axolotl"
        rows = [json.loads(line) for line in (SAMPLES / "trl/data.jsonl").read_text().splitlines()]
        for row in rows:
            images = iter(row.pop("images"))
            for message in row["messages"]:
                for block in message["content"]:
                    block.update({"path": next(images)} if block["type"] == "image" else {})
        source = write_rows(tmp_path / "source" / "data.jsonl", rows)
        shutil.copytree(SAMPLES / "trl/images", tmp_path / "source/images")
    else:
        source = SAMPLES / file
    data = ("--data", entry) if entry else ()
    code, said, errors = cli("import", "auto" if guessed else name, source, "--out_dir", tmp_path / "o", *data)
    assert code == 0, errors
    assert said == f"{tmp_path / 'o'}: 5 samples (train 5), 4 images\n"
    for row, expected in zip(rows_of(tmp_path / "o"), json.loads((SAMPLES / "samples.json").read_text()), strict=True):
        assert row.get("system") == expected["system"]
        assert [(turn["user"], turn["assistant"]) for turn in row["conversations"]] == [
            (turn["user"], turn["assistant"]) for turn in expected["turns"]
        ]
        for turn, wanted in zip(row["conversations"], expected["turns"], strict=True):
            assert [(tmp_path / "o/images" / path).read_bytes() for path in turn["images"]] == [
                (SAMPLES / "llava" / path).read_bytes() for path in wanted["images"]
            ]
            at = len(turn["user"]) if name == "openai" else 0  # there the images come after the text
            assert turn.get("image_offsets", [0] * len(turn["images"])) == [at] * len(turn["images"])
    if not guessed:
        code, said, _ = cli("validate", tmp_path / "o", "--workers", 1)
        assert code == 0, said


def test_the_guess_is_logged_and_a_file_of_no_format_is_refused(cli: Cli, tmp_path: Path) -> None:
    _, _, errors = cli("import", "auto", SAMPLES / "ms_swift", "--out_dir", tmp_path / "o")
    assert "note: read as format swift (ms-swift); give another one instead of auto if that is wrong\n" in errors
    write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
    code, _, errors = cli("import", "auto", tmp_path / "rows.jsonl", "--out_dir", tmp_path / "p")
    assert code == 2
    assert "rows of no known format" in errors
    assert "llava" in errors
    code, _, errors = cli("import", "lava", tmp_path / "rows.jsonl", "--out_dir", tmp_path / "p")
    assert (code, "did you mean llava?" in errors) == (2, True)


def test_what_needs_no_import_or_another_command_is_told_so(cli: Cli, tmp_path: Path) -> None:
    run(SAMPLES / "llava", tmp_path / "done", name="llava")
    (tmp_path / "table.csv").write_text("question,answer\n1,2\n")
    (tmp_path / "empty.json").write_text("[]")
    shutil.copy(next((tmp_path / "done").glob("*.jsonl")), tmp_path / "own.jsonl")
    for source, text in (
        ("done", "is a conversations directory already, which needs no import"),
        ("own.jsonl", "has rows of a conversations directory already, which need no import"),
        ("table.csv", "`phi3v-data convert table` reads a table"),
        ("empty.json", "'empty.json' has no rows"),
    ):
        code, _, errors = cli("import", "auto", tmp_path / source, "--out_dir", tmp_path / "o")
        assert (code, text in errors) == (2, True), errors


def test_files_named_after_splits_become_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        write_rows(tmp_path / f"s/chat_{split}.jsonl", [text_row(number) for number in range(count)])
    run(tmp_path / "s", tmp_path / "o")
    manifest = json.loads((tmp_path / "o/dataset.json").read_text())
    assert {split: info["rows"] for split, info in manifest["splits"].items()} == {"train": 3, "val": 2, "test": 1}


def test_folders_named_after_splits_become_splits_with_images_of_their_own(tmp_path: Path) -> None:
    for split, image in (("train", "cat.jpg"), ("val", "cup.jpg")):
        row = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A thing."}],
               "images": ["img/1.jpg"]}  # fmt: skip
        write_rows(tmp_path / f"s/{split}/data.jsonl", [row])
        (tmp_path / f"s/{split}/img").mkdir()
        shutil.copy(SAMPLES / f"llava/images/{image}", tmp_path / f"s/{split}/img/1.jpg")
    run(tmp_path / "s", tmp_path / "o")
    for split, image in (("train", "cat.jpg"), ("val", "cup.jpg")):
        [row] = rows_of(tmp_path / "o", split)
        path = tmp_path / "o/images" / row["conversations"][0]["images"][0]
        assert path.read_bytes() == (SAMPLES / "llava/images" / image).read_bytes()


@pytest.mark.parametrize(
    ("path", "split"), [("test/val/rows.jsonl", "val"), ("test/my-validation-rows.jsonl", "val"),
                        ("test/train-and-val.jsonl", "train"), ("Dev/rows.jsonl", "dev")],
)  # fmt: skip
def test_a_file_has_the_split_of_its_name_else_of_the_nearest_folder(path: str, split: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "s" / path, [text_row(1)])
    run(tmp_path / "s", tmp_path / "o")
    assert list(json.loads((tmp_path / "o/dataset.json").read_text())["splits"]) == [split]


def test_shards_are_one_split_in_their_order(tmp_path: Path) -> None:
    for shard in range(2):
        write_rows(tmp_path / f"s/chat-0000{shard}-of-00002.jsonl", [text_row(10 * shard + n) for n in range(2)])
    run(tmp_path / "s", tmp_path / "o")
    assert [row["conversations"][0]["assistant"] for row in rows_of(tmp_path / "o")] == ["0.", "1.", "10.", "11."]


def test_several_files_that_name_no_splits_are_refused_until_one_is_chosen(cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / f"s/{name}.jsonl", [text_row(1)])
    code, _, errors = cli("import", "swift", tmp_path / "s", "--out_dir", tmp_path / "o")
    assert code == 2
    assert "a.jsonl, b.jsonl; choose one with --data" in errors
    assert cli("import", "swift", tmp_path / "s", "--out_dir", tmp_path / "o", "--data", "b.jsonl")[0] == 0
    assert rows_of(tmp_path / "o")[0]["source"] == "b"
    code, _, errors = cli("import", "swift", tmp_path / "s", "--out_dir", tmp_path / "p", "--data", "c.jsonl")
    assert (code, "has no 'c.jsonl'; it has" in errors) == (2, True)


def test_gzip_an_archive_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = (SAMPLES / "llava/data.json").read_bytes()
    (tmp_path / "g").mkdir()
    (tmp_path / "g/data.json.gz").write_bytes(gzip.compress(text))
    shutil.copytree(SAMPLES / "llava/images", tmp_path / "g/images")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/data.json").write_bytes(b"\xef\xbb\xbf" + text)
    shutil.copytree(SAMPLES / "llava/images", tmp_path / "b/images")
    shutil.make_archive(str(tmp_path / "packed"), "gztar", SAMPLES / "llava")
    run(SAMPLES / "llava", tmp_path / "plain", name="llava")
    expected = [row["conversations"] for row in rows_of(tmp_path / "plain")]
    for source in ("g", "b", "packed.tar.gz"):
        run(tmp_path / source, tmp_path / f"out-{source}", name="llava")
        assert [row["conversations"] for row in rows_of(tmp_path / f"out-{source}")] == expected


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_images_in_an_archive_beside_the_data_are_found(tmp_path: Path, kind: str) -> None:
    (tmp_path / "s").mkdir()
    shutil.copy(SAMPLES / "llava/data.json", tmp_path / "s")
    shutil.make_archive(str(tmp_path / "s/packed"), kind, SAMPLES / "llava", "images")
    run(tmp_path / "s", tmp_path / "o")
    assert sum(len(turn["images"]) for row in rows_of(tmp_path / "o") for turn in row["conversations"]) == 6


def test_parquet_with_embedded_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    image: dict[str, Any] = {"bytes": (SAMPLES / "llava/images/cat.jpg").read_bytes(), "path": "cat.jpg"}
    blocks = [{"type": "image"}, {"type": "text", "text": "What?"}]
    row = {"images": [image], "group": "g", "id": "r1",
           "messages": [{"role": "user", "content": blocks},
                        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]}  # fmt: skip
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "group": datasets.Value("string"),
            "id": datasets.Value("string"),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(datasets.Json())}),
        }
    )
    (tmp_path / "s").mkdir()
    table = datasets.Dataset.from_list([row, {**row, "id": "r2"}], features=features)
    table.to_parquet(tmp_path / "s/train.parquet")
    run(tmp_path / "s", tmp_path / "o")
    one, two = rows_of(tmp_path / "o")
    assert one["conversations"] == two["conversations"]
    assert (one["conversations"][0]["user"], one["group"], one["meta"]["source_id"]) == ("What?", "g", "r1")
    [stored] = (tmp_path / "o/images").rglob("*.jpg")
    assert stored.read_bytes() == image["bytes"]


def test_packed_rows_of_qwen_become_samples_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": f"{n}."}]} for n in range(3)
    ]
    write_rows(tmp_path / "packed.jsonl", [rows[:2], rows[2]])
    run(tmp_path / "packed.jsonl", tmp_path / "o", name="qwen")
    assert [(row["conversations"][0]["assistant"], row["meta"]["source_id"]) for row in rows_of(tmp_path / "o")] == [
        ("0.", "packed.jsonl:1#0"),
        ("1.", "packed.jsonl:1#1"),
        ("2.", "packed.jsonl:2"),
    ]


def test_the_list_of_data_sets_of_internvl_is_followed(tmp_path: Path) -> None:
    row = image_row("cat.jpg") | {"id": 7, "width": 1, "height": 1}
    write_rows(tmp_path / "s/ann/cats.jsonl", [row])
    shutil.copytree(SAMPLES / "llava/images", tmp_path / "s/pics")
    meta = {"cats": {"root": "pics", "annotation": "ann/cats.jsonl", "repeat_time": 1, "length": 1}}
    (tmp_path / "s/meta.json").write_text(json.dumps(meta))
    for source in ("s", "s/meta.json"):
        out = tmp_path / f"out{len(source)}"
        run(tmp_path / source, out, name="llava")
        [made] = rows_of(out)
        assert made["meta"]["source_id"] == "7"
        assert (out / "images" / made["conversations"][0]["images"][0]).read_bytes() == (
            SAMPLES / "llava/images/cat.jpg"
        ).read_bytes()


def test_the_five_samples_go_from_each_format_to_the_next_and_come_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")

    def images(directory: Path, turn: dict[str, Any]) -> list[bytes]:
        return [(directory / "images" / path).read_bytes() for path in turn["images"]]

    def content(directory: Path) -> list[Any]:
        keys = ("user", "assistant", "image_offsets")
        return [
            [row.get("system"), *[[*map(turn.get, keys), images(directory, turn)] for turn in row["conversations"]]]
            for row in rows_of(directory)
        ]

    here = tmp_path / "start"
    run(SAMPLES / "openai/data_url.jsonl", here, name="openai")
    expected = content(here)
    assert [sum(len(turn[3]) for turn in row[1:]) for row in expected] == [1, 2, 2, 0, 1]
    for number, name in enumerate(("trl", "swift", "openai", "sharegpt", "axolotl", "hub", "imagefolder", "trl")):
        export_set(name, here, tmp_path / f"{number}-{name}")
        here = tmp_path / f"{number}-set"
        run(tmp_path / f"{number}-{name}", here)
        assert content(here) == expected, name
    for name in ("llava", "qwen"):
        export_set(name, here, tmp_path / name, ExportRequest(lossy=True))
        here = tmp_path / f"{name}-set"
        run(tmp_path / name, here)
        assert content(here)[:4] == expected[:4]
        user = "You are a terse assistant. Answer in one word.\n\nWhat is in the cup?"
        assert content(here)[4] == [None, [user, "Coffee.", [len(user)], expected[4][1][3]]]


BROKEN: list[tuple[str, list[dict[str, str]], str]] = [
    ("no-turns", [], "no answer"),
    ("last-turn-open", [{"user": "a"}, {"assistant": "b"}, {"user": "c"}], "messages[2].content: the last message"),
    ("turn-order", [{"user": "a"}, {"user": "b"}, {"assistant": "c"}], "messages[1].content: two user messages"),
    ("turn-order", [{"assistant": "a"}, {"user": "b"}, {"assistant": "c"}], "the first message is an answer"),
    ("system-message-place", [{"user": "a"}, {"assistant": "b"}, {"system": "c"}], "messages[2].content: a system"),
    ("empty-text", [{"user": "a"}, {"assistant": " "}], "messages[1].content: the answer is empty"),
    ("role-unknown", [{"person": "a"}, {"assistant": "b"}], "messages[0].role: the role 'person'"),
    ("image-count", [{"user": "<image>a"}, {"assistant": "b"}], "1 <image> tag for 0 images"),
    ("control-token", [{"user": "a<|end|>"}, {"assistant": "b"}], "messages[0].content: the text has '<|end|>'"),
]


def messages_row(messages: list[dict[str, str]]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for each in messages for role, text in each.items()]}


def test_a_row_that_a_sample_cannot_hold_is_a_reject_with_file_line_and_field(cli: Cli, tmp_path: Path) -> None:
    rows = [text_row(0), *(messages_row(messages) for _, messages, _ in BROKEN), text_row(1)]
    write_rows(tmp_path / "rows.jsonl", rows)
    code, said, _ = cli("import", "swift", tmp_path / "rows.jsonl", "--out_dir", tmp_path / "o")
    assert code == 1
    assert f"2 samples (train 2), 0 images, {len(BROKEN)} rejected" in said
    for line, (found, (reason, _, text)) in enumerate(zip(rejects_of(tmp_path / "o"), BROKEN, strict=True), 2):
        assert found[0] == reason
        assert found[1].startswith(f"rows.jsonl, line {line}")
        assert text in found[1]
    assert [row["id"] for row in rows_of(tmp_path / "o")] == ["train-0000000000", f"train-{len(BROKEN) + 1:010d}"]


def test_columns_that_are_not_imported_are_named(cli: Cli, tmp_path: Path) -> None:
    row = text_row(1, width=3, height=None, id="a", score={"x": 1}, images=[], system="Be terse.")
    write_rows(tmp_path / "rows.jsonl", [row, text_row(2, height=4)])
    _, _, errors = cli("import", "swift", tmp_path / "rows.jsonl", "--out_dir", tmp_path / "o")
    assert "note: 'rows.jsonl' has fields that are not imported: 'width', 'score', 'height'\n" in errors
    _, _, errors = cli("import", "swift", SAMPLES / "ms_swift", "--out_dir", tmp_path / "p")
    assert "not imported" not in errors


@pytest.mark.parametrize(
    ("name", "key", "is_read"),
    [("swift", "weight", False), ("swift", "loss", True), ("sharegpt", "loss", False), ("trl", "weight", False),
     ("openai", "weight", True), ("openai", "loss", False), ("axolotl", "weight", False)],
)  # fmt: skip
def test_keys_of_messages_that_are_not_imported_are_named(
    cli: Cli, tmp_path: Path, name: str, key: str, is_read: bool
) -> None:
    row = text_row(1)
    row["messages"] += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "b", key: 0}]
    write_rows(tmp_path / "rows.jsonl", [row])
    code, _, errors = cli("import", name, tmp_path / "rows.jsonl", "--out_dir", tmp_path / "o")
    note = f"note: 'rows.jsonl' has fields that are not imported: 'messages[].{key}'\n"
    assert (code, note in errors) == (0, not is_read)
    [_, turn] = rows_of(tmp_path / "o")[0]["conversations"]
    assert turn.get("weight", 1) == (0 if is_read else 1)


def test_objects_in_other_columns_and_ids_of_calls_are_not_named(cli: Cli, tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "assistant", "content": "b"},
    ]
    write_rows(tmp_path / "rows.jsonl", [{"messages": messages, "tools": [{"type": "function", "function": {}}]}])
    code, _, errors = cli("import", "openai", tmp_path / "rows.jsonl", "--out_dir", tmp_path / "o")
    assert (code, "not imported" in errors) == (0, False)


@pytest.mark.parametrize(
    ("name", "more"),
    [("llava", {"video": "a.mp4"}), ("swift", {"videos": ["a.mp4"]}), ("swift", {"objects": {"bbox": [[1, 2, 3, 4]]}}),
     ("sharegpt", {"audios": ["a.wav"]}), ("trl", {"videos": ["a.mp4"]})],
)  # fmt: skip
def test_videos_audio_and_boxes_are_rejects_and_not_dropped(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    row = text_row(1) if name != "llava" else image_row(None) | {"conversations": [
        {"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "A cat."}]}  # fmt: skip
    good = image_row(None) | {"conversations": row["conversations"]} if name == "llava" else text_row(2)
    write_rows(tmp_path / "rows.jsonl", [row | more, good | dict.fromkeys(more)])
    run(tmp_path / "rows.jsonl", tmp_path / "o", name=name)
    [(reason, message)] = rejects_of(tmp_path / "o")
    assert (reason, message.startswith(f"rows.jsonl, line 1, {next(iter(more))}: ")) == ("media-left-out", True)
    assert len(rows_of(tmp_path / "o")) == 1


def test_markers_of_other_models_stay_in_the_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [messages_row([{"user": "Is [INST] or <bos> a tag?"}, {"assistant": "Yes."}])])
    run(tmp_path / "rows.jsonl", tmp_path / "o", name="swift")
    assert rows_of(tmp_path / "o")[0]["conversations"][0]["user"] == "Is [INST] or <bos> a tag?"


def test_merge_turns_joins_messages_of_one_role(tmp_path: Path) -> None:
    messages = [{"user": "a"}, {"user": "b"}, {"assistant": "c"}, {"assistant": "d"}]
    write_rows(tmp_path / "rows.jsonl", [messages_row(messages)])
    run(tmp_path / "rows.jsonl", tmp_path / "o", name="swift", merge_turns=True)
    [row] = rows_of(tmp_path / "o")
    assert row["conversations"] == [{"images": [], "user": "a\n\nb", "assistant": "c\n\nd"}]
    assert json.loads((tmp_path / "o/dataset.json").read_text())["notes"] == {"turns-merged": 1}


def test_a_broken_element_of_an_array_is_one_reject(tmp_path: Path) -> None:
    text = json.dumps([text_row(n) for n in range(4)], indent=1)
    broken = text.replace('"Question 1?"', '"Question 1?', 1)
    assert broken != text
    (tmp_path / "rows.json").write_text(broken)
    run(tmp_path / "rows.json", tmp_path / "o", name="swift")
    assert [row["conversations"][0]["assistant"] for row in rows_of(tmp_path / "o")] == ["0.", "2.", "3."]
    [(reason, message)] = rejects_of(tmp_path / "o")
    assert reason == "json-syntax"
    assert message.startswith("rows.json, line 14")


@pytest.mark.parametrize("layout", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("value", ["[]", "[[]]", "{}", "null", '""', "0", "false"])
def test_a_row_without_content_is_a_reject_and_none_vanishes(tmp_path: Path, value: str, layout: str) -> None:
    rows = [json.dumps(text_row(1)), value, json.dumps(text_row(2))]
    (tmp_path / layout).write_text("[" + ",\n".join(rows) + "]" if layout == "a.json" else "\n".join(rows) + "\n")
    run(tmp_path / layout, tmp_path / "o", "openai")
    assert len(rows_of(tmp_path / "o")) == 2
    [(reason, message)] = rejects_of(tmp_path / "o")
    assert reason == ("missing-field" if value == "{}" else "json-not-object")
    assert message.startswith(f"{layout}, line 2")


def test_lines_that_are_not_objects_and_keys_given_twice_are_rejects(tmp_path: Path) -> None:
    lines = [json.dumps(text_row(0)), "3", "{", '{"messages": [], "messages": []}', "", json.dumps(text_row(1))]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    run(tmp_path / "rows.jsonl", tmp_path / "o", name="swift")
    assert [(reason, message[:18]) for reason, message in rejects_of(tmp_path / "o")] == [
        ("json-not-object", "rows.jsonl, line 2"),
        ("json-syntax", "rows.jsonl, line 3"),
        ("duplicate-key", "rows.jsonl, line 4"),
    ]
    assert len(rows_of(tmp_path / "o")) == 2


def image_row(image: Any) -> dict[str, Any]:
    return {"image": image, "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                              {"from": "gpt", "value": "A cat."}]}  # fmt: skip


def test_images_by_path_data_url_and_base64_keep_their_bytes(tmp_path: Path) -> None:
    data = (SAMPLES / "llava/images/cat.jpg").read_bytes()
    packed = base64.b64encode(data).decode()
    root = tmp_path / "pics"
    (root / "a b").mkdir(parents=True)
    (root / "a b/cat.jpg").write_bytes(data)
    refs = ["a b/cat.jpg", "./a b/cat.jpg", f"{root}/a b/cat.jpg", f"file://{root}/a%20b/cat.jpg",
            f"data:image/jpeg;base64,{packed}", packed]  # fmt: skip
    write_rows(tmp_path / "s/rows.jsonl", [image_row(ref) for ref in refs])
    run(tmp_path / "s/rows.jsonl", tmp_path / "o", name="llava", images_root=str(root))
    names = [row["conversations"][0]["images"][0] for row in rows_of(tmp_path / "o")]
    assert names[:4] == ["a b/cat.jpg"] * 4
    assert len(set(names)) == 2
    assert {(tmp_path / "o/images" / name).read_bytes() for name in names} == {data}


@pytest.mark.parametrize(
    ("ref", "reason", "text"),
    [
        ("images/none.jpg", "image-missing", "there is no image 'images/none.jpg'"),
        ("../secret.jpg", "image-path-unsafe", "leads out of"),
        ("/etc/passwd", "image-path-unsafe", "leads out of"),
        ("images", "image-missing", "images"),
        ("https://example.com/a.jpg", "image-missing", "--fetch"),
        (
            "s3://bucket/a.jpg",
            "image-missing",
            "rows.jsonl, line 1, image: 's3://bucket/a.jpg' is an object of a store; only those below --images_root "
            "are read: give an address there",
        ),
        ("data:image/jpeg;base64,AAAA", "image-unreadable", ""),
        ({"bytes": None, "path": None}, "wrong-type", "row"),
    ],
)
def test_an_image_that_cannot_be_had_is_a_reject(tmp_path: Path, ref: Any, reason: str, text: str) -> None:
    shutil.copy(SAMPLES / "llava/images/cat.jpg", tmp_path / "secret.jpg")
    shutil.copytree(SAMPLES / "llava/images", tmp_path / "s/images")
    write_rows(tmp_path / "s/rows.jsonl", [image_row(ref), image_row("images/cat.jpg")])
    run(tmp_path / "s/rows.jsonl", tmp_path / "o", name="llava")
    [(code, message)] = rejects_of(tmp_path / "o")
    assert code in (reason, "image-unreadable") if ref == "images" else code == reason
    assert message.endswith(text) if ref == "s3://bucket/a.jpg" else text in message
    assert len(rows_of(tmp_path / "o")) == 1


def test_the_output_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    rows = [image_row(f"images/{name}.jpg") for name in ("cat", "cup", "coins", "rocket")] * 10
    (tmp_path / "s").mkdir()
    (tmp_path / "s/data.json").write_text(json.dumps(rows))
    shutil.copytree(SAMPLES / "llava/images", tmp_path / "s/images")
    for workers in (1, 2):
        import_rows("llava", tmp_path / "s", tmp_path / f"o{workers}", workers=workers)
    assert tree(tmp_path / "o1") == tree(tmp_path / "o2")


def test_a_killed_import_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    rows = [text_row(number) for number in range(20)]
    write_rows(tmp_path / "rows.jsonl", rows)
    run(tmp_path / "rows.jsonl", tmp_path / "whole", name="swift")
    killed_before("replace", 6, lambda: run(tmp_path / "rows.jsonl", tmp_path / "o", name="swift"))
    result = import_rows("swift", tmp_path / "rows.jsonl", tmp_path / "o", workers=0)
    assert 0 < result.resumed < 20
    assert tree(tmp_path / "o") == tree(tmp_path / "whole")


def test_a_row_that_changed_after_a_kill_is_not_mixed_with_the_old_ones(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [text_row(number) for number in range(20)])
    killed_before("replace", 6, lambda: run(tmp_path / "rows.jsonl", tmp_path / "o", name="swift"))
    write_rows(tmp_path / "rows.jsonl", [text_row(number if number else 5) for number in range(20)])
    code, _, errors = cli("import", "swift", tmp_path / "rows.jsonl", "--out_dir", tmp_path / "o")
    assert (code, "'rows.jsonl'" in errors, "changed since" in errors) == (2, True, True)


def test_settings_of_a_conversion_are_settings_of_an_import(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [text_row(number, group=f"g{number % 5}") for number in range(20)])
    out = tmp_path / "o"
    code, _, errors = cli("import", "swift", tmp_path / "rows.jsonl", "--out_dir", out, "--limit", 15, "--name", "x",
                          "--split", "train=0.5,val=0.5", "--seed", 2, "--workers", 0)  # fmt: skip
    assert code == 0, errors
    groups = [{row["group"] for row in rows_of(out, split)} for split in ("train", "val")]
    assert not groups[0] & groups[1]
    assert sorted(path.name for path in out.glob("*.jsonl")) == ["x_train.jsonl", "x_val.jsonl"]
    code, _, errors = cli("import", "swift", tmp_path / "rows.jsonl", "--out_dir", out, "--unlabelled")
    assert code == 2


def test_help_lists_the_options(cli: Cli) -> None:
    code, said, _ = cli("import", "--help")
    assert code == 0
    for name in ("out_dir", "engine", "limit", "workers", *ImportOptions.model_fields):
        assert f"--{name}" in said
    assert issubclass(ImportOptions, Options)


def test_a_format_in_a_file_of_the_user_is_one_class_of_names(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    row = {"talk": [{"who": "q", "says": "<image>What?"}, {"who": "a", "says": "A cat."}], "pics": ["cat.jpg"]}
    write_rows(tmp_path / "s/rows.jsonl", [row] * 4)
    shutil.copy(SAMPLES / "llava/images/cat.jpg", tmp_path / "s")
    for name in (f"{tmp_path}/mine.py:Mine", f"{tmp_path}/mine.py"):
        args = ("import", name, tmp_path / "s", "--out_dir", tmp_path / "o", "--workers", 2)
        code, said, errors = cli(*args)
        assert code == 0, errors
    assert "already complete" in said
    assert rows_of(tmp_path / "o")[3]["conversations"] == [
        {"images": ["cat.jpg"], "user": "What?", "assistant": "A cat."}
    ]
    options = json.loads((tmp_path / "o/dataset.json").read_text())["converter"]["options"]
    assert options["format"] == "mine"
    assert str(tmp_path) not in json.dumps(options)
    (tmp_path / "mine.py").write_text(OWN.replace("My rows", "My other rows"))
    code, _, errors = cli("import", f"{tmp_path}/mine.py:None", tmp_path / "s", "--out_dir", tmp_path / "o")
    assert (code, "it defines Mine" in errors) == (2, True)


def test_a_row_that_changes_between_plan_and_conversion_ends_the_run(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [text_row(1), text_row(2)])
    settings = ImportSettings(format="swift")
    first, second = ImportRows().plan(Source.open(path), settings)
    path.write_text(path.read_text().replace("Question 1?", "Question 7?"))
    assert ImportRows().convert(second, settings).turns[0].user == "Question 2?"
    with pytest.raises(UserError, match=r"rows.jsonl, line 1 changed while it was imported"):
        ImportRows().convert(first, settings)


def test_the_import_passes_the_check_of_converters(tmp_path: Path) -> None:
    """Several processes, another path, interrupted and resumed, alone and in reverse order, with damaged images."""
    shutil.copytree(SAMPLES / "llava", tmp_path / "s")
    check_converter(ImportRows, tmp_path / "s", options={"format": "llava"})


def test_control_tokens_of_the_named_model_are_rejects_and_others_are_not(cli: Cli, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [text_row(1), text_row(2), text_row(3)])
    text = source.read_text().replace("Question 2?", "a <|im_end|> b").replace("Question 3?", "a <|end|> b")
    source.write_text(text)
    ends = {(): "<|end|>", ("--model", "phi3v"): "<|end|>", ("--model", "qwen2_5_vl"): "<|im_end|>"}
    for model, rejected in ends.items():
        assert cli("import", "swift", source, "--out_dir", tmp_path / rejected / str(len(model)), *model)[0] == 1
        [(reason, message)] = rejects_of(tmp_path / rejected / str(len(model)))
        assert (reason, f"the text has '{rejected}'" in message) == ("control-token", True)
    code, _, error = cli("import", "swift", source, "--out_dir", tmp_path / "none", "--model", "qwen9")
    assert (code, (tmp_path / "none").exists()) == (2, False)
    assert "qwen9 is neither a model family nor a model directory" in error.replace("'", "")


def test_a_slice_says_which_format_was_guessed(cli: Cli, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"<image>{n}?"}, {"role": "assistant", "content": "Yes."}],
             "images": ["cat.jpg"]} for n in range(8)]  # fmt: skip
    write_rows(tmp_path / "s/rows.jsonl", rows)
    shutil.copy(SAMPLES / "llava/images/cat.jpg", tmp_path / "s")
    note = "note: read as format swift (ms-swift); give another one instead of auto if that is wrong\n"
    for share in ("1/2", "2/2", "2/2"):
        code, _, errors = cli("import", "auto", tmp_path / "s", "--out_dir", tmp_path / "o", "--slice", share)
        assert (code, errors.count(note)) == (0, 1), errors


@pytest.mark.parametrize("image", [{"base64": "not an image!"}, {"base64": "iVBORw0KGgo="}, {"base64": "images/cat"}])
def test_base64_text_without_an_image_is_not_taken_for_a_path(image: dict[str, str], tmp_path: Path) -> None:
    blocks = [{"type": "image", **image}, {"type": "text", "text": "What?"}]
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    bad = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "A cat."}]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": good}, {"messages": bad}])
    result = import_rows("axolotl", path, tmp_path / "o", workers=0)
    assert dict(result.manifest.rejects) == {"image-unreadable": 1}
    codes = {problem.code for problem in lint_file(path, format="axolotl").problems}
    assert "image-unreadable" in codes
    assert "image-missing" not in codes


def test_base64_in_lines_is_read_by_linter_and_import(tmp_path: Path) -> None:
    """As MIME has it, and as Python's decoder, which the trainers use, reads it."""
    data = (SAMPLES / "llava/images/cat.jpg").read_bytes()
    url = "data:image/jpeg;base64," + base64.encodebytes(data).decode()
    row = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
           "images": [url]}  # fmt: skip
    source = write_rows(tmp_path / "rows.jsonl", [row])
    assert lint_file(source, format="swift").problems == ()
    import_rows("swift", source, tmp_path / "o", workers=0)
    [image] = (tmp_path / "o/images").rglob("*.jpg")
    assert image.read_bytes() == data


def test_a_data_url_without_base64_is_named_as_one(cli: Cli, tmp_path: Path) -> None:
    """Percent-encoded, which no trainer reads, or cut off."""
    for number, url in enumerate(("data:image/png,%89PNG%0D%0A", "DATA:image/png;base64")):
        message = f"the data URL '{url}' is not base64"
        row = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}],
               "images": [url]}  # fmt: skip
        source = write_rows(tmp_path / f"{number}.jsonl", [row, text_row(1)])
        result = import_rows("swift", source, tmp_path / f"o{number}", workers=0)
        assert dict(result.manifest.rejects) == {"image-unreadable": 1}
        said = json.loads((tmp_path / f"o{number}/rejects.jsonl").read_text())["message"]
        assert said == f"{number}.jsonl, line 1, images[0]: {message}; write data:image/jpeg;base64,..."
        found = [item for item in lint_file(source, format="swift").problems if item.severity == "error"]
        assert [(item.code, item.line, item.message) for item in found] == [("image-unreadable", 1, message)]
        own = {"id": "a", "source": "t", "conversations": [{"images": [url], "user": "What?", "assistant": "A cat."}]}
        directory = write_rows(tmp_path / f"d{number}/train.jsonl", [own]).parent
        (directory / "images").mkdir()
        assert f"'{url}' is a data URL, not a path below images/" in cli("validate", directory)[1]


def test_a_table_of_other_content_and_as_many_rows_is_a_changed_source(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write(note: str) -> None:
        pq.write_table(pa.Table.from_pylist([text_row(n, note=note) for n in (1, 2)]), tmp_path / "s/rows.parquet")

    (tmp_path / "s").mkdir()
    write("Yes.")
    import_rows("swift", tmp_path / "s", tmp_path / "o", workers=0)
    assert import_rows("swift", tmp_path / "s", tmp_path / "o", workers=0).already_complete
    write("Not.")
    with pytest.raises(UserError, match=r"the source has changed since: 'rows\.parquet' has other content"):
        import_rows("swift", tmp_path / "s", tmp_path / "o", workers=0)
