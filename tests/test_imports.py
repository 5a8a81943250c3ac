"""The floors: imports run downhill only, and what must start quickly loads nothing heavy."""

import ast
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from phi3v_data.cli.app import COMMANDS, start_lightly

ROOT = Path(__file__).parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
HEAVY = {"torch", "transformers", "cv2", "av", "datasets", "pandas", "pyarrow", "ray", "numpy", "PIL", "pydantic"}

DATA_FLOORS = (
    ("cli", "__main__"),
    ("testing",),
    ("conversion", "importing", "slices", "planned", "earlier_run", "same_source", "schema_files"),
    ("exporting",),
    ("sets",),
    ("report",),
    ("lint",),
    ("validate",),
    ("writing",),
    ("engine",),
    ("registry",),
    ("shards",),
    ("formats",),
    ("converters",),
    ("sources",),
    ("draft",),
    ("dataset", "line_index", "line_reader"),
    ("tokens",),
    ("media",),
    ("problems",),
    ("remote",),
    ("schema", "unfinished", "json_text", "jsonl", "splits", "encodings", "lock", "columns", "yaml_keys"),
    ("choices", "files", "near_names", "user_code"),
    ("console",),
    ("mounts", "markdown", "streams", "metric_names", "wrong_values"),
    ("errors", "lazy", "licences", "messages", "suffixes"),
)
"""Floors of `phi3v_data`, the top one first; the longest prefix of a module's name counts.

A module may import from its own floor and from those below it.
"""

TRAIN_FLOORS = (
    ("cli", "__main__"),
    ("serving",),
    ("run", "fits", "plan_report", "schema_files", "push"),
    ("build",),
    ("start",),
    ("plan",),
    ("evaluation",),
    ("training",),
    ("loss",),
    ("distributed",),  # the processes of a run, or of an evaluation
    ("inspection",),
    ("data",),
    ("models",),
    ("precision", "device"),
    ("settings",),
    ("recipes", "launch"),
    ("parse_config",),
    ("config",),
    ("foreign_names", "setting_group"),
)


