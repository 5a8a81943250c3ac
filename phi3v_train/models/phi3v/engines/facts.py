"""Requirements of an engine on a Phi-3-vision directory, found in the engine's own source without importing it.

Where the engine is not installed, `table` has those of the version that it names. A test compares the two.

    python -m phi3v_train.models.phi3v.engines.facts    # the table of each engine that is installed, as JSON
"""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CONFIGS = ("config", "hf_config")
PROCESSORS = ("processor", "hf_processor")
TABLE = Path(__file__).with_name("table.json")

PARTS = (
    "embed_tokens", "layers", "norm", "lm_head", "input_layernorm", "post_attention_layernorm", "self_attn", "qkv_proj",
    "o_proj", "mlp", "gate_up_proj", "down_proj", "vision_embed_tokens", "glb_GN", "sub_GN", "img_projection",
    "img_processor", "vision_model", "embeddings", "class_embedding", "patch_embedding", "position_embedding",
    "pre_layrnorm", "encoder", "layer_norm1", "layer_norm2", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2",
    "post_layernorm",
)  # fmt: skip
"""Words of the names of the official weights; an engine whose source lacks one of them has other names."""


@dataclass(frozen=True)
class Source:
    """Where an engine's requirements are: its package, the files, and the classes that read the configuration."""

    package: str
    distribution: str
    files: tuple[str, ...]
    readers: tuple[str, ...]


SOURCES: Mapping[str, Source] = {
    "vllm": Source(
        "vllm",
        "vllm",
        (
            "model_executor/models/phi3v.py",
            "model_executor/models/llama.py",
            "model_executor/models/clip.py",
            "model_executor/layers/rotary_embedding/phi3_long_rope_scaled_rope.py",
        ),
        ("Phi3HDImageEmbedding", "Phi3VForCausalLM", "LlamaDecoderLayer", "LlamaModel", "LlamaForCausalLM"),
    ),
    "mlx": Source(
        "mlx_vlm",
        "mlx-vlm",
        (
            "models/phi3_v/phi3_v.py",
            "models/phi3_v/config.py",
            "models/phi3_v/vision.py",
            "models/phi3_v/processing_phi3_v.py",
            "models/mlp.py",
            "models/rope_utils.py",
        ),
        ("Attention", "TransformerBlock", "Phi3V", "Model"),
    ),
}


@dataclass(frozen=True)
class Facts:
    """Requirements of one version of an engine.

    `config` are the fields of config.json that are read without a default (`img_processor.image_dim_out`), `defaults`
    what the engine takes for one that is not there, `processor` the names that the processor is asked for, `parts` the
    words of `PARTS` that occur, `tower` the sizes of the vision tower that it builds whatever config.json says,
    `image_token` the id that it puts in the places of images, `stops` the ids that it ends an answer at, and
    `long_factors` what decides on the rope factors: `server` its --max-model-len, `sequence` the positions so far.
    """

    version: str
    config: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    processor: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    tower: Mapping[str, int] = field(default_factory=dict)
    image_token: int | None = None
    stops: tuple[int, ...] = ()
    long_factors: str = ""


def facts_of(engine: str) -> tuple[Facts, bool]:
    """Requirements of an engine, and whether that is from the engine installed here; else it is from the table."""
    installed = read_installed(engine)
    return (installed, True) if installed is not None else (table()[engine], False)


def table() -> dict[str, Facts]:
    """Requirements of each engine, in the version that was read."""
    content: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return {engine: facts_from(values) for engine, values in content.items()}


def facts_from(values: Mapping[str, Any]) -> Facts:
    """The facts by an entry of the table, whose lists are tuples here."""
    given: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Facts(**given)


def read_installed(engine: str) -> Facts | None:
    """The facts by the source of the engine that is installed here; None if there is none, or it has other files."""
    source = SOURCES[engine]
    spec = find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        installed = version(source.distribution)
    except PackageNotFoundError:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    texts = [root / name for name in source.files]
    if not all(path.is_file() for path in texts):
        return None
    return read_source(engine, installed, [ast.parse(path.read_text(encoding="utf-8")) for path in texts])


