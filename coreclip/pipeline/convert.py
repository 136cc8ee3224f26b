"""Sources to a data set: scan, train the tokenizer, prepare every image in worker processes, write shards, publish.

The work happens in ``.NAME.partial`` beside the data set. What is written depends on the sources and options alone, not
on the number of workers nor on how often the conversion was stopped.
"""

import itertools
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.files import check_free_disk, lock, publish, read_json, remove, sha256_file, write_json
from coreclip.pipeline.chunks import Chunk, cut_chunks
from coreclip.pipeline.job import Job, PathLike, check_job
from coreclip.pipeline.ledger import count_reasons, merge, pairs_schema, rejects_schema
from coreclip.pipeline.manifest import Plan, read_captions
from coreclip.pipeline.planning import forecast_work, scan_sources
from coreclip.pipeline.preparing import Prepared, TableOptions, is_worth_compiling, prepare_chunk, write_chunk
from coreclip.pipeline.publishing import describe, explained_full_disk
from coreclip.pipeline.shards import ShardSequence, Staging
from coreclip.pipeline.tokenizer import Tokenizer
from coreclip.pipeline.workers import WorkerPool
from coreclip.progress import Progress

_MOST_CAPTIONS_TO_LEARN = 1 << 17  # a tokenizer's few thousand merges are settled long before; more cost 50 us each
_CHUNKS_PER_WORKER = 3  # under way at once: one at work, two waiting
_NEWER_OPTIONS = {"raw": False}  # what data sets have that were made before there was the choice


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion has done.

    Attributes
    ----------
    pairs, rejected : int
        Samples stored and refused; ``rejects.parquet`` says why.
    seconds : float
        Of this call.
    pairs_per_second : float
    bytes_in : int
        Of the source images.
    bytes_out : int
        Of the shards.
    already_done : bool
        The data set was there, made from the same sources with the same options, and its files are whole.
    """

    pairs: int
    rejected: int
    seconds: float
    pairs_per_second: float
    bytes_in: int
    bytes_out: int
    already_done: bool


def convert(
    sources: Sequence[PathLike],
    dataset: PathLike,
    *,
    captions: PathLike | None = None,
    class_names: Sequence[str] | None = None,
    template: str = "{}",
    tokenizer: PathLike | None = None,
    vocab_size: int = 4096,
    context: int | None = None,
    max_side: int | None = None,
    raw: bool = False,
    check: str = "decode",
    workers: int | None = None,
    shard_bytes: int = 256 << 20,
    max_pixels: int = 179_000_000,
    quality: int = 95,
) -> ConvertReport:
    """Convert image-text pairs to a data set.

    A conversion that was stopped goes on behind its last whole shard when it is run again; one that is finished is
    verified.

    Parameters
    ----------
    sources : sequence of path
        Local files and folders or URLs, with patterns like ``train-{00000..00004}.tar``: WebDataset archives, folders with
        a captions table, COCO, class folders, parquet, TFRecord, RecordIO, IDX, ``.beton`` files and data sets.
    dataset : path
        The folder to make.
    captions : path, optional
        Table of the one folder in ``sources``, if it lies elsewhere.
    class_names : sequence of str, optional
        Names of the classes 0, 1, ...; a labelled pair without captions gets ``template.format(name)``.
    template : str
        Has one ``{}``.
    tokenizer : path or str, optional
        A ``tokenizer.json``; a data set whose tokenizer is taken; ``"clip"`` or ``"clip:PATH"``, CLIP's own vocabulary; by default one is
        trained on the captions.
    vocab_size : int
        Of a tokenizer that is trained, at most.
    context : int, optional
        Tokens of a stored caption; by default 32, CLIP's 77 with its vocabulary, a data set's own with its tokenizer.
    max_side : int, optional
        Pixels; larger images are shrunk to it.
    raw : bool
        Store pixels in place of JPEGs: several times the size, and no entropy decoding in each epoch.
    check : {"decode", "header"}
        ``"header"`` does not decode JPEGs that are stored as they are.
    workers : int, optional
        Processes; by default one for each core.
    shard_bytes : int
        Image bytes of a shard.
    max_pixels : int
        Larger images are refused.
    quality : int
        Of the JPEGs that are stored anew, 1..95.

    Returns
    -------
    ConvertReport

    Raises
    ------
    CoreclipError
        For sources or options that are not allowed, an output that is there already and differs, no pair at all,
        a worker that dies, a full disk.
    """
    start = time.monotonic()
    job = check_job(
        sources, dataset, captions=captions, class_names=class_names, template=template, tokenizer=tokenizer,
        vocab_size=vocab_size, context=context, max_side=max_side, raw=raw, check=check, workers=workers,
        shard_bytes=shard_bytes, max_pixels=max_pixels, quality=quality,
    )  # fmt: skip
    with lock(job.target):
        already_done = _is_there(job.target)
        if already_done:
            _verify(job.target, job.request)
        else:
            with explained_full_disk(job.target, "run the same command again to go on"):
                _convert(job)
        info = read_json(job.target / "dataset.json", "data set description")
    seconds = time.monotonic() - start
    return ConvertReport(
        pairs=info["pairs"],
        rejected=info["rejected"],
        seconds=seconds,
        pairs_per_second=info["pairs"] / max(seconds, 1e-9),
        bytes_in=info["bytes_in"],
        bytes_out=info["bytes_out"],
        already_done=already_done,
    )


def _is_there(target: Path) -> bool:
    if (target / "dataset.json").is_file():
        return True
    if target.is_dir() and not any(target.iterdir()):
        return False
    if target.exists() or target.is_symlink():
        raise CoreclipError(f"{target} exists and is not a data set; it is left as it is; name another output")
    return False


def _verify(target: Path, request: dict[str, Any]) -> None:
    """Refuse a finished data set that is made from something else, or whose files are not what they were."""
    info = read_json(target / "dataset.json", "data set description")
    try:
        there, wanted = info["convert"], request
        options = _NEWER_OPTIONS | there["options"]
        differences = [
            f"{name} ({options.get(name)!r} there, {value!r} now)"
            for name, value in wanted["options"].items()
            if options.get(name) != value
        ]
        if _without_paths(there["sources"]) != _without_paths(wanted["sources"]):
            differences.insert(0, "sources")
        hashes = {shard["file"]: shard["sha256"] for shard in info["shards"]}
        hashes |= {"pairs.parquet": info["pairs_sha256"], "rejects.parquet": info["rejects_sha256"]}
        hashes["tokenizer.json"] = info["tokenizer_sha256"]
    except (KeyError, TypeError, AttributeError):
        raise CoreclipError(
            f"data set {target} is damaged: dataset.json lacks an entry; remove it, convert again"
        ) from None
    if differences:
        raise CoreclipError(
            f"{target} is there already, converted with other {', '.join(differences)}; remove it or name another output"
        )
    for name, sha256 in hashes.items():
        if not (target / name).is_file() or sha256_file(target / name) != sha256:
            state = "is missing" if not (target / name).is_file() else "has changed since it was written"
            raise CoreclipError(f"data set {target} is damaged: {name} {state}; remove {target} and convert again")


def _without_paths(identities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sources that were moved are the same sources."""
    return [{**identity, "path": Path(identity["path"]).name} for identity in identities]


