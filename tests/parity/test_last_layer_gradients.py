"""Gradient norms, influence and variance of gradients from kept weights are what autograd makes of their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.pipeline import make_loader
from coreclip.selection.gradients import bank_members
from coreclip.training import checkpoint_signals, influence, train
from coreclip.training.store import load_kept
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=6, workers=1),
    model=ModelConfig(image_width=4, text_width=8, text_depth=1, heads=2, embed_dim=6, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3, checkpoints=3, signals=False),
)
BANK = 7


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = make_dataset(folder / "set", 12, labels=("cat", "dog", "boat"), copies={9: 2})
    other = make_dataset(folder / "other", 5, captions_per_pair=(1,), size=(40, 40))
    train(data, folder / "run", config=CONFIG, epochs=30)
    return data, other, folder / "run"


def models_of(run):
    return [(kept.learning_rate, model.double().requires_grad_()) for kept, model in load_kept(run, torch.device("cpu"))[0]]  # fmt: skip


def inputs_of(dataset, run):
    tokenizer = load_kept(run, torch.device("cpu"))[1]
    [batch] = make_loader(dataset, batch_size=100, image_size=16, train=False, tokenizer=tokenizer)
    return batch.images, batch.tokens


def flat_gradients(model, dataset, data, run, bank_inputs, members):
    """Each pair's loss against the bank, differentiated with respect to the two projections, one row each."""
    images, tokens = inputs_of(dataset, run)
    bank_images, bank_texts = model.encode_image(bank_inputs[0]).detach(), model.encode_text(bank_inputs[1]).detach()
    scale = model.logit_scale.exp().detach()
    weights = [model.image_projection.weight, model.text_projection.weight]
    rows = []
    for i in range(dataset.n):
        others = [
            k for k, j in enumerate(members)
            if data.captions(j)[0] != dataset.captions(i)[0] and not (dataset is data and data.labels[i] == data.labels[j])
        ]  # fmt: skip
        u, t = model.encode_image(images[i : i + 1])[0].double(), model.encode_text(tokens[i : i + 1])[0].double()
        among_texts = scale * torch.cat([(u @ t)[None], bank_texts[others].double() @ u])
        among_images = scale * torch.cat([(u @ t)[None], bank_images[others].double() @ t])
        first = torch.tensor(0)
        loss = (F.cross_entropy(among_texts, first) + F.cross_entropy(among_images, first)) / 2
        gradients = torch.autograd.grad(loss, weights)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows).numpy()


def all_gradients(trained, dataset):
    data, _, run = trained
    members = bank_members(data.n, BANK, 3)
    images, tokens = inputs_of(data, run)
    return [
        (rate, flat_gradients(model, dataset, data, run, (images[members], tokens[members]), members.tolist()))
        for rate, model in models_of(run)
    ]  # fmt: skip


def test_norms_and_self_influence_agree_with_autograd(trained):
    data, _, run = trained
    signals = checkpoint_signals(run, data, ["grand", "tracin"], bank=BANK, seed=3)
    expected = all_gradients(trained, data)
    assert signals["grand"].shape == (3, 12)
    assert {values.dtype for values in signals.values()} == {np.dtype(np.float32)}
    norms = np.stack([np.linalg.norm(gradients, axis=1) for _, gradients in expected])
    np.testing.assert_allclose(signals["grand"], norms, rtol=1e-3, atol=1e-5)
    tracin = sum(rate * (gradients**2).sum(1) for rate, gradients in expected)
    np.testing.assert_allclose(signals["tracin"], tracin, rtol=2e-3, atol=1e-8)


def test_influence_agrees_with_autograd(trained):
    data, other, run = trained
    ours = all_gradients(trained, data)
    for dataset, train_set in ((data, None), (other, data)):
        targets = [4, 1, 4]
        theirs = ours if dataset is data else all_gradients(trained, dataset)
        expected = sum(rate * a[targets] @ b.T for (rate, a), (_, b) in zip(theirs, ours, strict=True))
        values = influence(run, dataset, targets, train=train_set, bank=BANK, seed=3)
        np.testing.assert_allclose(values, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_variance_of_gradients_agrees_with_autograd(trained):
    data, _, run = trained
    images, tokens = inputs_of(data, run)
    maps = []
    for _, model in models_of(run):
        pixels = model.pixels(images).detach().requires_grad_()
        u = F.normalize(model.image_projection(model.image(pixels)), dim=1)
        logits = model.logit_scale.exp() * (u * model.encode_text(tokens)).sum(1)
        maps.append(torch.autograd.grad(logits.sum(), pixels)[0].numpy())
    spread = np.std(maps, axis=0).reshape(data.n, -1).mean(axis=1)
    expected = np.empty(data.n)
    for label in range(3):
        of_class = data.labels == label
        expected[of_class] = (spread[of_class] - spread[of_class].mean()) / spread[of_class].std()
    vog = checkpoint_signals(run, data, ["vog"])["vog"]
    assert vog.dtype == np.float32
    np.testing.assert_allclose(vog, expected, atol=5e-3)
