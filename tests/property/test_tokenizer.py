"""Whatever the text, an encoded caption has the layout that the towers rely on."""

from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.tokenizer import END, PADDING, START, Tokenizer

TOKENIZER = Tokenizer.train(["a red boat on the sea", "the red sea"] * 3, 280)
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
