"""The command line as a user meets it: real processes, their streams and exit codes."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from phi3v_data.cli import base as cli
from phi3v_data.cli.app import COMMANDS
from phi3v_data.problems import PROBLEMS, write_example
from phi3v_data.schema import Report, Sample, Turn

APP = "from phi3v_data.cli.app import main; main()"
PLAIN = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS")}
PLAIN |= {"COLUMNS": "120", "TERMINAL_WIDTH": "120"}


def run(*args: str | Path, code: str = APP, **env: str) -> subprocess.CompletedProcess[str]:
    """`phi3v-data ARGS`, streams captured."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=PLAIN | env, timeout=120, check=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A valid directory of two rows without images."""
    root = tmp_path / "sound"
    root.mkdir()
    for split in ("train", "val"):
        turn = Turn(user=f"What is {split}?", assistant="A split.")
        (root / f"s_{split}.jsonl").write_text(Sample(id=split, source="s", conversations=(turn,)).to_json() + "\n")
    return root


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A directory with one error."""
    root = tmp_path / "broken"
    root.mkdir()
    write_example(PROBLEMS["json-syntax"].example, root)
    return root


# ---- help ----------------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, spec in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(spec.help)}", done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example_and_snake_case(command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    examples = done.stdout.partition("Examples:")[2]
    assert f"phi3v-data {command}" in examples
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", done.stdout.partition("Examples:")[0]))
    written_out = {"--allow-rejects"}
    assert {option for option in options if "-" in option[2:]} <= written_out | {"--no-tqdm"}


@pytest.mark.parametrize("columns", ["60", "80", "127", "128", "200"])
def test_help_cuts_no_name_at_any_width(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from phi3v_train.cli.app import COMMANDS as TRAIN_COMMANDS

    monkeypatch.setenv("COLUMNS", columns)
    for program, commands in (("phi3v-data", COMMANDS), ("phi3v-train", TRAIN_COMMANDS)):
        for name in commands:
            with pytest.raises(SystemExit):
                cli.make_group(program, "", commands).main(args=[name, "--help"], prog_name=program)
            shown = capsys.readouterr().out
            assert "Usage" in shown
            assert "…" not in shown, name


def test_help_shows_a_default_of_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from phi3v_train.cli.app import COMMANDS as TRAIN_COMMANDS

    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.make_group("phi3v-train", "", TRAIN_COMMANDS).main(args=["run", "--help"], prog_name="phi3v-train")
    words = " ".join(capsys.readouterr().out.split())
    assert "--lora_dropout FLOAT Dropout before the adapters. [default: 0.0]" in words
    assert "--seed INTEGER Seed of the order, dropout, adapters and random answers. [default: 0]" in words


def test_nothing_at_all_shows_help() -> None:
    done = run()
    assert "Usage" in done.stdout + done.stderr
    assert done.returncode in (0, 2)  # click has answered both, by version


def test_version() -> None:
    assert re.fullmatch(r"phi3v \d+\.\d+\.\d+\S*\n", run("--version").stdout)


def test_pipes_and_no_color_get_plain_text(directory: Path) -> None:
    for args in (["--help"], ["explain", "bom"], ["validate", directory]):
        assert "\x1b" not in run(*args).stdout
        assert "\x1b" not in run(*args, NO_COLOR="1").stdout


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_an_unknown_command_is_answered_with_its_neighbour() -> None:
    done = run("validat", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no command 'validat'; did you mean 'validate'? See 'phi3v-data --help'.\n"
    assert run("nonsense").stderr == "error: no command 'nonsense'; see 'phi3v-data --help'\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("validate . --nope", "no option '--nope' of 'phi3v-data validate'; see 'phi3v-data validate --help'"),
        ("split . --out_dir o", "no option '--out_dir' of 'phi3v-data split'; see 'phi3v-data split --help'"),
        (
            "validate . --num-crop 4",
            "no option '--num-crop' of 'phi3v-data validate'; did you mean '--num_crops'? "
            "See 'phi3v-data validate --help'.",
        ),
        (
            "validate . -num_crops 4",
            "no option '-num_crops' of 'phi3v-data validate'; did you mean '--num_crops'? "
            "See 'phi3v-data validate --help'.",
        ),
        ("--versoin", "no option '--versoin' of 'phi3v-data'; did you mean '--version'? See 'phi3v-data --help'."),
        ("validate", "'phi3v-data validate' needs PATH; see 'phi3v-data validate --help'"),
        ("import", "'phi3v-data import' needs FORMAT, SRC and --out_dir DIR; see 'phi3v-data import --help'"),
        ("merge --name x", "'phi3v-data merge' needs DIR... OUT; see 'phi3v-data merge --help'"),
        ("validate a b c", "'phi3v-data validate' has no place for 'b' 'c'; see 'phi3v-data validate --help'"),
        ("validate . --num_crops", "--num_crops needs a value; see 'phi3v-data validate --help'"),
        ("validate . --quiet=1", "--quiet takes no value; see 'phi3v-data validate --help'"),
        ("validate . --level half", "--level must be 'quick' or 'full', not 'half'; see 'phi3v-data validate --help'"),
        ("validate . --num_crops 0", "--num_crops must be at least 1, not '0'; see 'phi3v-data validate --help'"),
        (
            "validate . --max-problems x",
            "--max_problems must be a whole number, not 'x'; see 'phi3v-data validate --help'",
        ),
        ("convert ucf101 --limit x", "--limit must be a whole number, not 'x'; see 'phi3v-data convert ucf101 --help'"),
        (
            "convert ucf101 --frame 4",
            "no option '--frame' of 'phi3v-data convert ucf101'; did you mean '--frames'? "
            "See 'phi3v-data convert ucf101 --help'.",
        ),
        ("convert --nope", "no option '--nope' of 'phi3v-data convert'; see 'phi3v-data convert --help'"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_one_sentence(
    args: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run(cli.make_group("phi3v-data", "", COMMANDS), args.split())
    assert (end.value.code, *capsys.readouterr()) == (2, "", f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("chat m --temperature 3", "--temperature must be at most 2.0, not '3'; see 'phi3v-train chat --help'"),
        (
            "merge a --check x",
            "--check must be 'vllm', 'mlx' or 'transformers', not 'x'; see 'phi3v-train merge --help'",
        ),
        ("push a", "'phi3v-train push' needs --repo OWNER/NAME; see 'phi3v-train push --help'"),
    ],
)
def test_phi3v_train_says_it_in_the_same_words(args: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    from phi3v_train.cli.app import COMMANDS as TRAIN_COMMANDS

    with pytest.raises(SystemExit) as end:
        cli.run(cli.make_group("phi3v-train", "", TRAIN_COMMANDS), args.split())
    assert (end.value.code, *capsys.readouterr()) == (2, "", f"error: {sentence}\n")


def test_a_mistake_is_one_line_without_traceback(tmp_path: Path) -> None:
    for args in (["validate", tmp_path / "nowhere"], ["explain", "no-such"], ["schema", "no-such"]):
        done = run(*args)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", done.stderr)


@pytest.mark.parametrize("command", ["validate", "stats", "convert ucf101 --out_dir x --source"])
def test_a_path_that_is_too_long_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a" * 300
    with pytest.raises(SystemExit) as end:
        cli.run(cli.make_group("phi3v-data", "", COMMANDS), [*command.split(), name])
    assert (end.value.code, *capsys.readouterr()) == (2, "", f"error: {name}: File name too long\n")


# ---- what ends a command -------------------------------------------------------------------------------------------

TOY = textwrap.dedent(
    """
    import sys, types
    from phi3v_data.cli.base import CommandSpec, command_info, make_group, run
    from phi3v_data.errors import UserError
    @command_info(examples=["toy act"], interrupted="Go on with the same command.")
    def act(what: str, num_crops: int = 16, no_tqdm: bool = False, some_flag: bool = False) -> None:
        '''Do it.'''
        if what == "user": raise UserError("a.jsonl:3: field 'id' is missing; add it")
        if what == "full": raise OSError(28, "No space left on device", "out/x")
        if what == "extra": import flash_attn
        if what == "own": import phi3v_nothing
        if what == "bug": raise KeyError("x")
        if what == "file": open("/proc/nowhere")
        if what == "wait":
            import time
            print("ready", flush=True)
            time.sleep(60)
        if what == "flood":
            while True: print("line")
        print(num_crops, no_tqdm, some_flag)
    module = types.ModuleType("toy")
    module.act = act
    sys.modules["toy"] = module
    run(make_group("toy", "A toy.", {"act": CommandSpec("toy:act", "Act.")}))
    """
)


@pytest.mark.parametrize(
    "args",
    [
        ["--num_crops", "4", "--no_tqdm", "--some_flag"],
        ["--num-crops", "4", "--no-tqdm", "--some-flag"],
        ["--num-crops=4", "--no_tqdm", "--no-some_flag", "--some_flag"],
    ],
)
def test_both_spellings_of_options(args: list[str]) -> None:
    assert run("act", "x", *args, code=TOY).stdout == "4 True True\n"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("user", "error: a.jsonl:3: field 'id' is missing; add it\n"),
        ("full", "error: out/x: No space left on device\n"),
        (
            "extra",
            "error: this command needs the package 'flash_attn', which is not installed: "
            "pip install -c constraints.txt -e '.[flash]' in a clone of phi3v\n",
        ),
    ],
)
def test_obstacles_are_one_line(what: str, words: str) -> None:
    done = run("act", what, code=TOY)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", words)


@pytest.mark.parametrize(
    ("what", "kind"), [("bug", "KeyError"), ("own", "ModuleNotFoundError"), ("file", "FileNotFound")]
)
def test_a_bug_of_phi3v_is_not_a_finding_about_the_data(what: str, kind: str) -> None:
    done = run("act", what, code=TOY)
    assert (done.returncode, done.stdout) == (2, "")
    assert kind in done.stderr
    assert done.stderr.endswith("a bug in phi3v, not in your data; please report the lines above\n")


def test_ctrl_c_says_how_to_resume() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TOY, "act", "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=PLAIN
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "\nStopped. Go on with the same command.\n"


def test_a_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TOY, "act", "flood"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == ""
    assert process.wait(timeout=30) == 141


def test_a_pipe_closed_before_the_last_flush_is_quiet() -> None:
    command = f"{sys.executable} -c '{APP}' schema sample | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=PLAIN, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where it all fitted into the pipe before `true` ended


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        ("validate {}", "80"),
        ("validate {} --json", "80"),
        ("stats {}", "80"),
        ("converters", "80"),
        ("explain", "80"),
        ("--version", "80"),
        ("--help", "80"),
        ("validate --help", "80"),  # click
        ("validate --help", "200"),  # rich
    ],
)
def test_a_pipe_without_a_reader_is_141_whatever_prints(directory: Path, command: str, columns: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    args = command.format(directory).split()
    env = PLAIN | {"COLUMNS": columns, "TERMINAL_WIDTH": columns}
    with open(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", APP, *args], stdout=pipe, stderr=subprocess.PIPE, text=True, env=env, check=False
        )
    assert (done.returncode, done.stderr) == (141, "")


# ---- the commands --------------------------------------------------------------------------------------------------


def test_validate_says_ok_and_exits_with_zero(directory: Path) -> None:
    done = run("validate", directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"ok: {directory}, 2 samples, level full; no findings"


def test_validate_names_the_problem_and_exits_with_one(broken: Path) -> None:
    done = run("validate", broken, "--quiet")
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^train\.jsonl:2 json-syntax: .+\n  .*phi3v-data explain json-syntax$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith(f"problems: {broken}, 2 samples, level full; 1 error")


def test_validate_json_is_one_document_even_with_a_page(broken: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    done = run("validate", broken, "--json", "--html", page, "--level", "quick", "--max-problems", "1")
    assert done.returncode == 1
    report = Report.model_validate_json(done.stdout)
    assert report.level == "quick"
    assert report.summary.problems == {"json-syntax": 1}
    assert done.stderr == f"HTML report: {page}\n"
    assert page.read_bytes().startswith(b"<!doctype html>")


def test_strict_makes_a_warning_an_error(tmp_path: Path) -> None:
    write_example(PROBLEMS["bom"].example, tmp_path)
    assert run("validate", tmp_path).returncode == 0
    strict = run("validate", tmp_path, "--strict")
    assert strict.returncode == 1
    assert strict.stdout.splitlines()[-1].startswith("problems: ")


def test_a_page_that_cannot_be_written_is_one_line(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "page.html", directory):
        done = run("validate", directory, "--html", target)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(rf"error: {re.escape(str(target))}: [^\n]+\n", done.stderr)


def test_explain_prints_a_code_or_all_or_the_page() -> None:
    assert run("explain", "image-missing").stdout.startswith("image-missing  error\n")
    listed = run("explain").stdout
    assert all(code in listed for code in PROBLEMS)
    assert run("explain", "--markdown").stdout.startswith("# Problem codes\n")
    assert "did you mean 'image-missing'" in run("explain", "image-mising").stderr


def test_schema_prints_one_or_all_and_writes_files(tmp_path: Path) -> None:
    assert json.loads(run("schema", "sample").stdout)["title"] == "Sample"
    assert sorted(json.loads(run("schema").stdout)) == ["manifest", "reject", "report", "sample", "table-map"]
    done = run("schema", "--out_dir", tmp_path / "schemas")
    assert done.returncode == 0
    written = sorted(path.name for path in (tmp_path / "schemas").iterdir())
    assert written == [f"{name}.schema.json" for name in ("manifest", "reject", "report", "sample", "table-map")]


# ---- streams that are closed, and texts that would steer a terminal -------------------------------------------------


def shell(command: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """`sh -c COMMAND`, in which `$@` is the program with these arguments."""
    words = ["sh", "-c", command, "sh", sys.executable, "-c", APP, *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, env=PLAIN, timeout=120, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_validate_with_closed_streams_ends_as_with_open_ones(broken: Path, tmp_path: Path, closed: str) -> None:
    page = tmp_path / "page.html"
    done = shell(f'"$@" {closed}', "validate", broken, "--html", page)
    assert done.returncode == 1
    assert (done.stdout == "") is (closed != "2>&-")
    assert done.stderr == (f"HTML report: {page}\n" if closed == ">&-" else "")
    assert page.read_bytes().startswith(b"<!doctype html>")
    assert page.read_bytes().endswith(b"</html>\n")
    stored = json.loads((broken / ".phi3v/validate/receipt.json").read_text())
    assert stored["report"]["summary"]["problems"] == {"json-syntax": 1}


@pytest.mark.parametrize("args", [["explain"], ["schema"], ["converters"], ["--version"], ["stats", "DIR"]])
def test_other_commands_with_closed_streams(directory: Path, args: list[str]) -> None:
    done = shell('"$@" <&- >&-', *[str(directory) if arg == "DIR" else arg for arg in args])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_training_commands_with_closed_streams() -> None:
    command = [
        "sh",
        "-c",
        '"$@" <&- >&-',
        "sh",
        sys.executable,
        "-c",
        APP.replace("phi3v_data", "phi3v_train"),
        "recipes",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=PLAIN, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_mistake_with_closed_stderr_exits_with_two(tmp_path: Path) -> None:
    assert shell('"$@" >&- 2>&-', "validate", tmp_path / "nowhere").returncode == 2


def test_an_output_that_cannot_be_written_is_one_sentence(directory: Path) -> None:
    for command in (["schema"], ["--version"], ["explain", "image-mode"]):  # more than the buffer of stdout, and less
        done = shell('"$@" > /dev/full', *command)
        assert done.returncode == 2
        assert done.stderr == "error: the output cannot be written: No space left on device\n"


EVIL = "\x1b]0;stolen\x07\x9b31m\u202ebad"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A set whose every name and text steers a terminal; one split cannot be trained on."""
    root = tmp_path / f"set{EVIL}"
    root.mkdir()
    for split in ("train", "val", f"odd{EVIL}"):
        rows = [
            {
                "id": f"{split}{n}{EVIL}",
                "source": f"s{EVIL}",
                "group": f"g{n}{EVIL}",
                "conversations": [{"images": [f"{EVIL}.png"][: n % 2], "user": f"What{n}{EVIL}", "assistant": EVIL}],
                "meta": {f"key{EVIL}": EVIL},
                "answers": [EVIL],
            }
            for n in range(4)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"name{EVIL}_{split}.jsonl").write_text(lines + f"{{{EVIL}\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "args",
    [
        ["validate", "DIR"],
        ["validate", "DIR", "--json"],
        ["validate", "DIR", "--html", f"OUT{EVIL}.html"],
        ["stats", "DIR"],
        ["preview", "DIR"],
        ["clean", "DIR", f"OUT{EVIL}"],
        ["split", "DIR", "OUT", "--split", "train=0.5,val=0.5"],
        ["merge", "DIR", f"OUT{EVIL}", "OUT"],
        ["card", "DIR"],
        ["explain", EVIL],
        ["convert", "table", "--source", "DIR", "--map", f"{EVIL}.yaml", "--out_dir", "OUT"],
        ["convert", EVIL, "--source", "DIR", "--out_dir", "OUT"],
    ],
)
def test_no_command_prints_what_steers_a_terminal(
    evil: Path, tmp_path: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [arg.replace("DIR", str(evil)).replace("OUT", str(tmp_path / "out")) for arg in args]
    with pytest.raises(SystemExit):
        cli.run(cli.make_group("phi3v-data", "", COMMANDS), words)
    out, errors = capsys.readouterr()
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + errors) == []
    if "--json" in args:
        assert json.loads(out)["dir"] == str(evil)
    else:
        assert "stolen" in out + errors


