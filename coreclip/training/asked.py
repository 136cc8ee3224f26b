"""All that decides a run's result, as a run's ``run.json`` keeps it: an unfinished run goes on only where it is the same."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.config import Config, config_to_table
from coreclip.files import sha256_file
from coreclip.pipeline import Dataset
from coreclip.training.jest import JestSelector
from coreclip.training.objectives import Objective
from coreclip.training.schedule import Budget
from coreclip.training.store import weights_file


def all_asked(
    dataset: Dataset,
    config: Config,
    budget: Budget,
    subset: Any,
    init_from: str | Path | None,
    jest: JestSelector | None,
    objective: Objective,
) -> dict[str, Any]:
    """All that decides the result, as JSON values."""
    teacher = {} if objective.teacher is None else {"distill_features": objective.teacher.sha256}
    return (
        ({} if jest is None else {"jest_reference": jest.sha256})
        | teacher
        | {
            "fingerprint": dataset.fingerprint,
            "config": config_to_table(config),
            "budget": {name: value for name, value in asdict(budget).items() if value is not None},
            "subset": _subset_provenance(subset),
            "init_from": None if init_from is None else sha256_file(weights_file(init_from)),
        }
    )


def _subset_provenance(subset: Any) -> dict[str, Any]:
    if subset is None:
        return {"k": None}
    indices = _indices(subset)
    weights = np.ascontiguousarray(getattr(subset, "weights", np.ones(len(indices))), dtype=np.float64)
    return {
        "k": len(indices),
        "sha256": hashlib.sha256(indices.tobytes() + weights.tobytes()).hexdigest(),
        "method": getattr(subset, "method", None),
    }


def _indices(subset: Any) -> np.ndarray:
    return np.ascontiguousarray(getattr(subset, "indices", subset), dtype=np.int64)
