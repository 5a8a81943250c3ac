"""Small clips for the tests, written with PyAV, and the ways in which clips go bad.

Every frame differs from every other, so that a wrong frame cannot pass for the right one.
"""

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def make_pixels(number: int, width: int, height: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Frame `number`: (height, width, 3) RGB; a moving gradient, a block that moves on, a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    red = (x * 3 + number * 7 + seed * 31) % 256
    green = (y * 5 + number * 3) % 256
    blue = (x + y + number * 11) % 256
    rgb = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    left, top = number * 5 % max(1, width - 8), number * 3 % max(1, height - 8)
    rgb[top : top + 8, left : left + 8] = (255 - number * 9 % 256, number * 17 % 256, 40)
    noise = np.random.default_rng(seed * 1000 + number).integers(0, 12, (height, width, 1), dtype=np.uint8)
    return np.minimum(rgb, 243) + noise


def write_clip(
    path: Path,
    codec: str = "mpeg4",
    *,
    frames: int = 24,
    size: tuple[int, int] = (64, 48),
    rate: int = 25,
    pix_fmt: str = "",
    options: Mapping[str, str] | None = None,
    tag: str = "",
    format: str = "",  # noqa: A002 - PyAV's word
    times: Sequence[int] = (),
    time_base: Fraction | None = None,
    seed: int = 0,
    audio: str = "",
) -> Path:
    """Write a clip.

    Args:
        codec: PyAV's encoder name.
        options: the encoder's (`bf`, `g`, ...).
        tag: fourcc (`XVID`).
        times: presentation time of each frame in `time_base` (default 1/1000), for a variable frame rate.
        audio: encoder of a silent audio track.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    base = time_base or (Fraction(1, 1000) if times else Fraction(1, rate))
    with av.open(str(path), "w", format=format or None) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        if pix_fmt or stream.codec_context.codec.video_formats:
            stream.pix_fmt = pix_fmt or _pixel_format(stream.codec_context.codec)
        context = stream.codec_context
        context.thread_count = 1
        context.time_base = base
        if tag:
            context.codec_tag = tag
        context.options = dict(options or {})
        audio = container.add_stream(audio, rate=44100) if audio else None
        for number in range(len(times) or frames):
            frame = av.VideoFrame.from_ndarray(make_pixels(number, *size, seed), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = times[number] if times else number
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            _add_silence(container, audio, (len(times) or frames) / rate)
    return path


def _pixel_format(codec: Any) -> str:
    names = [entry.name for entry in codec.video_formats]
    wanted = ("yuvj420p",) if codec.name in ("mjpeg", "ljpeg", "amv") else ("yuv420p", "yuv422p", "rgb24")
    return next((name for name in wanted if name in names), names[0])


def _add_silence(container: Any, stream: Any, seconds: float) -> None:
    layout, kind = "stereo", stream.codec_context.codec.audio_formats[0].name
    samples = 1152
    for start in range(0, int(seconds * 44100), samples):
        frame = av.AudioFrame(format=kind, layout=layout, samples=samples)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = 44100, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def xvid(path: Path, **settings: Any) -> Path:
    """MPEG-4 with two B-frames between references, as UCF-101 has it."""
    settings.setdefault("options", {"bf": "2", "g": "250"})
    return write_clip(path, "mpeg4", tag="XVID" if path.suffix == ".avi" else "", **settings)


def full_decode(path: Path) -> list[np.ndarray[Any, Any]]:
    """Every frame, converted one by one, as the Phi-3.5-vision sample does. (H, W, 3) RGB, not turned."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f"no decoder for {path.name}")  # PyAV before 18.1 crashes when asked to decode it
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def cut(path: Path, share: float) -> Path:
    """Leave only the first `share` of the bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def damage_packet(path: Path, number: int, *, at: float = 0.5, length: int = 12) -> Path:
    """Overwrite a stretch of the `number`-th packet of the video stream, in decoding order."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        packet = packets[number]
        content = bytes(packet)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(content)
    start = place + min(int(len(content) * at), len(content) - 1)
    for offset in range(start, min(start + length, place + len(content))):
        data[offset] ^= 0xA5
    path.write_bytes(bytes(data))
    return path


def set_avi_count(path: Path, count: int) -> Path:
    """Make the headers of an AVI file claim `count` frames."""
    data = bytearray(path.read_bytes())
    main = data.index(b"avih") + 8
    data[main + 16 : main + 20] = struct.pack("<I", count)
    header = data.index(b"strh") + 8
    data[header + 32 : header + 36] = struct.pack("<I", count)
    path.write_bytes(bytes(data))
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Set the display matrix of an MP4 or MOV file (signs of a, b, c, d)."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4
    place += 52 if data[place] == 1 else 40
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *values)
    path.write_bytes(bytes(data))
    return path


def skip_start(path: Path, ticks: int) -> Path:
    """Move the start of an MP4's edit list by `ticks` of its time base, so that its first frames are not shown."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    start = struct.unpack(">i", data[place + 4 : place + 8])[0]
    data[place + 4 : place + 8] = struct.pack(">i", start + ticks)
    path.write_bytes(bytes(data))
    return path


def remux(path: Path, target: Path, replaced: Mapping[int, bytes]) -> Path:
    """Copy a clip's packets into another file, some with other content."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        number = -1
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            number += 1
            if number in replaced:
                other = av.Packet(replaced[number])
                other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
                other.time_base = packet.time_base
                packet = other
            packet.stream = copy
            container.mux(packet)
    return target


def not_coded(number: int) -> bytes:
    """An MPEG-4 P frame that says "nothing new" (vop_coded = 0), for a clip of 25 frames a second.

    ISO/IEC 14496-2, 6.2.5: start code, coding type 01, modulo_time_base 0, marker, 5 bits of time, marker, coded 0.
    """
    bits = f"0101{number % 25:05b}10"
    bits += "0" + "1" * (-len(bits) - 1 & 7)
    return b"\x00\x00\x01\xb6" + int(bits, 2).to_bytes(len(bits) // 8)
