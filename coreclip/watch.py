"""What a loop and a loader tell somebody who watches them from outside: stages, levels, ends of steps."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")

_NOTHING = nullcontext()


class Watch(Protocol):
    """An observer; a profiler's recorder, a test's counter."""

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Return a context that encloses one stage of a step, or of a loader's work in a thread of its own."""
        ...

    def gauge(self, name: str, level: float) -> None:
        """Note a level, e.g. how many batches stand ready."""
        ...

    def iterate(self, name: str, iterable: Iterable[T]) -> Iterator[T]:
        """Iterate, taking the time of each ``next`` as stage ``name``."""
        ...

    def step(self, n_items: int) -> None:
        """End a step of ``n_items`` pairs."""
        ...


def no_stage(name: str) -> AbstractContextManager[object]:
    """Return a context that tells nobody."""
    del name
    return _NOTHING


class NoWatch:
    """Nobody watches: the null object."""

    def stage(self, name: str) -> AbstractContextManager[object]:
        return no_stage(name)

    def gauge(self, name: str, level: float) -> None:
        return None

    def iterate(self, name: str, iterable: Iterable[T]) -> Iterator[T]:
        return iter(iterable)

    def step(self, n_items: int) -> None:
        return None
