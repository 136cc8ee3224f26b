"""Words left out of captions: what stays, how many go, and on what it depends."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from coreclip.training.model import END
from coreclip.training.text_towers import caption_lengths
from coreclip.training.word_dropout import drop_words

START, FIRST_WORD, LENGTH = 1, 3, 12
words = st.lists(st.integers(FIRST_WORD, 40), max_size=LENGTH - 2)


def rows_of(captions):
    rows = torch.zeros(len(captions), LENGTH, dtype=torch.int64)
    for row, caption in zip(rows, captions, strict=True):
        row[: len(caption) + 2] = torch.tensor([START, *caption, END])
    return rows, caption_lengths(rows, END)


def read(tokens, lengths):
    return [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]


@given(st.lists(words, min_size=1, max_size=6), st.floats(0, 0.99), st.integers(0, 2**40), st.integers(0, 1000))
def test_what_is_left_is_the_caption_with_words_taken_out(captions, share, first, step):
    rows, lengths = rows_of(captions)
    before = rows.clone()
    found, left = drop_words(rows, lengths, np.arange(len(rows)) + first, share=share, seed=3, step=step)
    assert torch.equal(rows, before)
    assert torch.equal(caption_lengths(found, END), left)
    for caption, shown in zip(captions, read(found, left), strict=True):
        assert (shown[0], shown[-1]) == (START, END)
        assert len(shown) > 2 or not caption
        rest = iter(caption)
        assert all(word in rest for word in shown[1:-1])  # in their order


@given(st.lists(words, min_size=2, max_size=6), st.permutations(range(6)), st.integers(0, 1000))
def test_it_depends_on_seed_step_and_pair_alone(captions, order, step):
    rows, lengths = rows_of(captions)
    index = np.arange(len(rows)) * 7
    whole = read(*drop_words(rows, lengths, index, share=0.5, seed=1, step=step))
    some = [at for at in order if at < len(rows)][:-1]
    part = drop_words(rows[some], lengths[some], index[some], share=0.5, seed=1, step=step)
    assert read(*part) == [whole[at] for at in some]


def test_the_share_of_words_is_left_out_and_each_step_leaves_out_others():
    rows, lengths = rows_of([list(range(10, 20))] * 2000)
    found, left = (drop_words(rows, lengths, np.arange(2000), share=0.3, seed=1, step=step) for step in (4, 5))
    assert not torch.equal(found[0], left[0])
    for _, lengths_left in (found, left):
        # 20,000 words, each left out with probability 0.3: five standard deviations are 0.016.
        assert abs((10 - (lengths_left - 2).double().mean().item()) / 10 - 0.3) < 0.016
    seeds = [drop_words(rows, lengths, np.arange(2000), share=0.3, seed=seed, step=4)[1] for seed in (1, 2)]
    assert not torch.equal(*seeds)


def test_no_share_leaves_the_captions_as_they_are():
    rows, lengths = rows_of([[5, 6, 7], []])
    found, left = drop_words(rows, lengths, np.arange(2), share=0.0, seed=0, step=0)
    assert torch.equal(found, rows)
    assert torch.equal(left, lengths)
