"""Tests a converter in one line: `check_converter(MyDocs, "tests/data/docs")`.

deterministic   the same samples and bytes from another process, another location of the source, other workers
pure            a sample does not depend on those converted before it
resumable       interrupted after any part, the next run gives the same bytes
honest          every planned sample is a row or a reject; a damaged or missing file becomes a reject, and is neither
                replaced nor ignored
"""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3v_data.conversion import ConvertResult, convert
from phi3v_data.dataset import Dataset
from phi3v_data.draft import Converter, Draft, DraftImage, GeneratorConverter, Item, Options
from phi3v_data.errors import Reject, UserError
from phi3v_data.messages import counted
from phi3v_data.registry import ConverterLike, find, reference
from phi3v_data.sources.source import Source
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES, VIDEO_SUFFIXES
from phi3v_data.writing.request import parse_options

MAX_DAMAGED = 4
"""Number of files of the source that are damaged, one after another, evenly spread."""

MAX_COPIED = 1 << 28
"""Largest source that is copied in order to damage the copy, in bytes."""

MEDIA = (*SOURCE_IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


class ConverterCheckError(AssertionError):
    """The converter failed the check; `findings` lists all problems."""

    def __init__(self, name: str, findings: Sequence[str]) -> None:
        self.findings = tuple(findings)
        super().__init__(f"the converter {name!r} fails:\n" + "\n".join(f"- {finding}" for finding in findings))


class _Stop(BaseException):
    """Interrupts a run like a user's Ctrl-C."""


def check_converter(
    converter: ConverterLike,
    source: str | Path,
    options: Options | Mapping[str, Any] | None = None,
    *,
    unlabelled: bool = False,
) -> ConvertResult:
    """Check on a small source that a converter is deterministic, pure, resumable and reports rejects.

    Args:
        converter: a class, a name, or `FILE.py:NAME`.
        source: about ten samples are enough; a folder is also copied, and images and clips of the copy are damaged.
        unlabelled: convert splits without answers, too.

    Returns:
        The result of converting the whole source.

    Raises:
        ConverterCheckError: an AssertionError that lists all findings.
        UserError: the source cannot be converted.
    """
    with tempfile.TemporaryDirectory(prefix="phi3v-check-") as folder:
        check = _Check(find(converter), str(source), options, unlabelled, Path(folder))
        result = check.run()
        if check.findings:
            raise ConverterCheckError(check.cls.name, check.findings)
        return result


@dataclass
class _Check:
    cls: type[Converter[Any]]
    source: str
    options: Options | Mapping[str, Any] | None
    unlabelled: bool
    work: Path
    findings: list[str] = field(default_factory=list)

    def run(self) -> ConvertResult:
        first = self.work / "first"
        result = self.convert(first, workers=0)
        self.check_rejects(first)
        if not issubclass(self.cls, GeneratorConverter):
            self.check_plan()
        self.check_again(first)
        self.check_elsewhere(first)
        self.check_resume(first)
        self.check_damage(first)
        return result

    def convert(self, out: Path, source: str = "", **settings: Any) -> ConvertResult:
        return convert(
            self.cls, source or self.source, out, options=self.options, unlabelled=self.unlabelled, **settings
        )

    def check_rejects(self, out: Path) -> None:
        """Check that no crash is reported as a reject, and no path of this machine is written."""
        for reject in _rejects(out):
            if reject["reason"] == "converter-error":
                self.findings.append(
                    f"not honest: convert() crashes on {reject['item']} ({reject['message']}); raise "
                    "Reject(code, message) if a sample cannot be converted"
                )
        here = [str(Path(self.source).absolute()), str(self.work), str(self.work.resolve())]
        for path in sorted(out.glob("*.json*")):
            text = path.read_text(encoding="utf-8")
            for place in here:
                if len(place) > 1 and Path(self.source).exists() and place in text:
                    self.findings.append(f"not deterministic: {path.name} contains a path of this machine ({place})")

    def check_plan(self) -> None:
        """Run the plan twice, and convert every sample alone and in reverse order."""
        options = parse_options(self.cls, self.options)
        source = Source.open(self.source, work_dir=self.work / "plan")
        once, twice = self.cls(), self.cls()
        items = list(once.plan(source, options))
        if [_place(item) for item in items] != [_place(item) for item in twice.plan(source, options)]:
            self.findings.append("not deterministic: plan() yields other items the second time, or in another order")
            return
        fingerprints = {item.key: self.fingerprint(once, item, options) for item in items}
        for item in reversed(items):
            copy = pickle.loads(pickle.dumps(item))  # as a worker gets it
            if self.fingerprint(self.cls(), copy, options) != fingerprints[item.key]:
                self.findings.append(
                    f"not pure: convert() gives another result for {item.key!r} if other samples come before it"
                )
                return

    def fingerprint(self, converter: Converter[Any], item: Item, options: Options) -> str:
        """Digest of the result of `convert` for an item, including its images."""
        if item.reject:
            return f"{item.reject}: {item.message}"
        try:
            draft = converter.convert(item, options)
        except Reject as reject:
            return f"{reject.code}: {reject.message}"
        except UserError:
            raise
        except Exception as error:  # reported by `check_rejects`, with its line
            return f"{type(error).__name__}: {error}"
        digest = hashlib.sha256()
        for piece in _pieces(draft):
            digest.update(len(piece).to_bytes(8, "little") + piece)
        return digest.hexdigest()

    def check_again(self, first: Path) -> None:
        """Convert in other processes, each with another hash seed."""
        ref = reference(self.cls)
        if ref is None:
            self.convert(self.work / "again", workers=0)
            self.compare(first, self.work / "again", "a second run")
            return
        call = pickle.dumps((ref, pickle.dumps(self.options), self.source, self.unlabelled))
        program = (
            "import sys; from phi3v_data.testing import _convert_there; "
            "_convert_there(sys.stdin.buffer.read(), sys.argv[1])"
        )
        for seed in ("1", "2"):
            out = self.work / f"process-{seed}"
            environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            done = subprocess.run(
                [sys.executable, "-c", program, str(out)], input=call, capture_output=True, env=environment, check=False
            )
            if done.returncode:
                last = done.stderr.decode(errors="replace").strip().splitlines()
                self.findings.append(
                    f"not deterministic: in another process it fails ({last[-1] if last else done.returncode})"
                )
                return
            self.compare(first, out, "another process")

    def check_elsewhere(self, first: Path) -> None:
        """Convert the same source at another path, with two workers."""
        path = Path(self.source)
        if not path.exists():
            return
        folder = path.resolve() if path.is_dir() else path.resolve().parent  # the images of a table are next to it
        place = self.work / "elsewhere" / (folder.name or "root")
        place.parent.mkdir()
        place.symlink_to(folder, target_is_directory=True)
        moved = place if path.is_dir() else place / path.resolve().name
        workers = 0 if reference(self.cls) is None else 2
        self.convert(self.work / "moved", str(moved), workers=workers)
        self.compare(first, self.work / "moved", "the source at another path, two workers")

    def check_resume(self, first: Path) -> None:
        """Interrupt a run in the middle, then finish it."""
        out = self.work / "resumed"
        planned = _planned(first)

        def stop(stage: str, done: int, total: int | None) -> None:
            if stage == "convert" and done * 2 >= planned:
                raise _Stop

        with suppress(_Stop):
            self.convert(out, workers=0, progress=stop)
        try:
            self.convert(out, workers=0)
        except UserError as error:
            self.findings.append(f"not resumable: after an interruption the same call is refused ({error})")
            return
        self.compare(first, out, "an interrupted and resumed run", "not resumable")

    def compare(self, first: Path, other: Path, what: str, kind: str = "not deterministic") -> None:
        one, two = _tree(first), _tree(other)
        for name in sorted({*one, *two}):
            if one.get(name) != two.get(name):
                how = "is missing" if name not in two else "only exists" if name not in one else "differs"
                self.findings.append(f"{kind}: {name} {how} after {what}")
                return

    def check_damage(self, first: Path) -> None:
        """Truncate images and clips of a copy: the samples that use one must become rejects."""
        root = Path(self.source)
        if not root.is_dir():
            return
        files = [file for file in Source.open(root).files(MEDIA) if file.size]
        if not files or sum(file.size for file in Source.open(root).files()) > MAX_COPIED:
            return
        copy = self.work / "damaged" / root.name
        shutil.copytree(root, copy, ignore_dangling_symlinks=True)
        step = max(1, len(files) // MAX_DAMAGED)
        for number, file in enumerate(files[::step][:MAX_DAMAGED]):
            target = copy / file.path
            whole = target.read_bytes()
            target.write_bytes(whole[: min(len(whole) // 2, 2048)])
            self.damaged(first, str(copy), number, file.path)
            target.write_bytes(whole)

    def damaged(self, first: Path, copy: str, number: int, path: str) -> None:
        """Convert the copy with one damaged file."""
        out = self.work / f"out-{number}"
        try:
            self.convert(out, copy, workers=0)
        except UserError:
            return  # reported, and nothing is written
        before, after = _contents(first), _contents(out)
        lost, other = before - after, after - before
        rejected = len(_rejects(out)) - len(_rejects(first))
        if other:
            self.findings.append(
                f"not honest: with '{path}' damaged, a sample is made from something else; raise Reject in convert()"
            )
        elif lost.total() > rejected:
            self.findings.append(
                f"not honest: with '{path}' damaged, {counted(lost.total(), 'sample')} lost and {rejected} rejected; "
                "plan them anyway, and raise Reject in convert()"
            )


def _convert_there(call: bytes, out: str) -> None:
    """Run one conversion in its own process; only data pickled by `check_converter` are read."""
    ref, options, source, unlabelled = pickle.loads(call)
    cls = ref.load()  # first: the options' class may be in the same file
    convert(cls, source, out, options=pickle.loads(options), unlabelled=unlabelled, workers=0)


def _place(item: Item) -> tuple[str, str, int, str]:
    return item.split, item.key, item.size, item.group


def _pieces(draft: Any) -> Iterator[bytes]:
    """Yield everything in a draft, images by content."""
    from phi3v_data.writing.images import prepare_image

    if not isinstance(draft, Draft):
        yield f"not a Draft but a {type(draft).__name__}".encode()
        return
    yield repr((draft.system, list(draft.answers), draft.group, dict(draft.meta), list(draft.notes))).encode()
    for turn in draft.all_turns():
        yield repr((turn.user, turn.assistant, list(turn.image_offsets), turn.weight)).encode()
        for image in turn.images:
            try:
                prepared = prepare_image(image if isinstance(image, DraftImage) else DraftImage(image), "split")
            except Reject as reject:
                yield str(reject).encode()
            else:
                yield prepared.record.name.encode()
                yield prepared.record.digest.encode()


def _tree(out: Path) -> dict[str, str]:
    """Digest of each file of a finished directory."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".phi3v" not in path.relative_to(out).parts
    }


def _rejects(out: Path) -> list[dict[str, Any]]:
    path = out / "rejects.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _planned(out: Path) -> int:
    return sum(len(split) for split in Dataset(out).values()) + len(_rejects(out))


def _contents(out: Path) -> Counter[str]:
    """Texts and image contents of each sample, without its number and the names of its images."""
    found: Counter[str] = Counter()
    for split in Dataset(out).values():
        for sample in split:
            row = sample.model_dump(mode="json", exclude={"id"})
            for turn in row["conversations"]:
                turn["images"] = [
                    hashlib.sha256(split.image_path(name).read_bytes()).hexdigest() for name in turn["images"]
                ]
            found[json.dumps(row, sort_keys=True)] += 1
    return found
