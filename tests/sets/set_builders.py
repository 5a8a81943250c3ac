"""Small sets for the tests of split, merge, clean and the rest: real files, real images."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phi3v_data.schema import Manifest, SplitInfo
from phi3v_data.splits import parse_file_name


def make_image(seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Image.Image:
    """A smooth pattern that no other seed comes near."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(20, 230, (6, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(seed: int) -> bytes:
    return encoded(make_image(seed))


def row(row_id: str, *images: str, group: str = "", answer: str = "A shape.", user: str = "") -> dict[str, Any]:
    turn = {"images": list(images), "user": user or f"What is {row_id}?", "assistant": answer}
    value: dict[str, Any] = {"id": row_id, "source": "test", "conversations": [turn]}
    return value | ({"group": group} if group else {})


def write_set(
    folder: Path,
    splits: Mapping[str, Sequence[dict[str, Any] | str]],
    images: Mapping[str, bytes] | None = None,
    **manifest: Any,
) -> Path:
    """A directory of JSONL files by name; with keywords for the manifest, a complete one."""
    folder.mkdir(parents=True, exist_ok=True)
    infos: dict[str, SplitInfo] = {}
    for name, content in splits.items():
        text = "".join(
            (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) + "\n" for value in content
        )
        (folder / name).write_bytes(text.encode())
        parsed = parse_file_name(name)
        assert parsed is not None
        used = {path for value in content if isinstance(value, dict) for path in row_paths(value)}
        digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        infos[parsed.split] = SplitInfo(
            rows=len(content), images=len(used), files={name: digest}, labelled=manifest.pop("labelled", True)
        )
    for name, data in (images or {}).items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if manifest:
        (folder / "dataset.json").write_text(
            Manifest(**({"name": "test", "task": "vqa", "splits": infos} | manifest)).to_json()
        )
    return folder


def row_paths(value: Mapping[str, Any]) -> list[str]:
    return [path for turn in value["conversations"] for path in turn["images"]]


def read_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each split, as the files have them."""
    result: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        parsed = parse_file_name(path.name)
        if parsed is not None and path.name not in ("rejects.jsonl", "removed.jsonl"):
            result.setdefault(parsed.split, []).extend(map(json.loads, path.read_text().splitlines()))
    return result


def split_of(folder: Path) -> dict[str, str]:
    """Split of each id."""
    return {value["id"]: split for split, values in read_rows(folder).items() for value in values}


def tree(folder: Path, *, hidden: bool = False) -> dict[str, str]:
    """Digest of each file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (hidden or not path.relative_to(folder).as_posix().startswith(".phi3v"))
    }
