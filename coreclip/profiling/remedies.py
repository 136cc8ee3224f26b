"""What would make the run faster, by how much by the measurements, and how much it did.

Predictions are Amdahl's law on exposed time, ``max()`` for what overlaps, and the floor (CPU of step + CPU of loader) /
cores. ``low`` to ``high`` holds both the measurements' noise and the remedy's own range, from "brings nothing" to "brings
all it can". A remedy stays a prediction until :func:`measure_remedy` has run it beside the baseline.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.profiling.conditions import interval, resample
from coreclip.profiling.findings import Finding, memory_pressure, slows_by_waiting, synchronisation
from coreclip.profiling.situation import Situation
from coreclip.profiling.system import cpu_flags
from coreclip.profiling.threadpools import THREAD_LIMIT

IMAGES, THREADS = "images.", "threads"  # changes of what is stored, and of torch's threads
WORTH_SHARE = 0.05  # of a step: below it, removing all of a cost is not worth a line
_WORTH_SPEEDUP = 1.02
_IDLE_THREADS = 0.3  # loader threads that use less of a core than this wait for something else
_MOST_THREADS = 256
_PREPARED_SHARE = 0.8  # of a cost that a pessimist expects to get rid of
_SMALL_IMAGES = 128  # pixels: larger ones take more disk raw than they save time
_STORED_ABOVE = 1.25  # of the side that is trained on: room for crops
# By how much steps were faster on the machines that this was measured on: at worst, likely, at best. Priors, not measurements.
_COMPILE_FACTORS = {"cpu": (0.9, 1.05, 1.4), "cuda": (1.0, 1.15, 1.6)}
_BATCH_FACTORS = {"cpu": (0.9, 1.03, 1.2), "cuda": (1.0, 1.1, 1.6)}


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
        The same as overrides of the configuration, ``{"data.workers": 1}``, as an option, ``{"threads": 1}``, or as what ``convert``
        stores, ``{"images.max_side": 96}``; empty where it takes another edit.
    same_result : bool
        Whether the model learns from the same pixels and batches as before: only such a change is made without being asked for.
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
    same_result: bool = True
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
    """Milliseconds per step beside the stalls there are: expected, at best and at worst after a change (float64 (draws,))."""

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
    same_result: bool = True


def propose(situation: Situation) -> list[Remedy]:
    """Return the remedies that apply and are worth it, the largest predicted speed-up first."""
    remedies = []
    for name, kind in REMEDIES.items():
        prediction = kind.predict(situation)
        if prediction is None:
            continue
        before = situation.draws["real"] if prediction.before is None else prediction.before
        expected, best, worst = (
            (before + situation.stalled) / np.maximum(after + situation.stalled, 1e-6)
            for after in (prediction.expected, prediction.best, prediction.worst)
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
            same_result=kind.same_result,
        )
        if speedup >= _WORTH_SPEEDUP:
            remedies.append(remedy)
    return sorted(remedies, key=lambda remedy: -remedy.predicted_speedup)


def change_text(change: Mapping[str, Any]) -> str:
    """Return a change to read: overrides, options, and what ``convert`` is to be told."""
    flags = convert_flags(change)
    others = [
        f"--threads {value}" if name == THREADS else f"{name}={value}"
        for name, value in change.items()
        if not name.startswith(IMAGES)
    ]
    return ", ".join([*([f"convert {flags}"] if flags else []), *others])


def convert_flags(change: Mapping[str, Any]) -> str:
    """Return the options of ``convert`` that store images as a change has it; empty where it changes something else."""
    stored = {name.removeprefix(IMAGES): value for name, value in change.items() if name.startswith(IMAGES)}
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in stored.items()
    )


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
    loader = s.draws.get("loader")
    if loader is None or s.share("wait") < WORTH_SHARE or s.overlaps:
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
    if loader is None or not workers or workers < 2 or s.share("slowed") < WORTH_SHARE or slows_by_waiting(s):
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
    return Prediction(
        expected=compute,
        best=compute,
        worst=real - _PREPARED_SHARE * np.maximum(real - compute, 0),
        change={} if s.setting.get("resident") is None else {"data.resident": True},
    )


def _limit_threads(s: Situation) -> Prediction | None:
    limited = s.draws.get(THREAD_LIMIT)
    if limited is None:
        return None
    after = s.without(np.maximum(s.draws["compute"] - limited, 0.0))
    return Prediction(expected=after, best=after, worst=after, change={THREADS: max(1, int(s.cores))})


def _spare_core(s: Situation) -> Prediction | None:
    most = max(1, int(s.cores))
    if (
        most < 2
        or int(s.setting.get("threads") or most) < most
        or s.share("slowed") < WORTH_SHARE
        or s.setting.get("device", "cpu") != "cpu"
        or slows_by_waiting(s)
    ):
        return None
    real, slower = s.draws["real"], s.draws["compute"] * most / (most - 1)
    best = _overlapped(s, s.floor)
    # What a step loses with a core depends on how well it uses several, which is a guess here.
    return Prediction(
        expected=np.sqrt(best * np.maximum(slower, best)),
        best=best,
        worst=np.maximum(real, slower),
        change={THREADS: most - 1},
    )


def _compile(s: Situation) -> Prediction | None:
    if s.setting.get("compile") is not False or s.share("matmul") < 0.5 or s.share("wait") >= 0.3:
        return None
    worst, expected, best = _COMPILE_FACTORS["cuda" if str(s.setting.get("device")).startswith("cuda") else "cpu"]
    part = s.draws["matmul"]
    return Prediction(
        expected=s.without(part * (1 - 1 / expected)),
        best=s.without(part * (1 - 1 / best)),
        worst=s.without(part * (1 - 1 / worst)),
        change={"train.compile": "on"},
    )


def _larger_batch(s: Situation) -> Prediction | None:
    size = s.setting.get("batch_size")
    if not size or s.share("wait") >= 0.3 or s.share("matmul") < 0.5:
        return None
    real = s.draws["real"]
    worst, expected, best = _BATCH_FACTORS["cuda" if str(s.setting.get("device")).startswith("cuda") else "cpu"]
    return Prediction(
        expected=real / expected, best=real / best, worst=real / worst, change={"data.batch_size": 2 * size}
    )


def _kept_pages(s: Situation) -> Prediction | None:
    found = memory_pressure(s)
    return None if found is None or found.cause != "fresh pages" else _without_finding(s, found)


def _fewer_read_backs(s: Situation) -> Prediction | None:
    found = synchronisation(s)
    return None if found is None else _without_finding(s, found)


def _without_finding(s: Situation, found: Finding) -> Prediction | None:
    """Predict a step without what a detector has found."""
    if found.share < WORTH_SHARE:
        return None
    real = s.draws["real"]
    return Prediction(
        expected=real - found.milliseconds,
        best=real - found.milliseconds,
        worst=real - _PREPARED_SHARE * found.milliseconds,
    )


def _rarer_stalls(s: Situation) -> Prediction | None:
    if s.stalls is None:
        return None
    after = s.without(0.0) - s.stalled
    return Prediction(expected=after, best=after, worst=after + 0.5 * s.stalled)


def _quicker_images(s: Situation) -> Prediction | None:
    """Raw pixels take no entropy decoding; what is left is to read and to resize them."""
    loader, size = s.draws.get("loader"), s.setting.get("image_size")
    if loader is None or s.setting.get("stored") != "jpg" or not size or size > _SMALL_IMAGES:
        return None
    if s.share("wait") + s.share("slowed") < WORTH_SHARE:
        return None
    best, expected, worst = (_overlapped(s, loader * left) for left in (0.15, 0.4, 0.9))
    real = s.draws["real"]
    return Prediction(
        expected=np.minimum(expected, real),
        best=np.minimum(best, real),
        worst=np.minimum(worst, real),
        change={"images.raw": True, "images.max_side": _stored_side(s, size)},
    )


def _stored_side(s: Situation, size: int) -> int:
    """Return the longer side of an image whose shorter one is a quarter above what is trained on."""
    return 8 * math.ceil(_STORED_ABOVE * size * float(s.setting.get("stored_aspect", 1.0)) / 8)


def _smaller_stored(s: Situation) -> Prediction | None:
    loader, size, stored = s.draws.get("loader"), s.setting.get("image_size"), s.setting.get("stored_side")
    if loader is None or not size or not stored or stored < 2 * size:
        return None
    if s.share("wait") + s.share("slowed") < WORTH_SHARE:
        return None
    pixels = min(1.0, (_STORED_ABOVE * size / stored) ** 2)
    real = s.draws["real"]
    best, expected, worst = (
        np.minimum(real, _overlapped(s, loader * left)) for left in (pixels, pixels**0.75, pixels**0.5)
    )
    raw = {"images.raw": True} if s.setting.get("stored") == "raw" else {}  # or they would become JPEGs
    change = {**raw, "images.max_side": _stored_side(s, size)}
    return Prediction(expected=expected, best=best, worst=worst, change=change)


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
    worst, expected, best = (s.without(s.draws["matmul"] * (1 - 1 / factor)) for factor in factors)
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
    after = s.without(s.draws[cost])
    return Prediction(expected=after, best=after, worst=s.without(_PREPARED_SHARE * s.draws[cost]))


def _constant_cost(s: Situation) -> Prediction | None:
    growth = s.growth
    if growth is None:
        return None
    before, after = s.grown(growth.milliseconds_per_call)
    low, high = (growing / without for growing, without in (s.grown(growth.low), s.grown(growth.high)))
    return Prediction(before=before, expected=after, best=before / high, worst=before / low)


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
        "keep decoded images in memory, e.g. make_loader(..., resident=True): crops are then taken from a copy of 8/7 of the image size",
        _resident,
    ),
    "smaller-images": RemedyKind(
        "decoding or computing takes most of the step; the model then sees fewer pixels, so check its accuracy",
        "lower the image size by about a quarter",
        _smaller_images,
        same_result=False,
    ),
    "raw-images": RemedyKind(
        "small images are stored as JPEGs and decoding them costs time, by waiting or by taking cores",
        "keep small raw pixels in the files: coreclip convert DATASET OUT --raw --max-side PIXELS --tokenizer DATASET; or in memory: data.resident=true",
        _quicker_images,
        same_result=False,
    ),
    "cached-resolution": RemedyKind(
        "images are stored with twice the side that is trained on, or more, and decoding them costs time",
        "store them smaller, a quarter above what is trained on: coreclip convert DATASET OUT --max-side PIXELS --tokenizer DATASET",
        _smaller_stored,
        same_result=False,
    ),
    "fewer-computing-threads": RemedyKind(
        "more threads compute than there are cores",
        "let torch have as many threads as there are cores: --threads, torch.set_num_threads",
        _limit_threads,
    ),
    "spare-a-core": RemedyKind(
        "the loader's threads take cores from the step",
        "let torch have one thread fewer, so that the loader has a core of its own",
        _spare_core,
    ),
    "compile": RemedyKind(
        "forward and backward take most of the step and are not compiled; its range is a prior, not measured",
        "compile the model's blocks: torch.compile",
        _compile,
    ),
    "larger-batch": RemedyKind(
        "forward and backward take most of the step; the model then learns from other batches; its range is a prior, not measured",
        "double the batch size",
        _larger_batch,
        same_result=False,
    ),
    "keep-memory": RemedyKind(
        "the kernel gives the loop's thread fresh pages in every step, because the memory of the step before was given back",
        "have the allocator keep memory: coreclip.heap.keep_freed_memory() before the first step (train does), or MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ above the largest tensor",
        _kept_pages,
    ),
    "fewer-read-backs": RemedyKind(
        "tensors are read back into Python in every step",
        "keep sums on the device and read them once in a while; read a whole tensor by .tolist() rather than its elements by .item()",
        _fewer_read_backs,
    ),
    "rarer-stalls": RemedyKind(
        "every so many steps one takes much longer, e.g. to write a checkpoint or to evaluate",
        "do it less often, or on another thread or process",
        _rarer_stalls,
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
