"""Reads of tensors: found by line, counted, clocked, and torch is left as it was."""

import contextlib
import time

import torch

from coreclip.profiling import StageRecorder, find_read_backs


def test_lines_that_read_are_found_with_their_stage():
    recorder = StageRecorder()
    tensor = torch.arange(200.0)

    def run():
        for _ in range(3):
            with recorder.stage("metrics"):
                total = 0.0
                for value in tensor:
                    total += value.item()
            with recorder.stage("logging"):
                tensor.tolist()
            assert float(tensor[0]) == 0.0
        return 3

    found = {read.method: read for read in find_read_backs(run, recorder=recorder)}
    assert found["item"].calls == 200
    assert found["item"].stage == "metrics"
    assert "test_readbacks.py:" in found["item"].where
    assert found["tolist"].calls == 1
    assert found["tolist"].stage == "logging"
    assert found["__float__"].stage == "other"


def test_milliseconds_are_those_of_the_whole_loop():
    recorder, tensor, spent = StageRecorder(), torch.arange(20_000.0), []

    def read():
        begin = time.perf_counter()
        total = 0.0
        for i in range(len(tensor)):
            total += tensor[i].item()
        spent.append((time.perf_counter() - begin) * 1e3)
        return 1

    plain = min((read(), spent[-1])[1] for _ in range(5))
    found = min((find_read_backs(read, recorder=recorder) for _ in range(5)), key=lambda reads: reads[0].milliseconds)
    assert 0.7 * plain < found[0].milliseconds < 1.3 * plain


def test_torch_is_left_as_it_was_even_after_an_error():
    before = {name: getattr(torch.Tensor, name) for name in ("item", "tolist", "cpu", "__float__")}
    own = "item" in vars(torch.Tensor)

    def fail():
        raise RuntimeError

    for run in (lambda: 1, fail):
        with contextlib.suppress(RuntimeError):
            find_read_backs(run, recorder=StageRecorder())
        assert {name: getattr(torch.Tensor, name) for name in before} == before
        assert ("item" in vars(torch.Tensor)) == own