def test_on_a_terminal_the_only_escape_codes_are_our_own(evil: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", APP, "validate", str(evil)],
        stdout=terminal,
        stderr=terminal,
        env=PLAIN | {"TERM": "xterm"},
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(controller, 4096):
            shown += piece
    os.close(controller)
    assert process.wait(timeout=30) == 1
    assert b"\x1b[1;31m" in shown  # our own colours
    assert b"stolen" in shown
    assert not re.search(b"\x1b\\]|\x07|\xc2\x9b|\xe2\x80\xae", shown)


# ---- progress ------------------------------------------------------------------------------------------------------

PROGRESS = textwrap.dedent(
    """
    import sys
    from phi3v_data import console
    console.PLAIN_INTERVAL = 0.0
    with console.progress_bar(quiet="quiet" in sys.argv) as progress:
        for n in range(0, 101, 50):
            progress("images", n, 100)
        progress("rows", 7, None)
    print("result")
    """
)


def test_progress_is_plain_lines_on_stderr_if_that_is_not_a_terminal() -> None:
    done = run(code=PROGRESS)
    assert done.stdout == "result\n"
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"images: 50 of 100 \(50 %\), [\d,.e+]+/s, .+ left", lines[1])
    assert lines[-1].startswith("rows: 7, ")
    assert "\x1b" not in done.stderr


