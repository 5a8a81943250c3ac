"""Model families: found by name, config and entry point; one table of linear layers; nobody else knows a model."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from in_process import Cli, make_cli

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.tokens import registry as token_registry
from phi3v_train.cli.app import main
from phi3v_train.config import MethodConfig
from phi3v_train.models import registry
from phi3v_train.models.locate import locate
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.training.targets import lora_targets, nf4_targets

BUILT_IN = [*registry.built_in()]
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "phi3v_train"

KNOWLEDGE = re.compile(
    r"phi3_v|Phi3|<\||\b(336|144|588|577)\b|models\.phi3v|img_processor|img_projection|vision_embed|glb_GN|sub_GN"
    r"|qkv_proj|gate_up|canvas(es)?\b|image_sizes|make_canvas|CLIP"
)
"""Modules, classes, markers, inputs and numbers of Phi-3-vision."""

MARKERS = re.compile(r"<\||\b(336|144|588|577)\b|gate_up|image_sizes|CLIP")
"""Of these, what other families have too."""

ALLOWED = {
    "__init__.py": "models.phi3v",  # registers the port with transformers
    "config.py": "qkv_proj",  # the example in the help of --lora_targets
}


def test_the_data_package_knows_phi_3_vision_in_its_token_family_only() -> None:
    """The texts of the catalogue name it in examples; some of its markers are those of other families too."""
    knowledge = re.compile(
        r"phi3_v|Phi3|tokens\.phi3v|phi3v_geometry|\b(144|588|577)\b|<\|((user|assistant|system|end)\||image_[\d{])"
    )
    data = ROOT / "phi3v_data"
    found = [
        f"{path.relative_to(data)}: {match.group()}"
        for path in sorted(data.rglob("*.py"))
        if not path.relative_to(data).as_posix().startswith(("tokens/phi3v", "problems/"))
        for match in knowledge.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == ["tokens/chat.py: <|image_{"]


def test_nothing_but_its_family_knows_phi_3_vision() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("models/phi3v/"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in KNOWLEDGE.finditer(line):
                is_familys = name.startswith("models/") and name.count("/") == 2 and MARKERS.fullmatch(match.group())
                if ALLOWED.get(name) != match.group() and not is_familys:
                    found.append(f"{name}:{number} {match.group()}")
    assert found == []


def test_the_page_lists_every_family() -> None:
    table = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("| family |")[2].partition("\n\n")[0]
    names = [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert len(names) == len(set(names))
    assert {*names, registry.OTHER} == set(BUILT_IN)


def test_the_registry_and_sizes_need_no_torch() -> None:
    code = (
        "import sys, json; from phi3v_train.models.registry import get_family;"
        "from phi3v_train.training.targets import lora_targets; from phi3v_train.config import MethodConfig;"
        "size = get_family().size({}); lora_targets(MethodConfig(use_lora=True), size);"
        "print(json.dumps([size.total, [n for n in ('torch', 'transformers', 'peft') if n in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [4_146_621_440, []]


def test_the_table_holds_every_linear_layer_with_its_sizes() -> None:
    model = tiny_model()
    table = {name: linear for group in PHI3V.size(model.config.to_dict()).table for name, linear in group.named()}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert table.keys() == linears.keys()
    for name, linear in linears.items():
        found = (table[name].inputs, table[name].outputs, table[name].bias)
        assert found == (linear.in_features, linear.out_features, linear.bias is not None), name


def test_patterns_of_the_table_are_those_that_adapters_on_disk_have() -> None:
    """adapter_config.json of existing adapters on the tiny model holds these strings."""
    size = PHI3V.size(tiny_model().config.to_dict())
    decoder = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
    vision = (
        r"model\.vision_embed_tokens\.(img_processor\.vision_model\.encoder\.layers\.(0|1)\."
        r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])|img_projection\.[02])"
    )
    assert nf4_targets(size) == decoder
    assert lora_targets(MethodConfig(use_lora=True), size) == rf"{decoder}|lm_head|{vision}"
    frozen = MethodConfig(use_lora=True, freeze_language_model=True)
    assert lora_targets(frozen, size) == vision


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.weight", "vision"),
        ("model.vision_embed_tokens.glb_GN", "projector"),
        ("base_model.model.model.vision_embed_tokens.img_projection.2.lora_B.default.weight", "projector"),
        ("model.vision_embed_tokens.wte.weight", "language"),
        ("model.layers.1.mlp.down_proj.weight", "language"),
        ("lm_head.weight", "language"),
    ],
)
def test_parts_of_the_model_by_parameter_names(name: str, part: str) -> None:
    assert PHI3V.part_of(name) == part


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that registers the family `broken`, whose module does not import."""
    info = tmp_path / "broken-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[phi3v_train.families]\nbroken = broken_family:FAMILY\n")
    (tmp_path / "broken_family.py").write_text("raise RuntimeError('no such library')\n")
    caches = (registry.installed, registry.load, token_registry._installed)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.delitem(sys.modules, "broken_family", raising=False)
        importlib.invalidate_caches()
        for cache in caches:
            cache.cache_clear()
        yield tmp_path
        sys.modules.pop("broken_family", None)
    for cache in caches:
        cache.cache_clear()


