"""Images of a foreign row that are objects of a store, below an address that the user gave."""

import os
from pathlib import Path, PurePosixPath

from phi3v_data.errors import Reject
from phi3v_data.files import name_digest, process_name, unsafe_reason
from phi3v_data.media.formats import LIMITS
from phi3v_data.messages import shown
from phi3v_data.remote.store import open_store
from phi3v_data.sources.reads import not_noting


def copy_image(root: str, path: str, folder: Path, what: str) -> dict[str, str]:
    """Copy an object to a folder, unless it is there already.

    Args:
        root: address that the path is relative to.
        path: of the object.
        folder: where copies are kept, for the next use of the object.
        what: the field, for messages.

    Returns:
        The path, with forward slashes and without `.`, and where the copy is; nothing if there is no such object, or
        if the path is unsafe.

    Raises:
        Reject: `image-too-large`.
        UserError: the store cannot be asked.
    """
    plain = str(PurePosixPath(path.replace("\\", "/")))
    if unsafe_reason(plain):
        return {}
    copy = folder / name_digest(f"{root}/{plain}", 32)
    with not_noting():  # a copy does not belong to the source
        if not copy.exists():
            data = open_store(root).get(plain, LIMITS.file_bytes + 1)
            if data is None:
                return {}
            if len(data) > LIMITS.file_bytes:
                raise Reject("image-too-large", f"{what}: {shown(path)} has more than {LIMITS.file_bytes:,} bytes")
            folder.mkdir(parents=True, exist_ok=True)
            aside = copy.with_name(f"{copy.name}.{process_name()}")
            aside.write_bytes(data)
            os.replace(aside, copy)
    return {plain: str(copy)}
