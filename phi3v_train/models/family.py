"""A model family: the one object that tells the rest of the package about a kind of model.

Nothing in `training/`, `data/`, `evaluation/` or the commands knows a model's modules, markers or numbers; they ask
its `ModelFamily`, which `phi3v_train.models.registry` finds by name or by the `model_type` of a `config.json`. A new
family is one folder `models/NAME/` with a `family.py`, or an object of another package (entry point group
`phi3v_train.families`). Nothing here imports torch before a model is loaded.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from phi3v_data.errors import UserError
from phi3v_data.tokens.chat import TurnText
from phi3v_data.tokens.family import BudgetError, TokenFamily
from phi3v_data.tokens.model_files import PREPROCESSOR_CONFIG, PROCESSOR_CONFIG
from phi3v_train.models.renderer import Renderer
from phi3v_train.models.size import ModelSize

if TYPE_CHECKING:
    from torch import Tensor

Part: TypeAlias = Literal["language", "vision", "projector"]

MISSING, DIFFERENT, NOTE = "missing", "different", "note"
"""Kinds of an engine's findings; the first two keep the engine from answering as the model does here."""


class OtherFamilyError(UserError):
    """The files of a processor are those of another model family."""


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """Names of modules by component, as prefixes of parameter names; the longest prefix that fits counts.

    What fits none belongs to the language model.
    """

    language: tuple[str, ...]
    head: tuple[str, ...] = ()
    tower: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()

    def part_of(self, name: str) -> Part:
        """The part of the model that a parameter belongs to; a wrapper's prefix before its name does not matter."""
        best, part = 0, "language"
        for prefixes, each in ((self.tower, "vision"), (self.projector, "projector"), (self.language, "language")):
            for prefix in prefixes:
                if len(prefix) > best and re.search(rf"(^|\.){re.escape(prefix)}(\.|$)", name):
                    best, part = len(prefix), each
        return part  # type: ignore[return-value]  # one of the three above


