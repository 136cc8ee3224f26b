"""The page of a selection: what it is and guarantees, and which pairs were kept and refused, in one HTML file.

Everything is inline and is drawn without a script; the same inputs give the same bytes. Of a large data set a bounded sample of
pictures is shown, while histograms and coverage count all pairs. Left out: the reasons of each single refusal, which a subset
does not hold, and scores of refused pairs by methods that give only the chosen ones a gain.
"""

import decimal
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip import __version__
from coreclip.errors import CoreclipError
from coreclip.files import write_text
from coreclip.pages import (
    Gallery,
    Picture,
    check_page,
    describe,
    figure,
    generator_mark,
    has_mark,
    histogram,
    percent,
    template,
)
from coreclip.randomness import permutation
from coreclip.selection.coverage import Coverage, cluster, coverage, most_similar

if TYPE_CHECKING:
    from coreclip.pipeline import Dataset
    from coreclip.selection import Features, Subset

GENERATOR = "coreclip selection report"  # the page's meta tag, by which a report is known again

_PER_GALLERY = 24
_CLUSTER_PICTURES = 6  # of the clusters that were kept most, and as many of those kept least
_SIDE = 192  # pixels of a thumbnail's longer side
_QUALITY = 78
_CAPTION_CHARACTERS = 200
_VALUE_CHARACTERS = 160
_CLASS_ROWS = 200
_BEST = 1e-9  # relative difference below which objective and bound are the same
_STREAM_KEPT, _STREAM_REFUSED, _STREAM_COMPARISON = 152, 153, 154


def write_report(
    path: str | Path,
    dataset: "Dataset",
    subset: "Subset",
    features: "Features | None" = None,
    command: str | None = None,
) -> None:
    """Write the page of a selection, atomically.

    Parameters
    ----------
    path : path
        The page, e.g. ``best.html``.
    dataset : Dataset
        That was chosen from.
    subset : Subset
    features : Features or None
        Of the n pairs; without them there are no clusters, no agreement of image and text, and no most similar pictures.
    command : str or None
        That made the subset.

    Raises
    ------
    CoreclipError
        Where ``path`` is something else than such a page, and for a subset or features of another data set.
    """
    check_report(path)
    write_text(path, render_report(dataset, subset, features, command))


def check_report(path: str | Path) -> None:
    """Refuse to write a page over something else.

    Raises
    ------
    CoreclipError
        For a path that is there and is no page of :func:`write_report`.
    """
    check_page(Path(path), generator_mark(GENERATOR), "selection report")


def is_report(path: str | Path) -> bool:
    """Return whether ``path`` is a page that :func:`write_report` wrote."""
    return has_mark(Path(path), generator_mark(GENERATOR))


def render_report(
    dataset: "Dataset", subset: "Subset", features: "Features | None" = None, command: str | None = None
) -> str:
    """Return the page of :func:`write_report` as text."""
    selection = _Selection(dataset, subset, features)
    return template("selection.html").render(
        generator=GENERATOR,
        version=__version__,
        subset=subset,
        dataset=dataset,
        stages=_stages(subset),
        parameters=_parameters(subset.parameters),
        weights=_weights(subset),
        certificate=certificate(subset),
        plots=_plots(selection),
        legend=_legend(selection),
        galleries=_galleries(selection),
        clusters=_clusters(selection),
        classes=_classes(selection),
        has_features=features is not None,
        command=command,
    )


