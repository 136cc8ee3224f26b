"""The stage recorder: what it charges to whom, and what it costs."""

import itertools
import threading
import time

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.profiling import StageRecorder


def test_stages_add_up_to_the_step():
    recorder = StageRecorder()
    start = time.perf_counter()
    with recorder.stage("forward"):
        time.sleep(0.02)
    time.sleep(0.01)
    recorder.step(4)
    elapsed = (time.perf_counter() - start) * 1e3
    records = recorder.records
    assert records.stages == ("forward", "other")
    assert records.items.tolist() == [4]
    assert records.column("forward")[0] >= 20
    assert records.column("other")[0] >= 10
    assert records.step_milliseconds[0] <= elapsed


def test_nested_stage_is_charged_once_to_the_inner_one():
    recorder = StageRecorder()
    with recorder.stage("outer"):
        with recorder.stage("inner"):
            time.sleep(0.03)
        with recorder.stage("outer"):
            time.sleep(0.01)
    recorder.step()
    assert recorder.records.column("inner")[0] >= 30
    assert 10 <= recorder.records.column("outer")[0] < recorder.records.column("inner")[0]


def test_repeated_stage_adds_up_within_a_step():
    recorder = StageRecorder()
    for _ in range(3):
        with recorder.stage("logging"):
            time.sleep(0.01)
    recorder.step()
    assert recorder.records.column("logging")[0] >= 30


def test_stage_is_closed_by_an_exception():
    recorder = StageRecorder()
    with pytest.raises(KeyError), recorder.stage("forward"):
        raise KeyError
    time.sleep(0.02)
    recorder.step()
    assert recorder.records.column("other")[0] >= 20


def test_stage_that_appears_late_was_zero_before():
    recorder = StageRecorder()
    with recorder.stage("forward"):
        pass
    recorder.step()
    with recorder.stage("metrics"):
        time.sleep(0.001)
    recorder.step()
    before, after = recorder.records.column("metrics")
    assert before == 0
    assert after >= 1


def test_iterate_charges_the_waiting_and_not_the_body():
    def slow():
        for i in range(3):
            time.sleep(0.02)
            yield i

    recorder = StageRecorder()
    seen = []
    for item in recorder.iterate("wait", slow()):
        seen.append(item)
        time.sleep(0.005)
        recorder.step()
    assert seen == [0, 1, 2]
    assert (recorder.records.column("wait") >= 20).all()
    assert (recorder.records.column("other") >= 5).all()


def test_sleep_takes_wall_time_but_no_cpu_time():
    recorder = StageRecorder()
    with recorder.stage("forward"):
        time.sleep(0.04)
    recorder.step()
    assert recorder.records.cpu_milliseconds[0, 0] < 20 < recorder.records.milliseconds[0, 0]


def test_watched_callable_and_iterable_keep_their_behaviour():
    class Loader:
        batch_size = 8

        def __len__(self):
            return 2

        def __iter__(self):
            return iter([1, 2])

    recorder = StageRecorder()
    loader = recorder.watch("wait", Loader())
    double = recorder.watch("forward", lambda x, *, by=2: x * by)
    assert [double(x, by=3) for x in loader] == [3, 6]
    assert list(loader) == [1, 2]
    assert (len(loader), loader.batch_size) == (2, 8)
    assert list(recorder.watch("wait", iter([5]))) == [5]
    recorder.step()
    assert set(recorder.records.stages) == {"wait", "forward", "other"}


def test_oldest_steps_are_dropped_and_numbers_go_on():
    recorder = StageRecorder(keep_steps=4)
    for i in range(11):
        with recorder.stage("forward"):
            pass
        recorder.step(i)
    records = recorder.records
    assert recorder.n_steps == 11
    assert 4 <= len(records) <= 8
    assert records.number[-1] == 10
    np.testing.assert_array_equal(records.items, records.number)


def test_skip_and_take_pick_steps():
    recorder = StageRecorder()
    for i in range(5):
        recorder.step(i)
    assert recorder.records.skip(3).items.tolist() == [3, 4]
    assert recorder.records.take(np.array([1, 4])).number.tolist() == [1, 4]


def test_summary_holds_shares_that_add_up_to_one():
    recorder = StageRecorder()
    for _ in range(4):
        with recorder.stage("forward"):
            time.sleep(0.002)
        recorder.step()
    summary = recorder.records.summary()
    assert sum(figures["share"] for figures in summary.values()) == pytest.approx(1)
    forward = summary["forward"]
    assert forward["p50"] <= forward["p95"] <= forward["max"]


