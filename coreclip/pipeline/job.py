"""What a conversion is asked to do: its arguments, checked, before anything is read or written."""

import os
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import coreclip
from coreclip.errors import CoreclipError
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.preparing import ImageOptions
from coreclip.pipeline.records import Source
from coreclip.pipeline.sources import class_names_of, find_sources
from coreclip.pipeline.tokenizer import Tokenizer, check_vocab_size, open_tokenizer

_SMALLEST_SHARD = 1 << 16
_CONTEXT, _CLIP_CONTEXT = 32, 77

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Job:
    """The checked arguments of :func:`coreclip.pipeline.convert`, and their description in ``dataset.json``: ``request``."""

    target: Path
    sources: list[Source]
    tokenizer: Tokenizer | None
    class_names: list[str] | None
    template: str
    vocab_size: int
    context: int
    workers: int
    shard_bytes: int
    images: ImageOptions
    request: dict[str, Any]


def check_job(
    sources: Sequence[PathLike],
    dataset: PathLike,
    *,
    captions: PathLike | None = None,
    class_names: Sequence[str] | None = None,
    template: str = "{}",
    tokenizer: PathLike | None = None,
    vocab_size: int = 4096,
    context: int | None = None,
    max_side: int | None = None,
    raw: bool = False,
    check: str = "decode",
    workers: int | None = None,
    shard_bytes: int = 256 << 20,
    max_pixels: int = 179_000_000,
    quality: int = 95,
) -> Job:
    """Check the arguments of :func:`coreclip.pipeline.convert`, which describes them, and find the sources.

    Raises
    ------
    CoreclipError
        For sources or options that are not allowed.
    """
    images = ImageOptions(max_side=max_side, check=check, max_pixels=max_pixels, quality=quality, raw=raw)
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    _check_ranges(_CONTEXT if context is None else context, workers, shard_bytes, images)
    check_vocab_size(vocab_size)
    _check_classes(class_names, template)
    found = find_sources(sources, captions, class_names)
    chosen = None if tokenizer is None else open_tokenizer(tokenizer)
    if context is None:
        context = _usual_context(tokenizer, chosen)
    names = class_names_of(found) if class_names is None else list(class_names)
    options = {
        **asdict(images),
        "class_names": names,
        "template": template,
        "tokenizer": None if chosen is None else chosen.sha256,
        "vocab_size": vocab_size if chosen is None else None,
        "context": context,
        "shard_bytes": shard_bytes,
    }
    identities = [identity for source in found for identity in source.identity()]
    return Job(
        target=Path(os.path.abspath(dataset)),
        sources=found,
        tokenizer=chosen,
        class_names=names,
        template=template,
        vocab_size=vocab_size,
        context=context,
        workers=workers,
        shard_bytes=shard_bytes,
        images=images,
        request={"sources": identities, "options": options, "version": coreclip.__version__},
    )


def _usual_context(name: PathLike | None, tokenizer: Tokenizer | None) -> int:
    """Return the context of the data set whose tokenizer is taken, else the tokenizer's usual one."""
    if name is not None and (Path(name) / "dataset.json").is_file():
        return Dataset(name).context
    return _CLIP_CONTEXT if tokenizer is not None and tokenizer.is_clip else _CONTEXT


def _check_ranges(context: int, workers: int, shard_bytes: int, images: ImageOptions) -> None:
    rules = (
        (4 <= context <= 1024, "context", context, "4 to 1024 tokens"),
        (1 <= workers <= 256, "workers", workers, "1 to 256 processes"),
        (_SMALLEST_SHARD <= shard_bytes <= 1 << 40, "shard_bytes", shard_bytes, f"{_SMALLEST_SHARD} to 2**40"),
        (images.max_side is None or images.max_side >= 1, "max_side", images.max_side, "at least 1 pixel"),
        (images.check in ("decode", "header"), "check", images.check, "decode or header"),
        (images.max_pixels >= 1, "max_pixels", images.max_pixels, "at least 1"),
        (1 <= images.quality <= 95, "quality", images.quality, "1 to 95"),
    )
    for holds, name, value, rule in rules:
        if not holds:
            raise CoreclipError(f"{name} = {value} is not allowed: {rule}")


def _check_classes(class_names: Sequence[str] | None, template: str) -> None:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        fields = []
    if fields not in ([""], ["0"]):
        raise CoreclipError(f"template = {template!r} is not allowed: it has {{}} once, where the class name goes")
    if class_names is None:
        return
    names = [class_names] if isinstance(class_names, str) else list(class_names)
    if isinstance(class_names, str) or not names or len(set(names)) < len(names) or not all(map(str.strip, names)):
        raise CoreclipError(
            f"--classes {','.join(names)} is not allowed: a list of different names, none of them empty, in the order "
            f"of the class numbers"
        )
