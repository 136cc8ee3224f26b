"""Muon: what it makes of a matrix, against torch's own, which parameters are its, and that training with it is training."""

from dataclasses import replace

import pytest
import torch

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.training import build_model, train
from coreclip.training.muon import Muon, is_hidden_matrix, orthogonalised
from coreclip.training.steps import make_optimiser, update
from tests.helpers import make_dataset
from tests.unit.test_train import Stop, StopAfter, lines, weights

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=5, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", optimiser="muon", checkpoint_seconds=1e-6),
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 40), (12, 4, 3, 3), (1, 7)])
def test_the_directions_of_a_gradient_become_equally_large(shape):
    gradient = random(*shape)
    gradient = gradient * torch.logspace(0, -1, shape[0]).view(
        -1, *[1] * (len(shape) - 1)
    )  # some rows a tenth of others
    found = orthogonalised(gradient)
    assert found.shape == gradient.shape
    m, n = gradient.flatten(1).shape
    u, values, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    assert values.max() > 2 * values.min() or min(m, n) == 1
    scale = max(1, m / n) ** 0.5
    spectrum = torch.linalg.svdvals(found.flatten(1)) / scale
    assert 0.6 < spectrum.min() <= spectrum.max() < 1.25
    nearest = u @ v * scale
    assert torch.nn.functional.cosine_similarity(found.flatten(), nearest.flatten(), dim=0) > 0.97


def test_a_gradient_of_nothing_stays_nothing():
    assert torch.equal(orthogonalised(torch.zeros(4, 6)), torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_steps_are_those_of_torchs_own_muon(shape):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch below 2.9 has none")
    ours, theirs = (torch.nn.Parameter(random(*shape)) for _ in range(2))
    optimisers = (
        Muon([{"params": [ours]}], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="original"),
    )
    for step in range(6):
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = random(*shape, seed=step + 1)
            optimiser.step()
    moved = (theirs - random(*shape)).norm()
    assert (ours - theirs).norm() < 0.02 * moved


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (CONFIG.model, {"image.blocks", "text.blocks"}),
        (replace(CONFIG.model, text_tower="cbow"), {"image.blocks", "text.mlp"}),
        (replace(CONFIG.model, image_tower="resnet"), {"image.stages", "text.blocks"}),
        (replace(CONFIG.model, image_tower="vit", image_width=16, image_heads=2), {"image.blocks", "text.blocks"}),
    ],
)
def test_only_matrices_between_the_first_and_the_last_layer_are_its(model, parts):
    config = replace(CONFIG, data=replace(CONFIG.data, image_size=32), model=model)
    network = build_model(config, vocab_size=40, seed=0)
    hidden = {name for name, p in network.named_parameters() if is_hidden_matrix(name, p)}
    assert {".".join(name.split(".")[:2]) for name in hidden} == parts
    groups = make_optimiser(network, config).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert {id(p) for p in groups[-1]["params"]} == {id(p) for name, p in network.named_parameters() if name in hidden}
    assert len(make_optimiser(network, replace(config, train=TrainConfig())).param_groups) == 2


def test_rates_go_together_and_the_decay_is_that_of_the_others():
    config = replace(CONFIG, train=replace(CONFIG.train, lr=1e-3, muon_lr=0.05, weight_decay=0.1))
    model = build_model(config, vocab_size=40, seed=0)
    optimiser = make_optimiser(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    update(model, optimiser, clip_norm=1.0, rate=5e-4)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([5e-4, 5e-4, 0.025])
    for name, parameter in model.named_parameters():
        share = 1 - 5e-4 * 0.1 if parameter.ndim >= 2 and not name.endswith("position") else 1
        torch.testing.assert_close(parameter.detach(), before[name] * share, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 12)


def test_a_run_learns(data, tmp_path):
    train(data, tmp_path / "run", config=CONFIG, epochs=20)
    losses = [line["loss"] for line in lines(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(data, tmp_path, stop_after):
    train(data, tmp_path / "whole", config=CONFIG, samples=40)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=CONFIG, samples=40, watch=StopAfter(stop_after))
    train(data, tmp_path / "parts", config=CONFIG, samples=40)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)
