"""Prepare and validate conversations directories; the public names are imported on first use.

import phi3v_data

class MyDocs(phi3v_data.Converter[MyOptions]): ...
phi3v_data.convert(MyDocs, source="docs/", out_dir="out/")
"""

from typing import TYPE_CHECKING

from phi3v_data.lazy import lazy_names

if TYPE_CHECKING:
    from phi3v_data.conversion import ConvertResult, convert
    from phi3v_data.dataset import Dataset
    from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftImage, DraftTurn, Item, Options, converter
    from phi3v_data.errors import BusyError, NotFoundError, Reject, UserError
    from phi3v_data.schema import Manifest, Report, Sample, Turn
    from phi3v_data.shards.view import open_dataset
    from phi3v_data.slices import SliceResult, convert_slice
    from phi3v_data.sources.source import Source

    __version__: str

_HOMES = {
    "BusyError": "phi3v_data.errors",
    "ConvertResult": "phi3v_data.conversion",
    "Converter": "phi3v_data.draft",
    "Dataset": "phi3v_data.dataset",
    "DatasetInfo": "phi3v_data.draft",
    "Draft": "phi3v_data.draft",
    "DraftImage": "phi3v_data.draft",
    "DraftTurn": "phi3v_data.draft",
    "Item": "phi3v_data.draft",
    "Manifest": "phi3v_data.schema",
    "NotFoundError": "phi3v_data.errors",
    "Options": "phi3v_data.draft",
    "Reject": "phi3v_data.errors",
    "Report": "phi3v_data.schema",
    "Sample": "phi3v_data.schema",
    "SliceResult": "phi3v_data.slices",
    "Source": "phi3v_data.sources.source",
    "Turn": "phi3v_data.schema",
    "UserError": "phi3v_data.errors",
    "convert": "phi3v_data.conversion",
    "convert_slice": "phi3v_data.slices",
    "converter": "phi3v_data.draft",
    "open_dataset": "phi3v_data.shards.view",
}

__all__ = [  # noqa: RUF022 - by role
    "__version__",
    "Converter",
    "converter",
    "Options",
    "Source",
    "Item",
    "Draft",
    "DraftImage",
    "DraftTurn",
    "DatasetInfo",
    "convert",
    "ConvertResult",
    "convert_slice",
    "SliceResult",
    "Dataset",
    "open_dataset",
    "Sample",
    "Turn",
    "Manifest",
    "Report",
    "UserError",
    "NotFoundError",
    "BusyError",
    "Reject",
]


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
