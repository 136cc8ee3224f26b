"""Search, and the model that users load."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, convert, make_loader
from coreclip.pipeline.image_files import see_images
from coreclip.training import ClipModel, clip_model, embed, retrieval, search, search_all, train
from tests.helpers import BY_HEART, make_dataset, make_pixels

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = make_dataset(folder / "set", 12)
    train(data, folder / "run", config=BY_HEART, epochs=60)
    return data, folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path / "run"


def test_search_ranks_every_image(trained):
    data, run = trained
    hits = search(run, data, data.captions(4)[0], top=20)
    assert [hit["rank"] for hit in hits] == list(range(1, 13))
    assert sorted(hit["index"] for hit in hits) == list(range(12))
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert 4 in [hit["index"] for hit in hits[:3]]  # the run knows its twelve pairs by heart
    assert hits[0]["key"] == data.keys[hits[0]["index"]]
    assert hits[0]["captions"] == data.captions(hits[0]["index"])
    assert len(search(run, data, "a dog", top=2)) == 2


def test_search_refuses_an_empty_query_and_no_results(trained):
    data, run = trained
    with pytest.raises(CoreclipError, match="the query is empty"):
        search(run, data, "  ")
    with pytest.raises(CoreclipError, match="top = 0 is not allowed"):
        search(run, data, "a dog", top=0)


def test_several_texts_and_images_are_looked_for_at_once(trained, tmp_path):
    data, run = trained
    file = tmp_path / "seven.jpg"
    file.write_bytes(data.image_bytes(7))
    found = search_all(run, data, ["a dog", data.captions(4)[0]], images=[file], top=3)
    assert [(one["kind"], one["query"]) for one in found] == [
        ("text", "a dog"), ("text", data.captions(4)[0]), ("image", str(file)),
    ]  # fmt: skip
    alone = search(run, data, "a dog", top=3)
    assert [hit["index"] for hit in found[0]["results"]] == [hit["index"] for hit in alone]
    np.testing.assert_allclose(
        [hit["score"] for hit in found[0]["results"]], [hit["score"] for hit in alone], atol=1e-5
    )
    best = found[2]["results"][0]
    assert best["index"] == 7
    assert best["score"] == pytest.approx(1, abs=1e-5)


def test_stored_features_find_the_same(trained, tmp_path, monkeypatch):
    data, run = trained
    embed(data, tmp_path / "features", model=run)
    expected = search(run, data, data.captions(4)[0])
    monkeypatch.setattr(retrieval, "image_features", None)  # nothing is decoded
    monkeypatch.setattr(retrieval, "_ROWS", 5)
    found = search(run, data, data.captions(4)[0], features=tmp_path / "features")
    assert [hit["index"] for hit in found[:3]] == [hit["index"] for hit in expected[:3]]
    np.testing.assert_allclose([hit["score"] for hit in found], [hit["score"] for hit in expected], atol=2e-3)


def test_equal_pictures_come_by_their_number_across_chunks():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 9)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[[3, 17, 18, 40]] = rows[3]
    blocks = ((np.arange(i, i + 7), rows[i : i + 7]) for i in range(0, 49, 7))
    best = retrieval._best(blocks, rows[[3, 5]], 4)
    assert [index for _, index in best[0]] == [3, 17, 18, 40]
    assert best[1][0][1] == 5
    assert [index for _, index in best[1]] == np.argsort(-(rows[:49] @ rows[5]), kind="stable")[:4].tolist()


def test_search_refuses_no_query_and_an_image_that_is_none(trained, tmp_path):
    data, run = trained
    with pytest.raises(CoreclipError, match="nothing is asked for; give a text, or an image by --image"):
        search_all(run, data)
    (tmp_path / "no.jpg").write_text("a dog")
    with pytest.raises(CoreclipError, match=r"no.jpg can't be read: not an image of a known kind"):
        search_all(run, data, images=[tmp_path / "no.jpg"])


def test_an_image_file_has_the_features_of_the_pair_that_is_made_of_it(trained, tmp_path):
    """Through convert and the loader on one side, ClipModel on the other: strange files as well."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = make_pixels(3, 90, 61)
    alpha = np.dstack([pixels, np.linspace(0, 255, 90).astype(np.uint8)[None].repeat(61, 0)])
    Image.fromarray(pixels).save(folder / "plain.jpg", quality=92)
    Image.fromarray(pixels).save(folder / "progressive.jpg", progressive=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(alpha).save(folder / "alpha.png")
    Image.fromarray(pixels[:20, :20]).save(folder / "tiny.png")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels).quantize(16).save(folder / "palette.gif")
    Image.fromarray(pixels).save(folder / "web.webp")
    names = sorted(path.name for path in folder.iterdir())
    (folder / "captions.csv").write_text("file,caption\n" + "".join(f"{name},a {name} thing\n" for name in names))
    convert([folder], tmp_path / "set", workers=1)
    data = Dataset(tmp_path / "set")
    assert data.n == len(names) == 9
    model = ClipModel.load(trained[1])
    files = [folder / Path(str(key)).name for key in data.metadata("key")]
    files = [path if path.suffix else next(folder.glob(f"{path.name}.*")) for path in files]
    for batch in make_loader(data, batch_size=16, image_size=model.image_size, train=False, workers=1):
        assert batch.valid.all()
        seen = next(see_images(files, model.image_size))
        assert np.array_equal(seen.pixels, batch.images.permute(0, 2, 3, 1).numpy())
        expected = model.encode_image(batch.images)
        torch.testing.assert_close(model.encode_image(files), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(
            model.encode_image([path.read_bytes() for path in files]), expected, atol=1e-6, rtol=0
        )
    torch.testing.assert_close(model.similarity(files, ["a dog"]), expected @ model.encode_text(["a dog"]).T)


def test_pixels_in_a_list_are_as_those_of_a_batch(trained):
    model = ClipModel.load(trained[1])
    arrays = [make_pixels(1, 40, 64), make_pixels(2, 64, 40), make_pixels(3, 16, 16)]
    for array, row in zip(arrays, model.encode_image(arrays), strict=True):
        torch.testing.assert_close(model.encode_image(array.transpose(2, 0, 1)[None])[0], row, atol=1e-6, rtol=0)
    for wrong in (arrays[0].astype(np.float32), arrays[0][..., 0], arrays[0].transpose(2, 0, 1)):
        with pytest.raises(
            CoreclipError, match=r"image 1 of the list is .*; pixels in a list must be uint8 \(h, w, 3\)"
        ):
            model.encode_image([arrays[0], wrong])
    with pytest.raises(CoreclipError, match="images is a single file; a list of them is needed"):
        model.encode_image("cat.jpg")
    with pytest.raises(CoreclipError, match="image 1 of the list can't be read: the image is empty"):
        model.encode_image([arrays[0], b""])
    assert model.encode_image([]).shape == (0, 8)


def test_torchs_own_resize_differs_from_the_loaders_by_rounding():
    for height, width in ((40, 64), (61, 90), (33, 17), (8, 8)):
        image = torch.from_numpy(make_pixels(4, width, height).transpose(2, 0, 1)[None].copy())
        ours, torchs = clip_model._resized(image, 16).int(), clip_model._resized_by_torch(image, 16).int()
        assert ours.shape == torchs.shape == (1, 3, 16, 16)
        assert (ours - torchs).abs().max() <= 1


def test_the_loaded_model_embeds_images_of_any_size(trained):
    model = ClipModel.load(trained[1])
    assert (model.image_size, model.dim) == (16, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 64), dtype=np.uint8)
    features = model.encode_image(pixels)
    assert features.shape == (2, 8)
    small = [
        np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((25, 16), Image.Resampling.BICUBIC))[:, 4:20]
        for image in pixels
    ]
    by_pillow = model.encode_image(np.stack(small).transpose(0, 3, 1, 2))
    torch.testing.assert_close(features, by_pillow, atol=0.02, rtol=0)
    assert model.encode_text([]).shape == (0, 8)


