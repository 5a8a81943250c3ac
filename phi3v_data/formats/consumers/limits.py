"""Limits of the services that fine-tune on OpenAI's format, as their documentation gave them on the date beside."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from phi3v_data.converters.helpers.cell_images import DATA_URL
from phi3v_data.formats.chat import Fault, ImageRef
from phi3v_data.formats.consumers.base import Consumer, Effect, OverRows, RowView, blocks_of, packed_file
from phi3v_data.media.formats import HEAD_BYTES, UnreadableImageError, identify
from phi3v_data.media.images import probe, read_image_file
from phi3v_data.messages import counted, shown
from phi3v_data.schema import Severity

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one service; None, or no format or mode, where its documentation gives none."""

    images_per_row: int | None
    image_bytes: int | None
    formats: tuple[str, ...]
    modes: tuple[str, ...]
    rows_with_images: int | None
    min_rows: int | None
    max_rows: int | None
    data_urls_only: bool
    date: str
    source: str


LIMITS = {
    "openai": Limits(
        10, None, (), (), None, None, None, False,
        "2026-11-24", "developers.openai.com/api/docs/guides/vision-fine-tuning.md (closed to new users)",
    ),
    "azure": Limits(
        64, 10 * MB, ("JPEG", "PNG", "WEBP"), ("RGB", "RGBA"), 50_000, 10, None, False,
        "2026-11-28", "Azure AI Foundry, vision fine-tuning (gpt-4o-2024-08-06, gpt-4.1-2025-04-14)",
    ),
    "together": Limits(
        10, 10 * MB, ("JPEG", "PNG", "WEBP"), (), None, None, None, True,
        "2026-11-28", "Together, vision-language fine-tuning",
    ),
    "fireworks": Limits(
        None, None, ("JPEG", "PNG"), (), None, 3, 3_000_000, True,
        "2026-11-28", "Fireworks, vision fine-tuning",
    ),
}  # fmt: skip

DETAILS = ("low", "high", "auto")
_ROW_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "function_call", "refusal", "audio"}
)


