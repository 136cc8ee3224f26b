"""A weight is a number of copies; the signals are what the softmax says."""

import numpy as np
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.training.loss import contrastive_loss, equal_pairs


def batch(b: int, seed: int, n_captions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.nn.functional.normalize(torch.randn(2, b, 5, generator=generator, dtype=torch.float64), dim=2)
    tokens = torch.randint(n_captions, (b, 1), generator=generator)
    return images, texts, tokens


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.integers(0, 4), min_size=2, max_size=7).filter(any),
    seed=st.integers(0, 10**6),
    n_captions=st.integers(1, 7),
)
def test_integer_weights_give_the_gradient_of_repeated_rows(weights, seed, n_captions):
    b = len(weights)
    images, texts, tokens = batch(b, seed, n_captions)
    # A copy says the same as its original even where the caption groups would tell them apart.
    copies = torch.repeat_interleave(torch.arange(b), torch.tensor(weights))
    gradients = []
    for rows, weight in ((torch.arange(b), torch.tensor(weights)), (copies, None)):
        leaves = [tensor.clone().requires_grad_() for tensor in (images, texts)]
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        result = contrastive_loss(
            leaves[0][rows], leaves[1][rows], scale, same=equal_pairs(tokens[rows]), weight=weight
        )
        gradients.append(torch.autograd.grad(result.loss, [*leaves, scale]))
    for weighted, repeated in zip(*gradients, strict=True):
        torch.testing.assert_close(weighted, repeated, atol=1e-12, rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), b=st.integers(2, 10), n_captions=st.integers(1, 10), scale=st.floats(-2, 4.6))
def test_no_loss_is_below_the_floor(seed, b, n_captions, scale):
    images, texts, tokens = batch(b, seed, n_captions)
    weight = torch.rand(b, generator=torch.Generator().manual_seed(seed)) + 0.1
    result = contrastive_loss(images, texts, torch.tensor(scale), same=equal_pairs(tokens), weight=weight)
    assert result.loss >= result.floor - 1e-6


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), b=st.integers(2, 10))
def test_the_order_of_the_batch_does_not_matter(seed, b):
    images, texts, tokens = batch(b, seed, 3)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    scale = torch.tensor(1.5)
    straight = contrastive_loss(images, texts, scale, same=equal_pairs(tokens))
    shuffled = contrastive_loss(images[order], texts[order], scale, same=equal_pairs(tokens[order]))
    torch.testing.assert_close(straight.sample_loss[order], shuffled.sample_loss)
    torch.testing.assert_close(straight.margin[order], shuffled.margin, equal_nan=True)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), b=st.integers(2, 10), scale=st.floats(-2, 4.6))
def test_the_signals_are_the_softmaxes_of_both_directions(seed, b, scale):
    images, texts, _ = batch(b, seed, 1)
    signals = contrastive_loss(images, texts, torch.tensor(scale)).signals()
    logits = np.exp(scale) * (images @ texts.T).numpy()
    both = [scipy.special.softmax(part, axis=1) for part in (logits, logits.T)]
    top = [np.sort(p, axis=1)[:, ::-1] for p in both]
    expected = {
        "confidence": [p[:, 0] for p in top],
        "probability_margin": [p[:, 0] - p[:, 1] for p in top],
        "entropy": [scipy.stats.entropy(p, axis=1) for p in both],
        "el2n": [np.linalg.norm(p - np.eye(b), axis=1) for p in both],
    }
    for name, parts in expected.items():
        np.testing.assert_allclose(signals[name], np.mean(parts, axis=0), atol=1e-5)
    torch.testing.assert_close(signals["loss"], contrastive_loss(images, texts, torch.tensor(scale)).sample_loss)


@settings(deadline=None, max_examples=40)
@given(
    weights=st.lists(st.integers(0, 4), min_size=2, max_size=7).filter(any),
    seed=st.integers(0, 10**6),
    n_captions=st.integers(1, 7),
)
def test_copies_do_not_make_a_pair_uncertain(weights, seed, n_captions):
    images, texts, tokens = batch(len(weights), seed, n_captions)
    rows = torch.repeat_interleave(torch.arange(len(weights)), torch.tensor(weights))
    scale = torch.tensor(2.0)
    weighted = contrastive_loss(images, texts, scale, same=equal_pairs(tokens), weight=torch.tensor(weights)).signals()
    copied = contrastive_loss(images[rows], texts[rows], scale, same=equal_pairs(tokens[rows])).signals()
    for name in ("confidence", "entropy", "probability_margin", "margin"):
        torch.testing.assert_close(weighted[name][rows], copied[name], atol=1e-5, rtol=1e-5, equal_nan=True)
        assert weighted[name][torch.tensor(weights) == 0].isnan().all()