def certificate(subset: "Subset") -> dict[str, Any]:
    """Say in a sentence how far a choice can be from the best one.

    Returns
    -------
    dict
        ``sentence``, and ``ratio``: objective / upper bound, rounded down to a thousandth; None where it means nothing.
    """
    k, objective, bound = f"{subset.k:,} {_pairs(subset.k)}", subset.objective, subset.upper_bound
    stages = subset.parameters.get("stages")
    if stages:
        k += f" out of the {stages[-1]['n']:,} that reached the last stage"
    if objective is None:
        return {"sentence": f"{_last_method(subset)} has no objective, so nothing is certified.", "ratio": None}
    if bound is None:
        sentence = f"The objective is {figure(objective)}; there is no upper bound to hold it against, so nothing is certified."
        return {"sentence": sentence, "ratio": None}
    if bound - objective <= _BEST * abs(bound):
        sentence = f"No choice of {k} has a higher objective: {figure(objective)} is the best possible."
        return {"sentence": sentence, "ratio": 1.0}
    head = (
        f"No choice of {k} can be better than {figure(bound, rounding=decimal.ROUND_CEILING)}; "
        f"this one has {figure(objective, rounding=decimal.ROUND_FLOOR)}"
    )
    if objective < 0:
        return {"sentence": head + ".", "ratio": None}
    ratio = math.floor(1000 * objective / bound) / 1000
    return {"sentence": f"{head}, so it reaches at least {percent(ratio)} of the best possible.", "ratio": ratio}


@dataclass(frozen=True, eq=False)
class _Selection:
    """A selection with what is known of its pairs."""

    dataset: "Dataset"
    subset: "Subset"
    features: "Features | None"

    def __post_init__(self) -> None:
        self.subset.check(self.dataset.n, self.dataset.fingerprint)
        if self.features is None:
            return
        if self.features.n != self.dataset.n or self.features.fingerprint not in (None, self.dataset.fingerprint):
            raise CoreclipError(
                f"the features are of {self.features.n} pairs and the fingerprint {self.features.fingerprint}, the data set has "
                f"{self.dataset.n} and {self.dataset.fingerprint}; embed this data set"
            )

    @cached_property
    def refused(self) -> np.ndarray:
        """Pairs that were not chosen, int64 (n - k,), ascending."""
        kept = np.zeros(self.dataset.n, bool)
        kept[self.subset.indices] = True
        return np.flatnonzero(~kept)

    @cached_property
    def agreement(self) -> np.ndarray | None:
        """Cosine of each pair's image and text, float32 (n,); None where one of them is not embedded."""
        from coreclip.selection import clip_scores

        if self.features is None or self.features.image is None or self.features.text is None:
            return None
        return clip_scores(self.features)

    @cached_property
    def _thumbnails(self) -> dict[int, bytes | None]:
        return {}

    def picture(self, index: int, note: str) -> Picture:
        """Return the thumbnail of a pair with its first caption; an empty tile for an image that can't be decoded."""
        if index not in self._thumbnails:
            self._thumbnails[index] = thumbnail(self.dataset, index)
        jpeg = self._thumbnails[index]
        alt = f"image of pair {index}" + ("" if jpeg else ": can’t be decoded")
        return Picture(jpeg, caption_of(self.dataset, index), note, alt=alt)

    def picked(self, position: int) -> Picture:
        """Return the picture of a pick by its position in the order of choice."""
        index, gain = int(self.subset.indices[position]), float(self.subset.gains[position])
        notes = [f"pick {position + 1:,}, index {index}"]
        if gain:
            notes.append(f"{'gain' if self.subset.scores is None else 'score'} {figure(gain, 3)}")
        return self.picture(index, "\n".join([*notes, *self._agreement_of(index)]))

    def turned_down(self, indices: np.ndarray) -> list[Picture]:
        """Return the pictures of refused pairs, each with the most similar kept one where there are features."""
        notes = [[f"index {index}", *self._score_of(index), *self._agreement_of(index)] for index in indices.tolist()]
        if self.features is not None and len(indices):
            for note, nearest, cosine in zip(
                notes, *most_similar(self.features, indices, self.subset.indices), strict=True
            ):
                note.append(f"closest kept {nearest}: {cosine:.2f}")
        return [self.picture(index, "\n".join(note)) for index, note in zip(indices.tolist(), notes, strict=True)]

    def _score_of(self, index: int) -> list[str]:
        scores = self.subset.scores
        return [] if scores is None or np.isnan(scores[index]) else [f"score {figure(scores[index], 3)}"]

    def _agreement_of(self, index: int) -> list[str]:
        return [] if self.agreement is None else [f"image-text {self.agreement[index]:.2f}"]


