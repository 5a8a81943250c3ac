"""Exports as their consumers read them: each consumer's own decoded sample of every row, compared with ours.

    python benchmarks/formats/consumers.py --envs /tmp/consumers [--qwen data_processor.py] [--only llama_factory swift]

Each consumer is installed in a virtual environment of its own under `--envs` (kept for the next run), with the versions
of `PINS`; torch is 2.13.0, and what it pulls of torchvision and torchaudio is removed again, as their builds do not fit
it; MosaicML streaming, which needs names of torchvision only, gets empty modules. `--qwen` is
`qwen-vl-finetune/qwenvl/data/data_processor.py` of a clone of QwenLM/Qwen3-VL. What does not install is named in the
result.

A row is the same if the texts of all messages, the places and the bytes (Energon: the pixels; streaming: both) of all
images, and the supervised texts are those of the sample; Qwen's own file has no supervised texts without the released
tokenizer.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from phi3v_data.exporting import ExportRequest, export_set
from phi3v_data.jsonl import encode_line
from phi3v_data.schema import Sample, Turn

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
TORCH = "torch==2.13.0"
UNFIT = ("torchvision", "torchaudio")

PINS: dict[str, list[list[str]]] = {
    "llama_factory": [["llamafactory==0.9.5", TORCH]],
    "swift": [["ms-swift==4.6.0", TORCH, "datasets<4.8.5", "transformers<5.20", "trl<1.0", "qwen_vl_utils"]],
    "axolotl": [
        ["--no-deps", "axolotl==0.19.0"],
        [TORCH, "transformers==5.16.1", "datasets==4.8.4", "trl==1.9.0", "peft", "accelerate", "addict", "fire",
         "pillow", "pydantic", "pyyaml", "colorama"],
    ],
    "energon": [["megatron-energon==7.4.1", TORCH]],
    "streaming": [
        ["--no-deps", "mosaicml-streaming==0.13.0"],  # the rest of its list are clients of clouds
        [TORCH, "transformers<5", "numpy<2.2", "pillow", "tqdm", "xxhash", "zstd", "python-snappy", "Brotli",
         "catalogue", "requests"],
    ],
}  # fmt: skip
"""Consumer -> arguments of each `pip install` in its environment."""

WORDS = (
    "What is it?", "Describe", "the red one", "and", "two", "é", "漢字", "\U0001f600", "\n", "\n\n", " ", "  ", "\t",
    "a < b", "{x}", '"quoted"', "\\n", "assistant", "user", "image", "1.", "-",
)  # fmt: skip


@dataclass(frozen=True)
class Consumer:
    """How a consumer is run, and what is expected of it.

    Attributes:
        newline: the newline that the format puts between leading images and text stays in the text.
        stripped: the consumer strips each text between images, and is known to.
        weights: it can leave answers untrained.
        suffixes: formats of the images.
        shard_bytes: size of a shard, so that there are several.
    """

    name: str
    title: str
    format: str
    newline: bool = False
    stripped: bool = False
    weights: bool = False
    environment: str = ""
    trained: bool = True
    suffixes: tuple[str, ...] = ("png", "jpg")
    shard_bytes: int | None = None


CONSUMERS = (
    Consumer("llama_factory", "LLaMA-Factory 0.9.5", "sharegpt", newline=True),
    Consumer("swift", "ms-swift 4.6.0", "swift", newline=True, weights=True),
    Consumer("axolotl", "axolotl 0.19.0", "axolotl"),
    Consumer("qwen", "Qwen-VL finetune", "qwen", stripped=True, environment="axolotl", trained=False),
    Consumer("energon", "Energon 7.4.1", "energon", weights=True, trained=False),
    *(
        Consumer(
            "streaming",
            f"MosaicML streaming 0.13.0, {title}",
            "mosaicml",
            weights=True,
            trained=False,
            suffixes=suffixes,
            shard_bytes=20_000,
        )
        for title, suffixes in (("JPEG", ("jpg",)), ("PNG", ("png",)), ("both", ("png", "jpg")))
    ),
)


def make_rows(number: int, suffixes: tuple[str, ...], *, weights: bool, system: bool = True) -> list[Sample]:
    """Rows with several turns, images in any turn and place, white space, Unicode and system messages."""
    rng = random.Random(5)

    def text(most: int) -> str:
        return "".join(rng.choice(WORDS) for _ in range(rng.randint(0, most)))

    rows = []
    for index in range(number):
        turns: list[Turn] = []
        for _ in range(rng.randint(1, 4)):
            user = text(6)
            offsets = sorted(rng.randint(0, len(user)) if rng.random() < 0.5 else 0 for _ in range(rng.randint(0, 3)))
            names = tuple(f"{rng.randint(0, 11)}.{rng.choice(suffixes)}" for _ in offsets)
            if not names and not user.strip():
                user = "Go on."
            turns.append(
                Turn(
                    images=names,
                    user=user,
                    assistant=text(4) + "yes",
                    image_offsets=tuple(offsets) if any(offsets) else (),
                    weight=0 if weights and turns and rng.random() < 0.3 else 1,
                )
            )
        rows.append(
            Sample(
                id=f"row-{index}",
                source="made",
                conversations=tuple(turns),
                system=rng.choice(("", "Be brief.", "Answer in French.\nOne word.")) if system else "",
            )
        )
    return rows


def write_set(directory: Path, rows: list[Sample]) -> Path:
    """The rows as a bare directory; each image has its own colour and size."""
    (directory / "images").mkdir(parents=True)
    for name in sorted({name for row in rows for name in row.images}):
        number = int(name.partition(".")[0])
        size = (56 + 28 * (number % 3), 56 + 28 * (number // 3))
        Image.new("RGB", size, (number * 20, 255 - number * 20, 90)).save(directory / "images" / name)
    with open(directory / "train.jsonl", "wb") as file:
        file.writelines(encode_line(row.to_row()) for row in rows)
    return directory


def environment(name: str, envs: Path) -> Path:
    """Python of a consumer's environment, installed if it is not there.

    Raises:
        subprocess.CalledProcessError: it does not install.
    """
    python = envs / name / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", envs / name], check=True)
        for words in PINS[name]:
            subprocess.run(["nice", "-n", "19", python, "-m", "pip", "install", "-q", *words], check=True)
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *UNFIT], check=True)
    return python


class StoppedError(Exception):
    """A consumer stopped at an export."""


def read_exports(python: Path, reader: str, extra: list[str], exports: list[Path], work: Path) -> list[dict[str, Any]]:
    """What a reader of `readers/` makes of each export, in its environment: `rows`, or why it `stopped`.

    Raises:
        subprocess.CalledProcessError: it does not run.
    """
    out = work / f"{reader}.jsonl"
    subprocess.run(
        ["nice", "-n", "19", python, HERE / "readers" / f"{reader}.py", *extra, out, *exports],
        check=True,
        cwd=work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


# ---- the consumer's sample and ours, in one form: texts and images in order, supervised texts ----


def pieces(text: str, *, newline: bool, stripped: bool) -> list[str]:
    """A user text cut at its images, which are `<image>`."""
    found: list[str] = []
    leading = True
    for number, piece in enumerate(text.split("<image>")):
        if number:
            found.append("<image>")
        if leading and number and newline and piece.startswith("\n"):
            piece = piece[1:]
        if stripped:
            piece = piece.strip()
        if piece:
            found.append(piece)
            leading = False
    return found


def given(sample: Sample, consumer: Consumer) -> dict[str, Any]:
    """The sample as it should be read."""
    users = []
    for turn in sample.conversations:
        text, at = "", 0
        for offset in turn.image_offsets or (0,) * len(turn.images):
            text += turn.user[at:offset] + "<image>"
            at = offset
        users.append(pieces(text + turn.user[at:], newline=False, stripped=consumer.stripped))
    return {
        "system": sample.system,
        "users": users,
        "answers": [turn.assistant for turn in sample.conversations],
        "trained": [turn.assistant for turn in sample.conversations if turn.weight] if consumer.trained else [],
    }


def trained_texts(labels: list[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text of each run of labels that count."""
    spans: list[list[int]] = [[]]
    for label in labels:
        if label >= 0:
            spans[-1].append(label)
        elif spans[-1]:
            spans.append([])
    return [decode(span) for span in spans if span]


