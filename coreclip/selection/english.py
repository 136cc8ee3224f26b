"""Is a caption English? A fastText model's answer where the user has one, else a heuristic of our own.

The heuristic is called "built-in" wherever it decides, as it is no replacement for a trained model. It is conservative: a caption is
turned away only on evidence of another language, so that names, numbers and fragments stay. In this order:

1. fewer than two letters: not English;
2. less than nine tenths of the letters are of the Latin alphabet: not English;
3. the common little words speak for one other language (six of western Europe, Danish, Norwegian and Swedish as one, Polish,
   Turkish, Indonesian) more than for English by one word, where words that English or its names share with others count half:
   not English; they speak for English, by more than for any other or by a word of its own: English;
4. undecided by words: more than a tenth of the letters carry marks that English has not: not English; else not English where the
   letters speak for another language with odds of more than 1,000 to 1 (frequencies of letters as tabulated by Wikipedia,
   "Letter frequency").

Left out: other scripts than to refuse them; English in a mixed caption is found only by the count of words.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from coreclip.errors import CoreclipError

LANGUAGES = ("english", "any")

_LATIN_SHARE = 0.9
_MARKED_SHARE = 0.1
_LOG_ODDS = math.log(1000)
_PIECE = 10_000  # captions that the model is given at a time

_ENGLISH = (
    "the of and to in a is for on with by at from this that an are as be it its or your you we our his her their my i how what "
    "when where why who which will can all new not have has was were more about into out over under up after before between "
    "one two three first best free home day photo image picture view woman man people girl boy black white red blue green "
    "old young near inside background front stock show showing sitting standing wearing holding"
)
_OTHERS = {
    "german": "der die das und mit für auf von zu im in an am den dem des ein eine einer eines ist nicht auch aus bei nach über wie oder zum zur",
    "french": "le la les des du de et un une est pour dans sur avec au aux par pas que qui plus ce cette sont ses vous nous en a on",
    "spanish": "el la los las de del y un una en para con por que es su se al como más sobre entre desde hasta este esta no a",
    "portuguese": "o os a as de do da dos das e um uma em no na nos nas para com por que é se ao à como mais sobre seu sua",
    "italian": "il lo la gli i le di del della dei delle e un una in a per con che è si al alla come più sul sulla nel nella da",
    "dutch": "de het een en van in is voor met op te dat zijn niet aan door bij uit ook naar als deze wordt",
    "scandinavian": "och att det som på för i med av är en ett till den inte og er til af ikke fra ved at",
    "polish": "i w na z do się nie jest dla o od po przez jak oraz za ze to przy",
    "turkish": "ve bir bu için ile de da çok olarak en gibi daha kadar",
    "indonesian": "dan di yang untuk dengan dari ini itu pada ke tidak adalah dalam oleh akan",
}
# English words that are words of others too, and others' words that are in English names (Los Angeles, Leonardo da Vinci).
_SHARED = (
    "a i in is an as at on was her man old red no to do be all more for has his one stock home photo over show die den dem des der "
    "von van am de la le les el los las del di da dos san il en el al du et met men un una y e o on se per com z w ed"
)


def _weigh(words: str) -> dict[str, int]:
    shared = set(_SHARED.split())
    return {word: 1 if word in shared else 2 for word in words.split()}


_ENGLISH_WEIGHTS = _weigh(_ENGLISH)
_OTHER_WEIGHTS = {name: _weigh(words) for name, words in _OTHERS.items()}

# Percent of each letter a-z in running text.
_FREQUENCIES = {
    "english": "8.167 1.492 2.782 4.253 12.702 2.228 2.015 6.094 6.966 0.153 0.772 4.025 2.406 6.749 7.507 1.929 0.095 5.987 6.327 9.056 2.758 0.978 2.360 0.150 1.974 0.074",
    "french": "7.636 0.901 3.260 3.669 14.715 1.066 0.866 0.737 7.529 0.613 0.074 5.456 2.968 7.095 5.796 2.521 1.362 6.693 7.948 7.244 6.311 1.838 0.049 0.427 0.128 0.326",
    "german": "6.516 1.886 2.732 5.076 16.396 1.656 3.009 4.577 6.550 0.268 1.417 3.437 2.534 9.776 2.594 0.670 0.018 7.003 7.270 6.154 4.166 0.846 1.921 0.034 0.039 1.134",
    "spanish": "11.525 2.215 4.019 5.010 12.181 0.692 1.768 0.703 6.247 0.493 0.011 4.967 3.157 6.712 8.683 2.510 0.877 6.871 7.977 4.632 2.927 1.138 0.017 0.215 1.008 0.467",
    "portuguese": "14.634 1.043 3.882 4.992 12.570 1.023 1.303 0.781 6.186 0.397 0.015 2.779 4.738 4.446 9.735 2.523 1.204 6.530 6.805 4.336 3.639 1.575 0.037 0.453 0.006 0.470",
    "italian": "11.745 0.927 4.501 3.736 11.792 1.153 1.644 0.636 10.143 0.011 0.009 6.510 2.512 6.883 9.832 3.056 0.505 6.367 4.981 5.623 3.011 2.097 0.033 0.003 0.020 1.181",
}
_FLOOR = 0.1  # percent; names bring rare letters into every language


def language_test(language: str, model: str | None) -> Callable[[Sequence[str]], np.ndarray]:
    """Return the test of captions.

    Parameters
    ----------
    language : {"english", "any"}
        ``any`` lets every caption pass.
    model : str or None
        Path of a fastText language identification model (``lid.176.bin``); None for the built-in heuristic.

    Returns
    -------
    callable
        Captions in, bool (n,) out.

    Raises
    ------
    CoreclipError
        For an unknown language, a model beside ``any``, a missing ``fasttext`` and a model that can't be read.
    """
    if language not in LANGUAGES:
        raise CoreclipError(f"unknown language {language!r}; known: {', '.join(LANGUAGES)}")
    if language == "any":
        if model is not None:
            raise CoreclipError("language='any' asks no model; leave language_model out")
        return lambda texts: np.ones(len(texts), bool)
    if model is None:
        return lambda texts: np.fromiter((looks_english(text) for text in texts), bool, len(texts))
    return functools.partial(_ask, _load(model))


def looks_english(text: str) -> bool:
    """Return what the built-in heuristic says of a caption (see the module)."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    if len(letters) < 2:
        return False
    plain = [letter for letter in letters if "a" <= letter <= "z"]
    n_latin = len(plain) + sum(_is_latin(letter) for letter in letters if not "a" <= letter <= "z")
    if n_latin < _LATIN_SHARE * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    for_english = sum(_ENGLISH_WEIGHTS.get(word, 0) for word in words)
    for_other = max(sum(weights.get(word, 0) for word in words) for weights in _OTHER_WEIGHTS.values())
    if for_other >= for_english + 2:
        return False
    if for_english > for_other or any(_ENGLISH_WEIGHTS.get(word) == 2 for word in words):
        return True
    if len(letters) - len(plain) > _MARKED_SHARE * len(letters):
        return False
    return _log_odds_against_english(plain) <= _LOG_ODDS


