"""Search, and the model that users load."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.training import ClipModel, search, train
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=6, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3, signals=False),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = make_dataset(folder / "set", 12)
    train(data, folder / "run", config=CONFIG, epochs=20)
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
