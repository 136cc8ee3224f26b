"""Remedies tried on a copy of a configuration, one at a time: predicted, measured beside it, kept where it is faster.

A remedy's steps and the baseline's run in turn (A B A B ...), each fed by its own loader, and are compared by milliseconds a
sample, so that batches of another size count for what they hold. What is kept is the baseline of the next one. When the
remedies that the measurements speak for are used up, the other changes on the list are measured too: then nothing on it is
left unmeasured. What would store the images otherwise is measured on a copy of some pairs, and said, not kept: a configuration
does not make a data set. Left out: changes that take an edit of a program.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreclip.config import Config, config_from_table, config_to_table
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, convert, materialise
from coreclip.profiled import Case, diagnose_case, warmup_of
from coreclip.profiling import MeasuredSpeedup, Remedy, StageRecorder, available_cores
from coreclip.profiling.remedies import IMAGES, THREADS, change_text, compare, convert_flags
from coreclip.progress import Progress
from coreclip.spread import spread_evenly
from coreclip.training import MeasuredStep

_BLOCKS = 6
_BLOCK_STEPS = 8
_LEAST_GAIN = 1.01
_COPIED_BATCHES = 24  # on which another way to store images is measured


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A change that was measured.

    Attributes
    ----------
    name : str
    change : dict
        Of configuration and options, as in :class:`coreclip.profiling.Remedy`.
    predicted_speedup, low, high : float or None
        None where nothing was predicted: the change is on the list, and the measurements did not speak for it.
    measured_speedup, measured_low, measured_high : float or None
        Milliseconds a sample before over after; None where it could not be run.
    on_top_of : dict
        The changes that had been kept before and that it was measured on top of.
    kept : bool
    note : str
        Why it could not be run, or how it is made where a configuration can't; else empty.
    """

    name: str
    change: dict[str, Any]
    predicted_speedup: float | None
    low: float | None
    high: float | None
    measured_speedup: float | None
    measured_low: float | None
    measured_high: float | None
    kept: bool
    on_top_of: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What trying the remedies came to.

    Attributes
    ----------
    case : Case
        With all that was kept.
    trials : list of Trial
        In the order in which they were made.
    speedup, low, high : float
        Of the last case against the first, measured once more in turn; 1 where nothing was kept.
    seconds : float
    complete : bool
        Whether everything on the list was measured; else the time was up.
    """

    case: Case
    trials: list[Trial]
    speedup: float
    low: float
    high: float
    seconds: float
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        """Return trials and figures as JSON types."""
        return {
            "trials": [asdict(trial) for trial in self.trials],
            "speedup": self.speedup,
            "low": self.low,
            "high": self.high,
            "seconds": self.seconds,
            "complete": self.complete,
        }


def try_remedies(case: Case, *, steps: int, minutes: float, any_result: bool = False) -> Improvement:
    """Apply remedies one at a time and keep those that make the steps faster.

    Parameters
    ----------
    case : Case
        Left as it is.
    steps : int
        Of each condition of the diagnoses in between.
    minutes : float
        After which no further change is tried.
    any_result : bool
        Whether changes are tried too after which the model learns from other pixels or batches.

    Raises
    ------
    CoreclipError
        For minutes that are not above 0, and as :func:`coreclip.training.make_step` for the case itself.
    """
    check_minutes(minutes)
    best, trials, tried, made = case, list[Trial](), set[str](), dict[str, Any]()
    queue = _changes(case, steps, any_result)
    begin = time.monotonic()
    while (
        waiting := [item for item in queue if _key(item[1]) not in tried]
    ) and time.monotonic() - begin < 60 * minutes:
        name, change, remedy = waiting[0]
        tried.add(_key(change))
        trial, changed = _try(best, name, change, remedy)
        trials.append(replace(trial, on_top_of=dict(made)))
        if trial.kept:
            best, made = changed, made | change
            queue = _changes(best, steps, any_result)  # what else would help has changed with it
    gain = measure_cases(case, best) if best is not case else None
    if gain is not None and gain.low <= 1:
        best, gain = case, None
        trials = [replace(trial, kept=False) for trial in trials]
    return Improvement(
        case=best,
        trials=trials,
        speedup=1.0 if gain is None else gain.speedup,
        low=1.0 if gain is None else gain.low,
        high=1.0 if gain is None else gain.high,
        seconds=time.monotonic() - begin,
        complete=not waiting,
    )


def check_minutes(minutes: float) -> None:
    """Refuse a time in which no remedy can be tried."""
    if not minutes > 0:
        raise CoreclipError(f"minutes = {minutes} is not allowed: above 0; give the remedies some time")


def measure_cases(a: Case, b: Case, *, blocks: int = _BLOCKS, steps: int = _BLOCK_STEPS) -> MeasuredSpeedup:
    """Run the steps of two cases in turn and compare their milliseconds a sample.

    Parameters
    ----------
    a, b : Case
    blocks : int
        Of each.
    steps : int
        Measured in a block, after those in which the queue fills.
    """
    with _Runner(a) as first, _Runner(b) as second:
        times: tuple[list[float], list[float]] = ([], [])
        with Progress(2 * blocks, "measuring", unit="blocks") as progress:
            for turn in range(blocks):
                # Each goes first every other time: what the one before has heated or cached then favours neither.
                order = ((0, first), (1, second)) if turn % 2 == 0 else ((1, second), (0, first))
                for which, runner in order:
                    times[which].append(runner.block(steps))
                    progress.advance()
    return compare(*times)


def improved_toml(improvement: Improvement, toml: str, command: str) -> str:
    """Return the improved configuration with a head that says what it is and how it is used.

    Parameters
    ----------
    improvement : Improvement
    toml : str
        Of :func:`coreclip.config.config_to_toml`.
    command : str
        That trains with it.
    """
    kept = [trial for trial in improvement.trials if trial.kept]
    lines = [
        f"{MARK} measured {improvement.speedup:.2f} times as fast ({improvement.low:.2f} to {improvement.high:.2f}) as what it began with",
        *(f"# {trial.name}: {change_text(trial.change)}, measured {trial.measured_speedup:.2f}" for trial in kept),
        f"# {command}",
    ]
    return "\n".join([*lines, "", toml])


def measured_remedies(remedies: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return a profile's remedies (JSON types) with what was measured of each, where it was tried on what was profiled."""
    by_change = {_key(trial.change): trial for trial in trials if not trial.on_top_of}
    filled = []
    for remedy in remedies:
        trial = by_change.get(_key(remedy["change"]))
        measured = {} if trial is None else {
            "measured_speedup": trial.measured_speedup,
            "measured_low": trial.measured_low,
            "measured_high": trial.measured_high,
        }  # fmt: skip
        filled.append({**remedy, **measured})
    return filled


