"""Examples of problems as plain data: a few files that make up a directory, to be printed or built.

Example({"train.jsonl": Text('{"id": "a", ...}\n'), "images/a.png": ImageFile(64, 48)}, {"max_tokens": 500})
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """A UTF-8 text file."""

    text: str

    def describe(self) -> str:
        """As `explain` prints it."""
        return self.text

    def to_bytes(self) -> bytes:
        """The file's content."""
        return self.text.encode()


@dataclass(frozen=True, slots=True)
class Bytes:
    """A file whose bytes are not text."""

    data: bytes

    def describe(self) -> str:
        """As a Python literal."""
        return repr(self.data)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return self.data


@dataclass(frozen=True, slots=True)
class Repeat:
    """A text with a long stretch of one character: `before`, `count` times `char`, `after`."""

    before: str
    char: str
    count: int
    after: str

    def describe(self) -> str:
        """The text, with the repeated stretch in words."""
        return f"{self.before}[{self.count:,} times {self.char!r}]{self.after}"

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (self.before + self.char * self.count + self.after).encode()


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image with a pattern that depends on `seed`.

    Args:
        format: Pillow's name; the file's name may say another.
        orientation: EXIF turn, 1 for none.
        frames: more than 1 makes an animation.
        keep: share of the file's bytes that is written; below 1 the file is cut off.
        stray: bytes put after the first segment of a JPEG.
        shade: added to every grey level, for an image that is almost another.
    """

    width: int
    height: int
    format: str = "PNG"
    mode: str = "RGB"
    seed: int = 0
    orientation: int = 1
    frames: int = 1
    keep: float = 1.0
    shade: int = 0
    stray: int = 0

    def describe(self) -> str:
        """In words."""
        words = f"an image, {self.format}, {self.width} x {self.height}, {self.mode}"
        if self.orientation != 1:
            words += f", EXIF orientation {self.orientation}"
        if self.frames > 1:
            words += f", {self.frames} frames"
        if self.keep < 1:
            words += f", cut off after {self.keep:.0%} of its bytes"
        if self.stray:
            words += f", with {self.stray} bytes between its first two segments"
        if self.shade:
            words += ", a shade lighter than the other"
        return words

    def to_bytes(self) -> bytes:
        """The file's content."""
        import io

        import numpy as np
        from PIL import Image

        frames = []
        for frame in range(self.frames):
            if max(self.width, self.height) > 4096:
                frames.append(Image.new(self.mode, (self.width, self.height)))
                continue
            random = np.random.default_rng(self.seed + 1000 * frame)
            coarse = Image.fromarray(random.integers(20, 220, (6, 6, 3), dtype=np.uint8))
            smooth = coarse.resize((self.width, self.height), Image.Resampling.BICUBIC)
            frames.append(smooth.point(lambda level: min(255, level + self.shade)))
        if self.mode == "I;16":
            grey = np.asarray(frames[0].convert("L"), np.uint16)
            frames = [Image.fromarray(grey * np.uint16(257))]
        else:
            frames = [frame.convert(self.mode) for frame in frames]
        options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]} if self.frames > 1 else {}
        if self.orientation != 1:
            exif = Image.Exif()
            exif[0x0112] = self.orientation
            options["exif"] = exif
        stream = io.BytesIO()
        frames[0].save(stream, self.format, **options)
        data = stream.getvalue()
        if self.stray:  # a JPEG begins with FF D8 and a JFIF segment of 18 bytes
            data = data[:20] + bytes(self.stray) + data[20:]
        return data[: int(len(data) * self.keep)]


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str

    def describe(self) -> str:
        """In words."""
        return f"a link to {self.target}"


Content: TypeAlias = Text | Bytes | Repeat | ImageFile | Link


@dataclass(frozen=True, slots=True)
class Example:
    """Files by POSIX path, and the options of `validate` that the code needs.

    An option `tokenizer` names a path inside the directory. `file`: the one that is validated, of another tool's
    format; empty for the whole directory.
    """

    files: Mapping[str, Content]
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    @property
    def command(self) -> str:
        """The command line that reports the code."""
        words = [f"--{name} {value}" for name, value in self.options.items()]
        return " ".join([f"phi3v-data validate {self.file or 'DIR'}", *words])


def write_example(example: Example, directory: Path) -> None:
    """Make the example's files under a directory that exists."""
    for name, content in example.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content.to_bytes())


def row(row_id: str, *images: str, user: str = "What is shown?", assistant: str = "A shape.", **more: Any) -> str:
    """One line of an example."""
    import json

    turn = {"images": list(images), "user": user, "assistant": assistant}
    return json.dumps({"id": row_id, "source": "example", "conversations": [turn], **more}, ensure_ascii=False) + "\n"


def lines(*rows: dict[str, Any]) -> Text:
    """A file of another tool's rows, one per line."""
    import json

    return Text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in rows))
