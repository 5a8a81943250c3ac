"""The one door for images: which formats and files are read, what each may cost, and who goes through it."""

import contextlib
import dataclasses
import io
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from odd_images import NOT_IMAGES, bmp, chunk, encoded, gif, image, jpeg_of_scans, mpo, png_with, tiff
from PIL import Image, ImageFile, PngImagePlugin

import phi3v_data
from phi3v_data import conversion
from phi3v_data.draft import DraftImage
from phi3v_data.draft import converter as short_converter
from phi3v_data.errors import Reject
from phi3v_data.media import integrity
from phi3v_data.media.blocks import Extent, png_header
from phi3v_data.media.formats import LIMITS, PIXEL_LIMITS, TooLargeImageError, UnreadableImageError
from phi3v_data.media.images import load_image, probe, read_image_file
from phi3v_data.media.integrity import check_content, check_image, rgb_digest
from phi3v_data.media.jpeg import _without_extras
from phi3v_data.suffixes import STORED_IMAGES
from phi3v_data.validate import validate
from phi3v_data.writing.images import prepare_image
from phi3v_train.data.images import image_size, jpeg_is_exact, read_image

READ = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "PPM": {},
    "AVIF": {"quality": 90},
}


def saved(folder: Path, data: bytes, name: str = "a.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def findings(source: Path, *, pixels: bool = True) -> dict[int, str]:
    return dict(check_image(source, pixels=pixels)[1])


@pytest.mark.parametrize("kind", READ)
def test_the_formats_that_are_read(tmp_path: Path, kind: str) -> None:
    data = encoded(image(1), kind, **READ[kind])
    path = saved(tmp_path, data)
    for pixels in (True, False):
        facts, found = check_image(path, pixels=pixels)
        assert (facts[0], facts[1], found) == (64, 48, [])
    assert check_content(data) == probe(path) == probe(data)
    assert probe(path)[:3] == (*image_size(path), kind)
    with Image.open(path) as by_pillow:
        assert load_image(path).tobytes() == read_image(path).tobytes() == by_pillow.tobytes()


def test_pillow_reads_no_other_format(tmp_path: Path) -> None:
    """Each format that Pillow can write, except the ones that are listed."""
    Image.init()
    refused = []
    for kind in sorted(set(Image.SAVE) - set(READ) - {"MPO", "DIB", "PDF", "IM"}):
        for mode in ("RGB", "L", "1"):
            try:
                data = encoded(image(1, (64, 64), mode), kind)
            except (OSError, ValueError, KeyError):
                continue
            with pytest.raises(UnreadableImageError, match="is not an image"):
                load_image(data)
            refused.append(kind)
            break
    assert {"DDS", "EPS", "ICO", "TGA", "SGI", "PCX", "XBM", "JPEG2000"} <= set(refused)


@pytest.mark.parametrize("data", NOT_IMAGES, ids=NOT_IMAGES.values())
def test_a_file_that_is_not_an_image_is_called_what_it_is(tmp_path: Path, data: bytes) -> None:
    path, words = saved(tmp_path, data, "a.png"), NOT_IMAGES[data]
    for pixels in (True, False):
        assert findings(path, pixels=pixels) == {integrity.UNREADABLE: words}
    for read in (check_content, probe, load_image):
        with pytest.raises(UnreadableImageError) as caught:
            read(data)
        assert str(caught.value) == words


@pytest.fixture
def special(tmp_path: Path) -> dict[str, str]:
    """Entries that are no regular files, by path, and what is said of them."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "sock"))
    return {
        "pipe": "is a named pipe, not a file",
        "folder": "is a folder, not a file",
        "zero": "is a device, not a file",
        "link": "is a named pipe, not a file",
        "sock": "is a socket, not a file",
    }


def test_only_regular_files_are_read(tmp_path: Path, special: dict[str, str]) -> None:
    """None of these waits for a writer, and nothing is read of a device."""
    for name, words in special.items():
        path = tmp_path / name
        for pixels in (True, False):
            assert findings(path, pixels=pixels) == {integrity.UNREADABLE: words}, name
        for read in (probe, load_image, read_image, image_size):
            with pytest.raises(UnreadableImageError, match=words):
                read(path)


def test_a_file_is_judged_by_its_size_before_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, encoded(image(1)))
    os.truncate(path, (1 << 28) + 1)
    words = "has 268,435,457 bytes, over the limit of 268,435,456"
    assert findings(path) == {integrity.TOO_LARGE: words}
    with pytest.raises(TooLargeImageError, match=words):
        read_image_file(path)


def of_16_bits() -> bytes:
    return encoded(Image.fromarray(np.full((20, 30), 40_000, np.uint16)))


def plain_header(width: int, height: int, *, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that says a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


TOO_LARGE = {
    "pixels": (plain_header(14_000, 13_000), "has 14000 x 13000 pixels, over the limit of 178,956,970"),
    "bytes of pixels": (
        plain_header(12_000, 12_000, depth=16),
        "has 12000 x 12000 pixels of 48 bits, over the limit of 536,870,912 bytes",
    ),
    "frames x pixels": (
        gif(200, (6000, 6000)),
        "has 200 frames of 6000 x 6000 pixels, over the limit of 178,956,970 in all",
    ),
    "frames": (gif(10_001, (1, 1)), "has 10,001 frames, over the limit of 10,000"),
    "pages": (tiff(10_001), "has 10,001 frames, over the limit of 10,000"),
    "pixels of a BMP": (bmp((20_000, 9_000)), "has 20000 x 9000 pixels, over the limit of 178,956,970"),
    "pixels of an old BMP": (bmp((20_000, 9_000), old=True), "has 20000 x 9000 pixels, over the limit of 178,956,970"),
    "a long packed BMP": (
        bmp((4, 4), packed=True, length=(1 << 20) + 1),
        "is a BMP with run-length encoding of over 1 MB, or wider than 32,767 pixels",
    ),
    "a wide packed BMP": (
        bmp((32_768, 1), packed=True),
        "is a BMP with run-length encoding of over 1 MB, or wider than 32,767 pixels",
    ),
    "strips": (tiff(1, strips=500_001), "has over 500,000 strips or tags"),
    "tags that overlap": (tiff(1200, tag_bytes=60_000), "has tags of over 67,108,864 bytes"),
    "scans": (jpeg_of_scans(501), "is a JPEG of 501 scans of 64 x 48 pixels"),
    "text that unfolds": (
        png_with(chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 20 | 1)))),
        "has a text chunk of over 1,048,576 bytes ('note')",
    ),
    "text without end": (
        png_with(*[chunk(b"tEXt", b"n\0" + bytes((1 << 20) - 2))] * 65),
        "has text chunks of over 67,108,864 bytes",
    ),
    "chunks": (png_with(chunk(b"teXt", b"") * 500_001), "has over 500,000 chunks"),
    "comments": (
        gif(1, (2, 2))[:-1] + b"!\xfe" + (b"\xff" + b"x" * 255) * 4200 + b"\0;",
        "has comments and other extensions of over 1,048,576 bytes",
    ),
    "webp": (
        b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02\x00\x00\x00" + (7999).to_bytes(3, "little") * 2,
        "has 8000 x 8000 pixels, over the limit of 50,000,000",
    ),
}


def test_only_an_animated_png_is_read_wholly_for_its_header(tmp_path: Path) -> None:
    """Its frames are counted in the whole file; the header of another one is read although its pixels are damaged."""
    plain = bytearray(encoded(image(1)))
    plain[-20] ^= 1
    for source in (bytes(plain), saved(tmp_path, bytes(plain))):
        assert probe(source) == (64, 48, "PNG", "RGB", 1, 1, 8)
    moving = bytearray(encoded(image(1), save_all=True, append_images=[image(2), image(3)]))
    assert probe(bytes(moving)) == (64, 48, "PNG", "RGB", 1, 3, 8)
    moving[-20] ^= 1
    with pytest.raises(UnreadableImageError, match="wrong checksum"):
        probe(bytes(moving))


def test_plain_text_of_a_png_is_not_taken_for_compressed_text(tmp_path: Path) -> None:
    """The flag of compression is a byte of iTXt; tEXt may begin with the same byte."""
    text = b"note\0\1x\0a\0" + zlib.compress(bytes(1 << 20 | 1))
    assert findings(saved(tmp_path, png_with(chunk(b"tEXt", text)))) == {}
    assert findings(saved(tmp_path, png_with(chunk(b"iTXt", text)))) == {
        integrity.TOO_LARGE: "has a text chunk of over 1,048,576 bytes ('note')"
    }


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_costs_too_much_is_not_decoded(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, words = TOO_LARGE[case]
    path = saved(tmp_path, data)
    jpeg_is_exact()  # compares the decoders, once in a process

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    assert findings(path) == {integrity.TOO_LARGE: words}
    with pytest.raises(TooLargeImageError) as caught:
        check_content(data)
    assert str(caught.value) == words
    with pytest.raises(TooLargeImageError):
        load_image(path)
    with pytest.raises(TooLargeImageError):
        read_image(path)


def test_as_many_scans_and_frames_as_real_ones_have_are_fine(tmp_path: Path) -> None:
    progressive = encoded(image(1), "JPEG", progressive=True)
    assert progressive.count(b"\xff\xda") == 10
    assert findings(saved(tmp_path, progressive)) == {}
    frames = [image(n, (40, 30)) for n in range(60)]
    pages = [Image.new("1", (12_000, 12_000)), Image.new("1", (100, 100))]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="group4")
    assert findings(saved(tmp_path, data)) == {integrity.ANIMATED: "has 2 frames"}
    assert findings(saved(tmp_path, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) == {
        integrity.ANIMATED: "has 60 frames"
    }


def test_of_a_jpeg_followed_by_others_the_first_is_the_image(tmp_path: Path) -> None:
    data = mpo(image(1), b"\xff\xd8\xff\xe1 broken")
    path = saved(tmp_path, data, "a.png")
    assert findings(path) == {integrity.MISMATCH: "is a JPEG file by content, PNG by name"}
    assert check_content(data).format == "JPEG"
    assert read_image(path).size == (64, 48)


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("x"), AssertionError(), KeyError("y"), OverflowError("z"), NotImplementedError("Unimplemented"),
        RuntimeError("w"), zlib.error("v"), struct.error("u"), SyntaxError("t"), EOFError(), IndexError("s"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "r"), RecursionError("q"), SystemError("p"), OSError("o"),
        Image.DecompressionBombError("n"), MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_decoder_raises_is_a_finding(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise error

    path = saved(tmp_path, encoded(image(1)))
    large = isinstance(error, MemoryError | Image.DecompressionBombError)
    flag = integrity.TOO_LARGE if large else integrity.UNREADABLE
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert list(findings(path)) == [flag]
    with pytest.raises(UnreadableImageError):
        load_image(path)
    assert rgb_digest(path) == b""
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open", fail)
    assert list(findings(path)) == [flag]
    with pytest.raises(UnreadableImageError):
        probe(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", READ)
def test_damaged_bytes_of_every_format_give_findings_and_never_an_exception(tmp_path: Path, kind: str) -> None:
    """Flipped, cut, repeated and zeroed bytes; all readers agree on whether the header can be read."""
    options: dict[str, Any] = dict(READ[kind])
    if kind in ("GIF", "WEBP", "TIFF", "PNG"):
        options |= {"save_all": True, "append_images": [image(2, (33, 21))]}
    data = encoded(image(1, (33, 21)), kind, **options)
    random = np.random.default_rng(11)
    for number in range(120):
        broken = bytearray(data)
        place = int(random.integers(4, len(data)))
        if number % 4 == 0:
            del broken[place:]
        elif number % 4 == 1:
            broken[place : place + 40] = bytes(len(broken[place : place + 40]))
        elif number % 4 == 2:
            broken[place:place] = broken[place : place + 60]
        else:
            for position in random.integers(4, min(len(data), 120), 3):
                broken[position] = int(random.integers(0, 256))
        path = saved(tmp_path, bytes(broken))
        found = findings(path)
        findings(path, pixels=False)
        errors = set(found) & {integrity.UNREADABLE, integrity.TOO_LARGE}
        for read in (check_content, load_image, probe):
            try:
                read(bytes(broken))
            except UnreadableImageError:
                assert read is not check_content or errors
            else:
                assert read is not check_content or not errors
        with contextlib.suppress(UnreadableImageError):
            read_image(path)


JPEG = encoded(image(3, (320, 240)), "JPEG", quality=90)
APP0_END = 20
SCAN = JPEG.index(b"\xff\xda")
BAD_ICC = b"\xff\xe2" + struct.pack(">H", 20) + b"ICC_PROFILE\0\x02\x01xxxx"

STRAY = {
    "after the first segment": (
        JPEG[:APP0_END] + b"\x01\x02" + JPEG[APP0_END:],
        "has 2 bytes between its header segments",
    ),
    "before the scan": (JPEG[:SCAN] + b"\x00" * 9 + JPEG[SCAN:], "has 9 bytes between its header segments"),
    "a stuffed zero": (JPEG[:APP0_END] + b"\xff\x00" + JPEG[APP0_END:], "has 2 bytes between its header segments"),
    "before a second segment too": (
        JPEG[:APP0_END] + b"zz" + JPEG[APP0_END:SCAN] + b"y" + JPEG[SCAN:],
        "has 3 bytes between its header segments",
    ),
    "a damaged colour profile": (JPEG[:APP0_END] + BAD_ICC + JPEG[APP0_END:], "has a damaged colour profile"),
    "zeros before the end": (JPEG[:-2] + bytes(300) + JPEG[-2:], "has bytes before its end marker"),
    "text before the end": (JPEG[:-2] + b"padded by hand" + JPEG[-2:], "has bytes before its end marker"),
    "both": (
        JPEG[:APP0_END] + b"\x01\x02" + JPEG[APP0_END:-2] + bytes(30) + JPEG[-2:],
        "has 2 bytes between its header segments and bytes before its end marker",
    ),
}


@pytest.mark.parametrize("case", STRAY)
def test_bytes_that_belong_to_no_part_of_a_jpeg_are_a_warning(tmp_path: Path, case: str) -> None:
    data, words = STRAY[case]
    path, plain = saved(tmp_path, data), saved(tmp_path, JPEG, "plain.jpg")
    facts, found = check_image(path, pixels=True)
    assert [flag for flag, _ in found] == [integrity.STRAY]
    assert found[0][1].startswith(words)
    assert facts["pixels"].tolist() == check_image(plain, pixels=True)[0]["pixels"].tolist()
    assert read_image(path).tobytes() == read_image(plain).tobytes()
    assert check_content(data).width == 320
    assert findings(path, pixels=False) == {}


def test_damage_within_the_scan_stays_an_error(tmp_path: Path) -> None:
    """Also where there are stray bytes besides, which must not open the door for it."""
    random = np.random.default_rng(4)
    seen = 0
    for number in range(60):
        data = bytearray(JPEG)
        start = int(random.integers(SCAN + 20, len(data) - 600))
        if number % 2:
            del data[start:]
        else:
            data[start : start + 512] = bytes(512)
        plain = findings(saved(tmp_path, bytes(data)))
        stray = findings(saved(tmp_path, bytes(data[:APP0_END] + b"\x01\x02" + data[APP0_END:])))
        assert (integrity.UNREADABLE in plain) == (integrity.UNREADABLE in stray)
        assert integrity.STRAY not in plain
        seen += integrity.UNREADABLE in plain
    assert seen >= 50  # a block that decodes to as many pixels as it held cannot be told from an image
    smooth = encoded(image(3, (16, 12)).resize((320, 240), Image.Resampling.BICUBIC), "JPEG", quality=95)
    few_left = 0  # the decoder comes out a few bytes before the end, as with padding there
    for start in range(smooth.index(b"\xff\xda") + 20, len(smooth) - 74, 23):
        data = bytearray(smooth)
        data[start : start + 64] = bytes(64)
        with contextlib.suppress(UnreadableImageError):
            try:
                simplejpeg.decode_jpeg(bytes(data), "GRAY", min_height=24, min_width=24)
            except ValueError as error:
                few_left += bool(re.search(r" ([1-9]|1[0-6]) extraneous bytes before marker 0xd9", str(error)))
                check_content(bytes(data))
                pytest.fail(f"64 bytes zeroed at {start} are accepted")
    assert few_left
    lost = JPEG[:-2] + JPEG[SCAN + 40 : SCAN + 400] + JPEG[-2:]
    assert "extraneous" in findings(saved(tmp_path, lost))[integrity.UNREADABLE]
    tail = JPEG[:-202] + bytes(200) + JPEG[-2:]
    assert integrity.UNREADABLE in findings(saved(tmp_path, tail))


ROW = '{"id": "%s", "source": "x", "conversations": [{"images": ["%s"], "user": "Q %s", "assistant": "A"}]}\n'


@short_converter("odd")
def odd(source: phi3v_data.Source) -> Iterator[phi3v_data.Draft]:
    """A sample for each file, whatever it holds."""
    for file in source.files():
        yield phi3v_data.Draft(user="What?", assistant=file.path, images=[str(file.file)], split="train")


def accepted(tmp_path: Path, files: dict[str, bytes]) -> tuple[set[str], dict[str, str]]:
    """Files that `convert` stores, by name, and the reason for each reject."""
    source = tmp_path / "source"
    source.mkdir()
    for name, data in files.items():
        saved(source, data, name)

    result = conversion.convert(odd, source, tmp_path / "out", workers=0)
    split = phi3v_data.Dataset(result.out_dir)["train"] if len(result.manifest.splits) else []
    stored = {sample.conversations[0].assistant for sample in split}
    rejects = (result.out_dir / "rejects.jsonl").read_text().splitlines()
    return stored, {str(number): line for number, line in enumerate(rejects)}


def test_convert_takes_what_validate_has_no_error_for(tmp_path: Path) -> None:
    """One function judges for both."""
    files = {f"read_{kind}": encoded(image(1), kind, **READ[kind]) for kind in READ}
    files |= {f"no_{number}": data for number, data in enumerate(NOT_IMAGES) if b"heic" not in data}
    files |= {
        f"large_{case}": TOO_LARGE[case][0] for case in ("pixels", "frames x pixels", "scans", "text that unfolds")
    }
    files |= {f"stray_{number}": data for number, (data, _) in enumerate(STRAY.values())}
    files |= {
        "13000": encoded(Image.new("1", (13_000, 13_000))),
        "mpo": mpo(image(1), b"\xff\xd8\xff\xe1 broken"),
        "cmyk": encoded(image(1, mode="CMYK"), "JPEG"),
        "16 bit": of_16_bits(),
        "float": encoded(image(1).convert("F"), "TIFF"),
        "animated": encoded(image(1), "GIF", save_all=True, append_images=[image(2)]),
        "thin": encoded(Image.new("L", (6000, 1))),
        "cut jpeg": JPEG[:-500],
        "cut png": encoded(image(1))[:-100],
        "wrong checksum": png_with(chunk(b"tEXt", b"a\0b")[:-1] + b"x"),
        "damaged second frame": encoded(image(1), "TIFF", save_all=True, append_images=[image(2)])[:-200],
    }
    stored, rejects = accepted(tmp_path, files)
    bare = tmp_path / "bare"
    (bare / "images").mkdir(parents=True)
    for name, data in files.items():
        saved(bare / "images", data, name)
    (bare / "x_train.jsonl").write_text("".join(ROW % (n, name, n) for n, name in enumerate(files)))
    report = validate(bare, num_crops=16)
    wrong = {list(files)[item.line - 1] for item in report.problems if item.severity == "error" and item.line}
    assert stored == set(files) - wrong
    assert len(rejects) == len(wrong) >= 30
    assert {"13000", "mpo", "cmyk", "16 bit", "float", "animated", "read_AVIF", "stray_0"} <= stored
    assert not {name for name in stored if name.startswith(("no_", "large_", "thin", "cut", "wrong", "damaged"))}
    finished = validate(tmp_path / "out")
    assert [item for item in finished.problems if item.severity == "error"] == []


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when a program called `gs` is started."""
    log = tmp_path / "gs.log"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $* >> {log}\n[ $1 = --version ] && echo 10.0\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return log


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
DDS = (
    b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 16, 0, 0) + bytes(44)
    + struct.pack("<2I4s5I", 32, 4, b"QQQQ", 0, 0, 0, 0, 0) + struct.pack("<5I", 0x1000, 0, 0, 0, 0) + bytes(84)
)  # fmt: skip