def test_what_is_no_image_and_no_list_is_refused(trained):
    model = ClipModel.load(trained[1])
    for images in (torch.zeros(2, 3, 16, 16), torch.zeros(16, 16, 3, dtype=torch.uint8)):
        with pytest.raises(CoreclipError, match=r"they must be uint8 \(b, 3, h, w\)"):
            model.encode_image(images)
    with pytest.raises(CoreclipError, match=r"is one string; a list of them is needed"):
        model.encode_text("a dog")


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CoreclipError, match=r"no run at .* it has no run.json"):
        ClipModel.load(tmp_path / "nothing")


def test_an_unfinished_run_is_refused(run):
    (run / "model.safetensors").unlink()
    with pytest.raises(CoreclipError, match=r"is not finished: it has no model.safetensors"):
        ClipModel.load(run)


def test_damaged_weights_are_refused(run):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CoreclipError, match=r"model.safetensors is damaged"):
        ClipModel.load(run)


def test_weights_of_another_model_are_refused(run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("embed_dim = 8", "embed_dim = 16"))
    with pytest.raises(
        CoreclipError, match=r"model.safetensors does not fit .*config.toml .*restore the run's own files"
    ):
        ClipModel.load(run)


def test_a_run_of_another_format_is_refused(run):
    (run / "run.json").write_text('{"format_version": 99}')
    with pytest.raises(CoreclipError, match="has format version 99; this coreclip reads 1"):
        ClipModel.load(run)
