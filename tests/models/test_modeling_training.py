"""Losses and gradients: labelled tokens only, checkpointing, adapters, empty batches, processes that wait."""

from pathlib import Path

import pytest
import torch
from golden_model import distance, golden_case, golden_model
from peft import LoraConfig, PeftModel, get_peft_model
from processes import finish, start_ranks
from torch import Tensor
from torch.nn import functional

from phi3v_train.models.phi3v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiles import drop_padding
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor

DOCS = Path(__file__).parents[2] / "docs" / "model.md"
LANGUAGE = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
VISION = (
    r"model\.vision_embed_tokens\.(img_processor\..*\.layers\.[0-2]\."
    r"(self_attn\..*_proj|mlp\.fc[12])|img_projection\.[02])"
)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-6)


def test_training_computes_no_logits_without_a_label_and_returns_none() -> None:
    model, case = golden_model(), golden_case("wide_nc4")
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel() // 64))
    plain = model(**case.inputs, labels=case.labels)
    model.train()
    trained = model(**case.inputs, labels=case.labels)
    assert trained.logits is None
    num_labels = int((case.labels[:, 1:] >= 0).sum())
    assert seen == [num_labels, case.length, num_labels]
    assert abs(trained.loss.item() - plain.loss.item()) < 1e-6
    assert model(**case.inputs, labels=case.labels, return_logits=True).logits.shape[1] == case.length
    model.eval()
    assert model(**case.inputs, labels=case.labels, return_logits=False).logits is None
    assert model(**case.inputs, logits_to_keep=3).logits.shape[1] == 3


def test_loss_equals_plain_cross_entropy_and_honours_the_number_of_items() -> None:
    model, case = golden_model(), golden_case("multiturn_two_images_nc4")
    output = model(**case.inputs, labels=case.labels)
    total = functional.cross_entropy(output.logits[0, :-1], case.labels[0, 1:], reduction="sum")
    count = int((case.labels[0, 1:] >= 0).sum())
    assert output.loss.item() == pytest.approx((total / count).item(), abs=1e-5)
    for items in (7, torch.tensor(7)):
        scaled = model(**case.inputs, labels=case.labels, num_items_in_batch=items).loss
        assert scaled.item() == pytest.approx((total / 7).item(), rel=1e-5)


def test_image_ids_left_in_the_labels_are_not_labels() -> None:
    model, case = golden_model(), golden_case("wide_nc4")
    ids = case.inputs["input_ids"]
    left_in = model(**case.inputs, labels=ids).loss
    masked = model(**case.inputs, labels=torch.where(ids < 0, -100, ids)).loss
    assert torch.equal(left_in, masked)


def test_other_trainers_need_image_ids_masked_as_docs_say() -> None:
    """Counted as `transformers.Trainer` counts, image ids make the divisor too large; torch's own loss refuses them."""
    model, case = golden_model(), golden_case("wide_nc4")
    labels = case.inputs["input_ids"].clone()
    right = model(**case.inputs, labels=labels)
    counted = model(**case.inputs, labels=labels, num_items_in_batch=labels[:, 1:].ne(-100).sum()).loss
    image_tokens = int((labels[:, 1:] < 0).sum())
    text_tokens = labels.shape[1] - 1 - image_tokens
    assert image_tokens > text_tokens
    share = text_tokens / (text_tokens + image_tokens)
    assert counted.item() == pytest.approx(right.loss.item() * share, rel=1e-5)
    with pytest.raises(IndexError):
        functional.cross_entropy(right.logits[0, :-1], labels[0, 1:])
    assert "labels[labels < 0] = -100" in DOCS.read_text(encoding="utf-8")
    labels[labels < 0] = -100
    masked = model(**case.inputs, labels=labels, num_items_in_batch=labels[:, 1:].ne(-100).sum()).loss
    assert masked.item() == pytest.approx(right.loss.item(), rel=1e-5)
    plain = functional.cross_entropy(right.logits[0, :-1], labels[0, 1:])
    assert plain.item() == pytest.approx(right.loss.item(), rel=1e-4)


