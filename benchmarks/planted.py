"""How well scores find what is planted in drawn scenes: captions of other pictures, and copies of pictures.

A proxy is trained on the faulty pairs themselves, as the demonstration does, and scores are held against the truth of the drawing.
Nothing is chosen by that truth but what the table says is: the ceilings and the best points. Figures are the same on every run.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from side_by_side import arguments, write_result

from coreclip.demo import CONFIG
from coreclip.pipeline import Dataset, convert, draw_scenes, thumbnails
from coreclip.selection import Features, clip_scores, copies, negclip_scores, select, semdedup
from coreclip.selection.deduplicate import DEFAULT_EPS
from coreclip.selection.lookalikes import DEFAULT_COPY_EPS
from coreclip.training import embed, train

_RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of the logistic regression, chosen within the training folds
_LEAST_PRECISION = 0.9
_CHOOSERS = (
    "random",
    "clipscore",
    "negcliploss",
    "clipcov",
    "ccs",
    "craig",
    "gradmatch",
    "facility-location",
    "k-center",
)
_FULL = 4000  # pairs; with fewer it is a trial, whose result has a name of its own


@dataclass(frozen=True)
class Pool:
    """Drawn pairs with what a proxy makes of them, and the truth.

    Attributes
    ----------
    right : bool (n,)
        The caption is the picture's own.
    scene : int64 (n,)
        Equal for a picture and its copies.
    """

    seed: int
    features: Features
    thumbnails: np.ndarray
    right: np.ndarray
    scene: np.ndarray


def make_pool(folder: Path, seed: int, n: int, epochs: float, mismatched: float, near_duplicates: float) -> Pool:
    """Draw, convert, train a proxy on all pairs, embed."""
    import pandas as pd

    drawn = draw_scenes(
        folder / "scenes", n=n, n_heldout=0, seed=seed, mismatched=mismatched, near_duplicates=near_duplicates,
        broken=0, workers=1,
    )  # fmt: skip
    shards = [folder / "scenes" / name for name in drawn.shards]
    convert(shards, folder / "data", vocab_size=1024, context=CONFIG.model.context, workers=1)
    dataset = Dataset(folder / "data")
    config = replace(CONFIG, train=replace(CONFIG.train, seed=seed))
    train(dataset, folder / "run", config=config, samples=round(epochs * dataset.n), threads=1)
    embed(dataset, folder / "features", model=folder / "run", workers=1)
    table = pd.read_parquet(folder / "scenes" / "truth.parquet").set_index("key").loc[list(map(str, dataset.keys))]
    root = table.duplicate_of.where(table.duplicate_of != "", table.index)
    scene = np.unique(root.to_numpy(dtype=str), return_inverse=True)[1]
    right = ~table.mismatched.to_numpy(dtype=bool)
    return Pool(seed, Features.load(folder / "features"), thumbnails(dataset, workers=1), right, scene)


# --------------------------------------------------------------------------------------------------------------- wrong captions


def ceiling(features: Features, right: np.ndarray) -> np.ndarray:
    """Return what a logistic regression that is told the truth of the other four fifths makes of each pair, (n,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    image, text = features.vectors("image"), features.vectors("text")
    columns = np.hstack([image, text, image * text])
    inner, outer = (StratifiedKFold(5, shuffle=True, random_state=seed) for seed in (0, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    search = GridSearchCV(model, {"logisticregression__C": _STRENGTHS}, scoring="roc_auc", cv=inner)
    return cross_val_predict(search, columns, right, cv=outer, method="predict_proba")[:, 1]


def caption_row(pool: Pool) -> tuple[str, float]:
    """Return a row of the table, and the better score's share of the ceiling."""
    from sklearn.metrics import roc_auc_score

    clip, negclip, fixed, best = (
        roc_auc_score(pool.right, scores)
        for scores in (
            clip_scores(pool.features),
            negclip_scores(pool.features),
            negclip_scores(pool.features, temperature=0.01),
            ceiling(pool.features, pool.right),
        )
    )
    share = max(clip, negclip) / best
    temperature = 1 / pool.features.info["logit_scale"]
    cells = (f"{value:.3f}" for value in (clip, negclip, fixed, best, share))
    return f"| {pool.seed} | {' | '.join(cells)} | {temperature:.3f} |", share


def chosen_table(pools: list[Pool]) -> str:
    """Return what share of the chosen half has its own caption, by method and seed."""
    lines = [f"| method | {' | '.join(f'seed {pool.seed}' for pool in pools)} |", "|---|" + "---|" * len(pools)]
    for method in _CHOOSERS:
        shares = []
        for pool in pools:
            chosen = select(pool.features, pool.features.n, method=method, fraction=0.5, seed=pool.seed)
            shares.append(pool.right[chosen.indices].mean())
        lines.append(f"| {method} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class Curve:
    """Recall and precision when pairs up to a novelty are dropped; first the point where none is."""

    novelty: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @classmethod
    def of(cls, novel: np.ndarray, scene: np.ndarray) -> "Curve":
        order = np.argsort(novel, kind="stable")
        left, right = np.bincount(scene), np.empty(len(order), np.int64)
        for position, group in enumerate(scene[order]):
            left[group] -= 1
            right[position] = left[group] > 0  # the last one of a scene that is dropped is no copy of one that is kept
        right = right.cumsum()
        last = np.append(np.flatnonzero(np.diff(novel[order])), len(order) - 1)  # equal ones fall together
        extra = len(scene) - len(np.unique(scene))
        return cls(
            np.append(-np.inf, novel[order][last]),
            np.append(0, right[last] / max(extra, 1)),
            np.append(1, right[last] / (last + 1)),
        )

    def at(self, eps: float) -> int:
        """Return the point where what is less novel than ``eps`` is dropped."""
        return int(np.searchsorted(self.novelty, eps, side="left")) - 1

    def best(self) -> int:
        """Return the position of the highest harmonic mean."""
        return int(np.argmax(2 * self.recall * self.precision / np.maximum(self.recall + self.precision, 1e-12)))

    def recall_at_precision(self) -> float:
        return float(self.recall[self.precision >= _LEAST_PRECISION].max(initial=0))

    def precision_at(self, recall: float) -> float:
        return float(self.precision[self.recall >= recall].max(initial=0))


def novelties(pool: Pool) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yield name, default eps and the novelty (n,) of every pair, by each way to look for copies."""
    n = pool.features.n
    ways = [
        (f"semdedup, {name}", semdedup(pool.features, n, probes=probes, seed=pool.seed), DEFAULT_EPS)
        for name, probes in (("own cluster (the paper's)", 1), ("probes=4", 4), ("all pairs", int(n**0.5)))
    ]
    ways.append(("copies", copies({"thumbnail": pool.thumbnails}, n, seed=pool.seed), DEFAULT_COPY_EPS))
    for name, subset, default in ways:
        novel = np.empty(n)
        novel[subset.indices] = subset.gains
        yield name, default, novel


def copy_tables(pools: list[Pool]) -> tuple[str, str, dict[str, list[tuple[float, float]]]]:
    """Return the table of points, that of the mean curves, and (recall, precision) at the default eps by method."""
    points = [
        "| seed | method | recall, precision at the default eps | best point: eps, recall, precision | recall at precision 0.9 |",
        "|---|---|---|---|---|",
    ]
    curves: dict[str, list[Curve]] = {}
    reached: dict[str, list[tuple[float, float]]] = {}
    for pool in pools:
        for name, default, novel in novelties(pool):
            curve = Curve.of(novel, pool.scene)
            here, best = curve.at(default), curve.best()
            curves.setdefault(name, []).append(curve)
            reached.setdefault(name, []).append((float(curve.recall[here]), float(curve.precision[here])))
            points.append(
                f"| {pool.seed} | {name} | {curve.recall[here]:.3f}, {curve.precision[here]:.3f} ({default:g}) | "
                f"{curve.novelty[best]:.3f}, {curve.recall[best]:.3f}, {curve.precision[best]:.3f} | {curve.recall_at_precision():.3f} |"
            )
    lines = [f"| precision at recall | {' | '.join(map(str, _RECALLS))} |", "|---|" + "---|" * len(_RECALLS)]
    for name, of_seeds in curves.items():
        means = (np.mean([curve.precision_at(recall) for curve in of_seeds]) for recall in _RECALLS)
        lines.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(points), "\n".join(lines), reached


def main() -> None:
    options = arguments(
        __doc__ or "", n=5000, epochs=20.0, seeds="1,2,3", mismatched=0.3, near_duplicates=0.15, name=""
    )
    pools = []
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            pools.append(
                make_pool(Path(temporary), seed, options.n, options.epochs, options.mismatched, options.near_duplicates)
            )
    rows, shares = zip(*map(caption_row, pools), strict=True)
    captions = "\n".join(
        [
            "| seed | CLIPScore | NegCLIPLoss | the same at temperature 0.01 | ceiling | better / ceiling | learned temperature |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
    points, curves, reached = copy_tables(pools)
    met = "is met" if min(shares) >= 0.95 else "is missed"
    lowest = "; ".join(
        f"{name} {min(r for r, _ in values):.3f} and {min(p for _, p in values):.3f}"
        for name, values in reached.items()
    )
    body = (
        f"{options.n:,} drawn pairs for each seed, {options.mismatched:.0%} with the captions of another, {options.near_duplicates:.0%} "
        f"a copy of another's picture (4 to 12 % of the side cut off, brightness and contrast changed, compressed anew). The proxy is the "
        f"demonstration's, trained on all of these pairs for {options.epochs:g} passes.\n\n"
        f"## Wrong captions: area under the ROC curve\n\n{captions}\n\n"
        "NegCLIPLoss takes the learned temperature by default. The ceiling is a logistic regression on [u, t, u * t] of the same "
        "features that is told the truth of four fifths of the pairs and judged on the other fifth (standardised, 5 folds, C of "
        f"{', '.join(f'{c:g}' for c in _STRENGTHS)} chosen by 5 folds within). The aim, 0.95 of the ceiling by the better score, {met}: "
        f"{min(shares):.3f} at worst.\n\n"
        f"### Pairs with their own caption among the half that a method chooses, default settings\n\n{chosen_table(pools)}\n\n"
        f"## Copies: pairs dropped beyond the first of each scene\n\n{points}\n\n{curves}\n\n"
        "Default eps (in parentheses) know nothing of these pairs' truth; that of copies was fixed on other seeds, 100 to 102. Best points "
        "(of the harmonic mean), recalls at precision 0.9 and the curves (means over the seeds) are chosen by the truth. `semdedup, all "
        "pairs` compares each image's features with all others: the most that a threshold on their cosines gives; `copies` looks at "
        "pixels and asks no model. The aim is recall 0.95 at precision 0.9; lowest recall and precision over the seeds at the default eps: "
        f"{lowest}."
    )
    name = options.name or ("planted" if options.n >= _FULL else f"planted_{options.n}")
    write_result(name, "Planted faults found", body, "coreclip", "torch", "scikit-learn", "faiss-cpu")


if __name__ == "__main__":
    main()