def run(*args: str) -> "subprocess.CompletedProcess[str]":
    code = "from phi3v_data.cli.app import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)


@pytest.mark.parametrize(("name", "data", "words"), [("eps.png", EPS, "an EPS"), ("tex.png", DDS, "a DDS texture")])
def test_pages_are_made_whatever_is_among_the_images(
    tmp_path: Path, ghostscript: Path, name: str, data: bytes, words: str
) -> None:
    directory = tmp_path / "set"
    (directory / "images").mkdir(parents=True)
    saved(directory / "images", encoded(image(1)), "ok.png")
    saved(directory / "images", data, name)
    (directory / "x_train.jsonl").write_text(ROW % (0, "ok.png", 0) + ROW % (1, name, 1))
    page = tmp_path / "r.html"
    done = run("validate", str(directory), "--html", str(page), "--json")
    assert (done.returncode, json.loads(done.stdout)["summary"]["problems"]) == (1, {"image-unreadable": 1})
    assert "cannot be decoded" in page.read_text()
    page.unlink()
    assert run("preview", str(directory), "--html", str(page)).returncode == 0
    assert "cannot be decoded" in page.read_text()
    assert f"(is not an image ({words}" in run("preview", str(directory), "--row", "1").stdout
    assert run("card", "--embed", str(directory)).returncode == 0
    stored, rejects = accepted(tmp_path, {"ok.png": encoded(image(1)), name: data})
    assert stored == {"ok.png"}
    assert words in rejects["0"]
    assert not ghostscript.exists()


