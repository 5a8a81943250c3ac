"""A custom converter: copy this file, change `plan` and `convert`.

It reads a folder of images, each with a text file next to it that contains a question and its answer:

    receipts/001.png   receipts/001.txt ("What is the total?" on line 1, "12.50" on line 2)

From the command line (the options below become flags) and from Python:

    phi3v-data convert --converter examples/custom_converter.py:Receipts --source receipts/ --out_dir out/ --upper
    phi3v_data.convert(Receipts, source="receipts/", out_dir="out/", options={"upper": True})
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

import phi3v_data


class ReceiptOptions(phi3v_data.Options):
    """Options of the converter: each field is a command-line option, its description the help."""

    hint: str = Field("", description="Text added after every question.")
    upper: bool = Field(False, description="Write answers in capitals.")


class Receipts(phi3v_data.Converter[ReceiptOptions]):
    """Images with a question and an answer in a text file next to each."""

    name = "receipts"
    version = "1"  # change it if the output changes, so that an old run is not resumed

    def plan(self, source: phi3v_data.Source, options: ReceiptOptions) -> Iterable[phi3v_data.Item]:
        """Yield one item per sample, in order; images are not opened."""
        texts = {file.path: file for file in source.files([".txt"])}
        for image in source.files([".png", ".jpg"]):
            text = texts.get(str(Path(image.path).with_suffix(".txt")))
            yield phi3v_data.Item(
                split="train",
                key=image.path,
                path=str(image.file),
                group=image.path.split("/")[0] if "/" in image.path else "",
                size=image.size,
                data={"text": str(text.file) if text else ""},
            )

    def convert(self, item: phi3v_data.Item, options: ReceiptOptions) -> phi3v_data.Draft:
        """Convert one item to a draft; runs in any worker."""
        if not item.data["text"]:
            raise phi3v_data.Reject("text-missing", f"{item.key} has no text file next to it")
        question, _, answer = Path(item.data["text"]).read_text(encoding="utf-8").strip().partition("\n")
        return phi3v_data.Draft(
            user=f"{question} {options.hint}".strip(),
            assistant=answer.upper() if options.upper else answer,
            images=[phi3v_data.DraftImage(item.path, name=f"{item.split}/{item.key}")],
            meta={"source_id": item.key},
        )

    def describe(self, source: phi3v_data.Source, options: ReceiptOptions) -> phi3v_data.DatasetInfo:
        """Facts about the whole set for `dataset.json`."""
        return phi3v_data.DatasetInfo(name=self.name, task="vqa", metrics=["anls"])


@phi3v_data.converter("receipts-short")
def receipts_short(source: phi3v_data.Source) -> Iterable[phi3v_data.Draft]:
    """Yield the same samples without a plan, in one process."""
    for image in source.files([".png", ".jpg"]):
        text = image.file.with_suffix(".txt")
        if text.exists():
            question, _, answer = text.read_text(encoding="utf-8").strip().partition("\n")
            yield phi3v_data.Draft(user=question, assistant=answer, images=[image.file])
