"""What a conversion will find, need and take, before it writes anything: the scan of all sources, and a forecast from it.

A few images, spread over the manifest, are prepared and timed. Left out: the disk's speed, which only writing tells.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.files import free_disk
from coreclip.pipeline.job import Job, PathLike, check_job
from coreclip.pipeline.ledger import count_reasons
from coreclip.pipeline.manifest import Plan
from coreclip.pipeline.preparing import is_worth_compiling, time_image
from coreclip.pipeline.scanning import scan_part
from coreclip.pipeline.staging import Staging
from coreclip.pipeline.workers import WorkerPool
from coreclip.progress import Progress
from coreclip.spread import spread_evenly

_IMAGES_TIMED, _SECONDS_TIMED = 64, 1.0
_ROW_BYTES = 512  # of tables, captions and padding


@dataclass(frozen=True, slots=True)
class Forecast:
    """What writing the data set will need.

    Attributes
    ----------
    images_timed : int
        Prepared for this forecast.
    rejected_share : float
        Of those.
    bytes_needed : int
        On the disk of the data set.
    seconds : float
        With all workers, if the disk keeps up.
    """

    images_timed: int
    rejected_share: float
    bytes_needed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What :func:`plan_conversion` has found.

    Attributes
    ----------
    pairs : int
        Candidates; those whose image turns out bad will be fewer.
    captions : int
    rejected : int
        Samples that the scan refuses.
    reject_reasons : dict of str to int
    bytes_in : int
        Of the source images.
    bytes_needed, bytes_free : int
        On the disk of the data set.
    seconds : float
        Of the conversion, the scan included, with so many ``workers``.
    workers : int
    rejected_share : float
        Of ``images_timed`` images, spread over the sources.
    images_timed : int
    """

    pairs: int
    captions: int
    rejected: int
    reject_reasons: dict[str, int]
    bytes_in: int
    bytes_needed: int
    bytes_free: int
    seconds: float
    workers: int
    rejected_share: float
    images_timed: int


def plan_conversion(sources: Sequence[PathLike], dataset: PathLike, **options: Any) -> ConversionPlan:
    """Say what :func:`coreclip.pipeline.convert` would find, need and take, and write nothing.

    Parameters
    ----------
    sources, dataset, options
        As of ``convert``.

    Returns
    -------
    ConversionPlan

    Raises
    ------
    CoreclipError
        For sources or options that are not allowed.
    """
    start = time.monotonic()
    job = check_job(sources, dataset, **options)
    with tempfile.TemporaryDirectory(prefix="coreclip-plan-") as folder, WorkerPool(job.workers) as pool:
        staging = Staging(Path(folder))
        staging.work.mkdir()
        plan = scan_sources(job, staging, pool)
        forecast = forecast_work(job, staging, plan, pool)
        reasons: dict[str, int] = {}
        for part in staging.scan_rejects(plan):
            for reason, count in count_reasons(part).items():
                reasons[reason] = reasons.get(reason, 0) + count
    known = asdict(forecast)
    known["seconds"] += time.monotonic() - start
    known |= {"pairs": plan.rows, "captions": plan.captions, "rejected": sum(reasons.values())}
    known |= {"reject_reasons": reasons, "bytes_in": plan.bytes_in, "workers": job.workers}
    known["bytes_free"] = free_disk(job.target)
    return ConversionPlan(**{field.name: known[field.name] for field in fields(ConversionPlan)})


def scan_sources(job: Job, staging: Staging, pool: WorkerPool) -> Plan:
    """List all candidates in the parts of a manifest, one for each source; they are scanned side by side."""
    plan = Plan()
    arguments = [
        (source, job.class_names, job.template, staging.part("manifest", i), staging.part("rejects-scan", i))
        for i, source in enumerate(job.sources)
    ]
    with Progress(None, "scanning", "samples") as progress:
        if len(arguments) == 1:
            plan.join(scan_part(*arguments[0], progress=progress))
        else:
            for part in [pool.submit(scan_part, *part) for part in arguments]:
                plan.join(part.result())
                progress.advance(plan.part_rows[-1])
    return plan


def forecast_work(job: Job, staging: Staging, plan: Plan, pool: WorkerPool) -> Forecast:
    """Let a worker prepare some of the manifest's images, spread evenly over it, and conclude on all of them."""
    ends = np.cumsum(plan.part_rows)
    manifest = staging.manifest(plan)
    rows = spread_evenly(plan.rows, _IMAGES_TIMED)
    compiled = is_worth_compiling(plan.bytes_in)
    n_in = n_stored = timed = rejected = 0
    seconds = 0.0
    for row in rows.tolist():
        part = int(np.searchsorted(ends, row, side="right"))
        own_row = int(row - ends[part]) + plan.part_rows[part]
        # One by one: a worker whose parent is killed still ends what it was asked for.
        image = pool.submit(time_image, manifest[part], own_row, job.images, plan.labels, compiled, worker=0)
        own_seconds, sizes = image.result()
        seconds, timed = seconds + own_seconds, timed + 1
        if sizes is None:
            rejected += 1
        else:
            n_in, n_stored = n_in + sizes[0], n_stored + sizes[1]
        if seconds > _SECONDS_TIMED:
            break
    inflated = n_stored / n_in if n_in else 1.0
    tables = plan.rows * (_ROW_BYTES + 2 * job.context * plan.captions_per_row)
    return Forecast(
        images_timed=timed,
        rejected_share=rejected / max(timed, 1),
        bytes_needed=int(plan.bytes_in * inflated) + tables,
        seconds=seconds * plan.rows / max(timed, 1) / job.workers,
    )