MARK = "# coreclip profile --fix:"
"""At the beginning of an improved configuration, by which it is known again."""


class _Runner:
    """A case's step and loader, run block by block under its own number of threads; a context manager."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def __enter__(self) -> "_Runner":
        with self._case.torch_threads():
            self._measured, self._recorder = self._case.open()
            self.block(1)  # compiling and tuning are not measured
        return self

    def __exit__(self, *_: object) -> None:
        del self._measured, self._recorder

    def block(self, steps: int) -> float:
        """Return milliseconds a sample of some steps of the real loop."""
        with self._case.torch_threads():
            return _milliseconds_a_sample(self._measured, self._recorder, steps)


def _milliseconds_a_sample(measured: MeasuredStep, recorder: StageRecorder, steps: int) -> float:
    begin, warmup = recorder.n_steps, warmup_of(measured)
    done = 0
    while done <= warmup + steps:  # one more: a step ends when the next batch is asked for
        batches = recorder.loop(measured.loader)
        for batch in batches:
            measured.step(batch)
            done += 1
            if done > warmup + steps:
                break
        batches.close()
    records = recorder.finish()
    records = records.take(records.number >= begin + warmup)
    # The median: a stall of the machine in one of a block's few steps is no difference between the cases.
    return float(np.median(records.step_milliseconds / np.maximum(records.items, 1)))


def _changes(case: Case, steps: int, any_result: bool) -> list[tuple[str, dict[str, Any], Remedy | None]]:
    """Return the changes to try: those that a diagnosis proposes, the largest prediction first, and the others on the list."""
    with case.torch_threads():
        measured, recorder = case.open()
        diagnosis, _ = diagnose_case(case, measured, recorder, steps=steps, repeats=3)
        as_it_is = {
            "data.workers": measured.loader.workers,
            "data.resident": case.config.data.resident,
            "train.precision": measured.precision,
            "train.compile": "on" if measured.compiled else "off",
            THREADS: torch.get_num_threads(),
        }  # what "auto" and 0 have come to: to ask for it would change nothing
    proposed = [
        (r.name, r.change, r) for r in diagnosis.remedies if _is_possible(r.change) and (any_result or r.same_result)
    ]
    every = [*proposed, *((name, change, None) for name, change in _listed_changes())]
    return [item for item in every if any(as_it_is.get(key) != value for key, value in item[1].items())]


def _listed_changes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the changes that need no other data set and leave what is learned as it is, whatever the measurements say."""
    cores = max(1, int(available_cores()))
    for workers in sorted({1, 2, cores}):
        yield "loader-threads", {"data.workers": workers}
    for threads in sorted({max(1, cores - 1), cores}):
        yield "computing-threads", {THREADS: threads}
    yield "resident-data", {"data.resident": True}
    yield "bf16", {"train.precision": "bf16"}
    yield "fp32", {"train.precision": "fp32"}
    yield "compile", {"train.compile": "on"}


