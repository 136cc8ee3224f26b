"""A checkpoint of another tool through the real command line: evaluated, embedded, searched, trained on, saved back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from coreclip.pipeline import Dataset
from coreclip.training import ClipModel, ExportedModel, evaluate, save_hf
from tests.clip_files import save_hf_model
from tests.e2e.conftest import coreclip, coreclip_json
from tests.helpers import encode_jpeg, make_pixels

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "clip"
    save_hf_model(folder)
    return f"hf:{folder}"


def test_it_is_evaluated_and_searched(checkpoint, at):
    result = coreclip_json("evaluate", checkpoint, at / "heldout")
    assert result["pairs"] == 40
    assert 0 <= result["text_to_image_recall_at_1"] <= result["text_to_image_recall_at_10"] <= 1
    found = coreclip_json("search", checkpoint, at / "heldout", "a red boat", "--top", 3)
    assert [hit["rank"] for hit in found["results"]] == [1, 2, 3]


def test_it_embeds_and_a_selection_reads_its_features(checkpoint, at, tmp_path):
    coreclip_json("embed", at / "data", tmp_path / "features", "--model", checkpoint)
    n = Dataset(at / "data").n
    assert np.load(tmp_path / "features" / "image.npy").shape == (n, 24)
    chosen = coreclip_json("select", at / "data", tmp_path / "best.parquet", "--method", "clipscore", "--fraction", 0.5,
                           "--features", tmp_path / "features")  # fmt: skip
    assert chosen["k"] == n // 2


def test_it_ranks_and_classifies_files(checkpoint, at, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(encode_jpeg(make_pixels(i)))
    ranked = coreclip_json("rerank", checkpoint, "a red boat", tmp_path / "photos")
    assert [hit["rank"] for hit in ranked["results"]] == [1, 2, 3]
    model = ClipModel.load(checkpoint)
    images = [tmp_path / "photos" / f"{i}.jpg" for i in range(3)]
    cosines = (model.encode_image(images) @ model.encode_text(["a red boat"]).T).squeeze(1)
    assert [Path(hit["path"]).stem for hit in ranked["results"]] == [
        str(i) for i in cosines.argsort(descending=True).tolist()
    ]
    classified = coreclip_json(
        "classify", checkpoint, tmp_path / "photos", "--classes", "boat,dog", "--templates", "clip-80"
    )
    assert len(classified["results"]) == 3
    assert all(
        sum(one["probability"] for one in row["predictions"]) == pytest.approx(1) for row in classified["results"]
    )


def test_it_teaches_a_small_model(checkpoint, at, tmp_path):
    coreclip_json("embed", at / "data", tmp_path / "features", "--model", checkpoint)
    small = ["--set", "data.batch_size=32", "--set", "data.image_size=32", "--set", "model.image_width=8"]
    taught = ["--set", f"distill.features={tmp_path / 'features'}"]
    for name, settings in (("taught", taught), ("alone", [])):
        report = coreclip_json("train", at / "data", tmp_path / name, "--samples", 96, *small, *settings)
        assert report["samples_seen"] == 96
    taught_one, alone = (ClipModel.load(tmp_path / name).encode_text(["a red boat"]) for name in ("taught", "alone"))
    assert not torch.equal(taught_one, alone)


def test_it_is_exported_with_its_features(checkpoint, at, tmp_path):
    report = coreclip_json("export", checkpoint, tmp_path / "onnx", "--format", "onnx", "--dataset", at / "heldout")
    assert report["least_cosine"] > 0.99999
    exported, model = ExportedModel.load(tmp_path / "onnx"), ClipModel.load(checkpoint)
    texts = ["a red boat", "two dogs & a cat"]
    torch.testing.assert_close(exported.encode_text(texts), model.encode_text(texts), rtol=0, atol=1e-5)


def test_it_is_tuned_and_goes_back_to_transformers(checkpoint, at, tmp_path):
    small = ["--set", "data.batch_size=32", "--set", "train.lr=1e-3", "--set", "train.freeze=image"]
    report = coreclip_json("train", at / "data", tmp_path / "run", "--init-from", checkpoint, "--samples", 96, *small)
    assert report["samples_seen"] == 96
    tuned = ClipModel.load(tmp_path / "run")
    save_hf(tuned.network, tuned.tokenizer, tuned.config, tmp_path / "back")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "back").eval()
    start = ClipModel.load(checkpoint)
    assert torch.equal(start.network.image.position, tuned.network.image.position)
    ids = torch.from_numpy(tuned.tokenizer.encode(["a red boat"], 24))
    with torch.no_grad():
        theirs = model.get_text_features(input_ids=ids)
    theirs = getattr(theirs, "pooler_output", theirs)
    torch.testing.assert_close(
        torch.nn.functional.normalize(theirs, dim=1), tuned.encode_text(["a red boat"]), rtol=0, atol=1e-5
    )
    assert not torch.allclose(start.encode_text(["a red boat"]), tuned.encode_text(["a red boat"]), atol=1e-4)
    back, run = (evaluate(name, Dataset(at / "heldout")) for name in (f"hf:{tmp_path / 'back'}", tmp_path / "run"))
    assert back == run | {"trained_on_this_data": None}


def test_mistakes_are_one_line(checkpoint, at, tmp_path):
    for arguments, message in (
        (("evaluate", f"hf:{tmp_path / 'none'}", at / "heldout"), "no Hugging Face model at"),
        (("train", at / "data", tmp_path / "run", "--init-from", checkpoint, "--preset", "vit-s", "--samples", 32),
         "a start keeps its model; leave [model] and --preset out"),
    ):  # fmt: skip
        done = coreclip(*arguments, code=2)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_data_set_with_its_vocabulary_keeps_its_tokens(checkpoint, at, tmp_path):
    vocabulary = f"clip:{checkpoint.removeprefix('hf:')}"
    coreclip_json("convert", at / "data", tmp_path / "set", "--tokenizer", vocabulary)
    described = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert described["tokenizer_sha256"] == ClipModel.load(checkpoint).tokenizer.sha256
    assert described["context"] == 77
