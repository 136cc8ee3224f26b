"""A batch that goes through the towers in pieces has the gradient of the whole batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coreclip.config import Config, DataConfig, DistillConfig, JestConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.training import embed, train
from coreclip.training.large_batch import Towers
from coreclip.training.model import END, Clip, build_model, fit_to_training
from coreclip.training.objectives import make_objective
from coreclip.training.steps import Rows
from coreclip.training.text_towers import caption_lengths
from tests.helpers import CLASSES, make_dataset
from tests.unit.test_train import Stop, StopAfter, lines, weights

pytestmark = pytest.mark.usefixtures("one_thread")

VIT = Config(
    data=DataConfig(image_size=16, batch_size=10, workers=1),
    model=ModelConfig(
        image_tower="vit", image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16, patch_size=8
    ),
    train=TrainConfig(precision="fp32", lr=5e-3, checkpoint_seconds=1e-6),
)
CNN = replace(VIT, model=replace(VIT.model, image_tower="cnn"))


class DoubleClip(Clip):
    """The same towers in float64 to the end, where a Clip's features are float32."""

    def encode_image(self, images):
        return F.normalize(self.image_projection(self.image(self.pixels(images))), dim=1)

    def encode_text(self, tokens, lengths=None):
        return F.normalize(self.text_projection(self.text_hidden(tokens, lengths)), dim=1)


class DroppingClip(DoubleClip):
    """With dropout before the projections' outputs are normalised."""

    def encode_image(self, images):
        return F.normalize(F.dropout(super().encode_image(images), 0.3), dim=1)

    def encode_text(self, tokens, lengths=None):
        return F.normalize(F.dropout(super().encode_text(tokens, lengths), 0.3), dim=1)


def double_model(kind, config, vocab_size):
    torch.manual_seed(0)
    model = kind(config.model, image_size=config.data.image_size, vocab_size=vocab_size)
    fit_to_training(model, config)
    return model.double().train()


def make_rows(data, n=10):
    """Pairs of which two say the same, with weights."""
    texts = [data.captions(i)[0] for i in range(n)]
    texts[3] = texts[1]
    generator = torch.Generator().manual_seed(5)
    tokens = torch.from_numpy(data.tokenizer().encode(texts, 16))
    return Rows(
        images=torch.randint(0, 255, (n, 3, 16, 16), dtype=torch.uint8, generator=generator),
        tokens=tokens,
        lengths=caption_lengths(tokens, END),
        weight=torch.rand(n, generator=generator) + 0.2,
        labels=None if data.labels is None else torch.tensor(data.labels)[:n],
        index=np.arange(n),
        share=1.0,
        broken=[],
    )


def with_settings(config, **changes):
    return replace(config, train=replace(config.train, **changes))


def gradients(model, data, config, rows, *, seed=1):
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    result, backward = make_objective(data, config, data.tokenizer()).forward(model, rows, bf16=False, step=4)
    backward()
    return result, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 12, labels=CLASSES)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train(data, folder / "run", config=VIT, epochs=2)
    embed(data, folder / "features", model=folder / "run")
    return folder / "features"


def repeated(rows, counts):
    """Each row as often as its count says, with a weight of 1."""
    at = np.repeat(np.arange(len(counts)), counts)
    names = ("images", "tokens", "lengths", "labels", "index")
    return replace(rows, weight=torch.ones(len(at)), **{name: getattr(rows, name)[at] for name in names})


