"""Import of ShareGPT rows: `python benchmarks/formats/import_rows.py [--rows 200000 1000000] [--no-save]`.

The same generated rows without images, in a JSON array, go through

    import         `phi3v-data import sharegpt FILE` with one worker: plan, checks, journal, rows, `dataset.json`
    import_here    the same in the command's own process (`--workers 0`)
    datasets_map   `datasets` loads the file and maps each row to a list of prompt and response, as LLaMA-Factory's
                   converter does with tags and roles; the mapped table is written to its cache

each in a process of its own; CPU time of the process and its children, and the peak memory of the largest process. If
LLaMA-Factory is installed (`pip install llamafactory` in an environment of its own), `--llama_factory PYTHON` names
the interpreter, and its own converter is mapped instead of the stand-in.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import machine, save

ROOT = Path(__file__).parents[2]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "one",
    "dog",
    "barked",
    "at",
    "passing",
    "cars",
    "and",
    "nobody",
    "seemed",
]

PEER = """
import sys
import datasets
datasets.disable_progress_bars()
data = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
try:
    from llamafactory.data.converter import SharegptDatasetConverter
    from llamafactory.data.parser import DatasetAttr
    from types import SimpleNamespace
    attr = DatasetAttr("file", dataset_name="demo", formatting="sharegpt")
    convert = SharegptDatasetConverter(dataset_attr=attr, data_args=SimpleNamespace(media_dir=None))
    print("llamafactory")
except ImportError:
    ROLES = {"human": "user", "gpt": "assistant"}
    def convert(row):
        aligned, broken = [], False
        for number, message in enumerate(row["conversations"]):
            if message["from"] not in (("human", "observation"), ("gpt", "function_call"))[number % 2]:
                broken = True
            aligned.append({"role": ROLES[message["from"]], "content": message["value"]})
        prompt, response = ([], []) if broken or len(aligned) % 2 else (aligned[:-1], aligned[-1:])
        return {"_prompt": prompt, "_response": response, "_system": "", "_tools": "", "_images": None,
                "_videos": None, "_audios": None}
    print("stand-in")
data.map(convert, batched=False, remove_columns=data.column_names, load_from_cache_file=False)
"""


def write_rows(path: Path, count: int) -> None:
    """A JSON array of conversations of one to three turns, about 600 bytes each."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            messages = [
                {"from": role, "value": " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))}
                for _ in range(rng.randint(1, 3))
                for role in ("human", "gpt")
            ]
            row = {"id": f"row-{number}", "conversations": messages}
            file.write(("[\n" if not number else ",\n") + json.dumps(row))
        file.write("\n]\n")


def measured(command: list[str]) -> dict[str, float]:
    """CPU seconds of a command and its children, and the peak of its largest process in MiB."""
    script = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=sys.stderr)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    code, cpu, peak = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return {"cpu_seconds": round(cpu, 2), "peak_mib": round(peak, 1)}


def main() -> None:
    """Measure each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--llama_factory", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    results: dict[str, Any] = {}
    for count in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rows.json")
            write_rows(file, count)
            code = "from phi3v_data.cli.app import main; main()"
            program = [sys.executable, "-c", code, "import", "sharegpt", str(file), "--quiet"]
            ways = {
                "import": [*program, "--out_dir", f"{folder}/out", "--workers", "1"],
                "import_here": [*program, "--out_dir", f"{folder}/here", "--workers", "0"],
                "datasets_map": [args.llama_factory, "-c", PEER, str(file), f"{folder}/cache"],
            }
            found = {name: measured(command) for name, command in ways.items()}
            for way in found.values():
                way["rows_per_cpu_second"] = round(count / way["cpu_seconds"])
            results[str(count)] = {"file_mb": round(file.stat().st_size / 1e6, 1), **found}
            print(json.dumps(results[str(count)], indent=1), file=sys.stderr)
    result = {"machine": machine("datasets", "llamafactory", "msgspec", "pydantic"), "rows": results}
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("import_rows", result)


if __name__ == "__main__":
    main()
