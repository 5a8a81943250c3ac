"""Frames out of clips: the very pixels of a full decode, or a rejection; never something in between."""

import contextlib
import random
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import (
    cut,
    damage_packet,
    full_decode,
    make_pixels,
    not_coded,
    remux,
    set_avi_count,
    set_matrix,
    skip_start,
    write_clip,
    xvid,
)

from phi3v_data.errors import Reject, UserError
from phi3v_data.media.packets import PacketTable
from phi3v_data.media.pixels import display_matrix
from phi3v_data.media.sampling import ascending, frame_indices
from phi3v_data.media.video import Clip, read_clip

SAMPLINGS = ("floor", "center", "fps")
CONTAINERS = {  # container: codecs that must be among those tried, so that the test cannot pass by trying nothing
    "avi": {"mpeg4", "mjpeg", "libx264", "ffv1", "msmpeg4", "mpeg2video", "libvpx"},
    "mp4": {"mpeg4", "libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg2video", "mjpeg"},
    "mov": {"mpeg4", "libx264", "mjpeg", "prores_ks", "qtrle"},
    "matroska": {"mpeg4", "libx264", "libx265", "libvpx", "libvpx-vp9", "ffv1", "mpeg1video"},
    "webm": {"libvpx", "libvpx-vp9", "libsvtav1"},
    "mpegts": {"mpeg2video", "libx264", "libx265", "mpeg4"},
    "mpeg": {"mpeg1video", "mpeg2video"},
    "flv": {"flv", "libx264"},
    "asf": {"wmv2", "msmpeg4"},
    "3gp": {"libx264", "mpeg4"},
    "nut": {"ffv1", "huffyuv", "snow"},
    "ivf": {"libvpx", "libvpx-vp9"},
    "mxf": {"mpeg2video"},
    "ogg": {"libvpx"},
    "vob": {"mpeg2video"},
    "m4v": {"mpeg4"},
    "h264": {"libx264"},
    "gif": {"gif"},
    "apng": {"apng"},
}


def assert_exact(path: Path, clip: Clip, frames: list[np.ndarray]) -> None:
    assert clip.total == len(frames)
    for got, index in zip(clip.frames, clip.indices, strict=True):
        np.testing.assert_array_equal(got, frames[index], err_msg=f"{path.name} frame {index}")


def assert_all_exact(path: Path) -> None:
    """Every way of sampling, with and without --verify, against a full decode."""
    frames = full_decode(path)
    for sampling in SAMPLINGS:
        assert_exact(path, read_clip(path, sampling=sampling), frames)
    assert_exact(path, read_clip(path, 5, verify=True), frames)
    assert_exact(path, read_clip(path, 3, salvage=True), frames)


def software_encoders() -> Iterator[str]:
    for name in sorted(av.codecs_available):
        if name.endswith(("_amf", "_nvenc", "_qsv", "_v4l2m2m", "_vaapi", "_mf", "_videotoolbox")):
            continue
        try:
            codec = av.Codec(name, "w")
        except ValueError:
            continue
        if codec.type == "video" and codec.video_formats:
            yield name


