"""Phi-3-vision's tokenizer: the tokenizers library reading `tokenizer.json`, whatever class a directory names.

Official directories name `LlamaTokenizer`. If there is no `config.json` next to it (an adapter, a saved processor),
transformers 5 then rebuilds a Llama tokenizer and gets other ids: `<|user|>` newline becomes two ids instead of three.
This class always reads `tokenizer.json`, and writes a class name that 4.x and 5.x both read the same way.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils.generic import to_py_obj

from phi3v_data.files import load_json, write_json

SAVED_CLASS = "PreTrainedTokenizerFast"
"""`tokenizer_class` on disk: in transformers 4.x and 5.x it means `tokenizer.json` as it is."""

OF_THIS_MACHINE = ("backend", "is_local", "local_files_only")
"""Keys that transformers 5 writes about how the tokenizer was loaded."""


class Phi3VTokenizer(TokenizersBackend):  # type: ignore[misc]  # transformers is untyped for mypy
    """Llama BPE with byte fallback and Phi-3-vision's special tokens; decodes ids of images to nothing."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012  # transformers' own form

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> Any:
        """Text of one sequence, or texts of several; negative ids (images, masked labels) are left out."""
        return super().decode(without_negatives(token_ids), skip_special_tokens=skip_special_tokens, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Write the tokenizer's files so that ids survive a reload in transformers 4.x and 5.x."""
        files: tuple[str, ...] = super().save_pretrained(save_directory, *args, **kwargs)
        directory = Path(save_directory)
        rewrite_json(directory / "tokenizer_config.json", self._readable_config)
        rewrite_json(directory / "tokenizer.json", readable_merges)
        return files

    def _readable_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """`tokenizer_config.json` as every release since 4.43 reads it.

        Releases before 4.53 do not know chat_template.jinja, and those of 4.x fail on a list of extra_special_tokens.
        """
        config.pop("auto_map", None)  # it names a code file that is not saved with it
        extra = config.pop("extra_special_tokens", None)
        if extra:
            config["additional_special_tokens"] = list(dict.fromkeys(extra))
        kept = {name: value for name, value in config.items() if name not in OF_THIS_MACHINE}
        return dict(sorted({**kept, "tokenizer_class": SAVED_CLASS, "chat_template": self.chat_template}.items()))


def readable_merges(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer.json` with each merge as one text, "a b", which tokenizers before 0.20 need and later ones read too.

    No piece of this vocabulary contains a space: the normalizer has replaced all spaces.
    """
    model = tokenizer["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {**tokenizer, "model": {**model, "merges": merges}}


def rewrite_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace a JSON file by `change` of its content."""
    content = change(load_json(path))
    write_json(path, content)


def without_negatives(token_ids: Any) -> Any:
    """`token_ids`, a number or a (nested) sequence of them, as Python lists without negative ids."""
    ids = to_py_obj(token_ids)
    if isinstance(ids, int):
        return [ids] if ids >= 0 else []
    return [without_negatives(entry) if isinstance(entry, list | tuple) else entry for entry in ids if keeps(entry)]


def keeps(entry: Any) -> bool:
    """Whether an entry is a sequence or an id of the vocabulary."""
    return isinstance(entry, list | tuple) or entry >= 0
