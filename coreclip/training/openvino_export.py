"""The two towers as OpenVINO models, converted from their ONNX graphs, and those run on the processor.

fp16 stores the weights in half; what is computed in half is the device's choice, and the processor's is single precision unless
it has the instructions. int8 is the statically quantised ONNX graph.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.training.export_job import INPUTS, TOWERS, ExportJob, Runner
from coreclip.training.onnx_export import PACKAGES as ONNX_PACKAGES
from coreclip.training.onnx_export import write_tower

PACKAGES = ("openvino", *ONNX_PACKAGES)


def write_openvino(job: ExportJob) -> dict[str, Any]:
    """Write ``image_tower.xml`` and ``.bin``, ``text_tower.xml`` and ``.bin``; as a format's ``write``."""
    import openvino

    files, notes = {tower: f"{tower}.xml" for tower in TOWERS}, {}
    half = job.precision == "fp16"
    through = dataclasses.replace(job, precision="fp32") if half else job
    with tempfile.TemporaryDirectory() as temporary:
        for tower, file in files.items():
            path = Path(temporary) / f"{tower}.onnx"
            # Of the dynamic way it makes weights of 32 bits again.
            notes[tower] = write_tower(through, tower, path, int8_ways=("static",))
            model = _converted(path, tower)
            model.set_friendly_name(tower)
            openvino.save_model(model, job.folder / file, compress_to_fp16=half)
    return {"files": files, "onnx": notes}


def _converted(path: Path, tower: str) -> Any:
    import openvino

    try:
        return openvino.convert_model(path)
    except Exception as error:  # the converter's failures share no class but this
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("-- Conversion")), lines[-1])
        raise CoreclipError(
            f"OpenVINO {openvino.__version__.partition('-')[0]} can't convert the {tower} ({reason.strip('- ')}); nothing was written; "
            "use --format onnx"
        ) from None


def open_openvino(folder: Path, description: dict[str, Any], threads: int | None) -> Runner:
    """Return the towers of an export on the processor; as a format's ``open``."""
    import openvino

    core = openvino.Core()
    # Left to itself, OpenVINO takes bfloat16 where the processor has it, whatever the file says.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = {tower: core.compile_model(folder / description["files"][tower], "CPU", options) for tower in TOWERS}

    return {tower: _callable(model, INPUTS[tower]) for tower, model in compiled.items()}


def _callable(compiled: Any, name: str) -> Callable[[np.ndarray], np.ndarray]:
    def run(rows: np.ndarray) -> np.ndarray:
        return np.array(compiled({name: rows})[0])  # the request's own memory is written again

    return run
