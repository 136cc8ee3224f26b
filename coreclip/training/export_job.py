"""What a format of exported models has to offer, and what it is given: the vocabulary that the front and the formats share."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreclip.errors import CoreclipError
from coreclip.training.clip_model import ClipModel

TOWERS = ("image_tower", "text_tower")
INPUTS = {"image_tower": "images", "text_tower": "tokens"}
OUTPUT = "features"

Runner = dict[str, Callable[[np.ndarray], np.ndarray]]
"""``{"image_tower": uint8 (b, 3, size, size) -> float32 (b, d), "text_tower": int64 (b, context) -> float32 (b, d)}``"""


@dataclass(frozen=True)
class TowerInputs:
    """Inputs of both towers for calibration and comparisons.

    Attributes
    ----------
    images : uint8 (n, 3, size, size)
    tokens : int64 (n, context)
    source : {"drawn", "data set"}
    """

    images: np.ndarray
    tokens: np.ndarray
    source: str

    def of(self, tower: str) -> np.ndarray:
        """Return the inputs of one tower by its name."""
        return self.images if tower == "image_tower" else self.tokens


@dataclass(frozen=True)
class ExportJob:
    """What a format writes.

    Attributes
    ----------
    clip : ClipModel
        The run's model on the CPU.
    folder : path
        Where to write; holds ``tokenizer.json`` and ``config.toml`` already.
    precision : str
        One of the format's.
    calibration : TowerInputs
        What quantised arithmetic may look at to choose its ranges.
    check : TowerInputs
        Other inputs, on which candidates may be compared.
    """

    clip: ClipModel
    folder: Path
    precision: str
    calibration: TowerInputs
    check: TowerInputs

    def example(self, tower: str) -> Tensor:
        """Return two inputs of a tower to trace it with: torch would take a batch of one for a constant."""
        rows = self.check.of(tower)[:2]
        return torch.from_numpy(np.resize(rows, (2, *rows.shape[1:])))


@dataclass(frozen=True)
class Format:
    """One way to write a model down.

    Attributes
    ----------
    summary : str
        One line for the help.
    write : callable
        Writes the job's towers into its folder; returns what ``export.json`` shall say of them besides what it says of every
        format: JSON values, ``files`` (``{tower: name of its file}``) among them.
    open : callable
        ``open(folder, description, threads)`` returns the written towers, ready to run; ``threads`` is None for all cores.
    precisions : tuple of str
    packages : tuple of str
        Modules of the extra ``coreclip[export]`` that are needed.
    runs_code : bool
        Whether opening such files can run code that is in them.
    checkpoint_of : str or None
        The library whose checkpoint it is: what its towers are given and return is that library's business. None: towers that
        standardise bytes themselves and return features of unit norm.
    """

    summary: str
    write: Callable[[ExportJob], dict[str, Any]]
    open: Callable[[Path, dict[str, Any], int | None], Runner]
    precisions: tuple[str, ...] = ("fp32",)
    packages: tuple[str, ...] = ()
    runs_code: bool = False
    checkpoint_of: str | None = None


def check_packages(name: str, packages: tuple[str, ...]) -> None:
    """Refuse a format whose packages are not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise CoreclipError(
            f"format {name} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "pip install 'coreclip[export]'"
        )
