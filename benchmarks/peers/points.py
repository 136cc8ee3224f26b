"""Points that selections are measured on."""

import numpy as np


def clustered_points(n: int, d: int, seed: int) -> np.ndarray:
    """Return float32 (n, d) unit vectors around n // 100 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, n // 100), d))
    points = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.standard_normal((n, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
