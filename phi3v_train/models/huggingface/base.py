"""A model family on transformers' own model class: a subclass says only what differs."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from phi3v_data.errors import UserError
from phi3v_data.tokens.family import SettingsError, TokenFamily
from phi3v_data.tokens.model_files import processor_settings
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.huggingface.checks import agrees, check_images, check_parts
from phi3v_train.models.huggingface.processor import HubProcessor, load_parts
from phi3v_train.models.huggingface.sizes import config_object, size_by_config
from phi3v_train.models.huggingface.texts import ChatTexts, TemplateTexts, Texts
from phi3v_train.models.renderer import Renderer
from phi3v_train.models.size import ModelSize

if TYPE_CHECKING:
    from torch import Tensor

    from phi3v_train.models.huggingface.renderer import HubRenderer


class HubFamily(ModelFamily):
    """A family that transformers knows as an image-text-to-text model."""

    family_tokens: ClassVar[TokenFamily]
    """Its chat format and token counts."""

    renderer_class: "ClassVar[type[HubRenderer]]"
    """The encoder's class."""

    budget_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the image budget in the image processor's values; empty for a family without one."""

    unreached: ClassVar[str] = ""
    """Regular expression of the start of parameter names that no loss reaches, beside unused layers of the tower."""

    image_processors: ClassVar[tuple[str, ...]] = ()
    """Names of its image processors' classes, without an ending that tells the library; empty: any."""

    templates: ClassVar[str] = ""
    """Why a conversation of several turns is not written by the model's own chat template; empty if it is."""

    processor_packages: ClassVar[tuple[str, ...]] = ("torchvision",)
    """Packages that transformers' whole processor needs beside it; this package needs none of them."""

    @property
    def tokens(self) -> TokenFamily:
        """Chat format, special strings and image tokens."""
        return self.family_tokens

    @abstractmethod
    def tile(self, config: Any) -> tuple[int, int]:
        """Tokens of one input of the vision tower, and tokens that the projector makes of them."""

    @abstractmethod
    def blank_inputs(self, model: Any) -> "dict[str, Tensor]":
        """Arguments of `get_image_features` for the smallest image, zeros, on the model's device."""

    def size(self, config: Mapping[str, Any]) -> ModelSize:
        """Sizes by a parsed `config.json`; an empty mapping stands for the tiny model."""
        values = dict(config) or self.tiny_config()
        made = config_object(values)
        tokens, features = self.tile(made)
        return size_by_config(
            values,
            self.modules,
            tile_tokens=tokens,
            tile_features=features,
            is_reached=lambda name: self.is_reached(name, values),
        )

    def is_reached(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether a loss reaches the parameter or module of this name."""
        import re

        if self.unreached and re.match(self.unreached, name):
            return False
        index, layers = config.get("vision_feature_layer"), (config.get("vision_config") or {}).get("num_hidden_layers")
        if not isinstance(index, int) or not isinstance(layers, int):
            return True
        used = layers + 1 + index if index < 0 else index
        found = re.match(rf"({'|'.join(map(re.escape, self.modules.tower))})\..*?layers?\.(\d+)\.", f"{name}.")
        return found is None or int(found[2]) < used

    def renderer(self, processor: Any) -> Renderer:
        """Encoder of conversations with a processor of this family."""
        return self.renderer_class(self.configured(processor), processor, self.texts(processor))

    def configured(self, processor: HubProcessor) -> TokenFamily:
        """Token counts with the processor's settings.

        Raises:
            UserError: a value that the family does not take.
        """
        return self.tokens.configured({}, processor.settings)

    def texts(self, processor: HubProcessor) -> Texts:
        """How conversations are written: by the chat format where the directory's template agrees with it."""
        template = processor.chat_template
        if not template or agrees(processor, self.tokens.chat, several_turns=not self.templates):
            return ChatTexts(self.tokens.chat)
        return TemplateTexts(processor.tokenizer, template, self.tokens.chat.end_of_turn)

    def load_model(self, directory: Path, *, dtype: Any, attn_implementation: str) -> Any:
        """transformers' model with a directory's weights."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(
            directory, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
        )

    def empty_model(self, directory: Path, *, dtype: Any = None, attn_implementation: str | None = None) -> Any:
        """transformers' model by config.json and generation_config.json alone."""
        from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

        given = {"dtype": dtype, "attn_implementation": attn_implementation}
        model = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(directory), **{name: value for name, value in given.items() if value is not None}
        )
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory)
        return model

    def load_processor(self, directory: Path) -> HubProcessor:
        """The parts of a directory's processor.

        Raises:
            UserError: a part needs a missing package, or belongs to another family.
        """
        processor_settings(directory)  # refuses files that are no JSON objects, before transformers reads them
        try:
            processor = load_parts(directory, self.tokens.model_types[0])
            self.configured(processor)
        except SettingsError as error:
            raise UserError(f"{directory}: the image processor's {error}") from None
        except UserError:
            raise
        except Exception as error:  # transformers raises anything on files that it does not expect
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:140]}"
            raise UserError(
                f"{directory}: the processor cannot be loaded ({reason}); copy its original files"
            ) from None
        check_parts(processor, directory, self.name, self.tokens.chat, self.image_processors)
        check_images(self.renderer(processor), directory)
        return processor

    def check_config(self, config: Mapping[str, Any], path: Path) -> None:
        """Refuse a config.json without its parts, for which transformers would make a model of its default sizes.

        Raises:
            UserError: which part is missing.
        """
        missing = [name for name in ("text_config", "vision_config") if not isinstance(config.get(name), dict)]
        if "hidden_size" in config and "text_config" in missing:  # as Qwen2.5-VL was released
            missing.remove("text_config")
        if missing:
            raise UserError(f"{path}: {missing[0]} is missing (the model's sizes); copy the model's own config.json")

    def check_processor(self, processor: Any, model_name: str) -> None:
        """Refuse values that the family does not take.

        Raises:
            UserError: which one.
        """
        try:
            self.configured(processor)
        except SettingsError as error:
            raise UserError(f"{model_name}: the image processor's {error}") from None

    def processor_notes(self, processor: Any) -> list[str]:
        """A chat template of its own, and what the family's template does to images."""
        notes = []
        if isinstance(self.texts(processor), TemplateTexts):
            notes.append(f"its chat template is not that of {self.title}; conversations are written by it")
        elif not processor.chat_template:
            notes.append(f"it has no chat template; conversations are written as for {self.title}")
        if self.tokens.chat.images_first:
            notes.append("the images of a turn come before its text, wherever they are in the row")
        if self.templates:
            notes.append(self.templates)
        return notes

    def set_budget(self, processor: Any, value: int | None) -> None:
        """Let a processor's files, its image processor and its token counts have this budget."""
        if value is None or not self.budget_keys:
            return
        processor.set(*self.budget_keys, value=value)
        set_value(processor.image_processor, self.budget_keys, value)

    def mark_tuned(self, processor: Any, value: int | None) -> None:
        """Nothing more: a processor's files have the budget as `set_budget` wrote it."""

    def tuned_budget(self, processor: Any) -> int | None:
        """None: a processor's own value is used."""
        return None

    def card_note(self, *, with_code: bool = False) -> list[str]:
        """Packages that the example needs."""
        if not self.processor_packages:
            return []
        install = f"pip install {' '.join(self.processor_packages)}"
        return [f"`AutoProcessor` needs more packages for these models: `{install}`.", ""]

    def layer_classes(self, model: Any) -> tuple[type, ...]:
        """Classes that transformers does not split over devices."""
        names = set(getattr(model, "_no_split_modules", None) or ())
        return tuple({type(module) for module in model.modules() if type(module).__name__ in names})

    def stop_ids(self, model: Any, tokenizer: Any) -> list[int]:
        """The model's own stop ids, and the marker that ends an answer."""
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        end = self.tokens.chat.end_of_turn.strip()
        return sorted({*super().stop_ids(model, tokenizer), *([vocabulary[end]] if end in vocabulary else [])})

    def tiny_config(self) -> dict[str, Any]:
        """Of the tiny model."""
        config: dict[str, Any] = self.tiny().config.to_dict()
        return config

    def tiny_model(self, seed: int) -> Any:
        """A small random model."""
        import torch
        from transformers import AutoModelForImageTextToText

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(self.tiny().config)
        model.eval()
        return model

    def tiny_processor(self) -> HubProcessor:
        """A processor for the small model."""
        processor: HubProcessor = self.tiny().processor()
        return processor

    def prepare(self, inputs: "Mapping[str, Tensor]") -> dict[str, Any]:
        """See `ModelFamily.prepare`; `samples` are plain numbers."""
        made = super().prepare(inputs)
        if "samples" in inputs:
            made["samples"] = tuple(inputs["samples"].tolist())
        return made

    def loss(
        self, model: Any, inputs: "Mapping[str, Any]", count: float, *, per_token: bool = False
    ) -> "tuple[Tensor, Tensor | None]":
        """See `ModelFamily.loss`; the samples of a packed row attend by themselves."""
        from phi3v_train.models.huggingface.attention import packed
        from phi3v_train.models.token_loss import token_loss

        touch = self.touch_vision(model, inputs)
        samples = inputs.get("samples")
        if samples is None:
            return token_loss(model, inputs, count, touch)
        given = {name: tensor for name, tensor in inputs.items() if name != "samples"}
        with packed(model) as by_sample:
            more = {"samples": tuple(map(int, samples))} if by_sample else {}
            return token_loss(model, given, count, touch, **more)

    def touch_vision(self, model: Any, inputs: "Mapping[str, Any]") -> "Callable[[], Tensor] | None":
        """See `ModelFamily.touch_vision`."""
        import torch

        if "pixel_values" in inputs:
            return None
        parameters = [each for name, each in model.named_parameters() if self.part_of(name) != "language"]
        trained = model.training and torch.is_grad_enabled() and any(each.requires_grad for each in parameters)
        if not trained and not any(is_sharded(each) for each in parameters):
            return None

        def zero() -> "Tensor":
            total: Tensor = sum_of(used_features(model.get_image_features(**self.blank_inputs(model)))) * 0.0
            return total

        return zero

    @abstractmethod
    def tiny(self) -> Any:
        """The `Tiny` of this family."""


def is_sharded(parameter: Any) -> bool:
    """Whether processes hold parts of a parameter."""
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


def used_features(output: Any) -> list[Any]:
    """The part that a model takes of the output of `get_image_features`.

    A gradient through any other tensor of it would run the backward passes of modules in another order than a batch
    with images does; under ZeRO-3 the processes would then wait for each other for ever.
    """
    return [output.pooler_output, getattr(output, "deepstack_features", None)]


def sum_of(features: Any) -> Any:
    """The sum of all tensors in nested lists."""
    if isinstance(features, list | tuple):
        return sum(sum_of(each) for each in features)
    return 0.0 if features is None else features.sum()


def set_value(image_processor: Any, keys: tuple[str, ...], value: Any) -> None:
    """Set a value of an image processor, by its path of keys."""
    if len(keys) == 1:
        setattr(image_processor, keys[0], value)
        return
    attribute, key = keys
    values = dict(getattr(image_processor, attribute) or {})
    values[key] = value
    setattr(image_processor, attribute, type(getattr(image_processor, attribute))(**values))
