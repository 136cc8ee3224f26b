"""Detectors on synthetic measurements: each names its own fault, and what it takes."""

import numpy as np
import pytest

from coreclip.profiling import Condition, Growth, ReadBack, Stalls
from coreclip.profiling.elsewhere import ThreadStage
from coreclip.profiling.findings import find, verdict
from coreclip.profiling.situation import Situation
from coreclip.profiling.system import SystemUse
from coreclip.profiling.threadpools import THREAD_LIMIT


def situation(*, wait=0.0, slowed=0.0, compute=100.0, **more):
    noise = 1 + 0.01 * np.linspace(-1, 1, 41)
    costs = {"wait": wait, "slowed": slowed, "compute": compute, "real": wait + slowed + compute}
    costs |= {name: more.pop(name, 0.0) for name in ("transfer", "side", "matmul")}
    costs |= {name: more.pop(name) for name in ("loader", THREAD_LIMIT.replace("-", "_")) if name in more}
    draws = {name.replace("thread_limit", THREAD_LIMIT): value * noise for name, value in costs.items()}
    more = {"stages": {"wait": wait, "forward": compute}, **more}
    return Situation(draws=draws, cores=2.0, **more)


def judged(s):
    findings = find(s)
    return verdict(s, findings), {finding.verdict: finding for finding in findings}


def condition(name, milliseconds=100.0, **more):
    return Condition(name=name, blocks=np.full(3, milliseconds), cpu_milliseconds=milliseconds, **more)


def use(**more):
    base = {
        "seconds": 10.0, "cores": 2.0, "cpu_seconds": 10.0, "child_cpu_seconds": 0.0, "caller_cpu_seconds": 9.0,
        "caller_run_queue_seconds": 0.0, "run_queue_seconds": 0.0, "threads": (), "n_threads": 2, "throttled_seconds": None,
        "throttled_periods": None, "minor_faults": 0, "major_faults": 0, "involuntary_switches": 0, "rss_bytes": None,
        "read_bytes": None, "machine_cpu_seconds": None, "steal_seconds": None,
    }  # fmt: skip
    return SystemUse(**{**base, **more})


def test_without_losses_the_longest_stage_computes():
    assert judged(situation())[0] == ("compute-bound", "forward")


def test_stall_is_shared_out_among_the_steps():
    stalls = Stalls(stage="logging", period=10, first=0, milliseconds=300, low=290, high=310, seen=5)
    (name, cause), found = judged(situation(stalls=stalls))
    assert (name, cause) == ("periodic-stall", "logging")
    assert found[name].milliseconds == pytest.approx(30)
    assert found[name].cause_milliseconds == 300
    assert found[name].speedup == pytest.approx(1.3, rel=0.02)
    assert "every 10th step" in found[name].evidence


def test_beside_a_stall_that_stays_other_losses_are_parts_of_the_whole_step():
    stalls = Stalls(stage="logging", period=10, first=0, milliseconds=1000, low=990, high=1010, seen=5)
    _, found = judged(situation(wait=100.0, transfer=50.0, stalls=stalls))
    assert found["data-bound"].share == pytest.approx(100 / 300, rel=0.02)
    assert found["data-bound"].speedup == pytest.approx(300 / 200, rel=0.02)
    assert found["transfer-bound"].speedup == pytest.approx(300 / 250, rel=0.02)
    assert found["periodic-stall"].speedup == pytest.approx(300 / 200, rel=0.02)


def test_time_outside_stages_is_a_part_of_the_step_without_its_stalls():
    stalls = Stalls(stage="logging", period=10, first=0, milliseconds=1000, low=990, high=1010, seen=5)
    stages = {"logging": 1.0, "other": 99.0}
    (name, _), found = judged(situation(stages=stages, stalls=stalls))
    assert name == "periodic-stall"
    assert "unwatched" not in found  # 99 of 200 ms
    (name, _), found = judged(situation(stages=stages))
    assert name == "unwatched"
    assert found[name].milliseconds == pytest.approx(99, rel=0.02)


def test_read_backs_are_named_by_their_line_and_taken_off_the_metrics():
    reads = [ReadBack(where="train.py:7", method="item", stage="metrics", calls=1000, milliseconds=25)]
    (name, cause), found = judged(situation(side=30.0, read_backs=reads))
    assert (name, cause) == ("synchronisation", "train.py:7")
    assert found["metric-or-logging"].milliseconds == pytest.approx(5, abs=0.5)
    assert "1,000 times" in found[name].evidence


