"""The seam: a model family of another package, unlike Phi-3-vision, goes the whole way from the command line.

`tests/toy_family` is that package: other markers, image tokens by area, tags without numbers, padding on the left, a
model and a processor of its own. It is found by its entry points alone.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from in_process import make_cli
from PIL import Image
from run_dirs import read_lines
from safetensors.torch import load_file

from phi3v_data.schema import Sample, Turn
from phi3v_data.tokens import registry as token_registry
from phi3v_train.cli.app import main
from phi3v_train.models import registry

TOY = Path(__file__).parents[1] / "toy_family"
SIZES = ((64, 48), (100, 100), (20, 20))
"""3, 10 and 1 image tokens: one per 1,024 pixels, rounded up."""

COLOURS = ("red", "blue", "tan")
MODEL = ("--model_name_or_path", "tiny:toy", "--device", "cpu", "--num_workers", "0")
RUN = (
    *MODEL, "--batch_size", "4", "--batch_size_per_gpu", "2", "--learning_rate", "0.01", "--warmup_steps", "1",
    "--max_steps", "4", "--save_steps", "2", "--report_to", "none", "--no_tqdm", "--no_eval_before",
)  # fmt: skip

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """The toy package is installed: its folder is on the path."""
    caches = (registry.installed, registry.load, token_registry._installed)
    sys.path.insert(0, str(TOY))
    importlib.invalidate_caches()
    for cache in caches:
        cache.cache_clear()
    yield
    sys.path.remove(str(TOY))
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours to name, the first image of 64 x 48 pixels; the last rows have two images, two turns or none."""
    directory = tmp_path_factory.mktemp("toy")
    (directory / "images").mkdir()
    rng = np.random.default_rng(0)
    for split, rows in (("train", 6), ("val", 3)):
        samples = []
        for n in range(rows):
            names = []
            for k in range((1, 1, 1, 2, 1, 0)[n]):
                width, height = SIZES[(n + k) % 3]
                names.append(f"{split}{n}{k}.png")
                pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(directory / "images" / names[-1])
            turns = [Turn(images=tuple(names), user="Which?", assistant=COLOURS[n % 3])]
            if n == 4:
                turns.append(Turn(user="Sure?", assistant="yes"))
            samples.append(Sample(id=f"{split}-{n}", source="toy", conversations=tuple(turns)))
        with (directory / f"toy_{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(sample.to_json() + "\n" for sample in samples)
    return directory


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the program here and give exit code, stdout and stderr."""
    return partial(make_cli(capsys, monkeypatch), main=main)


def test_a_sample_in_the_familys_own_markers(data_dir: Path, call: Call) -> None:
    """Bytes are ids; [ASK] 258, [ANSWER] 259, [STOP] 260; image n is shown as -n."""
    code, out, _ = call("inspect", data_dir, "--row", 0, "--model_name_or_path", "tiny:toy", "--json")
    view = json.loads(out)
    prompt = [258, -1, -1, -1, *b"Which?", 260, 259]
    assert code == 0
    assert view["input_ids"] == [*prompt, *b"red", 260]
    assert view["labels"] == [-100] * len(prompt) + [*b"red", 260]
    assert (view["num_image_tokens"], view["num_supervised"], view["num_crops"]) == (3, 4, None)
    assert view["images"] == [
        {"path": "train00.png", "turn": 0, "width": 64, "height": 48, "num_tiles": 1, "num_tokens": 3}
    ]
    code, out, _ = call("inspect", data_dir, "--row", 4, "--model_name_or_path", "tiny:toy", "--json")
    first = [258, *[-1] * 10, *b"Which?", 260, 259]
    second = [258, *b"Sure?", 260, 259]
    assert json.loads(out)["input_ids"] == [*first, *b"blue", 260, *second, *b"yes", 260]
    assert json.loads(out)["labels"] == [-100] * 19 + [*b"blue", 260] + [-100] * 8 + [*b"yes", 260]
    code, out, _ = call("inspect", data_dir, "--row", 3, "--model_name_or_path", "tiny:toy")
    assert "[image 1: 3 tokens]" in out
    assert "[image 2: 10 tokens]" in out
    assert "no image budget" in out


def test_training_resumes_to_the_same_losses_and_the_model_is_evaluated(
    data_dir: Path, tmp_path: Path, call: Call
) -> None:
    """Full training, resumed from the checkpoint of step 2 that a run left; then `eval` of its model."""
    code, out, err = call("run", "--data_dir", data_dir, "--output_dir", tmp_path / "whole", *RUN)
    assert code == 0, err
    assert "tiny:toy: 0.04154 M parameters" in out + err
    assert "num_crops" not in (tmp_path / "whole" / "README.md").read_text()
    lines = read_lines(tmp_path / "whole" / "metrics.jsonl")
    losses = [line["loss"] for line in lines]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert losses[0] == pytest.approx(np.log(262), abs=0.3), "random weights are as good as guessing"
    assert losses[3] < losses[0]

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    for name in ("model", "checkpoint-000004"):
        shutil.rmtree(cut / name)
    (cut / "complete.json").unlink()
    code, _, err = call("run", "--data_dir", data_dir, "--output_dir", cut, *RUN)
    assert code == 0, err
    assert "from checkpoint-000002" in err
    assert [line["loss"] for line in read_lines(cut / "metrics.jsonl")] == losses
    whole, again = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", cut))
    assert all(torch.equal(whole[name], again[name]) for name in whole)

    scores = tmp_path / "scores"
    options = ("--data_dir", data_dir, "--output_dir", scores, "--max_new_tokens", "8", "--quiet")
    code, out, err = call("eval", "--model_name_or_path", cut / "model", *MODEL[2:], *options, "--json", "--loss")
    assert code == 0, err
    result = json.loads(out)
    records = read_lines(scores / "predictions.jsonl")
    assert [record["id"] for record in records] == ["val-0", "val-1", "val-2"]
    assert [record["answers"] for record in records] == [["red"], ["blue"], ["tan"]]
    right = sum(record["prediction"] == record["answers"][0] for record in records)
    assert result["metrics"]["accuracy"] == right / 3
    assert 0 < result["metrics"]["loss"] < np.log(262)


def test_adapters_of_its_table_are_trained_merged_and_evaluated(data_dir: Path, tmp_path: Path, call: Call) -> None:
    code, _, err = call("run", "--data_dir", data_dir, "--output_dir", tmp_path / "run", *RUN, "--use_lora",
                        "--lora_rank", "2", "--lora_targets", "q_proj,patches")  # fmt: skip
    assert code == 0, err
    adapter = tmp_path / "run" / "model"
    saved = json.loads((adapter / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == "tiny:toy"
    layers = [f"language.model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    assert sorted(load_file(adapter / "adapter_model.safetensors")) == sorted(
        f"base_model.model.{name}.lora_{each}.weight" for name in (*layers, "patches") for each in "AB"
    )
    code, _, err = call("merge", adapter, tmp_path / "merged")
    assert code == 0, err
    predictions = []
    for model in (adapter, tmp_path / "merged"):
        options = ("--data_dir", data_dir, "--output_dir", tmp_path / f"of-{model.name}", "--max_new_tokens", "4")
        code, _, err = call("eval", "--model_name_or_path", model, *MODEL[2:], *options, "--quiet")
        assert code == 0, err
        predictions.append([each["prediction"] for each in read_lines(tmp_path / f"of-{model.name}/predictions.jsonl")])
    assert predictions[0] == predictions[1]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["model_type"] == "toy_vl"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pack",), "--pack: attention of this model family crosses the samples of a packed row; leave --pack out"),
        (("--num_crops", "4"), "--num_crops 4: the model family toy has no image budget: leave num_crops out"),
    ],
)
def test_what_the_family_does_not_take_is_refused(
    data_dir: Path, tmp_path: Path, call: Call, options: tuple[str, ...], message: str
) -> None:
    code, _, err = call("plan", "--data_dir", data_dir, "--output_dir", tmp_path / "run", *MODEL, *options)
    assert (code, err.strip().endswith(message)) == (2, True), err


def test_the_loss_of_a_model_that_returns_logits_only() -> None:
    """Two rows, the second padded: ln 4 for uniform scores, ln(1 + 3/e) where the right one of four scores 1."""
    labels = torch.tensor([[-100, 2, 1], [-100, 3, -100]])
    logits = torch.zeros(2, 3, 4)
    logits[1, 0, 3] = 1.0
    model = lambda **inputs: SimpleNamespace(logits=logits)  # noqa: E731
    loss, losses = registry.get_family("toy").loss(model, {"labels": labels}, 2.0, per_token=True)
    assert losses is not None
    assert losses.tolist() == pytest.approx([1.386294, 1.386294, 0.743668], abs=1e-6)
    assert loss.item() == pytest.approx((1.386294 + 1.386294 + 0.743668) / 2, abs=1e-6)


def test_batches_are_padded_on_the_left_with_its_own_image_token(data_dir: Path) -> None:
    from phi3v_train.data.collate import collate
    from phi3v_train.data.encode import Encoder
    from phi3v_train.data.order import SampleRef
    from phi3v_train.data.reader import Reader
    from phi3v_train.data.sources import open_sources
    from phi3v_train.models.loading import load_processor
    from phi3v_train.models.locate import locate

    files = locate("tiny:toy")
    renderer = files.family.renderer(load_processor(files))
    sources = [source.with_model(files) for source in open_sources([data_dir], "train")]
    reader = Reader(sources, Encoder(renderer))
    batch: dict[str, Any] = collate([reader.encode(SampleRef(0, row, 0)) for row in (0, 5)], renderer)
    assert batch["input_ids"].tolist() == [
        [258, 261, 261, 261, *b"Which?", 260, 259, *b"red", 260],
        [256, 256, 256, 258, *b"Which?", 260, 259, *b"tan", 260],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 16, [0] * 3 + [1] * 13]
    assert batch["patches"].shape == (3, 192)


def test_inspect_shows_its_images_and_trained_tokens(data_dir: Path, call: Call, tmp_path: Path) -> None:
    page = tmp_path / "toy.html"
    code, out, _ = call("inspect", data_dir, *MODEL[:2], "--rows", "0-5", "--html", page)
    assert (code, out.startswith(f"{page}: 6 rows, ")) == (0, True)
    rows = json.loads(page.read_text("utf-8").partition('id="data">')[2].partition("</script>")[0])["rows"]
    assert [[span["words"] for span in row["spans"] if span["kind"] == "image"] for row in rows] == [
        ["[image 1: 3 tokens]"],
        ["[image 1: 10 tokens]"],
        ["[image 1: 1 token]"],
        ["[image 1: 3 tokens]", "[image 2: 10 tokens]"],
        ["[image 1: 10 tokens]"],
        [],
    ]
    trained = ["".join("".join(span["texts"]) for span in row["spans"] if span["kind"] == "trained") for row in rows]
    assert [any(colour in text for colour in COLOURS) for text in trained] == [True] * 6
    assert "yes" in trained[4]
