"""What a selection took and refused, held against what was planted: figures and pictures for the demonstration's report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreclip.report import Gallery, Picture

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
            "near_duplicates": {"recall": float((times[scenes_repeated] <= 1).mean()) if len(scenes_repeated) else None},
            "precision": float(planted[~taken].mean()) if not taken.all() else None,
        }

    def words(self, index: int) -> str:
        """Return what was planted in a pair, for its picture; empty for a sound one."""
        return "swapped caption" if self.mismatched[index] else ""
