"""The two towers as ONNX graphs, and those run by onnxruntime.

``torch.onnx.export(dynamo=True)`` with a batch of any size; fp16 graphs hold weights and arithmetic in half precision with the
same inputs and outputs (onnxruntime computes in single precision what its processor kernels lack in half); int8 graphs are
:mod:`coreclip.training.onnx_int8`'s.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coreclip.errors import CoreclipError
from coreclip.training.export_job import INPUTS, OUTPUT, TOWERS, ExportJob, Runner
from coreclip.training.towers_for_export import exported_program, make_tower

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MOST_BYTES = (1 << 31) - (1 << 24)  # of weights: protobuf's limit, less room for the graph


def write_onnx(job: ExportJob) -> dict[str, Any]:
    """Write ``image_tower.onnx`` and ``text_tower.onnx``; as a format's ``write``."""
    files = {tower: f"{tower}.onnx" for tower in TOWERS}
    notes = {tower: write_tower(job, tower, job.folder / file) for tower, file in files.items()}
    return {"files": files, "onnx": notes}


def write_tower(
    job: ExportJob, tower: str, path: Path, *, int8_ways: Sequence[str] = ("static", "dynamic")
) -> dict[str, Any]:
    """Write one tower as a checked ONNX file; returns its opset and, for int8, how it was quantised."""
    import onnx

    example = job.example(tower)
    module = make_tower(tower, job.clip.network, torch.float16 if job.precision == "fp16" else torch.float32)
    _check_size(tower, module)
    with _quiet():
        program = torch.onnx.export(
            exported_program(module, example),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=[INPUTS[tower]],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    notes: dict[str, Any] = {"opset": model.opset_import[0].version}
    if job.precision == "int8":
        from coreclip.training.onnx_int8 import quantise

        model, notes["quantisation"] = quantise(model, job, tower, int8_ways)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return notes


def _check_size(tower: str, module: torch.nn.Module) -> None:
    """Refuse a tower that is larger than what one file of the format holds, before it is traced."""
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if n_bytes >= _MOST_BYTES:
        raise CoreclipError(
            f"the {tower} has {n_bytes / 2**30:.1f} GiB of weights, and an ONNX file holds 2 GiB at most; take --precision fp16, or "
            "--format torch-export"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision and its own deprecations, which no user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(model: Any) -> None:
    """Take the exporter's notes out of a graph: they are most of a small file, and hold stack traces with this machine's paths."""
    del model.metadata_props[:]
    graph = model.graph
    for item in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *model.functions,
    ):
        for field in ("metadata_props", "doc_string"):
            with contextlib.suppress(ValueError):
                item.ClearField(field)


def open_onnx(folder: Path, description: dict[str, Any], threads: int | None) -> Runner:
    """Return the towers of an export on onnxruntime; as a format's ``open``."""
    return {tower: run_onnx(folder / description["files"][tower], tower, threads) for tower in TOWERS}


def run_onnx(model: Path | bytes, tower: str, threads: int | None = None) -> Any:
    """Return a callable that runs one tower's file, or its bytes, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def run(rows: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], {INPUTS[tower]: rows})[0]

    return run
