"""Every shell block of README.md and docs/*.md is run on small inputs, or the table below says why it is not.

docs/converters.md and docs/sets.md show what commands print, and are compared with it (`test_converters_page.py` and
below); the blocks of the other pages only have to work.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from converter_sources import docvqa_official, encoded, memes_official, nlvr2_official, put

import phi3v_data
from phi3v_data.cli.app import COMMANDS as DATA_COMMANDS
from phi3v_data.cli.base import make_group
from phi3v_train.cli.app import COMMANDS as TRAIN_COMMANDS
from phi3v_train.models.phi3v.tiny import save_tiny

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
SHELL = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)
PROGRAMS = {"phi3v-data": DATA_COMMANDS, "phi3v-train": TRAIN_COMMANDS}

NOT_RUN = {
    "phi3v-train push": "needs the Hub; tests/train/test_push.py has one on loopback",
    "make ": "CI itself runs it",
    "python3 -m venv": "CI makes its environment in this way",
    "FRAME=": "a variable for the next command",
    "curl": "tests/serving/test_server.py runs it",
    "git clone": "needs a network",
    "hf download": "needs the Hub",
    "pip install": "CI installs in this way before any test",
    "torchrun": "tests/train/test_ddp.py runs torchrun with two processes",
    "export RAY_AUTH_MODE": "for the next commands",
    "ray get-auth-token": "writes below the home folder",
    "ray start": "tests/test_ray.py starts a cluster",
    "examples/ray_job.sh": "tests/test_ray.py runs the script on it",
    "phi3v-data export webdataset ucf101 --out s3://": "needs a store; tests/remote has one on loopback",
    "phi3v-data validate s3://": "needs a store; tests/remote has one on loopback",
    "phi3v-train run --data_dir s3://": "needs a store; tests/remote has one on loopback",
    "moto_server": "tests/remote starts one",
    "export AWS_ENDPOINT_URL": "names that server",
    'python -c "__import__': "needs that server",
    "examples/bucket.sh": "tests/remote/test_bucket_exports.py runs it against such a server",
    "sbatch --array": "tests/test_slices.py runs the tasks of the script",
    "sbatch": "tests/train/test_machines.py runs the script with a stand-in for Slurm",
    "az ml": "needs an account",
    "phi3v-train run --data_dir DIR --num_processes 8": "tests/train/test_ddp.py and test_fsdp.py run two processes",
    "phi3v-train run --data_dir DIR --output_dir /shared/run": "tests/train/test_machines.py runs two machines",
    "phi3v-train run --data_dir demo_out/ucf101 --model_name_or_path tiny --device cpu --output_dir out": (
        "tests/train/test_fsdp.py runs two processes"
    ),
    "phi3v-train chat": "tests/serving/test_terminal.py gives it lines; here it would wait for them",
    "phi3v-train serve": "tests/serving/test_server.py starts it; it ends with a signal",
    "DS_BUILD_OPS=0 pip install": "CI installs DeepSpeed in this way before the slow tests",
    "phi3v-train run --data_dir demo_out/ucf101 --recipe demo-ucf101-tiny --batch_size_per_gpu 2": (
        "tests/train/test_zero.py runs DeepSpeed, which the quick tests' environment does not have"
    ),
    "phi3v-train merge runs/ucf101/model merged --check vllm": "exits with 1 for a tiny model: test_merge_check.py",
    "phi3v-train merge demo_out/zero2/": "tests/train/test_zero.py merges such a checkpoint",
    "phi3v-train run --data_dir data/docvqa --recipe docvqa-full-bf16": "eight GPUs; test_fsdp.py runs two processes",
}
"""How a command begins -> why it is not run here."""

ONE_STEP = (
    "--model_name_or_path tiny --device cpu --max_steps 1 --num_crops 1 --batch_size 2 --batch_size_per_gpu 1 "
    "--num_workers 0 --max_new_tokens 1 --eval_limit 1 --report_to none --warmup_steps 0"
)
SMALL = {
    "convert ucf101 --out_dir": f"--source {ROOT}/examples/data/UCF101_subset --limit 2",
    "convert ucf101 --source examples/data/UCF101_subset": "--limit 4",
    "convert ucf101 --source UCF101_subset.tar.gz": f"--source {ROOT}/examples/data/UCF101_subset --limit 4",
    "run": ONE_STEP,
    "inspect data/docvqa --rows 0-9": "--model_name_or_path tiny --num_crops 1 --rows 0-1",
    "inspect data/docvqa --random": "--model_name_or_path tiny --num_crops 1",
    "eval --data_dir": "--device cpu --eval_limit 1 --max_new_tokens 1 --num_workers 0",
    "predict": "--device cpu --eval_limit 1 --max_new_tokens 1 --num_workers 0",
}
"""Options that make a command small; they come last, so they win."""


def commands(block: str) -> list[str]:
    """The commands of a block, each on one line, without comments."""
    block = re.sub(r"^cat > .*?^END\n", "", block, flags=re.DOTALL | re.MULTILINE)  # a file of settings
    block = re.sub(r"'\{.*?\}'$", "'{}'", block, flags=re.DOTALL | re.MULTILINE)  # JSON over several lines
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    return [part.strip() for line in lines for part in re.split(r";\s", re.sub(r"(^|\s)#.*", "", line)) if part.strip()]


def blocks(page: str) -> list[str]:
    return SHELL.findall(PAGES[page])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the pages name."""
    monkeypatch.chdir(tmp_path)
    docvqa_official(tmp_path / "spdocvqa")
    memes_official(tmp_path / "hateful_memes")
    put(tmp_path / "hateful_memes/img/26419.png", encoded(26419))  # missing there on purpose
    nlvr2_official(tmp_path / "nlvr2")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def execute(command: str, small: dict[str, str]) -> None:
    """Run one of our commands in this process."""
    words = shlex.split(command)
    program, arguments = words[0], words[1:]
    more = next((text for start, text in small.items() if " ".join(arguments).startswith(start)), "")
    with pytest.raises(SystemExit) as end:
        make_group(program, "", PROGRAMS[program]).main(args=[*arguments, *shlex.split(more)], prog_name=program)
    assert end.value.code in (0, None), f"{command}: exit code {end.value.code}"


