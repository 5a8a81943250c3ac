"""Files as tools write them, tried as a new user would: said plainly, once, and as the tool itself reads them."""

import ast
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from in_process import Cli, make_cli
from PIL import Image

from phi3v_data.formats.chat import ImageRef
from phi3v_data.formats.registry import get_format
from phi3v_data.lint import lint_file

IMAGES = Path(__file__).parents[1] / "data" / "chat_formats" / "llava" / "images"

Row = dict[str, Any]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`phi3v-data`: exit code, stdout, stderr."""
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `images/cat.jpg`, `cup.jpg`, `coins.jpg` and `rocket.jpg`."""
    shutil.copytree(IMAGES, tmp_path / "images")
    return tmp_path


def write(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(content: Any) -> Row:
    return {"role": "user", "content": content}


def say(content: Any = "A cat.") -> Row:
    return {"role": "assistant", "content": content}


CAT, CUP = "images/cat.jpg", "images/cup.jpg"
WORDS = {"type": "text", "text": "What is it?"}
PLACE = {"type": "image"}


@pytest.mark.parametrize(
    "row",
    [
        {"images": [CAT], "prompt": [ask("What is it?")], "completion": [say()]},
        {"images": [CAT], "messages": [ask("What is it?"), say()]},
        {"images": [CAT, CUP], "messages": [{"role": "system", "content": "Be terse."}, ask("What are they?"), say()]},
    ],
    ids=["completion", "messages", "two images"],
)
def test_images_of_a_single_text_are_fine_for_trl_and_axolotl(row: Row, folder: Path) -> None:
    path = write(folder / "rows.jsonl", *[row] * 40)  # enough of them to be checked by a template
    report = lint_file(path, format="trl")
    assert {item.code for item in report.problems} == {"duplicate-sample"}
    if row["images"] == [CAT] and "messages" in row:
        assert {item.code for item in lint_file(path, format="axolotl").problems} == {"duplicate-sample"}
    tagged = json.loads(json.dumps(row).replace("What", "<image>What"))
    found = lint_file(write(folder / "tagged.jsonl", *[row] * 40, tagged), format="trl").problems
    assert [(item.code, item.line) for item in found if item.severity == "error"] == [("image-moved", 41)]


TRL_ROWS: list[list[Row]] = [
    [ask("First?"), say(), ask("Second?"), say()],
    [ask([WORDS]), say(), ask("Second?"), say()],
    [ask([WORDS]), say([WORDS])],
    [ask([PLACE, WORDS]), say([WORDS])],
    [ask([WORDS, PLACE]), say("Text."), ask([WORDS]), say("Text.")],
    [ask("First?"), say(), ask([PLACE, WORDS]), say()],
    [{"role": "system", "content": "Be terse."}, ask([WORDS]), say([WORDS]), ask([PLACE]), say()],
]


def trl_function(name: str) -> Any:
    """A function of the installed TRL, without the seconds that importing TRL takes."""
    found = find_spec("trl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("trl is not installed")
    tree = ast.parse((Path(found.submodule_search_locations[0]) / "data_utils.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    space: dict[str, Any] = {"Any": Any}
    exec(compile(tree, "data_utils.py", "exec"), space)
    return space[name]


@pytest.mark.parametrize("messages", TRL_ROWS)
def test_images_are_where_trl_puts_them(messages: list[Row]) -> None:
    """Compared with TRL's own function: the same places, or a fault where that raises."""
    prepare = trl_function("prepare_multimodal_messages")
    reading = get_format("trl")().read({"images": ["a.png"], "messages": messages})
    faults = [fault.code for fault in reading.faults]
    try:
        wanted = prepare(json.loads(json.dumps(messages)), images=["a.png"])
    except ValueError:
        assert faults == ["image-count"]
        return
    assert faults == []
    assert reading.chat is not None
    assert [
        [part.value if isinstance(part, ImageRef) else {"text": part} for part in message.parts]
        for message in reading.chat.messages
    ] == [
        [block["image"] if block["type"] == "image" else {"text": block["text"]} for block in message["content"]]
        for message in wanted
    ]


def test_an_import_places_no_image_that_trl_would_not(cli: Cli, folder: Path) -> None:
    chats = ([ask([WORDS]), say()], [ask("What?"), say()], [ask("Hi"), say(), ask([PLACE, WORDS]), say()])
    rows = [{"images": [CAT], "messages": messages} for messages in chats]
    code, said, _ = cli("import", "trl", write(folder / "rows.jsonl", *rows), "--out_dir", folder / "out")
    assert (code, "2 rejected (2 image-count" in said) == (1, True)


def test_rows_on_one_line_are_named_by_their_element(cli: Cli, folder: Path) -> None:
    rows = [
        {"id": "a", "images": [], "messages": [ask("Hi"), say("Ho")]},
        {"id": "b", "images": [CAT], "messages": [ask("<image>Hi"), say("")]},
        {"id": "a", "images": ["images/none.jpg"], "messages": [ask("<image>Hi"), say()]},
        {"id": "c", "images": [], "messages": [ask("Hi"), say("Ho")]},
        {"id": "d", "images": "images/cup.jpg", "messages": [ask("<image>Hi"), say("Cup.")]},
    ]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    code, out, _ = cli("validate", path, "--for", "llama-factory", "--max_tokens", 500, "--json")
    found = {(item["code"], item["line"], item["field"]) for item in json.loads(out)["problems"]}
    assert (code, found) == (
        1,
        {
            ("empty-text", 1, "[1].messages[1].content"),
            ("image-missing", 1, "[2].images[0]"),
            ("duplicate-id", 1, "[2].id"),
            ("duplicate-sample", 1, "[3]"),
            ("mixed-types", 1, "[4].images"),
            ("too-long", 1, "[4]"),
        },
    )
    out = cli("validate", path, "--format", "swift")[1]
    assert "rows.json:1 [1].messages[1].content empty-text: " in out
    assert "rows.json:1 [3] duplicate-sample: the row has the same messages and images as that of element [0]\n" in out
    assert cli("import", "swift", path, "--out_dir", folder / "out")[0] == 1
    rejects = [json.loads(line) for line in (folder / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["message"].split(":")[0] for reject in rejects] == [
        "rows.json[1], line 1, messages[1].content",
        "rows.json[2], line 1, images[0]",
    ]
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    found = {(item.code, item.line, item.field) for item in lint_file(path, format="swift").problems}
    assert ("empty-text", 3, "messages[1].content") in found
    assert ("duplicate-sample", 5, None) in found


def test_a_column_of_images_that_comes_later_is_named_in_an_array_on_one_line(folder: Path) -> None:
    rows: list[Row] = [{"messages": [ask([WORDS]), say([WORDS])]}] * 40
    with_image = {"images": [CAT], "messages": [ask([PLACE, WORDS]), say([WORDS])]}
    path = folder / "rows.json"
    path.write_text(json.dumps([*rows, with_image, *rows]))
    found = [item for item in lint_file(path, format="trl").problems if item.code == "text-only-set"]
    assert [(item.line, item.field) for item in found] == [(1, "[0].images")]


@pytest.mark.parametrize("name", ["llava", "qwen", "sharegpt"])
def test_references_that_a_tool_cannot_open_are_refused_without_lossy(name: str, cli: Cli, folder: Path) -> None:
    row = {"images": [CAT], "messages": [ask("<image>What?"), say()]}
    assert cli("import", "swift", write(folder / "rows.jsonl", row), "--out_dir", folder / "set")[0] == 0
    for more in (("--image_refs", "data"), ("--image_refs", "url", "--url_prefix", "https://example.org/")):
        out = folder / more[1]
        code, _, error = cli("export", name, folder / "set", "--out", out, *more)
        assert (code, "opens files only, neither URLs nor data URLs; leave it out" in error) == (2, True)
        assert not out.exists()
        code, _, error = cli("export", name, folder / "set", "--out", out, *more, "--lossy")
        assert (code, "note: --image_refs" in error) == (0, True)
        file = next(path for path in out.glob("train.json*"))
        found = lint_file(file, format=name).summary.problems
        assert found["image-source"] == 1
    prefix = f"{folder / 'set' / 'images'}/"
    assert (
        cli("export", name, folder / "set", "--out", folder / "o", "--image_refs", "url", "--url_prefix", prefix)[0]
        == 0
    )
    for other in ("swift", "trl", "axolotl"):
        assert cli("export", other, folder / "set", "--out", folder / other, "--image_refs", "data")[0] == 0
        assert "image-source" not in lint_file(folder / other / "train.jsonl", format=other).summary.problems


def test_paths_that_an_import_refuses_are_a_note_of_the_linter(cli: Cli, folder: Path) -> None:
    (folder / "rows").mkdir()
    paths = ("../images/cat.jpg", str(folder / CUP), "../rows/../images/coins.jpg")
    rows = [{"images": [path], "messages": [ask("<image>What?"), say()]} for path in paths]
    path = write(folder / "rows" / "rows.jsonl", *rows)
    report = lint_file(path, format="swift")
    assert report.ok
    assert [(item.code, item.severity) for item in report.problems] == [("image-path-unsafe", "info")]
    assert report.problems[0].message.startswith("3 images outside of ")
    code, _, error = cli("import", "auto", path, "--out_dir", folder / "out")
    assert code == 2
    assert "note: read as format swift (ms-swift)" in error
    assert "none of 3 planned samples could be converted (3 image-path-unsafe)" in error
    assert "with --data FILE" in error
    shutil.copytree(folder / "rows", folder / "all" / "rows")  # as the message says
    shutil.copytree(folder / "images", folder / "all" / "images")
    code, said, _ = cli("import", "swift", folder / "all", "--data", "rows/rows.jsonl", "--out_dir", folder / "out")
    assert "2 samples (train 2), 2 images, 1 rejected (1 image-path-unsafe" in said
    code, said, _ = cli("import", "swift", path, "--images_root", folder, "--out_dir", folder / "abs")
    assert "1 sample (train 1), 1 image, 2 rejected (2 image-path-unsafe" in said
    codes = [item.code for item in lint_file(path, format="swift", images_root=folder).problems]
    assert codes == ["image-missing", "image-missing"]


def test_a_file_that_fits_several_formats_needs_one_to_be_given(cli: Cli, folder: Path) -> None:
    row = {"images": [CAT], "messages": [ask("What is it?"), say()]}
    path = write(folder / "rows.jsonl", row)
    for words in (("validate", path), ("import", "auto", path, "--out_dir", folder / "out")):
        code, _, error = cli(*words)
        assert (code, "may be swift or trl" in error, "give " in error) == (2, True, True)
    assert cli("import", "trl", path, "--out_dir", folder / "out")[0] == 0
    write(path, {**row, "messages": [ask("<image>What is it?"), say()]}, row)
    assert "format swift (2 of the first 2 rows have it)" in cli("validate", path)[2]


def test_an_equal_row_behind_a_byte_order_mark_is_named(folder: Path) -> None:
    row = json.dumps({"images": [CAT], "messages": [ask("<image>What?"), say()]})
    path = folder / "rows.jsonl"
    path.write_text(f"\ufeff{row}\n{row}\n")
    found = [(item.code, item.line) for item in lint_file(path).problems]
    assert found == [("bom", 1), ("duplicate-sample", 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "has no rows"),
        ('{"data": [{"messages": [{"role": "user", "content": "Hi"}]}]}', "whose rows are under 'data'"),
        ('{"data": [1]}', "known format"),
    ],
)
def test_a_file_without_rows_of_its_own_is_told_so(text: str, said: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    for words in (("validate", tmp_path / "rows.json"), ("import", "auto", tmp_path / "rows.json", "--out_dir", "o")):
        code, _, error = cli(*words)
        assert (code, said in error) == (2, True), error


def test_an_array_that_was_cut_has_one_fault(folder: Path) -> None:
    row = json.dumps({"images": [CAT], "messages": [ask("<image>What?"), say()]})
    path = folder / "rows.json"
    path.write_text(f"[\n{row},\n{row[:40]}")
    found = [(item.code, item.line) for item in lint_file(path, format="swift").problems]
    assert found == [("json-syntax", 3)]


@pytest.mark.parametrize("name", ["llava", "sharegpt", "swift", "openai", "trl", "axolotl", "hub", "imagefolder",
                                  "webdataset", "energon"])  # fmt: skip
def test_an_import_of_an_export_warns_of_no_file_that_the_export_wrote(name: str, cli: Cli, folder: Path) -> None:
    if name == "hub":
        pytest.importorskip("pyarrow")
    row = {"images": [CAT], "messages": [ask("<image>What?"), say()]}
    cli("import", "swift", write(folder / "rows.jsonl", row), "--out_dir", folder / "set")
    assert cli("export", name, folder / "set", "--out", folder / "export")[0] == 0
    code, _, error = cli(
        "import", {"energon": "webdataset"}.get(name, name), folder / "export", "--out_dir", folder / "o"
    )
    assert (code, [line for line in error.splitlines() if "warning" in line or "left out" in line]) == (0, [])


@pytest.mark.parametrize("name", ["hub", "imagefolder"])
def test_rows_that_datasets_reads_are_clean_in_the_format_of_their_export(name: str, cli: Cli, folder: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"images": [], "messages": [ask("Hi"), say()]}, {"images": [CAT], "messages": [ask("<image>Hi"), say()]}]
    cli("import", "swift", write(folder / "rows.jsonl", *rows), "--out_dir", folder / "in")
    cli("export", name, folder / "in", "--out", folder / "out")
    [path] = [*(folder / "out").rglob("metadata.jsonl"), *(folder / "out").rglob("*.parquet")]
    for options in ((), ("--for", "trl")):
        code, out, error = cli("validate", path, *options, "--strict")
        assert (code, f"format {name} (2 of the first 2 rows have it), checked for trl" in error) == (0, True), out


def test_a_file_in_place_of_a_directory_is_told_the_command_that_makes_one(cli: Cli, folder: Path) -> None:
    path = folder / "train.json"
    path.write_text("[]")
    code, _, error = cli("stats", path)
    assert (code, f"`phi3v-data import auto {path} --out_dir DIR`" in error) == (2, True)


def test_sources_that_no_import_can_read_are_told_what_to_do(cli: Cli, folder: Path) -> None:
    text = write(folder / "rows.txt", {"messages": [ask("Hi"), say()]})
    alpaca = write(folder / "alpaca.jsonl", {"instruction": "Hi", "input": "", "output": "Ho"})
    for source, said in (
        (
            text,
            f"'{text}' is not an archive, and a file of rows has a name that ends in '.jsonl', '.json' or '.parquet'",
        ),
        (folder / "images", "images alone have no texts: `phi3v-data convert image_folder` takes names of folders"),
        (alpaca, "has rows of no known format in its first 1 (its fields: 'instruction', 'input', 'output')"),
    ):
        code, _, error = cli("import", "auto", source, "--out_dir", folder / "o")
        assert (code, said in error, (folder / "o").exists()) == (2, True, False), error
    code, _, error = cli("validate", alpaca)
    assert (code, "is of no known format (its fields: 'instruction', 'input', 'output'): give" in error) == (2, True)
    code, _, error = cli("validate", folder / "none.json")
    assert (code, error) == (2, f"error: {folder}/none.json: no such file or directory\n")


@pytest.mark.parametrize("name", ["gone.json", "gone.JSONL.gz", "gone.csv", "gone.zip", "gone.parquet", "gone.xlsx"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(
    cli: Cli, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for command in (["import", "auto"], ["convert", "docvqa", "--source"]):
        assert cli(*command, f"my/{name}", "--out_dir", folder / "o") == (
            2,
            "",
            f"error: 'my/{name}': no such file; if a dataset on the Hub is meant, give hf://datasets/my/{name}\n",
        )
    assert not (folder / "o").exists()


def test_a_path_in_a_folder_that_is_there_is_not_looked_for_on_the_hub(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for command in (["import", "auto"], ["convert", "docvqa", "--source"]):
        assert cli(*command, "images/gone", "--out_dir", folder / "o") == (
            2,
            "",
            "error: 'images/gone': no such file or folder in images; if a dataset on the Hub is meant, give "
            "hf://datasets/images/gone\n",
        )


def test_a_name_in_another_unicode_form_or_letter_case_is_told_apart(cli: Cli, folder: Path) -> None:
    shutil.copyfile(folder / CAT, folder / "images/Foto a\u0308.JPEG")
    for name, how in (
        (
            "images/Foto \u00e4.JPEG",
            "exists in another Unicode form (as macOS writes it), as 'images/Foto a\u0308.JPEG'",
        ),
        ("images/foto \u00e4.JPEG", "exists in another letter case, as 'images/Foto a\u0308.JPEG'"),
    ):
        path = write(folder / "rows.jsonl", {"images": [name], "messages": [ask("<image>What?"), say()]})
        found = [(each.code, each.message) for each in lint_file(path, format="sharegpt").problems]
        assert ("image-name-mismatch", f"'{name}' {how}") in found, found


def test_a_heic_photo_is_told_what_stores_it_as_jpeg_and_nothing_else(cli: Cli, folder: Path) -> None:
    (folder / "images/phone.jpg").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    path = write(folder / "rows.jsonl", {"images": ["images/phone.jpg"], "messages": [ask("<image>What?"), say()]})
    row = {"id": "a", "source": "s", "conversations": [{"images": ["phone.jpg"], "user": "What?", "assistant": "A."}]}
    (folder / "set").mkdir()
    write(folder / "set/train.jsonl", row)
    shutil.move(folder / "images", folder / "set/images")
    (folder / "images").symlink_to(folder / "set/images")
    said = (
        "is not an image in a supported format (a HEIC photo): save it as JPEG, as `phi3v-data import` and `convert` "
        "do with the extra `heic`"
    )
    for checked in (path, folder / "set"):
        found = json.loads(cli("validate", checked, "--json")[1])["problems"]
        (photo,) = (each for each in found if each["code"] == "image-unreadable")
        assert (photo["message"].partition(" ")[2], photo["hint"]) == (said, "")


def test_entries_of_dataset_info_are_told_what_is_missing(cli: Cli, folder: Path) -> None:
    info = {"a": {"file_name": "none.json", "formatting": "sharegpt"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    code, _, error = cli("import", "auto", folder, "--out_dir", folder.with_name("o"))
    said = (
        "no entry of 'dataset_info.json' names a JSON file that is there ('a' names 'none.json'); give the file itself"
    )
    assert (code, said in error) == (2, True), error
    path = write(folder / "pairs.jsonl", {"conversations": [{"from": "human", "value": "Hi"}], "chosen": ask("Ho")})
    info = {"a": {"file_name": "pairs.jsonl", "formatting": "sharegpt", "ranking": True}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    found = [(item.code, item.field, item.message) for item in lint_file(path).problems]
    assert ("missing-field", "rejected", "'rejected' is missing") in found


def test_rows_that_were_printed_by_python_are_told_so(folder: Path) -> None:
    path = folder / "rows.jsonl"
    rows = [{"messages": [ask("Hi"), say()], "images": None}] * 2
    path.write_text(f"{json.dumps(rows[0])}\n{rows[1]}\n{json.dumps(rows[1]).replace('null', 'None')}\n")
    found = [item for item in lint_file(path, format="swift").problems if item.code == "json-syntax"]
    assert [item.line for item in found] == [2, 3]
    assert all(item.hint.startswith("this is Python: JSON has double quotes, null, true and false") for item in found)


def test_a_single_shard_is_told_how_it_is_read(cli: Cli, folder: Path) -> None:
    row = {"images": [CAT], "messages": [ask("<image>What?"), say()]}
    cli("import", "swift", write(folder / "rows.jsonl", row, row), "--out_dir", folder / "in")
    cli("export", "webdataset", folder / "in", "--out", folder / "out")
    [shard] = (folder / "out").glob("*.tar")
    assert cli("validate", shard)[2].endswith("; shards of WebDataset are validated by their folder\n")
    code, _, error = cli("import", "auto", shard, "--out_dir", folder / "o")
    assert (code, "`phi3v-data import webdataset` reads a shard of WebDataset" in error) == (2, True), error


def test_a_reject_names_the_folder_in_which_an_image_was_looked_for(cli: Cli, folder: Path) -> None:
    path = write(folder / "rows.jsonl", {"images": ["none.jpg"], "messages": [ask("<image>Hi"), say()]})
    code, _, error = cli("import", "swift", path, "--images_root", folder / "images", "--out_dir", folder / "o")
    said = "images[0]: there is no image 'none.jpg' in 'images', where paths begin; --images_root sets another"
    assert (code, said in error) == (2, True), error
    elsewhere = folder.with_name("root" * 15)  # whose end tells it from others
    elsewhere.mkdir()
    code, _, error = cli("import", "swift", path, "--images_root", elsewhere, "--out_dir", folder / "o", "--overwrite")
    assert (code, f"no image 'none.jpg' in '{elsewhere}', where" in error) == (2, True), error


def test_an_export_of_files_of_another_tool_is_told_the_command_that_imports_them(cli: Cli, folder: Path) -> None:
    path = write(folder / "train.jsonl", {"images": [], "messages": [ask("Hi"), say()]})
    code, _, error = cli("export", "sharegpt", folder, "--out", folder.with_name("out"))
    assert (code, f"`phi3v-data import swift {path} --out_dir OUT` converts it" in error) == (2, True), error


def test_help_names_every_format(cli: Cli) -> None:
    from phi3v_data.formats.registry import all_formats

    for command in ("validate", "import"):
        said = cli(command, "--help")[1]
        assert [name for name in all_formats() if name not in said] == []


def test_an_import_names_the_file_that_was_meant(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("Cat 1.jpg", "dog.jpg", "bird.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    rows = [
        {"image": name, "conversations": said}
        for name in ("cat 1.jpg", "dogs.jpg", "bird.png", "Cat%201.jpg", "z.gif", "tiger.jpg")
    ]
    (folder / "tiger.jpg").symlink_to("nowhere")  # not what was meant, though it has that name
    (folder / "data.json").write_text(json.dumps(rows))
    words = ("import", "llava", folder, "--data", "data.json", "--out_dir", tmp_path / "out", "--allow_rejects", 5)
    assert cli(*words)[0] == 0
    rejects = [json.loads(line)["message"] for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert ["did you mean 'Cat 1.jpg'?" in each for each in rejects[:4]] == [True, False, True, False]
    assert rejects[1].endswith("; did you mean 'dog.jpg'?")
    assert ["did you mean" in each for each in rejects[3:]] == [False, False]
