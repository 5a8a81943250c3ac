"""`merge --check ENGINE`: what an engine needs of a Phi-3-vision directory, and what one lacks."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.cli.base import make_group
from phi3v_data.errors import UserError
from phi3v_train.cli.app import COMMANDS, HELP
from phi3v_train.cli.merge import report
from phi3v_train.models.phi3v.engines import facts
from phi3v_train.models.phi3v.tiny import save_tiny
from phi3v_train.models.registry import get_family

TOWER = "model.vision_embed_tokens.img_processor.vision_model"


def command(*args: str) -> int:
    """Exit code of `phi3v-train merge ARGS` in this process."""
    with pytest.raises(SystemExit) as end:
        make_group("phi3v-train", HELP, COMMANDS).main(args=["merge", *args], prog_name="phi3v-train")
    return int(end.value.code or 0)


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def header_of(path: Path) -> dict[str, list[int]]:
    """Shapes by the header of a safetensors file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {name: each["shape"] for name, each in header.items() if name != "__metadata__"}


def write_weights(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of these tensors whose values are a hole, so that 300 million of them take no disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        count = 2
        for size in shape:
            count *= size
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header).encode()
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def full_shapes(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Shapes with the tower of CLIP ViT-L/14-336 in place of the tiny one, by the official sizes."""
    layer = f"{TOWER}.encoder.layers"
    full = {name: shape for name, shape in shapes.items() if not name.startswith(f"{layer}.")}
    for name in full:
        if name.startswith(TOWER) or "_GN" in name or name.endswith("img_projection.0.weight"):
            full[name] = [{64: 1024, 256: 4096}.get(size, size) for size in full[name]]
    for number in range(24):
        for norm in ("layer_norm1", "layer_norm2"):
            full |= {f"{layer}.{number}.{norm}.{kind}": [1024] for kind in ("weight", "bias")}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            full[f"{layer}.{number}.self_attn.{name}.weight"] = [1024, 1024]
            full[f"{layer}.{number}.self_attn.{name}.bias"] = [1024]
        full |= {f"{layer}.{number}.mlp.fc1.weight": [4096, 1024], f"{layer}.{number}.mlp.fc1.bias": [4096]}
        full |= {f"{layer}.{number}.mlp.fc2.weight": [1024, 4096], f"{layer}.{number}.mlp.fc2.bias": [1024]}
    return full


def official_ids(tokenizer: dict[str, Any]) -> None:
    for token in tokenizer["added_tokens"]:
        if token["id"] >= 2003:
            token["id"] += 32044 - 2047


def official_stops(config: dict[str, Any]) -> None:
    config["eos_token_id"] = [each + 32044 - 2047 for each in config["eos_token_id"]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the engines can serve: tiny decoder, tower of full size, official ids of the special tokens."""
    directory = tmp_path_factory.mktemp("served") / "model"
    save_tiny(directory)

    def with_tower(config: dict[str, Any]) -> None:
        config["img_processor"] = {"image_dim_out": 1024, "num_img_tokens": 144, "name": "clip_vision_model"}

    change(directory / "config.json", with_tower)
    change(directory / "tokenizer.json", official_ids)
    change(directory / "generation_config.json", official_stops)
    write_weights(directory / "model.safetensors", full_shapes(header_of(directory / "model.safetensors")))
    return directory


@pytest.fixture
def copy(served: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in served.iterdir():
        if path.suffix == ".safetensors":
            (directory / path.name).symlink_to(path)
        else:
            (directory / path.name).write_bytes(path.read_bytes())
    return directory


@pytest.fixture(autouse=True)
def no_engine_here(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "drift" not in request.node.name:
        monkeypatch.setattr(facts, "read_installed", lambda engine: None)


def test_a_directory_that_vllm_can_serve(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in served.iterdir()}
    assert command(str(served), "--check", "vllm") == 0
    assert capsys.readouterr().out == (
        f"{served} for vllm 0.33.0, by phi3v's table: not installed\n"
        "note:      rope: trained with the short factors in samples of up to 4,096 tokens, with the long ones beyond; "
        "vllm takes the long factors for all positions if --max-model-len is above 4096: serve with --max-model-len "
        "4096 (the default there) unless the samples of training were longer\n"
        "note:      vllm needs phi3v installed beside it, whose plugin brings the configuration and the processor\n"
        "ok: nothing is missing\n"
    )
    assert {path: path.stat().st_mtime_ns for path in served.iterdir()} == before


def test_a_directory_that_mlx_can_serve(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(served), "--check", "mlx") == 0
    out = capsys.readouterr().out
    assert "keep prompt and answer below 4,096 tokens" in out
    assert "note:      mlx-vlm's own processor leaves out two tokens behind each image" in out


def drop(*names: str) -> Callable[[dict[str, Any]], Any]:
    def edit(content: dict[str, Any]) -> None:
        for name in names[:-1]:
            content = content[name]
        del content[names[-1]]

    return edit


def without_token(text: str) -> Callable[[dict[str, Any]], Any]:
    def edit(content: dict[str, Any]) -> None:
        content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] != text]

    return edit


FAULTS: dict[str, tuple[str, str, Callable[[dict[str, Any]], Any], str]] = {
    "field": ("vllm", "config.json", drop("num_attention_heads"), "missing:   config.json: num_attention_heads, which"),
    "nested": (
        "vllm", "config.json", drop("img_processor", "num_img_tokens"),
        "missing:   config.json: img_processor.num_img_tokens, which vllm reads without a default\n",
    ),
    "separator": (
        "vllm", "config.json", drop("embd_layer", "use_hd_transform"),
        "missing:   config.json: embd_layer.use_hd_transform; vllm would take False, the model has True\n",
    ),
    "class": ("vllm", "config.json", drop("architectures"), "architectures with 'Phi3VForCausalLM'"),
    "default": ("mlx", "config.json", drop("num_key_value_heads"), "missing:   config.json: num_key_value_heads, "),
    "factors": (
        "mlx", "config.json", lambda config: config["rope_scaling"].update(type="yarn"),
        "different: config.json: rope_scaling of type 'yarn'; mlx",
    ),
    "layer": (
        "mlx", "config.json", lambda config: config["img_processor"].update(layer_idx=-3),
        "different: config.json: img_processor.layer_idx is -3; mlx takes -2",
    ),
    "image token": ("vllm", "tokenizer.json", without_token("<|image|>"), "tokenizer.json: the token <|image|>"),
    "end token": ("mlx", "tokenizer.json", without_token("<|end|>"), "missing:   tokenizer.json: the token <|end|>\n"),
    "stop": (
        "vllm", "generation_config.json", drop("eos_token_id"),
        "missing:   generation_config.json: eos_token_id with 32007, <|end|>: answers would not end\n",
    ),
    "images": ("vllm", "preprocessor_config.json", drop("num_crops"), "preprocessor_config.json: num_crops\n"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_directory_that_lacks_something(copy: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine, file, edit, expected = FAULTS[fault]
    change(copy / file, edit)
    assert command(str(copy), "--check", engine) == 1
    out = capsys.readouterr().out
    assert expected in out
    assert out.endswith("not ok: see the lines above\n")


ODD: dict[str, tuple[str, dict[str, Any], str]] = {
    "architectures": ("config.json", {"architectures": 5}, "missing:   config.json: architectures with"),
    "heads": ("config.json", {"num_attention_heads": 0}, "config.json: does not make a model: 'ZeroDivisionError: "),
    "activation": ("config.json", {"hidden_act": "nosuch"}, "config.json: does not make a model: 'KeyError: "),
    "dtype": ("config.json", {"dtype": "float99"}, "config.json: does not make a model: "),
    "tokens": ("tokenizer.json", {"added_tokens": [5, {"content": 5, "id": "x"}]}, "the token <|image|>, whose id"),
    "vocabulary": ("tokenizer.json", {"model": 5, "added_tokens": 5}, "tokenizer.json: the token <s>\n"),
    "stop": ("generation_config.json", {"eos_token_id": {"a": [1]}}, "eos_token_id with 32007"),
}


@pytest.mark.parametrize("case", ODD)
def test_values_of_other_types_are_findings(copy: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, values, expected = ODD[case]
    change(copy / file, lambda content: content.update(values))
    (copy / "other.json").write_text("[1]")  # not read
    assert command(str(copy), "--check", "vllm") == 1
    assert expected in capsys.readouterr().out


def test_a_config_with_any_number_of_layers_is_refused_before_they_are_made(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copy / "config.json", lambda config: config.update(num_hidden_layers=10**9))
    assert command(str(copy), "--check", "vllm") == 2
    assert "config.json: num_hidden_layers is 1,000,000,000, but the weights have " in capsys.readouterr().err


def test_weights_that_are_missing_or_unknown_or_of_another_shape(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = header_of(copy / "model.safetensors")
    del shapes["model.norm.weight"]
    shapes["model.norm.extra"] = [128]
    shapes["model.vision_embed_tokens.sub_GN"] = [1, 1, 4096]
    write_weights(copy / "model.safetensors", shapes)
    assert command(str(copy), "--check", "vllm") == 1
    out = capsys.readouterr().out
    assert "missing:   weights: model.norm.weight\n" in out
    assert "different: weights: model.norm.extra: names that the model does not have, which vllm refuses\n" in out
    assert "model.vision_embed_tokens.sub_GN is [1, 1, 4096], by config.json [1, 1, 1, 4096]\n" in out


def test_tiny_is_written_and_checked_and_has_another_tower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command("tiny", str(out), "--check", "vllm") == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: a model directory in fp32\n{out} for vllm 0.33.0")
    assert "vision_config.num_hidden_layers is 3; vllm builds the tower with 24, whatever the file says\n" in printed
    assert "the id of <|image|> is 2047; vllm puts 32044" in printed
    assert "weights:" not in printed
    assert command(str(out), "--check", "transformers") == 0
    assert "`import phi3v_train` before loading" in capsys.readouterr().out
    assert command("tiny", str(out), "--with_code", "--overwrite", "--check", "transformers") == 0
    (out / "modeling_phi3_v.py").unlink()
    capsys.readouterr()
    assert command(str(out), "--check", "transformers") == 1
    assert "missing:   modeling_phi3_v.py, which auto_map names\n" in capsys.readouterr().out


def test_overwrite_replaces_a_model_directory_and_nothing_else(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not what is around the working directory, whatever its name, nor the model that is read; links are followed."""
    work, link = tmp_path / "around" / "work", tmp_path / "around" / "link"
    work.mkdir(parents=True)
    (work.parent / "notes.txt").write_text("kept")
    (work.parent / "config.json").write_text("{}")
    monkeypatch.chdir(work)
    for out in ("..", "../../around", str(served), str(served.parent)):
        assert command(str(served), out, "--overwrite") == 2
        assert capsys.readouterr().err.startswith(f"error: {out}: ")
    assert (work.parent / "notes.txt").read_text() == "kept"
    assert (served / "config.json").is_file()
    assert not list(tmp_path.rglob("*.partial"))
    link.symlink_to("made")
    for _ in range(2):
        assert command("tiny", str(link), "--overwrite") == 0
    assert link.is_symlink()
    (link / "logs").mkdir()
    capsys.readouterr()
    assert command("tiny", str(link), "--overwrite") == 2
    assert "link: has 'logs', which merge did not write; move it away" in capsys.readouterr().err
    assert sorted(path.name for path in work.parent.iterdir()) == ["config.json", "link", "made", "notes.txt", "work"]


def test_an_engine_that_lost_a_name_is_said(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = facts.table()["vllm"]
    parts = tuple(part for part in known.parts if part != "glb_GN")
    newer = facts.Facts("9.0", processor=("img_tokens", "ask_me"), parts=parts)
    monkeypatch.setattr(facts, "read_installed", lambda engine: newer)
    assert command(str(served), "--check", "vllm") == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{served} for vllm 9.0, installed here\n")
    assert "missing:   the processor's class: ask_me, which vllm 9.0 asks for\n" in out
    assert "vllm 9.0 has no glb_GN any more" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tiny",), "nothing to do: give OUT"),
        (("tiny", "--check", "mlx"), "tiny: is not a directory"),
        (("tiny", "--with_code", "--check", "mlx"), "are for writing: give OUT, too"),
    ],
)
def test_what_cannot_be_checked(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*args) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_or_another_family_is_not_checked(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
    with pytest.raises(UserError, match="is an adapter, and the engines load merged models only; give OUT"):
        report(str(adapter), "vllm")
    with pytest.raises(UserError, match="what engines need of Phi-3-vision only"):
        get_family("smolvlm").check_engine(tmp_path, "vllm")


@pytest.mark.parametrize("engine", facts.SOURCES)
def test_drift_the_table_is_what_the_source_of_the_engine_says(engine: str) -> None:
    found = facts.read_installed(engine)
    if found is None:
        pytest.skip(f"{engine} is not installed here, so there is no source to compare the table with")
    if found.version != facts.table()[engine].version:
        pytest.skip(f"{engine} {found.version} is installed, the table is of {facts.table()[engine].version}")
    assert found == facts.table()[engine]