def thumbnail(dataset: "Dataset", index: int) -> bytes | None:
    """Return a small JPEG of a pair's image; None where it can't be decoded."""
    from PIL import Image

    try:
        image = Image.fromarray(dataset.image(index))
    except CoreclipError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def caption_of(dataset: "Dataset", index: int) -> str:
    """Return a pair's first caption on one line of bounded length, and how many more there are."""
    try:
        texts = dataset.captions(index)
    except CoreclipError:
        return "(captions can’t be read)"
    first = printable(texts[0]) or "(empty caption)"
    if len(first) > _CAPTION_CHARACTERS:
        first = first[: _CAPTION_CHARACTERS - 1].rstrip() + "…"
    return first + (f" (+{len(texts) - 1}\N{NO-BREAK SPACE}more)" if len(texts) > 1 else "")


def printable(text: str) -> str:
    """Return a text on one line, without lone surrogates, which can't be written, and control characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", text).split())


def _pairs(count: int) -> str:
    return "pair" if count == 1 else "pairs"


def _last_method(subset: "Subset") -> str:
    stages = subset.parameters.get("stages")
    return str(stages[-1]["method"] if stages else subset.method)


def _parameters(parameters: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values as text, without what has a place of its own on the page."""
    return [(name, _value(value)) for name, value in parameters.items() if name not in ("stages", "note")]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return figure(value)
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _VALUE_CHARACTERS else text[: _VALUE_CHARACTERS - 1] + "…"


def _stages(subset: "Subset") -> list[dict[str, Any]]:
    """Return the stages of a staged selection with their parameters as text."""
    return [
        {
            **{key: stage[key] for key in ("method", "n", "k", "seconds")},
            "parameters": ", ".join(f"{name} = {value}" for name, value in _parameters(stage["parameters"])),
            "share": stage["k"] / subset.n,
        }
        for stage in subset.parameters.get("stages", ())
    ]


def _weights(subset: "Subset") -> str | None:
    """Say what the weights are; None where all are 1."""
    low, high = float(subset.weights.min()), float(subset.weights.max())
    return (
        None
        if low == high == 1
        else f"{figure(low, 3)} to {figure(high, 3)}, {figure(subset.weights.mean(), 3)} on average"
    )


def _plots(selection: _Selection) -> list[dict[str, Any]]:
    subset, name = selection.subset, _last_method(selection.subset)
    if subset.scores is None:
        title, groups = f"Gains of the picks, by {name}", {"kept": subset.gains}
        text = _share_of_first_half(subset)
    else:
        title, refused = f"Scores, by {name}", subset.scores[selection.refused]
        groups = {"kept": subset.gains, "refused": refused[~np.isnan(refused)]}
        without = len(refused) - len(groups["refused"])
        text = "Each group is scaled to its own number of pairs." + (
            f" {without:,} refused {_pairs(without)} {'has' if without == 1 else 'have'} no score." if without else ""
        )
    plots = [_plot(title, groups, text)]
    if selection.agreement is not None:
        groups = {"kept": selection.agreement[subset.indices], "refused": selection.agreement[selection.refused]}
        text = "Cosine of each pair’s image and text, of all pairs; each group is scaled to its own number of pairs."
        plots.append(_plot("Agreement of image and text", groups, text))
    return plots


