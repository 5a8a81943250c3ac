"""Rows, images and findings that the report tests share."""

from pathlib import Path

from PIL import Image, ImageDraw

from phi3v_data.schema import Diagnostic, Report, Sample, Summary, Turn

CLASSES = ("Archery", "Bowling", "Diving")
EVIL = "</script><script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"


def make_image(path: Path, n: int, size: tuple[int, int] = (64, 48)) -> None:
    """A small image that differs from its neighbours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (n * 37 % 256, n * 91 % 256, 120))
    ImageDraw.Draw(image).ellipse([4, 4, size[0] // 2, size[1] // 2], fill=(255, n % 256, 0))
    image.save(path)


def make_sample(split: str, n: int) -> Sample:
    """Row n (0-based) of a split."""
    turns = [Turn(images=(f"{split}/{n}.png",), user="Which class?", assistant=CLASSES[n % 3])]
    if n == 1:
        turns.insert(0, Turn(user=f"Say {EVIL}", assistant=EVIL))
    if n == 2:
        turns[0] = Turn(
            images=("train/0.png", "train/1.png"),
            image_offsets=(8, 12),
            user="Between and again.",
            assistant=CLASSES[2],
        )
    return Sample(id=f"{split}-{n:010d}", source="tiny", conversations=tuple(turns), meta={"note": EVIL})


def make_report(directory: Path) -> Report:
    """Report of a validator on `directory`, with more findings counted than listed."""
    problems = (
        Diagnostic(
            code="image-missing",
            severity="error",
            file="tiny_val.jsonl",
            line=2,
            id="val-0000000001",
            field="conversations[1].images[0]",
            message="'val/1.png' is not under images/",
            hint="did you mean 'val/0.png'?",
        ),
        Diagnostic(code="json-syntax", severity="error", file="tiny_val.jsonl", line=7, message=f"unexpected {EVIL}"),
        Diagnostic(code="duplicate-sample", severity="warning", file="tiny_train.jsonl", line=4, message="as line 3"),
        Diagnostic(code="image-orphan", severity="info", file="images/old.png", message="no row uses it"),
    )
    return Report(
        dir=str(directory),
        ok=False,
        level="full",
        summary=Summary(
            samples=27,
            turns=28,
            images=25,
            splits={"train": 20, "val": 7},
            problems={"image-missing": 1, "json-syntax": 1, "duplicate-sample": 3, "image-orphan": 1},
        ),
        problems=problems,
        stats={
            "num_crops": 4,
            "text_tokens": "estimated",
            "turns": {"1": 24, "2": 2},
            "images_per_sample": {"1": 24, "2": 2},
            "image_sizes": {"64x48": 25},
            "tokens": {"counts": {"330": 20, "480": 6}, "step": 1, "min": 330, "median": 330, "max": 480, "sum": 9480},
            "image_tokens": {"counts": {"313": 24, "626": 2}, "step": 1},
        },
    )
