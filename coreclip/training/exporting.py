"""Write a trained model down for another runtime, and check what was written against the model before it is handed out.

``OUT/``: the two towers' files, ``tokenizer.json``, ``config.toml`` (the run's), and ``export.json``: what goes in and comes out, how images
are prepared, the temperature, hashes, versions, and how far the features are from the model's. Whole, or not there. Pixels are
standardised inside the image tower, so that it takes the bytes of an RGB image.
"""

import importlib.metadata
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import coreclip
from coreclip.config import config_to_toml
from coreclip.errors import CoreclipError
from coreclip.files import sha256_file, write_json, write_text
from coreclip.pipeline import Dataset
from coreclip.pipeline.publishing import new_folder
from coreclip.training.clip_model import ClipModel
from coreclip.training.evaluation import evaluate
from coreclip.training.export_formats import FORMATS
from coreclip.training.export_inputs import N_CALIBRATION, N_CHECK, dataset_inputs, drawn_inputs
from coreclip.training.export_job import INPUTS, OUTPUT, ExportJob, check_packages
from coreclip.training.export_parity import LEAST_COSINE, Parity, measure_parity, refuse_disagreement
from coreclip.training.exported_model import DESCRIPTION, FORMAT_VERSION, ExportedModel, open_export
from coreclip.training.features import weights_of

