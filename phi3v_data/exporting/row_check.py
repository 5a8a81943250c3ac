"""Whether a row can be written, and what its readers would do with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phi3v_data.choices import ImageRefs
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.exporting.exporter import Exporter
from phi3v_data.exporting.losses import NO_ANSWER
from phi3v_data.formats.chat import Chat, ImageRef, Message, Written
from phi3v_data.formats.consumers.base import Consumer, RowView
from phi3v_data.formats.consumers.limits import LIMITS, Service
from phi3v_data.formats.consumers.registry import get_consumer
from phi3v_data.formats.turns import to_chat
from phi3v_data.schema import Sample


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the check of one row.

    Attributes:
        lost: reasons why it is not written, or not whole.
        warnings: what its readers change or train wrongly.
        is_left_out: it is not written at all, with `lossy` either.
    """

    chat: Chat
    written: Written
    lost: dict[str, str]
    warnings: dict[str, str]
    is_left_out: bool


@dataclass(frozen=True)
class RowCheck:
    """Checks the rows of one export; `root` contains `images/`."""

    exporter: Exporter
    root: Path

    def check(self, sample: Sample, consumer: Consumer | None) -> Verdict:
        """Check a row; `consumer` is that of `make_consumer`."""
        chat = to_chat(sample, lambda name: f"images/{name}")
        written = self.exporter.row_format.write(chat)
        lost = dict.fromkeys(written.lost, "")
        warnings: dict[str, str] = {}
        is_left_out = has_no_answer(sample)
        if is_left_out:
            lost = {NO_ANSWER: ""}
        elif consumer is not None:
            view = RowView(written.row, chat, self.exporter.row_format, self.root, is_export=True)
            for fault in consumer.check(view):
                if self.exporter.request.target and fault.severity in (None, "error"):
                    lost.setdefault(fault.code, fault.message)
                    is_left_out = True
                elif fault.code not in lost:
                    warnings.setdefault(fault.code, fault.message)
        return Verdict(chat, written, lost, warnings, is_left_out)

    def make_consumer(self) -> Consumer | None:
        """The tool whose rules are checked: the target, else the reader of the format."""
        target = self.exporter.request.target
        if target:
            return get_consumer(target)()
        if not self.exporter.asks_reader:
            return None
        try:
            consumer = get_consumer(self.exporter.row_format.consumer)()
        except NotFoundError:
            return None
        return None if isinstance(consumer, Service) else consumer  # limits are those of a target

    def check_totals(self, split: str, num_rows: int, num_with_images: int) -> Iterator[str]:
        """Check the numbers of rows of a split against the limits of a target; notes about those that are only advised.

        Raises:
            UserError: there are too many.
        """
        if not self.exporter.request.target:
            return
        totals = get_consumer(self.exporter.request.target)().over_rows()
        chat = Chat((Message("user", (ImageRef("images/a"),)),))
        if num_with_images:
            totals.row(RowView({}, chat, self.exporter.row_format, self.root, is_export=True), 0, num_with_images)
        for _, fault in totals.end(num_rows):
            if fault.severity in (None, "error"):
                raise UserError(f"split {split}: {fault.message}; `phi3v-data split` makes smaller ones")
            yield f"split {split}: {fault.message}"


def check_target(exporter: Exporter) -> None:
    """Refuse a target that there is not, or that cannot read the export.

    Raises:
        UserError: saying what to give.
    """
    target = exporter.request.target
    if not target:
        return
    if target not in LIMITS:
        raise UserError(f"--target {target!r} is not a service whose limits are known; it can be {', '.join(LIMITS)}")
    if exporter.name != "openai":
        raise UserError(f"--target {target} is for the format openai, not {exporter.name}")
    refs = exporter.image_refs
    if refs == ImageRefs.path or (refs == ImageRefs.url and LIMITS[target].data_urls_only):
        raise UserError(f"--image_refs {refs.value}: {target} takes data URLs; leave --image_refs out")


def check_references(exporter: Exporter) -> tuple[str, ...]:
    """Refuse references to images that the tool which reads the export cannot open.

    Returns:
        With `lossy`, a note instead.

    Raises:
        UserError: saying what to give.
    """
    refs = exporter.image_refs
    is_file = refs == ImageRefs.path or (refs == ImageRefs.url and "://" not in exporter.request.url_prefix)
    if refs is None or is_file or not exporter.asks_reader:
        return ()
    try:
        consumer = get_consumer(exporter.row_format.consumer)
    except NotFoundError:
        return ()
    if not consumer.files_only:
        return ()
    said = f"--image_refs {refs.value}: {consumer.title} opens files only, neither URLs nor data URLs"
    if not exporter.request.lossy:
        raise UserError(f"{said}; leave it out, give a folder as --url_prefix, or write it nevertheless with --lossy")
    return (said,)


def has_no_answer(sample: Sample) -> bool:
    """Whether an answer is empty, as in a split for prediction."""
    return any(not turn.assistant.strip() for turn in sample.conversations)