def test_on_a_gpu_metrics_keep_what_reading_back_takes():
    reads = [ReadBack(where="train.py:7", method="item", stage="metrics", calls=1000, milliseconds=25)]
    (name, _), found = judged(situation(side=30.0, read_backs=reads, setting={"device": "cuda"}))
    assert name == "metric-or-logging"
    assert found[name].milliseconds == pytest.approx(30, abs=0.5)


def test_on_a_gpu_waiting_for_the_device_is_no_loss():
    reads = [ReadBack(where="train.py:7", method="item", stage="forward", calls=1, milliseconds=60)]
    assert judged(situation(read_backs=reads, setting={"device": "cuda"}))[0][0] == "compute-bound"


def test_fewer_threads_that_are_faster_show_oversubscription():
    (name, _), found = judged(situation(thread_limit=60.0))
    assert name == "oversubscription"
    assert found[name].speedup == pytest.approx(100 / 60, rel=0.03)
    assert judged(situation(thread_limit=99.0))[0][0] == "compute-bound"


@pytest.mark.parametrize(("late", "cause"), [(4.0, "interpreter lock"), (0.2, "cores")])
def test_contention_is_for_the_lock_or_for_cores(late, cause):
    conditions = {
        "real": condition("real", lock_milliseconds=late),
        "replay": condition("replay", lock_milliseconds=0.1),
        "compute": condition("compute"),
        "loader": condition("loader", 20.0),
    }
    assert judged(situation(slowed=40.0, loader=20.0, conditions=conditions))[0] == ("contention", cause)


def test_waiting_that_contention_brings_about_is_contentions():
    def conditions(late):
        return {
            "real": condition("real", lock_milliseconds=late),
            "replay": condition("replay", lock_milliseconds=0.1),
            "compute": condition("compute"),
            "loader": condition("loader", 60.0),
        }

    # Alone the loader takes 60 of the step's 100 ms: it is waited for because the two are in each other's way.
    _, found = judged(situation(wait=10.0, slowed=30.0, loader=60.0, conditions=conditions(late=4.0)))
    assert found["contention"].milliseconds == pytest.approx(40, rel=0.01)
    assert found["contention"].speedup == pytest.approx(1.4, rel=0.01)
    assert "data-bound" not in found
    # A loader that alone is slower than the step is waited for in any case.
    _, found = judged(situation(wait=10.0, slowed=30.0, loader=110.0, conditions=conditions(late=4.0)))
    assert found["contention"].milliseconds == pytest.approx(30, rel=0.01)
    assert found["data-bound"].milliseconds == pytest.approx(10, rel=0.01)
    # So is one that is quick in the mean, where neither the lock nor the cores are short.
    _, found = judged(situation(wait=10.0, slowed=30.0, loader=60.0, conditions=conditions(late=0.2)))
    assert found["data-bound"].milliseconds == pytest.approx(10, rel=0.01)


def test_loaders_dearest_stage_is_the_cause_and_hidden_work_saves_nothing():
    threads = {"read": ThreadStage(90.0, 5.0, 10), "decode": ThreadStage(60.0, 60.0, 10)}
    conditions = {
        name: condition(name, milliseconds, threads=threads)
        for name, milliseconds in (("real", 150.0), ("compute", 100.0), ("loader", 150.0))
    }
    (name, cause), found = judged(
        situation(wait=50.0, loader=150.0, conditions=conditions, threads={"read": 90.0, "decode": 60.0})
    )
    assert (name, cause) == ("data-bound", "read")
    assert found[name].cause_milliseconds == pytest.approx(90)
    # Without reading the loader takes 60 ms, less than the step: all waiting goes.
    assert found[name].speedup == pytest.approx(1.5, rel=0.02)


def test_a_loader_that_uses_no_core_is_idle():
    conditions = {name: condition(name, use=use()) for name in ("real", "compute", "loader")}
    assert judged(situation(wait=50.0, loader=150.0, loader_cores=0.02, conditions=conditions))[0] == (
        "data-bound",
        "idle",
    )
    assert judged(situation(wait=50.0, loader=150.0, loader_cores=1.5, conditions=conditions))[0][1] == "computing"


