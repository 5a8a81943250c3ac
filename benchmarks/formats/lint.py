"""Checks of files of other tools: `python benchmarks/formats/lint.py [--rows N] [--images N] [--gigabytes N]`.

A generated ShareGPT file, as JSON Lines and as a JSON array, whose rows refer to 500 small images, goes through

    lint_lines, lint_array     `phi3v-data validate FILE --format sharegpt` with one worker
    loop_lines, loop_array     `json.loads` and a Pydantic model in a loop, which checks the types of fields only
    msgspec_lines, ..._array   `msgspec.json.Decoder(Row)` with the same types, on each line and on the whole array

each in a process of its own, in turn, best of `--runs`; CPU time of the process with its start-up. Bytecode is compiled
before, as installing a package does, in a folder of its own. Then

    images       a file with as many different images, and the same set as a conversations directory, both at level full
    big array    peak memory of `validate` on a pretty-printed array of so many gigabytes
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import machine, save, with_bytecode
from import_rows import WORDS, measured

CLI = "from phi3v_data.cli.app import main; main()"
SHARED_IMAGES = 500

LOOP = """
import json, sys
from typing import Literal
from pydantic import BaseModel, Field
class Message(BaseModel):
    role: Literal["human", "gpt", "system", "observation", "function_call"] = Field(alias="from")
    value: str
class Row(BaseModel):
    id: str
    conversations: list[Message]
    images: list[str] = []
    system: str = ""
with open(sys.argv[1]) as file:
    for row in json.load(file) if sys.argv[1].endswith(".json") else map(json.loads, file):
        Row.model_validate(row)
"""

DECODE = """
import sys
from typing import Literal
import msgspec
class Message(msgspec.Struct):
    role: Literal["human", "gpt", "system", "observation", "function_call"] = msgspec.field(name="from")
    value: str
class Row(msgspec.Struct):
    id: str
    conversations: list[Message]
    images: list[str] = []
    system: str = ""
with open(sys.argv[1], "rb") as file:
    if sys.argv[1].endswith(".json"):
        msgspec.json.Decoder(list[Row]).decode(file.read())
    else:
        for row in map(msgspec.json.Decoder(Row).decode, file):
            pass
"""


def make_row(rng: random.Random, number: int, image: str) -> dict[str, Any]:
    """A conversation of one to three turns, about 500 bytes, some with line ends and quotes."""
    messages = []
    for turn in range(rng.choice([1, 1, 2, 3])):
        question = " ".join(rng.choices(WORDS, k=rng.randint(5, 20))) + "?"
        answer = " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))
        if rng.random() < 0.1:
            answer += '\n"quoted" é'
        messages.append({"from": "human", "value": question if turn else f"<image>\n{question}"})
        messages.append({"from": "gpt", "value": answer})
    return {"id": f"row_{number:08d}", "conversations": messages, "images": [image]}


def write_rows(folder: Path, count: int) -> None:
    """The same rows as JSON Lines and as an array."""
    (folder / "images").mkdir()
    for number in range(SHARED_IMAGES):
        Image.new("RGB", (32, 24), (number % 256, number // 256, 9)).save(folder / f"images/{number}.jpg")
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w") as lines, (folder / "rows.json").open("w") as array:
        for number in range(count):
            row = make_row(rng, number, f"images/{rng.randrange(SHARED_IMAGES)}.jpg")
            text = json.dumps(row, ensure_ascii=False)
            lines.write(f"{text}\n")
            array.write(("[\n" if not number else ",\n") + text)
        array.write("\n]\n")


def spent(command: list[str]) -> dict[str, float]:
    """CPU seconds and peak memory of a command, which must succeed."""
    with tempfile.TemporaryDirectory() as name:
        found = measured(command, Path(name) / "work")
    if found is None:
        raise SystemExit(f"failed: {' '.join(command)}")
    return found


def best(count: int, runs: int, **commands: list[str]) -> dict[str, dict[str, float]]:
    """The run of each command that took the least CPU time; they run in turn, so that other load slows all equally."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            found[name].append(spent(command))
    least = {name: min(each, key=lambda run: run["cpu_seconds"]) for name, each in found.items()}
    return {name: {**run, "rows_per_cpu_second": round(count / run["cpu_seconds"])} for name, run in least.items()}


def compare_images(folder: Path, count: int) -> dict[str, Any]:
    """A file with different images against the directory that `import` makes of it."""
    (folder / "images").mkdir()
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w") as lines:
        for number in range(count):
            noise = Image.effect_noise((320, 240), 40 + number % 50).convert("RGB")
            noise.save(folder / f"images/{number}.jpg")
            lines.write(json.dumps(make_row(rng, number, f"images/{number}.jpg")) + "\n")
    file = str(folder / "rows.jsonl")
    made = [sys.executable, "-c", CLI, "import", "sharegpt", file, "--out_dir", f"{folder}/set", "--quiet"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    check = [sys.executable, "-c", CLI, "validate", "--workers", "1", "--quiet"]
    of_file = [*check, file, "--format", "sharegpt"]
    return {"images": count, **best(count, 3, file=of_file, directory=[*check, f"{folder}/set", "--fresh"])}


def write_big(path: Path, size: int) -> int:
    """A pretty-printed array; returns the number of its rows."""
    padding = "word and another word, quite long; " * 28
    number = written = 0
    with path.open("w") as file:
        file.write("[\n")
        while written < size:
            messages = [{"from": "human", "value": f"What is {number}? {padding}"}]
            messages.append({"from": "gpt", "value": f"It is {number}. {padding}"})
            text = json.dumps({"id": f"r{number}", "conversations": messages, "images": []}, indent=1)
            written += file.write(text if not number else f",\n{text}")
            number += 1
        file.write("\n]\n")
    return number


def main() -> None:
    """Measure each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    with with_bytecode():
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Measure each, and save."""
    result: dict[str, Any] = {
        "machine": machine("msgspec", "numpy", "pydantic"),
        "load_average": os.getloadavg()[1],  # of other work, which slows each program
        "rows": args.rows,
    }
    check = [sys.executable, "-c", CLI, "validate", "--format", "sharegpt", "--workers", "1", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), args.rows)
        for layout, name in (("lines", "rows.jsonl"), ("array", "rows.json")):
            file = f"{folder}/{name}"
            programs = {"loop": [sys.executable, "-c", LOOP, file], "msgspec": [sys.executable, "-c", DECODE, file]}
            found = best(args.rows, args.runs, lint=[*check, file], **programs)
            result |= {f"{program}_{layout}": run for program, run in found.items()}
            ratio = found["loop"]["cpu_seconds"] / found["lint"]["cpu_seconds"]
            result[f"ratio_{layout}"] = round(ratio, 2)
    if args.images:
        with tempfile.TemporaryDirectory() as folder:
            result["with_images"] = compare_images(Path(folder), args.images)
    if args.gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/big.json"
            rows = write_big(Path(file), int(args.gigabytes * 1e9))
            result["big_array"] = {"gigabytes": args.gigabytes, "rows": rows, **spent([*check, file])}
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("lint", result)


if __name__ == "__main__":
    main()