def _plot(title: str, groups: dict[str, np.ndarray], text: str) -> dict[str, Any]:
    """Return a histogram of groups with its figures; without one where all values are equal."""
    groups = {name: values for name, values in groups.items() if len(values)}
    rows = {name: {key: figure(value, 4) for key, value in describe(values).items()} for name, values in groups.items()}
    drawn = histogram(groups)
    if drawn is None:
        text = (
            f"All have the same value, {figure(next(iter(groups.values()))[0], 4)}: there is no distribution to draw."
        )
    elif drawn.left_out:
        text += f" {drawn.left_out:,} infinite {'value is' if drawn.left_out == 1 else 'values are'} not drawn."
    if drawn is not None and drawn.logarithmic:
        text += " The axis is logarithmic."
    alt = "; ".join(
        f"{name}: {row['count']} values, 90 % of them from {row['low']} to {row['high']}, median {row['median']}"
        for name, row in rows.items()
    )
    return {"title": title, "text": text.strip(), "histogram": drawn, "rows": rows, "alt": f"Histogram. {alt}."}


def _share_of_first_half(subset: "Subset") -> str:
    total = float(subset.gains.sum())
    if subset.objective is None or subset.k < 2 or subset.gains.min() < 0 or not 0 < total < math.inf:
        return ""
    return f"The first half of the picks brings {percent(subset.gains[: subset.k // 2].sum() / total)} of their sum."


def _legend(selection: _Selection) -> str:
    """Say what the lines below the pictures are, as far as there are such."""
    parts = ["index: the pair’s number in the data set, for coreclip extract"]
    if selection.subset.gains.any():
        if selection.subset.scores is None:
            parts.append("gain: what the pick added to the objective")
        else:
            parts.append("score: what the method ranks by")
    if selection.agreement is not None:
        parts.append("image-text: cosine of the image and its text")
    if selection.features is not None and len(selection.refused):
        what = "image" if selection.features.image is not None else "text"
        parts.append(f"closest kept: the kept pair with the most similar {what}, and their cosine")
    return "; ".join(parts)[0].upper() + "; ".join(parts)[1:] + "."


def _galleries(selection: _Selection) -> list[Gallery]:
    return [*_galleries_of_kept(selection), *_galleries_of_refused(selection)]


def _galleries_of_kept(selection: _Selection) -> list[Gallery]:
    k = selection.subset.k
    if k <= _PER_GALLERY:
        title = "The only pick" if k == 1 else f"All {k} picks"
        return [Gallery(title, "In order of choice.", [selection.picked(position) for position in range(k)])]
    last = range(max(_PER_GALLERY, k - _PER_GALLERY), k)
    galleries = [
        Gallery(f"The first {_PER_GALLERY} picks", "In order of choice.", [selection.picked(p) for p in range(_PER_GALLERY)]),
        Gallery(f"The last {len(last)} picks", "The borderline: a smaller choice would lack these first.", [selection.picked(p) for p in last]),
    ]  # fmt: skip
    middle = last.start - _PER_GALLERY
    if middle > 0:
        drawn = _PER_GALLERY + np.sort(permutation(middle, selection.subset.seed, stream=_STREAM_KEPT)[:_PER_GALLERY])
        text = f"Drawn at random from the {middle:,} in between, in order of choice."
        galleries.append(Gallery(f"{len(drawn)} other picks", text, [selection.picked(p) for p in drawn.tolist()]))
    return galleries


def _galleries_of_refused(selection: _Selection) -> list[Gallery]:
    refused, agreement = selection.refused, selection.agreement
    if not len(refused):
        return []
    worst = refused if agreement is None else refused[np.argsort(agreement[refused], kind="stable")]
    by = "In order of their indices." if agreement is None else "Those whose image and text agree least come first."
    if len(refused) <= _PER_GALLERY:
        title = "The only refused pair" if len(refused) == 1 else f"All {len(refused)} refused pairs"
        return [Gallery(title, by, selection.turned_down(worst))]
    drawn = np.sort(permutation(len(refused), selection.subset.seed, stream=_STREAM_REFUSED)[:_PER_GALLERY])
    text = f"Drawn at random from the {len(refused):,} refused, in order of their indices."
    galleries = [Gallery(f"{_PER_GALLERY} refused pairs", text, selection.turned_down(refused[drawn]))]
    if agreement is not None:
        title = f"The {_PER_GALLERY} refused pairs whose image and text agree least"
        galleries.append(Gallery(title, "The lowest agreement first.", selection.turned_down(worst[:_PER_GALLERY])))
    return galleries