def test_a_batch_without_labels_has_loss_zero_with_zero_gradients() -> None:
    model, case = golden_model().train(), golden_case("wide_nc4")
    loss = model(**case.inputs, labels=torch.full_like(case.labels, -100)).loss
    assert loss.item() == 0.0
    loss.backward()
    found = gradients(model)
    assert len(found) == len(list(model.parameters()))
    assert all(not gradient.any() for gradient in found.values())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(use_reentrant: bool) -> None:
    model, case = golden_model().train(), golden_case("wide_nc4")
    model(**case.inputs, labels=case.labels).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    output = model(**case.inputs, labels=case.labels)
    output.loss.backward()
    assert_same_gradients(gradients(model), expected)
    model.eval()
    ids = model.generate(**case.inputs, max_new_tokens=3, do_sample=False)
    assert ids[0, -3:].tolist() == case.figures["generate_cached"][:3]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_packed_rows_gives_the_same_gradients(use_reentrant: bool) -> None:
    model = golden_model().train()
    ids = torch.randint(3, 420, (1, 60), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(n) for n in (20, 25, 15)])[None]
    model(input_ids=ids, position_ids=positions, labels=ids).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(input_ids=ids, position_ids=positions, labels=ids).loss.backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("targets", [LANGUAGE, VISION, f"{LANGUAGE}|{VISION}"])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_adapters_learn_reload_and_merge(tmp_path: Path, targets: str, checkpointing: bool | None) -> None:
    """`checkpointing` is None for none, else whether it is reentrant."""
    torch.manual_seed(0)
    case = golden_case("wide_nc4")
    model = get_peft_model(golden_model(), LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).train()
    if checkpointing is not None:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    model(**case.inputs, labels=case.labels).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in name and p.grad is not None and p.grad.any() for name, p in trained.items())
    if checkpointing is not None:
        return
    model.eval()
    expected = model(**case.inputs).logits
    model.save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(golden_model(), tmp_path / "adapter")
    assert distance(reloaded(**case.inputs).logits, expected) < 1e-5
    merged = reloaded.merge_and_unload()
    assert distance(merged(**case.inputs).logits, expected) < 1e-4
    merged.save_pretrained(tmp_path / "merged")
    again = Phi3VForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert distance(again(**case.inputs).logits, expected) < 1e-4


def test_zero_tiles_never_enter_the_tower_and_canvases_equal_tiles() -> None:
    model, case = golden_model(), golden_case("multiturn_two_images_nc4")
    seen: list[int] = []
    model.model.vision_embed_tokens.img_processor.register_forward_hook(lambda _, i, __: seen.append(len(i[0])))
    expected = model(**case.inputs).logits
    spoiled = case.inputs["pixel_values"].clone()
    spoiled[1, 5:] = float("nan")
    with_spoiled_padding = model(**(case.inputs | {"pixel_values": spoiled})).logits
    assert torch.equal(with_spoiled_padding, expected)
    tiles = drop_padding(case.inputs["pixel_values"], case.inputs["image_sizes"])
    assert seen == [len(tiles)] * 2


def test_canvases_give_the_same_logits_as_pixel_values() -> None:
    from PIL import Image

    model, processor = tiny_model(), tiny_processor(num_crops=4)
    images = [Image.linear_gradient("L").resize((200, 90)), Image.radial_gradient("L").resize((90, 200))]
    prompt = "<|user|>\n<|image_1|>\n<|image_2|>\nWhich?<|end|>\n<|assistant|>\n"
    tiles = processor(text=prompt, images=images, return_tensors="pt")
    canvases = processor.image_processor.preprocess(images, return_canvas=True)
    expected = model(**{name: tiles[name] for name in ("input_ids", "pixel_values", "image_sizes")}).logits
    found = model(tiles["input_ids"], canvases=canvases["canvases"], image_sizes=canvases["image_sizes"]).logits
    assert torch.equal(found, expected)


def test_the_tower_is_touched_in_training_without_images_when_it_is_trained() -> None:
    model = golden_model()
    text = torch.arange(5, 25)[None]
    model(input_ids=text, labels=text).loss.backward()
    tower = dict(model.model.vision_embed_tokens.named_parameters())
    assert all(p.grad is None for p in tower.values())
    model.zero_grad()
    model.train()
    loss = model(input_ids=text, labels=text).loss
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in tower.values())
    model.zero_grad()
    model.model.vision_embed_tokens.requires_grad_(False)
    model(input_ids=text, labels=text).loss.backward()
    assert all(p.grad is None for p in tower.values())


