"""Training steps of a configuration, profiled: the parts that know of data sets, models and profilers are put together here.

What is measured is what ``train`` does in each step, without its run: nothing is written.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, decoding_costs
from coreclip.profiling import (
    Diagnosis,
    StageRecorder,
    diagnose,
    measure_roofline,
    probe_delays,
    write_trace,
)
from coreclip.profiling.conditions import first_batches
from coreclip.selection import Subset
from coreclip.spread import spread_evenly
from coreclip.training import MeasuredStep, make_step, torch_threads

_TRACED_STEPS = 4
_MOST_WARMUP = 8
_ROWS_LOOKED_AT = 1 << 16  # of a data set of any size, for how its images are stored


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained and how: all that a profile depends on.

    Attributes
    ----------
    dataset : Dataset
    config : Config
    subset : Subset or None
    init_from : str or None
    device : str
    threads : int or None
        Of torch; None for its own number.
    """

    dataset: Dataset
    config: Config
    subset: Subset | None = None
    init_from: str | None = None
    device: str = "auto"
    threads: int | None = None

    def torch_threads(self) -> AbstractContextManager[int]:
        """Return what lets torch have as many threads as the case asks for, inside."""
        return torch_threads(self.threads)

    def open(self) -> tuple[MeasuredStep, StageRecorder]:
        """Return the step, and the recorder that it and its loader tell their stages."""
        recorder = StageRecorder()
        step = make_step(
            self.dataset,
            self.config,
            subset=self.subset,
            init_from=self.init_from,
            device=self.device,
            watch=recorder,
            watch_loader=True,
        )
        return step, recorder


def total_steps_of(
    case: Case, *, minutes: float | None = None, epochs: float | None = None, samples: int | None = None
) -> int | Callable[[float], int] | None:
    """Return the steps of a run's budget; of minutes a function of the milliseconds that a step takes.

    Raises
    ------
    CoreclipError
        For more than one budget, or one that is not above 0.
    """
    given = {"--minutes": minutes, "--epochs": epochs, "--samples": samples}
    budgets = {name: value for name, value in given.items() if value is not None}
    if len(budgets) > 1:
        raise CoreclipError(f"{' and '.join(budgets)} are two budgets; a run has one: give one of them")
    for name, value in budgets.items():
        if not value > 0:
            raise CoreclipError(f"{name} {value} is not allowed: a budget is above 0")
    size = case.config.data.batch_size
    if samples is not None:
        return max(1, round(samples / size))
    if epochs is not None:
        n = case.dataset.n if case.subset is None else case.subset.k
        return max(1, round(epochs * n / size))
    return None if minutes is None else lambda milliseconds: max(1, round(60_000 * minutes / milliseconds))


def warmup_of(measured: MeasuredStep) -> int:
    """Return the steps after a start in which the queue fills; an epoch that is no longer than that can't be measured."""
    return max(1, min(_MOST_WARMUP, len(measured.loader) - 1))


def setting_of(case: Case, measured: MeasuredStep) -> dict[str, Any]:
    """Return what remedies depend on."""
    shards = case.dataset.open_shards()
    try:
        rows = spread_evenly(case.dataset.n, _ROWS_LOOKED_AT)
        stored = "raw" if float(np.mean(shards.mode[rows])) > 0.5 else "jpg"
        width, height = shards.width[rows], shards.height[rows]
        short, long = np.minimum(width, height), np.maximum(width, height)
        side, aspect = float(np.median(short)), float(np.median(long / np.maximum(short, 1)))
    finally:
        shards.close()
    return {
        "threads": torch.get_num_threads(),
        "precision": measured.precision,
        "device": measured.device.type,
        "compile": measured.compiled,
        "resident": case.config.data.resident,
        "workers": measured.loader.workers,
        "image_size": measured.loader.image_size,
        "batch_size": case.config.data.batch_size,
        "stored": stored,
        "stored_side": side,
        "stored_aspect": aspect,
    }


