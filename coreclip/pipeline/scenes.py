"""Drawn photographs with English captions, written as WebDataset shards, with the faults of web data and the truth beside.

Every pair is a pure function of (seed, number), so that the bytes depend on neither the number of processes nor the order
of work. Planted are swapped captions, near-duplicates, rare concepts and unreadable files; which they are is recorded in
``truth.parquet``, outside the shards. Real photographs, other languages and unsuitable pictures are left out.
"""

import io
import itertools
import json
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import atomic_path, check_free_disk, lock, write_json
from coreclip.pipeline.scene_drawing import alter, encode_jpeg, render
from coreclip.pipeline.scene_grammar import captions
from coreclip.pipeline.scene_world import Scene, draw_scene
from coreclip.progress import Progress
from coreclip.randomness import permutation, uniform

BROKEN_KINDS = ("truncated", "zero bytes", "text file", "bad header", "no caption")
_SCENE, _PICTURE, _CAPTIONS, _ALTERED = range(4)  # streams of random numbers of one pair
_CHUNK = 128
_BYTES_PER_PAIR = 8_000  # an upper estimate at 96 pixels


@dataclass(frozen=True)
class ScenesReport:
    """What :func:`draw_scenes` wrote.

    Attributes
    ----------
    n, heldout : int
        Pairs for training (the broken ones included) and held out.
    mismatched, near_duplicates, broken : int
        How many of the ``n`` have another's caption, repeat another's picture, or can't be read.
    shards, heldout_shards : list of str
        Files for training and held out, in order.
    bytes : int
        Of all shards.
    seconds : float
    """

    n: int
    heldout: int
    mismatched: int
    near_duplicates: int
    broken: int
    shards: list[str]
    heldout_shards: list[str]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Plan:
    """What each pair is; arrays of length n, -1 or "" where a pair is as it should be."""

    scene_of: np.ndarray  # int64: the number whose scene the picture shows (the own one, or the duplicated one's)
    captions_of: np.ndarray  # int64: the number whose captions the pair has
    broken: np.ndarray  # str


@dataclass(frozen=True)
class _Job:
    """What a process needs to draw some pairs of one split."""

    seed: int
    size: int
    heldout: bool
    numbers: tuple[int, ...]
    plan: _Plan


@dataclass(frozen=True)
class _Pair:
    key: str
    jpeg: bytes
    captions: list[str]
    truth: dict[str, Any]


