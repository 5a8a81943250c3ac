"""Model families: found by name, config and entry point; one table of linear layers; nobody else knows a model."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.tokens import registry as token_registry
from phi3v_train.config import MethodConfig
from phi3v_train.models import registry
from phi3v_train.models.loading import locate
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.training.targets import lora_targets, nf4_targets

PACKAGE = Path(__file__).parents[2] / "phi3v_train"

KNOWLEDGE = re.compile(
    r"phi3_v|Phi3|<\||\b(336|144|588|577)\b|models\.phi3v|img_processor|img_projection|vision_embed|glb_GN|sub_GN"
    r"|qkv_proj|gate_up|canvas(es)?\b|image_sizes|make_canvas|CLIP"
)
"""Modules, classes, markers, inputs and numbers of Phi-3-vision."""

ALLOWED = {
    "__init__.py": "models.phi3v",  # registers the port with transformers
    "config.py": "qkv_proj",  # the example in the help of --lora_targets
}


def test_nothing_but_its_family_knows_phi_3_vision() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("models/phi3v/"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in KNOWLEDGE.finditer(line):
                if ALLOWED.get(name) != match.group():
                    found.append(f"{name}:{number} {match.group()}")
    assert found == []


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
        importlib.invalidate_caches()
        for cache in caches:
            cache.cache_clear()
        yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_a_family_that_cannot_be_loaded_is_named_where_it_matters_only(plug_in: Path) -> None:
    assert registry.family_names() == ["phi3v", "broken"]
    assert locate("tiny").family is PHI3V
    reason = "the model family broken of the package broken cannot be loaded: 'RuntimeError: no such library'"
    with pytest.raises(UserError) as caught:
        locate("tiny:broken")
    assert str(caught.value) == reason
    (plug_in / "model").mkdir()
    (plug_in / "model" / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(UserError) as caught:
        locate(str(plug_in / "model"))
    assert str(caught.value) == f"{plug_in}/model/config.json: model_type is 'other', and {reason}"


def test_an_unknown_family_names_those_that_are_there() -> None:
    with pytest.raises(NotFoundError, match=r"^no model family 'nobody' can be trained; there are phi3v$"):
        locate("tiny:nobody")