def profile_case(
    case: Case,
    *,
    steps: int = 30,
    repeats: int = 5,
    total_steps: int | Callable[[float], int] | None = None,
    cold: bool = False,
    probe: bool = False,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Measure a case and say what holds its steps up.

    Parameters
    ----------
    case : Case
    steps, repeats : int
        See :func:`coreclip.profiling.diagnose`.
    total_steps : int, callable or None
        Of the whole run, for costs that grow, see :func:`total_steps_of`.
    cold : bool
        Whether the loop is also measured with the data's files out of memory.
    probe : bool
        Whether stages are delayed for a second opinion.
    trace : Path or None
        Where torch's own trace of a few steps is written.

    Returns
    -------
    dict
        Of :meth:`coreclip.profiling.Diagnosis.to_dict`, with ``roofline``, ``loader_stages``, ``setting`` and, where it was asked
        for, ``probe``.

    Raises
    ------
    CoreclipError
        See :func:`coreclip.training.make_step` and :func:`coreclip.profiling.diagnose`.
    """
    with case.torch_threads():
        measured, recorder = case.open()
        diagnosis, setting = diagnose_case(
            case, measured, recorder, steps=steps, repeats=repeats, total_steps=total_steps, cold=cold
        )
        result = diagnosis.to_dict() | {"setting": setting, "loader_stages": _loader_stages(diagnosis, measured)}
        rows = measured.transfer(first_batches(measured.loader, 1)[0])
        result["roofline"] = measure_roofline(
            lambda: measured.compute(rows),
            milliseconds=diagnosis.conditions["compute"].milliseconds,
            device=str(measured.device),
            precision=measured.precision,
        ).to_dict()
        if probe:
            opinions = probe_delays(measured.step, measured.loader, recorder=recorder, warmup=warmup_of(measured))
            result["probe"] = [opinion.to_dict() for opinion in opinions]
        if trace is not None:
            write_trace(
                lambda: _run_steps(measured, recorder, _TRACED_STEPS),
                trace,
                recorder=recorder,
                cuda=measured.device.type == "cuda",
            )
    return result


def diagnose_case(
    case: Case,
    measured: MeasuredStep,
    recorder: StageRecorder,
    *,
    steps: int,
    repeats: int,
    total_steps: int | Callable[[float], int] | None = None,
    cold: bool = False,
) -> tuple[Diagnosis, dict[str, Any]]:
    """Return the diagnosis of a case that is open, and the setting that its remedies depend on."""
    setting = setting_of(case, measured)
    diagnosis = diagnose(
        measured.compute,
        measured.loader,
        transfer=measured.transfer,
        steps=steps,
        warmup=warmup_of(measured),
        repeats=min(repeats, steps),
        recorder=recorder,
        forget=measured.loader.forget_pages if cold else None,
        setting=setting,
        total_steps=total_steps,
    )
    return diagnosis, setting


def _run_steps(measured: MeasuredStep, recorder: StageRecorder, steps: int) -> None:
    for batch in islice(recorder.loop(measured.loader), steps + 1):  # a step ends when the next batch is asked for
        measured.step(batch)


def _loader_stages(diagnosis: Diagnosis, measured: MeasuredStep) -> dict[str, float]:
    """Return the milliseconds of work for a batch that each part of the loader takes, on all its threads together.

    What decoding takes was clocked while the loader ran alone; how it divides into its parts, on single images.
    """
    spent = {name: stage.milliseconds for name, stage in diagnosis.conditions["loader"].threads.items()}
    tokens = diagnosis.stages.get("tokens")
    if tokens is not None:
        spent["tokens"] = tokens["milliseconds_per_step"]
    decoding = spent.pop("decode", 0.0)
    parts = decoding_costs(measured.loader)
    total = max(sum(parts.values()), 1e-9)
    divided = {name: decoding * part / total for name, part in parts.items()}
    order = ("read", "copy", "entropy_decode", "inverse_dct", "resize_and_colour", "augment", "tokens")
    together = {**spent, **divided}
    return {name: together[name] for name in order if name in together}
