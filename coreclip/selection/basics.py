"""DataComp's basic filter (Gadre et al. 2023, DataComp, arXiv 2304.14108): captions and image sizes that can be worth anything.

A pair stays when its caption is English, of more than two words and more than five characters, and its image's shorter side is at
least 200 pixels and its longer side at most 3 times as long. DataComp asks it of the original image's sizes, and a fastText model for the
language; see :mod:`coreclip.selection.english` for what decides where there is none.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.selection.checks import check_k
from coreclip.selection.english import language_test
from coreclip.selection.subset import NoPairChosen, Subset

WORDS, CHARACTERS = 2, 5  # a caption has more than these
SIDE = 200  # pixels, at least
ASPECT = 3.0  # at most

RULES = ("english", "words", "characters", "side", "aspect")


def datacomp_basic(
    metadata: Mapping[str, np.ndarray],
    k: int | None = None,
    *,
    language: str = "english",
    language_model: str | None = None,
) -> Subset:
    """Choose the pairs that pass DataComp's basic filter.

    Parameters
    ----------
    metadata : mapping of str to array (n,)
        ``caption`` (text), ``width`` and ``height`` (pixels). What is missing (None, NaN) does not pass.
    k : int or None
        Keep at most the first k that pass, in the order of the index; None for all that pass.
    language : {"english", "any"}
        ``any`` lets captions of every language pass.
    language_model : str or None
        Path of a fastText language identification model, as DataComp uses it (``lid.176.bin``), where ``fasttext`` is installed;
        None for the built-in heuristic of :mod:`coreclip.selection.english`, which decides some captions otherwise.

    Returns
    -------
    Subset
        Ascending indices; gains are 0 and weights 1. ``parameters["failed"]`` counts the pairs that fail each rule.

    Raises
    ------
    CoreclipError
        For a missing column, no pair that passes, a k that is not 1 to n, and a language test that is not there.
    """
    start = time.perf_counter()
    captions, width, height = (_column(metadata, name) for name in ("caption", "width", "height"))
    n = len(captions)
    if k is not None:
        check_k(k, n)
    passed = basic_rules(captions, width, height, language=language, language_model=language_model)
    failed = {rule: int(n - passing.sum()) for rule, passing in passed.items()}
    indices = np.flatnonzero(np.logical_and.reduce(list(passed.values())))[:k]
    if not len(indices):
        reasons = ", ".join(f"{count} fail {rule}" for rule, count in failed.items() if count)
        raise NoPairChosen(
            f"datacomp-basic: none of the {n} pairs passes ({reasons}); check the columns or the language"
        )
    return Subset(
        indices=indices,
        weights=np.ones(len(indices)),
        gains=np.zeros(len(indices)),
        method="datacomp-basic",
        parameters={"language": language, "language_model": language_model or _asked(language), "failed": failed},
        n=n,
        seconds=time.perf_counter() - start,
    )


def basic_rules(
    captions: Sequence[Any] | np.ndarray,
    width: np.ndarray,
    height: np.ndarray,
    *,
    language: str = "english",
    language_model: str | None = None,
) -> dict[str, np.ndarray]:
    """Return for each rule of the basic filter which pairs keep it.

    Parameters
    ----------
    captions : sequence of str or None, of length n
    width, height : number (n,)
        NaN or None where unknown.
    language, language_model
        See :func:`datacomp_basic`.

    Returns
    -------
    dict of str to bool (n,)
        ``english``, ``words``, ``characters``, ``side``, ``aspect``.

    Raises
    ------
    CoreclipError
        For a language test that is not there.
    """
    is_english = language_test(language, language_model)
    texts = [caption if isinstance(caption, str) else "" for caption in captions]
    sides = np.sort(np.column_stack([_numbers(width), _numbers(height)]), axis=1)  # NaN comes last
    shorter, longer = sides[:, 0], sides[:, 1]
    words = np.fromiter((len(text.split()) for text in texts), np.int64, len(texts)) > WORDS
    characters = np.fromiter(map(len, texts), np.int64, len(texts)) > CHARACTERS
    known = np.isfinite(longer)
    with np.errstate(divide="ignore", invalid="ignore"):
        in_shape = known & (longer / shorter <= ASPECT)
    return {
        "english": is_english(texts) & np.fromiter(map(bool, texts), bool, len(texts)),
        "words": words,
        "characters": characters,
        "side": known & (shorter >= SIDE),
        "aspect": in_shape,
    }


def _column(metadata: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in metadata:
        known = ", ".join(sorted(metadata)) or "none at all"
        raise CoreclipError(
            f"datacomp-basic needs the metadata {name!r}, and there is {known}; give a data set that has it"
        )
    return np.asarray(metadata[name])


def _numbers(column: np.ndarray) -> np.ndarray:
    column = np.asarray(column)
    if column.dtype.kind in "iuf":
        return column.astype(np.float64)
    return np.array([np.nan if value is None else value for value in column], np.float64)


def _asked(language: str) -> str | None:
    return "built-in heuristic" if language == "english" else None
