"""What holds for every objective: a weight is a number of copies, parts add up to the whole, and the signals are what was decided."""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreclip.training.class_softmax import classification_loss
from coreclip.training.distillation import affinity_loss
from coreclip.training.loss import Pairs, equal_pairs, pairs_of, scaled, softmax_loss
from coreclip.training.sigmoid import sigmoid_loss, sigmoid_pairs_loss

counts = st.lists(st.integers(0, 4), min_size=2, max_size=7).filter(any)


def unit(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def captions(b: int, n: int, seed: int) -> Tensor:
    return torch.randint(n, (b, 1), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(weights=counts, seed=st.integers(0, 10**6), n_captions=st.integers(1, 7))
def test_sigmoid_weights_give_the_gradient_of_repeated_rows(weights, seed, n_captions):
    b = len(weights)
    features, tokens = unit(2, b, 5, seed=seed), captions(b, n_captions, seed)
    copies = torch.repeat_interleave(torch.arange(b), torch.tensor(weights))
    found = []
    for rows, weight in ((torch.arange(b), torch.tensor(weights)), (copies, None)):
        images, texts = leaves(*features)
        scalars = numbers(1.5, -2.0)
        same = equal_pairs(tokens[rows])
        result = sigmoid_loss(images[rows], texts[rows], *scalars, same=same, weight=weight)
        found.append([result.loss.detach(), *torch.autograd.grad(result.loss, [images, texts, *scalars])])
    for weighted, repeated in zip(*found, strict=True):
        torch.testing.assert_close(weighted, repeated, atol=1e-12, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(weights=counts, seed=st.integers(0, 10**6), n_captions=st.integers(1, 7))
def test_copies_do_not_change_a_pairs_sigmoid_signals(weights, seed, n_captions):
    b = len(weights)
    (images, texts), tokens = unit(2, b, 5, seed=seed), captions(b, n_captions, seed)
    rows = torch.repeat_interleave(torch.arange(b), torch.tensor(weights))
    scale, bias = torch.tensor(1.5), torch.tensor(-1.0)
    weighted = sigmoid_loss(images, texts, scale, bias, same=equal_pairs(tokens), weight=torch.tensor(weights))
    copied = sigmoid_loss(images[rows], texts[rows], scale, bias, same=equal_pairs(tokens[rows]))
    for name, values in copied.signals().items():
        if name != "el2n":  # is the norm over the batch
            torch.testing.assert_close(weighted.signals()[name][rows], values, equal_nan=True)
    assert weighted.signals()["entropy"][torch.tensor(weights) == 0].isnan().all()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), b=st.integers(2, 8), scale=st.floats(-2, 4.6), bias=st.floats(-8, 2))
def test_the_sigmoid_signals_are_its_decisions(seed, b, scale, bias):
    images, texts = unit(2, b, 5, seed=seed)
    result = sigmoid_loss(images, texts, torch.tensor(scale), torch.tensor(bias))
    p = scipy.special.expit(np.exp(np.float32(scale)) * (images @ texts.T).numpy() + np.float32(bias))
    both = p, p.T
    top = [np.sort(rows, axis=1)[:, ::-1] for rows in both]
    expected = {
        "confidence": [rows[:, 0] for rows in top],
        "probability_margin": [rows[:, 0] - rows[:, 1] for rows in top],
        "entropy": [(scipy.special.entr(rows) + scipy.special.entr(1 - rows)).sum(1) for rows in both],
        "el2n": [np.linalg.norm(rows - np.eye(b), axis=1) for rows in both],
    }
    signals = result.signals()
    for name, parts in expected.items():
        np.testing.assert_allclose(signals[name], np.mean(parts, axis=0), atol=1e-6)
    torch.testing.assert_close(signals["loss"].mean(), result.loss)


@settings(deadline=None, max_examples=40)
@given(weights=st.lists(st.integers(1, 4), min_size=1, max_size=7), seed=st.integers(0, 10**6), c=st.integers(1, 6))
def test_classification_weights_give_the_gradient_of_repeated_rows(weights, seed, c):
    b = len(weights)
    images, classes = unit(b, 5, seed=seed), unit(c, 5, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    labels, group = (torch.randint(c, (n,), generator=generator) for n in (b, c))
    copies = torch.repeat_interleave(torch.arange(b), torch.tensor(weights))
    found = []
    for rows, weight in ((torch.arange(b), torch.tensor(weights)), (copies, None)):
        parts = leaves(images, classes)
        [scale] = numbers(1.5)
        result = classification_loss(parts[0][rows], parts[1], scale, labels[rows], weight=weight, group=group)
        found.append([result.loss.detach(), result.floor, *torch.autograd.grad(result.loss, [*parts, scale])])
        assert result.loss >= result.floor - 1e-12
    for weighted, repeated in zip(*found, strict=True):
        torch.testing.assert_close(weighted, repeated, atol=1e-12, rtol=1e-12)


def distilled(images: Tensor, texts: Tensor, scale: Tensor, teacher: Tensor, pairs: Pairs) -> Tensor:
    return affinity_loss(images, texts, scale, teacher[0], teacher[1], 7.0, pairs)


@settings(deadline=None, max_examples=40)
@given(weights=st.lists(st.integers(1, 4), min_size=2, max_size=6), seed=st.integers(0, 10**6))
def test_distillation_weights_give_the_gradient_of_repeated_rows(weights, seed):
    b = len(weights)
    features, teacher = unit(2, b, 5, seed=seed), unit(2, b, 3, seed=seed + 1)
    copies = torch.repeat_interleave(torch.arange(b), torch.tensor(weights))
    found = []
    for rows, weight in ((torch.arange(b), torch.tensor(weights)), (copies, torch.ones(len(copies)))):
        parts = leaves(*features)
        [scale] = numbers(1.5)
        pairs = scaled(pairs_of(rows.unsqueeze(1), None, weight.double()))
        loss = distilled(parts[0][rows], parts[1][rows], scale, teacher[:, rows], pairs)
        assert loss >= 0
        found.append([loss.detach(), *torch.autograd.grad(loss, [*parts, scale])])
    for weighted, repeated in zip(*found, strict=True):
        torch.testing.assert_close(weighted, repeated, atol=1e-12, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    seed=st.integers(0, 10**6),
    n_captions=st.integers(1, 9),
    labelled=st.booleans(),
    n_pairs=st.integers(1, 12),
    objective=st.sampled_from(["softmax", "sigmoid", "distillation"]),
)
def test_the_parts_of_all_rows_add_up_to_the_whole(sizes, seed, n_captions, labelled, n_pairs, objective):
    m = sum(sizes)
    features, teacher = unit(2, m, 5, seed=seed), unit(2, m, 3, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    tokens = captions(m, n_captions, seed)
    labels = torch.randint(-1, 3, (m,), generator=generator) if labelled else None
    weight = torch.rand(m, generator=generator, dtype=torch.float64) + 0.1
    index = torch.randint(n_pairs, (m,), generator=generator).numpy()

    def run(own: slice | None):
        parts = leaves(*features)
        scalars = numbers(1.5, -2.0)
        pairs = scaled(pairs_of(tokens, labels, weight, own, index=index))
        if objective == "distillation":
            loss = distilled(*parts, scalars[0], teacher, pairs)
            signals = {}
        else:
            used = scalars[:1] if objective == "softmax" else scalars
            result = (softmax_loss if objective == "softmax" else sigmoid_pairs_loss)(*parts, *used, pairs)
            loss, signals = result.loss, result.signals() | {"floor": result.floor}
        gradients = torch.autograd.grad(loss, [*parts, *scalars], allow_unused=True, materialize_grads=True)
        return [loss.detach(), signals.pop("floor", torch.zeros(())), *gradients], signals

    whole, signals = run(None)
    stops = np.cumsum(sizes)
    parts = [run(slice(int(stop) - size, int(stop))) for stop, size in zip(stops, sizes, strict=True)]
    for one, *others in zip(whole, *(values for values, _ in parts), strict=True):
        torch.testing.assert_close(sum(others), one, atol=1e-12, rtol=1e-12)
    for name, values in signals.items():
        torch.testing.assert_close(torch.cat([found[name] for _, found in parts]), values, equal_nan=True)


@pytest.mark.parametrize("b", [2, 5])
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(b):
    features = unit(2, b, 5, seed=0)
    pairs = scaled(pairs_of(torch.arange(b).unsqueeze(1), None, torch.ones(b, dtype=torch.float64)))
    images, texts = leaves(*features)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = affinity_loss(images, texts, scale, *features, scale.exp().item(), pairs)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    for gradient in torch.autograd.grad(loss, [images, texts, scale]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_the_distillations_gradient_is_the_difference_of_the_softmaxes():
    images, texts = leaves(*unit(2, 4, 5, seed=0))
    teacher = unit(2, 4, 3, seed=1)
    pairs = scaled(pairs_of(torch.arange(4).unsqueeze(1), None, torch.ones(4, dtype=torch.float64)))
    scale = torch.tensor(1.0, dtype=torch.float64)
    affinity_loss(images, texts, scale, *teacher, 7.0, pairs).backward()
    with torch.no_grad():
        student, target = scale.exp() * images @ texts.T, 7 * teacher[0] @ teacher[1].T
        by_logit = (student.softmax(1) - target.softmax(1) + student.softmax(0) - target.softmax(0)) / 8
        torch.testing.assert_close(images.grad, scale.exp() * by_logit @ texts)
        torch.testing.assert_close(texts.grad, scale.exp() * by_logit.T @ images)
