"""Croissant: a description of a directory as JSON-LD, which carries no data.

One `FileObject` per file of rows with its sha256, one `FileSet` for the images, one `RecordSet` per split.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.files import open_regular, unreadable, write_json
from phi3v_data.schema import Manifest
from phi3v_data.suffixes import IMAGE_SUFFIXES

CONFORMS = "http://mlcommons.org/croissant/1.1"

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

FIELDS: dict[str, tuple[str, str]] = {
    "id": ("Unique within the set.", ""),
    "users": ("The user texts of the turns.", "$[*].user"),
    "assistants": ("The assistant texts of the turns.", "$[*].assistant"),
    "images": ("The image files of the turns, under images/.", "$[*].images[*]"),
}
"""Field of a record -> its description, and its path in `conversations`."""


def write_croissant(directory: str | Path, path: str | Path, *, overwrite: bool = False) -> int:
    """Write the description of a directory to a file; addresses in it are relative to the file. The number of rows.

    Raises:
        UserError: there is a file already, or the directory cannot be read.
    """
    target = Path(path)
    if target.is_dir() or target.suffix != ".json":
        raise UserError(f"{target}: --out of croissant is a file such as {Path(directory) / 'croissant.json'}")
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists; --overwrite replaces it")
    dataset = Dataset(directory)
    if (dataset.directory / "images").is_file():
        raise UserError(
            f"{directory}: croissant describes image files, and these images are in shards; describe a copy made with "
            f"`phi3v-data store {directory} OUT --store files`"
        )
    write_json(target, describe(dataset, target.parent))
    return sum(len(dataset[split]) for split in dataset)


def describe(dataset: Dataset, base: Path) -> dict[str, Any]:
    """The description, with addresses relative to `base`."""
    manifest = dataset.manifest or Manifest(name="", task="chat", splits={})
    name = manifest.name or Path(os.path.abspath(dataset.directory)).name
    where = Path(os.path.relpath(dataset.directory, base))
    files = [_file(dataset, split, file, where) for split, names in dataset.files.items() for file in names]
    shards = [_shards(split, names, where) for split, names in dataset.files.items() if len(names) > 1]
    images = {
        "@type": "cr:FileSet",
        "@id": "images",
        "name": "images",
        "description": "Images that the conversations name.",
        "encodingFormat": "image/*",
        "includes": [_address(where / "images" / f"**/*{suffix}") for suffix in IMAGE_SUFFIXES],
    }
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS,
        "name": name,
        "description": manifest.source or f"Conversations about images: {name}.",
        **({"license": manifest.license} if manifest.license else {}),
        "distribution": [*files, *shards, images],
        "recordSet": [_records(split, names) for split, names in dataset.files.items()],
    }


def _file(dataset: Dataset, split: str, name: str, where: Path) -> dict[str, Any]:
    info = dataset.manifest.splits.get(split) if dataset.manifest else None
    digest = info.files.get(name, "") if info else ""
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": f"Rows of the split {split}, one JSON object per line.",
        "contentUrl": _address(where / name),
        "encodingFormat": "application/jsonlines",
        "sha256": digest.removeprefix("sha256:") if len(digest) == 71 else _sha256(dataset.directory / name),
    }


def _shards(split: str, names: Sequence[str], where: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-files",
        "name": f"{split}-files",
        "description": f"All files of the split {split}.",
        "encodingFormat": "application/jsonlines",
        "includes": [_address(where / name) for name in names],
    }


def _records(split: str, files: Sequence[str]) -> dict[str, Any]:
    source = {"fileSet": {"@id": f"{split}-files"}} if len(files) > 1 else {"fileObject": {"@id": files[0]}}
    fields = []
    for key, (text, json_path) in FIELDS.items():
        field: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": f"{split}/{key}",
            "name": f"{split}/{key}",
            "description": text,
            "dataType": "sc:Text",
            "source": {**source, "extract": {"column": "conversations" if json_path else key}},
        }
        if json_path:
            field["source"]["transform"] = {"jsonPath": json_path}
            field["repeated"] = True
        fields.append(field)
    description = f"Samples of the split {split}."
    return {"@type": "cr:RecordSet", "@id": split, "name": split, "description": description, "field": fields}


def _address(path: Path) -> str:
    return quote(path.as_posix(), safe="/*")


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    except OSError as error:
        raise unreadable(path, error) from None
    return hasher.hexdigest()
