"""Mutation testing: make single seeded changes to the modules, one at a time, and run the tests on each.

    python benchmarks/mutants.py map                         # which test runs which line (the suite under coverage)
    python benchmarks/mutants.py run --number 200 --seed 1   # changes to all modules, each as likely as any other
    python benchmarks/mutants.py run --number 20 FILE...     # changes to some modules: `make mutants FILE=...`

A change is detected if a test fails that passes without it: the first failure of each test is repeated on the
unchanged code. For each one the tests that run its line go first, then tests of the files that run its function;
without `map`, the tests that name its module, then those of its folder. Limits are of CPU time, so that results do not
depend on what else the machine does.
Results are appended to `--out` as they come; the same command resumes. Works on a copy of the checkout, never on the
checkout itself. A change to a comment, a docstring, an annotation, a message or a type check is none; changes that
cannot alter behaviour are listed as survivors all the same and have to be told apart by reading.
"""

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("phi3v_data", "phi3v_train", "tests", "examples", "schemas", "docs", "benchmarks")
COPIED_FILES = ("pyproject.toml", "README.md", "constraints.txt", "CHANGELOG.md", "Makefile", "CONTRIBUTING.md")
LEFT_OUT = ("phi3v_data/problems/", "phi3v_train/recipes/", "__main__.py", "__init__.py")
"""Tables of words and settings, and modules that only name others."""

QUICK = "not slow and not gpu"
"""Tests that are run for a change."""

FEW = 25
"""This many of the tests that run a line are tried first; with fewer, tests found by name are tried at last."""

STAGE_SECONDS = 60
"""At most this many seconds of tests, as the map measured them, are run for a change at a time."""

SPARE_SECONDS = 60
"""CPU time that a process of the tests may use beyond twice their time in the map; more counts as noticed."""

WALL_FACTOR = 6
"""Tests are ended after this many times the CPU limit: they wait for something. That counts as noticed, too."""

