"""Pairs in, a trained and explained CLIP out, through the command line alone."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file

from coreclip.pipeline import Dataset, make_loader
from coreclip.selection import Subset
from tests.e2e.conftest import SMALL, coreclip, coreclip_json

RECALLS = [f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def test_convert_accounts_for_every_sample(flow, at):
    report = flow["convert"]
    assert {"pairs", "rejected", "seconds", "pairs_per_second", "bytes_in", "bytes_out"} <= report.keys()
    keys = set()
    for tar in flow["tars"]:
        with tarfile.open(tar) as archive:
            keys |= {name.split(".")[0] for name in archive.getnames()}
    pairs, rejects = pd.read_parquet(at / "data" / "pairs.parquet"), pd.read_parquet(at / "data" / "rejects.parquet")
    assert set(pairs["key"]) | set(rejects["key"]) == keys
    assert not set(pairs["key"]) & set(rejects["key"])
    assert (report["pairs"], report["rejected"]) == (len(pairs), len(rejects))
    assert report["rejected"] > 0, "the scenes hold broken files"
    assert rejects["reason"].str.len().min() > 5


def test_every_stored_pair_is_the_one_of_its_source(flow, at):
    source = {}
    for tar in flow["tars"]:
        with tarfile.open(tar) as archive:
            for member in archive:
                source[member.name] = archive.extractfile(member).read()
    data = Dataset(at / "data")
    for index, key in enumerate(data.keys):
        assert data.image_bytes(index) == source[f"{key}.jpg"], "a baseline JPEG's bytes stay as they were"
        as_json, as_text = source.get(f"{key}.json"), source[f"{key}.txt"].decode()
        assert data.captions(index) == (json.loads(as_json)["captions"] if as_json else as_text.strip().split("\n"))


def test_the_loader_delivers_each_index_with_its_own_pixels_and_tokens(at):
    data = Dataset(at / "data")
    tokenizer = data.tokenizer()
    for batch in make_loader(data, batch_size=64, image_size=48, train=False):
        assert batch.valid.all()
        for row, index in enumerate(batch.index.tolist()):
            with Image.open(io.BytesIO(data.image_bytes(index))) as image:
                expected = np.asarray(image.convert("RGB").resize((48, 48), Image.Resampling.BICUBIC), dtype=int)
            got = batch.images[row].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(got - expected).mean() < 2
            assert np.array_equal(batch.tokens[row], tokenizer.encode(data.captions(index)[:1], data.context)[0])


def test_train_reports_what_it_did(flow, at):
    report = flow["train"]
    assert {"steps", "samples_seen", "seconds", "samples_per_second", "loss"} <= report.keys()
    assert report["samples_seen"] == 384
    lines = [json.loads(line) for line in (at / "proxy" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == report["steps"]
    assert np.isfinite([line["loss"] for line in lines]).all()


def test_signals_cover_every_pair_that_was_seen(flow, at):
    n = flow["convert"]["pairs"]
    signals = {name: np.load(at / "proxy" / "signals" / f"{name}.npy") for name in ("loss", "margin", "correct")}
    assert {array.shape[1] for array in signals.values()} == {n}
    seen = np.isfinite(signals["loss"])
    assert seen.sum() == flow["train"]["samples_seen"]
    assert np.array_equal(seen, np.isfinite(signals["margin"]))
    assert np.array_equal(seen, signals["correct"] >= 0)
    assert (signals["loss"][seen] >= 0).all()


def test_a_run_explains_itself(at, flow):
    shown = coreclip_json("explain", at / "proxy", at / "heldout", "--index", 0, "--train", at / "data", "--top", 3)
    assert shown["trained_on_this_data"]
    assert shown["index"] == [0]
    assert 1 <= len(shown["helped"]) + len(shown["hurt"]) <= 6
    assert all(pair["influence"] > 0 and pair["caption"] for pair in shown["helped"])


def test_training_on_a_subset_sees_its_pairs_only(at):
    seen = np.isfinite(np.load(at / "run" / "signals" / "loss.npy")).any(axis=0)
    assert set(np.flatnonzero(seen)) <= set(Subset.load(at / "subset.parquet").indices.tolist())


def test_features_are_unit_vectors_of_every_pair(flow, at):
    image, text = np.load(at / "features" / "image.npy"), np.load(at / "features" / "text.npy")
    assert image.shape == text.shape == (flow["convert"]["pairs"], 32)
    for features in (image, text):
        assert features.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(features.astype(np.float32), axis=1), 1, atol=2e-3)


def test_select_keeps_the_share_it_was_asked_for(flow, at):
    report, subset = flow["select"], Subset.load(at / "subset.parquet")
    assert report["n"] == flow["convert"]["pairs"]
    assert report["k"] == len(subset.indices) == round(0.3 * report["n"])
    assert len(set(subset.indices.tolist())) == report["k"]
    assert 0 < report["objective"] <= report["upper_bound"] * (1 + 1e-9)
    assert subset.fingerprint == Dataset(at / "data").fingerprint


@pytest.mark.parametrize(
    "method", ["random", "facility-location", "clipscore", "craig", "semdedup", "apricot:FacilityLocation"]
)
def test_every_method_selects_distinct_pairs(at, tmp_path, method):
    report = coreclip_json(
        "select", at / "data", tmp_path / "s.parquet", "--method", method, "--k", 20, "--features", at / "features"
    )
    indices = Subset.load(tmp_path / "s.parquet").indices
    assert report["k"] == len(set(indices.tolist())) == 20
    assert indices.min() >= 0
    assert indices.max() < report["n"]


def test_evaluate_gives_fractions(flow):
    values = [flow["evaluate"][key] for key in RECALLS]
    assert all(0 <= value <= 1 for value in values)
    assert values[0] <= values[1] <= values[2]
    assert values[3] <= values[4] <= values[5]


def test_search_ranks_by_score(flow):
    hits = flow["search"]["results"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


def test_inspect_counts_what_convert_wrote(flow, at):
    report = coreclip_json("inspect", at / "data")
    assert report["pairs"] == flow["convert"]["pairs"]
    assert report["rejected"] == flow["convert"]["rejected"]


def test_profile_splits_real_steps_and_gives_a_verdict(at, tmp_path):
    report = coreclip_json("profile", at / "data", "--steps", 10, "--html", tmp_path / "profile.html", *SMALL)
    assert {"verdict", "stages", "remedies"} <= report.keys()
    assert {"wait", "transfer", "forward", "backward", "optimiser"} <= report["stages"].keys()
    assert sum(stage["share"] for stage in report["stages"].values()) == pytest.approx(1, abs=0.02)
    for remedy in report["remedies"]:
        assert remedy["low"] <= remedy["predicted_speedup"] <= remedy["high"]
    page = (tmp_path / "profile.html").read_text()
    assert report["verdict"] in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_conversion_again_changes_nothing(flow, at):
    before = {path.name: path.stat().st_mtime_ns for path in (at / "data").iterdir()}
    report = coreclip_json("convert", *flow["tars"], at / "data", "--vocab-size", 400)
    assert report["pairs"] == flow["convert"]["pairs"]
    assert {path.name: path.stat().st_mtime_ns for path in (at / "data").iterdir()} == before


def test_training_again_is_done_at_once_and_keeps_the_weights(flow, at):
    before = load_file(at / "proxy" / "model.safetensors")
    report = coreclip_json("train", at / "data", at / "proxy", "--samples", 384, *SMALL)
    assert report["steps"] == flow["train"]["steps"]
    after = load_file(at / "proxy" / "model.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_text_output_is_for_people(at):
    text = coreclip("inspect", at / "data").stdout
    assert "pairs" in text
    assert not text.startswith("{")


@pytest.mark.parametrize(
    ("part", "command", "other"),
    [
        ("pipeline", "convert", "train"),
        ("selection", "select", "embed"),
        ("training", "train", "select"),
        ("profiling", "profile", "embed"),
    ],
)
def test_each_part_has_its_own_commands(part, command, other):
    done = subprocess.run(
        [sys.executable, "-m", f"coreclip.{part}", "--help"], capture_output=True, text=True, check=True
    )
    assert f" {command} " in done.stdout
    assert f" {other} " not in done.stdout
