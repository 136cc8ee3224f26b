"""A data set in parts (train, val, test, ...) that share no image and no caption.

Pairs with the same source image or the same caption form a group (a connected component), and a group goes to one part.
Left out: near-duplicates; take them out first, for example with the selection method ``semdedup``.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.pipeline.assemble import SHARD_BYTES, Part, assemble, check_space, layout_of
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.groups import caption_codes, components, image_codes
from coreclip.pipeline.publishing import derived_request, new_folder
from coreclip.randomness import hash64

_TEMPLATES = 8  # so many captions a class or fewer are made from templates, which tie nothing together


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """Which pairs go where.

    Attributes
    ----------
    indices : dict of str to int64 (k,)
        Ascending; every pair of the data set is in one part.
    by : str
        What ties pairs together: ``image``, ``caption`` or ``image,caption``.
    groups : int
        Of pairs that must stay together.
    largest_group : int
        Pairs of the largest.
    """

    indices: dict[str, np.ndarray]
    by: str
    groups: int
    largest_group: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report, of JSON's types."""
        n = sum(map(len, self.indices.values()))
        return {
            "pairs": n,
            "by": self.by,
            "groups": self.groups,
            "largest_group": self.largest_group,
            "parts": {
                name: {"pairs": len(chosen), "fraction": round(len(chosen) / n, 6)}
                for name, chosen in self.indices.items()
            },
        }


