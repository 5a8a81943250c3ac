"""The files that a run writes into the folders of its output folder, so that it deletes no others.

    OUT/.trash-model   a folder that is being deleted, so that no moment leaves a part of it under its own name

What somebody else put into such a folder stays where it is.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from phi3v_data.files import read_json

MODEL, TENSORBOARD, PREDICTIONS = "model", "tensorboard", "predictions"
COMPLETE, STATE = "COMPLETE.json", "state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
TRASH = ".trash-"

_OF_MODEL = r"""
    (model|adapter_model)(-\d+-of-\d+)?\.safetensors | model\.safetensors\.index\.json
    | (config|generation_config|adapter_config|best)\.json
    | (processor_config|preprocessor_config|image_processor_config|video_preprocessor_config)\.json
    | (tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json
    | (tokenizer|spiece|sentencepiece(\.bpe)?)\.model | (vocab|merges)\.txt
    | chat_template\.jinja | additional_chat_templates/[^/]+\.jinja
"""
_OF_CHECKPOINT = rf"""
    {_OF_MODEL} | COMPLETE\.json | state\.json | optimizer\.pt | optimizer-\d+-of-\d+\.safetensors
    | (shards/)?scaler\.json | shards/rank-\d+-of-\d+-\d+\.safetensors
"""
_OF_PREDICTIONS = r"""
    step-\d+/(predictions\.jsonl | evaluation\.json | eval\.json | confusion\.png | \.lock | \.predictions-\d+\.jsonl
    | \.[^/]+\.tmp)
"""
_PATTERNS = {
    MODEL: re.compile(_OF_MODEL, re.VERBOSE),
    TENSORBOARD: re.compile(r"events\.out\.tfevents\.[^/]+"),
    PREDICTIONS: re.compile(_OF_PREDICTIONS, re.VERBOSE),
}
_CHECKPOINT_FILES = re.compile(_OF_CHECKPOINT, re.VERBOSE)


def own_files(folder: Path, name: str) -> Callable[[str], bool]:
    """Whether a run writes a file, by its path in `folder`; `name` is the folder's own name: `model`."""
    if CHECKPOINT.fullmatch(name):
        files = None
        with suppress(OSError):  # of a damaged one the names decide
            files = (read_json(folder / COMPLETE) or {}).get("files")
        listed = frozenset(files if isinstance(files, dict) else ())
        return lambda path: path in listed or _CHECKPOINT_FILES.fullmatch(path) is not None
    pattern = _PATTERNS[name]
    return lambda path: pattern.fullmatch(path) is not None


def is_removed(name: str) -> bool:
    """Whether a name in a run's folder is that of a folder that was being deleted."""
    home = name.removeprefix(TRASH)
    return home != name and (home in _PATTERNS or CHECKPOINT.fullmatch(home) is not None)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder of a checkpoint's name has a file of a checkpoint, damaged or not."""
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return any(name == "shards" or _CHECKPOINT_FILES.fullmatch(name) for name in names)


def trash_of(path: Path) -> Path:
    """Where a folder is while it is being deleted."""
    return path.with_name(f"{TRASH}{path.name}")


def remove(path: Path) -> None:
    """Delete what a run wrote in one of its folders; other files stay in a folder of that name, and so does a link."""
    if path.is_dir() and not path.is_symlink():
        trash = trash_of(path)
        finish_removal(trash)
        os.replace(path, trash)
        finish_removal(trash)


def finish_removal(trash: Path) -> None:
    """Delete the files of a run in a folder that was put aside; other files go back to where they were."""
    if trash.is_symlink() or not trash.is_dir():
        return
    home = trash.with_name(trash.name.removeprefix(TRASH))
    is_own = own_files(trash, home.name)
    # The list of a checkpoint's files goes last: a killed removal needs it again.
    for path in sorted(_files(trash), key=lambda path: path == COMPLETE):
        with suppress(OSError):
            if is_own(path):
                os.unlink(trash / path)
            elif not home.is_symlink():
                (home / path).parent.mkdir(parents=True, exist_ok=True)
                os.rename(trash / path, _free_name(home / path))
    for folder, _, _ in os.walk(trash, topdown=False):
        with suppress(OSError):  # what could not be deleted or put back stays here
            os.rmdir(folder)


def _files(folder: Path) -> Iterator[str]:
    """Paths in a folder of everything but folders."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            yield os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/")


def _free_name(path: Path) -> Path:
    """The path, or one with a number where somebody has put another file there meanwhile."""
    number, free = 0, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