def test_a_family_that_cannot_be_loaded_is_named_where_it_matters_only(plug_in: Path) -> None:
    assert registry.family_names() == [*BUILT_IN, "broken"]
    assert locate("tiny").family is PHI3V
    error = "RuntimeError: no such library (broken_family.py:1)"
    reason = f"the model family broken of the package broken cannot be loaded: {error}"
    with pytest.raises(UserError) as caught:
        locate("tiny:broken")
    assert str(caught.value) == reason
    (plug_in / "model").mkdir()
    (plug_in / "model" / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(UserError) as caught:
        locate(str(plug_in / "model"))
    assert str(caught.value) == f"{plug_in}/model/config.json: model_type is 'other', and {reason}"


FAMILY = """
from dataclasses import replace
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.phi3v.family import Phi3VFamily
TOKENS = replace(Phi3VFamily.tokens, name="broken", model_types=("broken_vl",))
class Broken(Phi3VFamily):
    name, title, tokens = "broken", "Broken models", TOKENS
    BODY
FAMILY = Broken()
"""
"""Module of a plug-in for the family `broken`: Phi-3-vision by another name, with one fault."""

VALID = FAMILY.replace("BODY", "")

UNTITLED = """
KEPT = {key: value for key, value in vars(Phi3VFamily).items() if key not in ("title", "__dict__", "__weakref__")}
FAMILY = type("Untitled", (ModelFamily,), {**KEPT, "name": "broken", "tokens": TOKENS})()
"""


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise SystemExit(0)\n", " cannot be loaded: SystemExit: 0 (broken_family.py:1)"),
        ("FAMILY = 3\n", ": broken_family:FAMILY must be a ModelFamily object, not int"),
        (VALID + "FAMILY = Broken\n", ": broken_family:FAMILY must be a ModelFamily object, not ABCMeta"),
        (VALID + UNTITLED, ": Untitled must have title, a str"),
        (FAMILY.replace("BODY", "modules = None"), ": Broken must have modules, a ModuleNames"),
        (FAMILY.replace("BODY", "tokens = None"), ": its tokens must be a TokenFamily object, not NoneType"),
        (
            FAMILY.replace("BODY", "tokens = property(lambda self: 1 // 0)"),
            ": its tokens cannot be loaded: ZeroDivisionError: integer division or modulo by zero (broken_family.py:8)",
        ),
        (
            FAMILY.replace("BODY", "tokens = Phi3VFamily.tokens"),
            ": its tokens are named 'phi3v': the names must be equal",
        ),
        (
            FAMILY.replace("BODY", "tokens = replace(TOKENS, model_types='half')"),
            ": its tokens: model_types must be a tuple of strings, not 'half'",
        ),
    ],
)
def test_a_faulty_family_is_named_with_its_package_and_stops_no_other(plug_in: Path, module: str, reason: str) -> None:
    (plug_in / "broken_family.py").write_text(module)
    (plug_in / "model").mkdir()
    (plug_in / "model" / "config.json").write_text('{"model_type": "al"}')
    sentence = f"the model family broken of the package broken{reason}"
    with pytest.raises(UserError) as caught:
        locate("tiny:broken")
    assert str(caught.value) == sentence
    with pytest.raises(UserError) as caught:
        locate(str(plug_in / "model"))
    assert str(caught.value) == f"{plug_in}/model/config.json: model_type is 'al', and {sentence}"
    assert registry.family_of_config({"model_type": "phi3_v"}, "config.json") is PHI3V


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """One row without images."""
    directory = tmp_path / "set"
    directory.mkdir()
    row = {"id": "1", "source": "x", "conversations": [{"images": [], "user": "q", "assistant": "a"}]}
    (directory / "train.jsonl").write_text(json.dumps(row) + "\n")
    return directory


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return partial(make_cli(capsys, monkeypatch), main=main)


