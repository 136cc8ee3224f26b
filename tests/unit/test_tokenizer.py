"""The layout of encoded captions, determinism, and what is refused."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.tokenizer import END, PADDING, START, Tokenizer

TEXTS = ["A dog runs on the beach", "a dog and a cat", "Two dogs on the beach", "the cat sleeps"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def test_a_caption_is_start_ids_end_padding(tokenizer):
    tokens = tokenizer.encode(["a dog", ""], 12)
    assert tokens.dtype == np.int64
    assert tokens.shape == (2, 12)
    assert tokens[0, 0] == START
    n = int((tokens[0] != PADDING).sum())
    assert tokens[0, n - 1] == END
    assert (tokens[0, n:] == PADDING).all()
    assert tokens[1].tolist() == [START, END] + [PADDING] * 10


def test_a_long_caption_is_cut_before_its_end(tokenizer):
    row = tokenizer.encode(["dog " * 50], 8)[0]
    assert (row[0], row[-1]) == (START, END)
    assert (row[1:-1] > 3).all()


def test_case_and_spaces_do_not_matter(tokenizer):
    a, b = tokenizer.encode(["  A   DOG\n runs ", "a dog runs"], 16)
    assert np.array_equal(a, b)


def test_no_texts_give_no_rows(tokenizer):
    assert tokenizer.encode([], 8).shape == (0, 8)


def test_training_repeats_exactly_and_depends_on_the_texts(tokenizer):
    assert Tokenizer.train(iter(TEXTS), 300).sha256 == tokenizer.sha256
    assert Tokenizer.train(["other words entirely"] * 9, 300).sha256 != tokenizer.sha256


def test_the_vocabulary_is_at_most_what_was_asked(tokenizer):
    assert tokenizer.vocab_size <= 300
    assert Tokenizer.train(["ab ab"], 4096).vocab_size < 300


def test_save_and_load_keep_bytes_and_ids(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tokenizer.sha256
    for other in (Tokenizer.load(path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.sha256 == tokenizer.sha256
        assert np.array_equal(other.encode(TEXTS, 16), tokenizer.encode(TEXTS, 16))


@pytest.mark.parametrize("size", [3, 259, 65537])
def test_a_vocabulary_that_cannot_be_is_refused(size):
    with pytest.raises(CoreclipError, match=f"vocab_size = {size} is not allowed: 260"):
        Tokenizer.train(TEXTS, size)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{}", "not a tokenizer.json"), (b"\xff\xfe", "UTF-8"), (None, "No such file")]
)
def test_what_is_no_tokenizer_is_refused(content, message, tmp_path):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CoreclipError, match=message):
        Tokenizer.load(path)


def test_a_tokenizer_with_other_special_tokens_is_refused(tokenizer, tmp_path):
    other = json.loads(tokenizer.serialised)
    other["added_tokens"][0]["content"] = "[PAD]"
    other["model"]["vocab"]["[PAD]"] = other["model"]["vocab"].pop("<pad>")
    (tmp_path / "t.json").write_text(json.dumps(other))
    with pytest.raises(CoreclipError, match="they must be 0, 1, 2, 3"):
        Tokenizer.load(tmp_path / "t.json")


def test_more_words_than_are_kept_are_encoded_all_the_same(tokenizer, monkeypatch):
    monkeypatch.setattr("coreclip.pipeline.tokenizer._WORDS_KEPT", 4)
    texts = ["a dog and a cat", "two dogs on the beach", "the cat sleeps", "a dog and a cat"]
    once = Tokenizer(tokenizer.serialised)
    assert np.array_equal(np.concatenate([once.encode([text], 16) for text in texts]), tokenizer.encode(texts, 16))
    assert len(once._known_words) <= 5


def test_a_tokenizer_with_other_rules_keeps_to_them(tokenizer, tmp_path):
    stored = json.loads(tokenizer.serialised)
    stored["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    upper, lower = Tokenizer.load(tmp_path / "tokenizer.json").encode(["DOG", "dog"], 16)
    assert not np.array_equal(upper, lower)
    assert np.array_equal(lower, tokenizer.encode(["dog"], 16)[0])
