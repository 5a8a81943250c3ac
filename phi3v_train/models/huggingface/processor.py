"""Tokenizer, image processor and chat template of a model directory, each loaded by itself.

transformers' processor classes that know of videos cannot be made without torchvision, and its two kinds of image
processors give slightly different pixels. So the parts are loaded one by one, the image processor always by Pillow,
and pixels are the same on every machine. What is saved are the directory's own files, byte by byte, those for videos
among them; only an image budget that a run chose is written into them.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi3v_data.errors import NotFoundError
from phi3v_data.tokens.model_files import PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, Values, processor_settings, read_values

CONFIG_FILES = (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG)
"""Files with the image processor's values, the second one under the key `image_processor`."""

OTHER_FILES = (
    *("video_preprocessor_config.json", "chat_template.jinja", "chat_template.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "vocab.txt"),
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Of these files, a tokenizer has one at least."""

TEMPLATES = "additional_chat_templates"


@dataclass
class HubProcessor:
    """The parts of a processor.

    Args:
        tokenizer: of transformers.
        image_processor: of transformers, by Pillow.
        chat_template: the Jinja source; empty if there is none.
        settings: values of the image processor, and those of the whole processor that are not its own.
        directory: where the files are; None for a small model, whose files are in `files`.
        files: further files by name, to be written where there is no directory.
        changed: values that differ from the files: paths of keys within the image processor's values.
    """

    tokenizer: Any
    image_processor: Any
    chat_template: str
    settings: Values
    directory: Path | None = None
    files: Mapping[str, Values] = field(default_factory=dict)
    changed: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor's files into a folder."""
        folder = Path(folder)
        if self.directory is None:
            self.tokenizer.save_pretrained(folder)
            for name, values in self.files.items():
                write_values(folder / name, changed_values(name, values, self.changed))
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
            return
        for name in (*CONFIG_FILES, *OTHER_FILES):
            source = self.directory / name
            if not source.is_file():
                continue
            if name in CONFIG_FILES and self.changed:
                write_values(folder / name, changed_values(name, read_values(source), self.changed))
            else:
                shutil.copyfile(source, folder / name)
        if (self.directory / TEMPLATES).is_dir():
            shutil.copytree(self.directory / TEMPLATES, folder / TEMPLATES, dirs_exist_ok=True)

    def set(self, *keys: str, value: Any) -> None:
        """Change a value of the image processor, in its files too."""
        self.changed[keys] = value
        values = self.settings
        for key in keys[:-1]:
            values = values.setdefault(key, {})
        values[keys[-1]] = value


def load_parts(directory: Path, model_type: str | None = None) -> HubProcessor:
    """The parts of a directory's processor.

    Args:
        directory: of a model or an adapter.
        model_type: for an adapter's directory, which has no `config.json`: transformers chooses the tokenizer's class
            by it, and the class may split text in another way than `tokenizer.json` says.

    Raises:
        NotFoundError: the file of a part is missing.
        ValueError: a file cannot be used.
        ImportError: a part needs a package that is missing.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    if not (directory / PREPROCESSOR_CONFIG).is_file() and not has_image_processor(directory):
        raise NotFoundError(
            f"{directory}: {PREPROCESSOR_CONFIG} is missing (the image processor); copy it from the model's original "
            "files"
        )
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise NotFoundError(
            f"{directory}: tokenizer.json is missing (the tokenizer); copy it from the model's original files"
        )
    config = None
    if model_type is not None and not (directory / "config.json").is_file():
        config = AutoConfig.for_model(model_type)
    tokenizer = AutoTokenizer.from_pretrained(directory, config=config)
    image_processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
    return HubProcessor(
        tokenizer,
        image_processor,
        find_template(directory) or tokenizer.chat_template or "",
        processor_settings(directory),
        directory,
    )


def has_image_processor(directory: Path) -> bool:
    """Whether a directory's `processor_config.json` has the image processor's values."""
    return isinstance(read_values(directory / PROCESSOR_CONFIG).get("image_processor"), dict)


def find_template(directory: Path) -> str:
    """The chat template in a file of its own; empty if there is none."""
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", PROCESSOR_CONFIG):
        found = read_values(directory / name).get("chat_template")
        if isinstance(found, str):
            return found
    return ""


def write_values(path: Path, values: Values) -> None:
    """Write a JSON object as transformers does."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def changed_values(name: str, values: Values, changed: Mapping[tuple[str, ...], Any]) -> Values:
    """A file's values with what was changed, where the file has the image processor's values."""
    result: Values = json.loads(json.dumps(values))
    image = result.get("image_processor") if name == PROCESSOR_CONFIG else result
    if not isinstance(image, dict):
        return result
    for keys, value in changed.items():
        target = image
        for key in keys[:-1]:
            target = target.setdefault(key, {})
        target[keys[-1]] = value
    return result