def _is_latin(letter: str) -> bool:
    # Latin-1, Latin Extended-A and -B, Latin Extended Additional.
    return "\u00c0" <= letter <= "\u024f" or "\u1e00" <= letter <= "\u1eff"


@functools.cache
def _log_ratios() -> np.ndarray:
    """Return log(p(letter | language) / p(letter | English)), float64 (languages, 26)."""
    table = np.array([[float(number) for number in row.split()] for row in _FREQUENCIES.values()])
    table = np.log(np.maximum(table, _FLOOR))
    return table[1:] - table[0]


def _log_odds_against_english(letters: list[str]) -> float:
    counts = np.bincount([ord(letter) - ord("a") for letter in letters], minlength=26)
    return float((_log_ratios() @ counts).max())


def _load(path: str) -> object:
    try:
        import fasttext
    except ImportError:
        raise CoreclipError(
            "language_model needs the package fasttext, which is not installed; install it, "
            "or leave language_model out for the built-in heuristic"
        ) from None
    if not Path(path).is_file():
        raise CoreclipError(f"no language model at {path}: the file does not exist; fetch fastText's lid.176.bin")
    try:
        return fasttext.load_model(path)
    except ValueError as error:
        raise CoreclipError(f"{path} is no fastText model ({error}); fetch fastText's lid.176.bin") from None


def _ask(model: object, texts: Sequence[str]) -> np.ndarray:
    answers: list[bool] = []
    for start in range(0, len(texts), _PIECE):
        # A list at a time: fastText's answer to a single text can't be made with numpy 2.
        lines = [text.replace("\n", " ") for text in texts[start : start + _PIECE]]
        labels, _ = model.predict(lines, k=1)  # type: ignore[attr-defined]
        answers += [len(found) > 0 and found[0] == "__label__en" for found in labels]
    return np.array(answers, bool)