@pytest.mark.parametrize(
    ("objective", "taught"),
    [("softmax", False), ("softmax", True), ("classification", False), ("classification", True), ("sigmoid", False)],
)
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_a_step_on_weighted_pairs_is_one_on_repeated_pairs(data, teacher, objective, taught, micro_batch):
    config = with_settings(VIT, objective=objective, micro_batch=micro_batch)
    if taught:
        config = replace(config, distill=DistillConfig(features=str(teacher)))
    counts = np.array([1, 3, 2, 1, 4, 1])
    rows = replace(make_rows(data, 6), weight=torch.from_numpy(counts).float())
    model = double_model(DoubleClip, config, data.tokenizer().vocab_size)
    _, found = gradients(model, data, config, rows)
    _, expected = gradients(model, data, config, repeated(rows, counts))
    assert found["logit_scale"].abs() > 1e-6
    # Twice the batch has twice the negatives of a sigmoid loss; a run's weights are brought to a mean of 1.
    larger = counts.mean() if objective == "sigmoid" else 1.0
    for name, gradient in expected.items():
        torch.testing.assert_close(larger * found[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid", "classification"])
@pytest.mark.parametrize("taught", [False, True])
def test_pieces_have_the_gradient_of_the_whole_batch(data, teacher, objective, taught):
    config = with_settings(VIT, objective=objective)
    if taught:
        config = replace(config, distill=DistillConfig(features=str(teacher)))
    model, rows = double_model(DoubleClip, config, data.tokenizer().vocab_size), make_rows(data)
    whole, expected = gradients(model, data, config, rows)
    for size in (4, 7):
        parts, found = gradients(model, data, with_settings(config, micro_batch=size), rows)
        torch.testing.assert_close(parts.loss, whole.loss.detach(), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(parts.floor, whole.floor)
        assert set(found) == set(expected)
        assert "logit_scale" in found
        for name in found:
            torch.testing.assert_close(found[name], expected[name], atol=1e-10, rtol=1e-10)
        for name, values in parts.signals().items():
            torch.testing.assert_close(values, whole.signals()[name], equal_nan=True)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_stays_as_it_is_in_pieces_too(data, tower):
    rows, found = make_rows(data), []
    for size in (0, 4):
        model = double_model(DoubleClip, VIT, data.tokenizer().vocab_size)
        model.freeze(tower)
        config = with_settings(VIT, micro_batch=size)
        _, backward = make_objective(data, config, data.tokenizer()).forward(model, rows, bf16=False)
        backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in found[0].items():
        if name.startswith(tower):
            assert found[1][name] is None
        else:
            torch.testing.assert_close(found[1][name], expected, atol=1e-10, rtol=1e-10)


def test_randomness_is_drawn_once():
    """Each piece is dropped from in the second pass as in the first, and later draws are not moved by the second."""
    config = with_settings(VIT, micro_batch=4)
    model = double_model(DroppingClip, config, 300)
    tokens = torch.randint(4, 300, (10, 16), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    towers = Towers(model, {"texts": (model.encode_text, (tokens,))}, 4, 1.0, False)
    seen = towers.features()["texts"]
    after_first = torch.get_rng_state()
    towers.backward({"texts": torch.ones_like(seen)})
    assert torch.equal(torch.get_rng_state(), after_first)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    again = torch.cat([model.encode_text(part) for part in tokens.tensor_split(3)])
    torch.testing.assert_close(again.detach(), seen)
    again.sum().backward()
    assert found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, atol=1e-10, rtol=1e-10)


def test_batch_normalisation_sees_pieces_and_its_statistics_move_once(data):
    """The gradient is exact for what was computed, each piece by its own statistics."""
    config = with_settings(CNN, micro_batch=5)
    model, reference = (double_model(DoubleClip, config, data.tokenizer().vocab_size) for _ in range(2))
    rows = make_rows(data)
    parts, found = gradients(model, data, config, rows)

    halves = [slice(0, 5), slice(5, 10)]
    norms = [m for m in reference.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.1 / 2
    images = torch.cat([reference.encode_image(rows.images[half]) for half in halves])
    texts = reference.encode_text(rows.tokens)
    objective = make_objective(data, config, data.tokenizer())
    whole = objective._loss(reference, {"images": images, "texts": texts}, rows, [10])
    whole.loss.backward()
    torch.testing.assert_close(parts.loss, whole.loss.detach())
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-10, rtol=1e-10)
    for name, tensor in reference.state_dict().items():  # the batches that were counted, too
        torch.testing.assert_close(model.state_dict()[name], tensor)


@pytest.mark.parametrize("config", [VIT, CNN], ids=["vit", "cnn"])
def test_bf16_is_the_same_in_both_passes(data, config):
    """Pieces under autocast have the gradient of the same pieces with their graphs kept."""
    rows, halves = make_rows(data), [slice(0, 5), slice(5, 10)]
    model, reference = (build_model(config, vocab_size=data.tokenizer().vocab_size, seed=0).train() for _ in range(2))
    objective = make_objective(data, with_settings(config, micro_batch=5), data.tokenizer())
    parts, backward = objective.forward(model, rows, bf16=True)
    backward()
    features = {"images": [], "texts": []}
    for half in halves:
        with torch.autocast("cpu", torch.bfloat16):
            features["images"].append(reference.encode_image(rows.images[half]))
            features["texts"].append(reference.encode_text(rows.tokens[half]))
    whole = objective._loss(reference, {name: torch.cat(found) for name, found in features.items()}, rows, [10])
    whole.loss.backward()
    torch.testing.assert_close(parts.loss, whole.loss.detach())
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)
    with torch.no_grad():  # and not that of float32
        assert not torch.equal(torch.cat(features["images"]), reference.encode_image(rows.images))


def test_a_run_in_pieces_learns_what_the_run_of_whole_batches_learns(data, tmp_path):
    whole = train(data, tmp_path / "whole", config=VIT, samples=48)
    parts = train(data, tmp_path / "parts", config=with_settings(VIT, micro_batch=4), samples=48)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-4)
    for name in ("loss", "margin", "entropy"):
        a, b = (np.load(tmp_path / run / "signals" / f"{name}.npy") for run in ("whole", "parts"))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_a_run_in_pieces_with_batch_normalisation_and_jest_goes_on_bit_for_bit(data, tmp_path):
    train(data, tmp_path / "reference", config=CNN, samples=10)
    config = replace(
        with_settings(CNN, micro_batch=4),
        data=replace(CNN.data, batch_size=6),
        jest=JestConfig(keep=0.5, reference=str(tmp_path / "reference")),
    )
    train(data, tmp_path / "whole", config=config, samples=24)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, samples=24, watch=StopAfter(2))
    train(data, tmp_path / "parts", config=config, samples=24)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert np.isfinite(lines(tmp_path / "parts")[-1]["loss"])


def test_pieces_too_small_are_refused():
    with pytest.raises(CoreclipError, match=r"train.micro_batch = 3 is not allowed: 0 \(the whole batch\) or 4"):
        TrainConfig(micro_batch=3)
