"""An exported model for use, with the calls of :class:`~coreclip.training.clip_model.ClipModel`: images and texts in, features out.

Only the towers come from the export's files and run on its runtime; resizing and the tokenizer are coreclip's.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from coreclip.config import load_config
from coreclip.errors import CoreclipError
from coreclip.files import read_json, sha256_file
from coreclip.pipeline import Tokenizer
from coreclip.training.clip_model import ClipModel
from coreclip.training.export_formats import FORMATS
from coreclip.training.export_job import TOWERS, Runner, check_packages

FORMAT_VERSION = 1
DESCRIPTION = "export.json"


class ExportedModel(ClipModel):
    """The two towers of an export with its tokenizer, on the export's own runtime; made by :meth:`load`.

    Attributes
    ----------
    description : dict
        The content of ``export.json``.

    Examples
    --------
    >>> model = ExportedModel.load("run-onnx")  # doctest: +SKIP
    >>> model.encode_image(images) @ model.encode_text(["a dog"]).T  # doctest: +SKIP
    """

    description: dict[str, Any]

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "cpu", *, threads: int | None = None, trusted: bool = False
    ) -> Self:
        """Read an export.

        Parameters
        ----------
        folder : path
            Made by ``export``.
        device : {"cpu", "auto"}
            Exports run on the processor here; their own runtimes can do more.
        threads : int, optional
            Of onnxruntime or OpenVINO; None for all cores. torch's formats run on torch's own threads.
        trusted : bool
            Whether you know who made it. torch's own formats are opened only then: they can hold code that runs when they are opened.

        Raises
        ------
        CoreclipError
            For a folder that is no export, a damaged file, a missing package, another device, or a format that is not trusted.
        """
        if device not in ("cpu", "auto"):
            raise CoreclipError(f"device {device!r} is not for exports: ExportedModel runs them on cpu; leave it out")
        folder = Path(folder)
        description = read_description(folder)
        if FORMATS[description["format"]].runs_code and not trusted:
            raise CoreclipError(
                f"{folder} is a {description['format']} export, whose files can hold code that runs when they are opened; give "
                "trusted=True where you know who made it, or take --format onnx"
            )
        for name, sha256 in description["sha256"].items():
            if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
                raise CoreclipError(
                    f"{folder / name} is missing or not what export wrote (its sha256 differs); export again"
                )
        towers = open_export(folder, description, threads=threads)
        model = cls(
            _Network(towers, description["logit_scale"]),  # type: ignore[arg-type]
            Tokenizer.load(folder / "tokenizer.json"),
            load_config(folder / "config.toml"),
        )
        model.description = description
        return model


class _Network:
    """The towers of an export in the place of a :class:`~coreclip.training.model.Clip`, as far as ``ClipModel`` uses that."""

    def __init__(self, towers: Runner, logit_scale: float) -> None:
        self.towers = towers
        self.logit_scale = torch.tensor(logit_scale, dtype=torch.float64)
        self.mean = torch.zeros(())  # whose device is asked for

    def encode_image(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.towers["image_tower"](np.ascontiguousarray(images.numpy())))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.from_numpy(self.towers["text_tower"](tokens.numpy()))


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of ``export.json``, refusing a folder without one, a newer version and an unknown format."""
    if not (folder / DESCRIPTION).is_file():
        raise CoreclipError(f"no export at {folder}: it has no {DESCRIPTION}; check the path, or make one with export")
    description = read_json(folder / DESCRIPTION, "description of an export")
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise CoreclipError(
            f"export {folder} has format version {version!r}; this coreclip reads {FORMAT_VERSION}; export again"
        )
    if description.get("format") not in FORMATS:
        raise CoreclipError(
            f"export {folder} has the format {description.get('format')!r}; known are {', '.join(FORMATS)}; export again"
        )
    _check_entries(folder, description)
    return description


def _check_entries(folder: Path, description: dict[str, Any]) -> None:
    """Refuse a description that lacks what is read of it, or names files outside of its folder."""
    files, hashes = description.get("files"), description.get("sha256")
    if (
        not isinstance(files, dict)
        or not isinstance(hashes, dict)
        or not {"tokenizer.json", "config.toml", *files.values()} <= set(hashes)
        or not isinstance(description.get("logit_scale"), float)
    ):
        raise CoreclipError(f"export {folder} is damaged: {DESCRIPTION} lacks an entry; export again")
    for name in hashes:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise CoreclipError(
                f"export {folder} names the file {name!r}, which is outside of it, and none of it is used; export again"
            )


def open_export(folder: Path, description: dict[str, Any], *, threads: int | None = None) -> Runner:
    """Return the towers of an export, ready to run; see :class:`~coreclip.training.export_job.Format`."""
    format_ = FORMATS[description["format"]]
    check_packages(description["format"], format_.packages)
    towers = format_.open(folder, description, threads)
    assert set(towers) == set(TOWERS)
    return towers
