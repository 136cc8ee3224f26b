"""CLIP's own vocabulary (Radford et al. 2021): 49,408 tokens, read from where other packages have put it.

Three forms are known: ``bpe_simple_vocab_16e6.txt.gz``, a list of merges that the packages ``open_clip`` and ``clip`` bring along;
Hugging Face's ``vocab.json`` with ``merges.txt``; Hugging Face's ``tokenizer.json``. All give the same
:class:`coreclip.pipeline.Tokenizer`, with the same hash. Left out: fetching it from a network.
"""

import contextlib
import gzip
import importlib.util
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.files import read_json
from coreclip.pipeline.tokenizer import CLIP_ENDS, LARGEST_VOCABULARY, Tokenizer, clip_rules

VARIABLE = "CORECLIP_CLIP_VOCABULARY"
CLIP_VOCAB_SIZE = 49_408
_LIST = "bpe_simple_vocab_16e6.txt.gz"
_MERGES_IN_LIST = CLIP_VOCAB_SIZE - 2 * 256 - len(CLIP_ENDS)  # the list goes on; the rest is not CLIP's
_MOST_BYTES = 1 << 26
_END_OF_WORD = "</w>"
# Where rules could differ: case, spaces, digits, contractions, signs, marks that combine.
_PROBES = (
    "A Photo of the dog's  2 BALLS,\n they're $9.50!",
    "cafe\u0301 \u00dcbung \u4f60\u597d 3\u00bd",
    "(hi)...--#tag  \U0001f6a2",
)

_PROBE_CONTEXT = 256


def find_clip_tokenizer() -> Tokenizer:
    """Return CLIP's vocabulary from the first place of this machine that has it.

    The variable ``CORECLIP_CLIP_VOCABULARY`` names a file or folder; else it comes from an installed ``open_clip`` or ``clip`` package, or
    from a CLIP model in the cache of Hugging Face.

    Raises
    ------
    CoreclipError
        Where the variable names no such file, or there is none at all, with the places that were looked at.
    """
    if named := os.environ.get(VARIABLE):
        return read_clip_tokenizer(named)
    for path in _places():
        with contextlib.suppress(CoreclipError):
            tokenizer = read_clip_tokenizer(path)
            if tokenizer.vocab_size == CLIP_VOCAB_SIZE:
                return tokenizer
    raise CoreclipError(
        f"CLIP's vocabulary is not on this machine: looked at ${VARIABLE} (not set), the packages open_clip and clip, and "
        f"{_cache()}; pip install open_clip_torch, or name {_LIST} or a Hugging Face folder by clip:PATH"
    )


def _places() -> Iterator[Path]:
    for package in ("open_clip", "clip"):
        found = importlib.util.find_spec(package)  # looks the package up without running it
        if found is not None and found.origin is not None:
            yield Path(found.origin).parent / _LIST
    yield from sorted(path for path in _cache().glob("models--*/snapshots/*") if "clip" in path.parts[-3].lower())


def _cache() -> Path:
    """The folder of Hugging Face's cache, as its own package finds it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    general = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME", Path(general) / "huggingface")) / "hub"


def cached_repository(name: str) -> Path | None:
    """Return the folder of ``OWNER/NAME`` in the cache of Hugging Face; None where it is not there.

    Its ``main`` where the cache knows that, else the last of its snapshots.
    """
    folder = _cache() / f"models--{name.replace('/', '--')}"
    snapshots = sorted(path for path in (folder / "snapshots").glob("*") if path.is_dir())
    with contextlib.suppress(OSError):
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        return next((path for path in snapshots if path.name == main), None)
    return snapshots[-1] if snapshots else None


def has_clip_files(folder: Path) -> bool:
    """Whether a folder brings a vocabulary along."""
    return (folder / "tokenizer.json").is_file() or (folder / "merges.txt").is_file() or (folder / _LIST).is_file()


def read_clip_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read a vocabulary in CLIP's form, of any size.

    Parameters
    ----------
    path : path
        A list of merges (``.gz`` or plain), a ``tokenizer.json``, or a folder with one of them or with ``vocab.json`` and ``merges.txt``.

    Raises
    ------
    CoreclipError
        For a file that is missing or damaged, or a vocabulary of another form or with other rules.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _from_tokenizer_json(path / "tokenizer.json")
        if (path / "merges.txt").is_file():
            vocabulary = read_json(path / "vocab.json", "vocabulary")
            return _new_tokenizer(path, vocabulary, _merges(path / "merges.txt"))
        if (path / _LIST).is_file():
            return _from_list(path / _LIST)
        raise CoreclipError(
            f"no CLIP vocabulary in {path}: it has no tokenizer.json, vocab.json with merges.txt, or {_LIST}; check the path"
        )
    return _from_tokenizer_json(path) if path.suffix == ".json" else _from_list(path)


def _from_list(path: Path) -> Tokenizer:
    merges = _merges(path)[:_MERGES_IN_LIST]
    letters = list(_letters())
    tokens = letters + [letter + _END_OF_WORD for letter in letters] + ["".join(pair) for pair in merges]
    tokens += CLIP_ENDS
    return _new_tokenizer(path, {token: number for number, token in enumerate(tokens)}, merges)


def _letters() -> Iterator[str]:
    """The characters that stand for the 256 bytes, in the order of their ids: first the bytes that can be printed as they are."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))


