"""Pages, help, docstrings and messages use the field's words: those of `BANNED` do not come back."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi3v_data.cli.app import COMMANDS as DATA_COMMANDS
from phi3v_data.cli.base import make_group
from phi3v_data.registry import names
from phi3v_train.cli.app import COMMANDS as TRAIN_COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MODULES = sorted([*ROOT.glob("phi3v_data/**/*.py"), *ROOT.glob("phi3v_train/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))

BANNED = {
    r"pictures?": "image",
    r"mend(s|ed|ing)?": "fix",
    r"the reference(s|'s)?(?! (to|of))": "the Phi-3.5-vision sample",
    r"learnt": "supervised, or learned",
    r"prove[sdn]?": "verify, check",
    r"sound": "valid",
    r"anew": "again, starts over",
    r"brought together": "all-gathered",
    r"goes on": "resumes, continues",
    r"(holds?|finds?) no": "contains no, found no",
    r"(?<!there )is no (?!longer|more)": "is not a",
    r"(None|empty|-1) where": "None if",
    r"lies|lie|stands(?! for)": "is, are",
    r"of (ours|yours)": "of phi3v, your own",
    r"(samples?|images?|tokens|turns|rows?|bytes|pixels|loss|steps?|files?) an? (split|sample|row|GPU|card|second)":
        "per",
}  # fmt: skip
"""Regular expression for words that are not used -> what to write instead."""

ALLOWED = {
    "`image-suffix-mended`": "a code in dataset.json, which does not change",
    "image-suffix-mended": "the same in the output of a command",
    "may hold the reference": "of an image, in the formats of other tools",
    "images: picture": "the column of a table in examples/data, which is a user's own name",
    "rows.csv:6: 'picture'": "the same in a message about that column",
}
"""Text in which a banned word may stand -> why."""


def found_in(text: str) -> list[str]:
    """Banned words in a text, with what to write instead."""
    for allowed in ALLOWED:
        text = text.replace(allowed, "")
    return [
        f"{match[0]!r} (write: {instead})"
        for pattern, instead in BANNED.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of the docstrings of a module, those of constants and fields included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for statement in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value.value
                if isinstance(value, str):
                    yield statement.lineno, value


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of the strings of a module that are texts: errors, notes, hints, help, lines that are printed.

    Strings without a space are left out, as they are keys, codes and names. An inserted value is `{}`, and the strings
    inside it are texts of their own.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    seen = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):  # an f-string before its parts
        if isinstance(node, ast.JoinedStr):
            seen |= {id(part) for part in node.values}
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in seen:
            text = node.value
        else:
            continue
        if " " in text.strip():
            yield node.lineno, text


def names_and_comments(path: Path) -> tuple[set[str], list[tuple[int, str]]]:
    """Words of the names in a module, such as `all gather` for `all_gather`; line and text of its comments."""
    names, comments = set(), []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                names.add(token.string)
            elif token.type == tokenize.COMMENT:
                comments.append((token.start[0], token.string))
    return {re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name) for name in names}, comments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_words_of_the_field(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [f"{page.name}:{n}: {word}" for n, line in enumerate(lines, 1) for word in found_in(line)] == []


def test_docstrings_use_the_words_of_the_field_and_begin_with_what_is_returned_or_done() -> None:
    problems = []
    for path in MODULES:
        for line, text in docstrings(path):
            where = f"{path.relative_to(ROOT)}:{line}"
            problems += [f"{where}: {word}" for word in found_in(text)]
            problems += [f"{where}: {word}" for word in first_word(text)]
    assert problems == []


def first_word(docstring: str) -> list[str]:
    """Objection to the beginning of a docstring."""
    return ["begins with 'What': name the thing itself, such as 'Result of a run'"] * bool(
        re.match(r"What\b", docstring)
    )


def test_tests_use_the_words_of_the_field() -> None:
    """In the docstrings of tests, and in the names of their functions and classes."""
    problems = []
    for path in TESTS:
        found = list(docstrings(path))
        problems += [f"{path.relative_to(ROOT)}:{line}: {word}" for line, text in found for word in first_word(text)]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.append((node.lineno, node.name.replace("_", " ")))
        problems += [f"{path.relative_to(ROOT)}:{line}: {word}" for line, text in found for word in found_in(text)]
    assert problems == []


def test_messages_use_the_words_of_the_field() -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in MODULES
        for line, text in literals(path)
        for word in found_in(text)
    ]
    assert problems == []


def test_names_and_comments_use_the_words_of_the_field() -> None:
    problems = []
    known: set[str] = set()
    for path in MODULES:
        names, comments = names_and_comments(path)
        problems += [f"{path.relative_to(ROOT)}: {word}" for name in names - known for word in found_in(name)]
        problems += [f"{path.relative_to(ROOT)}:{line}: {word}" for line, text in comments for word in found_in(text)]
        known |= names
    assert problems == []


def test_words_of_names_and_comments_are_read(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("learntTokens = is_sound = 'mended'  # it lies there\n")
    names, comments = names_and_comments(module)
    assert names == {"learnt Tokens", "is sound"}
    assert comments == [(1, "# it lies there")]
    assert [bool(found_in(text)) for text in ("learnt Tokens", "is sound", "# it lies there")] == [True] * 3


def test_texts_of_errors_prints_and_hints_are_read(tmp_path: Path) -> None:
    """A word is found in any part of an f-string, in an argument and in a sum; keys and codes are not texts."""
    module = tmp_path / "module.py"
    module.write_text(
        '"""A docstring with learnt words."""\n'
        "def check(path, hint='the file lies there'):\n"
        "    print(f'{path}: it stands {\"is no table\" if path else 0} '\n"
        "          'twice')\n"
        "    raise ValueError({'learnt': 'goes-on'}, 'a set ' + 'of ours')\n"
    )
    assert sorted((line, word.partition(" (")[0]) for line, text in literals(module) for word in found_in(text)) == [
        (2, "'lies'"),
        (3, "'is no '"),
        (3, "'stands'"),
        (5, "'of ours'"),
    ]


@pytest.mark.parametrize(
    ("program", "commands"), [("phi3v-data", DATA_COMMANDS), ("phi3v-train", TRAIN_COMMANDS)], ids=["data", "train"]
)
def test_help_uses_the_words_of_the_field(
    program: str, commands: dict[str, object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    group = make_group(program, "", commands)  # type: ignore[arg-type]  # as the programs do
    calls = [[], *([name] for name in commands)]
    if program == "phi3v-data":
        calls += [["convert", name] for name in names()]
    problems = []
    for call in calls:
        with pytest.raises(SystemExit):
            group.main(args=[*call, "--help"], prog_name=program)
        text = " ".join(capsys.readouterr().out.split())
        assert "Usage" in text
        problems += [f"{program} {' '.join(call)}: {word}" for word in found_in(text)]
    assert problems == []
