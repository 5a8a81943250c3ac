"""A converter for tests whose source says what happens to each sample, and tools to run it.

The source is a folder of text files `SPLIT/GROUP/NAME.txt`; the lines of a file are directives (see `Toy.convert`).
"""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

import phi3v_data

FILE = Path(__file__).resolve()
TOY = f"{FILE}:Toy"


class ToyOptions(phi3v_data.Options):
    """One field of each kind that the command line knows."""

    size: int = Field(8, ge=1, le=512, description="Side of an image in pixels.")
    scale: float = Field(1.0, description="Not used.")
    suffix: str = Field("", description="Put after each answer.")
    mode: Literal["grey", "colour"] = Field("colour", description="Kind of image.")
    loud: bool = Field(False, description="Answers in capitals.")
    words: list[str] = Field([], description="Put after each question; may be given several times.")
    fold: Literal[1, 2] | None = Field(None, description="Not used.")
    secret: str = Field("", exclude=True, description="Not saved.")


class Toy(phi3v_data.Converter[ToyOptions]):
    """Samples that do what their file says."""

    name = "toy"
    version = "1"

    def plan(self, source: phi3v_data.Source, options: ToyOptions) -> Iterable[phi3v_data.Item]:
        for file in source.files([".txt"]):
            split, group, _ = file.path.split("/")
            yield phi3v_data.Item(split, file.path, str(file.file), group=group, size=file.size)

    def convert(self, item: phi3v_data.Item, options: ToyOptions) -> phi3v_data.Draft:
        answer, user = f"answer {item.key}", " ".join(["What is it?", *options.words])
        images: list[Any] = []
        extra: dict[str, Any] = {}
        for line in Path(item.path).read_text().splitlines():
            word, *rest = line.split()
            match word:
                case "image":  # image SEED [NAME]
                    pixels = noise(int(rest[0]), options.size, options.mode)
                    images.append(phi3v_data.DraftImage(pixels, name=rest[1] if len(rest) > 1 else ""))
                case "bytes":  # bytes KIND [NAME]
                    images.append(phi3v_data.DraftImage(encoded(rest[0]), name=rest[1] if len(rest) > 1 else ""))
                case "path":
                    images.append(Path(item.path).parent / rest[0])
                case "lazy":  # an opened PIL image, not yet read
                    images.append(Image.open(io.BytesIO(encoded(rest[0]))))
                case "float":
                    images.append(Image.new("F", (4, 4)))
                case "quality":
                    images.append(phi3v_data.DraftImage(noise(1, 8, "grey"), quality=int(rest[0])))
                case "content":
                    images.append(3.5)
                case "answer":
                    answer = " ".join(rest)
                case "user":
                    user = " ".join(rest)
                case "draft":
                    extra |= eval(" ".join(rest), {"nan": float("nan"), "surrogate": "\ud800"})
                case "reject":
                    raise phi3v_data.Reject("toy-reject", f"{item.path} asked for it")
                case "raise":
                    raise ValueError(f"no sense in {item.path}")
                case "quit":
                    raise SystemExit(0)
                case "memory":
                    raise MemoryError
                case "import":
                    import no_such_module_of_mine  # noqa: F401
                case "die":
                    os.kill(os.getpid(), getattr(signal, rest[0]))
                case "once":  # once FILE: dies unless FILE says that it did before
                    if not Path(rest[0]).exists():
                        Path(rest[0]).touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                case "doomed":  # doomed FILE: made by the node with this variable, where it never ends; others wait
                    if "DOOMED" in os.environ:
                        Path(rest[0]).touch()
                        signal.pause()
                    while not Path(rest[0]).exists():
                        time.sleep(0.01)
                case "exit":
                    os._exit(int(rest[0]))
                case "wait":  # for ever, as long as it is a named pipe
                    Path(rest[0]).read_bytes()
                case "none":
                    return None  # type: ignore[return-value]  # what a careless converter does
                case "print":
                    print("a converter's own words")
        answer += options.suffix
        return phi3v_data.Draft(
            **({"user": user, "assistant": answer.upper() if options.loud else answer, "images": images} | extra)
        )

    def describe(self, source: phi3v_data.Source, options: ToyOptions) -> phi3v_data.DatasetInfo:
        return phi3v_data.DatasetInfo(name="toy", task="vqa", metrics=["anls"])


class Broken(phi3v_data.Converter[phi3v_data.Options]):
    """Fails while it plans."""

    name = "broken"

    def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> Iterable[phi3v_data.Item]:
        yield phi3v_data.Item("train", "a")
        raise KeyError("b")


class Twice(phi3v_data.Converter[phi3v_data.Options]):
    """Plans one key twice."""

    name = "twice"

    def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> Iterable[phi3v_data.Item]:
        yield from (phi3v_data.Item("train", key) for key in ("a", "b", "a"))


@phi3v_data.converter("drafts")
def drafts(source: phi3v_data.Source) -> Iterable[phi3v_data.Draft]:
    """Two samples for each file, as a generator."""
    for index, file in enumerate(source.files([".txt"])):
        if file.file.read_text().startswith("raise"):
            raise ValueError("enough")
        for k in range(2):
            yield phi3v_data.Draft(
                user=f"Question {k}?",
                assistant=file.path,
                images=[noise(index, 8, "colour")],
                split=file.path.split("/")[0],
                group=file.path.split("/")[1],
            )


def noise(seed: int, size: int, mode: str) -> "np.ndarray[Any, Any]":
    """An image that only its seed decides."""
    shape = (size, size) if mode == "grey" else (size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(kind: str) -> bytes:
    """Bytes of an image, whole or not."""
    buffer = io.BytesIO()
    image = Image.fromarray(noise(1, 16, "colour"))
    if kind in ("gif", "webp", "jpeg", "png"):
        image.save(buffer, kind)
        return buffer.getvalue()
    if kind == "ico":
        image.save(buffer, "ico", sizes=[(16, 16)])
        return buffer.getvalue()
    image.save(buffer, "jpeg")
    return {"cut": buffer.getvalue()[:-80], "junk": b"not an image", "empty": b""}[kind]


def make_source(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the directives of each sample."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def plain_source(folder: Path, counts: Mapping[str, int], per_group: int = 2) -> Path:
    """A source of good samples with one named image each."""
    return make_source(
        folder,
        {
            f"{split}/g{n // per_group:02d}/s{n:03d}.txt": f"image {n} {split}/s{n:03d}.png"
            for split, count in counts.items()
            for n in range(count)
        },
    )


def tree(folder: Path, hidden: bool = False) -> dict[str, str]:
    """Each file's digest; folders as such. Without the state of an export's files on this machine."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
        for path in sorted(folder.rglob("*"))
        if path.name != "export_state.json"
        if hidden or not path.relative_to(folder).as_posix().startswith(".phi3v")
    }


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    import json

    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


COMMAND = (sys.executable, "-c", "from phi3v_data.cli.app import main; main()")


def run_cli(*args: object, **kwargs: Any) -> "subprocess.CompletedProcess[str]":
    """Run `phi3v-data` in a process of its own; one with another environment is started afresh."""
    if not kwargs.keys() - {"cwd"}:
        from processes import run_data  # this file is also read as a converter, where that one is not found

        return run_data(*args, **kwargs)
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, encoding="utf-8", timeout=120, **kwargs
    )


def start_cli(args: Sequence[object], **kwargs: Any) -> "subprocess.Popen[bytes]":
    """Start `phi3v-data` as the leader of a process group."""
    return subprocess.Popen([*COMMAND, *map(str, args)], start_new_session=True, **kwargs)
