"""`--model` and `--tokenizer`: which family counts tokens and knows the special strings.

The toy family of `tests/toy_family` is installed from outside through its entry point: bracketed markers, one image
token per 1,024 pixels, no numbered tags, no tile budget, no context switch.
"""

import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from in_process import Cli, make_cli
from validate_builders import found, row, settled, turn, write
from validate_images import encoded, make_image

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.lint import lint_file
from phi3v_data.lint.lengths import LengthSettings
from phi3v_data.tokens import registry
from phi3v_data.tokens.phi3v import PHI3V
from phi3v_data.validate import fresh_report, validate
from phi3v_data.validate.control import control_tokens

TESTS = Path(__file__).parents[1]
BUILT_IN = registry.family_names()

TOY = TESTS / "toy_family"
GOLDEN_TOKENIZER = TESTS / "data" / "golden" / "tiny_tokenizer"
RENAMED = """
from dataclasses import replace
from phi3v_data.tokens.phi3v import PHI3V
IT = replace(PHI3V, name="x")
"""
FAILING = """
from dataclasses import dataclass
from phi3v_data.tokens.phi3v import PHI3V
@dataclass(frozen=True)
class Failing(type(PHI3V)):
    def image_tokens(self, width, height, budget):
        BODY
IT = Failing(**{**vars(PHI3V), "name": "broken", "model_types": ("broken_vl",)})
"""
RECEIPT = ".phi3v/validate/receipt.json"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def forget_families() -> None:
    """As in a new process, after packages were installed or removed."""
    importlib.invalidate_caches()
    registry._built_in.cache_clear()
    registry._installed.cache_clear()
    control_tokens.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """`installed.syspath_prepend(FOLDER)` and `forget_families()` install what is in a folder, for one test."""
    yield monkeypatch
    monkeypatch.undo()
    forget_families()


@pytest.fixture
def toy(installed: pytest.MonkeyPatch) -> str:
    """The toy family, installed; its name."""
    installed.syspath_prepend(str(TOY))
    forget_families()
    return "toy"


