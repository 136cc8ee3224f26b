"""A byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) of lower-cased captions, on ``tokenizers``.

One that is trained here has padding, start, end and unknown as ids 0 to 3. CLIP's (Radford et al. 2021), which
:mod:`coreclip.pipeline.clip_vocabulary` makes, has its start and end as the two last ids, and pads with 0, which is a word's piece too.
Left out: the mending of broken encodings (ftfy), which CLIP's own code does first.
"""

import hashlib
import html
import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coreclip.errors import CoreclipError
from coreclip.files import write_text

if TYPE_CHECKING:
    import tokenizers

PADDING, START, END, UNKNOWN = range(4)
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
LARGEST_VOCABULARY = 1 << 16  # ids are stored as uint16
_WORDS_KEPT = 1 << 17
_LONGEST_LOOKED_UP = 4096  # characters of a text


class Tokenizer:
    """Turns captions into ids; made by :meth:`train` or :meth:`load`.

    Parameters
    ----------
    serialised : str
        The JSON of a ``tokenizers.Tokenizer`` whose ids 0 to 3 are the special tokens, or of one with CLIP's start and end.
    """

    def __init__(self, serialised: str) -> None:
        self.serialised = serialised
        self._known_words: dict[str, list[int]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4096) -> "Tokenizer":
        """Train on ``texts``; the same texts in the same order give the same tokenizer.

        Parameters
        ----------
        texts : iterable of str
        vocab_size : int
            At most so many ids, 260 to 65536; fewer where the texts hold no more pairs that occur twice.
        """
        check_vocab_size(vocab_size)
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, pre_tokenizers, processors, trainers

        backend = Backend(models.BPE(unk_token=SPECIAL_TOKENS[UNKNOWN]))
        backend.normalizer, backend.pre_tokenizer = _new_rules()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL_TOKENS[START]} $A {SPECIAL_TOKENS[END]}",
            special_tokens=[(SPECIAL_TOKENS[START], START), (SPECIAL_TOKENS[END], END)],
        )
        return cls(backend.to_str(pretty=True))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read a ``tokenizer.json``, refusing one with other special tokens.

        Raises
        ------
        CoreclipError
            For a file that is missing, no tokenizer, or not one of ours.
        """
        try:
            tokenizer = cls(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CoreclipError(f"tokenizer {path} can't be read: {error.strerror}; check the path") from None
        except UnicodeDecodeError:
            raise CoreclipError(f"tokenizer {path} is not a tokenizer.json (it is not UTF-8); check the path") from None
        try:
            backend = tokenizer._backend
        except Exception as error:  # the library raises a bare Exception
            raise CoreclipError(f"tokenizer {path} is not a tokenizer.json ({error}); check the path") from None
        found = [backend.token_to_id(token) for token in SPECIAL_TOKENS]
        if found != list(range(len(SPECIAL_TOKENS))) and not tokenizer.is_clip:
            raise CoreclipError(
                f"tokenizer {path} has ids {found} for {', '.join(SPECIAL_TOKENS)}; they must be 0, 1, 2, 3; "
                f"use one that coreclip trained, or CLIP's"
            )
        check_vocab_size(tokenizer.vocab_size)
        return tokenizer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ``tokenizer.json``; its bytes have the hash :attr:`sha256`."""
        write_text(path, self.serialised)

    def encode(self, texts: list[str], context: int) -> np.ndarray:
        """Return the ids of ``texts`` as int64 (len(texts), context).

        Each row is start, the text's ids, end, padding; a text that is too long is cut before its end.
        """
        tokens = np.zeros((len(texts), context), dtype=np.int64)
        for row, text_ids in zip(tokens, self._ids(texts), strict=True):
            ids = [self.start, *text_ids[: context - 2], self.end]
            row[: len(ids)] = ids
        return tokens

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text. Words are looked up: they come again and again, and no token spans two of them."""
        if self.is_clip:  # as its own code does, twice: captions of the web are often escaped twice
            texts = [html.unescape(html.unescape(text)) if "&" in text else text for text in texts]
        known = self._known_words
        words_of = [self._words(text) for text in texts]
        words = {word for each in words_of for word in each or ()}
        if unknown := [word for word in words if word not in known]:
            if len(known) + len(unknown) > _WORDS_KEPT:
                self._known_words = known = {}  # another thread may still use the old ones
                unknown = list(words)
            encodings = self._backend_of_words.encode_batch(unknown, add_special_tokens=False)
            known.update((word, encoding.ids) for word, encoding in zip(unknown, encodings, strict=True))
        ids = [[i for word in each or () for i in known[word]] for each in words_of]
        whole = [number for number, each in enumerate(words_of) if each is None]
        encodings = self._backend.encode_batch([texts[number] for number in whole], add_special_tokens=False)
        for number, encoding in zip(whole, encodings, strict=True):
            ids[number] = encoding.ids
        return ids

    def _words(self, text: str) -> list[str] | None:
        """Return a text's normalised words; None where it must be encoded whole."""
        if not self._splits_at_spaces or "<" in text or len(text) > _LONGEST_LOOKED_UP:  # "<": special tokens
            return None
        plain = text.isascii() and text.isprintable()  # then this is what the normaliser does
        normalised = text.lower() if plain else self._backend.normalizer.normalize_str(text)
        return [word for word in normalised.split(" ") if word]

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""
        return int(self._backend.get_vocab_size())

    @property
    def is_clip(self) -> bool:
        """Whether captions start and end with CLIP's tokens."""
        return None not in self._clip_ends

    @property
    def start(self) -> int:
        """Id of the start token, the first one of each caption."""
        start = self._clip_ends[0]
        return START if start is None else start

    @property
    def end(self) -> int:
        """Id of the end token, the last one of each caption."""
        end = self._clip_ends[1]
        return END if end is None else end

    @cached_property
    def _clip_ends(self) -> tuple[int | None, int | None]:
        start, end = map(self._backend.token_to_id, CLIP_ENDS)
        return (None, None) if start is None or end is None else (start, end)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the JSON's bytes."""
        return hashlib.sha256(self.serialised.encode()).hexdigest()

    @cached_property
    def _backend(self) -> "tokenizers.Tokenizer":
        return _to_backend(self.serialised)

    @cached_property
    def _backend_of_words(self) -> "tokenizers.Tokenizer":
        """The backend for words that are normalised already."""
        return _to_backend(json.dumps({**json.loads(self.serialised), "normalizer": None}))

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether texts are normalised and split by rules of ours or CLIP's; a file from elsewhere may say otherwise."""
        stored = json.loads(self.serialised)
        rules = [[json.loads(rule.__getstate__()) for rule in pair] for pair in (_new_rules(), clip_rules())]
        return [stored["normalizer"], stored["pre_tokenizer"]] in rules

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str]]:
        return Tokenizer, (self.serialised,)