def test_a_step_that_is_slower_after_waiting_is_no_contention_while_cores_are_free():
    conditions = {name: condition(name, use=use()) for name in ("real", "replay", "compute", "loader")}
    free = use(cpu_seconds=10.0)  # of 20 that the cores have
    (name, cause), found = judged(
        situation(wait=40.0, slowed=10.0, loader=150.0, loader_cores=0.02, conditions=conditions, use=free)
    )
    assert (name, cause) == ("data-bound", "idle")
    assert found[name].milliseconds == pytest.approx(50, rel=0.01)
    assert found[name].speedup == pytest.approx(1.5, rel=0.01)
    assert "contention" not in found
    full = use(cpu_seconds=19.0)
    _, found = judged(
        situation(wait=40.0, slowed=10.0, loader=150.0, loader_cores=1.5, conditions=conditions, use=full)
    )
    assert found["contention"].milliseconds == pytest.approx(10, rel=0.01)


def test_fresh_pages_and_too_little_memory():
    conditions = {name: condition(name) for name in ("real", "compute", "replay", "loader")}
    pages = use(caller_minor_faults=2_000_000, caller_system_seconds=3.0)
    (name, cause), found = judged(situation(conditions=conditions, use=pages))
    assert (name, cause) == ("memory-pressure", "fresh pages")
    assert found[name].milliseconds == pytest.approx(30)
    assert judged(situation(conditions=conditions, use=use(memory_stall_seconds=4.0)))[0][1] == "too little memory"
    assert judged(situation(conditions=conditions, use=use(caller_system_seconds=3.0)))[0][0] == "compute-bound"


def test_growth_without_an_end_comes_first_and_with_one_by_its_mean():
    growth = Growth(
        stage="metrics", milliseconds=0, milliseconds_per_call=0.1, low=0.09, high=0.11, first_call=0, last_call=300
    )
    assert judged(situation(wait=80.0, growth=growth))[0] == ("growing-cost", "metrics")
    (name, _), found = judged(situation(wait=80.0, growth=growth, total_steps=10_000))
    assert name == "growing-cost"
    assert found[name].milliseconds == pytest.approx(500)


def test_what_hides_behind_the_loader_costs_nothing():
    conditions = {name: condition(name) for name in ("real", "replay", "compute", "loader")}
    (name, _), found = judged(situation(compute=100.0, transfer=40.0, loader=97.0, conditions=conditions))
    assert name == "balanced"
    assert found["transfer-bound"].milliseconds == pytest.approx(3, rel=0.05)
    assert found["transfer-bound"].cause_milliseconds == pytest.approx(40, rel=0.01)
    assert "37.0 ms of it are hidden" in found["transfer-bound"].evidence


def test_growth_shows_when_the_step_is_longer_than_the_loader_takes():
    growth = Growth(
        stage="metrics", milliseconds=0, milliseconds_per_call=1.0, low=0.9, high=1.1, first_call=0, last_call=100
    )
    _, found = judged(situation(compute=100.0, loader=100.0, growth=growth, call=0.0, total_steps=100))
    assert found["growing-cost"].milliseconds == pytest.approx(50, rel=0.03)
    # A step of 50 ms waits for the loader until it has grown by 50: half of the run, then 25 ms in the mean.
    _, found = judged(situation(wait=50.0, compute=50.0, loader=100.0, growth=growth, call=0.0, total_steps=100))
    assert found["growing-cost"].milliseconds == pytest.approx(12.5, rel=0.05)
    assert found["growing-cost"].speedup == pytest.approx(1.125, rel=0.02)


def test_growth_that_comes_to_nothing_in_a_short_run_gets_no_verdict():
    growth = Growth(
        stage="metrics", milliseconds=0, milliseconds_per_call=0.05, low=0.04, high=0.06, first_call=0, last_call=400
    )
    assert judged(situation(growth=growth, total_steps=20))[0][0] == "compute-bound"
    assert judged(situation(growth=growth, total_steps=1000))[0][0] == "growing-cost"


def test_two_faults_are_both_found_the_larger_one_first():
    findings = find(situation(wait=40.0, transfer=20.0))
    assert [finding.verdict for finding in findings] == ["data-bound", "transfer-bound"]


def test_a_loss_within_its_noise_gets_no_verdict():
    s = situation(transfer=15.0)
    s.draws["transfer"] = np.linspace(0, 30, 41)
    assert judged(s)[0][0] != "transfer-bound"
