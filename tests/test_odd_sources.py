"""Common variants of sources: other endings, playlists, names like protocols, class spellings, files left out."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import xvid
from PIL import Image

import phi3v_data
from phi3v_data.cli.app import COMMANDS
from phi3v_data.cli.base import make_group
from phi3v_data.cli.base import run as run_program
from phi3v_data.draft import Draft, converter
from phi3v_data.media.video import read_clip
from phi3v_data.sources.source import Source
from phi3v_data.testing import check_converter

NUM_FRAMES = 9


def put(path: Path, content: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def run(name: str, source: Path | str, out: Path, **settings: Any) -> phi3v_data.ConvertResult:
    """Convert in this process."""
    return phi3v_data.convert(name, source, out, workers=0, **settings)


def command_line(words: list[str]) -> None:
    """`phi3v-data WORDS` in this process; ends with SystemExit."""
    run_program(make_group("phi3v-data", "", COMMANDS), words)


def rows(out: Path, file: str) -> list[dict[str, Any]]:
    """The rows of a split's file."""
    return [json.loads(line) for line in (out / file).read_text(encoding="utf-8").splitlines()]


def clip(path: Path, container: str, codec: str, pixel_format: str) -> Path:
    """A small clip of 9 frames whose grey rises by 20 a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (720, 576) if container == "mxf" else (64, 48)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 40 + 20 * number, np.uint8), "rgb24")
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path


CONTAINERS = {
    ".asf": ("asf", "msmpeg4v3", "yuv420p"),
    ".vob": ("vob", "mpeg2video", "yuv420p"),
    ".divx": ("avi", "mpeg4", "yuv420p"),
    ".f4v": ("mov", "mpeg4", "yuv420p"),
    ".qt": ("mov", "mpeg4", "yuv420p"),
    ".mxf": ("mxf", "mpeg2video", "yuv420p"),
    ".rm": ("rm", "rv20", "yuv420p"),
    ".rmvb": ("rm", "rv20", "yuv420p"),
    ".gif": ("gif", "gif", "rgb8"),
}


@pytest.mark.parametrize("ending", CONTAINERS)
def test_clips_with_other_endings_are_converted(tmp_path: Path, ending: str) -> None:
    file = clip(tmp_path / "s" / "A" / f"c{ending}", *CONTAINERS[ending])
    with av.open(str(file)) as container:
        greys = [int(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
    assert len(greys) >= NUM_FRAMES - 1
    assert read_clip(file, 1, verify=True).total == len(greys)
    taken = read_clip(file, len(greys))
    assert [int(frame.mean()) for frame in taken.frames] == greys
    result = run("ucf101", tmp_path / "s", tmp_path / "o", options={"frames": 2})
    assert (result.samples, result.images, result.warnings) == (1, 2, ())


def test_every_ending_beside_clips_is_converted_or_named(tmp_path: Path) -> None:
    source = tmp_path / "s" / "train" / "A"
    xvid(put(source / "a.avi", b""), frames=3, size=(32, 24))
    for name in ("a.swf", "b.swf", "notes.txt", "cover.jpg", "a.srt"):
        put(source / name, b"x")
    result = run("ucf101", tmp_path / "s", tmp_path / "o")
    assert result.warnings == (
        "left out 5 files of the source, not used by any sample: 1 .jpg, 1 .srt, 2 .swf, 1 .txt "
        "('train/A/a.srt', 'train/A/a.swf', 'train/A/b.swf' and 2 more)",
    )
    again = run("ucf101", tmp_path / "s", tmp_path / "o")
    assert again.already_complete
    assert again.warnings == result.warnings


def test_pipes_among_the_files_are_named_and_never_opened(tmp_path: Path) -> None:
    source = tmp_path / "s" / "A"
    xvid(put(source / "a.avi", b""), frames=3, size=(32, 24))
    os.mkfifo(source / "b.avi")
    os.mkfifo(source / "rows.csv")
    (source / "link.csv").symlink_to("rows.csv")
    result = run("ucf101", tmp_path / "s", tmp_path / "o", options={"frames": 1})
    assert (result.samples, result.rejects) == (1, 0)
    assert result.warnings == (
        "left out 3 files of the source, not used by any sample: 1 .avi, 2 .csv "
        "('A/b.avi', 'A/link.csv', 'A/rows.csv')",
    )
    for name in ("b.avi", "rows.csv"):
        with pytest.raises(phi3v_data.UserError, match="is a named pipe, a device or a socket"):
            run("table", source / name, tmp_path / "p")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("ffconcat version 1.0\nfile ok.avi\n", "list.avi"),
        ("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nok.avi\n#EXT-X-ENDLIST\n", "list.ts"),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n", "list.mp4"),
        ('<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>', "list.mp4"),
    ],
)
def test_a_playlist_called_a_clip_is_a_reject(tmp_path: Path, content: str, name: str) -> None:
    source = tmp_path / "s" / "A"
    xvid(put(source / "ok.avi", b""), frames=3, size=(32, 24))
    put(source / name, content)
    result = run("ucf101", tmp_path / "s", tmp_path / "o", options={"frames": 1})
    assert (result.samples, result.manifest.rejects) == (1, {"video-unreadable": 1})
    [reject] = [json.loads(line) for line in (tmp_path / "o" / "rejects.jsonl").read_text().splitlines()]
    assert reject["item"] == f"A/{name}"


def test_folders_and_clips_named_like_protocols_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = xvid(tmp_path / "whole.avi", frames=3, size=(32, 24))
    pattern = clip(tmp_path / "c%03d.gif", *CONTAINERS[".gif"])
    for folder in ("concat:a|b", "file:", "pipe:0", "subfile,,start,1,end,9,,:x"):
        for name in ("c.avi", "c%03d.avi"):
            put(tmp_path / "s" / folder / name, whole.read_bytes())
        shutil.copy(pattern, tmp_path / "s" / folder)
    monkeypatch.chdir(tmp_path / "s")
    result = run("ucf101", ".", tmp_path / "o", options={"frames": 1})
    assert (result.samples, result.rejects) == (12, 0)
    assert result.manifest.classes == ("concat:a|b", "file:", "pipe:0", "subfile,,start,1,end,9,,:x")


def test_the_spelling_of_class_ind_wins_and_one_class_stays_one(tmp_path: Path) -> None:
    whole = xvid(tmp_path / "whole.avi", frames=3, size=(32, 24))
    root = tmp_path / "s"
    for path in ("Archery/v_Archery_g01_c01.avi", "HandstandPushups/v_HandStandPushups_g01_c01.avi",
                 "HandstandPushups/v_HandStandPushups_g08_c01.avi"):  # fmt: skip
        put(root / "UCF-101" / path, whole.read_bytes())
    put(root / "lists" / "classInd.txt", "1 Archery\n2 HandstandPushups\n".encode("utf-16"))
    put(
        root / "lists" / "trainlist01.txt",
        "Archery/v_Archery_g01_c01.avi 1\nHandstandPushups/v_HandStandPushups_g08_c01.avi 2\n",
    )
    put(root / "lists" / "testlist01.txt", "HandStandPushups/v_HandStandPushups_g01_c01.avi\n")
    result = run("ucf101", root, tmp_path / "o", options={"frames": 1})
    assert result.manifest.classes == ("Archery", "HandstandPushups")
    [row] = rows(tmp_path / "o", "ucf101_test.jsonl")
    assert (row["conversations"][0]["assistant"], row["group"]) == ("HandstandPushups", "HandstandPushups/g01")
    for split in ("train", "test"):
        shutil.copytree(root / "UCF-101" / "HandstandPushups", root / "split" / split / "handstandpushups")
    shutil.copy(root / "lists" / "classInd.txt", root / "split")
    split = run("ucf101", root / "split", tmp_path / "p", options={"frames": 1})
    assert split.manifest.classes == ("HandstandPushups",)


def test_the_set_is_named_by_its_user_and_other_clips_are_not_ucf101(tmp_path: Path, capsys: Any) -> None:
    xvid(put(tmp_path / "s" / "A" / "mine.avi", b""), frames=3, size=(32, 24))
    assert run("ucf101", tmp_path / "s", tmp_path / "o").manifest.name == "clips"
    command = ["convert", "ucf101", "--source", str(tmp_path / "s"), "--workers", "0", "--quiet"]
    with pytest.raises(SystemExit) as stop:
        command_line([*command, "--out_dir", str(tmp_path / "p"), "--name", "gym"])
    assert stop.value.code == 0
    assert (tmp_path / "p" / "gym_train.jsonl").exists()
    assert rows(tmp_path / "p", "gym_train.jsonl")[0]["source"] == "gym"
    with pytest.raises(SystemExit) as stop:
        command_line([*command, "--out_dir", str(tmp_path / "p"), "--name", "other"])
    assert stop.value.code == 2
    assert "converted with other settings: name" in capsys.readouterr().err
    with pytest.raises(phi3v_data.UserError, match="--name 'a/b' cannot start a file name"):
        phi3v_data.convert("ucf101", tmp_path / "s", tmp_path / "q", name="a/b")


def tar_of(path: Path, members: dict[str, bytes], **settings: Any) -> Path:
    with tarfile.open(path, "w", **settings) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_members_that_cannot_be_unpacked_are_rejects_and_the_rest_is_converted(tmp_path: Path) -> None:
    whole = xvid(tmp_path / "whole.avi", frames=3, size=(32, 24)).read_bytes()
    members = {
        "s/test/A/ok.avi": whole,
        "s/train/A/caf\udce9.avi": whole,
        f"s/train/A/{'x' * 252}.avi": whole,
        "s/train/A": whole,
        "s/train/A/b.avi": whole,
        "s/train/A/b.avi/c.avi": whole,
        "s/val/.hidden/\udce9": whole,
    }
    source = tar_of(tmp_path / "s.tar", members, format=tarfile.GNU_FORMAT, errors="surrogateescape")
    result = run("ucf101", source, tmp_path / "o", options={"frames": 1})
    assert (result.samples, result.manifest.rejects) == (1, {"archive-member": 4})
    found = [json.loads(line) for line in (tmp_path / "o" / "rejects.jsonl").read_text().splitlines()]
    assert {reject["item"].replace("x" * 252, "X") for reject in found} == {
        "s.tar: s/train/A/caf\\xe9.avi",
        "s.tar: s/train/A/X.avi",
        "s.tar: s/train/A/b.avi",
        "s.tar: s/train/A/b.avi/c.avi",
    }
    check_converter("ucf101", source, {"frames": 1})
    messages = {reject["item"].rpartition("/")[2][:9]: reject["message"] for reject in found}
    assert messages["caf\\xe9.a"] == (
        "the member 's/train/A/caf\\xe9.avi' of s.tar is not unpacked: its name is not UTF-8"
    )
    assert messages["xxxxxxxxx"].endswith("its name has 256 bytes, and a file name has at most 255")
    assert messages["b.avi"].endswith("another member is a file where this one needs a folder")
    assert all(len(message) <= 300 for message in messages.values())


def test_a_zip_with_backslashes_is_a_zip_with_folders(tmp_path: Path) -> None:
    whole = xvid(tmp_path / "whole.avi", frames=3, size=(32, 24))
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name in ("s\\train\\", "s\\train\\A\\ok.avi", "s\\train\\B/ok.avi"):
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, b"" if name.endswith("\\") else whole.read_bytes())
    result = run("ucf101", tmp_path / "s.zip", tmp_path / "o", options={"frames": 1})
    assert (result.samples, result.manifest.classes) == (2, ("A", "B"))
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        entry = zipfile.ZipInfo("x")
        entry.filename = "s\\..\\..\\evil.avi"
        archive.writestr(entry, b"x")
    with pytest.raises(phi3v_data.UserError, match="leads outside"):
        run("ucf101", tmp_path / "bad.zip", tmp_path / "p")
    assert not (tmp_path / "evil.avi").exists()


def test_a_generator_counts_members_that_cannot_be_unpacked(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "png")
    members = {"a.png": image.getvalue(), "caf\udce9.png": image.getvalue()}
    source = tar_of(tmp_path / "s.tar", members, format=tarfile.GNU_FORMAT, errors="surrogateescape")

    @converter("mine")
    def mine(source: Source) -> Any:
        for file in source.files((".png",)):
            yield Draft("Why?", "So", [file.file])

    result = check_converter(mine, source)
    assert (result.samples, result.manifest.rejects) == (1, {"archive-member": 1})