def _convert(job: Job) -> None:
    staging = Staging(job.target.with_name(f".{job.target.name}.partial"))
    if not _is_finished(staging, job.request):
        with WorkerPool(job.workers) as pool:
            plan = _plan(staging, job, pool)
            shards = _write_shards(staging, plan, job, pool)
        _finish(staging, shards, plan, job)
    remove(staging.work)
    for begun in staging.path.glob(".*.tmp"):
        remove(begun)  # of a run that was killed while it wrote the description
    publish(staging.path, job.target)


def _is_finished(staging: Staging, request: dict[str, Any]) -> bool:
    """Whether a run before this one wrote all and was stopped before it published; it must be the same conversion."""
    description = staging.path / "dataset.json"
    return description.is_file() and read_json(description, "data set description")["convert"] == request


def _plan(staging: Staging, job: Job, pool: WorkerPool) -> Plan:
    """Return what the scan finds, or has found if a run before this one with the same request got so far."""
    request_file, plan_file = staging.work / "request.json", staging.work / "plan.json"
    if (
        plan_file.is_file()
        and request_file.is_file()
        and read_json(request_file, "request of a conversion") == job.request
    ):
        return Plan(**read_json(plan_file, "plan of a conversion"))
    remove(staging.path)
    staging.work.mkdir(parents=True)
    write_json(request_file, job.request)
    plan = scan_sources(job, staging, pool)
    if plan.rows == 0:
        _give_up(staging, staging.scan_rejects(plan), job)
    if job.class_names is not None and not plan.labels:
        remove(staging.path)
        raise CoreclipError(
            f"the classes {','.join(job.class_names)} are named, but no pair of the sources has a class number; "
            f"convert sources that have, or leave --classes out"
        )
    forecast = forecast_work(job, staging, plan, pool)
    check_free_disk(job.target, forecast.bytes_needed)
    print(
        f"plan: {plan.rows:,} pairs with {plan.captions:,} captions, about {forecast.bytes_needed >> 20:,} MiB and "
        f"{forecast.seconds:,.0f} s with {job.workers} workers",
        file=sys.stderr,
    )
    every = -(-plan.captions // _MOST_CAPTIONS_TO_LEARN)
    some_captions = itertools.islice(read_captions(staging.manifest(plan)), 0, None, every)
    tokenizer = job.tokenizer or Tokenizer.train(some_captions, job.vocab_size)
    tokenizer.save(staging.path / "tokenizer.json")
    write_json(plan_file, asdict(plan))
    return plan


def _write_shards(staging: Staging, plan: Plan, job: Job, pool: WorkerPool) -> ShardSequence:
    """Prepare and store every candidate that no journal entry of an earlier run covers."""
    table = TableOptions(
        tokenizer=str(staging.path / "tokenizer.json"), captions_per_row=plan.captions_per_row, context=job.context,
        labels=plan.labels, columns=plan.columns,
    )  # fmt: skip
    manifest = staging.manifest(plan)
    shards = ShardSequence(staging, plan, context=job.context, shard_bytes=job.shard_bytes)
    under_way: deque[tuple[Chunk, Future[Prepared]]] = deque()
    journaled: dict[int, Future[None]] = {}

    with shards, Progress(plan.rows, "converting", "pairs") as progress:
        progress.advance(shards.next_row)

        def take_first() -> None:
            chunk, prepared = under_way.popleft()
            placements = shards.add(prepared.result(), chunk.rows, chunk.rows_left)
            shards.wrote(pool.submit(write_chunk, chunk.number, placements, worker=chunk.number % job.workers))
            if chunk.rows == chunk.rows_left:
                journaled[chunk.range] = shards.end_range()
            progress.advance(chunk.rows)

        for chunk in cut_chunks(manifest, shards.next_row, job.shard_bytes):
            # A conversion that is killed has at most one range for each worker to do again.
            oldest = chunk.range - job.workers
            limit = _CHUNKS_PER_WORKER * job.workers
            while under_way and (len(under_way) == limit or under_way[0][0].range <= oldest):
                take_first()
            if oldest in journaled:
                journaled.pop(oldest).result()
            prepared = pool.submit(
                prepare_chunk, chunk.number, manifest[chunk.part], chunk.first, chunk.rows, job.images, table,
                is_worth_compiling(plan.bytes_in), worker=chunk.number % job.workers,
            )  # fmt: skip
            under_way.append((chunk, prepared))
        while under_way:
            take_first()
    if not shards.whole_shards():
        _give_up(staging, [*staging.scan_rejects(plan), *_parts(staging, "rejects", shards)], job)
    return shards


def _parts(staging: Staging, table: str, shards: ShardSequence) -> list[Path]:
    return [staging.part(table, i) for i in range(shards.n_entries)]


def _finish(staging: Staging, shards: ShardSequence, plan: Plan, job: Job) -> None:
    """Write the data set's tables, and its description last: with it the data set is whole."""
    pairs, rejects = staging.path / "pairs.parquet", staging.path / "rejects.parquet"
    merge(_parts(staging, "pairs", shards), pairs, pairs_schema(plan.labels, plan.columns))
    merge([*staging.scan_rejects(plan), *_parts(staging, "rejects", shards)], rejects, rejects_schema())
    description = describe(
        staging.path, shards=[shard.to_info() for shard in shards.whole_shards()], labels=plan.labels, context=job.context,
        captions_per_row=plan.captions_per_row, class_names=job.class_names,
        rejected=sum(count_reasons(rejects).values()), bytes_in=plan.bytes_in, request=job.request,
    )  # fmt: skip
    write_json(staging.path / "dataset.json", description)


def _give_up(staging: Staging, rejects: list[Path], job: Job) -> None:
    """Say why there is no pair at all, and leave nothing."""
    reasons: dict[str, int] = {}
    for part in rejects:
        for reason, count in count_reasons(part).items():
            reasons[reason] = reasons.get(reason, 0) + count
    remove(staging.path)
    names = ", ".join(identity["path"] for identity in job.request["sources"][:3])
    why = "; ".join(f"{count} x {reason}" for reason, count in list(reasons.items())[:5]) or "they hold no sample"
    raise CoreclipError(
        f"no pair in {names}{' ...' if len(job.request['sources']) > 3 else ''}: {why}; check the sources"
    )