def test_quiet_means_quiet() -> None:
    done = run("quiet", code=PROGRESS)
    assert (done.stdout, done.stderr) == ("result\n", "")


def test_progress_is_a_bar_on_a_terminal() -> None:
    controller, terminal = pty.openpty()
    env = PLAIN | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRESS], stdout=subprocess.PIPE, stderr=terminal, text=True, env=env
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(controller, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.stdout is not None
        assert process.stdout.read() == "result\n"
    os.close(controller)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "100/100" in text
    assert "images" in text
    assert "\x1b[" in shown.decode()


def test_an_unknown_schema_is_answered_in_sentences() -> None:
    done = run("schema", "zzz")
    assert done.stderr == "error: no schema 'zzz'. The schemas are sample, manifest, reject, report, table-map.\n"
    assert "table-map" in run("schema", "--help").stdout


def test_the_list_of_converters_fits_the_terminal() -> None:
    lines = run("converters", COLUMNS="80").stdout.splitlines()
    assert lines[0] == "cauldron  Any configuration of the_cauldron → conversations of one or several"
    assert lines[1] == "    turns. (built in)"
    assert max(map(len, lines)) <= 80


def test_a_wrong_name_in_the_manifest_is_named_as_a_name(directory: Path) -> None:
    manifest = {
        "format": 1,
        "name": "s",
        "task": "vqa",
        "splits": {"train": {"rows": 1, "images": 0, "files": {"../x.jsonl": ""}}},
    }
    (directory / "dataset.json").write_text(json.dumps(manifest))
    done = run("validate", directory)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == (
        "dataset.json splits.train.files manifest-invalid: the name '../x.jsonl': "
        "a split's file is a .jsonl file in DIR itself, named without a path"
    )
    assert "[key]" not in done.stdout
