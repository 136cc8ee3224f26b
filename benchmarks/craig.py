"""CRAIG at a tenth of Fashion-MNIST for l2-regularised logistic regression, against random parts stratified by class alike.

The convex case of Mirzasoleiman et al. 2020 (arXiv 1906.01827): within a class, gradients are no farther apart than a constant times
the images are, so CRAIG takes the distances of the pixels and no model. f is the mean cross-entropy of all images plus
lambda / 2 ||w||^2, w the 10 x 785 weights and biases; f_S the same of a part, its images weighted (n / k in a random one, gamma in
CRAIG's). Reported are f(w_S) - f(w*), where w_S and w* minimise f_S and f, and ||grad f - grad f_S|| at iterates of L-BFGS on f from
w = 0. Both are the same on every machine, up to rounding; no time is measured.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize, nnls
from scipy.special import log_softmax
from side_by_side import arguments, write_result

from coreclip.selection import FactoredGradients, craig_of_gradients, gradmatch_of_gradients, stratified

LAMBDAS = (1e-2, 1e-3)
ITERATES = (0, 1, 2, 5, 10, 20, 50)
TOLERANCE = 1e-5  # of the gradient's length
CLASSES = 10
Part = tuple[np.ndarray, np.ndarray]  # rows int64 (k,), weights float64 (k,): images that each stands for


@dataclass(frozen=True, eq=False)
class Problem:
    """x float64 (n, 785) with a column of ones, labels int64 (n,), the weights of the images in the mean float64 (n,), lambda."""

    x: np.ndarray
    labels: np.ndarray
    shares: np.ndarray
    lam: float

    def part(self, part: Part) -> "Problem":
        rows, weights = part
        return Problem(self.x[rows], self.labels[rows], weights / len(self.x), self.lam)

    def residuals(self, w: np.ndarray) -> np.ndarray:
        """Return p - y, float64 (n, 10): the gradient of an image is its outer product with the image."""
        residuals = np.exp(self._log_probabilities(w))
        residuals[np.arange(len(self.x)), self.labels] -= 1
        return residuals

    def value_and_gradient(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = self._log_probabilities(w)
        own = np.arange(len(self.x)), self.labels
        value = -self.shares @ log_p[own] + self.lam / 2 * w @ w
        residuals = np.exp(log_p)
        residuals[own] -= 1
        return float(value), ((residuals * self.shares[:, None]).T @ self.x).ravel() + self.lam * w

    def _log_probabilities(self, w: np.ndarray) -> np.ndarray:
        return log_softmax(self.x @ w.reshape(CLASSES, -1).T, axis=1)


def solve(problem: Problem) -> list[np.ndarray]:
    """Return the iterates of L-BFGS from 0, the last of which is the minimum."""
    start = np.zeros(CLASSES * problem.x.shape[1])
    path = [start]
    minimize(
        problem.value_and_gradient, start, jac=True, method="L-BFGS-B", callback=lambda w: path.append(w.copy()),
        options={"maxiter": 20_000, "maxfun": 40_000, "maxcor": 30, "ftol": 0, "gtol": TOLERANCE / 50},
    )  # fmt: skip
    length = np.linalg.norm(problem.value_and_gradient(path[-1])[1])
    if length > TOLERANCE:
        raise SystemExit(f"L-BFGS stopped at a gradient of length {length:.1e}, above {TOLERANCE:.0e}")
    return path


def refitted(rows_of: Callable[[int], np.ndarray], labels: np.ndarray, part: Part, pull: float) -> Part:
    """Return the same images with weights >= 0 that bring the sum of their rows near that of the class, and stay near the given.

    ``rows_of`` returns a class's rows; ``pull`` is GradMatch's regularisation, of the mean square of a row.
    """
    chosen, weights = part[0], part[1].copy()
    for label in np.unique(labels):
        mine, members = labels[chosen] == label, np.flatnonzero(labels == label)
        rows = rows_of(label)
        own = rows[np.searchsorted(members, chosen[mine])]
        toward = np.sqrt(pull * (own**2).sum(axis=1).mean())
        system = np.vstack([own.T, toward * np.eye(len(own))])
        target = np.concatenate([rows.sum(axis=0), toward * weights[mine]])
        weights[mine] = nnls(system, target, maxiter=30 * len(own))[0]
    return chosen, weights


def with_products(x: np.ndarray, labels: np.ndarray, components: int) -> Callable[[int], np.ndarray]:
    """Return a class's images beside the products of their leading principal components, both of the same mean length.

    p - y is nearly linear in the image, so the gradient, its product with the image, nearly a sum of such products.
    """
    centred = x - x.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, -components:]
    first, second = np.triu_indices(components)

    def rows_of(label: int) -> np.ndarray:
        scores = centred[labels == label] @ directions
        products = scores[:, first] * scores[:, second]
        images = x[labels == label]
        return np.hstack([images, products * np.sqrt((images**2).sum() / (products**2).sum())])

    return rows_of


def parts_of(full: Problem, path: list[np.ndarray], k: int, seeds: int) -> dict[str, Callable[[], Part]]:
    """Return the ways to choose: random ones, CRAIG as it is defined, and what else was tried."""
    pixels, labels, n = full.x[:, :-1], full.labels, len(full.x)

    def random(seed: int) -> Part:
        rows = stratified(n, k, labels=labels, seed=seed).indices
        return rows, np.full(k, n / k)

    def craig(gradients: np.ndarray | FactoredGradients) -> Part:
        found = craig_of_gradients(gradients, k, labels)
        return found.indices, found.gamma.astype(np.float64)

    def gradmatch(gradients: np.ndarray | FactoredGradients) -> Part:
        found = gradmatch_of_gradients(gradients, k, labels)
        return found.indices, found.weights

    def at(*iterates: int) -> FactoredGradients:
        first, *others = (
            FactoredGradients(full.residuals(path[min(t, len(path) - 1)]).astype(np.float32), pixels.astype(np.float32))
            for t in iterates
        )
        for other in others:
            first = first.beside(other)
        return first

    of_pixels: list[Part] = []  # CRAIG's, chosen once

    def plain() -> Part:
        of_pixels.append(craig(pixels))
        return of_pixels[0]

    ways: dict[str, Callable[[], Part]] = {
        f"random, seed {seed}": lambda seed=seed: random(seed) for seed in range(seeds)
    }  # type: ignore[misc]
    return ways | {
        "CRAIG": plain,
        "CRAIG's images, equal weights": lambda: (of_pixels[0][0], np.full(k, n / k)),
        "CRAIG's images, weights refitted to the sum of the images": lambda: refitted(
            lambda label: pixels[labels == label], labels, of_pixels[0], pull=0.1
        ),
        "CRAIG's images, weights refitted to images and products": lambda: refitted(
            with_products(pixels, labels, 20), labels, of_pixels[0], pull=0.01
        ),
        "CRAIG of the gradients at iterate 5": lambda: craig(at(5)),
        "CRAIG of the gradients at iterates 0, 5, 20, end together": lambda: craig(at(0, 5, 20, len(path))),
        "CRAIG of the gradients at iterates 0, 5, 20 together": lambda: craig(at(0, 5, 20)),
        "CRAIG of the gradients at iterates 5, 20, 50 together": lambda: craig(at(5, 20, 50)),
        "GradMatch of the images": lambda: gradmatch(pixels),
        "GradMatch of the gradients at iterate 5": lambda: gradmatch(at(5)),
    }


@dataclass(frozen=True)
class Outcome:
    """Of one part: images in it, the excess loss, the errors of the gradient at the iterates, the largest weight."""

    k: int
    excess: float
    errors: list[float]
    largest: float


def study(full: Problem, k: int, seeds: int) -> tuple[dict[str, Outcome], list[int]]:
    """Return what each way comes to, and the iterates that are looked at."""
    path = solve(full)
    best, _ = full.value_and_gradient(path[-1])
    looked_at = [t for t in ITERATES if t < len(path) - 1] + [len(path) - 1]
    gradients = [full.value_and_gradient(path[t])[1] for t in looked_at]
    found = {}
    for name, choose in parts_of(full, path, k, seeds).items():
        part = choose()
        small = full.part(part)
        errors = [
            float(np.linalg.norm(small.value_and_gradient(path[t])[1] - gradient))
            for t, gradient in zip(looked_at, gradients, strict=True)
        ]
        excess = full.value_and_gradient(solve(small)[-1])[0] - best
        found[name] = Outcome(len(part[0]), excess, errors, float(part[1].max()))
        print(f"lambda {full.lam:g}: {name}: {found[name]}", file=sys.stderr, flush=True)
    return found, looked_at


def report(lam: float, found: dict[str, Outcome], iterates: list[int]) -> list[str]:
    """Return the lines of one lambda."""
    random = [outcome for name, outcome in found.items() if name.startswith("random")]
    median = statistics.median(outcome.excess for outcome in random)
    ends = [f"{t}" for t in iterates[:-1]] + [f"{iterates[-1]} (w\\*)"]
    lines = [
        f"## lambda = {lam:g}",
        "",
        "| part | images | f(w_S) - f(w\\*) | of random's median | largest weight | " + " | ".join(ends) + " |",
        "|---|---|---|---|---|" + "---|" * len(ends),
    ]
    rows = {**found, "random, median": Outcome(random[0].k, median, [], random[0].largest)}
    for name, outcome in rows.items():
        errors = outcome.errors or [
            statistics.median(values) for values in zip(*(r.errors for r in random), strict=True)
        ]
        lines.append(
            f"| {name} | {outcome.k:,} | {outcome.excess:.5f} | {outcome.excess / median:.2f}x | {outcome.largest:.0f} | "
            + " | ".join(f"{error:.4f}" for error in errors)
            + " |"
        )
    craig = found["CRAIG"]
    lowest = [min(values) for values in zip(*(r.errors for r in random), strict=True)]
    missed = [end for end, error, low in zip(ends, craig.errors, lowest, strict=True) if error >= low]
    below = sum(error < r for outcome in random for error, r in zip(craig.errors, outcome.errors, strict=True))
    lines += [
        "",
        f"CRAIG's excess loss is {craig.excess / median:.2f}x the median of random's "
        f"({min(r.excess for r in random):.5f} - {max(r.excess for r in random):.5f}); the goal of 0.5x is {'met' if craig.excess <= median / 2 else 'missed'}. "
        f"Its gradient error is below random's in {below} of {len(random) * len(ends)} comparisons, "
        + (f"but not below the best random one's at iterate {', '.join(missed)}." if missed else "at every iterate below every random one's."),
        "",
    ]  # fmt: skip
    return lines


def read(data: Path, n: int, features: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the first n images, float64 (n, 785), and labels."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from selection_curves import read_idx

    images = read_idx(data / "fashion-mnist" / "train-images-idx3-ubyte.gz")[:n]
    labels = read_idx(data / "fashion-mnist" / "train-labels-idx1-ubyte.gz")[:n].astype(np.int64)
    x = images.reshape(len(images), -1) / 255
    if features == "standardised":
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-3)
    return np.hstack([x, np.ones((len(x), 1))]), labels


def main() -> None:
    options = arguments(
        __doc__ or "", data="../shared/data", n=60_000, fraction=0.1, seeds=5, features="pixels", name="craig"
    )
    if options.features not in ("pixels", "standardised"):
        raise SystemExit(f"--features {options.features}: pixels or standardised")
    if not (Path(options.data) / "fashion-mnist").is_dir():
        print(
            f"left out: no fashion-mnist/ with the IDX .gz files in {options.data}; name its folder by --data",
            file=sys.stderr,
        )
        return
    x, labels = read(Path(options.data), options.n, options.features)
    k = round(options.fraction * len(x))
    lines = [
        f"{len(x):,} images, {options.features}, {k:,} in each part (GradMatch may stop earlier), by class in proportion. "
        f"Every minimum has a gradient of at most {TOLERANCE:.0e}. On the right: ||grad f - grad f_S|| at iterates of L-BFGS on all images.",
        "",
    ]
    for lam in LAMBDAS:
        full = Problem(x, labels, np.full(len(x), 1 / len(x)), lam)
        lines += report(lam, *study(full, k, options.seeds))
    lines += [
        "The lines below CRAIG's are other ways that were tried. Those by gradients take them from iterates of the training on all images, "
        "which have to be paid for first; `end` is w\\*. Refitted weights and GradMatch match sums of images or gradients, not distances.",
    ]  # fmt: skip
    write_result(options.name, "CRAIG, the convex case", "\n".join(lines), "coreclip", "numpy", "scipy")


if __name__ == "__main__":
    main()
