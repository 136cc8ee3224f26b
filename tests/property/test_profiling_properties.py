"""What holds for every set of measurements."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.profiling import VERDICTS, Condition, StepRecords, diagnose_records, fit_growth
from coreclip.profiling.conditions import interval, resample

_milliseconds = st.floats(0.01, 1e4)
_stages = ("wait", "transfer", "forward", "metrics", "other")


@st.composite
def _measurements(draw):
    n = draw(st.integers(4, 30))
    table = np.array(draw(st.lists(_milliseconds, min_size=n * 5, max_size=n * 5))).reshape(n, 5)
    records = StepRecords(
        stages=_stages, milliseconds=table, cpu_milliseconds=table, device_milliseconds=None,
        items=np.full(n, 8), number=np.arange(n),
    )  # fmt: skip
    blocks = st.lists(_milliseconds, min_size=3, max_size=3)
    conditions = {
        name: Condition(name=name, blocks=np.array(draw(blocks)), cpu_milliseconds=draw(_milliseconds))
        for name in ("real", "compute", "loader")
    }
    return records, draw(st.sampled_from([None, conditions]))


@settings(deadline=None, max_examples=40)
@given(_measurements(), st.sampled_from([{}, {"workers": 2, "image_size": 64, "device": "cuda"}]))
def test_every_measurement_gets_a_verdict_and_honest_intervals(measurements, setting):
    records, conditions = measurements
    diagnosis = diagnose_records(records, conditions=conditions, cores=2.0, setting=setting, total_steps=100)
    assert diagnosis.verdict in VERDICTS
    json.dumps(diagnosis.to_dict(), allow_nan=False)
    assert abs(sum(stage["share"] for stage in diagnosis.stages.values()) - 1) < 1e-9
    for remedy in diagnosis.remedies:
        assert remedy.low <= remedy.predicted_speedup <= remedy.high
        assert remedy.predicted_speedup >= 1


@settings(deadline=None, max_examples=40)
@given(st.lists(_milliseconds, min_size=2, max_size=12), st.integers(0, 5))
def test_bootstrap_stays_within_the_data_and_repeats_itself(values, seed):
    blocks = {"real": np.array(values)}
    draws = resample(blocks, seed=seed)["real"]
    low, high = interval(draws)
    assert min(values) <= low <= high <= max(values)
    np.testing.assert_array_equal(draws, resample(blocks, seed=seed)["real"])


@settings(deadline=None, max_examples=40)
@given(st.floats(-5, 5), st.floats(0, 100), st.integers(3, 80), st.integers(1, 7))
def test_exact_line_is_found_exactly(slope, start, n, stride):
    number = np.arange(n) * stride
    growth = fit_growth(number, start + slope * number)
    np.testing.assert_allclose([growth.milliseconds_per_call, growth.low, growth.high], slope, atol=1e-9)
    np.testing.assert_allclose(growth.milliseconds, start, atol=1e-6)