@dataclass(frozen=True, slots=True)
class ImageBudget:
    """The budget that limits the tokens of an image, as a processor carries it.

    `name` is the attribute of the image processor and its key in the processor's file; `tuned` is the key under
    which a run writes the budget that it trained with.
    """

    name: str = "num_crops"
    tuned: str = "tuned_num_crops"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Findings on a model directory for an inference engine, each with its kind and text, and where they are from."""

    origin: str
    findings: tuple[tuple[str, str], ...]

    @property
    def fits(self) -> bool:
        """Whether nothing is missing and nothing differs."""
        return all(kind == NOTE for kind, _ in self.findings)


class ModelFamily(ABC):
    """Everything that this package knows of one kind of model. Instances have no state and pickle by class."""

    name: ClassVar[str]
    """Name on the command line, `tiny:NAME`; that of its `TokenFamily` too."""

    title: ClassVar[str]
    """Its models in a sentence: `Phi-3-vision and Phi-3.5-vision`."""

    modules: ClassVar[ModuleNames]
    """Names of tower, projector, language model and head."""

    needed_files: ClassVar[Mapping[str | tuple[str, ...], str]] = {
        "config.json": "the model's shapes",
        "tokenizer.json": "the tokenizer",
        (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG): "the image processor",
    }
    """Files of a model directory beside the weights, each with its purpose; of a tuple, one is enough.

    transformers 5 saves most processors, the image processor included, as `processor_config.json` alone.
    """

    budget: ClassVar[ImageBudget | None] = None
    """How its processor carries the image budget; None if images have no budget."""

    no_packing: ClassVar[str] = "attention of this model family crosses the samples of a packed row"
    """Why several samples cannot share a row exactly; empty if they can."""

    no_sharding: ClassVar[str] = ""
    """Why processes cannot hold parts of the weights; empty if they can."""

    template_origin: ClassVar[str] = ""
    """Where the chat template is from that the chat format was compared with."""

    note: ClassVar[str] = ""
    """A warning about its models, to follow a model's name; empty if there is none."""

    no_decay: ClassVar[tuple[str, ...]] = ("bias",)
    """Endings of the names of matrices that weight decay leaves out, beside all vectors."""

    host_inputs: ClassVar[frozenset[str]] = frozenset()
    """Inputs of generation that stay on the CPU."""

    card_tags: ClassVar[tuple[str, ...]] = ("phi3v",)
    """Tags of a tuned model's card."""

    has_code: ClassVar[bool] = False
    """Whether `write_code` puts the model's own code into a directory: transformers does not know the model itself."""

    @property
    @abstractmethod
    def tokens(self) -> TokenFamily:
        """Chat format, special strings and image tokens, which the validator uses as well."""

    def write_code(self, folder: Path) -> None:
        """Put the model's code into a model directory, so that it loads where this package is not installed.

        A family without `has_code` is never asked.
        """
        raise NotImplementedError(self.name)

    def check_engine(self, directory: Path, engine: str) -> EngineReport:
        """Compare a model directory with what an inference engine needs of it.

        Raises:
            UserError: nothing is known of the engine and this family.
        """
        raise UserError(
            f"{directory}: --check knows what engines need of Phi-3-vision only; {self.title} is a plain transformers "
            "directory, which engines serve as they serve its base"
        )

    @abstractmethod
    def size(self, config: Mapping[str, Any]) -> ModelSize:
        """Sizes by a parsed `config.json`, with the one table of linear layers."""

    @abstractmethod
    def renderer(self, processor: Any) -> Renderer:
        """Encoder of conversations with a processor of this family."""

    @abstractmethod
    def load_model(self, directory: Path, *, dtype: Any, attn_implementation: str) -> Any:
        """The model on the CPU, weights in the torch dtype `dtype`."""

    @abstractmethod
    def empty_model(self, directory: Path, *, dtype: Any = None, attn_implementation: str | None = None) -> Any:
        """The model by its config.json and generation_config.json alone, its weights not read.

        It is made on torch's default device, as transformers' `_from_config` makes it; without `dtype` and
        `attn_implementation` as config.json says.
        """

    @abstractmethod
    def load_processor(self, directory: Path) -> Any:
        """Tokenizer and image processor of a directory.

        Raises:
            ValueError, TypeError: a value in its files cannot be used.
        """

    @abstractmethod
    def tiny_config(self) -> dict[str, Any]:
        """`config.json` of a small model for tests and demonstrations, as a dictionary."""

    @abstractmethod
    def tiny_model(self, seed: int) -> Any:
        """The small model with random weights that depend on `seed` alone, in fp32 on the CPU."""

    @abstractmethod
    def tiny_processor(self) -> Any:
        """A processor for the small model."""

    @abstractmethod
    def layer_classes(self, model: Any) -> tuple[type, ...]:
        """Module classes that FSDP shards and gathers one by one; everything outside of them is one more unit."""

    def chat_template(self) -> str:
        """The Jinja template that writes a conversation as it is encoded here; empty if there is none to compare."""
        return ""

    def check_processor(self, processor: Any, model_name: str) -> None:  # noqa: B027  # most support any
        """Refuse a processor whose settings this family does not support.

        Raises:
            UserError: which one, and what to do.
        """

    def part_of(self, name: str) -> Part:
        """The part of the model that a parameter belongs to, by its name; a wrapper's prefix does not matter."""
        return self.modules.part_of(name)

    def image_budget(self, options: Mapping[str, int]) -> int | None:
        """The image budget among the options of images that were given; None if it is not.

        Raises:
            UserError: an option that this family does not have, or a value that it does not take.
        """
        try:
            return self.tokens.with_options(options)[1]
        except BudgetError as error:
            option = self.tokens.budget_option
            known = str(error).startswith("--")  # the option itself is wrong
            raise UserError(str(error) if known else f"--{option} {options[option]}: {error}") from None

    def processor_notes(self, processor: Any) -> list[str]:
        """Sentences about a processor that a user should know of, to follow the model's name."""
        return []

    def match_processor(self, model: Any, processor: Any) -> None:  # noqa: B027  # most models need nothing
        """Let a model have the settings of its processor that it needs as well."""

    def set_option(self, processor: Any, name: str, value: int) -> None:
        """Let a processor have one of `other_options`."""
        raise NotImplementedError(name)

    def set_budget(self, processor: Any, value: int | None) -> None:
        """Let a processor cut images under this budget; None leaves it as it is."""
        if self.budget is not None and value is not None:
            setattr(processor.image_processor, self.budget.name, value)

    def mark_tuned(self, processor: Any, value: int | None) -> None:
        """Let a processor's files say under which budget the model was trained."""
        if self.budget is not None and value is not None:
            setattr(processor.image_processor, self.budget.tuned, value)

    def tuned_budget(self, processor: Any) -> int | None:
        """The budget that `mark_tuned` wrote into the processor's files; None for any other model."""
        value: int | None = None if self.budget is None else getattr(processor.image_processor, self.budget.tuned, None)
        return value

    def stop_ids(self, model: Any, tokenizer: Any) -> list[int]:
        """Ids at which generation stops: the model's own, else those of the chat format's stop strings."""
        own = model.generation_config.eos_token_id
        if own is not None:
            return sorted(set(own if isinstance(own, list) else [own]))
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        return sorted({vocabulary[text] for text in self.tokens.chat.stop_strings if text in vocabulary})

    def loss(
        self, model: Any, inputs: "Mapping[str, Any]", count: float, *, per_token: bool = False
    ) -> "tuple[Tensor, Tensor | None]":
        """Sum of cross-entropy over the supervised tokens of a micro-batch, divided by `count`; 0 if there are none.

        `labels` (rows, columns) are not shifted. Summed in fp64, so that the sum does not depend on how a batch is
        divided. The second value is the cross-entropy (supervised tokens,) of each, without a gradient, in the order of
        rows and columns; it may be None unless `per_token`.
        """
        from phi3v_train.models.token_loss import token_loss

        return token_loss(model, inputs, count, self.touch_vision(model, inputs))

    def prepare(self, inputs: "Mapping[str, Tensor]") -> dict[str, Any]:
        """Inputs of `loss` for a collated batch, on the CPU: what depends on its values is computed here, so that the
        step need not read it back from the device.

        Values are tensors, objects whose method `map` changes their tensors, and plain values.
        """
        from phi3v_train.models.labelled import Labelled
        from phi3v_train.models.token_loss import LABELLED

        rest = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        return {**rest, LABELLED: Labelled.by_labels(inputs["labels"])}

    def touch_vision(self, model: Any, inputs: "Mapping[str, Any]") -> "Callable[[], Tensor] | None":
        """A function that computes zero by tower and projector, for a batch without images; None if none is needed.

        Every process of a parallel run must run the same modules. It is called within the model's forward pass, where
        a sharded model has gathered the weights outside of its layers.
        """
        return None

    def is_reached(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether a loss reaches the parameter of this name, in a model of a parsed `config.json`."""
        return True

    def check_config(self, config: Mapping[str, Any], path: Path) -> None:  # noqa: B027  # most families read defaults
        """Refuse a parsed `config.json` that lacks what the family needs; `path` names the file.

        Raises:
            UserError: what it lacks.
        """

    def card_note(self, *, with_code: bool = False) -> list[str]:
        """Markdown lines of a model card before its example in Python; empty if the model needs only transformers.

        `with_code`: the model's directory has what `write_code` puts there.
        """
        return []

    def card_usage(self, model: str, budget: int | None, *, adapter: bool, with_code: bool = False) -> list[str]:
        """Python lines of a model card that ask the model in the folder `model` a question about an image.

        `with_code`: the folder has what `write_code` puts there, and the lines use it.
        """
        auto = "AutoModelForImageTextToText"
        prompt = self.tokens.chat.turn_prompt(TurnText("What is this?", num_images=1))
        limit = f", {self.budget.name}={budget}" if self.budget is not None else ""
        return [
            "from PIL import Image",
            f"from transformers import {auto}, AutoProcessor",
            "",
            f'processor = AutoProcessor.from_pretrained("{model}"{limit})',
            f'model = {auto}.from_pretrained("{model}", dtype="auto")  # with peft installed, an adapter too'
            if adapter
            else f'model = {auto}.from_pretrained("{model}", dtype="auto")',
            f"prompt = {json.dumps(prompt)}",
            'inputs = processor(text=prompt, images=Image.open("image.jpg"), return_tensors="pt")',
            "ids = model.generate(**inputs, max_new_tokens=64)",
            'print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])',
        ]

    @property
    def fewer_image_tokens(self) -> str:
        """Advice for fewer image tokens: `lower --num_crops`; empty if nothing can be done."""
        return f"lower --{self.tokens.budget_option}" if self.tokens.max_budget is not None else ""

    def refuse_packing(self) -> None:
        """Refuse `--pack` where several samples in a row would see one another.

        Raises:
            UserError: they would, and why.
        """
        if self.no_packing:
            raise UserError(f"--pack: {self.no_packing}; leave --pack out")
