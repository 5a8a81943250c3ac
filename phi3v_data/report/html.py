"""The report of a validation as one self-contained HTML file, with a gallery of the set."""

from importlib.resources import files
from pathlib import Path

from phi3v_data.dataset import Dataset
from phi3v_data.errors import NotFoundError
from phi3v_data.report.frame import PageParts, check_target, make_page, write_page
from phi3v_data.report.gallery import Collected, collect
from phi3v_data.report.payload import PagePayload, Progress
from phi3v_data.schema import Report
from phi3v_data.shards.view import data_directory

SECTIONS = (("Overview", "overview"), ("Problems", "problems"), ("Gallery", "gallery"))


def write_html(report: Report, directory: str | Path, target: str | Path, *, progress: Progress | None = None) -> None:
    """Write the page to `target`, atomically; rows and images are read from `directory`.

    Raises:
        UserError: `target` cannot be written, or is a file of the set or any other file that is not a page.
    """
    path = Path(target)
    check_target(path, Path(directory))
    write_page(path, make_html(report, directory, progress=progress))


def make_html(report: Report, directory: str | Path, *, progress: Progress | None = None) -> bytes:
    """The HTML page of a report."""
    dataset = _open(Path(directory))
    found = collect(dataset, report) if dataset else Collected()
    payload = PagePayload(report, dataset, found, progress).make()
    page = files("phi3v_data.report").joinpath("page")
    body, script = (page.joinpath(name).read_text(encoding="utf-8") for name in ("report.html", "report.js"))
    return make_page(payload, PageParts(SECTIONS, body, script), title=f"{payload['name']}: validation report")


def _open(directory: Path) -> Dataset | None:
    if directory.is_file():
        return None
    try:
        return Dataset(data_directory(directory), strict=False)
    except NotFoundError:
        return None
