"""Verdicts: fine thresholds on synthetic measurements, and planted faults with real loaders, threads and sleeps."""

import json
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.profiling import (
    VERDICTS,
    Condition,
    StageRecorder,
    StepRecords,
    SystemWindow,
    diagnose,
    diagnose_records,
    find_growth,
    fit_growth,
    run_conditions,
)
from coreclip.profiling.recorder import count_items
from coreclip.profiling.system import SystemUse
from tests.helpers import one_ahead

_QUICK = {"steps": 9, "warmup": 3, "repeats": 3}


def _records(**stages):
    """Records from milliseconds per stage: a number for all 40 steps, or an array."""
    table = np.stack([np.broadcast_to(np.asarray(times, float), (40,)) for times in stages.values()], axis=1)
    return StepRecords(
        stages=tuple(stages),
        milliseconds=table,
        cpu_milliseconds=table,
        device_milliseconds=None,
        items=np.full(40, 32),
        number=np.arange(40),
    )


def _conditions(real, compute, loader, cpu=(0.0, 0.0)):
    noise = np.array([0.99, 1.0, 1.01, 1.0])
    cpus = {"real": sum(cpu), "compute": cpu[0], "loader": cpu[1]}
    means = {"real": real, "compute": compute, "loader": loader}
    return {
        name: Condition(name=name, blocks=mean * noise, cpu_milliseconds=cpus[name]) for name, mean in means.items()
    }


def _system(*, busy_cores=1.0, starved=0.0, throttled=0.0, machine_cores=None):
    return SystemUse(
        seconds=10.0, cores=2.0, cpu_seconds=10 * busy_cores, child_cpu_seconds=0.0, caller_cpu_seconds=5.0,
        caller_run_queue_seconds=10 * starved, run_queue_seconds=10 * starved, threads=(), n_threads=3,
        throttled_seconds=10 * throttled, throttled_periods=0, minor_faults=0, major_faults=0,
        involuntary_switches=0, rss_bytes=None, read_bytes=None,
        machine_cpu_seconds=None if machine_cores is None else 10 * machine_cores, steal_seconds=None,
    )  # fmt: skip


def _judge(records, conditions=None, **more):
    return diagnose_records(records, conditions=conditions, cores=2.0, **more)


def test_waiting_for_a_slow_loader_is_data_bound():
    diagnosis = _judge(_records(wait=30, step=20), _conditions(50, 20, 50))
    assert diagnosis.verdict == "data-bound"
    assert diagnosis.loader_cap == pytest.approx(2.5)
    assert diagnosis.stages["wait"]["share"] == pytest.approx(0.6)
    assert diagnosis.steps_per_second == pytest.approx(20)
    assert diagnosis.samples_per_second == pytest.approx(640)


def test_slower_step_without_waiting_is_contention():
    diagnosis = _judge(
        _records(wait=1, step=149), _conditions(150, 100, 50, cpu=(200, 100)), system=_system(busy_cores=2.0)
    )
    assert diagnosis.verdict == "contention"
    assert "step and loader need 150.0 ms of 2 cores" in diagnosis.evidence


def test_waiting_for_a_loader_that_alone_is_quick_is_contention_where_the_cores_are_full():
    records, conditions = _records(wait=40, step=100), _conditions(140, 100, 80)
    assert _judge(records, conditions, system=_system(busy_cores=1.9)).verdict == "contention"
    assert _judge(records, conditions, system=_system(busy_cores=1.0)).verdict == "data-bound"


def test_slower_step_within_the_noise_is_no_contention():
    conditions = _conditions(110, 100, 20)
    conditions["compute"] = Condition(name="compute", blocks=np.array([75.0, 95.0, 105.0, 125.0]))
    assert _judge(_records(step=110), conditions).verdict == "compute-bound"


def test_transfer_metrics_and_computing_are_told_apart():
    assert _judge(_records(wait=1, transfer=20, forward=60)).verdict == "transfer-bound"
    assert _judge(_records(wait=1, forward=60, metrics=8, logging=8)).verdict == "metric-or-logging"
    assert _judge(_records(wait=1, forward=30, backward=60)).verdict == "compute-bound"