def read_source(engine: str, installed: str, trees: list[ast.Module]) -> Facts:
    """The facts by parsed source files, those of `SOURCES` in order."""
    source = SOURCES[engine]
    required: set[str] = set()
    defaults: dict[str, Any] = {}
    for tree in trees[:2]:
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in source.readers:
                read, given = fields_read(node)
                required |= read
                defaults |= given
            if isinstance(node, ast.ClassDef) and node.name == "ModelConfig":
                defaults |= class_defaults(node)
    constants = {name: value for tree in trees for name, value in module_constants(tree)}
    words = {word for tree in trees for word in all_words(tree)}
    image_token = constants.get("_IMAGE_TOKEN_ID")
    return Facts(
        version=installed,
        config=tuple(sorted(required - {name for name in defaults if defaults[name] is not None})),
        defaults=dict(sorted((name, value) for name, value in defaults.items() if value is not None)),
        processor=tuple(sorted(attributes_of(trees[0], PROCESSORS))),
        parts=tuple(part for part in PARTS if part in words),
        tower=tower_sizes(trees),
        image_token=image_token if isinstance(image_token, int) else None,
        stops=tuple(constants.get("PHI3_V_CHAT_EOS_TOKEN_IDS", ())),
        long_factors="server" if "max_model_len" in words else "sequence" if "position_end" in words else "",
    )


def fields_read(tree: ast.AST) -> tuple[set[str], dict[str, Any]]:
    """Fields of the configuration that a class reads outright, and those that it reads with a default.

    A field under an `if` that asks whether the configuration has something is not counted.
    """
    required: set[str] = set()
    defaults: dict[str, Any] = {}

    def visit(node: ast.AST, above: tuple[ast.AST, ...]) -> None:
        if isinstance(node, ast.If | ast.IfExp) and asks(node.test):
            return
        name = field_name(node)
        if name is not None:
            key, default, has_default = key_of(node, above)
            if key is None:
                required.add(name)
            elif has_default:
                defaults[f"{name}.{key}"] = default
            else:
                required.update((name, f"{name}.{key}"))
        if isinstance(node, ast.Call) and is_call(node, "getattr") and is_config(node.args[0]):
            if isinstance(node.args[1], ast.Constant) and len(node.args) == 3:
                defaults[str(node.args[1].value)] = literal(node.args[2])
            return
        for child in ast.iter_child_nodes(node):
            visit(child, (*above[-1:], node))

    visit(tree, ())
    return required, defaults


def key_of(node: ast.AST, above: tuple[ast.AST, ...]) -> tuple[str | None, Any, bool]:
    """The key, the default and whether there is one, of `config.field["key"]` or `config.field.get("key", default)`.

    `above` are the two nodes around `config.field`, the inner one last.
    """
    parent = above[-1] if above else None
    call = above[0] if above else None
    if isinstance(parent, ast.Subscript) and parent.value is node and isinstance(parent.slice, ast.Constant):
        return str(parent.slice.value), None, False
    if isinstance(parent, ast.Attribute) and parent.attr == "get" and isinstance(call, ast.Call):
        return str(literal(call.args[0])), literal(call.args[1]) if len(call.args) > 1 else None, True
    return None, None, False


def asks(test: ast.AST) -> bool:
    """Whether a condition asks the configuration whether it has a field."""
    return any(is_call(node, "hasattr") or is_call(node, "getattr") for node in ast.walk(test))


def is_call(node: ast.AST, name: str) -> bool:
    """Whether a node is a call of a built-in function, with arguments."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name and bool(node.args)


def is_config(node: ast.AST) -> bool:
    """Whether a node is a variable that holds the configuration."""
    return isinstance(node, ast.Name) and node.id in CONFIGS


def field_name(node: ast.AST) -> str | None:
    """`x` of `config.x`."""
    return node.attr if isinstance(node, ast.Attribute) and is_config(node.value) else None


def literal(node: ast.AST) -> Any:
    """Value of a constant expression; None for any other."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def class_defaults(node: ast.ClassDef) -> dict[str, Any]:
    """Defaults of a dataclass's fields."""
    return {
        each.target.id: literal(each.value)
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.value is not None
    }


def module_constants(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of a module's constants."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = literal(node.value)
            if value is not None:
                yield node.targets[0].id, value


def tower_sizes(trees: list[ast.Module]) -> dict[str, int]:
    """Sizes of the tower that is written into the source, as the arguments of `CLIP_VIT_LARGE_PATCH14_336_CONFIG`."""
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                target = node.targets[0]
                if isinstance(target, ast.Name) and target.id.startswith("CLIP_VIT"):
                    values = {each.arg: literal(each.value) for each in node.value.keywords if each.arg}
                    return {name: value for name, value in sorted(values.items()) if type(value) is int}
    return {}


def attributes_of(tree: ast.AST, variables: tuple[str, ...]) -> set[str]:
    """Attributes that are read of some variables."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in variables
    }


def all_words(tree: ast.AST) -> Iterator[str]:
    """Names and attributes of a module, and the words of its strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.split(".")


if __name__ == "__main__":
    found = {engine: read_installed(engine) for engine in SOURCES}
    print(json.dumps({engine: asdict(each) for engine, each in found.items() if each is not None}, indent=2))
