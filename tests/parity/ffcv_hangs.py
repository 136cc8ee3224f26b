"""What stock FFCV does in a process that must be given up: run as ``python -m tests.parity.ffcv_hangs SHARD FOLDER``.

Prints one JSON object. A hang is shown by a consumer that still waits when nothing is left that could answer it.
"""

import gc
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

PATIENCE = 1.5  # seconds; the stock loops poll every 0.1 and 0.5


class _BrokenAt:
    """Four samples, of which one can't be read."""

    def __init__(self, bad: int | None) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        if index == self.bad:
            raise OSError("this sample can't be read")
        return (np.zeros((8, 8, 3), np.uint8),)


class _Oversize(_BrokenAt):
    """Four samples, of which one is larger than a page."""

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        side = 1024 if index == self.bad else 8
        return (np.zeros((side, side, 3), np.uint8),)


def _start(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def _wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def _writer_waits(path: Path, samples: _BrokenAt) -> bool:
    """Whether the writer still waits after its last worker process has died."""
    import ffcv.writer
    from ffcv.fields import RGBImageField

    started: list[multiprocessing.Process] = []

    class Recorded(multiprocessing.Process):
        def start(self) -> None:
            super().start()
            started.append(self)

    ffcv.writer.Process = Recorded
    writer = ffcv.writer.DatasetWriter(str(path), {"image": RGBImageField()}, page_size=1 << 21, num_workers=1)
    thread = _start(lambda: writer.from_indexed_dataset(samples))
    _wait_for(lambda: len(started) == 1 and not started[0].is_alive())
    thread.join(PATIENCE)
    return thread.is_alive()


def _loader(shard: str, **options: Any) -> Any:
    from ffcv.loader import Loader, OrderOption

    options = {
        "order": OrderOption.SEQUENTIAL,
        "pipelines": {"image": None, "captions": None, "tokens": None},
    } | options
    return Loader(shard, batch_size=1, num_workers=1, batches_ahead=1, drop_last=False, **options)


def _broken_pipeline_waits(shard: str) -> bool:
    """Whether the consumer still waits after the thread that would feed it has died of the pipeline's exception."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.pipeline.operation import Operation

    class Broken(Operation):
        def generate_code(self) -> Callable[..., Any]:
            def fail(*_: Any) -> None:
                raise RuntimeError("this operation fails")

            return fail

        def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, None]:
            return replace(previous_state, jit_mode=False), None

    pipelines = {"image": None, "captions": None, "tokens": None, "index": [IntDecoder(), Broken()]}
    loader = _loader(shard, pipelines=pipelines)
    producer = iter(loader)
    consumer = _start(lambda: next(producer))
    _wait_for(lambda: not producer.is_alive())
    consumer.join(PATIENCE)
    return consumer.is_alive()


def _threads_after_break(shard: str) -> int:
    """How many producer threads still run after a loop was left and nothing refers to its loader any more."""
    from ffcv.loader.epoch_iterator import EpochIterator

    loader = _loader(shard)
    for _ in loader:
        break
    del loader
    gc.collect()
    time.sleep(PATIENCE)
    return sum(isinstance(thread, EpochIterator) for thread in threading.enumerate())


def _quasi_random_with_duplicates(shard: str) -> str:
    """The name of the exception that duplicates in ``indices`` raise."""
    from ffcv.loader import OrderOption

    try:
        _loader(shard, indices=[0, 0, 1, 1, 2], order=OrderOption.QUASI_RANDOM, seed=0)
    except Exception as error:
        return type(error).__name__
    return ""


def main(shard: str, folder: Path) -> None:
    """Try everything and print what happened."""
    found = {
        "a whole source hangs": _writer_waits(folder / "whole.beton", _BrokenAt(None)),
        "a raising sample hangs": _writer_waits(folder / "raising.beton", _BrokenAt(2)),
        "an oversize sample hangs": _writer_waits(folder / "oversize.beton", _Oversize(2)),
        "duplicates raise": _quasi_random_with_duplicates(shard),
        "threads after a break": _threads_after_break(shard),
        "a raising pipeline hangs": _broken_pipeline_waits(shard),
    }
    print(json.dumps(found), flush=True)
    os._exit(0)  # an ordinary exit would wait for what hangs


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