def test_losses_that_are_large_only_together_are_balanced():
    assert _judge(_records(wait=6, transfer=6, metrics=6, forward=82)).verdict == "balanced"
    assert _judge(_records(wait=2, forward=98)).verdict == "compute-bound"


def test_loader_without_slack_is_balanced():
    assert _judge(_records(wait=2, step=98), _conditions(100, 98, 95)).verdict == "balanced"
    assert _judge(_records(wait=2, step=98), _conditions(100, 98, 40)).verdict == "compute-bound"


def test_threshold_of_a_loss_is_ten_per_cent():
    assert _judge(_records(wait=11, forward=89)).verdict == "data-bound"
    assert _judge(_records(wait=9, forward=91)).verdict == "compute-bound"


def test_starved_loop_without_differential_runs_is_contention():
    records = _records(wait=1, forward=99)
    assert _judge(records, system=_system(starved=0.3)).verdict == "contention"
    assert _judge(records, system=_system(throttled=0.3)).verdict == "contention"
    assert _judge(records, system=_system()).verdict == "compute-bound"


def test_other_processes_are_not_taken_for_the_loader():
    records = _records(wait=1, forward=99)
    crowded = _judge(records, system=_system(busy_cores=0.55, starved=0.7, machine_cores=2.0))
    assert crowded.verdict == "compute-bound"
    assert any("other processes kept 1.45 cores busy" in line for line in crowded.evidence)
    alone = _judge(records, system=_system(busy_cores=1.9, starved=0.3, machine_cores=2.0))
    assert alone.verdict == "contention"


def test_growing_stage_is_named_and_projected():
    records = _records(forward=50, metrics=np.arange(40) * 1.0)
    diagnosis = _judge(records, total_steps=1000)
    assert diagnosis.verdict == "growing-cost"
    assert diagnosis.growth.stage == "metrics"
    assert diagnosis.growth.at(1000) == pytest.approx(1000)
    line = next(line for line in diagnosis.evidence if "grows" in line)
    assert "'metrics' grows by 1 ms" in line
    assert "after 1,000 steps, it would take 1000.0 ms" in line


def test_small_growth_counts_only_in_a_long_run():
    records = _records(forward=100, metrics=np.arange(40) * 0.2)
    assert find_growth(records) is None
    assert find_growth(records, total_steps=10_000).stage == "metrics"


def test_noise_shrinking_and_one_jump_are_no_growth():
    rng = np.random.default_rng(0)
    assert find_growth(_records(forward=50 + rng.normal(0, 5, 40))) is None
    assert find_growth(_records(forward=np.linspace(90, 50, 40))) is None
    assert find_growth(_records(forward=np.where(np.arange(40) > 35, 500.0, 50.0))) is None


def test_fit_survives_outliers():
    times = 10 + 0.5 * np.arange(60.0)
    times[::9] += 400
    growth = fit_growth(np.arange(60), times)
    assert growth.milliseconds_per_call == pytest.approx(0.5, abs=0.01)
    assert growth.low <= 0.5 <= growth.high
    assert growth.milliseconds == pytest.approx(10, abs=0.5)


def test_every_dictionary_is_json_with_the_promised_keys():
    diagnosis = _judge(_records(wait=30, step=20), _conditions(50, 20, 50, cpu=(20, 50)), system=_system())
    table = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert {"verdict", "stages", "remedies", "evidence", "steps_per_second", "samples_per_second"} <= set(table)
    assert {"conditions", "system"} <= set(table)
    assert {"milliseconds_per_step", "share", "p95"} <= set(table["stages"]["wait"])
    assert {"name", "predicted_speedup", "low", "high", "measured_speedup", "change"} <= set(table["remedies"][0])
    assert table["conditions"]["compute"]["low"] <= 20 <= table["conditions"]["compute"]["high"]
    assert all(any(letter.isdigit() for letter in line) for line in table["evidence"])


def test_same_measurements_same_diagnosis():
    records, conditions = _records(wait=30, step=20), _conditions(50, 20, 50)
    assert _judge(records, conditions).to_dict() == _judge(records, conditions).to_dict()


