"""torch.compile where it pays: parts of the towers are compiled, and kept so if steps get faster.

A whole Transformer takes a minute to compile, and again for another shape; its blocks share one code, take seconds, and hold what there
is to fuse: normalisations, activations, sums of residuals. A convolutional tower is compiled whole. Left out: CUDA graphs.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from coreclip.training.attention import Block
from coreclip.training.image_towers import ResNet, SmallCnn, Vit
from coreclip.training.model import Clip

# What a trial may cost of the budget, and what a step must gain: a choice that noise could turn would make equal commands differ.
_MOST_SHARE = 0.05
_LEAST_GAIN = 1.05
_TRIAL_SECONDS = {"cuda": 40.0, "cpu": 60.0}  # expected, of compiling and a few steps


def compile_blocks(model: Clip) -> None:
    """Have the Transformers' blocks and the convolutional tower compiled when they are next called."""
    for module in model.modules():
        if isinstance(module, (Block, Clip, Vit)):
            module.is_compiled = True
    if isinstance(model.image, (SmallCnn, ResNet)):
        model.image.compile()


def decide_compile(
    model: Clip, step: Callable[[], None], *, asked: str, device: torch.device, seconds_left: Callable[[float], float]
) -> dict[str, Any]:
    """Choose whether a model's blocks are to be compiled, by steps on a copy of it.

    Parameters
    ----------
    model : Clip
        The copy; its blocks may be compiled afterwards.
    step : callable
        A forward and backward pass of it, waiting for the device.
    asked : {"auto", "on", "off"}
    device : torch.device
    seconds_left : callable
        Seconds of training that are left, given those that a step takes.

    Returns
    -------
    dict
        ``compile`` and, where it was tried, ``compile_seconds`` and ``compile_seconds_per_step``.
    """
    if asked != "auto":
        return {"compile": asked == "on"}
    eager = _seconds(step)
    if seconds_left(eager) * _MOST_SHARE < _TRIAL_SECONDS[device.type]:
        return {"compile": False}
    begin = time.perf_counter()
    compile_blocks(model)
    try:
        step()
        spent = time.perf_counter() - begin
        compiled = _seconds(step)
    except Exception as error:  # the compiler's own failures are of many kinds, and training can do without it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"coreclip: torch.compile fails here, training goes on without it: {reason}", file=sys.stderr)
        return {"compile": False, "compile_error": reason}
    return {
        "compile": eager / compiled >= _LEAST_GAIN,
        "compile_seconds": spent,
        "compile_seconds_per_step": {"eager": eager, "compiled": compiled},
    }


def _seconds(step: Callable[[], None]) -> float:
    """The least of three: it is the least disturbed."""
    best = float("inf")
    for _ in range(4):  # the first one warms up
        begin = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - begin)
    return best
