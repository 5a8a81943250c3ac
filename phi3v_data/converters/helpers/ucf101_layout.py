"""The clips of a source with the layout of UCF-101, with split and class; clips are not opened."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from phi3v_data.converters.helpers.class_folders import (
    ClassFile,
    are_split_folders,
    from_folders,
    keep_classes,
    one_spelling,
    order,
    with_stems,
)
from phi3v_data.converters.helpers.ucf101_lists import ListEntry, class_names, is_class_index, is_list, read_lists
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import shown
from phi3v_data.sources.source import Source, SourceFile
from phi3v_data.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_GROUP = re.compile(r"_(g[0-9]+)_c[0-9]+$", re.IGNORECASE)
_UCF_NAME = re.compile(r"v_\w+_g[0-9]+_c[0-9]+", re.IGNORECASE)
_LISTED_ELSEWHERE = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask", "annotations", "lists", "splits")
UCF_WORDS = "UCF-101, https://www.crcv.ucf.edu/data/UCF101.php"


@dataclass(frozen=True, slots=True)
class Layout:
    """All clips in the order of numbering, and the class names; `is_ucf101`: all clips are named as in UCF-101."""

    clips: tuple[ClassFile, ...]
    classes: tuple[str, ...]
    is_ucf101: bool


def find_layout(source: Source, *, fold: int | None = None, lists: str = "", wanted: Sequence[str] = ()) -> Layout:
    """Detect the layout and list its clips, ordered by split, then by the bytes of the path.

    Args:
        fold: official lists to use; None: fold 1 if there are lists.
        lists: folder of the lists, if it is not in the source or next to it.
        wanted: names of the classes to keep, in any letter case; empty: all.

    Raises:
        UserError: no clips, clips outside of class folders, lists of another task, or an unknown class.
    """
    videos = source.files(VIDEO_SUFFIXES)
    if not videos:
        raise NotFoundError(_nothing_found(source))
    list_files = _find_lists(source, lists)
    in_splits = are_split_folders(videos)
    if list_files and (fold or lists or not in_splits):
        clips = _from_lists(videos, read_lists(list_files, fold or 1))
    elif fold:
        raise NotFoundError(
            f"--fold {fold} needs the official lists (trainlist0{fold}.txt, testlist0{fold}.txt); put their folder "
            "ucfTrainTestlist next to the clips, or give it with --lists"
        )
    else:
        clips = from_folders(videos, in_splits=in_splits, what="clip", group_of=_group)
    texts = source.files((".txt",))
    source.use([*videos, *(file for file in texts if file in list_files or is_class_index(file))])
    clips = one_spelling(clips, class_names([*texts, *list_files]))
    clips = keep_classes(clips, wanted)
    clips = with_stems(sorted(clips, key=order))
    classes = tuple(sorted({clip.label for clip in clips if clip.label}))
    official = all(_UCF_NAME.fullmatch(PurePosixPath(clip.key).stem) for clip in clips)
    return Layout(tuple(clips), classes, official)


def _group(label: str, key: str) -> str:
    """The film that a clip was cut from, by the naming of UCF-101; empty for other names."""
    group = _GROUP.search(PurePosixPath(key).stem)
    return f"{label}/{group[1].lower()}" if group else ""


def _nothing_found(source: Source) -> str:
    packed = [file.path for file in source.files((".rar", ".zip", ".tar", ".tar.gz", ".tgz"))]
    if packed:
        return f"there is no clip in '{source.spec}', but the archive '{packed[0]}': unpack it, or use it as --source"
    if images := source.files(IMAGE_SUFFIXES):
        return (
            f"there is no clip in '{source.spec}', but {len(images):,} images: for images in class folders, "
            "phi3v-data convert image_folder"
        )
    return (
        f"there is no clip ({', '.join(VIDEO_SUFFIXES[:5])}, ...) in '{source.spec}'; expected "
        "train/<Class>/<clip>.avi, or <Class>/<clip>.avi"
    )


def _find_lists(source: Source, lists: str) -> list[SourceFile]:
    """The official lists and class names: given by the user, in the source, or in a folder next to it."""
    if lists:
        if not Path(lists).is_dir():
            raise NotFoundError(f"--lists '{lists}' is not a folder; give the one with trainlist01.txt")
        found = list(Source.open(lists).files((".txt",)))
        if not any(is_list(Path(file.path).name) for file in found):
            raise NotFoundError(f"--lists '{lists}' contains no trainlist01.txt")
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


def _from_lists(videos: Sequence[SourceFile], entries: Sequence[ListEntry]) -> list[ClassFile]:
    """Match entries with files, by folder and name ignoring letter case, else by name only.

    Entries without a file and files without an entry are planned as rejects, so that they are counted.
    """
    by_path: dict[tuple[str, str], list[SourceFile]] = {}
    by_name: dict[str, list[SourceFile]] = {}
    for video in videos:
        path = PurePosixPath(video.path)
        for name in {path.name.lower(), path.stem.lower()}:
            by_path.setdefault((path.parent.name.lower(), name), []).append(video)
            by_name.setdefault(name, []).append(video)
    clips: list[ClassFile] = []
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
                f"{entry.where}: '{entry.path}' could be '{found[0].where}' or '{found[1].where}'; give a source that "
                "contains each clip once"
            )
        if not found:
            message = f"{entry.where} names {shown(entry.path)}, which is not in the source"
            key = f"{entry.label}/{entry.file_name}"
            clips.append(ClassFile(entry.split, entry.label, key, reject="video-missing", message=message))
            continue
        video = found[0]
        if video.path in used:
            other = used[video.path]
            raise UserError(f"'{video.where}' is listed twice, at {other.where} and {entry.where}; remove one line")
        used[video.path] = entry
        key = f"{entry.label}/{PurePosixPath(video.path).name}"
        clips.append(ClassFile(entry.split, entry.label, key, str(video.file), video.size, _group(entry.label, key)))
    for video in videos:
        if video.path not in used:
            message = f"{shown(video.where)} is in neither of the two lists, so its split is unknown"
            label = PurePosixPath(video.path).parent.name
            clips.append(ClassFile("train", label, video.path, reject="not-in-lists", message=message))
    return clips
