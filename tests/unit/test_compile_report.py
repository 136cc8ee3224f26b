"""What torch.compile does, on functions whose graph breaks, recompiles and fusions are known."""

import pytest
import torch

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.training import compile_text, explain_compile, train
from coreclip.training.compile_report import compiled_record, explain_graphs
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


def straight(x):
    return torch.sin(x) * 2 + 1


def broken(x):
    y = torch.sin(x)
    if y.sum() > 0:
        y = y + 1
    return y * 2


def test_a_break_is_reported_with_its_line():
    assert explain_graphs(straight, torch.ones(4)) == {"graphs": 1, "operations": [3], "breaks": []}
    found = explain_graphs(broken, torch.ones(4))
    assert found["graphs"] == 2
    assert len(found["operations"]) == 2
    (cut,) = found["breaks"]
    assert cut["where"].endswith("if y.sum() > 0:")
    assert "test_compile_report.py:" in cut["where"]


def test_recompiles_and_fusions_are_reported():
    compiled = torch.compile(straight)
    found = compiled_record(compiled, [torch.ones(4), torch.ones(4), torch.ones(6)])
    assert found["compiles_per_batch"] == [1, 0, 1]
    (again,) = found["recompiles"]
    assert (again["function"], again["batch"]) == ("straight", 2)
    assert "expected 4, actual 6" in again["reason"]
    assert found["graphs"] == 2
    assert found["breaks"] == []
    assert found["kernels"] == [{"operations": "add_mul_sin", "count": 2}]
    assert found["seconds"] > 0


def test_a_failing_compiler_is_named():
    def step(batch):
        raise RuntimeError("No working C++ compiler found")

    with pytest.raises(
        CoreclipError, match=r"torch.compile does not work here \(No working C\+\+ compiler found\); install"
    ):
        compiled_record(step, [torch.ones(1)])

    def other(batch):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        compiled_record(other, [torch.ones(1)])


def make_run(folder, n, samples):
    config = Config(
        data=DataConfig(image_size=16, batch_size=5, workers=1),
        model=ModelConfig(image_tower="vit", image_width=16, image_depth=1, text_tower="cbow", text_width=16, heads=2, embed_dim=8, context=16),
        train=TrainConfig(precision="fp32", signals=False, checkpoints=0, compile="off"),
    )  # fmt: skip
    data = make_dataset(folder / "set", n)
    train(data, folder / "run", config=config, samples=samples)
    return data, folder / "run"


def test_towers_and_shapes_of_a_run_are_explained(tmp_path):
    data, run = make_run(tmp_path, 12, 10)
    for dataset, source in ((data, "data set"), (None, "assumed")):
        report = explain_compile(run, dataset, fusions=False)
        assert report["shapes"]["source"] == source
        rows = [b for b, _ in report["shapes"]["batches"]]
        assert rows[0] == 5
        assert rows[-1] == 2  # what is left of twelve, or half of a batch
        whole, packed, padded = report["towers"].values()
        assert whole["graphs"] == padded["graphs"] == 1
        assert packed["graphs"] > 1
        assert any("training/model.py" in cut["where"] for cut in packed["breaks"])
        assert report["training"] is None
    text = compile_text(report)
    assert "image tower: 1 graphs" in text
    assert "1 break at coreclip/training/" in text


def test_what_training_compiles_is_explained(tmp_path):
    data, run = make_run(tmp_path, 5, 5)
    report = explain_compile(run, data)
    assert report["shapes"]["batches"] == [(5, max(n for _, n in report["shapes"]["batches"]))]
    training = report["training"]
    assert training["graphs"] >= 1
    assert training["kernels"]
    assert training["recompiles"] == []
    assert f"compiled as in training: {training['graphs']} graphs" in compile_text(report)