def heic(seed: int = 1, size: tuple[int, int] = (96, 64)) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(image(seed, size)).save(stream, quality=95)
    return stream.getvalue()


def test_a_heic_photo_is_stored_as_jpeg(tmp_path: Path) -> None:
    """Under its own name with another ending, at its own place in the numbering."""
    photo = heic()
    files = {"a.png": encoded(image(2)), "b.HEIC": photo, "c.jpg": heic(3), "d.heic": photo[:300]}
    stored, rejects = accepted(tmp_path, files)
    assert stored == {"a.png", "b.HEIC", "c.jpg"}
    assert "d.heic" in rejects["0"]
    assert "image-unreadable" in rejects["0"]
    split = phi3v_data.Dataset(tmp_path / "out")["train"]
    assert [sample.id for sample in split] == [f"train-{n:010d}" for n in range(3)]
    [name] = split[1].conversations[0].images
    assert name.endswith(".jpg")
    with Image.open(split.image_path(name)) as jpeg:
        assert (jpeg.format, jpeg.size, jpeg.mode) == ("JPEG", (96, 64), "RGB")
        difference = np.abs(np.asarray(jpeg).astype(int) - np.asarray(image(1, (96, 64))))
    assert difference.mean() < 6
    named = prepare_image(DraftImage(photo, name="x/IMG_0001.HEIC"), "train")
    assert named.record.name == "x/IMG_0001.jpg"
    assert prepare_image(DraftImage(photo), "train").data == named.data == split.image_path(name).read_bytes()
    assert [item for item in validate(tmp_path / "out").problems if item.severity == "error"] == []


