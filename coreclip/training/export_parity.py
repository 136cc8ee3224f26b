"""Whether exported towers say what the model itself says, within what their precision allows."""

from dataclasses import dataclass

import numpy as np
import torch

from coreclip.errors import CoreclipError
from coreclip.training.clip_model import ClipModel
from coreclip.training.export_job import TOWERS, Runner, TowerInputs

BATCH_SIZES = (1, 2, 5)
LEAST_COSINE = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.95}
"""The least cosine, by precision, between any row's features from an export and from the model."""


@dataclass(frozen=True)
class Parity:
    """How one tower's features agree with the model's at one batch size.

    Attributes
    ----------
    tower : {"image_tower", "text_tower"}
    inputs : {"drawn", "data set"}
    batch_size, rows : int
        Rows at a time and in all.
    max_abs_difference : float
        Of any feature.
    least_cosine, mean_cosine : float
        Over the rows.
    """

    tower: str
    inputs: str
    batch_size: int
    rows: int
    max_abs_difference: float
    least_cosine: float
    mean_cosine: float


@torch.inference_mode()
def reference_features(clip: ClipModel, tower: str, rows: np.ndarray) -> np.ndarray:
    """Return the features of the model itself, float32 (n, d), on its own device."""
    encode = clip.network.encode_image if tower == "image_tower" else clip.network.encode_text
    return encode(torch.from_numpy(rows).to(clip.network.mean.device)).cpu().numpy()


def compare_features(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Return ``max_abs_difference``, ``least_cosine`` and ``mean_cosine`` of two float32 (n, d); NaN counts as cosine -1."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)).clip(1e-12)
    cosine = np.where(np.isfinite(a).all(1), cosine, -1.0)
    return {
        "max_abs_difference": float(np.nan_to_num(np.abs(a - b), nan=2.0, posinf=2.0).max()),
        "least_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
    }


def measure_parity(clip: ClipModel, runner: Runner, inputs: TowerInputs) -> list[Parity]:
    """Compare both towers with the model, with batches of 1, 2, 5 and all rows."""
    found = []
    for tower in TOWERS:
        rows = inputs.of(tower)
        expected = reference_features(clip, tower, rows)
        for size in sorted({*BATCH_SIZES, len(rows)}):
            features = np.concatenate([runner[tower](rows[i : i + size]) for i in range(0, len(rows), size)])
            if features.shape != expected.shape or features.dtype != np.float32:
                raise CoreclipError(
                    f"the exported {tower} returns {features.dtype} {features.shape} for batches of {size} in place of float32 "
                    f"{expected.shape}; nothing was written; export in another format"
                )
            found.append(Parity(tower, inputs.source, size, len(rows), **compare_features(features, expected)))
    return found


def refuse_disagreement(parity: list[Parity], precision: str, least: float | None = None) -> None:
    """Refuse an export of which any row's features are further from the model's than its precision allows.

    Parameters
    ----------
    parity : list of Parity
    precision : str
    least : float, optional
        The least cosine, in place of ``LEAST_COSINE[precision]``.
    """
    least = LEAST_COSINE[precision] if least is None else least
    worst = min(parity, key=lambda one: one.least_cosine)
    if not worst.least_cosine >= least:
        remedy = "give --dataset to calibrate on real pairs, or take a higher precision" if precision == "int8" else (
            "take --precision fp32 or another format"
        )  # fmt: skip
        raise CoreclipError(
            f"the exported {worst.tower} disagrees with the model: cosine {worst.least_cosine:.6f} on {worst.inputs} inputs in "
            f"batches of {worst.batch_size}, {least} is the least for {precision}; nothing was written; {remedy}"
        )
