"""What a GPU changes: nothing but rounding. These run where there is one."""

import copy
from dataclasses import replace

import pytest
import torch

from coreclip.config import Config, DataConfig, JestConfig, ModelConfig, ReselectConfig, TrainConfig
from coreclip.pipeline import make_loader
from coreclip.training import ClipModel, embed, evaluate, make_step, train
from coreclip.training.ahead import AheadOnDevice
from coreclip.training.attention import Block, Packed, Whole
from coreclip.training.compiling import compile_blocks
from coreclip.training.device import Fetched
from coreclip.training.model import END, build_model
from tests.helpers import make_dataset
from tests.unit.test_train import Stop, StopAfter, lines, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CNN = Config(
    data=DataConfig(image_size=16, batch_size=5, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=2, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", compile="off", lr=5e-3, checkpoint_seconds=1e-6, checkpoints=2),
)
VIT = replace(
    CNN, model=replace(CNN.model, image_tower="vit", image_width=32, image_heads=2, image_depth=2, patch_size=4)
)
ALL = replace(
    CNN,
    data=replace(CNN.data, sizes=(8, 16), weights="draws"),
    train=replace(CNN.train, ema=0.1),
    reselect=ReselectConfig(every=1, fraction=0.6, pool=15),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 20)


@pytest.mark.parametrize("config", [CNN, VIT], ids=["cnn", "vit"])
def test_a_run_on_a_gpu_is_one_on_the_processor_up_to_rounding(data, tmp_path, config):
    for device in ("cpu", "cuda"):
        train(data, tmp_path / device, config=config, samples=40, device=device)
    ours, theirs = (weights(tmp_path / device) for device in ("cuda", "cpu"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].cpu(), value, rtol=0.05, atol=0.02, msg=name)
    [cpu], [cuda] = ([line["loss"] for line in lines(tmp_path / device)][-1:] for device in ("cpu", "cuda"))
    assert cuda == pytest.approx(cpu, rel=0.02)
    measured = [evaluate(tmp_path / "cpu", data, device=device) for device in ("cpu", "cuda")]
    assert measured[0]["text_to_image_recall_at_5"] == pytest.approx(measured[1]["text_to_image_recall_at_5"], abs=0.11)


@pytest.mark.parametrize("config", [CNN, ALL], ids=["plain", "all options"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(data, tmp_path, config, stop):
    config = replace(config, train=replace(config.train, deterministic=True))
    train(data, tmp_path / "whole", config=config, samples=60, device="cuda")
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=config, samples=60, device="cuda", watch=StopAfter(stop))
    train(data, tmp_path / "run", config=config, samples=60, device="cuda")
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_rows_are_chosen_and_pairs_embedded_on_a_gpu(data, tmp_path):
    train(data, tmp_path / "proxy", config=CNN, samples=20, device="cuda")
    jest = replace(CNN, jest=JestConfig(keep=0.5, reference=str(tmp_path / "proxy")))
    assert train(data, tmp_path / "run", config=jest, samples=20, device="cuda").scored == 40
    embed(data, tmp_path / "features", model=tmp_path / "run", device="cuda")
    assert ClipModel.load(tmp_path / "run", "cuda").encode_text(["a dog"]).is_cuda


@pytest.mark.parametrize("config", [CNN, VIT, replace(VIT, train=replace(VIT.train, precision="bf16"))])
def test_a_step_waits_for_nothing_but_its_forward_pass(data, config):
    measured = make_step(data, config, device="cuda")
    batches = AheadOnDevice(measured.loader, torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")  # torch raises where the host would wait, but for events
    try:
        for batch in batches:
            measured.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_images_are_decoded_into_pinned_memory_and_are_the_same(data):
    options = {"batch_size": 7, "image_size": 16, "seed": 3}
    plain, pinned = (list(make_loader(data, pin_memory=pin, **options)) for pin in (False, True))
    assert all(batch.images.is_pinned() for batch in pinned)
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in zip(pinned, plain, strict=True))
    there = [
        batch.images.cpu()
        for batch in AheadOnDevice(make_loader(data, pin_memory=True, **options), torch.device("cuda"))
    ]
    assert all(torch.equal(images, batch.images) for images, batch in zip(there, plain, strict=True))


def test_what_is_fetched_is_what_it_was_when_it_was_asked_for():
    values = torch.arange(5.0, device="cuda")
    fetched = Fetched(values)
    values.zero_()
    assert fetched.read().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_within_packed_rows_is_the_padded_one(causal):
    torch.manual_seed(0)
    lengths = torch.tensor([3, 9, 1, 6])
    block = Block(64, 2, 1, "gelu").cuda().bfloat16()
    packed = Packed(lengths, 9, torch.device("cuda"), is_causal=causal)
    x = torch.randn(len(packed.flat), 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    by_kernel = packed.attend(block.qkv(x), block.heads)
    packed.begins = None
    torch.testing.assert_close(by_kernel, Whole.attend(packed, block.qkv(x), block.heads), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("causal", [False, True])
def test_captions_of_different_lengths_have_the_features_that_they_have_on_the_cpu(causal):
    model = build_model(replace(VIT, model=replace(VIT.model, text_causal=causal)), vocab_size=40, seed=0).eval()
    tokens = torch.randint(5, 40, (6, 16))
    tokens[torch.arange(6), torch.arange(4, 16, 2)] = END
    tokens[torch.arange(16) > torch.arange(4, 16, 2).unsqueeze(1)] = 0
    there = model.encode_text(tokens)
    torch.testing.assert_close(
        copy.deepcopy(model).cuda().encode_text(tokens.cuda()).cpu(), there, rtol=1e-3, atol=1e-4
    )


def test_compiled_blocks_give_what_plain_ones_do():
    model = build_model(VIT, vocab_size=40, seed=0).cuda()
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, device="cuda")
    tokens = torch.randint(5, 40, (6, 16), device="cuda")
    tokens[torch.arange(6), torch.arange(4, 16, 2)] = END
    plain = [value.detach() for value in model(images, tokens)]
    compile_blocks(model)
    for ours, theirs in zip(model(images, tokens), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    model(images, tokens)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.image.parameters())
