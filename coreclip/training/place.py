"""Where a run is, as its checkpoint keeps it."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.pipeline import Loader
from coreclip.training.ahead import AheadOnDevice
from coreclip.training.ema import WeightAverage
from coreclip.training.model import Clip
from coreclip.training.muon import Optimiser
from coreclip.training.reselection import Reselector
from coreclip.training.signals import SignalRecorder

_PARTS = {"place", "model", "optimiser", "loader", "signals", "average"}


@dataclass
class Place:
    """Where a run is."""

    step: int = 0
    samples_seen: int = 0
    step_in_pass: int = 0
    passes: int = 0  # that are over
    delivered: int = 0  # pairs to be trained on of all batches, of those without a step too
    selected: int = -1  # passes that were over when the pairs were chosen; -1 where they are those that were given
    reselections: int = 0
    reselection_seconds: float = 0.0
    parts: int = 0  # of the budget, between two evaluations, that have passed
    evaluations: int = 0
    evaluation_seconds: float = 0.0
    last_evaluation_seconds: float = 0.0
    best_recall: float = -1.0
    best_step: int | None = None
    broken: int = 0
    skipped: int = 0  # batches without a step since the last one with one
    scored: int = 0  # pairs that rows were selected among
    kept: int = 0  # checkpoints of the budget's parts that have passed
    finished: bool = False
    seconds: float = 0.0
    losses: list[float] | tuple[float, ...] = ()


def state_of(
    place: Place,
    model: Clip,
    optimiser: Optimiser,
    loader: AheadOnDevice,
    signals: SignalRecorder | None,
    average: WeightAverage | None,
) -> dict[str, Any]:
    """Return all that a run needs to go on from where it is, but for its configuration and data."""
    return {
        "place": asdict(place),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "loader": loader.state_dict(),
        "signals": None if signals is None else signals.state_dict(),
        "average": None if average is None else average.state_dict(),
    }


def restore(
    state: dict[str, Any],
    model: Clip,
    optimiser: Optimiser,
    loader: Loader,
    signals: SignalRecorder | None,
    average: WeightAverage | None,
    reselector: Reselector | None,
) -> Place:
    """Put everything back to a state that :func:`state_of` returned; returns where the run was.

    Raises
    ------
    CoreclipError
        For a state of another version.
    """
    if set(state) != _PARTS or set(state["place"]) != {field.name for field in fields(Place)}:
        raise CoreclipError(
            "checkpoint.pt was written by another version of coreclip; a run goes on with its own; train into another folder"
        )
    place = Place(**state["place"])
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    if average is not None:
        average.load_state_dict(state["average"])
    if reselector is not None and place.selected >= 0:
        loader.set_subset(reselector.load(place.selected))
    loader.load_state_dict(state["loader"])
    if signals is not None:
        signals.load_state_dict(state["signals"])
    return place
