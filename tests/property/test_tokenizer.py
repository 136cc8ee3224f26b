"""Whatever the text, an encoded caption has the layout that the towers rely on, and the ids that ``tokenizers`` gives."""

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.tokenizer import END, PADDING, START, Tokenizer

CAPTIONS = ["a red boat on the sea", "the red sea", "the sailor's 3 boats, naïve: \u201csea\u201d"]
TOKENIZER = Tokenizer.train(CAPTIONS * 3, 320)
BACKEND = tokenizers.Tokenizer.from_str(TOKENIZER.serialised)
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)


@settings(deadline=None, max_examples=60)
@given(texts=TEXTS, context=st.integers(4, 40))
def test_every_row_is_start_ids_end_padding(texts, context):
    tokens = TOKENIZER.encode(texts, context)
    assert tokens.shape == (len(texts), context)
    for row in tokens.tolist():
        n = row.index(END) + 1
        assert row[0] == START
        assert all(3 < token < TOKENIZER.vocab_size for token in row[1 : n - 1])
        assert row[n:] == [PADDING] * (context - n)


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS, short=st.integers(4, 20), more=st.integers(0, 20))
def test_a_longer_context_only_adds(texts, short, more):
    few, many = TOKENIZER.encode(texts, short), TOKENIZER.encode(texts, short + more)
    for a, b in zip(few.tolist(), many.tolist(), strict=True):
        assert a[: short - 1] == b[: short - 1] or a[: a.index(END)] == b[: a.index(END)]


@settings(deadline=None, max_examples=40)
@given(texts=TEXTS)
def test_a_text_is_encoded_the_same_alone_and_among_others(texts):
    together = TOKENIZER.encode(texts, 24)
    for text, row in zip(texts, together, strict=True):
        assert (TOKENIZER.encode([text], 24)[0] == row).all()


# Pieces that meet at the borders of words: spaces of all kinds, contractions, marks that combine, special tokens.
PIECES = [
    "sea",
    "Red",
    "'s",
    "'S",
    "12",
    ",",
    "\u201c",
    "e\u0301",
    "\u0301",
    "\u0130",
    "\u03a3",
    "\u2126",
    "<pad>",
    "<",
    "\U0001f6a2",
]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u200b", "\u3000", "\u180e", ""]
CROOKED = st.lists(st.sampled_from(PIECES + SPACES), max_size=12).map("".join)


@settings(deadline=None, max_examples=400)
@given(texts=st.lists(CROOKED | TEXTS.map("".join) | st.text(st.characters(codec="ascii")), min_size=1, max_size=4))
def test_the_ids_are_those_of_the_library(texts):
    rows = TOKENIZER.encode(texts, 200)
    for row, encoding in zip(rows.tolist(), BACKEND.encode_batch(texts, add_special_tokens=False), strict=True):
        assert row == [START, *encoding.ids[:198], END] + [PADDING] * (198 - len(encoding.ids[:198]))