def draw_scenes(
    out_dir: str | Path,
    *,
    n: int = 6000,
    n_heldout: int = 500,
    seed: int = 0,
    size: int = 96,
    mismatched: float = 0.25,
    near_duplicates: float = 0.15,
    broken: int = 12,
    workers: int = 2,
    pairs_per_shard: int = 1500,
) -> ScenesReport:
    """Draw photograph-like JPEGs with captions into WebDataset shards, with the faults of web data planted in them.

    Parameters
    ----------
    out_dir : path
        New or empty. Gets ``train-00000.tar ...``, ``heldout-00000.tar ...`` (clean), ``truth.parquet`` (one row for each pair
        of both splits) and ``truth.json`` (how it was made).
    n, n_heldout : int
        Pairs for training, broken ones included, and held out.
    seed : int
        Equal seeds give equal bytes, with any number of ``workers``.
    size : int
        Side of the square pictures, pixels.
    mismatched : float
        Fraction of the ``n`` pairs that get another pair's captions.
    near_duplicates : float
        Fraction of the ``n`` pairs that are another pair's picture, cut, brightened and compressed anew.
    broken : int
        Files that can't be used, of the kinds ``BROKEN_KINDS`` in turn.
    workers : int
        Processes.
    pairs_per_shard : int

    Returns
    -------
    ScenesReport

    Raises
    ------
    CoreclipError
        For a size, number or fraction out of range, and for an ``out_dir`` that holds something.

    Notes
    -----
    A swapped caption may by chance fit in part ("a red ball" on another red ball); the truth calls it mismatched.
    """
    _check(n, n_heldout, size, mismatched, near_duplicates, broken, workers, pairs_per_shard)
    out, start = Path(out_dir), time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CoreclipError(f"{out} is not empty; scenes are drawn into a new directory; name another one or remove it")
    check_free_disk(out, (n + n_heldout) * _BYTES_PER_PAIR * max(size // 96, 1) ** 2)
    plan = _plan(n, seed, mismatched, near_duplicates, broken)
    clean = _Plan(np.arange(n_heldout), np.arange(n_heldout), np.full(n_heldout, "", dtype=object))
    jobs = [*_jobs(n, plan, seed, size, heldout=False), *_jobs(n_heldout, clean, seed, size, heldout=True)]
    truth: list[dict[str, Any]] = []
    with lock(out), atomic_path(out) as folder, Progress(n + n_heldout, "drawing", "pictures") as progress:
        folder.mkdir()
        pairs = _counted(_drawn(jobs, workers), progress, truth)
        shards = _write_shards(folder, "train", itertools.islice(pairs, n), pairs_per_shard)
        heldout_shards = _write_shards(folder, "heldout", pairs, pairs_per_shard)
        counts = {
            "n": n,
            "heldout": n_heldout,
            "mismatched": int((plan.captions_of != np.arange(n)).sum()),
            "near_duplicates": int((plan.scene_of != np.arange(n)).sum()),
            "broken": int((plan.broken != "").sum()),
        }
        _write_truth(
            folder, truth, {**counts, "seed": seed, "size": size, "shards": shards, "heldout_shards": heldout_shards}
        )
        n_bytes = sum((folder / name).stat().st_size for name in shards + heldout_shards)
    return ScenesReport(
        **counts, shards=shards, heldout_shards=heldout_shards, bytes=n_bytes, seconds=time.monotonic() - start
    )


def _check(
    n: int,
    n_heldout: int,
    size: int,
    mismatched: float,
    near_duplicates: float,
    broken: int,
    workers: int,
    per_shard: int,
) -> None:
    for name, value, low, high in (
        ("n", n, 10, 10_000_000), ("n_heldout", n_heldout, 0, 1_000_000), ("size", size, 32, 512),
        ("mismatched", mismatched, 0, 0.5), ("near_duplicates", near_duplicates, 0, 0.4),
        ("broken", broken, 0, max(n // 8, 1)), ("workers", workers, 1, 256), ("pairs_per_shard", per_shard, 1, 1_000_000),
    ):  # fmt: skip
        if not low <= value <= high:
            raise CoreclipError(f"{name} = {value} is out of range: it must be between {low:,} and {high:,}; change it")


def _plan(n: int, seed: int, mismatched: float, near_duplicates: float, broken: int) -> _Plan:
    """Decide which pairs are broken, which repeat a picture and which have another's captions.

    Captions are swapped in one cycle through pairs of different scenes, so that none gets its own back, nor that of its
    near-duplicate.
    """
    order = permutation(n, seed, stream=1)
    n_duplicates = round(n * near_duplicates)
    unusable, duplicates, originals = np.split(order, [broken, broken + n_duplicates])
    kinds = np.full(n, "", dtype=object)
    kinds[unusable] = [BROKEN_KINDS[i % len(BROKEN_KINDS)] for i in range(broken)]
    scene_of = np.arange(n)
    scene_of[duplicates] = originals[(uniform(seed, 0, duplicates, stream=2) * len(originals)).astype(np.int64)]

    candidates = permutation(n, seed, stream=3)
    candidates = candidates[kinds[candidates] == ""]
    _, first_of_scene = np.unique(scene_of[candidates], return_index=True)
    swapped = candidates[np.sort(first_of_scene)][: round(n * mismatched)]
    captions_of = np.arange(n)
    captions_of[swapped] = np.roll(swapped, 1)
    return _Plan(scene_of, captions_of, kinds)


def _jobs(n: int, plan: _Plan, seed: int, size: int, *, heldout: bool) -> list[_Job]:
    return [
        _Job(seed, size, heldout, tuple(range(start, min(start + _CHUNK, n))), plan) for start in range(0, n, _CHUNK)
    ]


def _drawn(jobs: list[_Job], workers: int) -> Iterator[_Pair]:
    """Yield all pairs in order, drawn by processes where there is more than one."""
    if workers == 1:
        for job in jobs:
            yield from _draw(job)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for pairs in pool.map(_draw, jobs):
            yield from pairs


def _counted(pairs: Iterator[_Pair], progress: Progress, truth: list[dict[str, Any]]) -> Iterator[_Pair]:
    for pair in pairs:
        truth.append(pair.truth)
        progress.advance()
        yield pair


def _draw(job: _Job) -> list[_Pair]:
    return [_draw_pair(job, number) for number in job.numbers]


def _draw_pair(job: _Job, number: int) -> _Pair:
    plan, of = job.plan, int(job.plan.scene_of[number])
    scene = _scene(job, of)
    picture = render(scene, job.size, _generator(job, of, _PICTURE))
    generator = _generator(job, number, _ALTERED)
    if of != number:
        picture = alter(picture, generator)
    jpeg = encode_jpeg(picture, int(generator.integers(72, 94)))
    from_number = int(plan.captions_of[number])
    texts = _captions(job, from_number)
    kind = plan.broken[number]
    if kind:
        jpeg = _break(jpeg, kind)
    key = _key(number, job.heldout)
    truth = {
        "key": key,
        "split": "heldout" if job.heldout else "train",
        "mismatched": from_number != number,
        "caption_of": _key(from_number, job.heldout) if from_number != number else "",
        "duplicate_of": _key(of, job.heldout) if of != number else "",
        "broken": kind,
        "concepts": scene.concepts(),
        "rarity": scene.rarity(),
        "true_caption": _captions(job, number)[0],
    }
    return _Pair(key, jpeg, [] if kind == "no caption" else texts, truth)


def _scene(job: _Job, number: int) -> Scene:
    return draw_scene(_generator(job, number, _SCENE))


def _captions(job: _Job, number: int) -> list[str]:
    """Return the one to three captions written for pair ``number``; half of the near-duplicates keep their original's."""
    of = int(job.plan.scene_of[number])
    generator = _generator(job, number, _CAPTIONS)
    if of != number and generator.random() < 0.5:
        generator = _generator(job, of, _CAPTIONS)
        generator.random()
    elif of == number:
        generator.random()
    return captions(_scene(job, of), generator, int(generator.choice((1, 2, 3), p=(0.5, 0.3, 0.2))))


def _generator(job: _Job, number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([job.seed, int(job.heldout), number, stream])


def _key(number: int, heldout: bool) -> str:
    return f"{'heldout' if heldout else 'scene'}-{number:06d}"


def _break(jpeg: bytes, kind: str) -> bytes:
    if kind == "truncated":
        return jpeg[: len(jpeg) // 2]
    if kind == "zero bytes":
        return b""
    if kind == "text file":
        return b"<!DOCTYPE html><title>404</title><p>The picture you are looking for is gone.\n"
    if kind == "bad header":
        return bytes(64) + jpeg[64:]
    return jpeg


def _write_shards(folder: Path, split: str, pairs: Iterator[_Pair], per_shard: int) -> list[str]:
    names: list[str] = []
    while batch := list(itertools.islice(pairs, per_shard)):
        names.append(f"{split}-{len(names):05d}.tar")
        with tarfile.open(folder / names[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for pair in batch:
                for suffix, content in _members(pair):
                    member = tarfile.TarInfo(f"{pair.key}.{suffix}")  # its time is 0: equal seeds give equal bytes
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return names


def _members(pair: _Pair) -> Iterator[tuple[str, bytes]]:
    yield "jpg", pair.jpeg
    if pair.captions:
        yield "txt", (pair.captions[0] + "\n").encode()
    if len(pair.captions) > 1:
        yield "json", json.dumps({"key": pair.key, "captions": pair.captions}).encode()


def _write_truth(folder: Path, truth: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    import pandas as pd

    pd.DataFrame(truth).to_parquet(folder / "truth.parquet", index=False)
    write_json(folder / "truth.json", summary)
