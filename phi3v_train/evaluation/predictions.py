"""A folder of predictions: written while they are made, resumed where it stopped, complete or absent at the end.

    OUT/evaluation.json      identity: model, settings, digests of rows and images
    OUT/.predictions-0.jsonl batches made so far by process 0, one line each, in the order they were made
    OUT/predictions.jsonl    all of them in the order of the dataset; absent until complete

A batch is one line, so that a kill leaves it complete or (half a line, dropped) absent: what is missing is predicted
again in the same batches, and the result has the same bytes as one never stopped.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from phi3v_data.errors import UserError
from phi3v_data.files import read_json, write_bytes, write_json
from phi3v_data.jsonl import encode_line
from phi3v_data.lock import lock_file
from phi3v_train.evaluation.records import Prediction

PREDICTIONS, IDENTITY, LOCK = "predictions.jsonl", "evaluation.json", ".lock"
RESULT, CONFUSION = "eval.json", "confusion.png"
PART_GLOB = ".predictions-*.jsonl"


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
            restart: start over if it contains another evaluation.

        Raises:
            UserError: it contains another evaluation; the differences are named.
        """
        self.try_to(lambda: self._begin(overwrite, restart))

    def _begin(self, overwrite: bool, restart: bool) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        saved = None if overwrite else self._saved_identity()
        overwrite = overwrite or (restart and saved != self.identity)
        if overwrite or (saved is None and self._is_empty()):
            self.clear()
        elif saved is None:
            raise UserError(
                f"{self.path} holds {PREDICTIONS} or {RESULT} of unknown origin; --overwrite replaces them, another "
                "--output_dir keeps them"
            )
        elif saved != self.identity:
            differences = "; ".join(describe_differences(saved, self.identity))
            raise UserError(
                f"{self.path} holds another evaluation: {differences}; --overwrite starts over, another --output_dir "
                "keeps it"
            )
        if self.is_complete:
            self._remove_parts()  # a kill came between the last two steps
        if not (self.path / IDENTITY).exists():
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

    def read_parts(self) -> dict[int, Prediction]:
        """Predictions of earlier starts by position in the plan. Half lines are dropped, the first counts."""
        done: dict[int, Prediction] = {}
        for path in sorted(self.path.glob(PART_GLOB)):
            for entries in _batches(path):
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
        path = self.path / f".predictions-{rank}.jsonl"
        self.path.mkdir(parents=True, exist_ok=True)
        self._part = path.open("ab")
        whole = _whole_length(path)
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

    def _remove_parts(self) -> None:
        for path in sorted(self.path.glob(PART_GLOB)):
            path.unlink()

    def _saved_identity(self) -> dict[str, Any] | None:
        value = read_json(self.path / IDENTITY)
        images = self.identity.get("data", {}).get("images")
        if value is not None and images is not None and isinstance(value.get("data"), dict):
            value["data"].setdefault("images", images)  # of a version that did not record them
        if value is None and (self.path / IDENTITY).exists():
            raise UserError(f"{self.path / IDENTITY}: was not written by an evaluation; --overwrite starts over")
        return value

    def _is_empty(self) -> bool:
        """Whether nothing of an evaluation is there."""
        return not (self.path / PREDICTIONS).exists() and not (self.path / RESULT).exists()


def _batches(path: Path) -> Iterator[list[tuple[int, Prediction]]]:
    """The complete lines of a part that can be read; a power cut may leave others."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            yield [(int(position), record) for position, record in json.loads(line)]
        except (ValueError, TypeError):
            continue


def _whole_length(path: Path) -> int:
    """Bytes up to the last line end."""
    return path.read_bytes().rfind(b"\n") + 1


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