def test_without_the_extra_a_heic_photo_is_a_reject_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = heic()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Reject) as caught:
        prepare_image(DraftImage(photo), "train")
    assert caught.value.code == "image-unreadable"
    assert "is a HEIC photo; install the extra that reads it with" in caught.value.message
    assert "'.[heic]' in a clone of phi3v" in caught.value.message


def test_a_heic_photo_in_a_directory_is_an_error_with_or_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, heic(), "a.jpg")
    words = "save it as JPEG, as `phi3v-data import` and `convert` do with the extra `heic`"
    assert words in findings(path)[integrity.UNREADABLE]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert words in findings(path)[integrity.UNREADABLE]
    with pytest.raises(UnreadableImageError, match="a HEIC photo"):
        read_image(path)


def test_the_limits_are_those_of_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    for limit in (*dataclasses.astuple(LIMITS), *PIXEL_LIMITS.values()):
        assert f"{limit:,}" in page
    for suffix in (suffix for suffixes in STORED_IMAGES.values() for suffix in suffixes):
        assert f"`{suffix}`" in page


@pytest.mark.parametrize(("depth", "colour", "bits", "channel"), [
    (16, 2, 48, 16), (16, 0, 16, 16), (8, 2, 24, 8), (8, 6, 32, 8), (1, 0, 1, 8), (4, 3, 4, 8),
])  # fmt: skip
def test_the_depth_of_a_png_comes_from_its_header(depth: int, colour: int, bits: int, channel: int) -> None:
    header = struct.pack(">II5B", 7, 3, depth, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + b"IHDR" + header
    assert png_header(data) == Extent(7, 3, 1, bits, channel)


def test_stray_bytes_between_segments_are_counted_exactly() -> None:
    """As many bytes as may be skipped are, one more is not."""
    whole = encoded(image(), "JPEG")
    for number, taken in ((0, True), (LIMITS.stray_bytes, True), (LIMITS.stray_bytes + 1, False)):
        parts = _without_extras(whole[:2] + b"\0" * number + whole[2:])
        assert (parts is not None) == taken
        if parts is not None:
            assert parts[1] == number