class Service(Consumer):
    """A service that reads OpenAI's format."""

    limits: ClassVar[Limits]
    local_paths: ClassVar[Severity] = "error"  # images that are neither a URL nor a data URL
    formats = ("openai",)
    checks_images = True
    effects: ClassVar = {
        "image-in-answer": Effect("takes images in user messages only, and refuses the file"),
        "role-unknown": Effect("refuses the file"),
        "wrong-type": Effect("refuses the file"),
        "missing-field": Effect("refuses the file"),
    }

    def check_file(self, name: str, kind: str) -> Iterator[Fault]:
        if kind == "array":
            words = f"{self.title} takes JSON Lines, and refuses an array"
            yield Fault("json-syntax", "", words, "write one row per line")
        elif kind == "gzip":
            yield packed_file(f"{self.title} takes JSON Lines")

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "turn-order" and "two user" in fault.message:
            return None  # its own examples have it
        if fault.code == "system-message-place":
            return None
        return super().judge(fault, view)

    def check(self, view: RowView) -> Iterator[Fault]:
        yield from self._unknown_keys(view)
        limits, images = self.limits, view.chat.images
        if limits.images_per_row is not None and len(images) > limits.images_per_row:
            yield Fault(
                "over-limit",
                "messages",
                f"the row has {len(images)} images, {self.title} takes {limits.images_per_row} ({limits.date})",
            )
        for image in images:
            yield from self._check_image(image, view)

    def _unknown_keys(self, view: RowView) -> Iterator[Fault]:
        for key in view.row:
            if key not in _ROW_KEYS:
                text = f"{self.title} refuses a file with the unknown key {shown(key)}"
                yield Fault("unknown-field", key[:60], text, "remove it")
        for where, message in view.messages:
            for key in message:
                if key not in _MESSAGE_KEYS:
                    text = f"{self.title} refuses a message with the unknown key {shown(key)}"
                    yield Fault("unknown-field", f"{where}.{key[:60]}", text, "remove it")
            if "weight" in message and message.get("role") != "assistant":
                text = f"{self.title} takes 'weight' on assistant messages only"
                yield Fault("unknown-field", f"{where}.weight", text, "remove it")
            for number, block in blocks_of(message):
                if block.get("type") == "image_url":
                    yield from self._check_block(block, f"{where}.content[{number}]")

    def _check_block(self, block: Mapping[str, Any], where: str) -> Iterator[Fault]:
        value = block.get("image_url")
        if isinstance(value, str):
            text = f"'image_url' is a text, {self.title} takes an object with 'url'"
            yield Fault("wrong-type", f"{where}.image_url", text, 'write {"url": ...}')
        detail = value.get("detail") if isinstance(value, Mapping) else None
        if detail is not None and detail not in DETAILS:
            text = f"'detail' is {shown(detail, 40)}, {self.title} takes {', '.join(DETAILS)}"
            yield Fault("wrong-type", f"{where}.image_url.detail", text)

    def _check_image(self, image: ImageRef, view: RowView) -> Iterator[Fault]:
        limits, value = self.limits, image.value
        if isinstance(value, bytes):
            return
        data_url = DATA_URL.match(value)
        if data_url is not None:
            encoded = value[data_url.end() :]
            yield from self._check_size(image.field, len(encoded) * 3 // 4, _decoded(encoded[: HEAD_BYTES // 3 * 4]))
            if limits.modes:
                yield from self._check_mode(image.field, _decoded(encoded))
        elif view.is_export:
            yield from self._check_file(image.field, view.root / value)
        elif limits.data_urls_only or not value.lower().startswith("https://"):
            wanted = "base64 data URLs only" if limits.data_urls_only else "https and base64 data URLs"
            yield Fault(
                "image-source",
                image.field,
                f"{self.title} takes {wanted}, not {shown(value, 60)}",
                "`phi3v-data export` writes data URLs",
                "error" if value.lower().startswith("https://") else self.local_paths,
            )

    def _check_file(self, field: str, path: Path) -> Iterator[Fault]:
        """An image that an export would write as a data URL."""
        try:
            yield from self._check_size(field, path.stat().st_size, read_image_file(path, head=True))
            if self.limits.modes:
                yield from self._check_mode(field, path)
        except (OSError, UnreadableImageError):
            return  # the validator has named it

    def _check_size(self, field: str, size: int, head: bytes) -> Iterator[Fault]:
        limits = self.limits
        if limits.image_bytes is not None and size > limits.image_bytes:
            text = f"the image has {size / MB:.1f} MB, {self.title} takes {limits.image_bytes // MB} ({limits.date})"
            yield Fault("over-limit", field, text, "store a smaller copy")
        try:
            kind = identify(head) if limits.formats else ""
        except UnreadableImageError:
            return
        if kind and kind not in limits.formats:
            text = f"the image is {kind}, {self.title} takes {', '.join(limits.formats)} ({limits.date})"
            yield Fault("over-limit", field, text, "store it in one of these formats")

    def _check_mode(self, field: str, source: bytes | Path) -> Iterator[Fault]:
        """A grey image, one of a palette, or of CMYK, of a format that the service takes."""
        try:
            info = probe(source)
        except UnreadableImageError:
            return  # the check of images has named it
        if info.format in self.limits.formats and info.mode not in self.limits.modes:
            modes = " and ".join(self.limits.modes)
            text = f"the image has mode {info.mode}, {self.title} takes {modes} ({self.limits.date})"
            yield Fault("over-limit", field, text, "store it in one of these modes")

    def over_rows(self) -> OverRows:
        return _Totals(self.title, self.limits)


class _Totals(OverRows):
    """Numbers of rows."""

    def __init__(self, title: str, limits: Limits) -> None:
        self._title = title
        self._limits = limits
        self._with_images = 0

    def row(self, view: RowView, line: int, count: int = 1) -> None:
        self._with_images += bool(view.chat.images) * count

    def end(self, num_rows: int) -> Iterator[tuple[int | None, Fault]]:
        limits, date = self._limits, self._limits.date
        if limits.min_rows is not None and num_rows < limits.min_rows:
            said = f"the file has {counted(num_rows, 'row')}, {self._title} wants at least {limits.min_rows} ({date})"
            yield None, Fault("over-limit", "", said, "add rows", "warning")
        for rows, most, noun in (
            (num_rows, limits.max_rows, "row"),
            (self._with_images, limits.rows_with_images, "row with images"),
        ):
            if most is not None and rows > most:
                words = counted(rows, noun, noun.replace("row", "rows"))
                said = f"the file has {words}, {self._title} takes {most:,} ({date})"
                yield None, Fault("over-limit", "", said, "leave rows out")


def _decoded(encoded: str) -> bytes:
    """The bytes of a base64 text; none if it is not base64."""
    try:
        return base64.b64decode(encoded)
    except (binascii.Error, ValueError):
        return b""