def from_tokens(row: dict[str, Any], decode: Callable[[list[int]], str], consumer: Consumer) -> dict[str, Any]:
    """A sample from its tokens and labels, in Qwen's chat format."""
    text = re.sub(r"<\|vision_start\|>(<\|image_pad\|>)+<\|vision_end\|>", "<image>", decode(row["input_ids"]))
    messages = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL)
    trained = trained_texts(row["labels"], decode)
    return {
        "system": "".join(content for role, content in messages if role == "system"),
        "users": [
            pieces(content, newline=consumer.newline, stripped=consumer.stripped)
            for role, content in messages
            if role == "user"
        ],
        "answers": [content for role, content in messages if role == "assistant"],
        "trained": [span.removesuffix("\n").removesuffix("<|im_end|>") for span in trained],
    }


def from_messages(row: dict[str, Any], consumer: Consumer) -> dict[str, Any]:
    """A sample from messages with blocks."""

    def text(role: str) -> Iterator[list[str]]:
        for message in row["messages"]:
            if message["role"] == role:
                yield ["<image>" if block["type"] == "image" else block["text"] for block in message["content"]]

    return {
        "system": "".join("".join(content) for content in text("system")),
        "users": list(text("user")),
        "answers": ["".join(content) for content in text("assistant")],
        "trained": [],
    }


