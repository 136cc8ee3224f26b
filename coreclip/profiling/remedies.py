"""What would make the run faster, by how much by the measurements, and how much it did.

Predictions are Amdahl's law on exposed time, ``max()`` for what overlaps, and the floor (CPU of step + CPU of loader) /
cores. ``low`` to ``high`` holds both the measurements' noise and the remedy's own range, from "brings nothing" to "brings
all it can". A remedy stays a prediction until :func:`measure_remedy` has run it beside the baseline.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.conditions import interval, resample
from coreclip.profiling.growth import Growth
from coreclip.profiling.system import cpu_flags

WORTH_SHARE = 0.05  # of a step: below it, removing all of a cost is not worth a line
_WORTH_SPEEDUP = 1.02
_IDLE_THREADS = 0.3  # loader threads that use less of a core than this wait for something else
_MOST_THREADS = 256
_PREPARED_SHARE = 0.8  # of a cost that a pessimist expects to get rid of


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What predictions are made from.

    Attributes
    ----------
    draws : {name: float64 (draws,)}
        Bootstrap draws of milliseconds per step: ``real`` = ``wait`` + ``slowed`` (by the loader's threads) + ``compute``;
        ``transfer``, ``side`` (metrics and logging) and ``matmul`` (forward and backward) are parts of compute;
        ``loader`` (the loader alone) where it was measured.
    cpu_floor : float
        Milliseconds per step that the cores need for step and loader together; 0 where unknown.
    cores : float
    loader_cores : float or None
        Cores that the loader keeps busy when it runs alone.
    setting : mapping
        What is known of the run: ``workers``, ``image_size``, ``precision``, ``resident``, ``device``.
    growth : Growth or None
    total_steps : int or None
        Length of the whole run.
    """

    draws: Mapping[str, np.ndarray]
    cores: float
    cpu_floor: float = 0.0
    loader_cores: float | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)
    growth: Growth | None = None
    total_steps: int | None = None

    def share(self, name: str) -> float:
        """Return the part of a step (0..1) that a cost takes; 0 where it was not measured."""
        if name not in self.draws:
            return 0.0
        return float(np.median(self.draws[name]) / max(np.median(self.draws["real"]), 1e-9))


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change and what it brings.

    Attributes
    ----------
    name, condition, how : str
        What it is called, when it applies, what to do.
    predicted_speedup, low, high : float
        Old step time over new, with a 95 % interval.
    change : dict
        The same as overrides of the configuration, ``{"data.workers": 1}``; empty where it takes another edit.
    measured_speedup, measured_low, measured_high : float or None
        From :func:`measure_remedy`; None until then.
    """

    name: str
    condition: str
    how: str
    predicted_speedup: float
    low: float
    high: float
    change: dict[str, Any]
    measured_speedup: float | None = None
    measured_low: float | None = None
    measured_high: float | None = None

    def with_measurement(self, measured: "MeasuredSpeedup") -> "Remedy":
        """Return the remedy with what was measured beside what was predicted."""
        return replace(
            self,
            measured_speedup=measured.speedup,
            measured_low=measured.low,
            measured_high=measured.high,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeedup:
    """Baseline over candidate, with a 95 % bootstrap interval, and the medians in milliseconds."""

    speedup: float
    low: float
    high: float
    baseline_milliseconds: float
    candidate_milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Milliseconds per step after a change, expected, at best and at worst (each float64 (draws,))."""

    expected: np.ndarray
    best: np.ndarray
    worst: np.ndarray
    change: dict[str, Any] = field(default_factory=dict)
    before: np.ndarray | None = None  # None for the real step


@dataclass(frozen=True)
class RemedyKind:
    """An entry of :data:`REMEDIES`; ``predict`` returns None where the remedy does not apply."""

    condition: str
    how: str
    predict: Callable[[Situation], Prediction | None]


def propose(situation: Situation) -> list[Remedy]:
    """Return the remedies that apply and are worth it, the largest predicted speed-up first."""
    remedies = []
    for name, kind in REMEDIES.items():
        prediction = kind.predict(situation)
        if prediction is None:
            continue
        before = situation.draws["real"] if prediction.before is None else prediction.before
        expected, best, worst = (
            before / np.maximum(after, 1e-6) for after in (prediction.expected, prediction.best, prediction.worst)
        )
        speedup = float(np.median(expected))
        remedy = Remedy(
            name=name,
            condition=kind.condition,
            how=kind.how,
            predicted_speedup=speedup,
            low=min(speedup, interval(worst)[0]),
            high=max(speedup, interval(best)[1]),
            change=prediction.change,
        )
        if speedup >= _WORTH_SPEEDUP:
            remedies.append(remedy)
    return sorted(remedies, key=lambda remedy: -remedy.predicted_speedup)