def _try(case: Case, name: str, change: dict[str, Any], remedy: Remedy | None) -> tuple[Trial, Case]:
    predicted = (None, None, None) if remedy is None else (remedy.predicted_speedup, remedy.low, remedy.high)
    trial = Trial(
        name=name,
        change=change,
        predicted_speedup=predicted[0],
        low=predicted[1],
        high=predicted[2],
        measured_speedup=None,
        measured_low=None,
        measured_high=None,
        kept=False,
    )
    if any(key.startswith(IMAGES) for key in change):
        return _try_images(case, trial), case
    try:
        changed = _with_change(case, change)
        gain = measure_cases(case, changed)
    except (
        Exception
    ) as error:  # no room for the images, no compiler: of many kinds, and the other remedies can do without it
        return replace(trial, note=(str(error).splitlines() or [type(error).__name__])[0]), case
    kept = gain.low > 1 and gain.speedup >= _LEAST_GAIN
    if kept:  # among many changes one looks better by chance: it has to do so twice
        again = measure_cases(case, changed)
        kept = again.low > 1 and again.speedup >= _LEAST_GAIN
        gain = min(gain, again, key=lambda one: one.speedup)
    measured = replace(
        trial,
        measured_speedup=gain.speedup,
        measured_low=gain.low,
        measured_high=gain.high,
        kept=kept,
    )
    return measured, changed


def _try_images(case: Case, trial: Trial) -> Trial:
    """Measure images that are stored otherwise, on a copy of some of the pairs, beside the same pairs as they are."""
    options = {key.removeprefix(IMAGES): value for key, value in trial.change.items()}
    indices = np.arange(case.dataset.n) if case.subset is None else np.unique(case.subset.indices)
    # Of all sources and classes.
    chosen = indices[spread_evenly(len(indices), _COPIED_BATCHES * case.config.super_batch_size)]
    with tempfile.TemporaryDirectory(prefix="coreclip-images-") as folder:
        try:
            plain, changed = Path(folder) / "plain", Path(folder) / "changed"
            materialise(case.dataset, chosen, plain)
            convert([plain], changed, tokenizer=plain, **options)
            with Dataset(plain) as before, Dataset(changed) as after:
                gain = measure_cases(
                    replace(case, dataset=before, subset=None), replace(case, dataset=after, subset=None)
                )
        except Exception as error:  # no disk, features of another data set: as in _try
            return replace(trial, note=(str(error).splitlines() or [type(error).__name__])[0])
    return replace(
        trial,
        measured_speedup=gain.speedup,
        measured_low=gain.low,
        measured_high=gain.high,
        note=f"needs another data set: coreclip convert DATASET OUT {convert_flags(trial.change)} --tokenizer DATASET"
        + ("" if case.subset is None else ", and choose the subset anew"),
    )


def _with_change(case: Case, change: Mapping[str, Any]) -> Case:
    table = config_to_table(case.config)
    for key, value in change.items():
        section, dot, name = key.partition(".")
        if dot:
            table[section][name] = value
    return replace(case, config=config_from_table(table), threads=change.get(THREADS, case.threads))


def _is_possible(change: Mapping[str, Any]) -> bool:
    """Whether a change is one of the configuration's, of the threads, or of what is stored."""
    sections = config_to_table(Config())
    return bool(change) and all(
        key == THREADS or key.startswith(IMAGES) or key.partition(".")[0] in sections for key in change
    )


def _key(change: Mapping[str, Any]) -> str:
    return change_text(dict(sorted(change.items())))