def install(folder: Path, name: str, target: str, **modules: str) -> Path:
    """A distribution `NAME-family` 1.0 in a folder, with the entry point NAME and modules by name."""
    info = f"{name}_family-1.0.dist-info"
    write(folder, {f"{module}.py": text for module, text in modules.items()})
    write(folder, {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}-family\nVersion: 1.0\n"})
    write(folder, {f"{info}/entry_points.txt": f"[{registry.GROUP}]\n{name} = {target}\n"})
    return folder


def byte_tokenizer(directory: Path) -> Path:
    """A model directory of the toy family: a token for each byte of text and one for each marker."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["[SYS]", "[ASK]", "[ANSWER]", "[STOP]", "[IMG]", "[PAD]"])
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text('{"model_type": "toy_vl"}')
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two rows and two images: 64 x 64 (4 toy tokens) and 100 x 50 (5 toy tokens)."""
    files = {
        "images/a.png": encoded(make_image(1, (64, 64))),
        "images/b.png": encoded(make_image(2, (100, 50))),
    }
    rows = [
        row("one", turn("What?", "Yes.", images=("a.png", "b.png"))),
        row("two", turn("Größe?", "2", images=("a.png",)), turn("Sure?", "No"), system="Short."),
    ]
    return settled(write(tmp_path / "set", {"train.jsonl": rows, **files}))


def report_of(cli: Cli, *words: object) -> dict[str, Any]:
    """The report of `validate --json`, which must be without errors."""
    code, out, err = cli("validate", *words, "--json", "--quiet")
    assert code == 0, out + err
    report: dict[str, Any] = json.loads(out)
    return report


def test_the_toy_family_counts_by_its_own_rules(directory: Path, toy: str, cli: Cli, tmp_path: Path) -> None:
    """Estimated: a token per byte, 4 markers per turn. Exact: `[SYS]` and its `[STOP]` too."""
    stats = report_of(cli, directory, "--model", toy)["stats"]
    # one: 5 + 4 bytes, 4 markers, 4 + 5 image tokens = 22; two: 8 + 1 + 5 + 2 + 6 bytes, 8 markers, 4 = 34
    assert stats["tokens"]["counts"] == {"22": 1, "34": 1}
    assert stats["image_tokens"]["counts"] == {"4": 1, "9": 1}
    assert (stats["model"], stats["num_crops"], stats["text_tokens"]) == ("toy", None, "estimated")
    pytest.importorskip("tokenizers")
    model = byte_tokenizer(tmp_path / "model")
    stats = report_of(cli, directory, "--model", model)["stats"]
    assert stats["tokens"]["counts"] == {"22": 1, "36": 1}
    assert (stats["model"], stats["text_tokens"]) == ("toy", "exact")
    stats = report_of(cli, directory)["stats"]
    # one: ceil(9 / 3.6) + 12 + 2 * 3 + 2 of text, 2,509 + 2,353 of images; two: 7 + 2 * 12 + 3 + 2 of text, 2,509
    assert stats["tokens"]["counts"] == {"2545": 1, "4885": 1}
    assert (stats["model"], stats["num_crops"]) == ("phi3v", 16)


def test_stats_preview_and_card_count_tokens_of_the_model_too(
    directory: Path, toy: str, cli: Cli, tmp_path: Path
) -> None:
    """The numbers of `validate` (above): by the family, or exactly by a model directory."""
    quick = ("stats", directory, "--level", "quick", "--quiet")
    stats = json.loads(cli(*quick, "--model", toy, "--json")[1])
    assert stats["tokens"]["counts"] == {"22": 1, "34": 1}
    assert (stats["model"], stats["num_crops"], stats["text_tokens"]) == ("toy", None, "estimated")
    assert "per sample (model toy, no image budget, text estimated)" in cli(*quick, "--model", toy)[1]
    assert "per sample (num_crops 16, text estimated)" in cli(*quick)[1]
    shown = cli("preview", directory, "--model", toy)[1]
    assert [line.split(", ")[-1] for line in shown.splitlines() if line.startswith("image ")] == [
        "4 tokens",
        "5 tokens",
    ]
    assert ", 2,509 tokens\n" in cli("preview", directory)[1]
    assert cli("preview", directory, "--model", toy, "--html", tmp_path / "page.html", "--quiet")[0] == 0
    assert '["median","22"],["mean","28.0"],["95 %","34"],["max","34"]' in (tmp_path / "page.html").read_text()
    assert cli("card", directory, "--model", toy)[0] == 0
    line = "- Tokens per sample with the model family `toy`: median 22, at most 34 (images exact, text estimated)\n"
    assert line in (directory / "README.md").read_text()
    pytest.importorskip("tokenizers")
    model = byte_tokenizer(tmp_path / "model")
    assert json.loads(cli(*quick, "--model", model, "--json")[1])["tokens"]["counts"] == {"22": 1, "36": 1}
    assert cli("card", directory, "--model", model)[0] == 0
    assert "median 22, at most 36 (exact)\n" in (directory / "README.md").read_text()


@pytest.mark.parametrize("command", [["stats"], ["preview"], ["preview", "--html", "page.html"], ["card"], ["clean"]])
def test_a_model_or_budget_that_is_not_there_is_one_sentence(
    directory: Path, toy: str, cli: Cli, tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words: list[object] = [command[0], directory, *(["out"] if command == ["clean"] else []), *command[1:]]
    code, out, err = cli(*words, "--model", "toi")
    assert (code, out) == (2, "")
    assert "'toi' is neither a model family nor a model directory; did you mean toy?" in " ".join(err.split())
    if command == ["card"]:
        return
    for model, number, sentence in (
        ("toy", 4, "the model family toy has no image budget: leave num_crops out"),
        ("phi3v", 17, "num_crops must be a whole number from 1 to 16, not 17"),
    ):
        code, out, err = cli(*words, "--model", model, "--num_crops", number)
        assert (code, out) == (2, "")
        assert sentence in " ".join(err.split())
    assert not (tmp_path / "page.html").exists()


def test_clean_keeps_the_rows_that_are_valid_for_the_model(tmp_path: Path, toy: str, cli: Cli) -> None:
    """A thin image and `[STOP]` are errors of the toy family, `<|end|>` is one of phi3v."""
    files = {"images/thin.png": encoded(make_image(1, (102, 2)))}
    rows = [
        row("thin", turn("q", images=("thin.png",))),
        row("stop", turn("say [STOP]")),
        row("end", turn("say <|end|>")),
    ]
    directory = write(tmp_path / "set", {"train.jsonl": rows, **files})
    kept = {}
    for model in ("toy", "phi3v"):
        out = tmp_path / model
        assert cli("clean", directory, out, "--model", model, "--quiet")[0] == 0
        kept[model] = [json.loads(line)["id"] for line in (out / "set_train.jsonl").read_text().splitlines()]
        assert validate(out, model=model).ok
    assert kept == {"toy": ["end"], "phi3v": ["thin", "stop"]}


def test_special_strings_of_the_model_are_errors_and_those_of_others_warnings(tmp_path: Path, toy: str) -> None:
    texts = ["[STOP]", "[PAD]", "[IMG]", "<|end|>", "<|image_3|>", "</s>", "<image>", "[INST]", "[STOPPED]", "[stop]"]
    rows = [row(f"{n}", turn(f"Say {text} {n}", "x")) for n, text in enumerate(texts)]
    rows[8:8] = [row(f"plain{n}", turn(f"Say [1] <b> {n}", "x")) for n in range(60)]
    write(tmp_path, {"train.jsonl": rows})

    def severities(model: str) -> dict[str, str]:
        problems = found(validate(tmp_path, model=model, use_receipt=False), "control-token")
        return {
            json.loads(text)["conversations"][0]["user"].split()[1]: problem.severity
            for problem in problems
            for text in [(tmp_path / "train.jsonl").read_text().splitlines()[(problem.line or 0) - 1]]
        }

    own, foreign = dict.fromkeys(texts[:3], "error"), dict.fromkeys(texts[3:8], "warning")
    assert severities("toy") == own | foreign
    swapped = dict.fromkeys(texts[3:6], "error") | dict.fromkeys((*texts[:3], *texts[6:8]), "warning")
    assert severities("phi3v") == swapped


def test_a_marker_of_the_toy_family_is_found_among_many_rows_alike_and_when_escaped(tmp_path: Path, toy: str) -> None:
    lines = [json.dumps(row(f"{n}", turn(f"Question {n}", "x"))) + "\n" for n in range(40)]
    lines[7] = lines[7].replace("Question 7", "Q [STOP] 7")
    lines[30] = lines[30].replace("Question 30", "Q \\u005bSTOP] 30")
    write(tmp_path, {"train.jsonl": "".join(lines)})
    assert [problem.line for problem in found(validate(tmp_path, model=toy), "control-token")] == [8, 31]


def test_an_image_that_the_family_cannot_take(tmp_path: Path, toy: str) -> None:
    """102 x 2 pixels are too narrow for the toy family, not for Phi-3-vision."""
    files = {"images/thin.png": encoded(make_image(1, (102, 2)))}
    write(tmp_path, {"train.jsonl": [row("a", turn("q", images=("thin.png",)))], **files})
    problem = found(validate(tmp_path, model=toy), "image-aspect")[0]
    assert problem.message == "'thin.png': an image of 102 x 2 pixels is too narrow for the toy family"
    assert (problem.line, problem.field) == (1, "conversations[0].images[0]")
    assert found(validate(tmp_path), "image-aspect") == []


def test_a_family_without_budget_and_context_switch(tmp_path: Path, toy: str, cli: Cli) -> None:
    """`num_crops` of dataset.json is Phi-3's; the toy family ignores it, and refuses the option."""
    manifest = {"format": 1, "name": "x", "task": "vqa", "num_crops": 4, "splits": {}}
    write(tmp_path, {"train.jsonl": [row("a", turn("long " * 4000))], "dataset.json": json.dumps(manifest)})
    report = validate(tmp_path, model=toy, max_tokens=5000)
    assert report.stats["num_crops"] is None
    assert found(report, "rope-switch") == []
    assert "--num_crops" not in found(report, "too-long")[0].hint
    assert len(found(validate(tmp_path), "rope-switch")) == 1
    code, out, err = cli("validate", tmp_path, "--model", "toy", "--num_crops", "4")
    assert (code, out) == (2, "")
    assert "the model family toy has no image budget: leave num_crops out" in " ".join(err.split())


def test_a_budget_out_of_range_is_refused(tmp_path: Path, cli: Cli) -> None:
    write(tmp_path, {"train.jsonl": [row("a")]})
    code, out, err = cli("validate", tmp_path, "--num_crops", "17")
    assert (code, out) == (2, "")
    assert "num_crops must be a whole number from 1 to 16, not 17" in " ".join(err.split())


def test_a_model_directory_without_tokenizer_is_counted_by_estimate(directory: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "model", {"config.json": '{"model_type": "phi3_v"}'})
    report = validate(directory, model=model)
    assert report.ok
    assert report.stats["text_tokens"] == "estimated"
    assert "has no tokenizer.json" in found(report, "check-skipped")[0].message


def test_a_model_directory_that_does_not_say_how_images_are_processed_is_named(directory: Path, tmp_path: Path) -> None:
    """Also for a file of another tool; with either file, or for a family by name, nothing is said."""
    model = write(tmp_path / "model", {"config.json": '{"model_type": "phi3_v"}'})
    sentence = (
        f"image tokens are counted with the defaults of the family phi3v: {str(model)!r} has neither "
        "preprocessor_config.json nor processor_config.json"
    )
    rows = write(tmp_path / "file", {"rows.jsonl": '{"messages": [{"role": "user", "content": "a"}, '
                                     '{"role": "assistant", "content": "b"}], "images": []}\n'})  # fmt: skip

    def said(model: str | Path) -> list[bool]:
        lengths = LengthSettings(max_tokens=99)
        reports = validate(directory, model=model), lint_file(rows / "rows.jsonl", model=model, lengths=lengths)
        return [sentence in [each.message for each in found(report, "check-skipped")] for report in reports]

    assert said(model) == [True, True]
    assert said("phi3v") == [False, False]
    write(model, {"preprocessor_config.json": '{"num_crops": 4}'})
    assert said(model) == [False, False]


@pytest.mark.parametrize(("name", "refused"), [("Qwen2_5_VLProcessor", True), ("Qwen3VLProcessor", False)])
def test_an_adapter_whose_base_is_of_another_family_now_is_refused(
    name: str, refused: bool, directory: Path, cli: Cli, tmp_path: Path
) -> None:
    base = write(
        tmp_path / "base",
        {"config.json": '{"model_type": "qwen2_5_vl"}', "preprocessor_config.json": f'{{"processor_class": "{name}"}}'},
    )
    adapter = write(
        tmp_path / "adapter",
        {
            "adapter_config.json": json.dumps({"base_model_name_or_path": str(base)}),
            "processor_config.json": '{"processor_class": "Qwen3VLProcessor"}',
        },
    )
    code, _, error = cli("validate", directory, "--model", adapter, "--level", "quick")
    words = " ".join(error.split())
    assert (code == 2) == refused
    assert (f"its processor is '{name}', that of the adapter 'Qwen3VLProcessor'; give the family" in words) == refused


def test_the_tokenizer_wins_the_text_count(directory: Path, tmp_path: Path) -> None:
    """`--model DIR` has a tokenizer of its own, which `--tokenizer` overrules."""
    pytest.importorskip("tokenizers")
    model = write(tmp_path / "model", {"config.json": '{"model_type": "phi3_v"}', "tokenizer.json": "{}"})
    both = validate(directory, model=model, tokenizer=GOLDEN_TOKENIZER, use_receipt=False)
    alone = validate(directory, tokenizer=GOLDEN_TOKENIZER, use_receipt=False)
    assert both.stats == alone.stats
    assert both.stats["text_tokens"] == "exact"
    assert "cannot be read" in found(validate(directory, model=model), "check-skipped")[0].message


def test_a_tokenizer_of_another_family_is_refused(directory: Path, toy: str, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = byte_tokenizer(tmp_path / "toys")
    code, out, err = cli("validate", directory, "--model", "phi3v", "--tokenizer", model)
    assert (code, out) == (2, "")
    words = " ".join(err.split())
    assert "is of the model family toy, but --model 'phi3v' is of phi3v" in words
    assert "Traceback" not in err


def test_without_model_the_family_is_that_of_the_tokenizer(directory: Path, toy: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = byte_tokenizer(tmp_path / "toys")
    assert validate(directory, tokenizer=model).stats["model"] == "toy"
    for content in ('{"model_type": "unknown_vl"}', "{}", "[1]", "{broken"):
        (model / "config.json").write_text(content)
        assert validate(directory, tokenizer=model).stats["model"] == "phi3v", content


def test_an_estimate_for_want_of_the_tokenizers_package_is_replaced_once_it_is_there(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tokenizers", None)
        assert validate(directory, tokenizer=GOLDEN_TOKENIZER).stats["text_tokens"] == "estimated"
    assert validate(directory, tokenizer=GOLDEN_TOKENIZER).stats["text_tokens"] == "exact"


@pytest.mark.parametrize(
    ("model", "files", "message"),
    [
        (
            "qwen",
            {},
            "'qwen' is neither a model family nor a model directory; did you mean qwen3_5?",
        ),
        (
            "DIR",
            {"config.json": '{"model_type": "llava"}'},
            "no model family reads the model_type 'llava' of 'DIR'; families: phi3v, gemma3, ",
        ),
        ("DIR", {}, "'DIR' has no config.json with a model_type; families: phi3v, gemma3, "),
        ("DIR", {"config.json": "{}"}, "'DIR' has no config.json with a model_type"),
        ("DIR", {"config.json": "[]"}, "'DIR/config.json': must be a JSON object"),
        ("DIR", {"config.json": "{"}, "'DIR/config.json': cannot be read: it is not JSON"),
    ],
)
def test_a_model_that_no_family_reads(
    tmp_path: Path, toy: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, model: str, files: dict[str, Any], message: str
) -> None:
    """Exit code 2 and one sentence that lists the families."""
    write(tmp_path, {"set/train.jsonl": [row("a")], **{f"DIR/{name}": text for name, text in files.items()}})
    (tmp_path / "DIR").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("validate", "set", "--model", model)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import nowhere_to_be_found\n", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("IT = 3\n", "must be a TokenFamily object, not int"),
        ("raise SystemExit(0)\n", "cannot be loaded: SystemExit: 0 (broken_family.py:1)"),
        ("class Odd(BaseException): pass\nraise Odd('no')\n", "cannot be loaded: Odd: no (broken_family.py:2)"),
        (
            RENAMED.replace('"x"', '"broken", model_types="half"'),
            "broken-family: model_types must be a tuple of strings, not 'half'",
        ),
        (
            RENAMED.replace('"x"', '"broken", other_special="[PAD]"'),
            "broken-family: other_special must be a tuple of strings, not '[PAD]'",
        ),
        (RENAMED, "is named 'x' in 'broken_family:IT': the names must be equal"),
    ],
)
def test_a_family_that_fails_to_load_is_named_with_its_package(
    installed: pytest.MonkeyPatch, tmp_path: Path, cli: Cli, module: str, message: str
) -> None:
    """Asked for, it ends the run; otherwise the check that it is missing for is reported as skipped."""
    folder = install(tmp_path / "packages", "broken", "broken_family:IT", broken_family=module)
    installed.syspath_prepend(str(folder))
    installed.delitem(sys.modules, "broken_family", raising=False)
    forget_families()
    directory = write(tmp_path / "set", {"train.jsonl": [row("a")]})
    code, out, err = cli("validate", directory, "--model", "broken")
    assert (code, out) == (2, "")
    sentence = " ".join(err.split())
    assert "the model family broken of the package broken-family" in sentence
    assert message in sentence
    report = validate(directory)
    assert report.ok
    assert "the package broken-family" in found(report, "check-skipped")[0].message
    installed.delitem(sys.modules, "broken_family", raising=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 // 0", "must return a number or raise ImageShapeError, but raised ZeroDivisionError: "),
        ("return None", "must be a whole number from 0 to 2147483647, not None"),
        ("return True", "must be a whole number from 0 to 2147483647, not True"),
        ("return -3", "must be a whole number from 0 to 2147483647, not -3"),
        ("return 2.5", "must be a whole number from 0 to 2147483647, not 2.5"),
        ("return 2**70", "must be a whole number from 0 to 2147483647, not 1180591620717411303424"),
    ],
)
def test_a_family_whose_image_tokens_fail_is_named_with_its_package(
    installed: pytest.MonkeyPatch, directory: Path, tmp_path: Path, cli: Cli, body: str, message: str
) -> None:
    module = FAILING.replace("BODY", body)
    installed.syspath_prepend(str(install(tmp_path / "packages", "broken", "broken_family:IT", broken_family=module)))
    installed.delitem(sys.modules, "broken_family", raising=False)
    forget_families()
    code, out, err = cli("validate", directory, "--model", "broken")
    assert (code, out) == (2, "")
    sentence = " ".join(err.split())
    assert (
        "the model family broken of the package broken-family: image_tokens of an image of 64 x 64 pixels" in sentence
    )
    assert message in sentence
    assert "bug" not in sentence
    assert validate(directory).ok
    installed.delitem(sys.modules, "broken_family", raising=False)


def test_a_plug_in_with_the_name_of_a_built_in_family_is_reported_and_ignored(
    installed: pytest.MonkeyPatch, directory: Path, tmp_path: Path
) -> None:
    installed.syspath_prepend(str(install(tmp_path / "packages", "phi3v", "nowhere:IT")))
    forget_families()
    report = validate(directory, model="phi3v")
    assert report.ok
    assert report.stats["model"] == "phi3v"
    assert [problem.message for problem in found(report, "check-skipped")] == [
        "markers of a model family are not looked for: the model family phi3v of the package phi3v-family is ignored, "
        "because the package phi3v has a family of that name: uninstall the former, or rename its family"
    ]
    assert registry.family_names() == BUILT_IN
    assert registry.family_version("phi3v") == "phi3v"


def test_a_name_of_two_plug_ins_is_refused(
    installed: pytest.MonkeyPatch, directory: Path, tmp_path: Path, cli: Cli
) -> None:
    for package in ("one", "two"):
        folder = install(tmp_path / package, package, "nowhere:IT")
        points = folder / f"{package}_family-1.0.dist-info" / "entry_points.txt"
        points.write_text(f"[{registry.GROUP}]\nbroken = {package}_module:IT\n")
        installed.syspath_prepend(str(folder))
    forget_families()
    code, out, err = cli("validate", directory, "--model", "broken")
    assert (code, out) == (2, "")
    sentence = " ".join(err.split())
    assert "the package one-family" in sentence
    assert "the package two-family" in sentence
    assert "is defined 2 times" in sentence
    assert "uninstall all but one" in sentence
    assert len(found(validate(directory, model="phi3v"), "check-skipped")) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "--model is empty: give a model family (phi3v, gemma3, "),
        ("Phi3V", "neither a model family nor a model directory; did you mean phi3v?"),
        ("phi3_v", "neither a model family nor a model directory; did you mean phi3v?"),
        ("tiny", "'tiny' is the small model of phi3v: use --model phi3v"),
        ("tiny:phi3v", "'tiny:phi3v' is the small model of phi3v: use --model phi3v"),
        (
            "microsoft/Phi-3.5-vision-instruct",
            "download it first (hf download microsoft/Phi-3.5-vision-instruct --local-dir DIR) and use --model DIR",
        ),
        ("set/train.jsonl", "--model 'set/train.jsonl' is a file: give a model family or the model's directory"),
        ("listed", "'listed/config.json': model_type must be a string, not an array of 1"),
        ("numbered", "'numbered/config.json': model_type must be a string, not 3"),
    ],
)
def test_a_hint_at_the_model_that_was_meant(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    files = {
        "set/train.jsonl": [row("a")],
        "listed/config.json": '{"model_type": ["phi3_v"]}',
        "numbered/config.json": '{"model_type": 3}',
    }
    write(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("validate", "set", "--model", model)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_a_missing_folder_beside_others_is_not_taken_for_a_hub_id(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"set/train.jsonl": [row("a")]})
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("validate", "set", "--model", "set/model")
    assert code == 2
    assert "'set/model' is neither a model family nor a model directory" in " ".join(err.split())
    assert "hf download" not in err


def test_a_receipt_is_for_one_family(directory: Path, toy: str) -> None:
    """Another family, or another set of families, checks again."""
    first = validate(directory)
    assert fresh_report(directory) == first
    assert fresh_report(directory, model="toy") is None
    second = validate(directory, model="toy")
    assert second.stats["tokens"] != first.stats["tokens"]
    assert fresh_report(directory, model="toy") == second
    assert fresh_report(directory) is None
    assert validate(directory) == first


def test_a_receipt_is_for_one_family_even_of_the_same_budget(
    directory: Path, installed: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = RENAMED.replace('"x"', '"twin"')
    installed.syspath_prepend(str(install(tmp_path / "packages", "twin", "twin_family:IT", twin_family=module)))
    forget_families()
    report = validate(directory)
    assert fresh_report(directory) == report
    assert fresh_report(directory, model="twin") is None
    assert validate(directory, model="twin").stats["model"] == "twin"
    installed.delitem(sys.modules, "twin_family")


def test_a_receipt_that_does_not_say_for_which_families_it_is_is_not_used(directory: Path) -> None:
    report = validate(directory)
    path = directory / RECEIPT
    stored = json.loads(path.read_text())
    assert stored["options"].pop("model") == "phi3v"
    assert stored["options"].pop("families") == BUILT_IN
    del stored["digest"]
    text = json.dumps(stored).encode()[1:]
    path.write_bytes(f'{{"digest": "{xxhash.xxh3_128_hexdigest(text)}",\n'.encode() + text)
    assert fresh_report(directory) is None
    assert validate(directory) == report
    assert fresh_report(directory) == report


def test_the_command_loads_neither_torch_nor_transformers(directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = (GOLDEN_TOKENIZER / "tokenizer.json").read_bytes()
    model_dir = write(tmp_path / "phi", {"config.json": '{"model_type": "phi3_v"}', "tokenizer.json": tokenizer})
    program = (
        f"import sys; sys.argv = ['phi3v-data', 'validate', {str(directory)!r}, '--model', sys.argv[1], '--json']\n"
        "from phi3v_data.cli.app import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'phi3v_train'} & set(sys.modules)), file=sys.stderr)\n"
    )
    paths = os.pathsep.join([str(TOY), os.environ["PYTHONPATH"]])
    for model in ("toy", str(model_dir)):
        done = subprocess.run(
            [sys.executable, "-c", program, model],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == "[]"
        stats = json.loads(done.stdout)["stats"]
        assert (stats["model"], stats["text_tokens"]) == (
            ("toy", "estimated") if model == "toy" else ("phi3v", "exact")
        )


def test_families_travel_to_other_processes(toy: str) -> None:
    assert pickle.loads(pickle.dumps(PHI3V)) == PHI3V
    family = registry.get_family(toy)
    assert pickle.loads(pickle.dumps(family)) == family


def test_families_by_name_and_by_model_type(toy: str) -> None:
    assert registry.family_names() == [*BUILT_IN, "toy"]
    assert registry.family_of_type("phi3_v") is PHI3V
    assert registry.family_of_type("toy_vl") is registry.get_family("toy")
    assert registry.family_of_type("llava") is None
    assert registry.family_version("toy") == "toy (toy 1.0)"
    with pytest.raises(NotFoundError, match=r"no model family 'qwen'; there are phi3v, gemma3, .*, toy"):
        registry.get_family("qwen")
    with pytest.raises(UserError):
        registry.find_family("qwen")


def test_a_family_of_this_package_is_one_new_module(installed: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found by being in the folder; no list names it."""
    write(
        tmp_path, {"another.py": RENAMED + 'FAMILIES = (replace(IT, name="another", model_types=("another_vl",)),)\n'}
    )
    package = importlib.import_module("phi3v_data.tokens")
    installed.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    forget_families()
    assert sorted(registry.family_names()) == sorted([*BUILT_IN, "another"])
    assert registry.family_of_type("another_vl") is registry.get_family("another")
    assert registry.family_version("another") == "another"
    installed.delitem(sys.modules, "phi3v_data.tokens.another")