def measure_remedy(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    *,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
) -> MeasuredSpeedup:
    """Run two ways of doing one piece of work in turn (A B A B ...) and compare their medians.

    Parameters
    ----------
    baseline, candidate : callable
        Each call does the same fixed work, e.g. 50 steps, and returns when it is done (on CUDA: synchronised).
    repeats : int
        Measured calls of each.
    warmup : int
        Calls of each before, not measured: compilation, autotuning and the first epoch belong there.
    seed : int
        Of the bootstrap.

    Raises
    ------
    CoreclipError
        For fewer than 2 repeats or a negative warm-up.
    """
    if repeats < 2 or warmup < 0:
        raise CoreclipError(
            f"repeats = {repeats}, warmup = {warmup} is not allowed: a spread needs at least 2 repeats, and warmup is 0 or more"
        )
    times: dict[str, list[float]] = {"baseline": [], "candidate": []}
    for turn in range(warmup + repeats):
        for name, work in (("baseline", baseline), ("candidate", candidate)):
            start = time.perf_counter()
            work()
            if turn >= warmup:
                times[name].append((time.perf_counter() - start) * 1e3)
    return compare(times["baseline"], times["candidate"], seed=seed)


def compare(baseline: Sequence[float], candidate: Sequence[float], *, seed: int = 0) -> MeasuredSpeedup:
    """Return the speed-up between two equally long series of times that ran in turn (milliseconds)."""
    blocks = {"baseline": np.asarray(baseline, dtype=np.float64), "candidate": np.asarray(candidate, dtype=np.float64)}
    draws = resample(blocks, seed=seed)
    low, high = interval(draws["baseline"] / np.maximum(draws["candidate"], 1e-6))
    medians = {name: float(np.median(values)) for name, values in blocks.items()}
    return MeasuredSpeedup(
        speedup=medians["baseline"] / max(medians["candidate"], 1e-6),
        low=low,
        high=high,
        baseline_milliseconds=medians["baseline"],
        candidate_milliseconds=medians["candidate"],
    )


def _overlapped(s: Situation, load: np.ndarray) -> np.ndarray:
    """Step time when loading runs beside computing: the slower of the two, and no less than the cores can do."""
    return np.maximum(np.maximum(s.draws["compute"], load), s.cpu_floor)


def _prefetch(s: Situation) -> Prediction | None:
    loader, wait = s.draws.get("loader"), s.draws["wait"]
    if loader is None or s.share("wait") < WORTH_SHARE or np.median(wait) < 0.7 * np.median(loader):
        return None
    after = _overlapped(s, loader)
    return Prediction(expected=after, best=after, worst=np.maximum(after, 0.5 * (after + s.draws["real"])))


def _more_threads(s: Situation) -> Prediction | None:
    loader, workers, busy = s.draws.get("loader"), s.setting.get("workers"), s.loader_cores
    if loader is None or not workers or busy is None or s.share("wait") < WORTH_SHARE:
        return None
    more = min(2 * workers, _MOST_THREADS if busy < _IDLE_THREADS * workers else int(s.cores))
    if more <= workers:
        return None
    after = _overlapped(s, loader * workers / more)
    return Prediction(expected=after, best=after, worst=s.draws["real"], change={"data.workers": more})


def _fewer_threads(s: Situation) -> Prediction | None:
    loader, workers, real = s.draws.get("loader"), s.setting.get("workers"), s.draws["real"]
    if loader is None or not workers or workers < 2 or s.share("slowed") < WORTH_SHARE:
        return None
    fewer = workers // 2
    slower_loading = loader * workers / fewer
    best = _overlapped(s, slower_loading)
    # Fewer threads do the same work: what they save is the switching between them, of which half is a guess.
    expected = np.sqrt(best * np.maximum(real, best))
    return Prediction(
        expected=expected, best=best, worst=np.maximum(real, slower_loading), change={"data.workers": fewer}
    )


def _resident(s: Situation) -> Prediction | None:
    real, compute = s.draws["real"], s.draws["compute"]
    if s.setting.get("resident") or s.share("wait") + s.share("slowed") < WORTH_SHARE:
        return None
    return Prediction(expected=compute, best=compute, worst=real - _PREPARED_SHARE * np.maximum(real - compute, 0))


