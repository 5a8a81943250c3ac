"""Which clips a UCF-101-shaped source has, in which split and of which class; no clip is opened."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from phi3v_data.converters.source import Source, SourceFile
from phi3v_data.converters.ucf101_lists import ListEntry, is_list, read_lists
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import safe_component
from phi3v_data.splits import split_sort_key
from phi3v_data.suffixes import VIDEO_SUFFIXES

SPLIT_FOLDERS = {
    "train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "dev", "test": "test",
}  # fmt: skip
_GROUP = re.compile(r"_(g[0-9]+)_c[0-9]+$", re.IGNORECASE)
_UCF_NAME = re.compile(r"v_\w+_g[0-9]+_c[0-9]+", re.IGNORECASE)
_LISTED_ELSEWHERE = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask", "annotations", "lists", "splits")
UCF_WORDS = "UCF-101, https://www.crcv.ucf.edu/data/UCF101.php"


@dataclass(frozen=True, slots=True)
class PlannedClip:
    """A clip, or an entry for which there is none (`reject` says why)."""

    split: str
    label: str
    key: str  # {split}/{Class}/{file} or {Class}/{file}: without the folders above, so that archive and folder agree
    path: str = ""
    size: int = 0
    group: str = ""
    stem: str = ""  # {Class}/{clip}, safe as a path, unique in the source
    notes: tuple[str, ...] = ()
    reject: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """All clips in the order of numbering, and the class names."""

    clips: tuple[PlannedClip, ...]
    classes: tuple[str, ...]
    words: str


def find_layout(source: Source, *, fold: int | None = None, lists: str = "", wanted: Sequence[str] = ()) -> Layout:
    """Recognise the layout and list its clips, ordered by split, then by the bytes of the path.

    Args:
        fold: which official lists to use; None: fold 1 where there are lists.
        lists: folder of the lists, where it is not in the source or beside it.
        wanted: names of the classes to keep, in any case; empty: all.

    Raises:
        UserError: no clips, clips that lie in no class folder, lists of another task, an unknown class.
    """
    videos = source.files(VIDEO_SUFFIXES)
    if not videos:
        raise NotFoundError(_nothing_found(source))
    list_files = _find_lists(source, lists)
    in_splits = _are_split_folders(videos)
    if list_files and (fold or lists or not in_splits):
        clips = _from_lists(videos, read_lists(list_files, fold or 1))
    elif fold:
        raise NotFoundError(
            f"--fold {fold} needs the official lists (trainlist0{fold}.txt, testlist0{fold}.txt); put their folder "
            "ucfTrainTestlist beside the clips or name it with --lists"
        )
    else:
        clips = _from_folders(videos, in_splits=in_splits)
    clips = _keep(clips, wanted)
    clips = _with_stems(sorted(clips, key=_order))
    classes = tuple(sorted({clip.label for clip in clips if clip.label}))
    official = all(_UCF_NAME.fullmatch(PurePosixPath(clip.key).stem) for clip in clips)
    return Layout(tuple(clips), classes, UCF_WORDS if official else "clips sorted into class folders")


def _order(clip: PlannedClip) -> tuple[object, ...]:
    """By split, then by the bytes of the path; clips without a split come after all of train and move no number."""
    return *split_sort_key(clip.split), clip.reject == "not-in-lists", clip.key.encode()


def read_class_filter(value: str) -> str:
    """`A, B` as it is; a file with one class a line (a number before it, as in classInd.txt, is passed over) joined."""
    if not value or "\n" in value or not Path(value).is_file():
        return value
    try:
        text = Path(value).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in '{value}' as text: {error}") from error
    names = [re.sub(r"^[0-9]+\s+", "", line.strip()) for line in text.splitlines() if line.strip()]
    return "\n".join(names) + "\n"


def _nothing_found(source: Source) -> str:
    packed = [file.path for file in source.files((".rar", ".zip", ".tar", ".tar.gz", ".tgz"))]
    if packed:
        return f"there is no clip in '{source.spec}', but the archive '{packed[0]}': unpack it, or give it as --source"
    return (
        f"there is no clip ({', '.join(VIDEO_SUFFIXES[:5])}, ...) in '{source.spec}'; expected "
        "train/<Class>/<clip>.avi, or <Class>/<clip>.avi"
    )


def _find_lists(source: Source, lists: str) -> list[SourceFile]:
    """The official lists and class names: named by the user, in the source, or in a folder beside it."""
    if lists:
        if not Path(lists).is_dir():
            raise NotFoundError(f"--lists '{lists}' is not a folder; give the one that holds trainlist01.txt")
        found = list(Source.open(lists).files((".txt",)))
        if not any(is_list(Path(file.path).name) for file in found):
            raise NotFoundError(f"--lists '{lists}' holds no trainlist01.txt")
        return found
    texts = list(source.files((".txt",)))
    if any(is_list(PurePosixPath(file.path).name) for file in texts):
        return texts
    if source.kind != "folder":
        return []
    for folder in (source.root.resolve().parent / name for name in _LISTED_ELSEWHERE):
        if folder.is_dir():
            beside = list(Source("folder", folder, str(folder)).files((".txt",)))
            if any(is_list(PurePosixPath(file.path).name) for file in beside):
                return beside
    return []


def _split_place(path: PurePosixPath) -> int | None:
    """Which folder of a path is a split with a class folder below it."""
    for place, part in enumerate(path.parts[:-2]):
        if part.lower() in SPLIT_FOLDERS:
            return place
    return None


def _are_split_folders(videos: Iterable[SourceFile]) -> bool:
    """Whether the clips lie in split folders; a lone class called `test` does not make one."""
    return any(_split_place(PurePosixPath(video.path)) is not None for video in videos)


def _from_folders(videos: Sequence[SourceFile], *, in_splits: bool) -> list[PlannedClip]:
    first = PurePosixPath(videos[0].path)
    depth = len(first.parts)
    clips = []
    for video in videos:
        path = PurePosixPath(video.path)
        if in_splits:
            place = _split_place(path)
            split = SPLIT_FOLDERS[path.parts[place].lower()] if place is not None else ""
            inner = path.parts[place + 1 :] if place is not None else ()
        else:
            split, inner = "train", path.parts[-2:]
            if len(path.parts) != depth:
                raise UserError(
                    f"the clips '{first}' and '{path}' lie at different depths, so it is unclear which folder is the "
                    "class; expected <Class>/<clip> for all"
                )
        if len(inner) < 2:
            shape = "<split>/<Class>/<clip>" if in_splits else "<Class>/<clip>"
            raise UserError(
                f"the clip '{video.path}' lies in no class folder, so its class is unknown; expected {shape} under "
                f"'{source_name(video)}': move it into its class or out of the source"
            )
        key = "/".join((split, *inner)) if in_splits else "/".join(inner)
        clips.append(_clip(video, split, inner[0], key))
    return _one_spelling(clips)


def source_name(video: SourceFile) -> str:
    """The source's root as this file sees it."""
    root = video.file
    for _ in PurePosixPath(video.path).parts:
        root = root.parent
    return root.name


