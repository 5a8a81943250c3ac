"""A folder of predictions: written while they are made, resumed where it stopped, complete or absent at the end.

    OUT/evaluation.json      identity: model, settings, digests of rows and images
    OUT/.predictions-0.jsonl batches made so far by process 0, one line each, in the order they were made
    OUT/predictions.jsonl    all of them in the order of the dataset; absent until complete

A batch is one line, so that a kill leaves it complete or (half a line, dropped) absent: what is missing is predicted
again in the same batches, and the result has the same bytes as one never stopped. What is read back counts only as far
as it is what was asked for: the plan has the id and the turn of every answer, in the order of the dataset.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from phi3v_data.errors import UserError
from phi3v_data.files import is_closed, open_regular, read_json, refuse_folders, unreadable, write_bytes, write_json
from phi3v_data.jsonl import encode_line
from phi3v_data.lock import lock_file
from phi3v_data.messages import counted, shown
from phi3v_train.evaluation.records import Prediction, check_record, read_predictions

Plan: TypeAlias = Sequence[tuple[str, int]]

PREDICTIONS, IDENTITY, LOCK = "predictions.jsonl", "evaluation.json", ".lock"
RESULT, CONFUSION = "eval.json", "confusion.png"
_PART = re.compile(r"\.predictions-\d+\.jsonl")


class PredictionFolder:
    """The predictions of one evaluation.

    Args:
        path: the folder, made if absent.
        identity: everything that the predictions depend on: model, settings, data.
        keep_going: a full disk is noted in `failed`, and nothing else is written; otherwise it is an OSError.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, keep_going: bool = False) -> None:
        self.path = path
        self.keep_going = keep_going
        self.failed = ""
        self._restarts = False
        self.identity = json.loads(json.dumps(identity))
        self._part: IO[bytes] | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, which is made first.

        Raises:
            BusyError: another evaluation is writing there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(f"{self.path}: is a file; give a folder") from None
        busy = f"{self.path}: another evaluation is writing there; wait for it, or choose another --output_dir"
        with lock_file(self.path / LOCK, busy):
            yield

    def begin(self, *, overwrite: bool = False, restart: bool = False) -> None:
        """Take the folder for this evaluation: resume with its contents, or start over.

        Args:
            overwrite: start over in any case.
            restart: start over if it contains another evaluation, or a damaged one.

        Raises:
            UserError: it contains another evaluation; the differences are named.
        """
        self.try_to(lambda: self._begin(overwrite, restart))

    def _begin(self, overwrite: bool, restart: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        refuse_folders(self.path, (PREDICTIONS, RESULT, CONFUSION, *(part.name for part in self._parts())))
        self._restarts = restart
        saved = None if overwrite else self._saved_identity()
        is_same = saved is not None and self._with_images(saved) == self.identity
        if overwrite or (restart and not is_same) or (saved is None and self._is_empty()):
            self.clear()
        elif saved is None:
            raise UserError(
                f"{self.path} holds {PREDICTIONS} or {RESULT} of unknown origin; --overwrite replaces them, another "
                "--output_dir keeps them"
            )
        elif not is_same:
            differences = "; ".join(describe_differences(self._with_images(saved), self.identity))
            raise UserError(
                f"{self.path} holds another evaluation: {differences}; --overwrite starts over, another --output_dir "
                "keeps it"
            )
        if self.is_complete:
            self._remove_parts()  # a kill came between the last two steps
        if saved != self.identity or not (self.path / IDENTITY).exists():
            write_json(self.path / IDENTITY, self.identity)

    def clear(self) -> None:
        """Remove what an evaluation wrote, and nothing else; the identity last, so that a kill leaves no mixture."""
        for name in (PREDICTIONS, RESULT, CONFUSION):
            (self.path / name).unlink(missing_ok=True)
        self._remove_parts()
        (self.path / IDENTITY).unlink(missing_ok=True)

    @property
    def is_complete(self) -> bool:
        """Whether all predictions are there."""
        return (self.path / PREDICTIONS).exists()

    def read_whole(self, plan: Plan) -> list[Prediction] | None:
        """All predictions, in the order of the plan; None if they are not all there.

        Raises:
            UserError: they are not those of the plan.
        """
        if not self.is_complete:
            return None
        path = self.path / PREDICTIONS
        try:
            records = read_predictions(path)
            if reason := _why_not(records, plan):
                raise UserError(f"{path}: {reason}")
            return records
        except UserError as error:
            if not self._restarts:
                raise UserError(f"{error}; --overwrite predicts all of them again") from None
        self.try_to(path.unlink)
        return None

    def read_parts(self, plan: Plan) -> dict[int, Prediction]:
        """Predictions of earlier starts by position in the plan. The first counts; half lines and others are dropped.

        Raises:
            UserError: a part cannot be read.
        """
        done: dict[int, Prediction] = {}
        for path in self._parts():
            for entries in _batches(path, plan):
                for position, record in entries:
                    done.setdefault(position, record)
        return done

    def try_to(self, work: Callable[[], Any]) -> None:
        """Run a write; if the folder keeps going, a disk error is noted."""
        if self.failed:
            return
        try:
            work()
        except OSError as error:
            if not self.keep_going:
                raise
            self.failed = error.strerror or str(error)

    def open_part(self, rank: int = 0) -> None:
        """Begin to write after the last complete line that this process wrote before."""
        self.try_to(lambda: self._open_part(rank))

    def _open_part(self, rank: int) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._part = _open_own(self.path / f".predictions-{rank}.jsonl")
        whole = self._part.read().rfind(b"\n") + 1
        self._part.truncate(whole)
        self._part.seek(whole)

    def add(self, batch: Sequence[tuple[int, Prediction]]) -> None:
        """Write a finished batch: (position, prediction) each."""
        line = json.dumps(batch, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.try_to(lambda: self._write(line))

    def _write(self, line: bytes) -> None:
        assert self._part is not None
        self._part.write(line)
        self._part.flush()

    def close_part(self) -> None:
        """Stop writing."""
        part, self._part = self._part, None
        if part is not None:
            self.try_to(part.close)

    def finish(self, records: Sequence[Prediction]) -> None:
        """Write `predictions.jsonl` atomically and remove the parts."""
        self.close_part()
        self.try_to(lambda: self._finish(records))

    def _finish(self, records: Sequence[Prediction]) -> None:
        write_bytes(self.path / PREDICTIONS, b"".join(encode_line(record) for record in records))
        self._remove_parts()

    def _parts(self) -> list[Path]:
        """Files of the parts, in order."""
        try:
            names = sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self.path / name for name in names if _PART.fullmatch(name)]

    def _remove_parts(self) -> None:
        for path in self._parts():
            path.unlink()

    def _saved_identity(self) -> dict[str, Any] | None:
        path = self.path / IDENTITY
        try:
            value = read_json(path)
        except OSError as error:
            if is_closed(error):
                raise unreadable(path, error) from None
            value = None
        if value is None and os.path.lexists(path) and not self._restarts:
            raise UserError(f"{path}: was not written by an evaluation; --overwrite starts over")
        return value

    def _with_images(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A saved identity; one of a version that did not record the images gets those of now."""
        images = self.identity.get("data", {}).get("images")
        if images is None or not isinstance(saved.get("data"), dict):
            return saved
        return {**saved, "data": {"images": images, **saved["data"]}}

    def _is_empty(self) -> bool:
        """Whether nothing of an evaluation is there."""
        return not (self.path / PREDICTIONS).exists() and not (self.path / RESULT).exists()


def _batches(path: Path, plan: Plan) -> Iterator[list[tuple[int, Prediction]]]:
    """The complete lines of a part that are batches of the plan; a power cut may leave others. A link is not read."""
    if path.is_symlink():
        return
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")[:-1]
    except OSError as error:
        if is_closed(error):
            raise unreadable(path, error) from None
        return
    for line in lines:
        try:
            yield [(position, _planned(position, record, plan)) for position, record in json.loads(line)]
        except (ValueError, TypeError, RecursionError, UserError):
            continue


def _planned(position: Any, value: Any, plan: Plan) -> Prediction:
    """The record, if it is the one that the plan has at this position."""
    record = check_record(value, "record")
    if type(position) is not int or not 0 <= position < len(plan) or _key(record) != plan[position]:
        raise ValueError("not in the plan")
    encode_line(record)  # a ValueError for what cannot be written, such as NaN
    return record


def _key(record: Prediction) -> tuple[str, int]:
    return record["id"], record["turn"]


def _why_not(records: Sequence[Prediction], plan: Plan) -> str:
    """Why records are not those of the plan; empty if they are."""
    if len(records) != len(plan):
        return f"has {counted(len(records), 'prediction')}, the split has {counted(len(plan), 'prompt')}"
    for number, (record, (sample_id, turn)) in enumerate(zip(records, plan, strict=True), 1):
        if _key(record) != (sample_id, turn):
            return (
                f"prediction {number:,} is that of {shown(record['id'])} (turn {record['turn']}), the prompt is that "
                f"of {shown(sample_id)} (turn {turn})"
            )
    return ""


def _open_own(path: Path) -> IO[bytes]:
    """Open a file of the evaluation to read and write; a link, or a file that has other names too, is replaced.

    Raises:
        OSError: a folder is there, or the disk fails.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise
        else:
            there = os.fstat(descriptor)
            if stat.S_ISREG(there.st_mode) and there.st_nlink == 1:
                return open(descriptor, "r+b")
            os.close(descriptor)
        path.unlink(missing_ok=True)


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """`model.name was 'tiny', is 'OUT/model'` for each value that differs, nested objects by dotted names."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from describe_differences(before, after, f"{where}{name}.")
        else:
            yield f"{where}{name} was {before!r}, is {after!r}"