def _merges(path: Path) -> list[tuple[str, str]]:
    """Read pairs of pieces, one pair a line; the first line is a title."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(_MOST_BYTES)
        lines = content.decode("utf-8").split("\n")
    except OSError as error:
        raise CoreclipError(
            f"CLIP's vocabulary {path} can't be read: {error.strerror or error}; check the path"
        ) from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CoreclipError(f"CLIP's vocabulary {path} is damaged ({error}); copy it anew") from None
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]
    wrong = next((number for number, pair in enumerate(pairs, start=2) if len(pair) != 2), None)
    if wrong is not None or not pairs:
        raise CoreclipError(
            f"CLIP's vocabulary {path} is no list of merges (line {wrong or 2}): each line has two pieces; check the path"
        )
    return pairs  # type: ignore[return-value]  # pairs, as was just checked


def _from_tokenizer_json(path: Path) -> Tokenizer:
    stored = read_json(path, "tokenizer")
    try:
        model = stored["model"]
        vocabulary = dict(model["vocab"])
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        added = {token["content"]: token["id"] for token in stored.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CoreclipError(f"tokenizer {path} is not a byte-pair tokenizer.json; name one of a CLIP") from None
    tokenizer = _new_tokenizer(path, vocabulary | added, merges)
    try:
        theirs = Tokenizer(json.dumps(stored)).encode(list(_PROBES), _PROBE_CONTEXT)
    except Exception as error:  # the library raises a bare Exception
        raise CoreclipError(f"tokenizer {path} is damaged ({error}); copy it anew") from None
    ours = tokenizer.encode(list(_PROBES), _PROBE_CONTEXT)
    for probe, one, other in zip(_PROBES, theirs.tolist(), ours.tolist(), strict=True):
        if one != other:
            raise CoreclipError(
                f"tokenizer {path} has other rules than CLIP's: it reads {probe!r} otherwise; only CLIP's own are supported"
            )
    return tokenizer


def _new_tokenizer(path: Path, vocabulary: Any, merges: Any) -> Tokenizer:
    """Return the tokenizer of a vocabulary {token: id} with merges in their order."""
    _check_vocabulary(path, vocabulary)
    from tokenizers import AddedToken, decoders, models, processors
    from tokenizers import Tokenizer as Backend

    start, end = CLIP_ENDS
    try:
        model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=end,
            continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD,
        )
    except Exception as error:  # the library raises a bare Exception
        raise CoreclipError(f"CLIP's vocabulary {path} does not fit its merges ({error}); copy it anew") from None
    backend = Backend(model)
    backend.normalizer, backend.pre_tokenizer = clip_rules()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CLIP_ENDS])
    backend.decoder = decoders.ByteLevel()
    ends = [(token, vocabulary[token]) for token in CLIP_ENDS]
    backend.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    return Tokenizer(backend.to_str())


def _check_vocabulary(path: Path, vocabulary: Any) -> None:
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise CoreclipError(f"CLIP's vocabulary {path} is no table of tokens and ids; check the path")
    lacking = [
        token
        for token in (*CLIP_ENDS, *_letters(), *(f"{letter}{_END_OF_WORD}" for letter in _letters()))
        if token not in vocabulary
    ]
    if lacking:
        raise CoreclipError(
            f"the vocabulary {path} is not CLIP's: it lacks {lacking[0]!r} (and {len(lacking) - 1} more of 514 that each has); check the path"
        )
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or len(vocabulary) > LARGEST_VOCABULARY:
        raise CoreclipError(
            f"the vocabulary {path} has {len(vocabulary):,} tokens whose ids are not 0, 1, 2, ... below {LARGEST_VOCABULARY:,}; use CLIP's own"
        )