def _clip(video: SourceFile, split: str, label: str, key: str) -> PlannedClip:
    group = _GROUP.search(PurePosixPath(key).stem)
    return PlannedClip(
        split=split,
        label=label,
        key=key,
        path=str(video.file),
        size=video.size,
        group=f"{label}/{group[1].lower()}" if group else "",
    )


def _one_spelling(clips: list[PlannedClip]) -> list[PlannedClip]:
    """One spelling a class where splits differ in case (re-packs do): that of the first split, train before all.

    Two spellings within one split are two classes.
    """
    spellings: dict[str, dict[str, set[str]]] = {}
    for clip in clips:
        spellings.setdefault(clip.label.lower(), {}).setdefault(clip.split, set()).add(clip.label)
    chosen: dict[str, str] = {}
    for by_split in spellings.values():
        names = set().union(*by_split.values())
        if len(names) > 1 and all(len(found) == 1 for found in by_split.values()):
            first = min(by_split, key=split_sort_key)
            chosen.update(dict.fromkeys(names, next(iter(by_split[first]))))
    renamed = []
    for clip in clips:
        label = chosen.get(clip.label, clip.label)
        if label != clip.label:
            group = clip.group.replace(clip.label, label, 1)
            clip = replace(clip, label=label, group=group, notes=("class-case-merged",))
        renamed.append(clip)
    return renamed