class _Loader:
    """Batches that sleep, in the loop's thread or ahead of it in one of their own."""

    def __init__(self, seconds, n=14, threaded=False):
        self.seconds, self.n, self.threaded, self.started = seconds, n, threaded, 0

    def __len__(self):
        return self.n

    def __iter__(self):
        self.started += 1
        return one_ahead(self._make()) if self.threaded else self._make()

    def _make(self):
        for i in range(self.n):
            time.sleep(self.seconds)
            yield np.full(4, i)


def test_planted_sleep_in_a_threaded_loader_is_data_bound():
    loader = _Loader(0.04, threaded=True)
    diagnosis = diagnose(lambda batch: time.sleep(0.01), loader, **_QUICK)
    assert diagnosis.verdict == "data-bound"
    assert loader.started > 6  # stopped and started again for each block
    assert diagnosis.loader_cap > 1.5
    assert {"wait", "step", "other"} == set(diagnosis.stages)
    assert diagnosis.stages["wait"]["milliseconds_per_step"] >= 15
    assert not [thread for thread in threading.enumerate() if thread.name == "filler"]


def test_planted_busy_step_with_an_instant_loader_is_compute_bound():
    diagnosis = diagnose(lambda batch: time.sleep(0.03), [np.zeros(4)] * 14, **_QUICK)
    assert diagnosis.verdict == "compute-bound"
    assert diagnosis.conditions["compute"].milliseconds >= 30


def test_planted_sleep_in_the_transfer_is_transfer_bound():
    recorder = StageRecorder()

    def step(batch):
        with recorder.stage("transfer"):
            time.sleep(0.03)
        with recorder.stage("forward"):
            time.sleep(0.01)

    diagnosis = diagnose(step, [np.zeros(4)] * 14, recorder=recorder, **_QUICK)
    assert diagnosis.verdict == "transfer-bound"
    assert diagnosis.stages["transfer"]["p95"] >= 30


def test_planted_growing_metric_is_found():
    recorder, history = StageRecorder(), []

    def step(batch):
        with recorder.stage("forward"):
            time.sleep(0.02)
        with recorder.stage("metrics"):
            history.append(batch)
            time.sleep(0.001 * len(history))

    diagnosis = diagnose(step, [np.zeros(4)] * 14, recorder=recorder, total_steps=500, **_QUICK)
    assert diagnosis.verdict == "growing-cost"
    assert diagnosis.growth.stage == "metrics"
    assert 0.8 <= diagnosis.growth.milliseconds_per_call <= 1.3


def test_planted_spin_that_takes_the_cores_is_contention():
    class Spinner(_Loader):
        """Its threads burn the interpreter's time while the loader runs, and have every batch ready at once."""

        def _make(self):
            stop = threading.Event()

            def spin():
                while not stop.is_set():
                    sum(range(2000))

            threads = [threading.Thread(target=spin) for _ in range(2)]
            for thread in threads:
                thread.start()
            try:
                for i in range(self.n):
                    yield np.full(4, i)
            finally:
                stop.set()
                for thread in threads:
                    thread.join()

    def step(batch):
        end = time.thread_time() + 0.015
        while time.thread_time() < end:
            sum(range(500))

    diagnosis = diagnose(step, Spinner(0), **_QUICK)
    assert diagnosis.verdict == "contention"
    assert diagnosis.loader_cap > 1.3


def test_loading_that_does_not_overlap_gets_the_prefetch_remedy():
    diagnosis = diagnose(lambda batch: time.sleep(0.03), _Loader(0.03), **_QUICK)
    remedy = next(remedy for remedy in diagnosis.remedies if remedy.name == "prefetch")
    assert 1.3 < remedy.predicted_speedup <= 2.2  # 2 with sleeps alone; other processes lengthen both parts


def test_conditions_leave_out_warm_up_and_number_calls():
    loader = _Loader(0.0, n=9)
    run = run_conditions(lambda batch: None, loader, steps=8, warmup=2, repeats=2)
    assert list(run.conditions) == ["real", "replay", "compute", "loader"]
    assert len(run.records) == 8
    assert len(run.calls) == 24  # real, replay and compute call the step function
    assert run.records.items.tolist() == [4] * 8
    assert (np.diff(run.calls.number) > 0).all()
    assert run.calls.number[0] == 2
    assert {len(condition.blocks) for condition in run.conditions.values()} == {2}