def test_recorder_satisfies_the_training_loops_protocol():
    recorder = StageRecorder()
    for item in recorder.iterate("wait", [1]):
        with recorder.stage("forward"):
            assert item == 1
        recorder.step(1)
    assert recorder.n_steps == 1


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_steps_of_a_second_thread_are_refused():
    recorder = StageRecorder()
    errors = []

    def use():
        try:
            recorder.step()
        except CoreclipError as error:
            errors.append(str(error))

    in_thread(use)
    assert "two threads" in errors[0]


def test_stages_of_other_threads_are_added_up_beside_the_steps():
    recorder = StageRecorder()

    def load():
        for _ in range(2):
            with recorder.stage("read"):
                time.sleep(0.01)
                with recorder.stage("decode"):
                    time.sleep(0.02)

    for _ in range(2):
        in_thread(load)
    with recorder.stage("forward"):
        pass
    recorder.step()
    read, decode = recorder.elsewhere["read"], recorder.elsewhere["decode"]
    assert (read.calls, decode.calls) == (4, 4)
    assert 40 <= read.milliseconds < 80 <= decode.milliseconds
    assert decode.cpu_milliseconds < 40
    assert recorder.records.stages == ("forward", "other")


def test_a_stage_may_be_open_in_two_threads_at_once():
    recorder = StageRecorder()
    with recorder.stage("read"):
        in_thread(lambda: recorder.watch("read", time.sleep)(0.02))
        time.sleep(0.01)
    recorder.step()
    assert recorder.elsewhere["read"].milliseconds >= 20
    assert recorder.records.column("read")[0] >= 30


def test_loop_ends_a_step_when_the_next_batch_is_asked_for():
    recorder = StageRecorder()
    for batch in recorder.loop([[1, 2], [3], [4, 5, 6]]):
        with recorder.stage("forward"):
            assert batch
    assert recorder.records.items.tolist() == [2, 1, 3]
    assert set(recorder.records.stages) == {"wait", "forward", "other"}


def test_levels_belong_to_their_step():
    recorder = StageRecorder()
    recorder.step()
    recorder.gauge("ready", 2)
    recorder.gauge("ready", 1)
    recorder.step()
    recorder.step()
    np.testing.assert_array_equal(recorder.records.gauges["ready"], [np.nan, 1, np.nan])
    np.testing.assert_array_equal(recorder.records.skip(1).gauges["ready"], [1, np.nan])


def test_timeline_shows_the_stages_as_they_followed():
    recorder = StageRecorder()
    for _ in recorder.loop(range(3)):
        with recorder.stage("forward"):
            time.sleep(0.002)
            with recorder.stage("metrics"):
                time.sleep(0.002)
            time.sleep(0.002)
    step = recorder.timeline[0]
    names = [name for name, begin, end in step if end - begin > 1 and name in ("forward", "metrics")]
    assert names == ["forward", "metrics", "forward"]
    assert all(a[2] == b[1] for a, b in itertools.pairwise(step))
    assert step[-1][2] == pytest.approx(recorder.records.step_milliseconds[1], abs=0.01)


def test_delays_make_a_stage_longer_in_any_thread():
    recorder = StageRecorder()
    recorder.delays = {"forward": 0.02, "read": 0.03}
    with recorder.stage("forward"):
        pass
    in_thread(lambda: recorder.watch("read", int)())
    recorder.step()
    assert recorder.records.column("forward")[0] >= 20
    assert recorder.elsewhere["read"].milliseconds >= 30


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: StageRecorder(keep_steps=0), "keep_steps = 0"),
        (lambda: StageRecorder().stage(""), "stage name ''"),
        (lambda: StageRecorder().watch("wait", 3), "a int can't be watched"),
        (lambda: StageRecorder().records.summary(), "no step was recorded"),
    ],
)
def test_mistakes_are_refused(act, message):
    with pytest.raises(CoreclipError, match=message):
        act()


def test_cuda_without_a_device_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(CoreclipError, match="no CUDA device"):
        StageRecorder(cuda=True)


def test_cuda_time_line_adds_up_to_the_step():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    recorder = StageRecorder(cuda=True)
    a = torch.randn(2048, 2048, device="cuda")
    for _ in range(4):
        with recorder.stage("forward"):
            a = (a @ a).clamp(-1, 1)
        with recorder.stage("logging"):
            a.sum().item()
        recorder.step()
    records = recorder.finish().skip(1)
    assert np.isfinite(records.device_milliseconds).all()
    np.testing.assert_allclose(records.device_milliseconds.sum(1), records.milliseconds.sum(1), rtol=0.5)
