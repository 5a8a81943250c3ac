"""Reads the packets and headers of a video container without decoding, and detects files that were cut short."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

# Codecs with one frame per packet. VP8 and VP9 have hidden frames, so their packets do not give the number of frames.
ONE_PACKET_ONE_FRAME = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
# FFmpeg's MAX_NVOP_SIZE: an MPEG-4 packet up to this size may mean "no change", for which no frame is output.
MAX_NVOP_BYTES = 19


@dataclass(slots=True)
class PacketTable:
    """The packets of the chosen video stream, in decoding order.

    `pts` and `duration` are in the stream's time base. `frameless`: number of packets that may give no frame (flagged
    discarded, empty, or an MPEG-4 "not coded" frame). `error`: message of the demuxer, empty if it reached the end.
    """

    codec: str = ""
    intra_only: bool = False
    pixel_format: str = ""
    size: tuple[int, int] = (0, 0)  # width and height in the header
    header_count: int = 0  # 0: not given by the container
    pts: list[int | None] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    frameless: int = 0
    error: str = ""

    @property
    def count(self) -> int:
        """Number of packets, including those that may give no frame."""
        return len(self.pts)

    @property
    def count_is_total(self) -> bool:
        """Whether a full decode of an undamaged clip yields exactly one frame per packet."""
        return (
            self.count > 0
            and self.frameless == 0
            and not self.error
            and self.count == self.header_count
            and (self.intra_only or self.codec in ONE_PACKET_ONE_FRAME)
        )

    def shown(self) -> tuple[list[int], int] | None:
        """Times of the packets in order of presentation and the end of the last; None if they are not known."""
        known = [(pts, self.duration[i]) for i, pts in enumerate(self.pts) if pts is not None]
        if not known or len(known) != self.count or len({pts for pts, _ in known}) != self.count:
            return None
        known.sort()
        last, duration = known[-1]
        return [pts for pts, _ in known], last + duration


def video_stream(container: Any) -> Any | None:
    """The first video stream that is not a cover image, or None."""
    for stream in container.streams.video:
        if not _is_cover(stream):
            return stream
    return None


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(stream.disposition)


def scan(container: Any, stream: Any) -> PacketTable:
    """Read all packets of `stream` without decoding them."""
    import av

    context = stream.codec_context
    table = PacketTable(codec=context.codec.canonical_name, intra_only=context.codec.intra_only)
    table.pixel_format = context.pix_fmt or ""
    table.size = (context.width, context.height)
    table.header_count = stream.frames
    tiny = MAX_NVOP_BYTES if table.codec == "mpeg4" else 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0 and packet.dts is None and packet.pts is None:
                continue  # PyAV's own flush packet
            table.pts.append(packet.pts)
            table.duration.append(packet.duration or 0)
            if packet.size <= tiny or packet.is_discard:
                table.frameless += 1
    except av.error.FFmpegError as error:
        table.error = error.strerror or "unreadable data"
    return table


def missing_bytes(path: Path) -> int:
    """Number of bytes missing according to the outermost elements of the file; 0 if none are, or if it is not known.

    Matroska and WebM have no frame count, so a cut file looks complete to a demuxer; but the header of the segment
    contains its length. A fragmented MP4 has no count either, but each of its boxes has a length.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(12)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            end = _matroska_end(stream)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            end = _mp4_end(stream, size)
        else:
            end = 0
    return max(0, end - size)


def _matroska_number(stream: BinaryIO, *, keep_marker: bool) -> tuple[int, bool]:
    """Read a variable-length number of EBML (RFC 8794, section 4); also whether it means "unknown" (all ones)."""
    first = stream.read(1)
    if not first or first[0] == 0:
        raise EOFError
    length = 9 - first[0].bit_length()
    rest = stream.read(length - 1)
    if len(rest) != length - 1:
        raise EOFError
    value = int.from_bytes(first + rest)
    mask = (1 << (7 * length)) - 1
    return (value if keep_marker else value & mask), value & mask == mask


def _matroska_end(stream: BinaryIO) -> int:
    """Offset of the end of the segment (element 0x18538067 after the EBML header); 0 if unknown (live recordings)."""
    stream.seek(0)
    try:
        for _ in range(8):  # the header, perhaps void elements, the segment
            element, _unused = _matroska_number(stream, keep_marker=True)
            length, unknown = _matroska_number(stream, keep_marker=False)
            if unknown:
                return 0
            end = stream.tell() + length
            if element == 0x18538067:
                return end
            stream.seek(end)
    except EOFError:
        pass
    return 0


def _mp4_end(stream: BinaryIO, size: int) -> int:
    """Offset of the end of the last top-level box (ISO/IEC 14496-12, section 4.2)."""
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        head = stream.read(16)
        length = int.from_bytes(head[:4])
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:16])
        if length < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in head[4:8]):
            return at  # length 0: up to the end of the file; anything else: padding without a declared length
        at += length
    return at