def test_conditions_know_their_calls_and_stages():
    recorder = StageRecorder()

    def step(batch):
        with recorder.stage("metrics"):
            time.sleep(0.001)

    interval = sys.getswitchinterval()
    run = run_conditions(step, _Loader(0.0, n=9), steps=8, warmup=2, repeats=2, recorder=recorder)
    assert sys.getswitchinterval() == interval
    assert run.conditions["loader"].calls is None
    # Six calls a block: two to warm up, four that are measured.
    assert run.conditions["real"].calls.tolist() == [3.5, 21.5]
    assert run.conditions["compute"].calls.tolist() == [15.5, 33.5]
    for name in ("real", "replay", "compute"):
        blocks = run.conditions[name].blocks
        assert (run.conditions[name].stages["metrics"] >= 1).all()
        assert sum(run.conditions[name].stages.values()) == pytest.approx(blocks)


def test_what_the_loader_slows_in_a_stage_is_contention():
    records = _records(wait=0.0, transfer=50.0, forward=100.0)
    conditions = _conditions(150.0, 130.0, 10.0)
    stages = {"transfer": np.full(4, 30.0), "forward": np.full(4, 100.0)}
    conditions["replay"] = Condition(name="replay", blocks=np.full(4, 130.0), stages=stages)
    found = {finding.verdict: finding for finding in _judge(records, conditions).findings}
    assert found["transfer-bound"].milliseconds == pytest.approx(30)
    assert found["contention"].milliseconds == pytest.approx(20, abs=2)


def test_growth_is_taken_out_of_what_conditions_are_compared_by():
    """A step that grows is longer in the condition that comes later, and that is no gain of the one before."""
    number = np.concatenate([first + np.arange(10) for first in (10, 40, 70, 100)])
    records = replace(_records(metrics=1.0 * number, forward=100.0), number=number)
    noise = np.array([0.0, 1.0, -1.0, 0.0])
    conditions = {
        name: Condition(
            name=name, blocks=100.0 + calls + noise, calls=calls,
            stages={"metrics": calls, "forward": np.full(4, 100.0)}, cpu_milliseconds=0.0,
        )
        for name, calls in (
            ("real", np.array([14.5, 44.5, 74.5, 104.5])),
            ("replay", np.array([24.5, 54.5, 84.5, 114.5])),
            ("compute", np.array([34.5, 64.5, 94.5, 124.5])),
        )
    }  # fmt: skip
    conditions["loader"] = Condition(name="loader", blocks=np.full(4, 1.0), cpu_milliseconds=0.0)
    diagnosis = _judge(records, conditions, total_steps=100)
    (growing,) = (finding for finding in diagnosis.findings if finding.verdict == "growing-cost")
    assert growing.cause_milliseconds == pytest.approx(1.0)
    assert growing.speedup == pytest.approx(150 / 100, rel=0.02)
    assert diagnosis.loader_cap == pytest.approx(1.0, abs=0.02)


def test_cold_condition_forgets_before_each_of_its_blocks_and_trials_surround_theirs():
    events = []

    class Trial:
        def __enter__(self):
            events.append("in")

        def __exit__(self, *_):
            events.append("out")

    run = run_conditions(
        lambda batch: events.append("step"), _Loader(0.0, n=9), steps=4, warmup=1, repeats=2,
        forget=lambda: events.append("forget"), trials={"fewer": Trial},
    )  # fmt: skip
    assert list(run.conditions) == ["real", "replay", "compute", "loader", "cold", "fewer"]
    assert events.count("forget") == 2
    text = " ".join(events)
    assert text.count("forget step step step in step step step out") == 2  # a warm-up and two measured steps each


def test_transfer_is_timed_and_left_out_where_the_batch_lies_ready():
    seen = []

    def transfer(batch):
        time.sleep(0.02)
        return ("moved", batch)

    run = run_conditions(seen.append, _Loader(0.0, n=9), transfer=transfer, steps=4, warmup=1, repeats=2)
    assert all(isinstance(batch, tuple) for batch in seen)
    assert run.conditions["replay"].milliseconds >= 20 > run.conditions["compute"].milliseconds
    assert (run.records.column("transfer") >= 20).all()


