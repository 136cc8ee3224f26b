"""The closed form of CLIP's gradients is what autograd computes from the loss."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from coreclip.randomness import permutation
from coreclip.selection import Features, clip_gradients
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
