"""The stages of `run.py`: what each runs on the directories of one number of rows, and what it needs."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SHARES = ("--split", "train=0.8,val=0.1,test=0.1")
SHARDS = ("--store", "shards")
DATA = [sys.executable, "-c", "from phi3v_data.cli.app import main; main()"]
TRAIN = [sys.executable, "-c", "from phi3v_train.cli.app import main; main()"]


@dataclass(frozen=True, slots=True)
class Work:
    """Folders and settings of one number of rows.

    `folder` has everything: `source`, the converted set, and the outputs of the stages by their names.
    """

    folder: Path
    rows: int
    workers: int

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)


@dataclass(frozen=True, slots=True)
class Stage:
    """One command.

    `makes` is what it writes, removed with the option `--tidy` once no later stage has it in `needs`; `rows` is the
    number of rows that the command reads per row of the source, and `resumes` that it continues what is there.
    `direct` is true of a stage that is only run with --direct, and false of those that it replaces.
    """

    name: str
    command: Callable[[Work], list[str]]
    makes: str = ""
    needs: tuple[str, ...] = ()
    rows: int = 1
    good: tuple[int, ...] = (0, 1)
    resumes: bool = False
    direct: bool | None = None
    at_most: int = 1 << 60


def data(name: str, *words: str) -> Callable[[Work], list[str]]:
    """A command of phi3v-data; words that begin with / are folders of the work."""
    return lambda work: [*DATA, name, *(work / word[1:] if word[0] == "/" else word for word in words), "--quiet"]


def workers(name: str, *words: str) -> Callable[[Work], list[str]]:
    """As `data`, in the processes of the work."""
    return lambda work: [*data(name, *words)(work), "--workers", str(work.workers)]


def convert(store: str) -> Callable[[Work], list[str]]:
    return workers("convert", "table", "--source", "/source", "--out_dir", f"/{store}", "--store", store)


def export(kind: str) -> Callable[[Work], list[str]]:
    return workers("export", kind, "/shards", "--out", f"/{kind}")


def script(name: str, *words: str) -> Callable[[Work], list[str]]:
    """A script beside this one; ROWS and WORKERS are those of the work."""

    def command(work: Work) -> list[str]:
        values = {"ROWS": str(work.rows), "WORKERS": str(work.workers)}
        return [sys.executable, str(HERE / name), *(values.get(word, work / word[1:]) for word in words)]

    return command


def train(steps: int) -> Callable[[Work], list[str]]:
    """A run of the tiny model up to step `steps`; with one that is there it resumes."""
    settings = "--model_name_or_path tiny --batch_size_per_gpu 2 --num_crops 1 --save_steps 1 --num_workers 1"
    return lambda work: [
        *(*TRAIN, "run", "--data_dir", work / "shards", "--output_dir", work / "run", *settings.split()),
        *("--no_eval_before", "--no_eval_after", "--max_steps", str(steps), "--quiet"),
    ]


STAGES = (
    Stage("source", script("source.py", "/source", "ROWS", "WORKERS"), makes="source"),
    Stage("convert files", convert("files"), makes="files", needs=("source",), at_most=100_000),
    Stage("validate files", workers("validate", "/files", "--fresh"), needs=("files",), at_most=100_000),
    Stage("convert shards", convert("shards"), makes="shards", needs=("source",), direct=False),
    Stage("write shards", script("write_set.py", "/source", "/shards"), "shards", ("source",), direct=True),
    Stage("validate quick", workers("validate", "/shards", "--level", "quick", "--fresh"), needs=("shards",)),
    Stage("validate full", workers("validate", "/shards", "--fresh"), needs=("shards",)),
    Stage("validate unchanged", workers("validate", "/shards"), needs=("shards",)),
    Stage("stats", workers("stats", "/shards"), needs=("shards",)),
    Stage("train first step", train(1), makes="run", needs=("shards",), good=(0,)),
    Stage("train resumed", train(2), makes="run", needs=("shards", "run"), good=(0,), resumes=True),
    Stage("export webdataset", export("webdataset"), makes="webdataset", needs=("shards",)),
    Stage("export parquet", export("hub"), makes="hub", needs=("shards",)),
    Stage("validate parquet", workers("validate", "/hub", "--fresh"), needs=("hub",)),
    Stage("datasets", script("peer.py", "/hub", "/cache", "WORKERS"), makes="cache", needs=("hub",), good=(0,)),
    Stage("split", workers("split", "/shards", "/split", *SHARES, *SHARDS), makes="split", needs=("shards",)),
    Stage("merge", data("merge", "/shards", "/split", "/merged", *SHARDS), "merged", ("shards", "split"), rows=2),
)
"""In this order. `split` and `stats` take from the receipt of `validate full` what they need of the pixels."""
