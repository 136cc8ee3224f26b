"""The contrastive loss on batches whose answer is known."""

import math

import numpy as np
import pytest
import torch

from coreclip.training.loss import contrastive_loss, equal_pairs, pairs_of


def features(b: int, d: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, b, d, generator=generator)
    images, texts = torch.nn.functional.normalize(pair, dim=2)
    return images, texts


SCALE = torch.tensor(math.log(1 / 0.07))


def test_without_duplicates_it_is_clips_loss():
    images, texts = features(6)
    logits = SCALE.exp() * images @ texts.T
    expected = (torch.nn.functional.cross_entropy(logits, torch.arange(6)) + torch.nn.functional.cross_entropy(logits.T, torch.arange(6))) / 2  # fmt: skip
    result = contrastive_loss(images, texts, SCALE)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.sample_loss.mean(), expected)
    assert result.floor == 0


def test_perfect_features_reach_the_floor_that_equal_captions_leave():
    # 8 pairs with 2 different captions: the best loss is ln 4, not 0.
    corners = torch.eye(2).repeat(4, 1)
    same = equal_pairs(torch.tensor([[1, 5, 2], [1, 6, 2]]).repeat(4, 1))
    result = contrastive_loss(corners, corners, torch.tensor(math.log(100.0)), same=same)
    assert result.floor == pytest.approx(math.log(4))
    assert result.loss == pytest.approx(math.log(4), abs=1e-4)
    assert result.correct.all()
    torch.testing.assert_close(result.margin, torch.ones(8))


def test_equal_captions_are_not_pushed_apart():
    # Two pairs that are the same in all: CLIP's targets would have them part, ours leave them where they are.
    images, texts = (row[:1].repeat(2, 1).requires_grad_() for row in features(1))
    result = contrastive_loss(images, texts, SCALE, same=torch.ones(2, 2, dtype=torch.bool))
    result.loss.backward()
    assert result.loss.item() == pytest.approx(result.floor.item(), abs=1e-6)
    for leaf in (images, texts):
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf), atol=1e-6, rtol=0)
    assert result.margin.isnan().all()  # no wrong text in the batch


def test_equal_pairs_by_caption_and_by_class():
    tokens = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 7, 2]])
    by_caption = equal_pairs(tokens)
    assert by_caption.sum() == 6
    assert by_caption[0, 2]
    labels = torch.tensor([0, 1, 2, 1])
    assert equal_pairs(tokens, labels)[1, 3]
    assert not equal_pairs(tokens, torch.tensor([-1, -1, 2, -1]))[1, 3]  # no class equals no other


def test_a_pair_that_is_drawn_twice_is_no_negative_of_itself():
    """With two of its captions: both fit the image of both copies."""
    tokens = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2], [1, 5, 2]])
    index = np.array([40, 3, 40, 8])
    same = equal_pairs(tokens, index=index)
    assert same.nonzero().tolist() == [[0, 0], [0, 2], [0, 3], [1, 1], [2, 0], [2, 2], [3, 0], [3, 3]]
    assert torch.equal(equal_pairs(tokens, index=np.arange(4)), equal_pairs(tokens))
    pairs = pairs_of(tokens, None, torch.ones(4), slice(2, 4), index=index)
    assert torch.equal(pairs.same, same[2:])
    assert pairs.first.tolist() == [0, 1, 0, 0]
    numbered = pairs_of(tokens, None, torch.ones(4), index=index, caption=torch.tensor([7, 2, 0, 7]))
    assert torch.equal(numbered.same, same)


def test_pairs_of_weight_zero_are_left_out_as_rows_and_as_columns():
    images, texts = features(5)
    kept = [0, 2, 4]
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0])
    images.requires_grad_()
    result = contrastive_loss(images, texts, SCALE, weight=weight)
    expected = contrastive_loss(images[kept], texts[kept], SCALE, weight=weight[kept])
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(result.sample_loss[kept], expected.sample_loss)
    assert result.sample_loss[[1, 3]].isnan().all()
    assert result.margin[[1, 3]].isnan().all()
    assert not result.correct[[1, 3]].any()
    result.loss.backward()
    assert (images.grad[[1, 3]] == 0).all()
    assert images.grad.isfinite().all()


def test_only_the_ratios_of_the_weights_matter():
    images, texts = features(4)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    a, b = (contrastive_loss(images, texts, SCALE, weight=factor * weight) for factor in (1, 10))
    torch.testing.assert_close(a.loss, b.loss)
    uniform = contrastive_loss(images, texts, SCALE, weight=torch.full((4,), 5.0))
    torch.testing.assert_close(uniform.loss, contrastive_loss(images, texts, SCALE).loss)


def test_a_batch_of_nothing_has_loss_zero():
    images, texts = features(3)
    result = contrastive_loss(images, texts, SCALE, weight=torch.zeros(3))
    assert result.loss == 0
    assert result.sample_loss.isnan().all()


def test_correct_and_margin_of_a_known_batch():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8], [0.8, 0.6]])  # crossed: each image is nearer to the other's text
    result = contrastive_loss(images, texts, SCALE)
    assert not result.correct.any()
    torch.testing.assert_close(result.margin, torch.tensor([-0.2, -0.2]))


def test_the_signals_of_a_batch_that_is_known():
    # Two equal pairs of one caption and one of another, far apart: nothing is uncertain, and nothing is wrong.
    corners = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    same = equal_pairs(torch.tensor([[5], [5], [6]]))
    sure = contrastive_loss(corners, corners, torch.tensor(math.log(100.0)), same=same).signals()
    for name, value in {"confidence": 1.0, "probability_margin": 1.0, "entropy": 0.0, "el2n": 0.0}.items():
        torch.testing.assert_close(sure[name], torch.full((3,), value), atol=1e-5, rtol=0)
    # Without the captions the two are each other's negatives.
    torn = contrastive_loss(corners, corners, torch.tensor(math.log(100.0))).signals()
    torch.testing.assert_close(torn["confidence"], torch.tensor([0.5, 0.5, 1.0]))
    torch.testing.assert_close(torn["entropy"], torch.tensor([math.log(2), math.log(2), 0.0]))
    torch.testing.assert_close(torn["el2n"], torch.tensor([0.5**0.5, 0.5**0.5, 0.0]))


@pytest.mark.parametrize("left", [0, 1])
def test_the_signals_of_one_pair_and_of_none(left):
    images, texts = features(3)
    signals = contrastive_loss(images, texts, SCALE, weight=torch.tensor([float(left), 0.0, 0.0])).signals()
    for name in ("confidence", "probability_margin", "entropy", "el2n"):
        assert signals[name].isfinite().tolist() == [bool(left), False, False]
    if left:
        assert (signals["confidence"][0], signals["entropy"][0], signals["el2n"][0]) == (1, 0, 0)