def split(
    dataset: str | os.PathLike[str] | Dataset,
    out: str | os.PathLike[str],
    parts: Mapping[str, float],
    *,
    seed: int = 0,
    by: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write each part of a data set as a data set of its own, ``out/NAME``.

    Stored bytes are copied; the pairs of a part keep their order, and ``pairs.parquet`` gets the column
    ``source_index``. See :func:`plan_split` for the parameters and for what goes where.

    Returns
    -------
    dict
        ``pairs``, ``by``, ``groups``, ``largest_group``, ``parts`` {name: {pairs, fraction}}, ``bytes_out``, ``seconds``.

    Raises
    ------
    CoreclipError
        For parts that can't be made, an ``out`` that exists, and a data set that is damaged.
    """
    start = time.monotonic()
    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    plan = plan_split(opened, parts, seed=seed, by=by)
    layout = layout_of(opened, shard_bytes)
    bytes_out = 0
    with new_folder(out) as folder:
        chosen = {
            name: Part(dataset=opened, indices=indices, columns={"source_index": indices})
            for name, indices in plan.indices.items()
        }
        check_space(out, list(chosen.values()))
        for name, part in chosen.items():
            (folder / name).mkdir()
            request = derived_request("split", [opened], part=name, parts=dict(parts), seed=seed, by=plan.by)
            bytes_out += assemble(folder / name, [part], layout, request=request, label=f"writing {name}")["bytes_out"]
    return {**plan.to_dict(), "bytes_out": bytes_out, "seconds": round(time.monotonic() - start, 3)}


def plan_split(dataset: Dataset, parts: Mapping[str, float], *, seed: int = 0, by: str | None = None) -> SplitPlan:
    """Decide which pairs of a data set go to which part.

    Large groups go first, each to the part that lacks most; single pairs then fill the parts to their sizes. Which ones
    depends on ``seed`` and on the hashes of images and captions, not on the order of the pairs.

    Parameters
    ----------
    dataset : Dataset
    parts : {name: fraction}
        Two or more; the fractions are above 0 and have the sum 1.
    seed : int
        Non-negative.
    by : {"image", "caption", "image,caption"}, optional
        What no two parts share. By default both; images alone where captions are made from class templates (at most 8
        different ones for each class).

    Raises
    ------
    CoreclipError
        For parts against these rules, and where a group is too large for them.
    """
    _check_parts(parts)
    if by not in (None, "image", "caption", "image,caption"):
        raise CoreclipError(f"by = {by!r} is not allowed: image, caption, or image,caption")
    images, captions = image_codes(dataset), caption_codes(dataset)
    by = by or _usual(dataset, captions[0])
    everyone = np.arange(dataset.n)
    kinds = {"image": (images, everyone), "caption": captions}
    group = components([kinds[kind] for kind in by.split(",")], dataset.n)
    sizes = np.bincount(group)
    indices = _assign(group, sizes, _group_keys(group, len(sizes), images, captions), parts, seed)
    plan = SplitPlan(indices=indices, by=by, groups=len(sizes), largest_group=int(sizes.max()))
    _check_plan(plan, parts, dataset.n)
    return plan


def _check_parts(parts: Mapping[str, float]) -> None:
    shown = ",".join(f"{name}={fraction:g}" for name, fraction in parts.items())
    for name in parts:
        if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
            raise CoreclipError(
                f"the part {name!r} can't be a folder: a name has letters, digits, '-', '_' and '.' only"
            )
    finite = all(math.isfinite(fraction) and fraction > 0 for fraction in parts.values())
    if len(parts) < 2 or not finite or abs(sum(parts.values()) - 1) > 1e-6:
        raise CoreclipError(
            f"parts {shown or 'of nothing'} are not allowed: two or more, fractions above 0 with the sum 1, "
            "e.g. train=0.9,val=0.05,test=0.05"
        )


def _usual(dataset: Dataset, captions: np.ndarray) -> str:
    labels = dataset.labels
    if labels is None:
        return "image,caption"
    return "image" if len(np.unique(captions)) <= _TEMPLATES * len(np.unique(labels)) else "image,caption"


def _group_keys(
    group: np.ndarray, n_groups: int, images: np.ndarray, captions: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return for each group the least code of an image, then of a caption, uint64 (groups, 2), which no order changes."""
    keys = np.full((n_groups, 2), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(keys[:, 0], group, images)
    np.minimum.at(keys[:, 1], group[captions[1]], captions[0])
    return keys


def _assign(
    group: np.ndarray, sizes: np.ndarray, keys: np.ndarray, parts: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    targets = _round_to_sum(np.array(list(parts.values())), len(group))
    draws = hash64(seed, 0, keys[:, 0]) ^ hash64(seed, 1, keys[:, 1])
    order = np.lexsort((draws, -sizes))
    n_large = int((sizes > 1).sum())
    part_of = np.empty(len(sizes), np.int64)
    lacking = targets.copy()
    for number in order[:n_large].tolist():
        part_of[number] = choice = int(np.argmax(lacking))
        lacking[choice] -= sizes[number]
    singles = order[n_large:]
    room = np.maximum(lacking, 0)
    counts = _round_to_sum(room / max(1, room.sum()), len(singles))
    part_of[singles] = np.repeat(np.arange(len(targets)), counts)
    chosen = part_of[group]
    return {name: np.flatnonzero(chosen == i) for i, name in enumerate(parts)}


def _round_to_sum(shares: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers near ``shares * total`` with the sum ``total`` (largest remainders; ties to the first)."""
    if not shares.any():
        assert total == 0
        return np.zeros(len(shares), np.int64)
    exact = shares / shares.sum() * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    most = np.argsort(-(exact - counts), kind="stable")[: total - int(counts.sum())]
    counts[most] += 1
    return counts


def _check_plan(plan: SplitPlan, parts: Mapping[str, float], n: int) -> None:
    largest = max(parts, key=lambda name: parts[name])
    room = round(parts[largest] * n)
    empty = [name for name, chosen in plan.indices.items() if not len(chosen)]
    ties = plan.by.replace(",", " or ")
    remedy = "use other fractions" + (", or --by image" if plan.by != "image" and plan.groups < n else "")
    if plan.largest_group > max(1, room):
        raise CoreclipError(
            f"{plan.largest_group} of {n} pairs are tied together by a shared {ties}, more than the {room} of the largest "
            f"part ({largest}): they can't be split without a leak; {remedy}"
        )
    if empty:
        raise CoreclipError(
            f"part {empty[0]} would be empty: {n} pairs in {plan.groups} groups that share no {ties} are too few; {remedy}"
        )


def parse_parts(text: str) -> dict[str, float]:
    """Read ``train=0.9,val=0.1``.

    Raises
    ------
    CoreclipError
        For anything else.
    """
    parts: dict[str, float] = {}
    for item in text.split(","):
        name, equals, fraction = item.partition("=")
        try:
            value = float(fraction)
        except ValueError:
            value = math.nan
        if not equals or math.isnan(value) or name.strip() in parts:
            raise CoreclipError(
                f"--parts {text!r} is not a list of parts: NAME=FRACTION, each name once, e.g. train=0.9,val=0.05,test=0.05"
            )
        parts[name.strip()] = value
    return parts