def test_images_and_tags_that_do_not_fit_are_refused_with_a_sentence() -> None:
    model, case = golden_model(), golden_case("multiturn_two_images_nc4")
    ids, pixels, sizes = (case.inputs[name] for name in ("input_ids", "pixel_values", "image_sizes"))
    with pytest.raises(ValueError, match="no images were given"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="contain 2 images, but 1 were given"):
        model(input_ids=ids, pixel_values=pixels[:1], image_sizes=sizes[:1])
    with pytest.raises(ValueError, match="contain 0 images, but 2"):
        model(input_ids=ids.clamp_min(1), pixel_values=pixels, image_sizes=sizes)
    with pytest.raises(ValueError, match=r"<\|image_1\|> of sample 0 has 757 tokens"):
        model(input_ids=ids, pixel_values=pixels, image_sizes=sizes.flip(0))
    with pytest.raises(ValueError, match=r"numbered \[1, 3\]"):
        model(input_ids=torch.where(ids == -2, -3, ids), pixel_values=pixels, image_sizes=sizes)
    with pytest.raises(ValueError, match="contain fewer tiles"):
        model(input_ids=ids, pixel_values=pixels[:, :3], image_sizes=sizes)
    with pytest.raises(ValueError, match="image_sizes"):
        model(input_ids=ids, pixel_values=pixels)
    with pytest.raises(ValueError, match="output_attentions"):
        model(input_ids=ids, pixel_values=pixels, image_sizes=sizes, output_attentions=True)


@pytest.mark.parametrize(("frozen", "training", "passes"), [(False, True, 1), (True, True, 0), (False, False, 0)])
def test_text_alone_runs_the_tower_only_where_it_is_trained(frozen: bool, training: bool, passes: int) -> None:
    """Other processes may wait for its gradients; a frozen tower would cost a pass over a tile for nothing."""
    model = tiny_model().train(training)
    model.model.vision_embed_tokens.requires_grad_(not frozen)
    seen: list[int] = []
    model.model.vision_embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    text = torch.arange(5, 25)[None]
    loss = model(input_ids=text, labels=text).loss
    assert len(seen) == passes
    assert loss.requires_grad


ONE_PROCESS_WITHOUT_AN_IMAGE = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from phi3v_train.models.phi3v.tiny import tiny_model
dist.init_process_group("gloo")
torch.manual_seed(0)
model = tiny_model().train()
if sys.argv[1] == "frozen":
    model.model.vision_embed_tokens.requires_grad_(False)
if sys.argv[1] == "ddp":
    model = DistributedDataParallel(model)
else:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in [*model.model.layers, *model.model.vision_embed_tokens.img_processor.vision_model.encoder.layers[:2]]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
text = torch.arange(5, 25)[None]
batch = {"input_ids": text, "labels": text}
if dist.get_rank() == 0:
    ids = torch.cat((text, -torch.ones(1, 313, dtype=torch.long), text), dim=1)
    batch = {"input_ids": ids, "labels": ids, "pixel_values": torch.ones(1, 2, 3, 336, 336),
             "image_sizes": torch.tensor([[336, 336]])}
for _ in range(2):
    loss = model(**batch).loss
    loss.backward()
norms = [p.grad.norm() for p in model.parameters() if p.requires_grad]
print("finite", all(bool(torch.isfinite(n)) for n in norms), flush=True)
dist.barrier()
os._exit(0)  # gloo's threads may outlive the group and abort the interpreter while it shuts down
"""


@pytest.mark.parametrize("how", ["ddp", "sharded", "frozen"])
def test_processes_with_and_without_images_train_together(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data parallel with two real processes, one of which has no image: nobody waits for ever, nothing is unused."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    results = finish(start_ranks(2, "-c", ONE_PROCESS_WITHOUT_AN_IMAGE, how))
    assert [(code, said) for code, said, _ in results] == [(0, "finite True\n")] * 2, results
