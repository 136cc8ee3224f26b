"""The comparison of runtimes measures what it is asked for, and names what it leaves out."""

import pytest

from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig
from coreclip.errors import CoreclipError
from coreclip.training import FORMATS, compare_runtimes, runtimes_table, train
from coreclip.training.export_job import Format
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    at = tmp_path_factory.mktemp("trained")
    config = Config(
        data=DataConfig(image_size=16, batch_size=6, workers=1),
        model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
        train=TrainConfig(precision="fp32", signals=False, checkpoints=0),
    )
    data = make_dataset(at / "set", 12)
    train(data, at / "run", config=config, samples=12)
    return data, at / "run"


def test_each_runtime_is_timed_at_each_size(trained, monkeypatch):
    data, run = trained
    # As where openvino is not installed.
    monkeypatch.setitem(FORMATS, "openvino", Format("x", print, print, ("fp32",), ("no_such_package",)))  # type: ignore[arg-type]
    names = ("torch eager", "torchscript fp32", "openvino fp32")
    report = compare_runtimes(run, runtimes=names, batch_sizes=(1, 16), rounds=2, threads=1, dataset=data)
    found = {(t["runtime"], t["tower"], t["batch_size"]) for t in report["timings"]}
    assert found == {(n, t, s) for n in names[:2] for t in ("image_tower", "text_tower") for s in (1, 16)}
    for timing in report["timings"]:
        assert 0 < timing["low"] <= timing["milliseconds"] <= timing["high"]
        assert timing["per_second"] == pytest.approx(1000 * timing["batch_size"] / timing["milliseconds"])
    assert (report["threads"], report["rounds"], report["inputs"]) == (1, 2, "data set")
    assert list(report["left_out"]) == ["openvino fp32"]
    table = runtimes_table(report)
    head, rule, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2
    assert {line.count("|") for line in (head, rule, *rows)} == {10}
    assert "Left out: openvino fp32: format openvino needs no_such_package" in table
    assert "1 threads each, 2 rounds in turn, data set inputs." in table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtimes": ("tensorrt",)}, "runtime 'tensorrt' is unknown; it must be one of torch eager"),
        ({"batch_sizes": (0, 4)}, r"batch_sizes = \[0, 4\], rounds = 9 are not allowed"),
        ({"rounds": 0}, "rounds = 0 are not allowed"),
        ({"threads": 0}, "threads = 0 is not allowed"),
    ],
)
def test_what_can_not_be_measured_is_refused(trained, options, words):
    with pytest.raises(CoreclipError, match=words):
        compare_runtimes(trained[1], **options)
