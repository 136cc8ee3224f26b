"""The two towers as TorchScript, a legacy: torch has deprecated it, and ``torch.export`` or ONNX are its heirs.

A trace is what one input did: a branch that another input takes is not in it, and nothing says so. Each trace is therefore run
beside the eager tower on inputs that would take different branches (batches of one and of many, the shortest and the longest
captions, padding alone, black and white images), and one that disagrees on any of them is refused.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreclip.errors import CoreclipError
from coreclip.training.export_job import TOWERS, ExportJob, Runner
from coreclip.training.torch_export import as_numpy
from coreclip.training.towers_for_export import make_tower

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}
LEGACY = "TorchScript is deprecated in torch and written for old deployments only; --format torch-export or onnx is the living path"


def write_torchscript(job: ExportJob) -> dict[str, Any]:
    """Write ``image_tower.pt`` and ``text_tower.pt``; as a format's ``write``. Says on stderr that the format is a legacy."""
    print(f"coreclip: {LEGACY}", file=sys.stderr)
    files = {tower: f"{tower}.pt" for tower in TOWERS}
    tried = {}
    for tower, file in files.items():
        dtype = torch.float16 if job.precision == "fp16" else torch.float32
        module, rows = make_tower(tower, job.clip.network, dtype), job.check.of(tower)
        cases = image_cases(rows) if tower == "image_tower" else text_cases(rows, job.clip.tokenizer.encode)
        trace = checked_trace(module, torch.from_numpy(rows[:2]), cases, name=tower, tolerance=_TOLERANCE[dtype])
        trace.save(str(job.folder / file))
        tried[tower] = list(cases)
    return {"files": files, "trace_checked_on": tried, "legacy": LEGACY}


def image_cases(images: np.ndarray) -> dict[str, Tensor]:
    """Return named inputs of an image tower that would take different branches, from uint8 (n, 3, size, size)."""
    rows = torch.from_numpy(images)
    return {
        "a batch of one": rows[:1],
        "a batch of two": rows[-2:],
        "a batch of seven": rows[:7],
        "the whole batch": rows,
        "black images": torch.zeros_like(rows[:3]),
        "white images": torch.full_like(rows[:3], 255),
        "one colour each": (torch.arange(4, dtype=torch.uint8) * 60)[:, None, None, None].expand(4, *rows.shape[1:]),
    }


def text_cases(tokens: np.ndarray, encode: Callable[[list[str], int], np.ndarray]) -> dict[str, Tensor]:
    """Return named inputs of a text tower that would take different branches, from int64 (n, context) and the tokenizer."""
    rows = torch.from_numpy(tokens)
    context = rows.shape[1]
    short, long = (torch.from_numpy(encode([text], context)) for text in ("", "a dog on a beach " * context))
    return {
        "a batch of one": rows[:1],
        "a batch of two": rows[-2:],
        "a batch of seven": rows[:7],
        "the whole batch": rows,
        "empty captions": short.expand(3, -1).contiguous(),
        "captions that fill the context": long.expand(3, -1).contiguous(),
        "short and full captions together": torch.cat([short, long, short]),
        "padding alone": torch.zeros_like(rows[:2]),
    }


def checked_trace(
    module: nn.Module, example: Tensor, cases: dict[str, Tensor], *, name: str, tolerance: float = 1e-4
) -> torch.jit.ScriptModule:
    """Trace a module in evaluation mode, freeze it, and hold it against the module itself.

    Parameters
    ----------
    module : nn.Module
    example : Tensor
        The input that is traced.
    cases : {name: Tensor}
        Inputs to compare on.
    name : str
        The module's, for the error.
    tolerance : float
        Largest difference of any output.

    Raises
    ------
    CoreclipError
        Where the trace fails on an input or returns something else than the module.
    """
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracer warns of branches that it may freeze, and of its own age; which ones matter is measured below.
        warnings.simplefilter("ignore")
        trace = torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))
        for case, rows in cases.items():
            refuse_difference(trace, module, rows, name=name, case=case, tolerance=tolerance)
    return trace


def refuse_difference(
    trace: Callable[[Tensor], Tensor], module: nn.Module, rows: Tensor, *, name: str, case: str, tolerance: float
) -> None:
    """Refuse a trace that fails on ``rows`` or differs there from the module."""
    expected = module(rows)
    try:
        found = trace(rows)
    except RuntimeError as error:
        what = f"fails ({[line for line in str(error).splitlines() if line.strip()][-1].strip()[:100]})"
    else:
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=False):
            return
        what = f"has the shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
        if found.shape == expected.shape:
            what = f"differs by {(found - expected).abs().max().item():.3g}, {tolerance:g} is allowed"
    raise CoreclipError(
        f"the trace of the {name} {what} on {case}: the module branches on its input, and a trace keeps one branch; nothing was "
        "written; use --format torch-export or onnx"
    )


def open_torchscript(folder: Path, description: dict[str, Any], threads: int | None) -> Runner:
    """Return the towers of an export; as a format's ``open``. Threads are torch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {tower: as_numpy(torch.jit.load(str(folder / description["files"][tower]))) for tower in TOWERS}
