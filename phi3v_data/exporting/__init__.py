"""Writes a conversations directory as the files of other tools: `export_set("sharegpt", DIR, PATH)`.

An export appears at PATH complete or not at all. What the format cannot carry stops it before anything is written,
unless `lossy`, which writes the rest and counts what was lost.
"""

from phi3v_data.exporting.request import ExportRequest, ExportResult, Loss
from phi3v_data.exporting.run import LossyError, export_set

__all__ = ["ExportRequest", "ExportResult", "Loss", "LossyError", "export_set"]