@pytest.mark.parametrize("container", CONTAINERS)
def test_frames_are_those_of_a_full_decode_in_every_codec_of_the_container(tmp_path: Path, container: str) -> None:
    tried = set()
    for codec in software_encoders():
        options = {"g": "8", "bf": "2"} if codec in ("mpeg4", "mpeg1video", "mpeg2video", "libx264") else {"g": "8"}
        path = tmp_path / f"{codec}.{container}"
        try:
            write_clip(path, codec, frames=20, format=container, options=options)
            frames = full_decode(path)
        except (av.error.FFmpegError, ValueError, IndexError):
            continue  # the container cannot hold the codec, or the pair cannot be read back at all
        with av.open(str(path)) as opened:
            is_undamaged = frames and not any(frame.is_corrupt for frame in opened.decode(opened.streams.video[0]))
        if not is_undamaged:  # H.263 in an MPEG program stream, VP9 likewise: written, but not to be read back whole
            with pytest.raises(Reject):
                read_clip(path)
            continue
        for sampling in SAMPLINGS:
            assert_exact(path, read_clip(path, sampling=sampling), frames)
        tried.add(codec)
    assert tried >= CONTAINERS[container]


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
@pytest.mark.parametrize("size", [(63, 47), (17, 1), (2, 2), (66, 50)])
def test_odd_sizes(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    assert_all_exact(xvid(tmp_path / f"clip.{suffix}", size=size))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv422p", "yuv420p10le", "gray"])
@pytest.mark.parametrize("colorspace", [1, 5, 9])
def test_colours(tmp_path: Path, pix_fmt: str, colorspace: int) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 62, 46, pix_fmt
        stream.codec_context.colorspace = colorspace
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(make_pixels(number, 62, 46), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.colorspace = number, colorspace
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_all_exact(path)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [
        ("mpeg4", "avi", {"bf": "3", "g": "12"}),
        ("mpeg4", "avi", {"bf": "2", "g": "7", "flags": "+cgop", "sc_threshold": "1000000000"}),
        ("mpeg4", "mp4", {"bf": "2", "g": "9"}),
        ("mpeg2video", "mp4", {"bf": "2", "g": "9"}),
        ("mpeg2video", "ts", {"bf": "2", "g": "9"}),
        ("mpeg2video", "mpg", {"bf": "2", "g": "9", "flags": "+ildct+ilme"}),
        ("libx264", "mp4", {"bf": "5", "g": "10", "x264-params": "open-gop=1:b-pyramid=normal:b-adapt=0:scenecut=0"}),
        ("libx264", "mp4", {"bf": "7", "g": "60", "x264-params": "b-pyramid=strict:ref=6"}),
        ("libx264", "mp4", {"bf": "3", "x264-params": "interlaced=1"}),
        ("libx264", "mkv", {"bf": "5", "g": "10", "x264-params": "open-gop=1"}),
        ("libx264", "avi", {"bf": "3"}),
        ("libx264", "ts", {"bf": "3", "g": "10", "x264-params": "open-gop=1"}),
        ("libx265", "mp4", {"x265-params": "open-gop=1:bframes=4:b-pyramid=1:keyint=10:log-level=none"}),
        ("libx265", "mkv", {"x265-params": "temporal-layers=1:bframes=4:keyint=20:log-level=none"}),
        ("libvpx", "webm", {"auto-alt-ref": "1", "lag-in-frames": "12", "g": "20"}),
        ("libvpx", "avi", {"auto-alt-ref": "1", "lag-in-frames": "12", "g": "20"}),
        ("libvpx-vp9", "mp4", {"auto-alt-ref": "1", "lag-in-frames": "12", "g": "20"}),
    ],
)
def test_orders_of_coded_frames(tmp_path: Path, codec: str, suffix: str, options: dict[str, str]) -> None:
    assert_all_exact(write_clip(tmp_path / f"clip.{suffix}", codec, frames=45, options=options))


def test_many_random_choices_of_frames(tmp_path: Path) -> None:
    path = xvid(tmp_path / "clip.avi", frames=61)
    frames = full_decode(path)
    for num_frames in range(1, 64):
        for sampling in SAMPLINGS:
            assert_exact(path, read_clip(path, num_frames, sampling=sampling), frames)


def test_variable_frame_rate(tmp_path: Path) -> None:
    rng = random.Random(3)
    times = [0]
    while len(times) < 40:
        times.append(times[-1] + rng.choice([33, 40, 100, 500]))
    for name, codec in (("clip.mkv", "libx264"), ("clip.mp4", "libx264"), ("clip.webm", "libvpx")):
        path = write_clip(tmp_path / name, codec, times=times)
        assert_all_exact(path)
        clip = read_clip(path, 8, sampling="fps")
        end = times[-1] + 40  # the last frame's own duration, or the gap before it
        assert clip.indices[0] == 0
        for k, index in enumerate(clip.indices):
            moment = k * end // 8
            assert abs(times[index] - moment) <= 500
            assert times[index] <= moment + 70


def test_fps_sampling_equals_floor_at_a_constant_rate(tmp_path: Path) -> None:
    path = xvid(tmp_path / "clip.avi", frames=50)
    assert read_clip(path, sampling="fps").indices == read_clip(path).indices


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (-1, 0, 0, -1),
        (0, -1, 1, 0),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_the_display_matrix_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = set_matrix(write_clip(tmp_path / "clip.mp4", "libx264", size=(64, 48)), *matrix)
    stored = full_decode(path)
    clip = read_clip(path)
    a, b, c, d = matrix
    for got, index in zip(clip.frames, clip.indices, strict=True):
        height, width = stored[index].shape[:2]
        expected = np.zeros_like(got)
        y, x = np.mgrid[0:height, 0:width]
        to_x, to_y = a * x + c * y, b * x + d * y
        expected[to_y - to_y.min(), to_x - to_x.min()] = stored[index]
        np.testing.assert_array_equal(got, expected)


def test_a_phone_held_upright_gives_an_upright_image(tmp_path: Path) -> None:
    """-90 degrees in FFmpeg's words: turn the stored image clockwise."""
    path = set_matrix(write_clip(tmp_path / "clip.mp4", "libx264"), 0, 1, -1, 0)
    np.testing.assert_array_equal(read_clip(path, 1).frames[0], np.rot90(full_decode(path)[0], -1))


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", "libx264", frames=40, options={"bf": "3", "g": "10"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        ticks = int(6 / stream.average_rate / stream.time_base)
    skip_start(path, ticks)
    assert len(full_decode(path)) < 40
    assert_all_exact(path)


def test_frames_that_are_not_coded_are_left_out(tmp_path: Path) -> None:
    """XviD writes them where nothing moves: the header counts them, the decoder gives no frame for them."""
    whole = xvid(tmp_path / "whole.avi", frames=30, options={"bf": "0"})
    path = remux(whole, tmp_path / "clip.avi", {10: not_coded(10), 29: not_coded(29)})
    assert len(full_decode(path)) < 30
    assert_all_exact(path)
    assert read_clip(path).notes == ()


def test_an_audio_track_does_not_matter(tmp_path: Path) -> None:
    for name, codec, audio in (("a.avi", "mpeg4", "mp2"), ("a.mp4", "libx264", "aac"), ("a.mkv", "libx264", "flac")):
        assert_all_exact(write_clip(tmp_path / name, codec, audio=audio))


def test_always_exactly_n_frames(tmp_path: Path) -> None:
    for frames in (1, 2, 5, 8, 9):
        path = xvid(tmp_path / f"{frames}.avi", frames=frames, options={"bf": "0"})
        for sampling in SAMPLINGS:
            clip = read_clip(path, 8, sampling=sampling)
            assert len(clip.frames) == 8
            assert clip.total == frames == read_clip(path, 1, verify=True).total
            assert ("frames-repeated" in clip.notes) == (frames < 8)


def test_the_total_comes_from_what_decodes_not_from_the_header(tmp_path: Path) -> None:
    path = xvid(tmp_path / "clip.avi", frames=40)
    expected = read_clip(path)
    set_avi_count(path, 30)
    clip = read_clip(path)
    assert (clip.total, clip.indices) == (40, expected.indices)
    for count in (41, 80):
        set_avi_count(path, count)
        with pytest.raises(Reject, match=f"40 of the {count}") as caught:
            read_clip(path)
        assert caught.value.code == "video-truncated"


@pytest.mark.parametrize(
    ("name", "codec"),
    [("c.avi", "mpeg4"), ("c.mkv", "mpeg4"), ("c.mkv", "libx264"), ("c.mp4", "libx264"), ("c.webm", "libvpx-vp9")],
)
def test_a_cut_file_is_rejected_wherever_it_is_cut(tmp_path: Path, name: str, codec: str) -> None:
    path = write_clip(tmp_path / name, codec, frames=40, size=(96, 64))
    frames, data = full_decode(path), path.read_bytes()
    for part in range(0, 40):
        path.write_bytes(data)
        cut(path, part / 40)
        if name == "c.avi" and part >= 37:  # the index at the end, and frames that are not needed
            with contextlib.suppress(Reject):
                assert_exact(path, read_clip(path), frames)
            continue
        with pytest.raises(Reject) as caught:
            read_clip(path)
        assert caught.value.code in ("video-truncated", "video-unreadable")
        assert str(tmp_path) not in str(caught.value)


def test_damage_before_the_last_needed_frame_is_rejected(tmp_path: Path) -> None:
    for name in ("clip.avi", "clip.mkv", "clip.mp4"):
        path = damage_packet(xvid(tmp_path / name, frames=40, size=(160, 120)), 4, length=60)
        with pytest.raises(Reject) as caught:
            read_clip(path)
        assert caught.value.code == "video-corrupt"
        assert name in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_damage_after_the_last_needed_frame_needs_verify_to_be_rejected(tmp_path: Path) -> None:
    for name, noted in (("clip.avi", ()), ("clip.mkv", ("video-damaged-later",))):
        path = xvid(tmp_path / name, frames=41, size=(160, 120), options={"bf": "0"})
        frames = full_decode(path)
        damage_packet(path, 40, length=60)
        clip = read_clip(path)
        assert_exact(path, clip, frames)
        assert clip.notes == noted
        with pytest.raises(Reject) as caught:
            read_clip(path, verify=True)
        assert caught.value.code == "video-corrupt"


def test_salvage_takes_what_decodes(tmp_path: Path) -> None:
    path = xvid(tmp_path / "clip.avi", frames=40, size=(320, 240))
    frames = full_decode(path)
    clip = read_clip(cut(path, 0.5), salvage=True)
    assert len(clip.frames) == 8
    assert 1 < clip.total < 30
    assert "video-salvaged" in clip.notes
    np.testing.assert_array_equal(clip.frames[0], frames[0])
    damaged = damage_packet(xvid(tmp_path / "b.mkv", frames=40, size=(160, 120)), 4, length=60)
    clip = read_clip(damaged, salvage=True)
    assert len(clip.frames) == 8
    assert clip.notes == ("video-salvaged",)


def test_salvage_adds_no_note_to_an_undamaged_clip(tmp_path: Path) -> None:
    path = xvid(tmp_path / "clip.avi")
    assert read_clip(path, salvage=True).notes == ()
    with pytest.raises(Reject) as caught:
        read_clip(cut(path, 0.02), salvage=True)
    assert caught.value.code in ("video-empty", "video-unreadable")


def test_a_file_that_is_not_a_video_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.avi").write_text("not a video\n" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="stereo", samples=1024)
        frame.sample_rate, frame.pts = 44100, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for name, code in (
        ("empty.avi", "video-unreadable"),
        ("text.avi", "video-unreadable"),
        ("sound.mp4", "video-unreadable"),
        ("gone.avi", "video-missing"),
    ):
        with pytest.raises(Reject) as caught:
            read_clip(tmp_path / name)
        assert caught.value.code == code
        assert str(tmp_path) not in caught.value.message


@given(total=st.integers(1, 10_000), num_frames=st.integers(1, 64))
def test_indices_are_whole_ascending_and_within(total: int, num_frames: int) -> None:
    for sampling in SAMPLINGS:
        indices = frame_indices(total, num_frames, sampling)
        assert len(indices) == num_frames
        assert list(indices) == sorted(indices)
        assert indices[0] >= 0
        assert indices[-1] < total
    assert frame_indices(total, num_frames) == tuple(int(Fraction(k * total, num_frames)) for k in range(num_frames))


@given(gaps=st.lists(st.integers(1, 1000), min_size=1, max_size=200), num_frames=st.integers(1, 32))
def test_fps_takes_the_frame_on_show(gaps: list[int], num_frames: int) -> None:
    times = [sum(gaps[:k]) for k in range(len(gaps))]
    end = sum(gaps)
    indices = frame_indices(len(times), num_frames, "fps", times=times, end=end)
    for k, index in enumerate(indices):
        moment = k * end // num_frames
        assert times[index] <= moment
        assert index + 1 == len(times) or times[index + 1] > moment


def test_times_that_cannot_be_used() -> None:
    assert ascending([1, 2, 5]) == [1, 2, 5]
    assert ascending([1, None, 5]) is None
    assert ascending([1, 5, 5]) is None
    with pytest.raises(ValueError, match="at least one frame"):
        frame_indices(0, 8)


class TestDecord:
    """The other decoder: the same frames or a refusal."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("decord")

    @pytest.mark.parametrize(
        ("suffix", "codec", "options"),
        [
            ("avi", "mpeg4", {"bf": "2", "g": "250"}),
            ("avi", "mpeg4", {"bf": "2", "g": "8"}),
            ("mp4", "libx264", {"bf": "3", "g": "8"}),
            ("mp4", "libx264", {"bf": "0", "g": "250"}),
            ("mp4", "mpeg2video", {"bf": "2", "g": "9"}),
        ],
    )
    def test_same_frames(self, tmp_path: Path, suffix: str, codec: str, options: dict[str, str]) -> None:
        path = write_clip(tmp_path / f"clip.{suffix}", codec, frames=40, options=options)
        frames = full_decode(path)
        for sampling in SAMPLINGS:
            clip = read_clip(path, sampling=sampling, decoder="decord")
            assert_exact(path, clip, frames)
            assert clip.notes == ("damage-unchecked",)
        assert read_clip(path, decoder="decord", verify=True).notes == ()

    def test_refusals(self, tmp_path: Path) -> None:
        no_count = set_avi_count(xvid(tmp_path / "count.avi"), 0)
        odd = xvid(tmp_path / "odd.avi", size=(63, 47))
        turned = set_matrix(write_clip(tmp_path / "turned.mp4", "libx264"), 0, 1, -1, 0)
        hidden = write_clip(tmp_path / "clip.webm", "libvpx")
        for path in (no_count, odd, turned, hidden):
            with pytest.raises(Reject) as caught:
                read_clip(path, decoder="decord")
            assert caught.value.code == "decoder-unsure"
            assert "--decoder pyav" in caught.value.message

    def test_old_decord_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = types.ModuleType("decord")
        old.__version__ = "0.6.0"  # type: ignore[attr-defined]  # a stand-in module
        monkeypatch.setitem(sys.modules, "decord", old)
        with pytest.raises(UserError, match=r"decord 0\.6\.0"):
            read_clip(xvid(tmp_path / "clip.avi"), decoder="decord")


def test_missing_decord_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UserError, match=r"-e .\.\[decord\]. in a clone of phi3v"):
        read_clip(xvid(tmp_path / "clip.avi"), decoder="decord")


def test_a_matrix_of_another_angle_is_left_out() -> None:
    def frame(*values: int) -> types.SimpleNamespace:
        a, b, c, d = (65536 * value for value in values)
        data = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes()
        return types.SimpleNamespace(side_data={"DISPLAYMATRIX": data}, rotation=0)

    assert display_matrix(frame(0, 1, -1, 0)) == (0, 1, -1, 0)
    assert display_matrix(frame(-1, 0, 0, -1)) == (-1, 0, 0, -1)
    for odd in ((0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (1, 1, 1, 1), (0, 1, 1, 1), (1, 1, 1, 0)):
        assert display_matrix(frame(*odd)) == (1, 0, 0, 1)


def test_a_demuxer_that_stopped_early_gives_no_total() -> None:
    table = PacketTable(codec="mpeg4", header_count=3, pts=[0, 1, 2])
    assert table.count_is_total
    assert not replace(table, error="Invalid data").count_is_total
    assert not replace(table, frameless=1).count_is_total
    assert not replace(table, header_count=4).count_is_total
    assert not replace(table, codec="vp9").count_is_total
    assert replace(table, codec="vp9", intra_only=True).count_is_total