COMPARISONS: dict[type, str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
ARITHMETIC: dict[type, str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
SWAPPED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "sorted": "list",
}


@dataclass(frozen=True)
class Mutant:
    """One change: a file of the checkout, the characters [start, end) of it and what is put in their place."""

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str
    kind: str
    function: tuple[int, int]

    @property
    def key(self) -> str:
        """Names the change among all others."""
        return f"{self.file}:{self.start}:{self.new}"


class Finder(ast.NodeVisitor):
    """Collects every change that can be made to a module."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.functions: list[tuple[int, int]] = [(1, len(self.starts))]
        self.found: list[Mutant] = []

    def offset(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def text(self, start: int, end: int) -> str:
        return self.source.encode()[start:end].decode()

    def add(self, kind: str, start: int, end: int, new: str, line: int) -> None:
        self.found.append(Mutant(self.file, line, start, end, self.text(start, end), new, kind, self.functions[-1]))

    def whole(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def replace(self, kind: str, node: ast.expr | ast.stmt, new: str) -> None:
        self.add(kind, *self.whole(node), new, node.lineno)

    def source_of(self, node: ast.expr) -> str:
        return self.text(*self.whole(node))

    def visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        assert node.end_lineno is not None
        self.functions.append((node.lineno, node.end_lineno))
        for default in [*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]:
            self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.functions.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_function  # noqa: N815 - ast's names

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Skip the text of an error: it is not behaviour, and whether it is raised is decided by the `if` above it."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Skip a statement for the type checker."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Skip text."""

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1 and (new := COMPARISONS.get(type(node.ops[0]))):
            left, right = node.left, node.comparators[0]
            self.replace("comparison", node, f"{self.source_of(left)} {new} {self.source_of(right)}")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        is_text = any(
            isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
            for side in (node.left, node.right)
        )
        if not is_text and (new := ARITHMETIC.get(type(node.op))):
            self.replace("arithmetic", node, f"({self.source_of(node.left)}) {new} ({self.source_of(node.right)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word = " or " if isinstance(node.op, ast.And) else " and "
        self.replace("and/or", node, word.join(f"({self.source_of(value)})" for value in node.values))
        for dropped in range(len(node.values)):
            kept = [value for index, value in enumerate(node.values) if index != dropped]
            same = " and " if isinstance(node.op, ast.And) else " or "
            self.replace("condition dropped", node, same.join(f"({self.source_of(value)})" for value in kept))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.replace("not/minus dropped", node, f"({self.source_of(node.operand)})")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if self.source_of(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'", '__name__ == "__main__"'):
            return
        self.replace("if never", node.test, "False")
        self.replace("if always", node.test, "True")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.replace("one branch", node, f"({self.source_of(node.body)})")
        self.replace("one branch", node, f"({self.source_of(node.orelse)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.replace("constant", node, str(not node.value))
        elif isinstance(node.value, int):
            self.replace("constant", node, str(node.value + 1))
        elif isinstance(node.value, float):
            self.replace("constant", node, repr(node.value * 2 or 1.0))

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if isinstance(node.value, ast.Call | ast.Await):
            self.replace("call dropped", node, "None")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        name = (
            function.id
            if isinstance(function, ast.Name)
            else function.attr
            if isinstance(function, ast.Attribute)
            else ""
        )
        if name in SWAPPED and isinstance(function, ast.Name):
            self.replace("function", function, SWAPPED[name])
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            self.replace("returns None", node.value, "None")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace("update dropped", node, "pass")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace("jump", node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self.replace("jump", node, "continue")

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None and not isinstance(bound, ast.Constant):
                self.replace("slice", bound, f"({self.source_of(bound)}) + 1")
        self.generic_visit(node)


def mutants_of(file: str) -> list[Mutant]:
    """Every change that can be made to a module of the checkout and still parses."""
    source = (ROOT / file).read_text(encoding="utf-8")
    finder = Finder(file, source)
    finder.visit(ast.parse(source))
    return [each for each in finder.found if each.old != each.new and _parses(changed(source, each))]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def changed(source: str, mutant: Mutant) -> str:
    """The module with the change made."""
    data = source.encode()
    return (data[: mutant.start] + mutant.new.encode() + data[mutant.end :]).decode()


def modules() -> list[str]:
    """Modules that are changed: all of both packages but tables and names."""
    found = [
        path.relative_to(ROOT).as_posix()
        for name in ("phi3v_data", "phi3v_train")
        for path in (ROOT / name).rglob("*.py")
    ]
    return sorted(name for name in found if not any(part in name for part in LEFT_OUT))


def choose(files: list[str], number: int, seed: int) -> list[Mutant]:
    """A seeded draw, in which each change of each module is as likely as any other, at most one per line."""
    every = [mutant for file in files for mutant in mutants_of(file)]
    random.Random(seed).shuffle(every)
    lines: set[tuple[str, int]] = set()
    chosen: list[Mutant] = []
    for mutant in every:
        if len(chosen) == number:
            break
        if (mutant.file, mutant.line) not in lines:
            lines.add((mutant.file, mutant.line))
            chosen.append(mutant)
    return chosen


# Which tests run which line


PLUGIN = """
import os, sys, coverage, pytest

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    os.environ["MUTANTS_TEST"] = item.nodeid
    current = coverage.Coverage.current()
    if current is not None:
        current.switch_context(item.nodeid)
    yield

@pytest.hookimpl
def pytest_runtest_logreport(report):
    if report.when == "call":
        with open(os.environ["MUTANTS_TIMES"], "a") as file:
            file.write(f"{report.nodeid}\\t{report.duration:.3f}\\t{report.outcome}\\n")
"""


def make_map(cache: Path, arguments: list[str]) -> None:
    """Run the quick suite under coverage, children included, and keep which test ran which line."""
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    (cache / "mutants_plugin.py").write_text(PLUGIN)
    config = cache / "coveragerc"
    config.write_text(
        f"[run]\nsource_pkgs = phi3v_data, phi3v_train\nparallel = true\ndata_file = {cache / 'data'}\n"
        "context = ${MUTANTS_TEST}\npatch = subprocess, _exit\n"
        "disable_warnings = no-data-collected, module-not-measured, module-not-imported\n"
    )
    environment = {
        **os.environ, "MUTANTS_TEST": "", "MUTANTS_TIMES": str(cache / "times"), "PYTHONPATH": f"{ROOT}:{cache}",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "coverage",
        "run",
        f"--rcfile={config}",
        "-m",
        "pytest",
        "-q",
        "-p",
        "mutants_plugin",
    ]
    subprocess.run([*command, "-m", QUICK, *arguments], cwd=ROOT, env=environment, check=False)
    subprocess.run(
        [sys.executable, "-m", "coverage", "combine", f"--rcfile={config}", "-q"],
        cwd=ROOT,
        env=environment,
        check=False,
    )
    import coverage

    data = coverage.CoverageData(str(cache / "data"))
    data.read()
    lines: dict[str, dict[int, list[str]]] = {}
    for path in data.measured_files():
        if not Path(path).is_relative_to(ROOT):
            continue  # a copy of the packages that a test has made
        name = Path(path).relative_to(ROOT).as_posix()
        lines[name] = {
            line: sorted({part for context in contexts for part in context.split("|") if part})
            for line, contexts in data.contexts_by_lineno(path).items()
        }
    (cache / "map.json").write_text(json.dumps(lines))
    print(f"{cache / 'map.json'}: {len(lines)} modules")


@dataclass(frozen=True)
class Tests:
    """The tests that run each line, their durations, and those that fail without any change."""

    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]
    bad: set[str]
    confirmed: set[str] = field(default_factory=set)
    """Tests that passed on the unchanged code, after they had failed with a change."""

    @classmethod
    def read(cls, cache: Path) -> "Tests":
        """Read the output of `map`."""
        rows = [row.split("\t") for row in (cache / "times").read_text().splitlines() if row.count("\t") == 2]
        seconds: dict[str, float] = {}
        for name, duration, _ in rows:
            seconds[name] = float(duration)
        return cls(
            json.loads((cache / "map.json").read_text()),
            seconds,
            {name for name, _, outcome in rows if outcome == "failed"},
        )

    def limit(self, names: list[str]) -> int:
        """Seconds of CPU time that a process of these tests, or of all tests of these files, may use."""
        chosen = set(names)
        took = sum(seconds for name, seconds in self.seconds.items() if {name, name.partition("::")[0]} & chosen)
        return SPARE_SECONDS + round(2 * took)

    def stages(self, mutant: Mutant) -> Iterator[list[str]]:
        """Tests of the line, quickest first and few; those of the files that run the function; those found by name."""
        by_line = self.lines.get(mutant.file, {})
        if not by_line:
            yield self.named(mutant.file)
            return
        near = self.known(by_line.get(str(mutant.line), ()))
        near.sort(key=lambda name: self.seconds.get(name, 0.0))
        first = near[:FEW]
        if first:
            yield first
        low, high = mutant.function
        hits = Counter(
            name.partition("::")[0] for line, names in by_line.items() if low <= int(line) <= high for name in names
        )
        files = {file for file, _ in hits.most_common(8)}
        rest = [name for name in self.seconds if name.partition("::")[0] in files and name not in set(first)]
        if rest := self.known(rest):
            order = {name: place for place, name in enumerate(near)}
            rest.sort(key=lambda name: (order.get(name, len(near)), self.seconds[name]))
            total = accumulate(self.seconds[name] for name in rest)
            yield [name for name, until in zip(rest, total, strict=True) if until <= STAGE_SECONDS]
        if len(near) < FEW:  # children with an environment of their own are not measured
            yield self.named(mutant.file)

    def named(self, module: str) -> list[str]:
        """Without a map of lines: tests that name the module first, then those of its folder, the quickest files first.

        Whole files, as long as they take no more than `STAGE_SECONDS` together.
        """
        dotted = module.removesuffix(".py").replace("/", ".")
        folder = dotted.split(".")[1]
        seconds: dict[str, float] = defaultdict(float)
        for name, duration in self.seconds.items():
            seconds[name.partition("::")[0]] += duration
        texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in seconds if (ROOT / file).exists()}

        def distance(file: str) -> int:
            if re.search(rf"\b{re.escape(dotted)}\b", texts[file]) or Path(module).stem in Path(file).stem:
                return 0
            if f"tests/{folder}/" in file or re.search(rf"\b{re.escape(dotted.rpartition('.')[0])}\b", texts[file]):
                return 1
            return 2 if ("tests/train/" in file) == (dotted.startswith("phi3v_train")) else 3

        chosen, left = [], float(STAGE_SECONDS)
        for file in sorted(texts, key=lambda file: (distance(file), seconds[file])):
            if distance(file) < 3 and seconds[file] <= left:
                left -= seconds[file]
                chosen.append(file)
        return chosen

    def known(self, names: Any) -> list[str]:
        return [name for name in names if name in self.seconds and name not in self.bad]


def copy_checkout(folder: Path) -> None:
    """Copy the parts of the checkout that the tests need."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    if (ROOT / "benchmarks/results").is_dir():
        shutil.copytree(ROOT / "benchmarks/results", folder / "benchmarks/results")
    for name in COPIED_FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)


def in_child(folder: Path, arguments: list[str], plugin: object, seconds: int) -> str:
    """Run pytest on the copy in a forked process; empty if all tests passed, else why it ended."""
    pid = os.fork()
    if not pid:
        os.setsid()
        os.chdir(folder)
        # not this script's folder, whose sets.py would be found in place of tests/sets
        sys.path[:] = [str(folder), *(path for path in sys.path if Path(path) != Path(__file__).parent)]
        os.environ["PYTHONPATH"] = str(folder)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))  # of each process: children inherit it
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        status = 1
        try:
            import pytest

            aside = f"--basetemp={folder.parent / 'tmp'}"
            options = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", aside]
            status = int(pytest.main([*options, *arguments], plugins=[plugin]))
        finally:
            os._exit(status)
    deadline = time.monotonic() + WALL_FACTOR * seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "waits without end"
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what a broken launcher may have left
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        return "out of CPU time"
    return f"pytest ended with {code}" if code else ""


def run_tests(folder: Path, names: list[str], tests: Tests, marker: str) -> str:
    """Run tests of the copy: empty if all pass, else the first failure or why they ended."""
    listing = folder.parent / "failed"
    listing.unlink(missing_ok=True)

    class Recorder:
        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                listing.write_text(report.nodeid)

    left_out = [f"--deselect={name}" for name in sorted(tests.bad)]
    reason = in_child(folder, ["-m", marker, *left_out, *names], Recorder(), tests.limit(names))
    return listing.read_text() if reason and listing.exists() else reason


def first_failure(folder: Path, file: Path, texts: tuple[str, str], names: list[str], tests: Tests, marker: str) -> str:
    """The first test that fails with the changed text and passes with the unchanged one; empty if there is none."""
    source, mutated = texts
    while names:
        file.write_text(mutated, encoding="utf-8")
        by = run_tests(folder, names, tests, marker)
        file.write_text(source, encoding="utf-8")
        if not by or by in tests.confirmed:
            return by
        before = names[: names.index(by) + 1] if by in names else names
        again = run_tests(folder, before, tests, marker)
        if not again:
            tests.confirmed.update({by} & tests.seconds.keys())
            return by
        if again not in tests.seconds:
            print(f"a stage is left out, as it ends badly on the unchanged code: {again}", flush=True)
            return ""
        print(f"left out from now on, as it fails on the unchanged code: {again}", flush=True)
        tests.bad.add(again)
        names = [name for name in names if name != again]
    return ""


def preload() -> None:
    """Import what the tests take long to import, so that each change starts from there; never our own packages."""
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.phi3.modeling_phi3  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.startswith(("phi3v_data", "phi3v_train")) for name in sys.modules)


def run(mutants: list[Mutant], tests: Tests, out: Path, marker: str = QUICK) -> None:
    """Try each change that `out` has no result of, and append one."""
    done = {json.loads(line)["key"] for line in out.read_text().splitlines()} if out.exists() else set()
    preload()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # a killed test may leave a mount
        folder = Path(scratch) / "checkout"
        folder.mkdir()
        copy_checkout(folder)
        for number, mutant in enumerate(mutants):
            if mutant.key in done:
                continue
            source = (ROOT / mutant.file).read_text(encoding="utf-8")
            texts = source, changed(source, mutant)
            began = time.monotonic()
            by = ""
            ran = 0
            for stage in tests.stages(mutant):
                ran += len(stage)
                if by := first_failure(folder, folder / mutant.file, texts, stage, tests, marker):
                    break
            seconds = round(time.monotonic() - began, 1)
            result = {"key": mutant.key, "noticed_by": by, "tests": ran, "seconds": seconds, **asdict(mutant)}
            with out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{number + 1}/{len(mutants)} {mutant.file}:{mutant.line} {mutant.kind}: "
                f"{by or f'SURVIVED {ran} tests'} ({seconds} s)",
                flush=True,
            )


def report(out: Path) -> str:
    """Counts, and the survivors, as Markdown."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    noticed = sum(bool(row["noticed_by"]) for row in rows)
    lines = [f"{noticed} of {len(rows)} changes noticed ({100 * noticed / max(1, len(rows)):.1f} %)", ""]
    lines += ["| survivor | kind | change |", "| --- | --- | --- |"]
    for row in rows:
        if not row["noticed_by"]:
            old, new = (" ".join(row[name].split()).replace("|", "\\|")[:70] for name in ("old", "new"))
            lines.append(f"| `{row['file']}:{row['line']}` | {row['kind']} | `{old}` → `{new}` |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("map", "run", "list", "report"))
    parser.add_argument("files", nargs="*", help="modules to change, or for map: arguments of pytest")
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--share", default="1/1", help="K/N: every N-th change beginning with the K-th, for several processes"
    )
    parser.add_argument(
        "--marker", default=QUICK, help="pytest's -m; 'not gpu' runs slow tests of the chosen files too"
    )
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "phi3v-mutants")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_intermixed_args()
    out = arguments.out or arguments.cache / f"results-{arguments.seed}.jsonl"
    if arguments.what == "map":
        make_map(arguments.cache, arguments.files)
        return
    if arguments.what == "report":
        print(report(out))
        return
    files = [Path(file).resolve().relative_to(ROOT).as_posix() for file in arguments.files] or modules()
    chosen = choose(files, arguments.number, arguments.seed)
    if arguments.what == "list":
        for mutant in chosen:
            print(f"{mutant.file}:{mutant.line} {mutant.kind}: {mutant.old!r} -> {mutant.new!r}")
        return
    first, step = map(int, arguments.share.split("/"))
    run(chosen[first - 1 :: step], Tests.read(arguments.cache), out, arguments.marker)
    print(report(out))


if __name__ == "__main__":
    main()
