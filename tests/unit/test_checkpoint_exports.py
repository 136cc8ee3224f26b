"""Exports as checkpoints of other libraries: what they load gives the model's own features."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, convert
from coreclip.training import ClipModel, ExportedModel, export, train
from tests.clip_files import save_hf_model, whole_merge_list
from tests.helpers import make_dataset
from tests.unit.test_train import CONFIG

TEXTS = ["a photo of a red boat", "two cats and 12 large dogs!"]

VIT = replace(
    CONFIG,
    model=replace(
        CONFIG.model, image_tower="vit", image_width=64, patch_size=8, text_width=64, heads=1, text_causal=True
    ),
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    save_hf_model(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a vocabulary of CLIP's size, which open_clip has built in."""
    folder = tmp_path_factory.mktemp("run")
    merges = whole_merge_list(folder / "bpe_simple_vocab_16e6.txt.gz")
    make_dataset(folder / "first", 8)
    convert([str(folder / "first")], folder / "data", tokenizer=f"clip:{merges}")
    train(Dataset(folder / "data"), folder / "run", config=VIT, samples=10)
    return folder / "run"


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_an_export_is_a_checkpoint_with_the_models_features(run, tmp_path, format):
    report = export(run, tmp_path / "out", format=format)
    assert report.least_cosine > 0.99999
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    expected = ClipModel.load(run)
    for model in (ClipModel.load(f"{format}:{tmp_path / 'out'}"), ExportedModel.load(tmp_path / "out")):
        torch.testing.assert_close(model.encode_image(images), expected.encode_image(images))
        torch.testing.assert_close(model.encode_text(TEXTS), expected.encode_text(TEXTS))
        assert model.logit_scale == pytest.approx(expected.logit_scale)
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    library = {"hf": "transformers", "open_clip": "open_clip"}[format]
    assert description["checkpoint_of"] == library
    assert description["preprocessing"]["standardised_by"].startswith(f"{library} before the image tower")
    assert not {"image_tower", "text_tower"} & set(description)  # they are given what the library gives them


def test_transformers_reads_the_folder(checkpoint, tmp_path):
    from transformers import AutoTokenizer, CLIPModel

    export(checkpoint, tmp_path / "out", format="hf")
    model, tokenizer = CLIPModel.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        found = model(
            pixel_values=torch.zeros(1, 3, 32, 32), **tokenizer(TEXTS, padding=True, return_tensors="pt")
        ).text_embeds
    torch.testing.assert_close(found, ClipModel.load(checkpoint).encode_text(TEXTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_a_model_without_a_place_there_is_refused_and_leaves_nothing(tmp_path, format):
    train(make_dataset(tmp_path / "data", 8), tmp_path / "run", config=CONFIG, samples=5)
    with pytest.raises(CoreclipError, match="its image tower is a cnn"):
        export(tmp_path / "run", tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
