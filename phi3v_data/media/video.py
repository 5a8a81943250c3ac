"""Reads N frames of a clip: the same pixels as a full decode, in a fraction of the time.

    scan packets ─> count is certain ──yes──> decode to the last needed frame, skipping frames not needed for it
                          └──────────no───> decode all, keep the frames at the likely indices; if the count turns out
                                            different, decode again to the last needed frame
    needed frames ─> RGB, upright (the container's rotation applied)

Decoding uses one thread: work is parallel over clips, and FFmpeg's frame threads only cost more CPU time. A clip that
is cut short or damaged at the needed frames is a `Reject`, unless `salvage` is given.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from phi3v_data.errors import Reject, UserError, how_to_install
from phi3v_data.media.packets import PacketTable, missing_bytes, scan, video_stream
from phi3v_data.media.pixels import Frame, display_matrix, to_rgb
from phi3v_data.media.sampling import Sampling, ascending, frame_indices

Decoder: TypeAlias = Literal["pyav", "decord"]

# Codecs whose non-reference frames (mostly B-frames) FFmpeg can skip without changing any other frame. Not HEVC: its
# "non-reference" only applies within one temporal layer.
_SKIPS_NON_REFERENCE = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4"})
# Up to PyAV 18, a title that is not UTF-8 prevents a file from being opened without this option.
_TAGS_IN_ANY_ENCODING = {"18": {"metadata_errors": "replace"}}
# Decoders that in strict mode fail on files that are not damaged (TIFF: on unknown tags).
_NOT_STRICT = frozenset({"tiff"})


_CONTAINERS = (
    "apng", "asf", "avi", "flv", "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mov", "mpeg", "mpegts",
    "mpegvideo", "mxf", "nut", "ogg", "rm",
)  # fmt: skip
"""FFmpeg's demuxers that read a single file: no playlists (ffconcat, HLS, SDP), name patterns or devices. A text file
called `.avi` must not make FFmpeg open other files."""

_OPTIONS = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """The frames taken from a clip.

    `frames`: (H, W, 3) uint8, RGB, often a view of BGR memory, as OpenCV needs it; a frame taken twice is the same
    array. `total`: number of frames that the clip decodes to. `notes`: codes in kebab case (`frames-repeated`,
    `video-salvaged`, `constant-rate-assumed`).
    """

    frames: tuple[Frame, ...]
    indices: tuple[int, ...]
    total: int
    notes: tuple[str, ...] = ()


class _Disagrees(Exception):  # noqa: N818 - control flow within this module
    """The packets of a stream do not match its frames, so that the shortcut fails; decode the whole clip instead."""


def read_clip(
    path: str | Path,
    num_frames: int = 8,
    *,
    sampling: Sampling = "floor",
    decoder: Decoder = "pyav",
    salvage: bool = False,
    verify: bool = False,
    name: str = "",
) -> Clip:
    """Read `num_frames` frames of a clip.

    Args:
        sampling: see `phi3v_data.media.sampling`.
        decoder: `decord` needs the extra of that name. It gives the same frames of an undamaged clip, or rejects it;
            it does not detect damage, so that without `verify` each clip gets the note `damage-unchecked`.
        salvage: use the frames of a cut or damaged clip that decode, with PyAV; noted as `video-salvaged`.
        verify: decode to the end even if the needed frames come earlier.
        name: name of the clip in messages (default: the file name).

    Raises:
        Reject: `video-missing`, `video-unreadable`, `video-empty`, `video-truncated`, `video-corrupt`.
        UserError: the decoder is not installed.
    """
    file = Path(path)
    name = name or file.name
    if not file.is_file():
        raise Reject("video-missing", f"'{name}' does not exist")
    table = _scan(file, name)
    if not salvage:
        _refuse_cut(file, table, name)
    reader = _Reader(file, name, table, num_frames, sampling)
    if salvage:
        return reader.salvaged()
    if decoder == "decord":
        from phi3v_data.media.decord import read_frames

        if verify:
            reader.whole(verify=True)
        if reader.is_turned():
            raise Reject("decoder-unsure", f"decord does not apply the rotation of '{name}'; use --decoder pyav for it")
        indices, notes, arrays = read_frames(file, table, num_frames, sampling, name)
        notes = notes if verify else (*notes, "damage-unchecked")
        return Clip(arrays, indices, table.count, notes)
    if table.count_is_total and not verify:
        try:
            return reader.shortcut()
        except _Disagrees:
            pass
    return reader.whole(verify=verify)


@contextmanager
def _opened(file: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the container and its video stream, set to one thread.

    FFmpeg's own message contains the absolute path, so it is never part of a reject.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"Reading videos needs PyAV: {how_to_install('video')}") from error
    more = _TAGS_IN_ANY_ENCODING.get(av.__version__.partition(".")[0], {})
    try:  # FFmpeg takes an absolute path as a file, even if it contains colons
        container = av.open(os.path.abspath(file), options=_OPTIONS, **more)
    except av.error.FFmpegError as error:
        why = _words(error)
        if isinstance(error, av.error.ArgumentError):  # the error for a demuxer that is not in the list
            why = "it is not in a supported container; playlists and other text files are not clips"
        raise Reject("video-unreadable", f"'{name}' cannot be opened as a video: {why}") from error
    with container:
        stream = video_stream(container)
        if stream is None:
            raise Reject("video-unreadable", f"'{name}' has no video stream")
        if stream.codec_context is None:
            raise Reject("video-unreadable", f"'{name}': no decoder for its video stream")
        stream.codec_context.thread_count = 1
        yield container, stream


def _words(error: Any) -> str:
    return str(error.strerror or "unreadable data").lower()


def _scan(file: Path, name: str) -> PacketTable:
    with _opened(file, name) as (container, stream):
        return scan(container, stream)


def _refuse_cut(file: Path, table: PacketTable, name: str) -> None:
    """Reject a clip that is certainly cut, before anything is decoded."""
    if table.error:
        raise Reject("video-truncated", f"'{name}' breaks off after {table.count} packets: {table.error.lower()}")
    if table.count < table.header_count:
        raise Reject(
            "video-truncated",
            f"'{name}' contains {table.count} of the {table.header_count} frames that its header says",
        )
    if not table.header_count and (lacking := missing_bytes(file)):
        raise Reject("video-truncated", f"'{name}' is cut short: {lacking} bytes are missing at its end")


class _Reader:
    """Reads the requested frames of one clip."""

    def __init__(self, file: Path, name: str, table: PacketTable, num_frames: int, sampling: Sampling) -> None:
        self.file = file
        self.name = name
        self.table = table
        self.num_frames = num_frames
        self.sampling = sampling

    def shortcut(self) -> Clip:
        """Decode to the last needed frame only, with the packet count as the total."""
        shown = self.table.shown()
        indices, assumed = self._indices(self.table.count, *(shown or (None, 0)))
        kept = self._decode_needed(indices, shown[0] if shown else None)
        return self._clip(kept, indices, self.table.count, assumed)

    def whole(self, *, verify: bool = False) -> Clip:
        """Decode every frame, and count them.

        Damage after the last needed frame is a `Reject` only if `verify` is set; otherwise it is noted.
        """
        try:
            clip = self._of_all(self._guess())
        except Reject as reject:
            if verify or reject.code != "video-corrupt":
                raise
            return self._before_damage()
        return clip

    def _of_all(self, guess: tuple[int, ...]) -> Clip:
        kept, times, end = self._decode_all(guess)
        total = len(times)
        self._refuse_missing(total)
        indices, assumed = self._indices(total, times, end)
        if not set(indices) <= set(kept):
            kept, _, _ = self._decode_all(indices, stop=True)
        return self._clip(kept, indices, total, assumed)

    def _before_damage(self) -> Clip:
        """Count the frames with damage ignored, then decode strictly up to the last needed frame."""
        _, times, end = self._decode_all((), lenient=True)
        total = len(times)
        self._refuse_missing(total)
        indices, assumed = self._indices(total, times, end)
        kept, _, _ = self._decode_all(indices, stop=True)
        clip = self._clip(kept, indices, total, assumed)
        return Clip(clip.frames, indices, total, (*clip.notes, "video-damaged-later"))

    def salvaged(self) -> Clip:
        """Use all frames that decode and are not marked corrupt; errors are ignored."""
        guess = self._guess()
        kept, times, end = self._decode_all(guess, lenient=True, clean=True)
        total = len(times)
        if not total:
            raise Reject("video-empty", f"no frame of '{self.name}' can be decoded")
        indices, assumed = self._indices(total, times, end)
        if not set(indices) <= set(kept):
            kept, _, _ = self._decode_all(indices, lenient=True, clean=True, stop=True)
        clip = self._clip(kept, indices, total, assumed)
        if self._is_damaged(total):
            return Clip(clip.frames, clip.indices, clip.total, (*clip.notes, "video-salvaged"))
        return clip

    def is_turned(self) -> bool:
        """Whether the container rotates or flips the frames, according to the first one."""
        kept, _, _ = self._decode_all((0,), stop=True)
        return any(display_matrix(frame) != (1, 0, 0, 1) for frame in kept.values())

    def _is_damaged(self, total: int) -> bool:
        """Whether a strict decode would be rejected."""
        try:
            _refuse_cut(self.file, self.table, self.name)
            self._refuse_missing(total)
            self._decode_all(())
        except Reject:
            return True
        return False

    def _refuse_missing(self, total: int) -> None:
        if not total:
            raise Reject("video-empty", f"'{self.name}' decodes to no frames")
        lacking = self.table.header_count - self.table.frameless - total
        if lacking > 0:
            raise Reject(
                "video-truncated",
                f"'{self.name}' decodes to {total} frames, its header says {self.table.header_count}",
            )

    def _guess(self) -> tuple[int, ...]:
        """The indices if every packet with data gives one frame."""
        shown = self.table.shown()
        total = self.table.count - self.table.frameless
        if total < 1:
            return ()
        times = shown[0] if shown and len(shown[0]) == total else None
        return self._indices(total, times, shown[1] if shown else 0)[0]

    def _indices(self, total: int, times: Sequence[int | None] | None, end: int) -> tuple[tuple[int, ...], bool]:
        """The indices, and whether timestamps were requested but could not be used."""
        known = ascending(times) if times else None
        indices = frame_indices(total, self.num_frames, self.sampling, times=known, end=end)
        return indices, self.sampling == "fps" and known is None

    def _clip(self, kept: dict[int, Any], indices: tuple[int, ...], total: int, assumed: bool) -> Clip:
        arrays = to_rgb(kept, sorted(set(indices)))
        notes = ["frames-repeated"] if len(set(indices)) < len(indices) else []
        if assumed:
            notes.append("constant-rate-assumed")
        return Clip(tuple(arrays[index] for index in indices), indices, total, tuple(notes))

    def _decode_all(
        self, wanted: Collection[int], *, lenient: bool = False, clean: bool = False, stop: bool = False
    ) -> tuple[dict[int, Any], list[int | None], int]:
        """Decode in order; return the wanted frames by index, all timestamps, and the end time of the last frame.

        Args:
            lenient: ignore packets that do not decode.
            clean: leave out frames that the decoder marks as corrupt.
            stop: end with the last wanted frame.
        """
        kept: dict[int, Any] = {}
        times: list[int | None] = []
        last: Any = None
        with _opened(self.file, self.name) as (container, stream):
            frames = _lenient(container, stream) if lenient else self._strict(container, stream, {})
            for frame in frames:
                if clean and frame.is_corrupt:
                    continue
                if len(times) in wanted:
                    kept[len(times)] = frame
                times.append(frame.pts)
                last = frame
                if stop and len(kept) == len(set(wanted)):
                    break
        end = (last.pts or 0) + _duration(last, times) if last is not None else 0
        return kept, times, end

    def _decode_needed(self, indices: tuple[int, ...], shown: list[int] | None) -> dict[int, Any]:
        """Decode the needed frames; non-reference frames are skipped if the codec allows it.

        Args:
            shown: presentation times in order; None: frames can only be counted, so none may be skipped.
        """
        needed = set(indices)
        rank = {pts: index for index, pts in enumerate(shown)} if shown else {}
        plan: dict[str, Any] = {}
        if shown:
            times = frozenset(shown[index] for index in needed)
            if self.table.intra_only:
                plan = {"drop_all_but": times}
            elif self.table.codec in _SKIPS_NON_REFERENCE:
                plan = {"skip_all_but": times}
        kept: dict[int, Any] = {}
        before = -1
        with _opened(self.file, self.name) as (container, stream):
            for frame in self._strict(container, stream, plan):
                index = rank.get(frame.pts, -1) if shown else before + 1
                if index <= before or (not plan and index != before + 1):
                    raise _Disagrees
                before = index
                if index in needed:
                    kept[index] = frame
                    if len(kept) == len(needed):
                        return kept
        raise _Disagrees

    def _strict(self, container: Any, stream: Any, plan: dict[str, Any]) -> Iterator[Any]:
        """Yield frames in order of presentation; a packet that fails to decode is a `Reject`."""
        import av

        context = stream.codec_context
        if self.table.codec not in _NOT_STRICT:
            context.options = {"err_detect": "explode"}
        drop_all_but, skip_all_but = plan.get("drop_all_but"), plan.get("skip_all_but")
        skipping = False
        try:
            for packet in container.demux(stream):
                if packet.pts is not None:
                    if drop_all_but is not None and packet.pts not in drop_all_but:
                        continue
                    if skip_all_but is not None and (packet.pts not in skip_all_but) != skipping:
                        skipping = not skipping
                        context.skip_frame = "NONREF" if skipping else "DEFAULT"
                if packet.is_corrupt:
                    raise Reject("video-corrupt", f"'{self.name}' has a damaged packet")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise Reject("video-corrupt", f"'{self.name}' has a frame that is damaged")
                    yield frame
        except av.error.FFmpegError as error:
            raise Reject("video-corrupt", f"'{self.name}' does not decode cleanly: {_words(error)}") from error


def _lenient(container: Any, stream: Any) -> Iterator[Any]:
    """Yield frames in order of presentation, ignoring packets that do not decode."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            break
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            continue
    try:
        yield from stream.codec_context.decode(None)
    except av.error.FFmpegError:
        return


def _duration(last: Any, times: list[int | None]) -> int:
    """Duration of the last frame: its own, else the interval before it."""
    if last.duration:
        return int(last.duration)
    if len(times) > 1 and times[-1] is not None and times[-2] is not None:
        return max(1, times[-1] - times[-2])
    return 1
