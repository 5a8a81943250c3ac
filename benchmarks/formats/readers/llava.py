"""The samples that LLaVA's own trainer makes of files. Run by bad_rows.py.

`python llava.py CLONE OUT EXPORT...`: CLONE is a clone of haotian-liu/LLaVA outside of the project, whose data set is
run with Vicuna's prompt; what it imports of models is left out. Its tokenizer is not at hand: one of single characters
stands for it, with the begin token and the end token that the file counts on.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from reading import Row, run

clone, out, *exports = sys.argv[1:]
sys.path.append(sys.path.pop(0))  # this file has the name of the package
llava, model, trainer = (ModuleType(name) for name in ("llava", "llava.model", "llava.train.llava_trainer"))
llava.__path__ = [f"{clone}/llava"]
trainer.LLaVATrainer = None  # type: ignore[attr-defined]
sys.modules |= {"llava": llava, "llava.model": model, "llava.train.llava_trainer": trainer}
train = ModuleType("llava.train")
train.__path__ = [f"{clone}/llava/train"]
sys.modules["llava.train"] = train
from llava import conversation  # noqa: E402
from llava.train.train import LazySupervisedDataset  # noqa: E402

conversation.default_conversation = conversation.conv_templates["vicuna_v1"]
PAD, BEGIN, END, IMAGE, IGNORED = 0, 1, 2, -200, -100


class Characters:
    """A tokenizer with an id for each character."""

    pad_token_id, bos_token_id, model_max_length, legacy = PAD, BEGIN, 100_000, True

    def __call__(self, text: Any, **_: Any) -> Any:
        if isinstance(text, list):
            return SimpleNamespace(input_ids=torch.tensor([self(each).input_ids for each in text]))
        pieces = re.findall("</s>|.", text, re.DOTALL)
        return SimpleNamespace(input_ids=[BEGIN, *(END if each == "</s>" else ord(each) for each in pieces)])


def text_of(ids: Any) -> str:
    named = {BEGIN: "", END: "</s>", IMAGE: "<image>"}
    return "".join(named.get(each, "") if each in named else chr(each) for each in ids.tolist())


def read(export: Path) -> Iterator[Row]:
    [file] = [path for path in export.iterdir() if path.is_file()]
    processor = SimpleNamespace(
        preprocess=lambda image, **_: {"pixel_values": [torch.zeros(3)]}, crop_size={"height": 1, "width": 1}
    )
    settings = SimpleNamespace(
        image_folder=str(export),
        image_processor=processor,
        image_aspect_ratio="square",
        is_multimodal=True,
        mm_use_im_start_end=False,
    )
    rows = LazySupervisedDataset(str(file), Characters(), settings)
    for place in range(len(rows)):
        row = rows[place]
        labels = row["labels"]
        text = text_of(row["input_ids"]).removeprefix(conversation.default_conversation.system).strip()
        trained = text_of(labels[labels != IGNORED]).split("</s>")
        messages = []
        for role, content in re.findall(r"(USER|ASSISTANT): (.*?)(?: (?=ASSISTANT: )|</s>|$)", text, re.DOTALL):
            name = "user" if role == "USER" else "assistant"
            messages.append({"role": name, "content": [{"type": "text", "text": content}]})
        yield {"messages": messages, "trained": [each.strip() for each in trained if each.strip()]}


run(read, out, exports)
