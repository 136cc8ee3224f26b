"""Training runs on a dozen of small pictures: what they leave on disk, and that going on is the same as not stopping."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from coreclip import files
from coreclip.config import Config, DataConfig, ModelConfig, TrainConfig, load_config
from coreclip.errors import CoreclipError
from coreclip.files import lock
from coreclip.training import ClipModel, train, trainer
from coreclip.training.model import build_model
from coreclip.training.objectives import make_objective
from coreclip.training.schedule import Budget, learning_rate
from coreclip.training.signals import SignalRecorder
from coreclip.training.steps import Rows, decide_precision
from coreclip.training.store import kept_weights, load_checkpoint, load_kept
from tests.helpers import make_dataset

FLOATS = ("loss", "margin", "confidence", "entropy", "probability_margin", "el2n")

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=5, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", checkpoint_seconds=1e-6),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 12)


def settings(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


def weights(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)["model"]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Stop(Exception):
    pass


class StopAfter:
    """A watch that ends the run, and notes the stages."""

    def __init__(self, steps=math.inf):
        self.steps, self.stages, self.items = steps, [], 0

    def stage(self, name):
        self.stages.append(name)
        return nullcontext()

    def iterate(self, name, iterable):
        self.stages.append(name)
        return iter(iterable)

    def step(self, n_items):
        self.items += n_items
        self.steps -= 1
        if self.steps <= 0:
            raise Stop


def test_a_run_learns_and_leaves_its_files(data, tmp_path):
    report = train(data, tmp_path / "run", config=settings(lr=5e-3, checkpoint_seconds=60.0), epochs=25)
    assert (report.steps, report.samples_seen) == (75, 300)
    assert report.samples_per_second == pytest.approx(300 / report.seconds)
    first, *_, last = lines(tmp_path / "run")
    assert report.loss < 0.6 * first["loss"]
    assert (last["step"], last["samples_seen"]) == (75, 300)
    assert set(last) == {
        "step",
        "samples_seen",
        "seconds",
        "loss",
        "floor",
        "lr",
        "logit_scale",
        "samples_per_second",
        "wait_share",
        "broken",
    }
    assert load_config(tmp_path / "run" / "config.toml") == settings(lr=5e-3, checkpoint_seconds=60.0)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert record["asked"]["fingerprint"] == data.fingerprint
    assert record["asked"]["budget"] == {"epochs": 25}
    assert not list(tmp_path.rglob("*.tmp"))


def test_signals_hold_each_pass(data, tmp_path):
    train(data, tmp_path / "run", config=CONFIG, subset=np.arange(3, 12), epochs=2.5)
    loss, margin, correct = (
        np.load(tmp_path / "run" / "signals" / f"{name}.npy") for name in ("loss", "margin", "correct")
    )
    assert loss.shape == margin.shape == correct.shape == (3, 12)
    assert (loss.dtype, margin.dtype, correct.dtype) == (np.float32, np.float32, np.int8)
    assert np.isnan(loss[:, :3]).all()
    assert (correct[:, :3] == -1).all()
    assert np.isfinite(loss[:2, 3:]).all()
    assert np.isin(correct[:2, 3:], (0, 1)).all()
    assert np.isfinite(loss[2]).sum() == 4  # half a pass of nine, from even halves
    assert np.array_equal(np.isfinite(margin), np.isfinite(loss))
    rest = {name: np.load(tmp_path / "run" / "signals" / f"{name}.npy") for name in FLOATS[2:]}
    for values in rest.values():
        assert values.dtype == np.float32
        assert np.array_equal(np.isfinite(values), np.isfinite(loss))
    seen = np.isfinite(loss)
    assert ((rest["confidence"][seen] > 0.2) & (rest["confidence"][seen] <= 1)).all()  # of five pairs at most
    assert ((rest["entropy"][seen] > 0) & (rest["entropy"][seen] < np.log(5))).all()
    assert (rest["el2n"][seen] < np.sqrt(2)).all()


def test_signals_of_another_version_are_refused(tmp_path):
    state = SignalRecorder(tmp_path, 3).state_dict()
    del state["current"]["el2n"]
    with pytest.raises(
        CoreclipError, match=r"has the signals loss, .*this coreclip records .*el2n; finish the run with"
    ):
        SignalRecorder(tmp_path, 3).load_state_dict(state)


def test_no_signals_where_none_are_asked_for(data, tmp_path):
    train(data, tmp_path / "run", config=settings(signals=False), samples=5)
    assert not (tmp_path / "run" / "signals").exists()


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(data, tmp_path, stop_after):
    train(data, tmp_path / "whole", config=CONFIG, samples=33)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=CONFIG, samples=33, watch=StopAfter(stop_after))
    assert load_checkpoint(tmp_path / "parts")["place"]["step"] == stop_after
    report = train(data, tmp_path / "parts", config=CONFIG, samples=33)
    assert report.samples_seen == 33
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in (*FLOATS, "correct"):
        whole, parts = (np.load(tmp_path / run / "signals" / f"{name}.npy") for run in ("whole", "parts"))
        assert np.array_equal(whole, parts, equal_nan=name != "correct")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (tmp_path / "parts" / "model.safetensors").read_bytes()  # fmt: skip


def kept_steps(run):
    return [one.step for one in kept_weights(run)]


def test_weights_are_kept_from_the_middles_of_equal_parts(data, tmp_path):
    train(data, tmp_path / "run", config=settings(checkpoints=4), samples=80)  # batches of 5, 5 and 2
    seen = np.cumsum([5, 5, 2] * 7)
    assert kept_steps(tmp_path / "run") == [int(np.argmax(seen >= at)) + 1 for at in (10, 30, 50, 70)]
    assert (tmp_path / "run" / "checkpoints" / "00000002.safetensors").exists()
    rates = [one.learning_rate for one in kept_weights(tmp_path / "run")]
    fractions = [(seen[step - 1] - [5, 5, 2][(step - 1) % 3] / 2) / 80 for step in kept_steps(tmp_path / "run")]
    expected = [
        learning_rate(1e-3, 0.03, step=step - 1, fraction=fraction)
        for step, fraction in zip(kept_steps(tmp_path / "run"), fractions, strict=True)
    ]
    assert rates == expected
    models, _, _ = load_kept(tmp_path / "run", torch.device("cpu"))
    first, last = (model.text_projection.weight for _, model in (models[0], models[-1]))
    assert not torch.equal(first, last)


def test_as_many_weights_as_steps_are_kept_at_most_and_none_where_none_are_asked_for(data, tmp_path):
    train(data, tmp_path / "short", config=settings(checkpoints=50), samples=10)
    assert kept_steps(tmp_path / "short") == [1, 2]
    train(data, tmp_path / "none", config=settings(checkpoints=0), samples=10)
    with pytest.raises(CoreclipError, match=r"has no checkpoints/\*.safetensors.*train.checkpoints=5"):
        kept_weights(tmp_path / "none")


@pytest.mark.parametrize("stop_after", [2, 4, 6])
@pytest.mark.parametrize("seconds", [1e-6, 1e6])
def test_a_run_that_goes_on_keeps_the_same_weights(data, tmp_path, stop_after, seconds):
    config = settings(checkpoints=3, checkpoint_seconds=seconds)
    train(data, tmp_path / "whole", config=config, samples=33)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=config, samples=33, watch=StopAfter(stop_after))
    train(data, tmp_path / "parts", config=config, samples=33)
    files = [sorted((tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "parts")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert len(files[0]) == 3
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def test_weights_of_steps_that_are_done_again_are_dropped(data, tmp_path):
    """With time as the budget another step may be the one that is kept."""
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=settings(checkpoints=2), samples=60, watch=StopAfter(3))
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(exist_ok=True)
    (folder / "00000005.safetensors").write_bytes(b"of a step that is not in the checkpoint")
    train(data, tmp_path / "run", config=settings(checkpoints=2), samples=60)
    assert 5 not in kept_steps(tmp_path / "run")
    assert len(kept_steps(tmp_path / "run")) == 2


def test_deterministic_kernels_are_asked_for_while_training_alone(data, tmp_path):
    class Sees(StopAfter):
        def step(self, n_items):
            seen.append(torch.are_deterministic_algorithms_enabled())

    for wanted in (False, True):
        seen: list[bool] = []
        config = settings(deterministic=wanted)
        train(data, tmp_path / str(wanted), config=config, samples=20, watch=Sees())
        assert seen
        assert set(seen) == {wanted}
        assert not torch.are_deterministic_algorithms_enabled()
    plain, asked = (weights(tmp_path / str(wanted)) for wanted in (False, True))
    assert all(torch.equal(plain[name], asked[name]) for name in plain)


def test_a_time_budget_keeps_weights_evenly_in_time(data, tmp_path):
    train(data, tmp_path / "warm", config=settings(), samples=8)  # compiles and imports, which would take up the time
    report = train(data, tmp_path / "run", config=settings(checkpoints=3, checkpoint_seconds=60.0), minutes=0.08)
    steps = kept_steps(tmp_path / "run")
    assert len(steps) == 3
    assert steps == sorted(steps)
    assert steps[-1] < report.steps


def test_kept_weights_of_an_unfinished_run_and_damaged_ones_are_refused(data, tmp_path):
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=settings(checkpoints=3), samples=33, watch=StopAfter(5))
    with pytest.raises(CoreclipError, match="is not finished; run its train command again"):
        kept_weights(tmp_path / "run")
    train(data, tmp_path / "run", config=settings(checkpoints=3), samples=33)
    path = kept_weights(tmp_path / "run")[1].path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CoreclipError, match="is damaged or no checkpoint of a run"):
        kept_weights(tmp_path / "run")


def test_steps_since_the_last_checkpoint_are_done_again(data, tmp_path):
    rare = settings(checkpoint_seconds=1e6)
    train(data, tmp_path / "whole", config=rare, epochs=2)
    with pytest.raises(Stop):
        train(data, tmp_path / "parts", config=rare, epochs=2, watch=StopAfter(4))
    assert load_checkpoint(tmp_path / "parts") is None
    train(data, tmp_path / "parts", config=rare, epochs=2)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [line["step"] for line in lines(tmp_path / "parts")].count(1) == 1
    assert np.load(tmp_path / "parts" / "signals" / "loss.npy").shape == (2, 12)


def test_an_interrupt_writes_a_checkpoint(data, tmp_path):
    class Interrupt(StopAfter):
        def step(self, n_items):
            self.steps -= 1
            if self.steps == 0:
                os.kill(os.getpid(), signal.SIGINT)

    rare = settings(checkpoint_seconds=1e6)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", config=rare, epochs=4, watch=Interrupt(2))
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / "run")["place"]["step"] == 3  # the step under way is finished first


def test_a_killed_process_goes_on_bit_for_bit(data, tmp_path):
    """A process that ends without any cleaning up leaves a run that can be continued, and no lock."""
    script = (
        "import os, sys; from tests.unit.test_train import CONFIG, StopAfter; from coreclip.training import train\n"
        "from coreclip.pipeline import Dataset\n"
        "class Kill(StopAfter):\n"
        "    def step(self, n_items):\n"
        "        self.steps -= 1\n"
        "        if self.steps == 0: os._exit(9)\n"
        "train(Dataset(sys.argv[1]), sys.argv[2], config=CONFIG, epochs=3, threads=1, watch=Kill(4))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(data.path), str(tmp_path / "parts")],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 9
    train(data, tmp_path / "parts", config=CONFIG, epochs=3, threads=1)
    train(data, tmp_path / "whole", config=CONFIG, epochs=3, threads=1)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_weights_of_a_subset_reach_the_training(data, tmp_path):
    def trained(name, weights_of_pairs):
        subset = SimpleNamespace(indices=np.arange(data.n), weights=weights_of_pairs)
        train(data, tmp_path / name, config=CONFIG, epochs=1, subset=subset)
        return weights(tmp_path / name)

    ones, threes = (trained(f"all {value}", np.full(data.n, value)) for value in (1.0, 3.0))
    unequal = trained("unequal", np.linspace(0.1, 2.0, data.n))
    assert all(torch.equal(ones[name], threes[name]) for name in ones)  # only the ratios count
    assert not torch.equal(ones["image_projection.weight"], unequal["image_projection.weight"])


@pytest.mark.parametrize("changes", [{}, {"ema": 0.1, "checkpoints": 3}, {"signals": False}, {"optimiser": "muon"}])
def test_a_run_writes_no_more_than_was_asked_of_the_disk(data, tmp_path, monkeypatch, changes):
    asked = []
    monkeypatch.setattr(trainer, "check_free_disk", lambda path, n_bytes: asked.append(n_bytes))
    train(data, tmp_path / "run", config=settings(**changes), epochs=2)
    train(data, tmp_path / "run", config=settings(**changes), epochs=2)  # it is finished: nothing is asked
    [needed] = asked
    kinds = (".pt", ".safetensors", ".npy")
    sizes = {path: path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.suffix in kinds}
    written = sum(sizes.values()) + sizes[tmp_path / "run" / "checkpoint.pt"]  # the one before it lay beside it
    assert 0.6 * needed < written < needed + 40_000 * len(sizes)  # names and places of tensors, heads of files


def test_a_disk_that_is_too_full_is_told_of_before_anything_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_disk", lambda path: 1 << 20)
    with pytest.raises(CoreclipError, match=r"not enough disk for .*run: \d+ MiB needed, 1 MiB free"):
        train(data, tmp_path / "run", config=settings(checkpoints=40), samples=10)
    assert not list((tmp_path / "run").glob("*"))


def test_a_finished_run_is_returned_not_repeated(data, tmp_path):
    first = train(data, tmp_path / "run", config=CONFIG, samples=10)
    changed = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert train(data, tmp_path / "run", config=CONFIG, samples=10) == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == changed


def test_a_run_that_ended_just_before_its_report_makes_no_further_step(data, tmp_path):
    train(data, tmp_path / "run", config=CONFIG, samples=33)
    whole = weights(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"finished": False}))
    (tmp_path / "run" / "model.safetensors").unlink()
    report = train(data, tmp_path / "run", config=CONFIG, samples=33)
    assert (report.samples_seen, report.steps) == (33, record["report"]["steps"])
    again = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_of_one_cut_batch_still_learns(data, tmp_path):
    train(data, tmp_path / "run", config=CONFIG, samples=3)
    assert lines(tmp_path / "run")[0]["lr"] > 0


def test_a_run_with_other_settings_is_refused(data, tmp_path):
    train(data, tmp_path / "run", config=CONFIG, samples=10)
    with pytest.raises(CoreclipError, match=r"config.train.lr = 0.001, now 0.5 is asked for.*name another folder"):
        train(data, tmp_path / "run", config=settings(lr=0.5), samples=10)
    with pytest.raises(CoreclipError, match=r"budget.samples = 10, now 11"):
        train(data, tmp_path / "run", config=CONFIG, samples=11)
    with pytest.raises(CoreclipError, match=r"1 more difference"):
        train(data, tmp_path / "run", config=settings(lr=0.5, eps=0.1), samples=10)


def test_a_folder_of_somebody_else_is_refused(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CoreclipError, match="exists and is no run of coreclip"):
        train(data, tmp_path, config=CONFIG, samples=10)


def test_a_second_writer_is_refused(data, tmp_path):
    with lock(tmp_path / "run"), pytest.raises(CoreclipError, match="is being written by another process"):
        train(data, tmp_path / "run", config=CONFIG, samples=10)


def test_nothing_is_left_of_a_sitting_that_came_to_no_checkpoint(data, tmp_path):
    first = settings(checkpoint_seconds=60.0, checkpoints=4)
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=first, samples=60, watch=StopAfter(8))
    assert (tmp_path / "run" / "signals" / "loss.npy").exists()  # of the passes that were over
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    halves = [tmp_path / "run" / ".checkpoint.pt.7.tmp", tmp_path / "run" / "checkpoints" / ".x.7.tmp"]
    for half in halves:
        half.write_bytes(b"half")
    train(data, tmp_path / "run", config=settings(signals=False, checkpoints=0), samples=60)
    assert not (tmp_path / "run" / "signals").exists()
    assert not [half for half in halves if half.exists()]
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_checkpoint_of_another_version_is_refused(data, tmp_path):
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=CONFIG, samples=33, watch=StopAfter(1))
    state = load_checkpoint(tmp_path / "run")
    for change in ({"place": state["place"] | {"new": 1}}, {"new": 1}):
        torch.save(state | change, tmp_path / "run" / "checkpoint.pt")
        with pytest.raises(CoreclipError, match=r"checkpoint\.pt was written by another version of coreclip"):
            train(data, tmp_path / "run", config=CONFIG, samples=33)


@pytest.mark.parametrize("content", [b"", b"t", b"garbage of some length", bytes(100)])
def test_a_checkpoint_that_is_none_is_refused(data, tmp_path, content):
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=CONFIG, samples=33, watch=StopAfter(1))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CoreclipError, match=r"checkpoint.pt is damaged .* train again"):
        train(data, tmp_path / "run", config=CONFIG, samples=33)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(data, tmp_path):
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=CONFIG, samples=15, watch=StopAfter(1))
    torch.save({"place": Hostile(tmp_path / "ran")}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(CoreclipError, match=r"checkpoint.pt is damaged .* train again"):
        train(data, tmp_path / "run", config=CONFIG, samples=15)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_checkpoint_is_refused(data, tmp_path):
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=CONFIG, samples=33, watch=StopAfter(1))
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CoreclipError, match=r"checkpoint.pt is damaged .* train again"):
        train(data, tmp_path / "run", config=CONFIG, samples=33)


def test_a_loss_that_is_not_finite_names_the_step_and_the_pairs(data, tmp_path):
    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=CONFIG, samples=33, watch=StopAfter(1))
    state = load_checkpoint(tmp_path / "run")
    state["model"]["text_projection.weight"][0] = math.nan
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(
        CoreclipError, match=r"the loss is nan at step 1 \(batch with the indices \d+, .*lower train.lr"
    ):
        train(data, tmp_path / "run", config=CONFIG, samples=33)


def test_pairs_of_weight_zero_change_nothing(data, tmp_path):
    class Some:
        indices = np.array([0, 1, 2, 3, 4])
        weights = np.array([1.0, 1.0, 0.0, 1.0, 1.0])

    train(data, tmp_path / "run", config=CONFIG, subset=Some, epochs=1)
    loss = np.load(tmp_path / "run" / "signals" / "loss.npy")
    assert np.isnan(loss[0, 2])
    assert np.isfinite(loss[0, [0, 1, 3, 4]]).all()
    Some.weights = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    with pytest.raises(CoreclipError, match="no batch has two pairs with an image that decodes and a weight above 0"):
        train(data, tmp_path / "other", config=CONFIG, subset=Some, epochs=1)


def test_a_subset_of_one_pair_is_refused(data, tmp_path):
    with pytest.raises(CoreclipError, match="1 pairs to train on; a contrast needs 2"):
        train(data, tmp_path / "run", config=CONFIG, subset=np.array([3]), epochs=1)


def test_a_last_batch_of_one_pair_is_left_out(data, tmp_path):
    report = train(data, tmp_path / "run", config=CONFIG, subset=np.arange(11), epochs=1)
    assert report.samples_seen == 10
    assert np.isfinite(np.load(tmp_path / "run" / "signals" / "loss.npy")[0]).sum() == 10


def test_labels_join_pairs_of_one_class(tmp_path):
    labelled = make_dataset(tmp_path / "set", 10, labels=("cat", "dog"))
    train(labelled, tmp_path / "run", config=CONFIG, samples=10)
    assert lines(tmp_path / "run")[0]["floor"] > 0.5  # five pairs of two classes: at least two say the same


def test_the_watch_hears_every_stage(data, tmp_path):
    watch = StopAfter()
    train(data, tmp_path / "run", config=CONFIG, epochs=1, watch=watch)
    assert watch.items == 12
    step = ["transfer", "forward", "metrics", "backward", "metrics", "optimiser", "logging"]
    assert watch.stages == ["wait", *step * 3]


def test_a_time_budget_ends_in_time_and_the_rate_falls_with_it(data, tmp_path):
    begin = time.monotonic()
    report = train(data, tmp_path / "run", config=settings(checkpoint_seconds=60.0), minutes=0.05)
    assert 1.5 < time.monotonic() - begin <= 3.5
    assert report.seconds <= 3.2
    rates = [line["lr"] for line in lines(tmp_path / "run")]
    assert rates[-1] < max(rates)  # how near to zero depends on how long the last step takes on this machine


def test_time_before_the_call_counts(data, tmp_path, capsys):
    report = train(data, tmp_path / "run", config=CONFIG, minutes=0.05, started=time.monotonic() - 60)
    assert report.steps == 1  # one step is always made
    assert "the budget was used up by the start, which took 6" in capsys.readouterr().err


def test_a_start_from_another_run_takes_its_weights_and_tokenizer(data, tmp_path):
    train(data, tmp_path / "first", config=CONFIG, samples=10)
    other = make_dataset(tmp_path / "other", 9, captions_per_pair=(1,))
    train(other, tmp_path / "second", config=settings(lr=1e-9), samples=5, init_from=tmp_path / "first")
    a, b = ClipModel.load(tmp_path / "first"), ClipModel.load(tmp_path / "second")
    assert a.tokenizer.sha256 == b.tokenizer.sha256 != other.tokenizer_sha256
    torch.testing.assert_close(a.network.text_projection.weight, b.network.text_projection.weight)
    wider = replace(CONFIG, model=replace(CONFIG.model, embed_dim=16))
    with pytest.raises(
        CoreclipError, match=r"has model.embed_dim = 8, the configuration asks for 16; a start keeps its model"
    ):
        train(other, tmp_path / "third", config=wider, samples=5, init_from=tmp_path / "first")


def test_the_choice_of_precision_leaves_the_model_alone_and_is_kept(data, tmp_path):
    model = build_model(CONFIG, vocab_size=300, seed=0)
    objective = make_objective(data, CONFIG, data.tokenizer())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = torch.tensor([[1, 9, 8, 2], [1, 7, 2, 0]])
    rows = Rows(
        torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        tokens,
        torch.tensor([4, 3]),
        torch.ones(2),
        None,
        np.arange(2),
        1.0,
        [],
    )
    decision = decide_precision(model, rows, "auto", objective)
    assert set(decision["precision_seconds_per_step"]) == {"fp32", "bf16"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.logit_scale.grad is None
    assert decide_precision(model, rows, "bf16", objective) == {"precision": "bf16"}

    with pytest.raises(Stop):
        train(data, tmp_path / "run", config=settings(precision="auto"), samples=15, watch=StopAfter(1))
    decisions = json.loads((tmp_path / "run" / "run.json").read_text())["decisions"]
    assert decisions["precision"] in ("fp32", "bf16")
    train(data, tmp_path / "run", config=settings(precision="auto"), samples=15)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["decisions"] == decisions


def test_bf16_trains_too(data, tmp_path):
    assert math.isfinite(train(data, tmp_path / "run", config=settings(precision="bf16"), samples=10).loss)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of minutes, samples, epochs; none given"),
        ({"samples": 5, "epochs": 1}, "samples, epochs given"),
        ({"minutes": 0}, "minutes = 0 is not allowed"),
        ({"samples": -3}, "samples = -3 is not allowed"),
        ({"epochs": math.nan}, "epochs = nan is not allowed"),
    ],
)
def test_a_budget_that_is_none_is_refused(given, message):
    with pytest.raises(CoreclipError, match=message):
        Budget(**given)


def test_threads_below_one_are_refused(data, tmp_path):
    with pytest.raises(CoreclipError, match="threads = 0 is not allowed"):
        train(data, tmp_path / "run", config=CONFIG, samples=5, threads=0)


def test_the_learning_rate_rises_then_falls_to_zero():
    def rates(steps, warmup=0.03):
        return [learning_rate(1.0, warmup, step=step, fraction=(step + 0.5) / steps) for step in range(steps)]

    long, short = rates(10_000), rates(50)
    assert 295 <= int(np.argmax(long)) <= 305  # 3 %
    assert 9 <= int(np.argmax(short)) <= 11  # 100 steps would be twice the budget: a fifth
    assert 98 <= int(np.argmax(rates(1000))) <= 101  # 100 steps are more than 3 %
    for series in (long, short):
        assert series[0] > 0
        assert series[-1] < 1e-2
        assert np.all(np.diff(series[int(np.argmax(series)) :]) < 0)
    assert int(np.argmax(rates(50, warmup=0.0))) == 0
