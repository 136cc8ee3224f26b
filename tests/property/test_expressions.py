"""Expressions that are drawn from the grammar are printed and read back as the same; garbage is refused, never a crash."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coreclip.errors import CoreclipError
from coreclip.selection import Features, parse, select
from coreclip.selection.expression import Combination, Groups, Stage, describe, stages_of
from coreclip.selection.registry import METHODS

SETTINGS = settings(deadline=None, max_examples=40)
RUNS = settings(deadline=None, max_examples=25)

sizes = st.one_of(
    st.none(),
    st.floats(0, 1, exclude_min=True).map(lambda keep: ("keep", keep)),
    st.integers(1, 2**62).map(lambda k: ("k", k)),
)
texts = st.one_of(
    st.sampled_from(
        ["image", "both", "True", "none", "", "a b", "0.5", "a-b", "a|b", 'say "x"', "it's", "é", "(", "x\ny"]
    ),
    st.text(st.characters(exclude_characters="'", exclude_categories=["Cs"]), max_size=6),
)
parameters = st.one_of(
    st.just(("random", {})),
    st.fixed_dictionaries({}, optional={"eps": st.floats(0, 2), "n_clusters": st.none() | st.integers(-5, 2**62), "modality": texts}).map(
        lambda given: ("semdedup", given)
    ),
    # apricot's selectors take anything.
    st.dictionaries(st.sampled_from(["alpha", "beta"]), texts | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)).map(
        lambda given: ("apricot:GraphCutSelection", given)
    ),
)  # fmt: skip
groups = st.none() | st.builds(
    lambda clusters, equal: Groups("cluster", clusters, equal), st.none() | st.integers(1, 2**62), st.booleans()
) | st.builds(lambda equal: Groups("class", None, equal), st.booleans())  # fmt: skip
stages = st.builds(
    lambda named, size, grouped: Stage(
        named[0], METHODS[named[0]], named[1], **dict([size] if size else []), groups=grouped
    ),
    parameters,
    sizes,
    groups,
)


def combine(operands):
    return st.builds(
        lambda mark, parts: Combination(mark, tuple(tuple(part) for part in parts)),
        st.sampled_from("&+"),
        st.lists(st.lists(operands, min_size=1, max_size=2), min_size=2, max_size=3),
    )


nodes = st.recursive(stages, combine, max_leaves=6)
chains = st.lists(nodes, min_size=1, max_size=3)


def normal(chain):
    """The same with a combination within one of its own kind spliced into it, as parentheses that change nothing are."""
    return [node if isinstance(node, Stage) else Combination(node.mark, tuple(spliced(node))) for node in chain]


def spliced(node):
    for operand in node.operands:
        inner = normal(operand)
        if len(inner) == 1 and isinstance(inner[0], Combination) and inner[0].mark == node.mark:
            yield from inner[0].operands
        else:
            yield tuple(inner)


@given(chains)
@SETTINGS
def test_what_is_printed_is_read_back(chain):
    text = describe(chain)
    read = parse(text)
    assert read == normal(chain)
    assert parse(describe(read)) == read


@given(chains, st.data())
@SETTINGS
def test_spaces_and_superfluous_parentheses_change_nothing(chain, data):
    text = describe(chain)
    if "'" not in text and '"' not in text:
        for mark in "|&@(),=":
            text = text.replace(mark, data.draw(st.sampled_from([mark, f" {mark} ", f"\t{mark}\n"])))
    assert parse(f"(({text}))") == normal(chain)


PIECES = ["random", "clipscore", "semdedup", "apricot:", "apricot:GraphCut", "(", ")", "|", "&", "+", "@", ",", "=", "keep", "k", "eps", "0.5", "3", "-1",
          "1e400", "9" * 5000, "0" * 5000, "٣", "none", "class", "cluster", "equal", "'a'", "'", '"', " ", "\n", "%", "\x00", "("  * 2000]  # fmt: skip


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
@example("(" * 5000)
@example("random" + "&random" * 3000)
@example("random(k=" + "9" * 5000)
@settings(deadline=None, max_examples=40)
def test_garbage_is_refused_with_a_place_and_never_crashes(text):
    try:
        parse(text)
    except CoreclipError as error:
        explanation, shown, caret = str(error).split("\n")
        assert explanation
        assert len(shown) == len(text) + 2
        assert caret.index("^") - 2 <= len(text)


RNG = np.random.default_rng(0)
FEATURES = Features.from_arrays(RNG.normal(size=(40, 4)), RNG.normal(size=(40, 4)))
runnable = st.recursive(
    st.sampled_from(
        ["random(keep=0.7)", "clipscore(keep=0.6)", "clipscore(k=15) @ class", "random(keep=0.9) @ class(equal)"]
    ),
    lambda inner: st.builds(
        lambda mark, left, right: f"({left} {mark} {right})", st.sampled_from("|&+"), inner, inner
    ),
    max_leaves=5,
)  # fmt: skip


@given(runnable, runnable, st.integers(1, 40), st.integers(0, 5))
@RUNS
def test_the_operators_are_those_of_sets_and_the_budget_holds(left, right, k, seed):
    def run(expression, k=None):
        return select(FEATURES, 40, method=expression, labels=np.arange(40) % 3, seed=seed, k=k)

    def indices(expression):
        try:
            return run(expression).indices.tolist()
        except CoreclipError as error:
            assert "no pair is in all" in str(error)  # noqa: PT017
            return []

    one, other = indices(left), indices(right)
    if not one or not other:
        return
    assert indices(f"{left} & {right}") == [i for i in one if i in other]
    assert indices(f"{left} + {right}") == one + [i for i in other if i not in one]
    cut = run(f"{left} + {right}", k)
    assert cut.indices.tolist() == indices(f"{left} + {right}")[:k]
    assert ("note" in cut.parameters) == (cut.k < k)
    assert all(stage.name in METHODS for stage in stages_of(parse(cut.method)))
