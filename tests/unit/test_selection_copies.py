"""Copies of pictures, found by their pixels."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from coreclip.cli import run_command
from coreclip.errors import CoreclipError
from coreclip.pipeline import thumbnails
from coreclip.selection import Subset, copies, select
from coreclip.selection.lookalikes import describe
from tests.helpers import make_dataset


def pictures(n=40, side=96, seed=0):
    """Smooth random pictures, uint8 (n, side, side, 3), that leave room for other light."""
    grids = np.random.default_rng(seed).integers(40, 200, (n, 7, 7, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)) for grid in grids]
    )


def small(images):
    return np.stack([np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)) for image in images])


def changed(image, left, top, side, light=1.0):
    """Cut, scaled back, and lit otherwise."""
    cut = Image.fromarray(image).resize(
        image.shape[:2], Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return np.clip(np.asarray(cut) * light + 8, 0, 255).astype(np.uint8)


def run(images, k=None, **options):
    return copies({"thumbnail": small(images)}, k, **options)


@pytest.mark.parametrize("turn", [False, True])
def test_a_cut_and_brightened_copy_is_dropped_and_nothing_else(turn):
    images = pictures()
    cuts = [(2, 3, 90), (0, 0, 88), (8, 8, 88), (4, 0, 91), (0, 6, 90)]
    made = np.stack([changed(images[i], *cut, light=0.85 + 0.07 * i) for i, cut in enumerate(cuts)])
    order = np.arange(len(images) + len(made))[:: -1 if turn else 1]
    subset = run(np.concatenate([images, made])[order], n_clusters=3, probes=3)
    # The first of the two stays, whichever it is.
    expected = set(range(40)) if not turn else set(range(40, 45)) | set(range(5, 40))
    assert set(order[subset.indices].tolist()) == expected


def described(crops):
    """The definition, at leisure: square crops (b, side, side, 3), averaged to 8 x 8, transformed, weighted, of unit norm."""
    b, side = crops.shape[:2]
    averaged = crops.repeat(8, axis=1).repeat(8, axis=2).reshape(b, 8, side, 8, side, 3).mean(axis=(2, 4))
    opponent = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
    frequencies = dctn(np.einsum("oc,byxc->boyx", opponent, averaged), axes=(2, 3), norm="ortho")
    frequencies *= np.hypot(np.arange(8)[:, None], np.arange(8)) * np.array([1, 2, 2])[:, None, None]
    flat = frequencies.reshape(b, -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_descriptions_and_likeness_are_those_of_the_definition():
    images = small(pictures(12))
    views = describe(images)
    np.testing.assert_allclose(views[:, 0], described(images), atol=1e-5)
    for view, (top, left) in enumerate(itertools.product(range(3), range(3)), start=1):
        np.testing.assert_allclose(views[:, view], described(images[:, top : top + 22, left : left + 22]), atol=1e-5)

    subset = copies({"thumbnail": images}, 12, n_clusters=3, probes=3)
    novel = np.empty(12)
    novel[subset.indices] = subset.gains
    for i in range(1, 12):
        likeness = max(max((views[i] @ views[j, 0]).max(), (views[j] @ views[i, 0]).max()) for j in range(i))
        assert novel[i] == pytest.approx(1 - likeness, abs=1e-5)
    assert novel[0] == 2


def test_light_and_contrast_do_not_count():
    image = small(pictures(1))[0]
    darker = (image * 0.5 + 30).round().astype(np.uint8)
    assert describe(image[None])[0, 0] @ describe(darker[None])[0, 0] > 0.999


def test_pictures_of_one_colour_are_like_none():
    plain = np.full((5, 24, 24, 3), 7, np.uint8)
    plain[3:] = (200, 10, 10)
    subset = copies({"thumbnail": plain}, n_clusters=1)
    assert subset.indices.tolist() == [0, 1, 2, 3, 4]
    with_others = copies({"thumbnail": np.concatenate([plain, small(pictures(3))])}, n_clusters=1)
    assert with_others.k == 8


def test_the_first_of_equal_pictures_stays():
    images = np.repeat(pictures(3), 3, axis=0)
    assert sorted(run(images, n_clusters=2, probes=2).indices.tolist()) == [0, 3, 6]


def test_it_is_the_best_pair_that_stays_after_a_score():
    images = small(pictures(2))[[0, 0, 1, 1]]
    signals = {"grand": np.array([[1.0, 3.0, 2.0, 4.0]])}
    subset = select(None, 4, method="grand(k=4) | copies", signals=signals, metadata={"thumbnail": images})
    assert sorted(subset.indices.tolist()) == [1, 3]


def test_k_alone_leaves_exactly_k_and_a_prefix_is_what_a_larger_eps_leaves():
    images = np.concatenate([pictures(20), pictures(20)[:6]])
    subset = run(images, 15, n_clusters=3, probes=3)
    assert subset.k == 15
    assert (np.diff(subset.gains) <= 0).all()
    eps = subset.parameters["eps"]
    assert run(images, eps=eps, n_clusters=3, probes=3).indices.tolist() == subset.indices.tolist()
    assert run(images, 15, eps=0.1, n_clusters=3, probes=3).k == 15
    assert run(images, 25, eps=0.1, n_clusters=3, probes=3).k == 20


@pytest.mark.parametrize(
    ("metadata", "options", "message"),
    [
        ({}, {}, "copies compares small pictures and is given none"),
        ({"thumbnail": np.zeros((4, 24, 24, 3))}, {}, r"thumbnails are float64 \(4, 24, 24, 3\); they must be uint8"),
        ({"thumbnail": np.zeros((4, 32, 32, 3), np.uint8)}, {}, r"thumbnails are uint8 \(4, 32, 32, 3\)"),
        ({"thumbnail": np.zeros((0, 24, 24, 3), np.uint8)}, {}, r"thumbnails are uint8 \(0, 24, 24, 3\)"),
        (None, {"eps": 2.0}, r"eps = 2.0 is not allowed: 0 <= eps < 2 \(1 - cosine\); the default is 0.1"),
        (None, {"eps": float("nan")}, "eps = nan is not allowed"),
        (None, {"probes": 0}, "probes = 0 is not allowed: at least 1"),
        (None, {"n_clusters": 5}, "5 clusters of 4 pairs are not possible"),
        (None, {"k": 5}, "k = 5 of 4 pairs"),
    ],
)
def test_wrong_arguments_are_refused(metadata, options, message):
    with pytest.raises(CoreclipError, match=message):
        copies({"thumbnail": small(pictures(4))} if metadata is None else metadata, **options)


def test_metadata_of_another_number_of_pairs_are_refused():
    with pytest.raises(
        CoreclipError, match=r"metadata thumbnail have shape \(4, 24, 24, 3\); the first axis must be the 5"
    ):
        select(None, 5, method="copies", metadata={"thumbnail": small(pictures(4))})


def test_thumbnails_are_the_pictures_in_the_order_of_the_pairs(tmp_path):
    images = pictures(12)
    data = make_dataset(tmp_path / "data", 12, size=(96, 96), images={i: _jpeg(images[i]) for i in range(12)})
    found = thumbnails(data, workers=1)
    assert (found.dtype, found.shape) == (np.uint8, (12, 24, 24, 3))
    assert np.abs(found.astype(int) - small(images)).mean(axis=(1, 2, 3)).max() < 3
    assert thumbnails(data, size=16).shape == (12, 16, 16, 3)


def test_an_image_that_does_not_decode_is_named(tmp_path):
    data = make_dataset(tmp_path / "data", 4, size=(96, 96), images={2: b"\xff\xd8 no picture"})
    with pytest.raises(CoreclipError, match=r"the images of the pairs \[2\] of .* can't be decoded"):
        thumbnails(data)


def test_the_command_makes_the_small_pictures_itself(tmp_path, capsys):
    images = pictures(8)
    content = {i: _jpeg(images[i]) for i in range(8)} | {8: _jpeg(changed(images[3], 3, 3, 90))}
    make_dataset(tmp_path / "data", 9, size=(96, 96), images=content).close()
    out = tmp_path / "s.parquet"
    assert run_command(["select", str(tmp_path / "data"), str(out), "--method", "copies", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["k"] == 8
    assert sorted(Subset.load(out).indices.tolist()) == list(range(8))


def _jpeg(image):
    from coreclip.pipeline.scene_drawing import encode_jpeg

    return encode_jpeg(image, 90)
