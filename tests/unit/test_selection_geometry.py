"""k-center and herding: what they refuse; their promises are tested with the properties."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features, herding, k_center
from coreclip.selection.rows import check_rows


@pytest.mark.parametrize("method", [k_center, herding])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0 of 5 pairs is not allowed: 1 to 5"),
        ({"k": 6}, "k = 6 of 5 pairs is not allowed: 1 to 5"),
        ({"k": 2, "modality": "sound"}, "unknown modality 'sound'; known: image, text, both"),
        ({"k": 2, "modality": "text"}, "these features hold no text embeddings"),
    ],
)
def test_wrong_arguments_are_refused(method, arguments, message):
    with pytest.raises(CoreclipError, match=message):
        method(Features.from_arrays(np.eye(5)), **arguments)


@pytest.mark.parametrize("method", [k_center, herding])
def test_the_subset_knows_where_it_comes_from(method):
    subset = method(Features.from_arrays(np.eye(5), info={"fingerprint": "abc"}), 3)
    assert (subset.n, subset.k, subset.fingerprint) == (5, 3, "abc")
    assert subset.weights.tolist() == [1, 1, 1]
    assert subset.seconds > 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(3), r"float64 of shape \(3,\); it must be numbers \(rows, dimensions\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.array([["a"]]), r"it must be numbers"),
        (np.array([[1.0], [np.nan]]), "row 1 is NaN or infinite; leave it out"),
    ],
)
def test_rows_that_have_no_distances_are_refused(rows, message):
    with pytest.raises(CoreclipError, match=message):
        check_rows(rows, "rows")