DEFAULT_SYSTEM = ("", "You are a helpful assistant.")
"""What a consumer may put where a row has no system message."""


def _trained_otherwise(consumer: Consumer, sample: Sample) -> bool:
    """Whether the export warns that the consumer trains this row in another way."""
    if consumer.name == "swift":  # end-trained
        return sample.conversations[-1].weight == 0
    return consumer.name == "axolotl" and any(turn.assistant.startswith("\n") for turn in sample.conversations)


@dataclass
class Outcome:
    """Comparison of one consumer."""

    rows: int = 0
    same: int = 0
    declared: int = 0  # different in what the export warned of
    differences: dict[str, list[str]] = field(default_factory=dict)


def compare(consumer: Consumer, rows: list[Sample], found: list[dict[str, Any]], source: Path, decode: Any) -> Outcome:
    """Every row of a consumer with ours."""
    outcome = Outcome(len(rows))
    for number, sample in enumerate(rows):
        wrong = []
        if number >= len(found):
            outcome.differences.setdefault("row missing", []).append(sample.id)
            continue
        row = found[number]
        read = from_tokens(row, decode, consumer) if "input_ids" in row else from_messages(row, consumer)
        for key, value in given(sample, consumer).items():
            default = key == "system" and not value and read[key] in DEFAULT_SYSTEM
            if read[key] != value and not default:
                wrong.append(key)
        paths = [source / "images" / name for name in sample.images]
        same = True
        if "pixels" in row:
            same = row["pixels"] == [Image.open(path).convert("RGB").tobytes().hex() for path in paths]
        if "images" in row:
            same &= row["images"] == [sha256(path.read_bytes()).hexdigest() for path in paths]
        if not same:
            wrong.append("images")
        outcome.same += not wrong
        if wrong == ["trained"] and _trained_otherwise(consumer, sample):
            outcome.declared += 1
            continue
        for key in wrong:
            outcome.differences.setdefault(key, []).append(sample.id)
            if len(outcome.differences[key]) == 1:
                print(consumer.name, sample.id, key, given(sample, consumer).get(key), read.get(key), sep="\n  ")
    return outcome


def run(consumer: Consumer, envs: Path, model: Path, qwen: Path | None, number: int, work: Path) -> Outcome:
    """Export, read in the consumer's environment, compare."""
    rows = make_rows(number, consumer.suffixes, weights=consumer.weights, system=consumer.format != "qwen")
    work = work / re.sub(r"\W+", "-", consumer.title)
    source = write_set(work / "set", rows)
    export = work / "export"
    export_set(consumer.format, source, export, ExportRequest(shard_bytes=consumer.shard_bytes))
    python = environment(consumer.environment or consumer.name, envs)
    extra = {"qwen": [qwen], "energon": [], "streaming": []}.get(consumer.name, [model])
    [found] = read_exports(python, consumer.name, [*map(str, extra)], [export], work)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if "stopped" in found:
        raise StoppedError(found["stopped"])
    return compare(consumer, rows, found["rows"], source, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--qwen", type=Path, help="Qwen's data_processor.py")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=sorted({consumer.name for consumer in CONSUMERS}))
    args = parser.parse_args()
    from phi3v_train.models.registry import get_family

    family = get_family("qwen2_5_vl")
    lines = [
        "| consumer | format | rows | same | as the export warned | different |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = work / "model"
        family.tiny_processor().save_pretrained(model)
        family.tiny_model(0).save_pretrained(model)
        for consumer in CONSUMERS:
            if args.only and consumer.name not in args.only:
                continue
            if consumer.name == "qwen" and args.qwen is None:
                notes[consumer.title] = "its file was not given by --qwen"
                continue
            try:
                outcome = run(consumer, args.envs, model, args.qwen and args.qwen.absolute(), args.rows, work)
            except (subprocess.CalledProcessError, StoppedError) as error:
                words = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
                notes[consumer.title] = f"stopped: {words[-1] if words else error}"
                print(consumer.title, *words[-12:], sep="\n")
                continue
            different = "; ".join(f"{key} in {len(ids)}" for key, ids in outcome.differences.items()) or "none"
            counts = f"{outcome.rows} | {outcome.same} | {outcome.declared}"
            lines.append(f"| {consumer.title} | {consumer.format} | {counts} | {different} |")
            print(lines[-1], flush=True)
    text = (
        "# Exports as their consumers read them\n\n" + "`python benchmarks/formats/consumers.py`: every row's texts, "
    )
    text += "places and bytes of images, and supervised texts, against the sample.\n\n" + "\n".join(lines) + "\n"
    text += "".join(f"\n- {title}: {why}." for title, why in notes.items()) + "\n" * bool(notes)
    if not args.only:
        (RESULTS / "consumers.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
