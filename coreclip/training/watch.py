"""What the training loop tells somebody who watches it: the stages of a step, from outside."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")

_NOTHING = nullcontext()


class Watch(Protocol):
    """An observer of the loop; a profiler's recorder, a test's counter."""

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Return a context that encloses one stage of a step."""
        ...

    def iterate(self, name: str, iterable: Iterable[T]) -> Iterator[T]:
        """Iterate, taking the time of each ``next`` as stage ``name``."""
        ...

    def step(self, n_items: int) -> None:
        """End a step of ``n_items`` pairs."""
        ...


class NoWatch:
    """Nobody watches: the null object."""

    def stage(self, name: str) -> AbstractContextManager[object]:
        return _NOTHING

    def iterate(self, name: str, iterable: Iterable[T]) -> Iterator[T]:
        return iter(iterable)

    def step(self, n_items: int) -> None:
        return None
