"""Finds the exporter of a format by name."""

from difflib import get_close_matches

from phi3v_data.errors import NotFoundError
from phi3v_data.exporting.exporter import Exporter
from phi3v_data.exporting.image_folder import ImageFolderFiles
from phi3v_data.exporting.mosaicml import MosaicFiles
from phi3v_data.exporting.parquet import HubFiles
from phi3v_data.exporting.request import ExportRequest
from phi3v_data.exporting.row_files import OpenAIFiles, RowFiles, ShareGPTFiles
from phi3v_data.exporting.shards import EnergonFiles, WebDatasetFiles
from phi3v_data.formats.registry import get_format

EXPORTERS: dict[str, type[Exporter]] = {
    "llava": RowFiles,
    "sharegpt": ShareGPTFiles,
    "swift": RowFiles,
    "openai": OpenAIFiles,
    "trl": RowFiles,
    "qwen": RowFiles,
    "axolotl": RowFiles,
    "hub": HubFiles,
    "imagefolder": ImageFolderFiles,
    "webdataset": WebDatasetFiles,
    "energon": EnergonFiles,
    "mosaicml": MosaicFiles,
}
"""Every format that can be written -> how its rows become files."""

ROWS_OF = {"energon": "webdataset", "mosaicml": "webdataset"}
"""Format -> the format of its rows, if that has another name."""


def make_exporter(name: str, request: ExportRequest) -> Exporter:
    """The exporter of a format; one of the user's own, `FILE.py:NAME`, becomes one file per split.

    Raises:
        NotFoundError: there is no such format.
        UserError: the request has a setting that the format does not have.
    """
    if name in EXPORTERS:
        return EXPORTERS[name](request, get_format(ROWS_OF.get(name, name))())
    if near := get_close_matches(name, EXPORTERS, 1):
        raise NotFoundError(f"no format '{name}' to export to; did you mean {near[0]}?")
    try:
        return RowFiles(request, get_format(name)())
    except NotFoundError as error:
        if name.endswith(".py") or ".py:" in name:
            raise
        raise NotFoundError(
            f"no format '{name}' to export to; the formats are {', '.join(EXPORTERS)}, or FILE.py:NAME for one of your "
            "own"
        ) from error
