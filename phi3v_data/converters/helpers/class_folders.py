"""Files in class folders: `<split>/<Class>/<file>` or `<Class>/<file>`; no file is opened.

Shared by the converters of clips and images: the split and class of each file, one spelling per class, and unique names
under `images/`.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from phi3v_data.draft import Item
from phi3v_data.encodings import read_text
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import safe_component
from phi3v_data.messages import join_words, shown
from phi3v_data.sources.source import Source, SourceFile
from phi3v_data.splits import SPLIT_FOLDERS, split_sort_key

MAX_NAMED = 5
"""Empty folders that a note names."""


@dataclass(frozen=True, slots=True)
class ClassFile:
    """A clip or an image, or an entry of a list without a file (`reject` is the reason)."""

    split: str
    label: str
    key: str  # {split}/{Class}/{file} or {Class}/{file}: without the folders above, so that archive and folder agree
    path: str = ""
    size: int = 0
    group: str = ""
    stem: str = ""  # {Class}/{file}, safe as a path; with its suffix, where that is kept, unique in the split
    renamed: bool = False  # the stem differs from the file's name
    spare: str = ""  # a stem that is unique in the source; empty if `stem` is
    is_shared: bool = False  # a file of the split differs in nothing but its suffix
    notes: tuple[str, ...] = ()
    reject: str = ""
    message: str = ""


def order(file: ClassFile) -> tuple[object, ...]:
    """Sort key: split, then the bytes of the path; files without a split come after train and do not change numbers."""
    return *split_sort_key(file.split), file.reject == "not-in-lists", file.key.encode()


def read_class_filter(value: str) -> str:
    """Return `A, B` unchanged, or the joined lines of a file of classes (numbers as in classInd.txt are ignored)."""
    if not value or "\n" in value or not os.path.isfile(value):  # a list may be too long for a name
        return value
    try:
        text = read_text(Path(value))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in '{value}' as text: {error}") from error
    names = [re.sub(r"^[0-9]+\s+", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "\n".join(names) + "\n"


def chosen_classes(text: str) -> list[str]:
    """The class names in a result of `read_class_filter`."""
    return [name.strip() for name in text.split("\n" if "\n" in text else ",") if name.strip()]


def _split_place(path: PurePosixPath) -> int | None:
    """Index of the split folder of a path, with a class folder below it."""
    for place, part in enumerate(path.parts[:-2]):
        if part.lower() in SPLIT_FOLDERS:
            return place
    return None


def are_split_folders(files: Iterable[SourceFile]) -> bool:
    """Whether files are in split folders; a single class called `test` is not a split."""
    return any(_split_place(PurePosixPath(file.path)) is not None for file in files)


def from_folders(
    files: Sequence[SourceFile],
    *,
    in_splits: bool,
    what: str,
    group_of: Callable[[str, str], str] = lambda label, key: "",
) -> list[ClassFile]:
    """The files with the split and the class of their folders.

    Args:
        in_splits: whether there are split folders; else all files are train.
        what: word for a file in messages.
        group_of: returns the group of a file by class and key; empty for none.

    Raises:
        UserError: a file is not in a class folder, or class folders are at different depths.
    """
    depth = len(PurePosixPath(files[0].path).parts)
    found = []
    for file in files:
        path = PurePosixPath(file.path)
        if in_splits:
            place = _split_place(path)
            split = SPLIT_FOLDERS[path.parts[place].lower()] if place is not None else ""
            inner = path.parts[place + 1 :] if place is not None else ()
        else:
            split, inner = "train", path.parts[-2:]
            if len(path.parts) != depth:
                raise UserError(
                    f"the {what}s {shown(files[0].where)} and {shown(file.where)} are at different depths, so it is "
                    f"unclear which folder is the class; expected <Class>/<{what}> for all"
                )
        if len(inner) < 2:
            shape = f"<split>/<Class>/<{what}>" if in_splits else f"<Class>/<{what}>"
            raise UserError(
                f"the {what} {shown(file.where)} is not in a class folder, so its class is unknown; expected {shape} "
                f"under '{source_name(file)}': move it into its class or out of the source"
            )
        key = "/".join((split, *inner)) if in_splits else "/".join(inner)
        found.append(ClassFile(split, inner[0], key, str(file.file), file.size, group_of(inner[0], key)))
    return found


def source_name(file: SourceFile) -> str:
    """The archive that this file belongs to, else the root folder of the source."""
    if file.archive:
        return file.archive
    root = file.file
    for _ in PurePosixPath(file.path).parts:
        root = root.parent
    return root.name


def one_spelling(files: list[ClassFile], official: Mapping[str, str]) -> list[ClassFile]:
    """Use one spelling per class if only the letter case differs; files whose class changes get a note.

    The spelling in `official` has precedence (class name in lower case -> official spelling); otherwise, if splits
    differ, as in repackaged sets, that of the first split, starting with train. Two spellings in one split are two
    classes.
    """
    spellings: dict[str, dict[str, set[str]]] = {}
    for file in files:
        spellings.setdefault(file.label.lower(), {}).setdefault(file.split, set()).add(file.label)
    chosen: dict[str, str] = {}
    for lowered, by_split in spellings.items():
        names = set().union(*by_split.values())
        if lowered in official:
            chosen.update(dict.fromkeys(names, official[lowered]))
        elif len(names) > 1 and all(len(found) == 1 for found in by_split.values()):
            first = min(by_split, key=split_sort_key)
            chosen.update(dict.fromkeys(names, next(iter(by_split[first]))))
    renamed = []
    for file in files:
        label = chosen.get(file.label, file.label)
        if label != file.label:
            group = file.group.replace(file.label, label, 1)
            file = replace(file, label=label, group=group, notes=("class-case-merged",))
        renamed.append(file)
    return renamed


def folder_notes(source: Source, files: Iterable[ClassFile]) -> tuple[str, ...]:
    """Sentences on classes whose names differ in letter case alone, and on class folders without a file."""
    spellings: dict[str, set[str]] = {}
    for label in {file.label for file in files}:
        spellings.setdefault(label.lower(), set()).add(label)
    notes = [
        f"{' and '.join(map(shown, sorted(names)))} are {len(names)} classes, because a split has more than one of "
        "them; rename a folder if they are one"
        for _, names in sorted(spellings.items())
        if len(names) > 1
    ]
    if empty := _empty_folders(source.root):
        notes.append(f"empty: {join_words(empty, MAX_NAMED, each=shown)}; a folder without files gives no samples")
    return tuple(notes)


def _empty_folders(root: Path) -> list[str]:
    """Folders below `root` that hold nothing, by the bytes of their paths relative to it; not hidden ones."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if not folders and not files and Path(folder) != root:
            found.append(Path(folder).relative_to(root).as_posix())
    return sorted(found, key=lambda name: name.encode("utf-8", "surrogateescape"))


