"""CLIP's tokenizer against the one of ``transformers``, on a small vocabulary in CLIP's conventions."""

import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.clip_vocabulary import read_clip_tokenizer
from tests.clip_files import write_hf_vocabulary

transformers = pytest.importorskip("transformers")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
ASCII = st.text(st.characters(codec="ascii"), max_size=60)
PIECES = ["boat", "Boat's", "it'S", "we've", "'ll", "12", "3.5", "!!!", "...", "#tag", "café", "CAFE\u0301", "\U0001f6a2", "\U0001f469\u200d\U0001f467",
          "你好", "\u201cquoted\u201d", "\u0130", "\u00bd", "<", "<|endoftext|>", "<|startoftext|>", "_", "a" * 70, "&", "\u200b"]  # fmt: skip
SPACES = [" ", "  ", "\t", "\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u3000", "\u180e", ""]
CROOKED = st.lists(st.sampled_from(PIECES + SPACES), max_size=14).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_hf_vocabulary(folder)
    return read_clip_tokenizer(folder), transformers.CLIPTokenizerFast.from_pretrained(folder)


@settings(deadline=None, max_examples=300)
@given(texts=st.lists(TEXT | ASCII | CROOKED, min_size=1, max_size=4))
def test_ids_are_those_of_transformers(tokenizers, texts):
    ours, theirs = tokenizers
    # Its tokenizer leaves the web's escapes as they are; CLIP's own code undoes them.
    plain = [html.unescape(html.unescape(text)) for text in texts]
    rows = ours.encode(texts, 40)
    for row, ids in zip(rows.tolist(), theirs(plain, truncation=True, max_length=40)["input_ids"], strict=True):
        assert row == ids + [0] * (40 - len(ids))