def _clusters(selection: _Selection) -> dict[str, Any] | None:
    """Return how the clusters of the features were covered; None where there are not two of them."""
    if selection.features is None:
        return None
    subset = selection.subset
    labels, central = cluster(selection.features, subset.seed)
    found = coverage(labels, subset.indices)
    if len(found.groups) < 2:
        return None
    by_chance = permutation(subset.n, subset.seed, stream=_STREAM_COMPARISON)[: subset.k]
    return {
        **_coverage(found, [f"around pair {central[group]}" for group in found.groups]),
        "modality": "text" if selection.features.image is None else "image",
        "bars": _bars(found),
        "gini_by_chance": coverage(labels, by_chance).gini,
        "galleries": _cluster_galleries(selection, found, central),
    }


def _classes(selection: _Selection) -> dict[str, Any] | None:
    """Return how the classes were covered; None where the data set has none."""
    labels, names = selection.dataset.labels, selection.dataset.class_names
    if labels is None:
        return None
    found = coverage(labels, selection.subset.indices)
    return _coverage(found, [f"class {group}" if names is None else names[group] for group in found.groups.tolist()])


def _coverage(found: Coverage, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a coverage, and a row for each group, the highest share first; of very many the ends only."""
    rows = [
        {"name": names[i], "pairs": int(found.sizes[i]), "kept": int(found.kept[i]), "share": float(found.shares[i])}
        for i in found.order.tolist()
    ]
    left_out = max(0, len(rows) - _CLASS_ROWS)
    half = _CLASS_ROWS // 2
    return {
        "count": len(rows),
        "none": sum(row["kept"] == 0 for row in rows),
        "gini": found.gini,
        "rows": rows if not left_out else rows[:half] + rows[-half:],
        "left_out": left_out,
        "highest": rows[0]["share"],
        "lowest": rows[-1]["share"],
    }


def _bars(found: Coverage) -> list[dict[str, Any]]:
    """Return a bar for each group, as wide as its pairs and as high as its share, in per cent of the box."""
    ends = 100 * np.concatenate([[0.0], np.cumsum(found.sizes[found.order]) / found.sizes.sum()])
    highest = float(found.shares.max())
    return [
        {
            "x": round(float(ends[position]), 3),
            "width": round(float(ends[position + 1] - ends[position]), 3),
            "height": round(100 * float(found.shares[i]) / highest, 3),
            "title": f"{int(found.kept[i]):,} of {int(found.sizes[i]):,} kept ({percent(float(found.shares[i]))})",
        }
        for position, i in enumerate(found.order.tolist())
    ]


def _cluster_galleries(selection: _Selection, found: Coverage, central: np.ndarray) -> list[Gallery]:
    """Return the most central pair of the clusters that were kept most, and of those kept least."""

    def pictures(positions: Sequence[int]) -> list[Picture]:
        return [
            selection.picture(
                int(central[found.groups[i]]),
                f"kept {found.kept[i]:,} of {found.sizes[i]:,} ({percent(float(found.shares[i]))})",
            )
            for i in positions
        ]

    order = found.order.tolist()
    text = "The most central pair of each cluster."
    if len(order) <= 2 * _CLUSTER_PICTURES or found.shares.min() == found.shares.max():
        return [Gallery("Clusters", text, pictures(order[: 2 * _CLUSTER_PICTURES]))]
    return [
        Gallery("Clusters that were kept most", text, pictures(order[:_CLUSTER_PICTURES])),
        Gallery("Clusters that were kept least", text, pictures(order[-_CLUSTER_PICTURES:])),
    ]
