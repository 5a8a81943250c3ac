"""docs/converters.md: every command in it is run, and what it prints is what the page says."""

import re
import shlex
from pathlib import Path

import pytest
from converter_sources import cauldron, class_folders, docvqa_official, memes_official, nlvr2_official, put
from processes import MODULE, finish, start

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "converters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = {
    "phi3v-data": ("-c", "from phi3v_data.cli.app import main; main()"),
    "phi3v-train": MODULE,
}
SCORES = re.compile(r"(?<=\w )\d+(\.\d+)?(?=,|$)", re.MULTILINE)


def run(line: str, folder: Path) -> str:
    """Output of a command, with its exit code if that is not 0."""
    words = shlex.split(line)
    if words[0] == "cat":
        return (folder / words[1]).read_text(encoding="utf-8")
    ((code, output, errors),) = finish([start(*COMMANDS[words[0]], *words[1:], cwd=folder)])
    said = [line for line in errors.splitlines(keepends=True) if not line.startswith("step ")]  # scores on the way
    return "".join(said) + output + (f"[exit code {code}]\n" if code else "")


def without_scores(text: str) -> str:
    """A random model's loss and scores are not the same to the last digit on every processor."""
    return "".join(
        SCORES.sub("N", line) if line.startswith(("before ", "after ")) else line
        for line in text.splitlines(keepends=True)
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_the_commands_print_what_the_page_says(tmp_path: Path, block: str) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    docvqa_official(tmp_path / "spdocvqa")
    memes_official(tmp_path / "hateful_memes")
    nlvr2_official(tmp_path / "nlvr2")
    cauldron(tmp_path / "the_cauldron")
    class_folders(tmp_path / "animals")
    put(tmp_path / "wrong.yaml", "images: picture\nuser: '{qestion}'\nassistant: '{answer}'\n")
    said = ""
    for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
        said += f"$ {line}\n{run(line, tmp_path)}"
    assert without_scores(said) == without_scores(block)


def test_the_page_shows_the_example_map() -> None:
    assert f"```yaml\n{(ROOT / 'examples' / 'table_map.yaml').read_text(encoding='utf-8')}```" in PAGE


def test_the_page_names_every_converter() -> None:
    from phi3v_data.registry import names

    for name in names():
        assert f"| `{name}` |" in PAGE