def _from_lists(videos: Sequence[SourceFile], entries: Sequence[ListEntry]) -> list[PlannedClip]:
    """Match entries with files, by folder and name without case, else by name alone.

    An entry without a file and a file without an entry are both planned as rejects, so that they are counted.
    """
    by_path: dict[tuple[str, str], list[SourceFile]] = {}
    by_name: dict[str, list[SourceFile]] = {}
    for video in videos:
        path = PurePosixPath(video.path)
        for name in {path.name.lower(), path.stem.lower()}:
            by_path.setdefault((path.parent.name.lower(), name), []).append(video)
            by_name.setdefault(name, []).append(video)
    clips: list[PlannedClip] = []
    used: dict[str, ListEntry] = {}
    for entry in entries:
        name = entry.file_name.lower()
        stem = PurePosixPath(name).stem
        found = (
            by_path.get((entry.label.lower(), name))
            or by_name.get(name)
            or by_path.get((entry.label.lower(), stem))
            or by_name.get(stem)
            or []
        )
        if len(found) > 1:
            raise UserError(
                f"{entry.where}: '{entry.path}' could be '{found[0].path}' or '{found[1].path}'; give a source that "
                "holds each clip once"
            )
        key = f"{entry.label}/{entry.file_name}"
        if not found:
            message = f"{entry.where} names '{entry.path}', which is not in the source"
            clips.append(PlannedClip(entry.split, entry.label, key, reject="video-missing", message=message))
            continue
        video = found[0]
        if video.path in used:
            other = used[video.path]
            raise UserError(f"'{video.path}' is listed twice, at {other.where} and {entry.where}; remove one line")
        used[video.path] = entry
        clips.append(_clip(video, entry.split, entry.label, f"{entry.label}/{PurePosixPath(video.path).name}"))
    for video in videos:
        if video.path not in used:
            message = f"'{video.path}' is in none of the two lists, so its split is unknown"
            label = PurePosixPath(video.path).parent.name
            clips.append(PlannedClip("train", label, video.path, reject="not-in-lists", message=message))
    return clips


def _keep(clips: list[PlannedClip], wanted: Sequence[str]) -> list[PlannedClip]:
    if not wanted:
        return clips
    known = {clip.label.lower(): clip.label for clip in clips}
    for name in wanted:
        if name.lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            meant = f"; meant '{known[near[0]]}'?" if near else f"; there are {', '.join(sorted(known.values())[:12])}"
            raise NotFoundError(f"--classes: there is no class '{name}'{meant}")
    lowered = {name.lower() for name in wanted}
    return [clip for clip in clips if clip.label.lower() in lowered]


def _with_stems(clips: list[PlannedClip]) -> list[PlannedClip]:
    """Give each clip its place under `images/<split>/`: `<Class>/<clip>`.

    Clips that would share one on some file system (same stem with another suffix or case) get `~2`, `~3` in the order
    of the plan; noted as `clip-renamed`.
    """
    taken: set[str] = set()
    placed = []
    for clip in clips:
        path = PurePosixPath(clip.key)
        plain = f"{safe_component(clip.label)}/{safe_component(path.stem)}"
        stem, number = plain, 1
        while stem.lower() in taken:
            number += 1
            stem = f"{plain}~{number}"
        taken.add(stem.lower())
        notes = (*clip.notes, "clip-renamed") if number > 1 else clip.notes
        placed.append(replace(clip, stem=stem, notes=notes))
    return placed