def _smaller_images(s: Situation) -> Prediction | None:
    size = s.setting.get("image_size")
    if not size or size < 32:
        return None
    smaller = int(0.75 * size) // 8 * 8
    pixels = (smaller / size) ** 2
    real, wait = s.draws["real"], s.draws["wait"]

    def after(computing: float, loading: float) -> np.ndarray:
        busy = computing * (real - wait)
        return np.maximum(busy, loading * real) if s.share("wait") >= WORTH_SHARE else busy + wait

    # Decoding a JPEG reads all of it whatever the size; resizing and convolving go with the pixels.
    return Prediction(
        expected=after(pixels**0.75, pixels**0.5),
        best=after(pixels, pixels),
        worst=after(pixels**0.25, 1.0),
        change={"data.image_size": smaller},
    )


def _bf16(s: Situation) -> Prediction | None:
    factors = _bf16_factors(s.setting.get("device", "cpu"))
    if factors is None or s.setting.get("precision") == "bf16" or s.share("matmul") < 0.3 or s.share("wait") >= 0.3:
        return None
    worst, expected, best = (s.draws["real"] - s.draws["matmul"] * (1 - 1 / factor) for factor in factors)
    return Prediction(expected=expected, best=best, worst=worst, change={"train.precision": "bf16"})


def _bf16_factors(device: str) -> tuple[float, float, float] | None:
    """Return how much faster forward and backward get at worst, likely and at best; None without hardware for it."""
    flags = cpu_flags()
    if str(device).startswith("cuda"):
        return 1.0, 1.25, 2.5
    if "amx_bf16" in flags:
        return 0.9, 1.3, 3.0
    return (0.8, 1.1, 1.8) if "avx512_bf16" in flags else None


def _side_work(s: Situation) -> Prediction | None:
    return _without(s, "side")


def _transfer(s: Situation) -> Prediction | None:
    if s.setting.get("device") == "cpu":  # nothing is copied there: the stage is a conversion, done by the same cores
        return None
    return _without(s, "transfer")


def _without(s: Situation, cost: str) -> Prediction | None:
    if s.share(cost) < WORTH_SHARE:
        return None
    after, real = s.draws["real"] - s.draws[cost], s.draws["real"]
    return Prediction(expected=after, best=after, worst=real - _PREPARED_SHARE * s.draws[cost])


def _constant_cost(s: Situation) -> Prediction | None:
    growth = s.growth
    if growth is None:
        return None
    last = max(s.total_steps or 0, growth.last_call)
    centre = (growth.first_call + growth.last_call) / 2
    real = s.draws["real"]

    def run_mean(slope: float) -> np.ndarray:
        return np.maximum(real + slope * (last / 2 - centre), 1e-3)

    # The measured steps hold the growth up to the window's centre; call 0 held none.
    after = np.maximum(real - growth.milliseconds_per_call * centre, 1e-3)
    before = run_mean(growth.milliseconds_per_call)
    return Prediction(
        before=before,
        expected=after,
        best=after * before / run_mean(growth.high),
        worst=after * before / run_mean(growth.low),
    )


REMEDIES: dict[str, RemedyKind] = {
    "prefetch": RemedyKind(
        "the loop waits about as long as the loader takes alone: loading and computing do not overlap",
        "prepare batches in the background, e.g. make_loader(..., prefetch=2)",
        _prefetch,
    ),
    "more-loader-threads": RemedyKind(
        "the loop waits for batches and cores are free, or the loader's threads mostly sleep",
        "raise the number of loader threads",
        _more_threads,
    ),
    "fewer-loader-threads": RemedyKind(
        "the loader's threads slow the step down while it hardly ever waits for a batch",
        "lower the number of loader threads, so that the step keeps its cores",
        _fewer_threads,
    ),
    "resident-data": RemedyKind(
        "preparing batches costs time, by waiting or by taking cores, and the decoded images fit into memory",
        "keep decoded images in memory, e.g. make_loader(..., resident=True)",
        _resident,
    ),
    "smaller-images": RemedyKind(
        "decoding or computing takes most of the step; the model then sees fewer pixels, so check its accuracy",
        "lower the image size by about a quarter",
        _smaller_images,
    ),
    "bf16": RemedyKind(
        "forward and backward take most of the step and the hardware multiplies bfloat16; its range is a prior, not measured",
        "train in bfloat16",
        _bf16,
    ),
    "metric-off-the-step": RemedyKind(
        "metrics and logging take a noticeable part of each step",
        "compute metrics every 50 steps or from running sums (torchmetrics), and log without .item() in each step",
        _side_work,
    ),
    "overlap-transfer": RemedyKind(
        "copying batches to the device takes a noticeable part of each step",
        "copy from pinned memory with non_blocking=True, one batch ahead",
        _transfer,
    ),
    "constant-cost": RemedyKind(
        "a stage costs more with every call, which adds up to a quadratic cost over the run",
        "keep running sums instead of recomputing over all that was seen (torchmetrics), and clear lists that only grow",
        _constant_cost,
    ),
}
