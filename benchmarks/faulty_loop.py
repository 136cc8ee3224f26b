"""A plain PyTorch training loop with faults that can be planted in it, each by the milliseconds that it is to cost.

Nine faults: the loader sleeps; a thread of its spins holding Python's lock; threads of its spin without it; reads are
throttled; a metric is computed over all that it has seen; tensors are read back element by element; there are more
computing threads than cores; every so many steps a checkpoint is written; batches are copied around before the step.
Each plant keeps a stopwatch of its own, which a profiler's figures are held against.
"""

import hashlib
import itertools
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from coreclip.profiling import StageRecorder, available_cores

FAULTS = (
    "loader-sleeps", "loader-holds-the-lock", "loader-takes-the-cores", "throttled-reads", "growing-metric",
    "element-reads", "too-many-threads", "checkpoints", "slow-copies",
)  # fmt: skip
EXPECTED = {
    "loader-sleeps": "data-bound",
    "loader-holds-the-lock": "contention",
    "loader-takes-the-cores": "contention",
    "throttled-reads": "data-bound",
    "growing-metric": "growing-cost",
    "element-reads": "synchronisation",
    "too-many-threads": "oversubscription",
    "checkpoints": "periodic-stall",
    "slow-copies": "transfer-bound",
}
"""The verdict that each fault is to get."""
T = TypeVar("T")

_BATCH, _SIDE, _BATCHES = 64, 48, 40
_READY = 2


@dataclass
class Stopwatch:
    """Milliseconds that a plant has taken: of each time, and how often."""

    times: list[float] = field(default_factory=list)

    def add(self, begin: float) -> None:
        """Note what has gone by since ``begin`` (of ``time.perf_counter``)."""
        self.times.append((time.perf_counter() - begin) * 1e3)