def reason(command: str) -> str:
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), "")


def test_every_command_of_every_page_is_run_or_named() -> None:
    unknown = [
        f"{page}: {command}"
        for page in PAGES
        for block in blocks(page)
        for command in commands(block)
        if not reason(command) and command.split()[0] not in PROGRAMS
    ]
    assert unknown == []
    starts = [command for page in PAGES for block in blocks(page) for command in commands(block)]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in starts)] == []


def run_page(page: str, small: dict[str, str] = SMALL) -> int:
    """Run the blocks of a page one after another; the number of commands."""
    done = 0
    for block in blocks(page):
        for command in commands(block):
            if not reason(command) and command.split()[0] in PROGRAMS:
                execute(command, small)
                done += 1
    return done


def test_readme(place: Path) -> None:
    chats = ROOT / "tests/data/chat_formats/sharegpt"
    shutil.copytree(chats / "images", place / "images")
    shutil.copyfile(chats / "data_conversations.json", place / "data.json")
    put(place / "receipts/1.png", encoded(1))
    put(place / "receipts/1.txt", "What is the total?\n12.50\n")
    for number, name in enumerate(("DIR", "A", "B")):
        phi3v_data.convert("nlvr2", "nlvr2", name, seed=number)
    assert run_page("README.md") >= 10
    card = (place / "merged/README.md").read_text()
    assert "\nlicense: cc-by-3.0\n" in card
    assert "| ucf101 | Big Buck Bunny, (c) Blender Foundation, https://www.bigbuckbunny.org | cc-by-3.0 |" in card


@pytest.mark.slow
def test_training_page(place: Path) -> None:
    shutil.copytree(ROOT / "examples/data/UCF101_subset", place / "ucf")
    phi3v_data.convert("ucf101", place / "ucf", "demo_out/ucf101", limit=2)
    phi3v_data.convert("ucf101", place / "ucf", "DIR", limit=2)
    assert run_page("training.md") >= 20


def test_models_page(place: Path) -> None:
    """With the small Qwen3-VL that the page names."""
    phi3v_data.convert("nlvr2", "nlvr2", "DIR")
    small = ONE_STEP.replace("--model_name_or_path tiny ", "").replace("--num_crops 1 ", "")
    assert run_page("models.md", {**SMALL, "run": small}) == 3


def test_evaluation_page(place: Path) -> None:
    phi3v_data.convert("docvqa", "spdocvqa", "DIR", limit=2, unlabelled=True)
    save_tiny(place / "output/model")
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["evaluation.md"], re.DOTALL)
    put(place / "mine.py", code)
    assert run_page("evaluation.md") >= 3


def test_sets_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command prints what the page shows, in one folder from the first to the last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    phi3v_data.convert("ucf101", ROOT / "examples/data/UCF101_subset", "ucf")
    shutil.copytree("ucf", "broken", ignore=shutil.ignore_patterns(".phi3v"))
    val = Path("broken/ucf101_val.jsonl")
    lines = val.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0].replace(b".0.jpg", b".0.JPG")  # a path in the wrong letter case
    lines[1] = lines[1][:100] + b"\n"  # a line that was cut off
    val.write_bytes(b"".join(lines))
    shown = re.findall(r"```console\n(.*?)```", PAGES["sets.md"], re.DOTALL)
    capsys.readouterr()
    for block in shown:
        said = ""
        for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            with pytest.raises(SystemExit):
                make_group("phi3v-data", "", DATA_COMMANDS).main(args=shlex.split(command)[1:], prog_name="phi3v-data")
            out, err = capsys.readouterr()
            said += f"$ {command}\n{err}{out}"
        assert said == block
