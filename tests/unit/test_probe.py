"""Delays in stages: what the step waits for is critical, what is hidden behind something else has slack."""

import itertools
import time

import pytest

from coreclip.errors import CoreclipError
from coreclip.profiling import StageRecorder, probe_delays
from tests.helpers import one_ahead


class Ahead:
    """Batches made one ahead in a thread, in a watched stage of ``seconds``."""

    def __init__(self, recorder, seconds, n=30):
        self.recorder, self.seconds, self.n = recorder, seconds, n

    def __iter__(self):
        return one_ahead(self._make())

    def _make(self):
        for number in range(self.n):
            with self.recorder.stage("read"):
                time.sleep(self.seconds)
            yield [number]


@pytest.mark.parametrize(
    ("reading", "computing", "opinions"),
    [
        (0.003, 0.03, {"step": "critical", "read": "slack"}),
        (0.03, 0.003, {"step": "slack", "read": "critical"}),
    ],
)
def test_opinions_are_those_of_the_queue(reading, computing, opinions):
    recorder = StageRecorder()
    loader = Ahead(recorder, reading)
    found = probe_delays(lambda batch: time.sleep(computing), loader, recorder=recorder, steps=8, warmup=3, repeats=3)
    assert {one.stage: one.opinion for one in found} == opinions
    assert recorder.delays == {}


def test_stages_that_are_never_entered_are_left_out():
    recorder = StageRecorder()
    found = probe_delays(
        lambda batch: time.sleep(0.02), [[0]] * 20, recorder=recorder, stages=("step", "nothing"), steps=4, warmup=1, repeats=3
    )  # fmt: skip
    assert [one.stage for one in found] == ["step"]
    assert found[0].to_dict()["opinion"] == "critical"


def test_delays_of_a_stage_are_shared_among_its_entries_in_a_step():
    recorder, calls = StageRecorder(), itertools.count()

    def step(batch):
        for _ in range(4):
            with recorder.stage("forward"):
                time.sleep(0.005)
        if next(calls) % 10 == 0:
            with recorder.stage("logging"):
                pass

    found = probe_delays(
        step, [[0]] * 20, recorder=recorder, stages=("forward", "logging"), steps=6, warmup=1, repeats=3
    )
    assert [one.stage for one in found] == ["forward"]
    assert found[0].entered == pytest.approx(4)
    assert found[0].slope == pytest.approx(1, abs=0.3)
    assert recorder.around is None


def test_stages_that_are_hardly_entered_are_left_out():
    class Refilling(Ahead):
        def _make(self):
            for number, batch in enumerate(super()._make()):
                if number % 8 == 7:
                    with self.recorder.stage("augment"):
                        pass
                yield batch

    recorder = StageRecorder()
    found = probe_delays(
        lambda batch: time.sleep(0.005), Refilling(recorder, 0.001), recorder=recorder, steps=12, warmup=2, repeats=2
    )
    assert "augment" in recorder.elsewhere
    assert [one.stage for one in found] == ["step", "read"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": 1}, "steps = 1"), ({"repeats": 1}, "repeats = 1"), ({"warmup": -1}, "warmup = -1")],
)
def test_mistakes_are_refused(arguments, message):
    with pytest.raises(CoreclipError, match=message):
        probe_delays(print, [1], recorder=StageRecorder(), **arguments)


def test_empty_loader_is_refused():
    with pytest.raises(CoreclipError, match="yields no batch"):
        probe_delays(print, [], recorder=StageRecorder())
