"""Exports of a run: what is in the folder, that it says what the model says, and what is refused without a trace."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.files import sha256_file
from coreclip.training import FORMATS, ClipModel, ExportedModel, evaluate, export, onnx_export, train
from coreclip.training.export_job import Format, check_packages
from coreclip.training.export_parity import Parity, compare_features, measure_parity, refuse_disagreement
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=32, batch_size=6, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", lr=5e-3, signals=False, checkpoints=0),
)
TEXTS = ["a red dog", "", "a " * 40]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 12)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    train(data, run, config=CONFIG, epochs=8)
    return run


@pytest.fixture(scope="module")
def int8(run, data, tmp_path_factory):
    """An int8 export to ONNX and its report."""
    out = tmp_path_factory.mktemp("int8") / "out"
    return out, export(run, out, format="onnx", precision="int8", dataset=data)


def images(n, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, 3, size, size), dtype=np.uint8)


def same_calls(run, out, tolerance):
    """Check that an export answers the calls of ClipModel as the model does."""
    model, exported = ClipModel.load(run), ExportedModel.load(out, threads=1, trusted=True)
    for batch in (images(1), images(5), images(3, size=40)):
        torch.testing.assert_close(exported.encode_image(batch), model.encode_image(batch), rtol=0, atol=tolerance)
    torch.testing.assert_close(exported.encode_text(TEXTS), model.encode_text(TEXTS), rtol=0, atol=tolerance)
    assert exported.logit_scale == pytest.approx(model.logit_scale)
    with pytest.raises(CoreclipError, match=r"is one string; a list of them is needed"):
        exported.encode_text("a dog")


def test_onnx_is_whole_described_and_the_models_equal(run, data, tmp_path):
    import onnx

    report = export(run, tmp_path / "out", format="onnx", dataset=data)
    names = {"image_tower.onnx", "text_tower.onnx", "tokenizer.json", "config.toml", "export.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert set(report.files) == names - {"export.json"}
    assert report.least_cosine > 0.999999
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert described["model"]["sha256"] == sha256_file(run / "model.safetensors")
    assert described["logit_bias"] is None
    assert described["image_tower"]["input"] == {"name": "images", "dtype": "uint8", "shape": ["batch", 3, 32, 32]}
    assert described["text_tower"]["input"] == {"name": "tokens", "dtype": "int64", "shape": ["batch", 16]}
    assert {(row["inputs"], row["batch_size"]) for row in described["parity"]} >= {
        (source, size) for source in ("drawn", "data set") for size in (1, 2, 5)
    }
    assert set(report.accuracy["lost"].values()) == {0.0}
    assert report.accuracy["run"]["text_to_image_recall_at_1"] == report.accuracy["export"]["text_to_image_recall_at_1"]
    same_calls(run, tmp_path / "out", 1e-5)
    written = (tmp_path / "out" / "image_tower.onnx").read_bytes()
    assert b"coreclip" not in written  # no stack traces of ours
    graph = onnx.load_from_string(written).graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_int8_is_smaller_measured_and_close(run, int8):
    out, report = int8
    assert 0.95 < report.least_cosine < 0.999999
    quantised = json.loads((out / "export.json").read_text())["onnx"]
    for tower in ("image_tower", "text_tower"):
        tried = quantised[tower]["quantisation"]
        ways = ("static", "dynamic") if tower == "text_tower" else ("static",)  # the other one's convolutions are slow
        best = max(ways, key=lambda way: tried[way]["mean_cosine"])
        assert ("dynamic" in tried) == ("dynamic" in ways)
        assert tried["kept"] == best
        assert tried["calibrated_on"] == "data set"
        assert report.files[f"{tower}.onnx"] == pytest.approx(tried[best]["bytes"], rel=0.05)
    assert {"image_to_text_recall_at_1", "text_to_image_recall_at_10"} <= set(report.accuracy["lost"])
    same_calls(run, out, 0.2)


def test_an_export_is_evaluated_like_a_run(run, data, int8):
    result = evaluate(ExportedModel.load(int8[0], threads=1), data)
    assert result["trained_on_this_data"] is None
    assert result["text_to_image_recall_at_10"] == int8[1].accuracy["export"]["text_to_image_recall_at_10"]
    with pytest.raises(CoreclipError, match="FEATURES are a run's, and a loaded model was given"):
        evaluate(ClipModel.load(run), data, features="features")


def test_a_damaged_export_is_refused(int8, tmp_path):
    import shutil

    shutil.copytree(int8[0], tmp_path / "out")
    with open(tmp_path / "out" / "text_tower.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(CoreclipError, match=r"text_tower.onnx is missing or not what export wrote .*; export again"):
        ExportedModel.load(tmp_path / "out")
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    for change, words in (
        ({"format_version": 9}, "has format version 9"),
        ({"format": "coreml"}, "has the format 'coreml'"),
        (
            {"format": "torch-export"},
            "is a torch-export export, whose files can hold code that runs .*; give trusted=True",
        ),
        ({"files": None}, "is damaged: export.json lacks an entry; export again"),
        ({"logit_scale": None}, "is damaged: export.json lacks an entry; export again"),
        (
            {"sha256": described["sha256"] | {"../tokenizer.json": ""}},
            r"names the file '../tokenizer.json', which is outside of it",
        ),
    ):
        (tmp_path / "out" / "export.json").write_text(json.dumps(described | change))
        with pytest.raises(CoreclipError, match=words):
            ExportedModel.load(tmp_path / "out")
    with pytest.raises(CoreclipError, match=r"no export at .*: it has no export.json"):
        ExportedModel.load(tmp_path)
    with pytest.raises(CoreclipError, match=r"device 'cuda' is not for exports"):
        ExportedModel.load(int8[0], "cuda")


def test_onnx_in_half_precision_is_half_as_large_and_close(run, tmp_path):
    wholes, halves = (export(run, tmp_path / p, format="onnx", precision=p).files for p in ("fp32", "fp16"))
    assert halves["image_tower.onnx"] + halves["text_tower.onnx"] < 0.75 * (
        wholes["image_tower.onnx"] + wholes["text_tower.onnx"]
    )
    same_calls(run, tmp_path / "fp16", 5e-3)


def test_openvino_in_int8_is_measured_and_close(run, data, tmp_path):
    report = export(run, tmp_path / "out", format="openvino", precision="int8", dataset=data)
    assert report.least_cosine > 0.95
    assert report.accuracy is not None
    assert report.accuracy["lost"].keys() >= {"text_to_image_recall_at_1", "image_to_text_recall_at_10"}


def test_openvino_with_halved_weights(run, tmp_path):
    report = export(run, tmp_path / "out", format="openvino", precision="fp16")
    assert report.accuracy is None
    assert report.least_cosine > 0.999
    same_calls(run, tmp_path / "out", 5e-3)
    weights = sum(t.numel() for t in ClipModel.load(run).network.state_dict().values())
    assert report.files["image_tower.bin"] + report.files["text_tower.bin"] < 3 * weights  # 2 bytes each, and constants


def test_what_openvino_can_not_read_is_refused(data, tmp_path):
    # At 16 pixels the last stage pools a single place, which OpenVINO's reader of ONNX does not know.
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, image_size=16))
    train(data, tmp_path / "run", config=config, samples=6)
    with pytest.raises(
        CoreclipError, match=r"OpenVINO .* can't convert the image_tower \(.*\); nothing was written; use --format onnx"
    ):
        export(tmp_path / "run", tmp_path / "out", format="openvino")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_torch_export_runs_in_a_process_without_coreclip(run, tmp_path):
    export(run, tmp_path / "out", format="torch-export")
    same_calls(run, tmp_path / "out", 1e-5)
    rows = images(3)
    tokens = ClipModel.load(run).tokenizer.encode(TEXTS, 16)
    np.savez(tmp_path / "inputs.npz", image_tower=rows, text_tower=tokens)
    code = (
        "import sys, numpy as np, torch\n"
        "inputs, found = np.load('inputs.npz'), {}\n"
        "for name in inputs:\n"
        "    tower = torch.export.load(f'out/{name}.pt2').module()\n"
        "    found[name] = tower(torch.from_numpy(inputs[name])).detach().numpy()\n"
        "np.savez('found.npz', **found)\n"
        "sys.exit(any(name.split('.')[0] == 'coreclip' for name in sys.modules))\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    found, model = np.load(tmp_path / "found.npz"), ClipModel.load(run)
    np.testing.assert_allclose(found["image_tower"], model.encode_image(rows), atol=1e-5)
    np.testing.assert_allclose(found["text_tower"], model.encode_text(TEXTS), atol=1e-5)


def test_torchscript_warns_and_agrees(run, tmp_path, capsys):
    export(run, tmp_path / "out", format="torchscript")
    assert "TorchScript is deprecated" in capsys.readouterr().err
    same_calls(run, tmp_path / "out", 1e-5)
    tried = json.loads((tmp_path / "out" / "export.json").read_text())["trace_checked_on"]
    assert "padding alone" in tried["text_tower"]
    assert "black images" in tried["image_tower"]


def test_a_tower_that_no_onnx_file_can_hold_is_refused_before_it_is_traced(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_MOST_BYTES", 10_000)
    monkeypatch.setattr(onnx_export, "exported_program", None)
    with pytest.raises(
        CoreclipError, match=r"the image_tower has .* GiB of weights, and an ONNX file holds 2 GiB at most"
    ):
        export(run, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["onnx", "torch-export", "torchscript"])
def test_a_single_pair_is_enough_to_compare_on(run, tmp_path, format):
    report = export(run, tmp_path / "out", format=format, dataset=make_dataset(tmp_path / "one", 1))
    assert report.least_cosine > 0.99999
    same_calls(run, tmp_path / "out", 1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "coreml"}, "format 'coreml' is unknown; it must be one of onnx, openvino"),
        (
            {"format": "torch-export", "precision": "int8"},
            "precision 'int8' is not for format torch-export; .* fp32, fp16",
        ),
        ({"format": "onnx", "precision": "fp8"}, "precision 'fp8' is not for format onnx"),
    ],
)
def test_unknown_formats_and_precisions_are_refused(run, tmp_path, arguments, words):
    with pytest.raises(CoreclipError, match=words):
        export(run, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra():
    check_packages("onnx", ("json",))
    with pytest.raises(
        CoreclipError, match=r"format x needs no_such_package, which is not installed; pip install 'coreclip\[export\]'"
    ):
        check_packages("x", ("json", "no_such_package"))
    with pytest.raises(CoreclipError, match=r"format x needs none, nor, which are not installed"):
        check_packages("x", ("none", "nor"))


def test_nothing_of_the_users_is_replaced(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(CoreclipError, match="exists; nothing of yours is replaced"):
        export(run, tmp_path / "out", format="torchscript")


def turned(job):
    """Write nothing."""
    return {"files": {}}


def open_turned(folder, description, threads):
    """Towers whose features are all the first axis."""
    return {
        name: lambda rows: np.eye(1, 8, dtype=np.float32).repeat(len(rows), 0) for name in ("image_tower", "text_tower")
    }


def open_narrow(folder, description, threads):
    """Towers of another width."""
    return {name: lambda rows: np.ones((len(rows), 3), np.float32) for name in ("image_tower", "text_tower")}


@pytest.mark.parametrize(
    ("opened", "words"),
    [
        (
            open_turned,
            r"the exported \w+ disagrees with the model: cosine .* nothing was written; take --precision fp32",
        ),
        (
            open_narrow,
            r"the exported image_tower returns float32 \(40, 3\) for batches of 1 in place of float32 \(40, 8\)",
        ),
    ],
)
def test_an_export_that_disagrees_leaves_nothing(run, tmp_path, monkeypatch, opened, words):
    monkeypatch.setitem(FORMATS, "turned", Format("for this test", turned, opened))
    with pytest.raises(CoreclipError, match=words):
        export(run, tmp_path / "out", format="turned")
    assert list(tmp_path.iterdir()) == []


def test_what_counts_as_disagreement():
    eye = np.eye(3, dtype=np.float32)
    assert compare_features(eye, eye) == {"max_abs_difference": 0.0, "least_cosine": 1.0, "mean_cosine": 1.0}
    broken = eye.copy()
    broken[1, 1] = np.nan
    assert compare_features(broken, eye)["least_cosine"] == -1.0
    assert compare_features(eye[[1, 0, 2]], eye)["mean_cosine"] == pytest.approx(1 / 3)
    row = Parity("text_tower", "drawn", 2, 40, 0.1, 0.97, 0.99)
    refuse_disagreement([row], "int8")
    with pytest.raises(
        CoreclipError,
        match=r"text_tower disagrees .* cosine 0.970000 on drawn inputs in batches of 2, 0.999 is the least for fp16",
    ):
        refuse_disagreement([row], "fp16")
    with pytest.raises(CoreclipError, match="give --dataset to calibrate on real pairs"):
        refuse_disagreement([row], "int8", least=0.98)


def test_parity_looks_at_every_batch_size(run):
    """A tower that is right for every batch but those of two is found out."""
    from coreclip.training.export_inputs import drawn_inputs
    from coreclip.training.export_parity import reference_features

    clip = ClipModel.load(run)

    def tower(name):
        return lambda rows: reference_features(clip, name, rows) * (-1 if len(rows) == 2 else 1)

    found = measure_parity(clip, {name: tower(name) for name in ("image_tower", "text_tower")}, drawn_inputs(clip, 10))
    assert {row.batch_size for row in found} == {1, 2, 5, 10}
    assert all((row.least_cosine < 0) == (row.batch_size == 2) for row in found)


def test_images_that_do_not_decode_are_left_out_or_named(run, tmp_path):
    from coreclip.training.export_inputs import dataset_inputs

    clip = ClipModel.load(run)
    some = make_dataset(tmp_path / "some", 5, images={3: b"\xff\xd8 no image"})
    inputs = dataset_inputs(clip, some, 5)
    assert len(inputs.images) == len(inputs.tokens) == 4
    none = make_dataset(tmp_path / "none", 2, images=dict.fromkeys(range(2), b"\xff\xd8 no image"))
    with pytest.raises(CoreclipError, match=r"no image of the 2 pairs that were drawn from .* can be decoded"):
        dataset_inputs(clip, none, 5)
