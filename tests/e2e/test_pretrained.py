"""A checkpoint of another tool through the real command line: evaluated, embedded, searched, trained on, saved back."""

import json

import numpy as np
import pytest
import torch

from coreclip.pipeline import Dataset
from coreclip.training import ClipModel, evaluate, save_hf
from tests.clip_files import save_hf_model
from tests.e2e.conftest import coreclip, coreclip_json

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