def modules(package: str) -> dict[str, Path]:
    """Dotted name of every module of a package, and its file."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(path: Path, *, at_import: bool, for_types: bool = False) -> set[str]:
    """Names that a file imports: with `for_types`, those for type checkers too; with `at_import`, none of functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif not ((is_type_checking(child) and not for_types) or (at_import and isinstance(child, FUNCTIONS))):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def floor_of(module: str, floors: Sequence[Sequence[str]]) -> int | None:
    """Number of the floor of a module; None for the package itself and for a module without a floor."""
    inside = module.partition(".")[2]
    known = {name: number for number, names in enumerate(floors) for name in names}
    fitting = [name for name in known if inside == name or inside.startswith(f"{name}.")]
    return known[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize(("package", "floors"), [("phi3v_data", DATA_FLOORS), ("phi3v_train", TRAIN_FLOORS)])
def test_imports_run_downhill(package: str, floors: Sequence[Sequence[str]]) -> None:
    upward = []
    for module, path in modules(package).items():
        floor = floor_of(module, floors)
        if floor is None:
            continue
        for name in imports(path, at_import=False):
            if name.startswith(f"{package}."):
                target = floor_of(name, floors)
                if target is not None and target < floor:
                    upward.append(f"{module} imports {name}")
    assert upward == []


@pytest.mark.parametrize(("package", "floors"), [("phi3v_data", DATA_FLOORS), ("phi3v_train", TRAIN_FLOORS)])
def test_every_module_is_on_a_floor(package: str, floors: Sequence[Sequence[str]]) -> None:
    assert [module for module in modules(package) if module != package and floor_of(module, floors) is None] == []


@pytest.mark.parametrize(("package", "floors"), [("phi3v_data", DATA_FLOORS), ("phi3v_train", TRAIN_FLOORS)])
def test_the_architecture_page_has_one_row_per_floor(package: str, floors: Sequence[Sequence[str]]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition(f"| floor of `{package}` |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [sorted(re.findall(r"`(\w+)(?:\.py|/)`", line.split("|")[1])) for line in table]
    assert rows == [sorted(names) for names in floors]


@pytest.mark.parametrize("package", ["phi3v_data", "phi3v_train"])
def test_library_code_imports_no_command(package: str) -> None:
    """Commands stand on top: what others need too, such as exit codes and progress bars, is a module of its own."""
    commands = {f"{package}.cli", f"{package}.__main__"}
    for module, path in modules(package).items():
        if not any(module == name or module.startswith(f"{name}.") for name in commands):
            assert not [name for name in imports(path, at_import=False) if re.match(r"phi3v_\w+\.cli", name)], module


def test_the_data_package_never_imports_the_training_package_or_torch() -> None:
    for module, path in modules("phi3v_data").items():
        roots = {name.partition(".")[0] for name in imports(path, at_import=False)}
        assert not roots & {"phi3v_train", "torch", "transformers", "accelerate", "peft"}, module


def test_optional_packages_are_imported_where_they_are_used() -> None:
    for module, path in modules("phi3v_data").items():
        roots = {name.partition(".")[0] for name in imports(path, at_import=True)}
        assert not roots & {"av", "cv2", "datasets", "pyarrow", "pandas", "ray", "huggingface_hub", "tokenizers"}, (
            module
        )


def test_no_module_imports_one_that_imports_it() -> None:
    """Not inside functions or for type checkers either."""
    known = modules("phi3v_data") | modules("phi3v_train")
    graph = {
        module: {
            next(part for part in (name, name.rpartition(".")[0]) if part in known)
            for name in imports(path, at_import=False, for_types=True)
            if name in known or name.rpartition(".")[0] in known
        }
        - {module}
        for module, path in known.items()
    }
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"cycle: {' -> '.join((*above, module))}"
        if module not in done:
            for target in sorted(graph[module]):
                if not module.startswith(f"{target}."):  # a package's own parent is there already
                    walk(target, (*above, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def loaded_after(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after running `code`."""
    return {name.partition(".")[0] for name in modules_after(code)}


def modules_after(code: str) -> set[str]:
    """Modules in a fresh interpreter after running `code`."""
    program = (
        f"import sys, json, io, contextlib\ntry:\n    with contextlib.redirect_stdout(io.StringIO()):\n        {code}\n"
    )
    program += "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
    program += "print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def run_cli(*args: str) -> str:
    """Code that runs `phi3v-data`."""
    return f"import sys; sys.argv = ['phi3v-data', *{args!r}]; from phi3v_data.cli.app import main; main()"


def test_the_help_of_the_program_loads_nothing_heavy() -> None:
    assert not loaded_after(run_cli("--help")) & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    assert not loaded_after(run_cli(command, "--help")) & (HEAVY - {"pydantic"})  # recent Typer parses with pydantic


def test_importing_the_package_loads_almost_nothing() -> None:
    assert not loaded_after("import phi3v_data") & (HEAVY | {"typer", "rich", "msgspec", "yaml"})


def test_explaining_a_code_needs_no_media_library() -> None:
    assert not loaded_after(run_cli("explain", "bom")) & (HEAVY - {"pydantic"})


def run_commands(*lines: str) -> str:
    """Code that runs `phi3v-data` once for each line."""
    return (
        f"import sys\n        for line in {list(lines)!r}:\n            sys.argv = ['phi3v-data', *line.split()]\n"
        "            from phi3v_data.cli.app import main\n            try:\n                main()\n"
        "            except SystemExit as stop:\n                assert not stop.code, (line, stop.code)"
    )


ROWS = ROOT / "tests/data/chat_formats/sharegpt/data_messages.json"
UNUSED = {
    *("torch", "transformers", "tokenizers", "cv2", "av", "decord", "datasets", "pandas", "pyarrow", "ray", "scipy"),
    *("huggingface_hub", "webdataset", "requests", "ssl", "http.client", "matplotlib", "numpy.random", "numpy.fft"),
}


@pytest.fixture(scope="module")
def imported_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A set of five rows, and the modules of the process that imported it."""
    made = tmp_path_factory.mktemp("start") / "set"
    return made, modules_after(run_cli("import", "sharegpt", str(ROWS), "--out_dir", str(made), "--workers", "0"))


def test_importing_rows_loads_no_framework(imported_set: tuple[Path, set[str]]) -> None:
    assert not imported_set[1] & (UNUSED - {"ssl", "http.client"})  # of --fetch


def test_validating_a_directory_loads_no_other_formats(imported_set: tuple[Path, set[str]]) -> None:
    loaded = modules_after(run_cli("validate", str(imported_set[0])))
    others = {"phi3v_data.lint.runner", "phi3v_data.lint.directory", "phi3v_data.formats.openai"}
    others |= {
        "phi3v_data.formats.drafts",
        "phi3v_data.formats.fetch",
        "phi3v_data.formats.importing",
        "phi3v_data.exporting",
        "phi3v_data.report.html",
    }
    assert not loaded & (UNUSED | others)


def test_commands_that_read_a_directory_load_no_framework(imported_set: tuple[Path, set[str]], tmp_path: Path) -> None:
    made, out = imported_set[0], tmp_path
    loaded = modules_after(
        run_commands(
            f"export sharegpt {made} --out {out}/exported",
            f"stats {made}",
            f"preview {made}",
            f"clean {made} {out}/cleaned",
            f"split {made} {out}/divided --split train=0.6,val=0.4",
            f"merge {made} {out}/cleaned {out}/merged",
            f"card {out}/merged",
            f"validate {ROWS} --format sharegpt --level quick",
        )
    )
    unused = {"phi3v_data.formats.drafts", "phi3v_data.formats.fetch", "phi3v_data.formats.importing"}
    assert not loaded & (UNUSED | unused)


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("chat nowhere", "MODEL nowhere: no such directory; "),
        ("chat tiny --image nowhere.png", "nowhere.png: No such file or directory\n"),
        ("serve nowhere --port 0", "MODEL nowhere: no such directory; "),
        ("merge nowhere out", "MODEL nowhere: no such directory; "),
        ("merge nowhere --check vllm", "MODEL nowhere: no such directory; "),
        ("eval --data_dir {set} --eval_split train --model_name_or_path nowhere", "--model_name_or_path nowhere: no "),
        ("eval --data_dir nowhere", "nowhere: no such directory"),
        ("eval --data_dir {set} --eval_split train --metric nothing", "--metric nothing: no such metric; "),
        ("predict --data_dir {set} --eval_split train --model_name_or_path nowhere", "--model_name_or_path nowhere: "),
        ("predict --data_dir {set} --output_dir s3://a/b", "--output_dir s3://a/b: is an address"),
        ("inspect {set} --split train --model_name_or_path nowhere", "--model_name_or_path nowhere: no such directory"),
        ("push nowhere --repo a/b", "nowhere: no such directory; "),
    ],
)
def test_what_is_missing_is_said_before_a_framework_is_loaded(
    imported_set: tuple[Path, set[str]], tmp_path: Path, command: str, sentence: str
) -> None:
    for framework in ("torch", "transformers", "peft"):
        (tmp_path / f"{framework}.py").write_text("raise RuntimeError(__name__)")
    done = subprocess.run(
        [sys.executable, "-m", "phi3v_train", *command.format(set=imported_set[0]).split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sentence}")


def test_the_first_collection_of_garbage_is_put_off_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect(0)  # ends what a command called by another test has put off
    usual, callbacks = gc.get_threshold(), list(gc.callbacks)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    start_lightly()
    start_lightly()
    assert gc.get_threshold() == (100_000, *usual[1:])
    gc.collect(0)
    assert gc.get_threshold() == usual
    assert gc.callbacks == callbacks
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