def test_replay_computes_on_several_batches_and_compute_on_one():
    seen = []
    run_conditions(lambda batch: seen.append(int(batch[0])), _Loader(0.0, n=9), steps=8, warmup=1, repeats=2)
    per_block = 5
    replayed, resident = seen[per_block : 2 * per_block], seen[2 * per_block : 3 * per_block]
    assert replayed == [0, 1, 2, 3, 4]
    assert resident == [0] * per_block


def test_loader_that_ends_within_a_block_is_warmed_up_again():
    class Cold(_Loader):
        def _make(self):
            for i in range(self.n):
                time.sleep(0.03 if i < 2 else 0)
                yield np.zeros(4)

    run = run_conditions(lambda batch: None, Cold(0, n=4), steps=10, warmup=2, repeats=2)
    assert (run.records.column("wait") >= 30).sum() <= 1  # of 10; a busy machine may stall one


def test_given_resident_batch_is_what_the_step_computes_on():
    seen = []
    run_conditions(seen.append, _Loader(0.0), steps=4, warmup=1, repeats=2, resident_batch="mine")
    assert "mine" in [batch for batch in seen if isinstance(batch, str)]


def test_loader_is_closed_when_the_step_fails():
    def step(batch):
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        run_conditions(step, _Loader(0.0, threaded=True), steps=4, warmup=1, repeats=2)
    assert not [thread for thread in threading.enumerate() if thread.name == "filler"]


@pytest.mark.parametrize(
    ("batch", "n"),
    [
        (np.zeros((5, 2)), 5),
        ((np.zeros((6, 2)), np.zeros(6)), 6),
        ({"images": np.zeros((7, 3))}, 7),
        ([1, 2, 3], 3),
        (3.5, 1),
        ({}, 0),
        (type("Batch", (), {"images": np.zeros((2, 3))})(), 2),
    ],
)
def test_items_of_a_batch_are_counted(batch, n):
    assert count_items(batch) == n


_recorder = StageRecorder()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: diagnose(3, [1] * 20), "step is a int, not callable"),
        (lambda: diagnose(print, 3), "loader is a int, not iterable"),
        (lambda: diagnose(print, iter([1] * 20)), "can't be started again"),
        (lambda: diagnose(print, [1] * 20, transfer=3), "transfer is a int, not callable"),
        (lambda: run_conditions(print, [1] * 20, trials={"real": None}), "a trial named 'real' is not allowed"),
        (lambda: diagnose(print, []), "yields no batch"),
        (lambda: diagnose(lambda b: None, [1] * 5, warmup=5), "yields only 5 batches, too few"),
        (lambda: diagnose(print, [1] * 20, steps=2), "steps = 2 is not allowed: at least 4"),
        (lambda: diagnose(print, [1] * 20, steps=4, repeats=5), "fewer than repeats = 5"),
        (lambda: diagnose(print, [1] * 20, warmup=0), "warmup = 0 is not allowed"),
        (lambda: diagnose(print, [1] * 20, repeats=1), "repeats = 1 is not allowed"),
        (lambda: diagnose(lambda b: _recorder.step(), [1] * 20, recorder=_recorder), "calls recorder.step"),
        (lambda: _judge(_records(forward=1).skip(38)), "2 measured steps are too few"),
        (
            lambda: _judge(_records(step=1), {"real": _conditions(1, 1, 1)["real"]}),
            "differential runs lack compute, loader",
        ),
        (
            lambda: _judge(_records(step=1), _conditions(1, 1, 1) | {"loader": Condition(name="loader", blocks=np.ones(3))}),
            "differ in their blocks",
        ),
        (lambda: fit_growth(np.arange(1), np.zeros(1)), "at least 2 calls"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(act, message):
    with pytest.raises(CoreclipError, match=message):
        act()


def test_recorded_run_is_judged_without_differential_runs():
    recorder = StageRecorder()
    with SystemWindow() as window:
        for _ in recorder.iterate("wait", _Loader(0.02)):
            with recorder.stage("forward"):
                time.sleep(0.005)
            recorder.step(4)
    diagnosis = diagnose_records(recorder.records.skip(2), system=window.use)
    assert diagnosis.verdict == "data-bound"
    assert diagnosis.loader_cap is None
    assert list(diagnosis.conditions) == ["real"]
    assert diagnosis.verdict in VERDICTS
