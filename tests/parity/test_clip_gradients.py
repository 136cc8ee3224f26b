"""The closed form of CLIP's gradients, and of a classifier's, is what autograd computes from the loss."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from coreclip.randomness import permutation
from coreclip.selection import (
    FactoredGradients,
    Features,
    clip_error_norms,
    clip_factored_gradients,
    clip_gradients,
    grand_proxy,
)
from coreclip.selection.gradients import _STREAM_BANK


def loss_of_pair(i, image, text, images, texts, members, temperature):
    """Half the cross-entropy of the image among the texts plus half that of the text among the images; itself comes first."""
    others = [j for j in members if j != i]
    u, t = normalize(image, dim=0), normalize(text, dim=0)
    among_texts = torch.cat([(u @ t)[None], texts[others] @ u]) / temperature
    among_images = torch.cat([(u @ t)[None], images[others] @ t]) / temperature
    first = torch.tensor(0)
    return (cross_entropy(among_texts, first) + cross_entropy(among_images, first)) / 2


@pytest.mark.parametrize(("bank", "temperature"), [(7, 0.07), (12, 0.5), (100, 1.0)])
def test_gradients_agree_with_autograd(bank, temperature):
    rng = np.random.default_rng(0)
    features = Features.from_arrays(rng.normal(size=(12, 5)), rng.normal(size=(12, 5)))
    ours = clip_gradients(features, temperature=temperature, bank=bank, seed=3)
    images, texts = (torch.from_numpy(features.vectors(name)).double() for name in ("image", "text"))
    members = permutation(12, 3, stream=_STREAM_BANK)[:bank].tolist()
    for i in range(12):
        image, text = images[i].clone().requires_grad_(), texts[i].clone().requires_grad_()
        loss_of_pair(i, image, text, images, texts, members, temperature).backward()
        np.testing.assert_allclose(ours[0][i], image.grad, atol=2e-5)
        np.testing.assert_allclose(ours[1][i], text.grad, atol=2e-5)


def projected(n=12, d=5, seed=0):
    """Penultimate features of images and texts, two projections, and the features that these make."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 7)), rng.normal(size=(n, 4))
    projections = rng.normal(size=(d, 7)), rng.normal(size=(d, 4))
    embeddings = [h @ w.T for h, w in zip(hidden, projections, strict=True)]
    lengths = [np.linalg.norm(e, axis=1) for e in embeddings]
    return hidden, projections, Features.from_arrays(*embeddings), lengths


def test_the_kernel_of_the_projections_gradients_agrees_with_autograd():
    hidden, projections, features, lengths = projected()
    ours = clip_factored_gradients(
        features,
        image_hidden=hidden[0],
        text_hidden=hidden[1],
        image_lengths=lengths[0],
        text_lengths=lengths[1],
        temperature=0.2,
        bank=7,
        seed=3,
    )
    images, texts = (torch.from_numpy(features.vectors(name)).double() for name in ("image", "text"))
    members = permutation(12, 3, stream=_STREAM_BANK)[:7].tolist()
    gradients = []
    for i in range(12):
        weights = [torch.from_numpy(w).clone().requires_grad_() for w in projections]
        image, text = (w @ torch.from_numpy(h[i]) for w, h in zip(weights, hidden, strict=True))
        loss_of_pair(i, image, text, images, texts, members, 0.2).backward()
        gradients.append(np.concatenate([w.grad.numpy().ravel() for w in weights]))
    kernel = np.array(gradients) @ np.array(gradients).T
    np.testing.assert_allclose(ours.dot(slice(None), slice(None)), kernel, atol=2e-5 * np.abs(kernel).max())
    np.testing.assert_allclose(ours.squared_norms(), np.diag(kernel), rtol=1e-4)
    np.testing.assert_allclose(ours.sum_dot(), kernel.sum(axis=1), atol=1e-4 * np.abs(kernel).max())


def test_without_hidden_features_they_are_those_of_the_embeddings():
    features = projected()[2]
    gradients = np.hstack(clip_gradients(features, bank=7)).astype(np.float64)
    ours = clip_factored_gradients(features, bank=7)
    np.testing.assert_allclose(ours.dot(slice(None), slice(None)), gradients @ gradients.T, rtol=1e-9)


def test_the_longest_gradients_come_first():
    features = projected(n=40)[2]
    norms = clip_error_norms(features, temperature=0.2, bank=7, seed=3)
    gradients = np.hstack(clip_gradients(features, temperature=0.2, bank=7, seed=3))
    np.testing.assert_allclose(norms, np.linalg.norm(gradients.astype(np.float64), axis=1), rtol=1e-6)
    subset = grand_proxy(features, 10, temperature=0.2, bank=7, seed=3)
    assert subset.indices.tolist() == np.argsort(-norms, kind="stable")[:10].tolist()
    assert subset.gains.tolist() == norms[subset.indices].tolist()
    assert subset.parameters == {"temperature": 0.2, "bank": 7}


@pytest.mark.parametrize("bias", [True, False])
def test_a_classifiers_factored_gradients_agree_with_autograd(bias):
    rng = np.random.default_rng(0)
    hidden, labels = rng.normal(size=(9, 6)), rng.integers(0, 4, 9)
    layer = torch.nn.Linear(6, 4, bias=bias).double()
    probabilities = torch.softmax(layer(torch.from_numpy(hidden)), dim=1).detach().numpy()
    gradients = []
    for i in range(9):
        layer.zero_grad()
        cross_entropy(layer(torch.from_numpy(hidden[i])), torch.tensor(labels[i])).backward()
        gradients.append(np.concatenate([parameter.grad.numpy().ravel() for parameter in layer.parameters()]))
    ours = FactoredGradients(probabilities - np.eye(4)[labels], hidden, bias=bias)
    np.testing.assert_allclose(ours.dot(np.arange(9), np.arange(9)), np.array(gradients) @ np.array(gradients).T)
