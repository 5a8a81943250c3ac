"""Imports a chat file of another tool: `convert` with the one converter of all formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from phi3v_data.conversion import ConvertResult, convert
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import HIDDEN
from phi3v_data.formats.data_files import SUFFIXES
from phi3v_data.formats.import_options import AUTO
from phi3v_data.formats.importing import ImportRows
from phi3v_data.formats.registry import file_digest, get_format
from phi3v_data.formats.webdataset import WebDataset
from phi3v_data.remote.address import is_remote, parse_address
from phi3v_data.remote.store import open_store
from phi3v_data.shards.importing import ImportShards
from phi3v_data.shards.view import MANIFEST_OF_EXPORT, find_export
from phi3v_data.slices import SliceResult, convert_slice
from phi3v_data.sources.archive import archive_kind
from phi3v_data.sources.bucket import copy_here
from phi3v_data.sources.source import SPREADSHEETS
from phi3v_data.suffixes import is_table
from phi3v_data.tokens.registry import find_family
from phi3v_data.writing.request import ConvertSettings, Progress


def import_rows(
    format_name: str,
    source: str | Path,
    out_dir: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ConvertSettings],
) -> ConvertResult:
    """Turn a chat file of another tool into a conversations directory; interrupted, the same call resumes.

    Args:
        format_name: a format, `auto`, or `FILE.py:NAME` for one of the user's own.
        source: a data file, or a folder, archive, bucket or Hub id with one; or WebDataset shards.
        options: those of `ImportOptions`: `data`, `images_root`, `merge_turns`, `model`, `fetch`.
        progress: called as `progress(stage, done, total)`.
        settings: as for `convert`.

    Raises:
        UserError: anything that keeps the run from its end; the message says what to do.
    """
    converter, source, given = _prepare(format_name, source, out_dir, options, settings)
    return convert(converter, source, out_dir, options=given, progress=progress, **settings)


def import_slice(
    format_name: str,
    source: str | Path,
    out_dir: str | Path,
    slice: str,  # noqa: A002 - the word of the command line
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **settings: Unpack[ConvertSettings],
) -> SliceResult:
    """Import one share of the rows, as `convert_slice` does.

    Raises:
        UserError: anything that keeps the slice from its end; the message says what to do.
    """
    converter, source, given = _prepare(format_name, source, out_dir, options, settings)
    return convert_slice(converter, source, out_dir, slice, options=given, progress=progress, **settings)


def _prepare(
    format_name: str,
    source: str | Path,
    out_dir: str | Path,
    options: Mapping[str, Any] | None,
    settings: ConvertSettings,
) -> tuple[type[ImportRows | ImportShards], str | Path, dict[str, Any]]:
    """The converter, its source and its options.

    Raises:
        UserError: an unknown format, a source that needs no import, a setting that makes no sense.
    """
    given: dict[str, Any] = {**(options or {}), "format": format_name}
    if format_name != AUTO:
        cls = get_format(format_name)
        given["format"] = cls.name
        if format_name.rpartition(":")[0].endswith(".py") or format_name.endswith(".py"):
            given |= {"format_file": str(_absolute(format_name)), "format_digest": file_digest(cls)}
    if model := str(given.get("model") or ""):
        _, directory = find_family(model)  # also finds a wrong one before anything is written
        if directory is not None:
            given["model"] = str(directory.absolute())
    if str(out_dir):
        given["downloads"] = str(Path(out_dir).expanduser().absolute() / HIDDEN / "convert" / "source" / "downloads")
    if (root := str(given.get("images_root") or "")) and is_remote(root):
        given["images_address"] = str(parse_address(root))
        _check_is_there(given["images_address"])
    if is_remote(source):
        source = copy_here(str(source))
    if Path(source).name == "dataset_info.json" and Path(source).is_file():
        source = Path(source).parent
    if settings.get("unlabelled"):
        raise UserError("an import has no setting unlabelled: a row without its last answer is rejected")
    path = Path(source)
    _check_kind(path)
    converter: type[ImportRows | ImportShards] = ImportShards if _is_webdataset(path) else ImportRows
    if format_name == WebDataset.name and path.suffix == ".tar" and path.is_file():
        converter, source = ImportShards, path.absolute().parent  # as an archive, it would be unpacked
        given["data"] = path.name
    return converter, source, given


def _check_is_there(address: str) -> None:
    """Raise UserError if nothing is below an address, or it cannot be asked: every image would fail."""
    if open_store(address).is_empty():
        raise NotFoundError(f"--images_root {address}: nothing is there")


def _check_kind(path: Path) -> None:
    """Raise UserError for a file that is neither one of rows by its name, nor a table, nor an archive."""
    known = (".parquet", *SPREADSHEETS)
    if path.is_file() and not is_table(path.name) and path.suffix.lower() not in known and not archive_kind(path):
        kinds = "'.jsonl', '.json' or '.parquet'"
        raise UserError(f"'{path}' is not an archive, and a file of rows has a name that ends in {kinds}: rename it")


def _is_webdataset(source: Path) -> bool:
    """Whether a folder has shards, rather than a data file with its images in an archive."""
    export = find_export(source)
    if export is None or export.kind != "tar":
        return False
    folders = {source, *((source / shard).parent for shards in export.splits.values() for shard in shards)}
    names = [path.name for folder in folders for path in folder.iterdir()]
    return not any(name.lower().endswith(SUFFIXES) and name != MANIFEST_OF_EXPORT for name in names)


def _absolute(format_name: str) -> str:
    """`FILE.py:NAME` with the absolute path of the file, for workers."""
    file, colon, name = format_name.rpartition(":")
    return f"{Path(file).expanduser().absolute()}{colon}{name}" if colon else str(Path(name).expanduser().absolute())
