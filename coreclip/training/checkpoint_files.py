"""What the readers of other formats share: a checkpoint as it was found, tensors from files of strangers, checked values of JSON."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from coreclip.config import Config, config_from_table
from coreclip.errors import CoreclipError
from coreclip.files import read_json
from coreclip.training.model import Clip
from coreclip.training.torchscript_tensors import UNREADABLE, is_torchscript, read_torchscript

# Of the images that OpenAI's CLIPs were trained on; nearly all others kept them.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another format.

    Attributes
    ----------
    config : Config
        Its model and image size.
    state : dict of str to float32 tensor
        All but the pixels' statistics, under our names.
    mean, std : (float, float, float)
        Of the pixels' channels, for values 0 to 1.
    folder : path
        Where its vocabulary may lie.
    end : int or None
        Id that its configuration says captions end with; None for the vocabulary's own.
    """

    config: Config
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: Path
    end: int | None = None


@functools.cache
def say_once(text: str) -> None:
    """Print a remark on stderr, the first time only."""
    print(f"coreclip: {text}", file=sys.stderr)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file, a state dict that torch saved, or a TorchScript archive. No code is run.

    Raises
    ------
    CoreclipError
        For a file that is missing, damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise CoreclipError(f"no checkpoint at {path}: there is no such file; check the path")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CoreclipError(f"{path} is damaged ({error}); copy the file anew") from None
    if is_torchscript(path):
        return read_torchscript(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or ["it ends early"])[0][:120]
        raise CoreclipError(
            f"{path} is damaged or holds more than tensors ({reason}); only state dicts are read; save model.state_dict() anew"
        ) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]  # as training scripts save it, beside the optimiser's state
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CoreclipError(
            f"{path} holds a {type(loaded).__name__} that is no state dict; save model.state_dict() anew"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise CoreclipError(f"{what} {path} is no JSON object; check the path")
    return value


def make_config(where: str, image_size: Any, model: Mapping[str, Any]) -> Config:
    """Return the configuration of a checkpoint, every value checked."""
    try:
        return config_from_table({"data": {"image_size": image_size}, "model": dict(model)})
    except CoreclipError as error:
        raise CoreclipError(f"{where} has a shape that is not supported: {str(error).partition('; ')[0]}") from None


def empty_model(where: str, config: Config, vocab_size: int) -> Clip:
    """Return a model without memory, whose tensors have shapes only."""
    if not isinstance(vocab_size, int) or not 1 <= vocab_size <= 1 << 24:
        raise CoreclipError(f"{where} has a vocabulary of {vocab_size!r} tokens; it must be a number up to 16,777,216")
    with torch.device("meta"):
        return Clip(config.model, image_size=config.data.image_size, vocab_size=vocab_size)


def three_numbers(where: str, name: str, value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return a mean or standard deviation per channel."""
    if value is None:
        return default
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and -1e3 < v < 1e3 for v in value)
    if not numbers or len(value) != 3 or (name.endswith("std") and min(value) <= 0):
        raise CoreclipError(f"{where}: {name} = {value!r} is not allowed: three numbers, a standard deviation above 0")
    return tuple(map(float, value))
