"""What a selection took and refused, held against what was planted: figures and pictures for the demonstration's report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.pages import Gallery, Picture

if TYPE_CHECKING:
    from coreclip.pipeline import Dataset
    from coreclip.selection import Features, Subset

_RARE = 0.9  # quantile of the rarity above which a pair counts as rare
_PER_GALLERY = 6


class Truth:
    """The planted truth in the order of the data set.

    Attributes
    ----------
    mismatched : bool (n,)
        The pair has another's captions.
    scene : int64 (n,)
        Equal for a picture and its near-duplicates.
    repeated : bool (n,)
        Another pair shows the same scene.
    rare : bool (n,)
        The pair's rarest concept is among the world's rarest tenth.
    scores : float64 (n,)
        Cosine of image and text by the proxy.
    true_captions : list of str
        What the picture really shows.
    """

    def __init__(self, dataset: "Dataset", scenes: Path, features: "Features") -> None:
        import pandas as pd

        from coreclip.selection import clipscore

        table = pd.read_parquet(scenes / "truth.parquet").set_index("key").loc[list(map(str, dataset.keys))]
        self.mismatched = table.mismatched.to_numpy(dtype=bool)
        root = table.duplicate_of.where(table.duplicate_of != "", table.index)
        _, self.scene, counts = np.unique(root.to_numpy(dtype=str), return_inverse=True, return_counts=True)
        self.repeated = counts[self.scene] > 1
        self.rare = (table.rarity >= table.rarity.quantile(_RARE)).to_numpy()
        self.true_captions = table.true_caption.tolist()
        ranked = clipscore(features, dataset.n)
        self.scores = np.empty(dataset.n)
        self.scores[ranked.indices] = ranked.gains
        self.image = features.vectors("image")

    def shares(self, subsets: "Sequence[Subset | None]") -> dict[str, float]:
        """Return the shares of swapped captions, repeated pictures and rare concepts, the mean over ``subsets``; None is everything."""
        rows = []
        for subset in subsets:
            taken = np.arange(len(self.scene)) if subset is None else subset.indices
            repeats = 1 - len(np.unique(self.scene[taken])) / len(taken)
            rows.append((self.mismatched[taken].mean(), repeats, self.rare[taken].mean()))
        mismatched, repeats, rare = np.mean(rows, axis=0).tolist()
        return {"mismatched": mismatched, "near_duplicates": repeats, "rare": rare}

    def check(self, subset: "Subset") -> dict[str, Any]:
        """Return how well ``subset`` avoids what was planted.

        ``mismatched``: area under the ROC curve of the image-text score, and the share of swapped captions that were refused.
        ``near_duplicates``: the share of the repeated scenes that were taken at most once. ``precision``: the share of the
        refused pairs that have a swapped caption or repeat a scene.
        """
        from sklearn.metrics import roc_auc_score

        taken = np.zeros(len(self.scene), dtype=bool)
        taken[subset.indices] = True
        times = np.bincount(self.scene[taken], minlength=self.scene.max() + 1)
        scenes_repeated = np.unique(self.scene[self.repeated])
        planted = self.mismatched | self.repeated
        return {
            "mismatched": {
                "auroc": _or_none(roc_auc_score, ~self.mismatched, self.scores),
                "recall": float((~taken)[self.mismatched].mean()) if self.mismatched.any() else None,
            },
            "near_duplicates": {
                "recall": float((times[scenes_repeated] <= 1).mean()) if len(scenes_repeated) else None
            },
            "precision": float(planted[~taken].mean()) if not taken.all() else None,
        }

    def words(self, index: int) -> str:
        """Return what was planted in a pair, for its picture; empty for a sound one."""
        return "swapped caption" if self.mismatched[index] else ""


def galleries(
    dataset: "Dataset",
    truth: Truth,
    survivors: "Sequence[Subset]",
    chosen: "Subset",
    heldout: "Dataset",
    query: str,
    found: Sequence[dict[str, Any]],
) -> list[Gallery]:
    """Return the report's pictures: what was taken, what was refused and why, and where the selection erred.

    Parameters
    ----------
    survivors : sequence of Subset
        What the image-text score leaves, and what the removal of near-duplicates leaves of that.
    chosen : Subset
    found : sequence of dict
        What the coreset's model finds for ``query`` among ``heldout``.
    """
    everything = np.arange(len(truth.scene))
    after_score, after_copies = (subset.indices for subset in survivors)
    unfit = np.setdiff1d(everything, after_score)
    copies = np.setdiff1d(after_score, after_copies)
    covered = np.setdiff1d(after_copies, chosen.indices)
    by_score = np.argsort(truth.scores, kind="stable")
    swapped_taken = by_score[np.isin(by_score, chosen.indices) & truth.mismatched[by_score]][::-1]
    sound_refused = by_score[np.isin(by_score, unfit) & ~truth.mismatched[by_score]]
    result = [
        Gallery(
            "Taken first",
            "The pairs that stand for the most others, by facility location.",
            [_picture(dataset, truth, i, f"pick {rank + 1}") for rank, i in enumerate(chosen.indices[:_PER_GALLERY])],
        ),
        Gallery(
            "Refused: image and text do not fit",
            f"The lowest of {len(unfit):,} image-text scores below the cut.",
            [_unfit(dataset, truth, i) for i in by_score[:_PER_GALLERY]],
        ),
        Gallery(
            "Refused: near-duplicates",
            f"{len(copies):,} pairs look like another one; each is shown before the one that was kept in its stead.",
            _copies(dataset, truth, copies, after_copies),
        ),
        Gallery(
            "Left out: others stand for them",
            f"{len(covered):,} sound-looking pairs whose like is among the chosen.",
            [_covered(dataset, truth, i, chosen.indices) for i in covered[:_PER_GALLERY]],
        ),
        Gallery(
            "Wrongly taken",
            "Swapped captions with the highest scores among the chosen.",
            [_unfit(dataset, truth, i) for i in swapped_taken[:_PER_GALLERY]],
        ),
        Gallery(
            "Wrongly refused",
            "Sound pairs with the lowest scores.",
            [_unfit(dataset, truth, i) for i in sound_refused[:_PER_GALLERY]],
        ),
        Gallery(
            f"Found: “{query}”",
            "What a model that was trained on the coreset finds among the held-out pictures.",
            [
                Picture(
                    heldout.image_bytes(hit["index"]), hit["captions"][0], f"{hit['rank']}. cosine {hit['score']:.2f}"
                )
                for hit in found
            ],
        ),
    ]
    return [gallery for gallery in result if gallery.pictures]


def _picture(dataset: "Dataset", truth: Truth, index: int, note: str) -> Picture:
    return Picture(dataset.image_bytes(int(index)), dataset.captions(int(index))[0], note, truth.words(index))


def _unfit(dataset: "Dataset", truth: Truth, index: int) -> Picture:
    note = f"score {truth.scores[index]:.2f}"
    if truth.mismatched[index]:
        note += f"; shows: {truth.true_captions[index]}"
    return _picture(dataset, truth, index, note)


def _copies(dataset: "Dataset", truth: Truth, copies: np.ndarray, kept: np.ndarray) -> list[Picture]:
    """Return the closest refused copies, each followed by the kept pair that it is most like."""
    if not len(copies):
        return []
    cosines = truth.image[copies] @ truth.image[kept].T
    nearest, highest = kept[cosines.argmax(axis=1)], cosines.max(axis=1)
    pictures = []
    for row in np.argsort(-highest, kind="stable")[: _PER_GALLERY // 2]:
        i, other = copies[row], nearest[row]
        planted = "planted near-duplicate" if truth.scene[i] == truth.scene[other] else ""
        note = f"refused: like {dataset.keys[other]} (cosine {highest[row]:.3f})"
        pictures.append(Picture(dataset.image_bytes(int(i)), dataset.captions(int(i))[0], note, planted))
        pictures.append(_picture(dataset, truth, other, f"kept: {dataset.keys[other]}"))
    return pictures


def _covered(dataset: "Dataset", truth: Truth, index: int, chosen: np.ndarray) -> Picture:
    cosines = truth.image[chosen] @ truth.image[index]
    best = int(cosines.argmax())
    return _picture(
        dataset, truth, index, f"stands for it: {dataset.captions(int(chosen[best]))[0]} (cosine {cosines[best]:.2f})"
    )


def _or_none(score: Any, right: np.ndarray, scores: np.ndarray) -> float | None:
    """Return ``score``; None where there is only one class, for which it does not exist."""
    return float(score(right, scores)) if 0 < right.sum() < len(right) else None
