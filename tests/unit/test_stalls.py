"""Stalls that come back at equal distances, and none where there are none."""

import numpy as np
import pytest

from coreclip.profiling import StepRecords, find_stalls
from coreclip.profiling.stalls import stall_cpu_milliseconds, without_stalls


def records(number, **stages):
    table = np.stack([np.broadcast_to(np.asarray(times, float), (len(number),)) for times in stages.values()], axis=1)
    return StepRecords(
        stages=tuple(stages), milliseconds=table, cpu_milliseconds=table, device_milliseconds=None,
        items=np.full(len(number), 8), number=np.asarray(number),
    )  # fmt: skip


def noisy(n, level=10.0, seed=0):
    return level * (1 + 0.1 * np.random.default_rng(seed).standard_normal(n))


def test_checkpoint_every_seventh_step_is_found_with_its_stage_and_cost():
    number = np.arange(100)
    found = find_stalls(records(number, wait=5, forward=noisy(100), logging=np.where(number % 7 == 3, 80.0, 1.0)))
    assert (found.stage, found.period, found.first) == ("logging", 7, 3)
    assert found.milliseconds == pytest.approx(79)
    assert found.milliseconds_per_step == pytest.approx(79 / 7)
    assert found.seen == 14


def test_calls_may_be_missing():
    number = np.delete(np.arange(120), np.arange(30, 57))
    found = find_stalls(records(number, forward=noisy(len(number)), logging=np.where(number % 9 == 0, 50.0, 0.0)))
    assert (found.period, found.stage) == (9, "logging")


def test_random_long_steps_are_no_stall():
    rng = np.random.default_rng(1)
    for seed in range(20):
        times = noisy(150, seed=seed)
        times[rng.choice(150, 12, replace=False)] += rng.uniform(10, 100, 12)
        assert find_stalls(records(np.arange(150), forward=times)) is None


def test_stalls_of_the_loader_are_not_the_steps():
    number = np.arange(60)
    assert find_stalls(records(number, wait=np.where(number % 5 == 0, 90.0, 0.0), forward=noisy(60))) is None


def test_two_long_steps_are_too_few_to_tell():
    number = np.arange(40)
    assert find_stalls(records(number, forward=np.where(number % 20 == 5, 99.0, 10.0))) is None


def test_small_and_short_records_have_none():
    assert find_stalls(records(np.arange(3), forward=1.0)) is None
    number = np.arange(60)
    assert find_stalls(records(number, forward=np.where(number % 5 == 0, 12.0, 10.0))) is None


def test_cpu_time_of_stalls_is_shared_out_among_all_steps():
    number = np.arange(60)
    before = records(number, forward=10.0, logging=np.where(number % 6 == 0, 60.0, 0.0))
    assert stall_cpu_milliseconds(before, find_stalls(before)) == pytest.approx(
        float(before.cpu_milliseconds[:, 1].mean())
    )
    assert stall_cpu_milliseconds(before, None) == 0.0


def test_without_stalls_a_step_is_as_the_others():
    number = np.arange(60)
    before = records(number, forward=10.0, logging=np.where(number % 6 == 0, 60.0, 1.0))
    after = without_stalls(before, find_stalls(before))
    np.testing.assert_allclose(after.step_milliseconds, 11)
    assert before.step_milliseconds.max() == 70
    assert without_stalls(before, None) is before
