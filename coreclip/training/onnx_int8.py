"""ONNX towers in 8-bit integers, by onnxruntime's quantisation: the way that loses least on the check's inputs is kept.

Two ways are tried, of towers with convolutions the static one alone: onnxruntime's dynamic convolutions take several times as long. *Static*: weights per channel and activations in int8 with ranges from the calibration's inputs, as
QuantizeLinear and DequantizeLinear around each operation (Jacob et al. 2018, arXiv 1712.05877). *Dynamic*: weights in int8,
activations quantised by the range that each batch has. Weights keep to 7 bits, so that sums of products do not saturate on
processors without VNNI instructions. Left out: training with quantisation.
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.training.export_job import INPUTS, ExportJob
from coreclip.training.export_parity import compare_features, reference_features

_CALIBRATION_BATCH = 16
_WEIGHTED = ["Conv", "Gemm", "MatMul", "Gather"]


def quantise(model: Any, job: ExportJob, tower: str, ways: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Quantise a tower's graph.

    Parameters
    ----------
    model : onnx.ModelProto
        In float32.
    job : ExportJob
    tower : {"image_tower", "text_tower"}
    ways : sequence of {"static", "dynamic"}
        To try.

    Returns
    -------
    onnx.ModelProto
    dict
        ``kept`` and, for each way, ``max_abs_difference``, ``least_cosine``, ``mean_cosine`` and ``bytes``; ``calibrated_on``.
    """
    import onnx

    from coreclip.training.onnx_export import run_onnx

    if any(node.op_type == "Conv" for node in model.graph.node):
        ways = [way for way in ways if way != "dynamic"]
    rows = job.check.of(tower)
    expected = reference_features(job.clip, tower, rows)
    found, models = {}, {}
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        prepared = _prepared(model, Path(temporary))
        for name in ways:
            path = Path(temporary) / f"{name}.onnx"
            WAYS[name](prepared, path, tower, job.calibration.of(tower))
            models[name] = onnx.load(path)
            found[name] = {
                **compare_features(run_onnx(path.read_bytes(), tower)(rows), expected),
                "bytes": path.stat().st_size,
            }
    kept = max(found, key=lambda name: found[name]["mean_cosine"])
    return models[kept], {"kept": kept, "calibrated_on": job.calibration.source, **found}


def _prepared(model: Any, folder: Path) -> Path:
    """Infer all shapes and fuse what onnxruntime fuses: ranges are wanted of what is computed, not of what is fused away."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnx.save(model, folder / "model.onnx")
    quant_pre_process(str(folder / "model.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    return folder / "prepared.onnx"


def _static(source: Path, path: Path, tower: str, rows: np.ndarray) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(
                {INPUTS[tower]: rows[i : i + _CALIBRATION_BATCH]} for i in range(0, len(rows), _CALIBRATION_BATCH)
            )

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantize_static(source, path, Reader(), per_channel=True, reduce_range=True, op_types_to_quantize=_WEIGHTED)


def _dynamic(source: Path, path: Path, tower: str, rows: np.ndarray) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, path, per_channel=True, reduce_range=True, op_types_to_quantize=_WEIGHTED)


WAYS: dict[str, Callable[[Path, Path, str, np.ndarray], None]] = {"static": _static, "dynamic": _dynamic}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice through the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