class Loop:
    """A step and a loader with plants.

    Parameters
    ----------
    plants : {fault: magnitude}
        Milliseconds a step or a batch; of ``growing-metric`` microseconds that each call adds; of ``element-reads`` how many; of
        ``too-many-threads`` how many; of ``checkpoints`` (milliseconds, period).
    recorder : StageRecorder or None
        That is told the stages.
    inline : bool
        Whether the loader works in the loop's thread, none ahead.
    """

    def __init__(self, plants: dict[str, Any], recorder: StageRecorder | None = None, *, inline: bool = False) -> None:
        self.plants, self.inline = plants, inline
        self.recorder = StageRecorder() if recorder is None else recorder
        self.watches = {name: Stopwatch() for name in plants}
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        self.optimiser = torch.optim.AdamW(self.model.parameters())
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (512, 3, _SIDE, _SIDE), dtype=np.uint8)
        self.labels = rng.integers(0, 10, 512)
        self.history: list[np.ndarray] = []
        self.calls = 0
        self.seen = torch.zeros(2)
        self.folder = tempfile.TemporaryDirectory(prefix="faulty-loop-")
        self.repeats = self._calibrated()

    def __len__(self) -> int:
        return _BATCHES

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self._make() if self.inline else ahead(self._make())

    def _make(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(_BATCHES):
            rows = np.arange(number * _BATCH, (number + 1) * _BATCH) % len(self.images)
            with self.recorder.stage("read"):
                images = self.images[rows]
                if "throttled-reads" in self.plants:
                    self._timed("throttled-reads", lambda: time.sleep(self.plants["throttled-reads"] / 1e3))
            with self.recorder.stage("augment"):
                images = np.ascontiguousarray(images[..., ::-1]) if number % 2 else images
            if "loader-sleeps" in self.plants:
                self._timed("loader-sleeps", lambda: time.sleep(self.plants["loader-sleeps"] / 1e3))
            if "loader-holds-the-lock" in self.plants:
                self._timed("loader-holds-the-lock", lambda: spin_in_python(self.plants["loader-holds-the-lock"] / 1e3))
            if "loader-takes-the-cores" in self.plants:
                self._timed(
                    "loader-takes-the-cores", lambda: _spin_on_cores(self.plants["loader-takes-the-cores"] / 1e3)
                )
            yield torch.from_numpy(images), torch.from_numpy(self.labels[rows])

    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Train on a batch, with what is planted."""
        stage = self.recorder.stage
        with stage("transfer"):
            begin = time.perf_counter()
            images, labels = batch[0].float().div_(255), batch[1]
            if "slow-copies" in self.plants:
                for _ in range(self.repeats["slow-copies"]):
                    images.clone()
                self.watches["slow-copies"].add(begin)  # all of the stage, as the profiler sees it
        with stage("forward"):
            logits = self.model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            if "element-reads" in self.plants:
                self._timed("element-reads", lambda: read_elements(logits, self.plants["element-reads"]))
        with stage("backward"):
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        with stage("optimiser"):
            self.optimiser.step()
        with stage("metrics"):
            self.seen += torch.stack([(logits.argmax(1) == labels).sum(), torch.tensor(len(labels))])
            if "growing-metric" in self.plants:
                self._timed("growing-metric", lambda: self._metric(logits.detach().numpy()))
        self.calls += 1
        if "checkpoints" in self.plants and self.calls % self.plants["checkpoints"][1] == 0:
            with stage("logging"):
                self._timed("checkpoints", lambda: self._write(self.repeats["checkpoints"]))

    def _metric(self, logits: np.ndarray) -> float:
        """Go over all that was seen, once more in each call."""
        self.history.append(logits)
        return sum(_look(self.history) for _ in range(round(self.repeats["growing-metric"] * len(self.history))))

    def _calibrated(self) -> dict[str, Any]:
        """Return how often a piece of work is to be done, so that undisturbed it takes as long as planted.

        A clock would end it early where something else slows it down, and so hide that.
        """
        images, logits = torch.zeros(_BATCH, 3, _SIDE, _SIDE), [np.zeros((_BATCH, 10), np.float32)]
        repeats: dict[str, Any] = {}
        if "slow-copies" in self.plants:
            repeats["slow-copies"] = round(self.plants["slow-copies"] / _milliseconds(images.clone))
        if "growing-metric" in self.plants:
            repeats["growing-metric"] = self.plants["growing-metric"] / 1e3 / _milliseconds(lambda: _look(logits))
        if "checkpoints" in self.plants:
            repeats["checkpoints"] = max(1, round(self.plants["checkpoints"][0] / _milliseconds(self._write)))
        return repeats

    def _write(self, times: int = 1) -> None:
        """Write a checkpoint to the disk some times."""
        path = Path(self.folder.name) / "checkpoint.pt"
        for _ in range(times):
            torch.save(self.model.state_dict(), path)
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def _timed(self, name: str, work: Callable[[], object]) -> None:
        begin = time.perf_counter()
        work()
        self.watches[name].add(begin)


def draw_size(fault: str, base: float, rng: np.random.Generator) -> Any:
    """Draw what is planted, so that it costs from a fifth of a step (``base``, milliseconds) to more than one."""
    share = float(rng.uniform(0.3, 1.2))
    if fault == "loader-sleeps" or fault == "throttled-reads":
        return base * (1 + share)  # as much of it as is longer than a step is waited for
    if fault == "loader-holds-the-lock":
        return base * float(rng.uniform(0.3, 0.8))
    if fault == "loader-takes-the-cores":
        return base * float(rng.uniform(0.3, 0.8))
    if fault == "growing-metric":
        return 1e3 * base * share / 150  # after 150 calls a share of a step
    if fault == "too-many-threads":
        return int(rng.integers(8, 33))
    if fault == "checkpoints":
        period = int(rng.integers(6, 16))
        return base * share * period, period
    if fault == "element-reads":
        begin = time.perf_counter()
        read_elements(torch.zeros(64, 10), 20_000)
        return round(base * share / 1e3 / ((time.perf_counter() - begin) / 20_000))
    return base * share


def ahead(batches: Iterator[T]) -> Iterator[T]:
    """Make batches beside whoever asks for them, in a thread that ends with the iteration."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=_READY)
    stop, end = threading.Event(), object()

    def fill() -> None:
        for batch in itertools.chain(batches, [end]):
            while not stop.is_set():
                try:
                    ready.put(batch, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if stop.is_set():
                return

    thread = threading.Thread(target=fill, name="loader", daemon=True)
    thread.start()
    try:
        while (batch := ready.get()) is not end:
            yield batch
    finally:
        stop.set()
        thread.join()


def spin_in_python(seconds: float) -> None:
    """Take that much CPU time in Python code, which holds the lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


def _spin_on_cores(seconds: float) -> None:
    """Take that much CPU time on each core in compiled code that lets the lock go."""
    threads = [threading.Thread(target=_hash_for, args=(seconds,)) for _ in range(int(available_cores()) - 1)]
    for thread in threads:
        thread.start()
    _hash_for(seconds)
    for thread in threads:
        thread.join()


def _hash_for(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 2000)


def _look(history: list[np.ndarray]) -> float:
    return float(np.sort(history[len(history) // 2][:, 0])[0])


def _milliseconds(work: Callable[[], object]) -> float:
    """Return what a piece of work takes: the median over many times, a twentieth of a second at least."""
    times: list[float] = []
    end = time.perf_counter() + 0.05
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def read_elements(logits: torch.Tensor, n: int) -> float:
    """Read ``n`` elements, one by one."""
    total, values = 0.0, logits.detach().flatten()
    for i in range(n):
        total += values[i % 64].item()
    return total