_VERSIONED = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "transformers")


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export` returns.

    Attributes
    ----------
    out : str
        The folder.
    format, precision : str
    files : {name: bytes}
    least_cosine, max_abs_difference : float
        Between the export's features and the model's, over what is judged of ``parity``: all, but for int8 the inputs like those that
        it was calibrated on.
    parity : list of dict
        By tower, inputs and batch size; see :class:`~coreclip.training.export_parity.Parity`.
    accuracy : dict or None
        With a data set: ``run`` and ``export``, what ``evaluate`` says of each, and ``lost``, the difference of what both have.
    seconds : float
    """

    out: str
    format: str
    precision: str
    files: dict[str, int]
    least_cosine: float
    max_abs_difference: float
    parity: list[dict[str, Any]]
    accuracy: dict[str, Any] | None
    seconds: float


def export(
    run: str | Path,
    out: str | Path,
    *,
    format: str,
    precision: str = "fp32",
    dataset: Dataset | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> ExportReport:
    """Write a run's two towers for another runtime.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool.
    out : path
        Folder to make.
    format : str
        One of :data:`~coreclip.training.export_formats.FORMATS`.
    precision : {"fp32", "fp16", "int8"}
        Of weights and arithmetic; the inputs and outputs are the same for all.
    dataset : Dataset, optional
        Pairs to compare on, to calibrate int8 with, and to measure what retrieval and classification lose; held-out ones are best.
    device : {"cpu", "cuda", "cuda:N", "auto"}
        Where the model itself is evaluated on ``dataset``; exports are made and run on the processor.
    seed : int
        Of the inputs that are drawn.

    Returns
    -------
    ExportReport

    Raises
    ------
    CoreclipError
        For a run that can't be loaded, an unknown format or precision, a missing package, an output that is there already, or an
        export that disagrees with the model. Nothing is left then.
    """
    begin = time.monotonic()
    check_format(format, precision)
    clip = ClipModel.load(run)
    check, calibration = _inputs(clip, dataset, seed)
    with new_folder(out) as folder:
        clip.tokenizer.save(folder / "tokenizer.json")
        write_text(folder / "config.toml", config_to_toml(clip.config))
        job = ExportJob(clip, folder, precision, calibration[-1], check[-1])
        description = _description(run, clip, format, precision) | FORMATS[format].write(job)
        towers = open_export(folder, description)
        parity = [row for inputs in check for row in measure_parity(clip, towers, inputs)]
        # Integers have the ranges of what they were calibrated on: what else they are given is reported, and no reason to refuse.
        judged = [row for row in parity if precision != "int8" or row.inputs == job.calibration.source]
        refuse_disagreement(judged, precision)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        description |= {
            "sha256": {name: sha256_file(path) for name, path in zip(names, files, strict=True)},
            "parity": [asdict(row) for row in parity],
            "accuracy": None,
        }
        write_json(folder / DESCRIPTION, description)
        if dataset is not None:
            description["accuracy"] = _accuracy(run, folder, dataset, device)
            write_json(folder / DESCRIPTION, description)
        sizes = {name: path.stat().st_size for name, path in zip(names, files, strict=True)}
    return _report(out, description, judged, sizes, time.monotonic() - begin)


def check_format(name: str, precision: str) -> None:
    """Refuse a format, or a precision of it, that is not there or lacks its packages."""
    if name not in FORMATS:
        raise CoreclipError(f"format {name!r} is unknown; it must be one of {', '.join(FORMATS)}")
    allowed = FORMATS[name].precisions
    if precision not in allowed:
        raise CoreclipError(f"precision {precision!r} is not for format {name}; it must be one of {', '.join(allowed)}")
    check_packages(name, FORMATS[name].packages)


def _inputs(clip: ClipModel, dataset: Dataset | None, seed: int) -> tuple[list[Any], list[Any]]:
    """Return what is checked on, and what is calibrated on; the data set's last where there is one."""
    check, calibration = [drawn_inputs(clip, N_CHECK, seed=seed)], [drawn_inputs(clip, N_CALIBRATION, seed=seed + 1)]
    if dataset is not None:
        check.append(dataset_inputs(clip, dataset, N_CHECK, seed=seed))
        calibration.append(dataset_inputs(clip, dataset, N_CALIBRATION, seed=seed, skip=N_CHECK))
    return check, calibration


def _description(run: str | Path, clip: ClipModel, format: str, precision: str) -> dict[str, Any]:
    size, context, network = clip.image_size, clip.config.model.context, clip.network
    library = FORMATS[format].checkpoint_of
    standardiser = f"{library} before the image tower" if library else "the image tower itself"
    features = {"name": OUTPUT, "dtype": "float32", "shape": ["batch", clip.dim], "norm": 1}
    images = {"name": INPUTS["image_tower"], "dtype": "uint8", "shape": ["batch", 3, size, size]}
    tokens = {"name": INPUTS["text_tower"], "dtype": "int64", "shape": ["batch", context]}
    towers = {"image_tower": {"input": images, "output": features}, "text_tower": {"input": tokens, "output": features}}
    return {
        "format_version": FORMAT_VERSION,
        "format": format,
        "precision": precision,
        "model": weights_of(run),
        **({"checkpoint_of": library} if library else towers),
        "preprocessing": {
            "channels": "RGB",
            "size": size,
            "resize": "the shorter side to size (bicubic, antialiased), then the square at the centre",
            "mean": [round(value, 6) for value in network.mean.flatten().tolist()],
            "std": [round(value, 6) for value in network.std.flatten().tolist()],
            "standardised_by": f"{standardiser}; the mean and std are of bytes, 0 to 255",
        },
        "tokenizer": {
            "file": "tokenizer.json",
            "sha256": clip.tokenizer.sha256,
            "context": context,
            "end": clip.tokenizer.end,
            "row": "start, the text's ids cut to context - 2, end, then 0",
        },
        "logit_scale": clip.logit_scale,
        "temperature": math.exp(-clip.logit_scale),
        "logit_bias": None if network.logit_bias is None else network.logit_bias.item(),
        "least_cosine": LEAST_COSINE[precision],
        "versions": {"coreclip": coreclip.__version__, **_versions(_VERSIONED)},
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _accuracy(run: str | Path, folder: Path, dataset: Dataset, device: str) -> dict[str, Any]:
    """Evaluate the run and its export on the same pairs."""
    found = {
        "run": evaluate(run, dataset, device=device),
        "export": evaluate(ExportedModel.load(folder, trusted=True), dataset),
    }
    numbers = {
        name: {key: value for key, value in result.items() if isinstance(value, float) and "chance" not in key}
        for name, result in found.items()
    }
    lost = {key: value - numbers["export"][key] for key, value in numbers["run"].items() if key in numbers["export"]}
    return {"dataset": dataset.fingerprint, **found, "lost": lost}


def _report(
    out: str | Path, description: dict[str, Any], parity: list[Parity], sizes: dict[str, int], seconds: float
) -> ExportReport:
    return ExportReport(
        out=str(out),
        format=description["format"],
        precision=description["precision"],
        files=sizes,
        least_cosine=min(row.least_cosine for row in parity),
        max_abs_difference=max(row.max_abs_difference for row in parity),
        parity=description["parity"],
        accuracy=description["accuracy"],
        seconds=seconds,
    )
