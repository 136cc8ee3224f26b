"""The sets of Sieve-Streaming++ with what each represents, in compiled code.

The set of the threshold (1 + epsilon)^e lies in the slot e modulo the number of slots, which are as many as thresholds can be in
use at a time: when they rise, the slot of the lowest is taken by the highest. Left out: where rows come from.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from coreclip.errors import CoreclipError
from coreclip.selection.cosines import cosines_between

_BLOCK = 2048  # rows
_NONE = np.iinfo(np.int64).min


class _Slots(NamedTuple):
    exponents: np.ndarray  # int64 (s,): of the threshold of each slot's set
    sizes: np.ndarray  # int64 (s,)
    picks: np.ndarray  # int64 (s, k): indices
    gains: np.ndarray  # float64 (s, k)
    values: np.ndarray  # float64 (s,): the objective of each set
    best: np.ndarray  # float64 (s, r): each represented row's value
    window: np.ndarray  # int64 (2,): the exponents in use, the first and the last
    reached: np.ndarray  # float64 (2,): the largest objective of one row, and of a set


class Sieves:
    """The sets, and the rows that they hold.

    Attributes
    ----------
    k, epsilon : int, float
    n_seen : int
        Rows that were offered.
    largest_index : int
    held : int
        The most rows that were held between two blocks.
    """

    def __init__(self, k: int, epsilon: float, reference: np.ndarray, weights: np.ndarray) -> None:
        self.k, self.epsilon = k, epsilon
        self.n_seen, self.largest_index, self.held = 0, -1, 0
        self._reference, self._weights = reference, weights
        self._rows: dict[int, np.ndarray] = {}
        self._n_needed = 0  # rows, when it was last looked into
        self._first: list[int] = []  # indices of the first k rows of the stream
        s, r = math.ceil(math.log(2 * k) / math.log1p(epsilon)) + 3, len(reference)
        self._slots = _Slots(
            np.full(s, _NONE), np.zeros(s, np.int64), np.empty((s, k), np.int64), np.empty((s, k)), np.zeros(s),
            np.zeros((s, r)), np.array([0, -1]), np.zeros(2),
        )  # fmt: skip

    @property
    def n_sets(self) -> int:
        """Sets in use."""
        return int(np.diff(self._slots.window)[0]) + 1

    def offer(self, indices: np.ndarray, rows: np.ndarray) -> None:
        """Take a block of the stream: indices int64 (b,), unit rows float32 (b, d)."""
        cosines = cosines_between(rows, self._reference)
        was_kept = np.zeros(len(rows), bool)
        _offer(self._slots, cosines, self._weights, indices, math.log1p(self.epsilon), was_kept)
        n_first = max(0, min(self.k - self.n_seen, len(rows)))
        self._first.extend(indices[:n_first].tolist())
        was_kept[:n_first] = True
        for at in np.flatnonzero(was_kept):
            index = int(indices[at])
            if index in self._rows:
                raise CoreclipError(f"the stream has index {index} twice; each pair must come once")
            self._rows[index] = rows[at].copy()
        self.n_seen += len(rows)
        self.largest_index = max(self.largest_index, int(indices.max(initial=-1)))
        self._forget()

    def result(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the indices of the best set, filled up to k, their gains, and how many were filled in."""
        slots, used = self._slots, self._used()
        if len(used):
            slot = used[int(np.argmax(slots.values[used]))]
            size = int(slots.sizes[slot])
            chosen, gains, best = slots.picks[slot, :size], slots.gains[slot, :size], slots.best[slot].copy()
        else:
            chosen, gains, best = np.empty(0, np.int64), np.empty(0), np.zeros(len(self._reference))
        # Not all that is held: when rows are let go of depends on the blocks.
        others = np.array(sorted(self._needed() - set(chosen.tolist())), np.int64)
        more, more_gains = self._fill(best, others, self.k - len(chosen))
        return np.concatenate([chosen, more]), np.concatenate([gains, more_gains]), len(more)

    def _fill(self, best: np.ndarray, others: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Return those of the rows held that add most to what is represented by ``best``, and what each adds in its turn."""
        if not room or not len(others):
            return np.empty(0, np.int64), np.empty(0)
        alone = np.empty(len(others))
        for start in range(0, len(others), _BLOCK):
            block = slice(start, start + _BLOCK)
            alone[block] = [_gain(cosines, best, self._weights) for cosines in self._cosines(others[block])]
        more = others[np.argsort(-alone, kind="stable")[:room]]
        gains = np.empty(len(more))
        for t in range(len(more)):
            gains[t] = _add(self._cosines(more[t : t + 1])[0], best, self._weights)
        return more, gains

    def _cosines(self, indices: np.ndarray) -> np.ndarray:
        return cosines_between(np.stack([self._rows[index] for index in indices.tolist()]), self._reference)

    def _used(self) -> np.ndarray:
        """Return the slots of the sets in use, by ascending thresholds."""
        exponents = self._slots.exponents
        first, last = self._slots.window
        return np.array([e % len(exponents) for e in range(first, last + 1) if exponents[e % len(exponents)] == e], int)

    def _needed(self) -> set[int]:
        """Return the indices of the rows of the sets in use, and of the first k."""
        slots = self._slots
        picks = (slots.picks[slot, : slots.sizes[slot]].tolist() for slot in self._used())
        return set(self._first).union(*picks)

    def _forget(self) -> None:
        """Let go of the rows that only sets which were given up had, once they may be half of all."""
        self.held = max(self.held, len(self._rows))
        if len(self._rows) <= 2 * self._n_needed:
            return
        needed = self._needed()
        self._rows = {index: row for index, row in self._rows.items() if index in needed}
        self._n_needed = len(self._rows)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _gain(cosines: np.ndarray, best: np.ndarray, weights: np.ndarray) -> float:
    total = 0.0
    for i in range(cosines.shape[0]):
        total += weights[i] * max(cosines[i] - best[i], 0.0)
    return total


@njit(cache=True, nogil=True)
def _add(cosines: np.ndarray, best: np.ndarray, weights: np.ndarray) -> float:
    gained = _gain(cosines, best, weights)
    for i in range(best.shape[0]):
        best[i] = max(best[i], cosines[i])
    return gained


@njit(cache=True, nogil=True)
def _offer(
    slots: _Slots,
    cosines: np.ndarray,
    weights: np.ndarray,
    indices: np.ndarray,
    step: float,
    was_kept: np.ndarray,
) -> None:
    n_slots, k = slots.picks.shape
    nothing = np.zeros(cosines.shape[1])
    for b in range(cosines.shape[0]):
        alone = _gain(cosines[b], nothing, weights)
        slots.reached[0] = max(slots.reached[0], alone)
        if slots.reached[0] == 0.0:
            continue
        lowest = max(slots.reached[0], slots.reached[1]) / (2 * k)
        # One threshold below the lowest: that nearest to the best objective over 2 k from below may be there.
        slots.window[0] = np.int64(math.ceil(math.log(lowest) / step - 1.0))
        slots.window[1] = np.int64(math.floor(math.log(slots.reached[0]) / step))
        for exponent in range(slots.window[0], slots.window[1] + 1):
            threshold, slot = math.exp(exponent * step), exponent % n_slots
            if alone < threshold:
                break
            if slots.exponents[slot] != exponent:
                slots.exponents[slot] = exponent
                slots.sizes[slot], slots.values[slot] = 0, 0.0
                slots.best[slot] = 0.0
            size = slots.sizes[slot]
            if size == k or _gain(cosines[b], slots.best[slot], weights) < threshold:
                continue
            slots.picks[slot, size] = indices[b]
            slots.gains[slot, size] = _add(cosines[b], slots.best[slot], weights)
            slots.values[slot] += slots.gains[slot, size]
            slots.sizes[slot] = size + 1
            slots.reached[1] = max(slots.reached[1], slots.values[slot])
            was_kept[b] = True
