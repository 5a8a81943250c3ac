"""The official lists of UCF-101 (`ucfTrainTestlist/`): split and class of each clip.

classInd.txt        1 ApplyEyeMakeup
trainlist01.txt     ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
testlist01.txt      ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phi3v_data.encodings import read_text
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import shown
from phi3v_data.sources.source import SourceFile

_LIST = re.compile(r"(?P<split>train|test)list0?(?P<fold>[1-3])\.txt", re.IGNORECASE)
_LINE = re.compile(r"(?P<path>\S.*?)(?:[ \t]+(?P<number>[0-9]+))?")
_DETECTION_CLASSES = 24


@dataclass(frozen=True, slots=True)
class ListEntry:
    """One line of a list."""

    split: str  # train | test
    path: str  # as the line has it: Class/file.avi
    label: str
    where: str  # file:line, for messages

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.path).name


def is_list(name: str) -> bool:
    """Whether a file name is one of the official lists."""
    return _LIST.fullmatch(name) is not None


def read_lists(files: Iterable[SourceFile], fold: int) -> list[ListEntry]:
    """All entries of one fold, train first, in the order of the lines.

    Raises:
        UserError: lists of the DetectionTask, several sets of lists, a missing list, or an invalid line.
    """
    every = [file for file in files if is_list(PurePosixPath(file.path).name)]
    recognition = [file for file in every if "detection" not in file.path.lower()]
    if every and not recognition:
        raise _detection(every[0])
    chosen: dict[str, SourceFile] = {}
    for file in recognition:
        match = _LIST.fullmatch(PurePosixPath(file.path).name)
        if match is None or int(match["fold"]) != fold:
            continue
        split = match["split"].lower()
        if split in chosen and chosen[split].file.read_bytes() != file.file.read_bytes():
            raise UserError(
                f"two different lists for the same split, '{chosen[split].where}' and '{file.where}': remove one, or "
                "choose the folder with --lists"
            )
        chosen.setdefault(split, file)
    for split in ("train", "test"):
        if split not in chosen:
            raise NotFoundError(
                f"there is no {split}list0{fold}.txt among the official lists of fold {fold}; copy it next to the "
                "others (UCF101TrainTestSplits-RecognitionTask.zip), or choose another --fold"
            )
    classes = _class_numbers(recognition, files)
    entries = [*_read(chosen["train"], "train", classes), *_read(chosen["test"], "test", classes)]
    bare = [entry for entry in entries if not PurePosixPath(entry.path).suffix]
    if len(bare) == len(entries) and len({entry.label for entry in entries}) <= _DETECTION_CLASSES:
        raise _detection(chosen["train"])
    return entries


def _detection(file: SourceFile) -> UserError:
    return UserError(
        f"'{file.where}' belongs to the lists of the DetectionTask (24 classes, another task); get "
        "UCF101TrainTestSplits-RecognitionTask.zip and give its folder with --lists"
    )


def _text(file: SourceFile) -> list[str]:
    try:
        return read_text(file.file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list '{file.where}' as text: {error}") from error


def is_class_index(file: SourceFile) -> bool:
    """Whether a file is `classInd.txt`."""
    return PurePosixPath(file.path).name.lower() == "classind.txt"


def class_names(files: Iterable[SourceFile]) -> dict[str, str]:
    """Class names as spelled in `classInd.txt`, by their lower case; empty if there is no such file."""
    indices = [file for file in files if is_class_index(file)]
    return {name.lower(): name for name in _class_numbers(indices, indices).values()}


def _class_numbers(lists: list[SourceFile], files: Iterable[SourceFile]) -> dict[int, str]:
    """Map each number in `classInd.txt` to its class name; empty if there is no such file."""
    folders = {Path(file.file).parent for file in lists}
    numbers: dict[int, str] = {}
    for file in files:
        if not is_class_index(file) or file.file.parent not in folders:
            continue
        for line, text in enumerate(_text(file), start=1):
            number, _, name = text.strip().partition(" ")
            if not text.strip():
                continue
            if not number.isdigit() or not name.strip():
                raise UserError(f"{file.where}:{line}: expected a number and a class name, found {shown(text.strip())}")
            numbers[int(number)] = name.strip()
    return numbers


def _read(file: SourceFile, split: str, classes: dict[int, str]) -> list[ListEntry]:
    entries = []
    for line, text in enumerate(_text(file), start=1):
        stripped = text.strip()
        if not stripped:
            continue
        where = f"{file.where}:{line}"
        match = _LINE.fullmatch(stripped)
        path = match["path"].replace("\\", "/") if match else ""
        number = int(match["number"]) if match and match["number"] else 0
        if number and classes and number not in classes:
            raise UserError(f"{where}: class number {number} is not in classInd.txt, which has {len(classes)} classes")
        folder = PurePosixPath(path).parent.name
        label = folder or classes.get(number, "")
        if not label or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UserError(
                f"{where}: expected 'Class/file.avi' and optionally a class number, found {shown(stripped)}"
            )
        entries.append(ListEntry(split, path, label, where))
    return entries
