"""Two profiles compared: a slower one is told from noise."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.profiling import compare_profiles, comparison_text


def profile(milliseconds, *, spread=0.01, batch=32, stall=None, **stages):
    blocks = milliseconds * (1 + spread * np.linspace(-1, 1, 7))
    rate = 1e3 / milliseconds
    return {
        "steps_per_second": rate,
        "samples_per_second": rate * batch,
        "conditions": {"real": {"block_milliseconds": blocks.tolist()}},
        "stages": {name: {"milliseconds_per_step": value} for name, value in stages.items()},
        "stalls": None if stall is None else {"milliseconds_per_step": stall},
    }


def test_slower_steps_fail_and_name_the_stage():
    found = compare_profiles(profile(100, wait=5, forward=95), profile(110, wait=15, forward=95), fail_on=0.05)
    assert found.is_slower
    assert found.change == pytest.approx(0.10)
    assert 0 < found.low < 0.10 < found.high
    assert found.stages == {"wait": 10}
    assert "too slow: the limit is 5.0% slower" in comparison_text(found)


def test_faster_and_hardly_slower_steps_pass():
    assert not compare_profiles(profile(100), profile(80)).is_slower
    assert not compare_profiles(profile(100), profile(103)).is_slower
    assert compare_profiles(profile(100), profile(103), fail_on=0.02).is_slower


def test_noise_is_no_regression():
    assert not compare_profiles(profile(100, spread=0.5), profile(108, spread=0.5)).is_slower


def test_batches_of_another_size_compare_by_their_samples():
    assert not compare_profiles(profile(100, batch=32), profile(190, batch=64)).is_slower


def test_stalls_count_too():
    assert compare_profiles(profile(100), profile(100, stall=20)).is_slower


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: compare_profiles({}, profile(1)), "the first file is no profile"),
        (lambda: compare_profiles(profile(1), {"conditions": 3}), "the second file is no profile"),
        (lambda: compare_profiles(profile(1), profile(1), fail_on=0), "fail_on = 0 is not allowed"),
        (
            lambda: compare_profiles(profile(1), profile(1) | {"conditions": {"real": {"block_milliseconds": [1]}}}),
            "blocks can't be compared",
        ),
    ],
)
def test_mistakes_are_refused(act, message):
    with pytest.raises(CoreclipError, match=message):
        act()
