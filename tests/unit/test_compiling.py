"""Whether the towers' blocks are compiled: asked for, measured, and the same features either way."""

import copy
import time

import pytest
import torch

from coreclip.config import load_config
from coreclip.training.compiling import compile_blocks, decide_compile
from coreclip.training.model import END, build_model

CPU = torch.device("cpu")
SMALL = [
    "data.image_size=16", "model.image_tower=vit", "model.image_width=16", "model.image_depth=2", "model.patch_size=8",
    "model.text_width=16", "model.text_depth=2", "model.heads=2", "model.embed_dim=8", "model.context=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return build_model(load_config(overrides=SMALL), vocab_size=40, seed=0)


def test_what_is_asked_for_is_not_measured(model):
    def step():
        raise AssertionError("a step was made")

    for asked in ("on", "off"):
        found = decide_compile(model, step, asked=asked, device=CPU, seconds_left=lambda seconds: 1e9)
        assert found == {"compile": asked == "on"}


def test_a_short_budget_is_not_spent_on_a_trial(model):
    steps, trial = [], copy.deepcopy(model)
    found = decide_compile(trial, lambda: steps.append(1), asked="auto", device=CPU, seconds_left=lambda seconds: 60.0)
    assert found == {"compile": False}
    assert steps  # the eager step was timed, to know what is left
    assert not trial.is_compiled


@pytest.mark.parametrize(("eager", "compiled", "kept"), [(0.03, 0.001, True), (0.001, 0.03, False)])
def test_the_faster_way_is_kept(model, eager, compiled, kept):
    trial = copy.deepcopy(model)
    found = decide_compile(
        trial,
        lambda: time.sleep(compiled if trial.is_compiled else eager),
        asked="auto",
        device=CPU,
        seconds_left=lambda seconds: 1e9,
    )
    assert found["compile"] is kept
    assert set(found["compile_seconds_per_step"]) == {"eager", "compiled"}


def test_a_compiler_that_fails_is_told_and_done_without(model, capsys):
    trial = copy.deepcopy(model)

    def step():
        if trial.is_compiled:
            raise RuntimeError("no compiler here\nand more")

    found = decide_compile(trial, step, asked="auto", device=CPU, seconds_left=lambda seconds: 1e9)
    assert found == {"compile": False, "compile_error": "no compiler here"}
    assert "training goes on without it: no compiler here" in capsys.readouterr().err


def test_compiled_blocks_give_the_features_and_gradients_of_plain_ones(model):
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 7, 8, END, 0, 0], [1, 9, END, 0, 0, 0], [1, 5, 6, 7, 8, END], [1, 30, END, 0, 0, 0]])
    found = []
    for compiled in (False, True):
        each = copy.deepcopy(model)
        if compiled:
            compile_blocks(each)
        a, b, scale = each(images, tokens)
        (scale.exp() * (a @ b.T)).softmax(1).diag().sum().backward()
        found.append([a.detach(), b.detach(), *(p.grad for p in each.parameters())])
    for plain, own in zip(*found, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_compiled_model_is_compiled_with_weights_of_its_own(model):
    compiled = copy.deepcopy(model)
    compile_blocks(compiled)
    other = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in other.text.parameters():
            parameter.zero_()
    tokens = torch.tensor([[1, 7, 8, END], [1, 9, 7, END]])
    assert not torch.allclose(compiled.encode_text(tokens)[0], compiled.encode_text(tokens)[1])
    torch.testing.assert_close(compiled.encode_text(tokens), model.encode_text(tokens), rtol=1e-4, atol=1e-5)