def _new_rules() -> tuple["tokenizers.normalizers.Normalizer", "tokenizers.pre_tokenizers.PreTokenizer"]:
    """Return how a text is normalised, and then split into what is encoded by itself."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    normaliser = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), spaces, normalizers.Strip()])
    return normaliser, pre_tokenizers.ByteLevel(add_prefix_space=True)


def clip_rules() -> tuple["tokenizers.normalizers.Normalizer", "tokenizers.pre_tokenizers.PreTokenizer"]:
    """Return the same for CLIP's vocabulary: words, contractions, single digits and runs of signs are encoded by themselves."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    normaliser = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    pieces = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(pieces, behavior="removed", invert=True)  # no piece spans a space
    return normaliser, pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def open_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer that a user names.

    Parameters
    ----------
    name : path or str
        A ``tokenizer.json``; a data set or a run, whose tokenizer is taken; ``"clip"``, CLIP's vocabulary from where it lies on this
        machine; ``"clip:PATH"``, from this file or folder.

    Raises
    ------
    CoreclipError
        For a name that stands for none of them.
    """
    from coreclip.pipeline.clip_vocabulary import find_clip_tokenizer, read_clip_tokenizer

    text = os.fspath(name)
    if text == "clip":
        return find_clip_tokenizer()
    if text.startswith("clip:"):
        return read_clip_tokenizer(text.removeprefix("clip:"))
    path = Path(name)
    return Tokenizer.load(path / "tokenizer.json" if path.is_dir() else path)


def _to_backend(serialised: str) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(serialised)
    backend.no_truncation()
    backend.no_padding()
    return backend


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary that can't hold all bytes, or whose ids don't fit uint16."""
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise CoreclipError(
            f"vocab_size = {vocab_size} is not allowed: {SMALLEST_VOCABULARY} (the bytes and the special tokens) "
            f"to {LARGEST_VOCABULARY}"
        )
