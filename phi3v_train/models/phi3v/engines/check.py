"""Compares a Phi-3-vision directory with what an engine needs of it: settings, tokens, names and shapes of weights.

Nothing is loaded: JSON files are parsed, and of the weights the headers are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from phi3v_data.messages import shown
from phi3v_data.tokens.model_files import PREPROCESSOR_CONFIG, PROCESSOR_CONFIG
from phi3v_data.tokens.phi3v import CHAT
from phi3v_train.models.directory import check_weights, read_json, stored_shapes
from phi3v_train.models.family import DIFFERENT, MISSING, NOTE, EngineReport
from phi3v_train.models.phi3v.bundle import AUTO_MAPS, CODE_FILE
from phi3v_train.models.phi3v.configuration_phi3_v import ARCHITECTURE, OFFICIAL_EMBD_LAYER, Phi3VConfig
from phi3v_train.models.phi3v.engines.facts import PARTS, Facts, facts_of
from phi3v_train.models.phi3v.prompts import image_tag
from phi3v_train.models.phi3v.register import MODEL_TYPE

IMAGE_TOKEN = "<|image|>"
TRANSFORMERS = "transformers"
PROCESSOR_CLASS = "Phi3VProcessor"
FILES = (
    *("config.json", "generation_config.json", PREPROCESSOR_CONFIG, PROCESSOR_CONFIG),
    *("tokenizer.json", "tokenizer_config.json"),
)
"""The files that are compared; others in the directory are not read."""
IGNORED_WEIGHTS = ("position_ids",)
"""Endings of the names of tensors that every engine leaves out."""

Finding = tuple[str, str]

BESIDE = {
    "vllm": ("vllm needs phi3v installed beside it, whose plugin brings the configuration and the processor",),
    "mlx": (
        "mlx-vlm's own processor leaves out two tokens behind each image, the BOS and the space, which training had: "
        "answers may be worse than those of phi3v-train serve",
    ),
}
"""Notes on each engine that no file of the directory can change."""


def check(directory: Path, engine: str) -> EngineReport:
    """Everything that `engine` needs of a model directory and does not find there, and what to know of its rope.

    Raises:
        UserError: a file cannot be read, or config.json has more layers than the weights.
    """
    content = {name: read_json(directory / name) for name in FILES if (directory / name).is_file()}
    config = content.get("config.json", {})
    if engine == TRANSFORMERS:
        known = Facts(version(TRANSFORMERS))
        origin = f"{TRANSFORMERS} {known.version}, installed here"
    else:
        known, installed = facts_of(engine)
        origin = f"{engine} {known.version}, " + ("installed here" if installed else "by phi3v's table: not installed")
    fields = [*check_fields(config, known, engine)]
    check_weights(directory, config)
    try:
        ours = Phi3VConfig.from_dict(dict(config))
        expected = expected_weights(ours)
    except Exception as error:  # transformers and torch raise anything on values that do not fit
        cause = error.__cause__ or error
        reason = shown(f"{type(cause).__name__}: {' '.join(str(cause).split())}", 200)
        return EngineReport(origin, (*fields, (DIFFERENT, f"config.json: does not make a model: {reason}")))
    findings = [
        *fields,
        *check_values(config, known, ours, engine),
        *(check_code(directory, content, known) if engine == TRANSFORMERS else ()),
        *check_processor(content, known, engine),
        *check_tokens(directory, content, known, engine),
        *compare_weights(expected, stored_shapes(directory), known, engine),
        *check_rope(ours, known, engine),
        *((NOTE, text) for text in BESIDE.get(engine, ())),
    ]
    return EngineReport(origin, tuple(findings))


def check_fields(config: Mapping[str, Any], known: Facts, engine: str) -> Iterator[Finding]:
    """Fields of config.json that an engine reads without a default."""
    if config.get("model_type") != MODEL_TYPE:
        yield MISSING, f"config.json: model_type {MODEL_TYPE!r}; it is {shown(config.get('model_type'))}"
    if ARCHITECTURE not in items(config.get("architectures")):
        yield MISSING, f"config.json: architectures with {ARCHITECTURE!r}, by which the class is found"
    without_factors = config.get("rope_scaling") is None
    for name in known.config:
        if name == "rope_scaling.factor" or (name.startswith("rope_scaling") and without_factors):
            continue
        if value_at(config, name) is None:
            yield MISSING, f"config.json: {name}, which {engine} reads without a default"


def check_values(config: Mapping[str, Any], known: Facts, ours: Phi3VConfig, engine: str) -> Iterator[Finding]:
    """Fields of config.json for which an engine takes another default, and values that it has built in."""
    effective = ours.to_dict()
    for name, default in known.defaults.items():
        value = value_at(effective, name)
        if value_at(config, name) is None and value is not None and value != default:
            yield MISSING, f"config.json: {name}; {engine} would take {default!r}, the model has {value!r}"
    for name in ("hd_transform_order", "use_hd_transform", "with_learnable_separator"):
        value, wanted = value_at(effective, f"embd_layer.{name}"), OFFICIAL_EMBD_LAYER[name]
        if value != wanted:
            yield DIFFERENT, f"config.json: embd_layer.{name} is {value!r}; {engine} knows {wanted!r} only"
    tower = ours.vision_settings
    for name, size in known.tower.items():
        if name in tower and tower[name] != size:
            yield (
                DIFFERENT,
                f"config.json: img_processor.vision_config.{name} is {tower[name]}; {engine} builds the tower with "
                f"{size}, whatever the file says",
            )
    feature = int(ours.img_processor.get("layer_idx", -2))
    if engine == "mlx" and feature != -2:
        yield DIFFERENT, f"config.json: img_processor.layer_idx is {feature}; mlx takes -2, whatever the file says"


def items(value: Any) -> Sequence[Any]:
    """The items of a JSON array; none of anything else."""
    return value if isinstance(value, list) else ()


def value_at(values: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name; None if it is not there."""
    here: Any = values
    for part in name.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def check_code(directory: Path, content: Mapping[str, Mapping[str, Any]], known: Facts) -> Iterator[Finding]:
    """Whether transformers finds the classes: by `auto_map` and the code file, else by this package."""
    if not any("auto_map" in content.get(name, {}) for name in AUTO_MAPS):
        yield (
            NOTE,
            f"transformers {known.version} does not know {MODEL_TYPE} by itself: `import phi3v_train` before loading, "
            "or add the code with `phi3v-train merge MODEL OUT --with_code`",
        )
        return
    for name, auto_map in AUTO_MAPS.items():
        if name in content and content[name].get("auto_map") is None:
            yield MISSING, f"{name}: auto_map with {', '.join(auto_map)}, which the other files have"
    if not (directory / CODE_FILE).is_file():
        yield MISSING, f"{CODE_FILE}, which auto_map names"