def keep_classes(files: list[ClassFile], wanted: Sequence[str]) -> list[ClassFile]:
    """The files of these classes, in any letter case; all files if no class is given.

    Raises:
        NotFoundError: there is no such class.
    """
    if not wanted:
        return files
    known = {file.label.lower(): file.label for file in files}
    for name in wanted:
        if name.lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            meant = (
                f"; did you mean '{known[near[0]]}'?"
                if near
                else f"; there are {join_words(sorted(known.values()), 12)}"
            )
            raise NotFoundError(f"--classes: there is no class '{name}'{meant}")
    lowered = {name.lower() for name in wanted}
    return [file for file in files if file.label.lower() in lowered]


def with_stems(files: list[ClassFile], *, whole_names: bool = False) -> list[ClassFile]:
    """Assign each file its path under `images/<split>/`: `<Class>/<file>`.

    Files of one split that would have the same path on some file system (other letter case, or other extension unless
    `whole_names`) get `~2`, `~3` in the order of the plan. A path with a number never equals the path of another file.

    Args:
        whole_names: images keep their extension, so that `1.jpg` and `1.png` are two names; frames of clips do not.
    """
    plains = [f"{safe_component(file.label)}/{safe_component(PurePosixPath(file.key).stem)}" for file in files]
    used = {plain.lower() for plain in plains}
    numbers: Counter[str] = Counter()

    def numbered(plain: str) -> str:
        while True:
            numbers[plain] += 1
            stem = f"{plain}~{numbers[plain] + 1}"
            if stem.lower() not in used:
                used.add(stem.lower())
                return stem

    taken: set[tuple[str, str, str]] = set()
    stems = []
    for file, plain in zip(files, plains, strict=True):
        suffix = PurePosixPath(file.key).suffix.lower() if whole_names else ""
        is_taken = not file.reject and (file.split, plain.lower(), suffix) in taken
        if not file.reject:
            taken.add((file.split, plain.lower(), suffix))
        stems.append(numbered(plain) if is_taken else plain)
    in_source = Counter(plain.lower() for file, plain in zip(files, plains, strict=True) if not file.reject)
    in_split = Counter(
        (file.split, plain.lower()) for file, plain in zip(files, plains, strict=True) if not file.reject
    )
    placed = []
    for file, plain, stem in zip(files, plains, stems, strict=True):
        spare = numbered(plain) if stem == plain and in_source[plain.lower()] > 1 else ""
        is_shared = whole_names and in_split[file.split, plain.lower()] > 1
        placed.append(replace(file, stem=stem, renamed=stem != plain, spare=spare, is_shared=is_shared))
    return placed


def place_data(file: ClassFile) -> dict[str, Any]:
    """The entries of an item's `data` for `place`."""
    data: dict[str, Any] = {"stem": file.stem, "notes": file.notes}
    if file.renamed:
        data["renamed"] = True
    if file.spare:
        data |= {"spare": file.spare, "split": file.split, "is_shared": file.is_shared}
    return data


def place(item: Item, note: str, *, other_suffix: bool = False) -> tuple[str, tuple[str, ...]]:
    """`<Class>/<file>` of an item, without its extension, and its notes, including `note` if it was renamed.

    Args:
        note: code of the note for a renamed item.
        other_suffix: it is stored with another extension than in the source.
    """
    data = item.data
    moved = item.split != data.get("split", item.split)  # by --split, to the split of another file with its name
    if data.get("spare") and (moved or (other_suffix and data["is_shared"])):
        return data["spare"], (*data["notes"], note)
    return data["stem"], (*data["notes"], note) if data.get("renamed") else tuple(data["notes"])
