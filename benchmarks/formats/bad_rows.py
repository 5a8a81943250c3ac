"""Bad rows as the tools really read them, beside what the linter says that they do.

    python benchmarks/formats/bad_rows.py --envs /tmp/consumers [--qwen data_processor.py] [--llava CLONE]

Each case is a file of two good rows with a bad one between them (or one of its own kind), linted for the tool and read
by it, in the environment of `consumers.py`. A line agrees if the linter names the row with the code and the words of
the case, and the tool's decoded samples are those that the case gives as literals. Of Qwen's trainer only the function
that builds messages is run, so a row that it cannot build shows as `stops`; its loop then takes the next row. `--llava`
is a clone of haotian-liu/LLaVA, whose data set is run in the environment of axolotl.
"""

import argparse
import gzip
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bad_cases import ENTRY, GOOD, STOPS, TOOLS, Case, Row
from consumers import DEFAULT_SYSTEM, RESULTS, environment, read_exports, trained_texts
from PIL import Image

from phi3v_data.lint import lint_file


def write_case(case: Case, good: Sequence[Row], folder: Path) -> Path:
    """The folder of a case, which holds its file only, its settings, and images in the folder above."""
    folder.mkdir()
    rows = case.row if isinstance(case.row, list) else [good[0], case.row, good[1]]
    path = folder / case.name
    lines = [json.dumps(row) for row in rows]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if ".json" in path.suffixes else "\n".join(lines) + "\n"
    for name in ("a.png", "b.png"):
        text = text.replace(f'"{name}"', json.dumps(str(folder.parent / name)))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    if case.entry is not None:
        (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": case.name, **case.entry}}))
    return path


def rendered(row: Row, decode: Any) -> str:
    """A sample as a text: `[system] user > answer`, an answer that is not trained in parentheses."""
    if "messages" in row:
        found = []
        for message in row["messages"]:
            text = "".join("<image>" if block["type"] == "image" else block["text"] for block in message["content"])
            found.append((message["role"], text))
        trained = row.get("trained")
    else:
        text = re.sub(r"<\|vision_start\|>(<\|image_pad\|>)+<\|vision_end\|>", "<image>", decode(row["input_ids"]))
        found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL)
        trained = [text.removesuffix("\n") for text in trained_texts(row["labels"], decode)]
    words = []
    for role, content in found:
        if role == "assistant":
            answer = content
            if trained is not None:
                span = trained.pop(0) if trained else ""
                if span.removesuffix("<|im_end|>") != content:
                    answer = f"({content})"
                    if span == "<|im_end|>":
                        answer += " + end"
                    elif span:
                        trained.insert(0, span)
            words.append(f"> {answer}")
        elif role == "system":
            words += [f"[{content}]"] if content not in DEFAULT_SYSTEM else []
        else:
            words.append(content)
    return " ".join(words) if words[:1] != [""] else " " + " ".join(words[1:])


def agrees(case: Case, said: list[tuple[str, int | None, str]], made: Row, samples: list[str]) -> list[str]:
    """What does not agree; empty if all does."""
    wrong = []
    if not any(code == case.code and line == case.line and case.words in message for code, line, message in said):
        wrong.append(f"the linter says {said}")
    if case.becomes == STOPS:
        if "stopped" not in made:
            wrong.append(f"it makes {samples} of it")
    elif "stopped" in made:
        wrong.append(f"it stops: {made['stopped'][:300]}")
    else:
        expected = list(case.becomes)
        if len(samples) == len(expected) and "a good row" in expected:
            place = expected.index("a good row")
            expected[place] = samples[place] if samples[place] in GOOD else "a good row"
        if samples != expected:
            wrong.append(f"it makes {samples} of it")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--qwen", type=Path, help="Qwen's data_processor.py")
    parser.add_argument("--llava", type=Path, help="clone of LLaVA")
    parser.add_argument("--only", nargs="*", choices=sorted(TOOLS))
    args = parser.parse_args()
    from tokenizers import Tokenizer

    from phi3v_train.models.registry import get_family

    family = get_family("qwen2_5_vl")
    lines = ["| tool | cases | as the linter says | otherwise |", "| --- | ---: | ---: | --- |"]
    details: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = work / "model"
        family.tiny_processor().save_pretrained(model)
        family.tiny_model(0).save_pretrained(model)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

        def decode(ids: list[int]) -> str:
            text: str = tokenizer.decode(ids, skip_special_tokens=False)
            return text

        for reader, (title, format_, environment_name, good, cases) in TOOLS.items():
            source = vars(args).get(reader, model)  # of a tool that is no package
            if source is None or (args.only and reader not in args.only):
                continue
            folder = work / reader
            folder.mkdir()
            for image, color in (("a.png", "red"), ("b.png", "blue")):
                Image.new("RGB", (56, 56), color).save(folder / image)
            files = []
            for number, case in enumerate(cases.values()):
                entry = ENTRY if case.entry is None and reader == "llama_factory" else case.entry
                files.append(write_case(replace(case, entry=entry), good, folder / f"{number:02d}"))
            extra = [str(source.absolute())]
            python = environment(environment_name, args.envs)
            made = read_exports(python, reader, extra, [file.parent for file in files], folder)
            num_right = 0
            others = []
            details += [f"\n## {title}\n", "| row | the linter | the tool |", "| --- | --- | --- |"]
            for (words, case), file, found in zip(cases.items(), files, made, strict=True):
                report = lint_file(file, format=format_)
                said = [(each.code, each.line, each.message) for each in report.problems]
                samples = [rendered(row, decode) for row in found.get("rows", ())]
                wrong = agrees(case, said, found, samples)
                num_right += not wrong
                if wrong:
                    others.append(words)
                    print(title, words, *wrong, sep="\n  ", flush=True)
                does = (
                    found["stopped"].replace(f"{work}/", "").splitlines()[0][:90]
                    if "stopped" in found
                    else "; ".join(samples)
                )
                details.append(f"| {cell(words)} | `{case.code}`: {cell(case.words)} | {cell(does)} |")
            lines.append(f"| {title} | {len(cases)} | {num_right} | {', '.join(others) or 'none'} |")
    text = "# Bad rows as the tools read them\n\n`python benchmarks/formats/bad_rows.py`: a bad row between two good "
    text += "ones, linted, and read by the tool itself.\n\n" + "\n".join([*lines, *details]) + "\n"
    if not args.only:
        (RESULTS / "bad_rows.md").write_text(text, encoding="utf-8")
    print("\n".join([*lines, *details]))


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return text.replace("\n", "⏎").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