def check_processor(content: Mapping[str, Mapping[str, Any]], known: Facts, engine: str) -> Iterator[Finding]:
    """The processor's files, and the names that the engine asks of its class."""
    from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor

    images = content.get(PREPROCESSOR_CONFIG)
    if images is None:
        yield MISSING, f"{PREPROCESSOR_CONFIG}: num_crops, image_mean and image_std"
        return
    for name in ("num_crops", "image_mean", "image_std"):
        if images.get(name) is None:
            yield MISSING, f"{PREPROCESSOR_CONFIG}: {name}"
    if engine == "mlx":  # it has a processor of its own
        return
    files = (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, "tokenizer_config.json")
    if PROCESSOR_CLASS not in [content.get(name, {}).get("processor_class") for name in files]:
        yield MISSING, f"{PREPROCESSOR_CONFIG}: processor_class {PROCESSOR_CLASS!r}"
    for name in known.processor:
        if not hasattr(Phi3VProcessor, name):
            yield MISSING, f"the processor's class: {name}, which {engine} {known.version} asks for"


def check_tokens(
    directory: Path, content: Mapping[str, Mapping[str, Any]], known: Facts, engine: str
) -> Iterator[Finding]:
    """The tokens of the chat format with their ids, the chat template, and the ids that end an answer."""
    tokenizer = content.get("tokenizer.json")
    if tokenizer is None:
        yield MISSING, "tokenizer.json"
        return
    ids = token_ids(tokenizer)
    roles = ["<|user|>", CHAT.assistant.strip(), CHAT.end_of_turn]
    for token in ["<s>", *roles]:
        if token not in ids:
            yield MISSING, f"tokenizer.json: the token {token}"
    if known.image_token is not None:
        if ids.get(IMAGE_TOKEN) is None:
            yield MISSING, f"tokenizer.json: the token {IMAGE_TOKEN}, whose id {engine} puts in the places of images"
        elif ids[IMAGE_TOKEN] != known.image_token:
            yield (
                DIFFERENT,
                f"tokenizer.json: the id of {IMAGE_TOKEN} is {ids[IMAGE_TOKEN]}; {engine} puts {known.image_token} in "
                f"the places of images",
            )
        if image_tag(1) in ids:
            yield DIFFERENT, f"tokenizer.json: {image_tag(1)} is a token; {engine} looks for it as text"
    template = directory / "chat_template.jinja"
    if not template.is_file() and not content.get("tokenizer_config.json", {}).get("chat_template"):
        yield MISSING, "chat_template.jinja, or chat_template in tokenizer_config.json"
    end = ids.get(CHAT.end_of_turn)
    stops: set[int] = {*known.stops} if known.stops and ids and max(ids.values()) >= max(known.stops) else set()
    for name in ("config.json", "generation_config.json"):
        value = content.get(name, {}).get("eos_token_id")
        stops |= {each for each in (value, *items(value)) if isinstance(each, int)}
    if end is not None and end not in stops:
        yield MISSING, f"generation_config.json: eos_token_id with {end}, {CHAT.end_of_turn}: answers would not end"


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of a tokenizer.json and their ids; entries of other types are left out."""
    vocabulary = value_at(tokenizer, "model.vocab")
    pairs = [*vocabulary.items()] if isinstance(vocabulary, Mapping) else []
    pairs += [(value_at(each, "content"), value_at(each, "id")) for each in items(tokenizer.get("added_tokens"))]
    return {token: number for token, number in pairs if isinstance(token, str) and isinstance(number, int)}


def compare_weights(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], known: Facts, engine: str
) -> Iterator[Finding]:
    """Names and shapes of the weights against those of the model that config.json describes."""
    absent = sorted(expected.keys() - found.keys())
    unknown = sorted(name for name in found.keys() - expected.keys() if not name.endswith(IGNORED_WEIGHTS))
    if absent:
        yield MISSING, f"weights: {some(absent)}"
    if unknown:
        yield DIFFERENT, f"weights: {some(unknown)}: names that the model does not have, which {engine} refuses"
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            yield DIFFERENT, f"weights: {name} is {[*found[name]]}, by config.json {[*expected[name]]}"
    if known.parts:
        lost = [part for part in PARTS if part not in known.parts]
        if lost:
            yield DIFFERENT, f"weights: {engine} {known.version} has no {some(lost)} any more: its names are others"


def some(names: list[str]) -> str:
    """The first names of a list, and how many there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def expected_weights(config: Phi3VConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official layout, by config.json."""
    import torch

    from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration

    with torch.device("meta"):
        model = Phi3VForConditionalGeneration(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def check_rope(ours: Phi3VConfig, known: Facts, engine: str) -> Iterator[Finding]:
    """Which factors rotate which positions there; training takes those of each sample's own length."""
    rope, switch = ours.rope_parameters, int(ours.original_max_position_embeddings)
    if rope.get("rope_type") != "longrope":
        yield NOTE, "rope: one set of factors for all lengths, here as there"
        return
    if rope.get("type") == "yarn" and engine != TRANSFORMERS:
        yield DIFFERENT, f"config.json: rope_scaling of type 'yarn'; {engine} scales positions as for 'su'"
    here = f"rope: trained with the short factors in samples of up to {switch:,} tokens, with the long ones beyond"
    if known.long_factors == "server":
        yield (
            NOTE,
            f"{here}; {engine} takes the long factors for all positions if --max-model-len is above {switch}: serve "
            f"with --max-model-len {switch} (the default there) unless the samples of training were longer",
        )
    elif known.long_factors == "sequence":
        yield (
            NOTE,
            f"{here}; {engine} changes to the long ones at position {switch:,} of an answer, and keeps the keys before "
            f"it as they are: keep prompt and answer below {switch:,} tokens",
        )
    else:
        yield NOTE, f"{here}; the same there"
