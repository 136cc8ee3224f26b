"""A loop of somebody's own, watched from outside: its loader and its functions are wrapped, and it runs as before.

for batch in watch("wait", loader):
    ...
print(render_text(watched().to_dict()))
"""

from typing import Any, TypeVar

from coreclip.errors import CoreclipError
from coreclip.profiling.diagnosis import Diagnosis, diagnose_records
from coreclip.profiling.recorder import StageRecorder, WatchedIterable
from coreclip.profiling.system import SystemUse, SystemWindow

T = TypeVar("T")
WAIT = "wait"
_LEAST_STEPS = 4


class Watcher:
    """What one loop is watched by.

    Parameters
    ----------
    warmup : int
        Steps that are left out of the verdict: queues fill, caches warm, kernels are compiled.
    total_steps : int or None
        Length of the whole run, for the projection of growing costs.
    keep_steps : int
        At least this many of the newest steps are kept.
    """

    def __init__(self, *, warmup: int = 8, total_steps: int | None = None, keep_steps: int = 1 << 16) -> None:
        if warmup < 0:
            raise CoreclipError(f"warmup = {warmup} is not allowed: 0 steps or more; raise it")
        self.recorder = StageRecorder(keep_steps=keep_steps)
        self._warmup, self._total = warmup, total_steps
        self._window: SystemWindow | None = None
        self._system: SystemUse | None = None  # of a loop that has ended

    def watch(self, name: str, target: T) -> T:
        """Return ``target``, its calls or its iterations charged to stage ``name``.

        Parameters
        ----------
        name : str
            ``"wait"`` for the training loader: each of its batches begins a step. Of other stages ``forward``,
            ``backward``, ``optimiser``, ``transfer``, ``metrics``, ``logging``, and in a loader's own threads ``read``,
            ``decode``, ``augment``, ``tokens`` have a meaning to a verdict.
        target : callable or iterable

        Raises
        ------
        CoreclipError
            When it is neither.
        """
        if name == WAIT and hasattr(target, "__iter__") and not callable(target):
            return WatchedIterable(target, self._loop)  # type: ignore[return-value]  # stands in for the target
        return self.recorder.watch(name, target)

    def diagnosis(self, **setting: Any) -> Diagnosis:
        """Judge the loop as far as it has come.

        Parameters
        ----------
        **setting
            What remedies depend on, see :func:`coreclip.profiling.diagnose`.

        Raises
        ------
        CoreclipError
            When fewer than 4 steps have come after the warm-up.
        """
        records = self.recorder.finish()
        records = records.take(records.number >= self._warmup)
        if len(records) < _LEAST_STEPS:
            raise CoreclipError(
                f"{self.recorder.n_steps} steps were watched, of which the first {self._warmup} are warm-up: at least {_LEAST_STEPS} "
                'after it are needed; watch the loader as watch("wait", loader) and run the loop longer'
            )
        return diagnose_records(
            records,
            system=self._use(),
            threads={name: stage.per(self.recorder.n_steps) for name, stage in self.recorder.elsewhere.items()},
            timeline=self.recorder.timeline[-6:],
            setting=setting,
            total_steps=self._total,
        )

    def _loop(self, loader: Any) -> Any:
        self._system = None
        try:
            for batch in self.recorder.loop(loader):
                if self._window is None and self.recorder.n_steps >= self._warmup:
                    self._window = SystemWindow().start()
                yield batch
        finally:  # what the program does after the loop is not the loop's
            self._system = None if self._window is None else self._window.stop()

    def _use(self) -> SystemUse | None:
        return self._window.stop() if self._system is None and self._window is not None else self._system


_current: list[Watcher] = []  # of this process; at most one


def watch(name: str, target: T) -> T:
    """Watch something with the process's own :class:`Watcher`, see :meth:`Watcher.watch`; made when first asked for.

    Examples
    --------
    >>> for batch in watch("wait", [[1, 2]] * 20):
    ...     _ = sum(batch)
    >>> watched().steps_per_second > 0
    True
    """
    if not _current:
        _current.append(Watcher())
    return _current[0].watch(name, target)


def watched(**setting: Any) -> Diagnosis:
    """Return the diagnosis of what :func:`watch` has watched, and begin anew with the next one.

    Raises
    ------
    CoreclipError
        When nothing was watched, or too few steps.
    """
    if not _current:
        raise CoreclipError('nothing is watched in this process; wrap the loop\'s loader: watch("wait", loader)')
    diagnosis = _current[0].diagnosis(**setting)
    _current.clear()
    return diagnosis
