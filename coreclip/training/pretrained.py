"""Checkpoints of other tools wherever a RUN is read: ``hf:FOLDER`` and ``open_clip:FILE``.

``hf:`` names a folder of Hugging Face's ``CLIPModel``, or ``OWNER/NAME`` in its local cache; ``open_clip:`` a state dict, a folder of
open_clip's repositories, or OpenAI's own archive, with options behind a question mark: ``open_clip:FILE?activation=quick_gelu``. Nothing
is fetched, and no code of a checkpoint is run. Left out: all that is not a CLIP of two towers with a softmax.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Tokenizer
from coreclip.pipeline.clip_vocabulary import (
    cached_repository,
    find_clip_tokenizer,
    has_clip_files,
    read_clip_tokenizer,
)
from coreclip.training.attention import ACTIVATIONS
from coreclip.training.checkpoint_files import Foreign
from coreclip.training.hf import read_hf, weights_of_hf
from coreclip.training.model import Clip
from coreclip.training.open_clip import read_open_clip, weights_of_open_clip

KINDS = ("hf", "open_clip")
_OPTIONS = ("activation", "image_heads")


@dataclass(frozen=True)
class _Name:
    kind: str
    path: Path
    options: dict[str, Any]


def is_pretrained(run: str | Path) -> bool:
    """Whether a name stands for a checkpoint of another tool, and not for a run."""
    return str(run).partition(":")[0] in KINDS and ":" in str(run)


def pretrained_weights(name: str | Path) -> Path:
    """Return the file that holds a checkpoint's weights.

    Raises
    ------
    CoreclipError
        Where there is none.
    """
    parsed = _parse(name)
    return (weights_of_hf if parsed.kind == "hf" else weights_of_open_clip)(parsed.path)


def load_pretrained(name: str | Path) -> tuple[Clip, Tokenizer, Config]:
    """Return a checkpoint's model (in evaluation mode, on the CPU), its tokenizer, and a configuration with its shape.

    Parameters
    ----------
    name : str
        ``hf:FOLDER``, ``open_clip:FILE`` or ``open_clip:FILE?activation=quick_gelu&image_heads=16``.

    Raises
    ------
    CoreclipError
        For a checkpoint that is missing, damaged or of another architecture, or without a vocabulary that fits it.
    """
    found = _read(_parse(name))
    tokenizer = _tokenizer(name, found)
    state = dict(found.state)
    # Rows beyond the vocabulary stand for no token: some pad their tables.
    state["text.embedding.weight"] = state["text.embedding.weight"][: tokenizer.vocab_size]
    for key, values in (("mean", found.mean), ("std", found.std)):
        state[key] = torch.tensor([255 * value for value in values]).view(1, 3, 1, 1)
    with torch.device("meta"):
        model = Clip(
            found.config.model,
            image_size=found.config.data.image_size,
            vocab_size=tokenizer.vocab_size,
            end=tokenizer.end,
        )
    model.load_state_dict(state, assign=True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval(), tokenizer, found.config


def pretrained_config(name: str | Path) -> Config:
    """Return a configuration with a checkpoint's shape."""
    return _read(_parse(name)).config


def _parse(name: str | Path) -> _Name:
    kind, _, rest = str(name).partition(":")
    path, question, query = rest.rpartition("?")
    if not question or "=" not in query or kind == "hf":
        path, query = rest, ""
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, _, value = item.partition("=")
        if key not in _OPTIONS:
            raise CoreclipError(f"{name}: the option {key!r} is unknown; there are {', '.join(_OPTIONS)}")
        options[key] = value
    if options.get("activation", "gelu") not in ACTIVATIONS:
        raise CoreclipError(
            f"{name}: activation = {options['activation']!r} is unknown; it is one of {', '.join(ACTIVATIONS)}"
        )
    if "image_heads" in options:
        if not options["image_heads"].isdecimal() or not 1 <= int(options["image_heads"]) <= 1024:
            raise CoreclipError(f"{name}: image_heads = {options['image_heads']!r} is not allowed: 1 to 1024")
        options["image_heads"] = int(options["image_heads"])
    if not path:
        raise CoreclipError(f"{name!s} names no {'folder' if kind == 'hf' else 'file'}; write {kind}:PATH")
    found = Path(path)
    if kind == "hf" and not found.exists() and path.count("/") == 1:
        found = cached_repository(path) or found
    return _Name(kind, found, options)


def _read(name: _Name) -> Foreign:
    return read_hf(name.path) if name.kind == "hf" else read_open_clip(name.path, **name.options)


def _tokenizer(name: str | Path, found: Foreign) -> Tokenizer:
    has_own = has_clip_files(found.folder)
    tokenizer = read_clip_tokenizer(found.folder) if has_own else find_clip_tokenizer()
    whose = "its own" if has_own else "CLIP's: its folder has none"
    rows = len(found.state["text.embedding.weight"])
    if rows < tokenizer.vocab_size:
        raise CoreclipError(
            f"{name} knows {rows:,} tokens, the vocabulary ({whose}) has {tokenizer.vocab_size:,}; put the model's tokenizer.json beside it"
        )
    # Models that end at their largest id, as CLIP's do, end at the end token only where nothing comes after it.
    end = tokenizer.vocab_size - 1 if found.end is None else found.end
    if end != tokenizer.end:
        raise CoreclipError(
            f"{name} reads a caption at the token {end}, but the vocabulary ({whose}) ends captions with {tokenizer.end}; "
            "put the model's tokenizer.json beside it"
        )
    return tokenizer
