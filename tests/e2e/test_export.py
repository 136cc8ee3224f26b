"""The command line's exports of a trained run."""

import json

import pytest

from coreclip.cli import run_command
from coreclip.training import ClipModel, ExportedModel
from tests.e2e.test_bad_input import refused


def test_a_run_is_exported_and_used(at, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        run_command(
            ["export", str(at / "run"), str(out), "--format", "onnx", "--dataset", str(at / "heldout"), "--json"]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["precision"]) == ("onnx", "fp32")
    assert report["least_cosine"] > 0.99999
    assert report["accuracy"]["lost"]["text_to_image_recall_at_10"] == pytest.approx(0, abs=0.03)
    assert report["files"]["image_tower.onnx"] == (out / "image_tower.onnx").stat().st_size
    exported, model = ExportedModel.load(out), ClipModel.load(at / "run")
    assert (exported.encode_text(["a red boat"]) - model.encode_text(["a red boat"])).abs().max() < 1e-5


def test_the_report_for_people(at, tmp_path, capsys):
    assert run_command(["export", str(at / "run"), str(tmp_path / "out"), "--format", "torchscript"]) == 0
    said = capsys.readouterr()
    assert "least cosine" in said.out
    assert "TorchScript is deprecated" in said.err


def test_mistakes(at, tmp_path, capsys):
    run = at / "run"
    assert "needs both OUT and --format" in refused(capsys, "export", run, tmp_path / "out")
    assert "--table times runtimes on the processor" in refused(capsys, "export", run, "--table", "--device", "cuda")
    assert "needs both OUT and --format" in refused(capsys, "export", run, "--format", "onnx")
    assert "nothing to do" in refused(capsys, "export", run)
    assert "format 'coreml' is unknown" in refused(capsys, "export", run, tmp_path / "out", "--format", "coreml")
    assert list(tmp_path.iterdir()) == []
