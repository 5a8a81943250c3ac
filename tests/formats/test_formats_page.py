"""docs/formats.md: its commands run, and its format is one."""

import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
from in_process import Cli, make_cli

from phi3v_data.cli.import_rows import EXAMPLES
from phi3v_data.dataset import Dataset
from phi3v_data.exporting import ExportRequest, export_set
from phi3v_data.importing import import_rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
SAMPLES = ROOT / "tests/data/chat_formats"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page and the help of `import` name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SAMPLES / "llava", tmp_path, dirs_exist_ok=True)
    rows = json.loads((SAMPLES / "llava/data.json").read_text().replace("images/", ""))
    for name in ("llava.json", "llava_v1_5_mix.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    shutil.copytree(SAMPLES / "sharegpt", tmp_path / "LLaMA-Factory/data")
    info = tmp_path / "LLaMA-Factory/data/dataset_info.json"
    info.write_text(info.read_text().replace("demo_messages", "mllm_demo"))
    shutil.copy(SAMPLES / "openai/data_url.jsonl", tmp_path / "train.jsonl")
    [code] = re.findall(r"```python\n(from dataclasses .*?)```", PAGE, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "my_format.py").write_text(code.replace("Mine", "MyFormat"))
    [row] = re.findall(r"`(\{\"talk\".*?)`\.", PAGE, re.DOTALL)
    (tmp_path / "rows.jsonl").write_text(row)
    shutil.copy(SAMPLES / "llava/images/cat.jpg", tmp_path)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/00000.tar", "w") as shard:
        shard.add(tmp_path / "cat.jpg", "000.jpg")
        (tmp_path / "000.json").write_text(json.dumps({**rows[0], "image": "000.jpg"}))
        shard.add(tmp_path / "000.json", "000.json")
    return tmp_path


def test_the_commands_of_the_section_on_import_run(cli: Cli, place: Path) -> None:
    section = PAGE.partition("## Import")[2]
    blocks = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    commands = [line.partition("  #")[0] for line in blocks.splitlines() if line.startswith("phi3v-data import")]
    commands += re.findall(r"`(phi3v-data import mine.py[^`]*)`", section)
    assert len(commands) == 5
    for command in commands:
        code, said, errors = cli(*shlex.split(command)[1:], "--workers", "0")
        assert code == 0, errors
        assert "sample" in said


def test_each_bad_row_of_the_page_is_found_and_fixed_as_it_says(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file of each block is the bad row; of `validate`, the page shows the findings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("cat.jpg", "cup.jpg"):
        shutil.copy(SAMPLES / "llava/images" / name, tmp_path)
    section = PAGE.partition("### A bad row of each")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    read_by = ["llava", "qwen", "sharegpt", "swift", "trl", "axolotl", "openai"]
    assert [re.findall(r"\$ cat (\w+)\.jsonl", block) for block in blocks] == [[name] for name in read_by]
    for block in blocks:
        for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)+)", block, re.MULTILINE):
            program, *words = shlex.split(command)
            if program == "cat":
                file = Path(words[0])
                if not file.exists():
                    file.write_text(shown)
                said = re.sub(r"(?<=base64,)[^\"]+", "...", file.read_text())
            else:
                code, said, _ = cli(*words, *(["--workers", 0] if words[0] == "import" else []))
                is_clean = words[0] != "validate" or "key-ignored" in said
                assert code == (0 if is_clean else 1)
                said = said.partition("\n\n")[0].rstrip("\n") + "\n"
            assert said == shown


def test_the_sample_of_the_page_is_written_and_read_as_it_says(tmp_path: Path) -> None:
    [own, written] = re.findall(r"```(?:json|text)\n(\{.*?|llava, qwen: .*?)```", PAGE, re.DOTALL)
    (tmp_path / "set/images").mkdir(parents=True)
    for name in ("cat.jpg", "cup.jpg"):
        shutil.copy(SAMPLES / "llava/images" / name, tmp_path / "set/images")
    (tmp_path / "set/train.jsonl").write_text(json.dumps(json.loads(own)) + "\n")
    [sample] = Dataset(tmp_path / "set")["train"]
    [turn] = sample.conversations
    expected = {
        name: json.loads(row)
        for names, row in re.findall(r"^([\w, ]+): (\{.*?\})$(?=\n[\w, ]+: |\n?\Z)", written, re.DOTALL | re.MULTILINE)
        for name in names.split(", ")
    }
    assert list(expected) == ["llava", "qwen", "sharegpt", "swift", "openai", "trl", "axolotl"]
    for name, row in expected.items():
        is_folded = name in ("llava", "qwen")
        export_set(name, tmp_path / "set", tmp_path / name, ExportRequest(lossy=is_folded))
        [file] = tmp_path.glob(f"{name}/train.json*")
        found = json.loads(re.sub(r"(?<=base64,)[^\"]+", "...", file.read_text()))
        assert (found[0] if isinstance(found, list) else found) == row
        import_rows(name, file, tmp_path / f"back {name}", workers=0)
        [again] = Dataset(tmp_path / f"back {name}")["train"]
        [back] = again.conversations
        text = f"{sample.system}\n\n{turn.user}" if is_folded else turn.user
        offsets = tuple(at and at + len(text) - len(turn.user) for at in turn.image_offsets)
        assert (again.system, back.user, back.assistant) == ("" if is_folded else sample.system, text, turn.assistant)
        assert (back.image_offsets, len(back.images)) == (offsets, 2)


def test_the_examples_in_the_help_run(cli: Cli, place: Path) -> None:
    for number, example in enumerate(EXAMPLES):
        words = shlex.split(example)[1:]
        words[words.index("out")] = f"out{number}"
        code, _, errors = cli(*words, "--workers", "0")
        assert code == 0, errors