def test_a_family_without_a_renderer_is_named_with_its_package(plug_in: Path, data_dir: Path, cli: Cli) -> None:
    (plug_in / "broken_family.py").write_text(FAMILY.replace("BODY", "renderer = lambda self, processor: None"))
    code, out, err = cli("inspect", data_dir, "--model_name_or_path", "tiny:broken")
    assert (code, out) == (2, "")
    assert err == (
        "error: the model family broken of the package broken: renderer must return a Renderer object, not NoneType\n"
    )
    assert cli("inspect", data_dir, "--model_name_or_path", "tiny")[0] == 0


def test_a_plug_in_with_the_name_of_a_built_in_family_is_ignored_with_a_warning(
    plug_in: Path, data_dir: Path, cli: Cli
) -> None:
    points = plug_in / "broken-2.0.dist-info" / "entry_points.txt"
    points.write_text("[phi3v_train.families]\nphi3v = broken_family:FAMILY\n")
    assert registry.family_names() == BUILT_IN
    code, _, err = cli("inspect", data_dir, "--model_name_or_path", "tiny")
    assert code == 0
    sentence = (
        "the model family phi3v of the package broken is ignored, because the package phi3v has a family of that "
        "name: uninstall the former, or rename its family"
    )
    assert err.count(sentence) == 1


def test_a_name_of_two_plug_ins_is_refused(plug_in: Path) -> None:
    info = plug_in / "second-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[phi3v_train.families]\nbroken = second_family:FAMILY\n")
    with pytest.raises(UserError, match=r"^the model family broken of the package .* is defined 2 times") as caught:
        locate("tiny:broken")
    assert "the package broken" in str(caught.value)
    assert "the package second" in str(caught.value)
    assert locate("tiny").family is PHI3V


def test_a_family_may_keep_its_image_processor_in_either_file(plug_in: Path) -> None:
    """Phi-3-vision, whose processor reads preprocessor_config.json alone, may not."""
    body = "needed_files = ModelFamily.needed_files"
    (plug_in / "broken_family.py").write_text(FAMILY.replace("BODY", body))
    model = plug_in / "model"
    model.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    (model / "config.json").write_text('{"model_type": "broken_vl"}')
    missing = f"{model}: preprocessor_config.json or processor_config.json is missing (the image processor); "
    with pytest.raises(NotFoundError) as caught:
        locate(str(model))
    assert str(caught.value).startswith(missing)
    nested = {"processor_class": "X", "image_processor": {"num_crops": 4, "tuned_num_crops": 7}}
    (model / "processor_config.json").write_text(json.dumps(nested))
    files = locate(str(model))
    assert (files.family.name, files.stored_num_crops, files.tuned_num_crops) == ("broken", 4, 7)
    (model / "processor_config.json").write_text(json.dumps({"image_processor": {"tuned_num_crops": 99}}))
    with pytest.raises(UserError, match=r"/processor_config\.json: tuned_num_crops is wrong: "):
        _ = files.tuned_num_crops
    (model / "preprocessor_config.json").write_text('{"num_crops": 5}')
    assert (files.stored_num_crops, files.tuned_num_crops) == (5, None)
    (model / "preprocessor_config.json").unlink()
    (model / "config.json").write_text('{"model_type": "phi3_v"}')
    with pytest.raises(NotFoundError, match=r": preprocessor_config\.json is missing \(the image processor\); "):
        locate(str(model))


@pytest.mark.parametrize(
    ("installed", "patch", "refused"),
    [("5.20.2", 14, True), ("5.17.0", 14, True), ("5.21.0", 14, False), ("6.0.0", 14, False), ("5.20.2", 16, False)],
)
def test_a_smolvlm_that_transformers_cannot_compute_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: str, patch: int, refused: bool
) -> None:
    """27 x 27 patches are 81 tokens, which 14 does not divide; 24 x 24 are 64, which 16 does."""
    monkeypatch.setattr("phi3v_train.models.idefics.family.version", lambda name: installed)
    config = {"scale_factor": 3, "text_config": {}, "vision_config": {"image_size": 384, "patch_size": patch}}
    path = Path("model/config.json")
    if not refused:
        return registry.get_family("smolvlm").check_config(config, path)
    with pytest.raises(UserError) as caught:
        registry.get_family("smolvlm").check_config(config, path)
    assert str(caught.value) == (
        f"model/config.json: transformers {installed} cannot compute a SmolVLM with 81 image tokens per tile and "
        "patches of 14 pixels; use transformers 5.21 or later"
    )
    return None


def test_an_unknown_family_names_those_that_are_there() -> None:
    with pytest.raises(NotFoundError, match=r"^no model family 'nobody' can be trained; there are phi3v, gemma3, "):
        locate("tiny:nobody")
