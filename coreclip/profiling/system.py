"""What the process and the machine did in a window: CPU clocks of every thread, waiting for a core, throttling, memory, disk.

Read from Linux's /proc and the control groups (v1 and v2); what a kernel does not tell is None, never an error.
CPU time of child processes (a loader's workers) counts as the process's. Left out: other machines, GPU counters.
"""

import os
import re
import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ThreadClock:
    """Clocks of one thread: its name, CPU seconds, and seconds it was ready but had no core (None where unknown)."""

    name: str
    cpu_seconds: float
    run_queue_seconds: float | None


@dataclass(frozen=True)
class CgroupCpu:
    """CPU limit of the control group: cores (None = no limit), and what throttling has cost since it was made."""

    cores: float | None
    throttled_seconds: float | None
    throttled_periods: int | None


@dataclass(frozen=True)
class ThreadUse:
    """CPU use of the threads of one name (numbers in names left out)."""

    name: str
    threads: int
    cpu_seconds: float
    run_queue_seconds: float


@dataclass(frozen=True, kw_only=True)
class SystemUse:
    """Differences between the two ends of a window (and the state at its end).

    Attributes
    ----------
    seconds : float
        Wall time of the window.
    cores : float
        That the process may use: affinity and control-group limit.
    cpu_seconds, child_cpu_seconds : float
        Of the process's threads, and of its child processes, those that have ended in the window included.
    caller_cpu_seconds, caller_run_queue_seconds : float
        Of the thread that opened the window: on a core, and ready but without one.
    run_queue_seconds : float
        Ready without a core, summed over all live threads.
    threads : tuple of ThreadUse
        Largest use first. Threads that ended in the window count in ``cpu_seconds`` alone.
    n_threads : int
        Live threads at the end.
    throttled_seconds, throttled_periods : float, int or None
        By the control group's CPU limit.
    minor_faults, major_faults, involuntary_switches : int
    rss_bytes, read_bytes : int or None
        Resident memory at the end; bytes fetched from the disk.
    machine_cpu_seconds, steal_seconds : float or None
        Of everything that runs on the machine; taken away by the hypervisor.
    caller_system_seconds, caller_minor_faults : float, int
        CPU time in the kernel, and fresh pages, of the thread that opened the window.
    memory_stall_seconds : float or None
        In which some process waited for memory, by the kernel's pressure accounting.
    """

    seconds: float
    cores: float
    cpu_seconds: float
    child_cpu_seconds: float
    caller_cpu_seconds: float
    caller_run_queue_seconds: float
    run_queue_seconds: float
    threads: tuple[ThreadUse, ...]
    n_threads: int
    throttled_seconds: float | None
    throttled_periods: int | None
    minor_faults: int
    major_faults: int
    involuntary_switches: int
    rss_bytes: int | None
    read_bytes: int | None
    machine_cpu_seconds: float | None
    steal_seconds: float | None
    caller_system_seconds: float = 0.0
    caller_minor_faults: int = 0
    memory_stall_seconds: float | None = None

    @property
    def busy_cores(self) -> float:
        """Cores that the process and its children kept busy on average."""
        return (self.cpu_seconds + self.child_cpu_seconds) / max(self.seconds, 1e-9)

    @property
    def saturation(self) -> float:
        """Busy part of the cores that the process may use, 0..1."""
        return self.busy_cores / self.cores

    @property
    def other_cores(self) -> float | None:
        """Cores that other processes of the machine kept busy on average; None where unknown."""
        if self.machine_cpu_seconds is None:
            return None
        return max(0.0, self.machine_cpu_seconds / max(self.seconds, 1e-9) - self.busy_cores)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the derived figures, as JSON types."""
        derived = {"busy_cores": self.busy_cores, "saturation": self.saturation, "other_cores": self.other_cores}
        return {**asdict(self), "threads": [asdict(use) for use in self.threads], **derived}


class SystemWindow:
    """Measure a window: ``start()`` ... ``stop()``, or a ``with`` block and then ``use``.

    Examples
    --------
    >>> with SystemWindow() as window:
    ...     _ = sum(range(1000))
    >>> window.use.seconds > 0
    True
    """

    def __init__(self, cores: float | None = None) -> None:
        self._cores = available_cores() if cores is None else cores
        self._begin: _Snapshot | None = None
        self._start = 0.0
        self._use: SystemUse | None = None

    def start(self) -> Self:
        """Open the window."""
        self._caller = threading.get_native_id()
        self._begin = _snapshot(is_end=False)
        self._start = time.perf_counter()  # last, so that sampling is not in the window's time
        return self

    def stop(self) -> SystemUse:
        """Close the window and return what happened in it."""
        seconds = time.perf_counter() - self._start
        assert self._begin is not None, "stop() without start()"
        self._use = _difference(self._begin, _snapshot(is_end=True), seconds, self._cores, self._caller)
        return self._use

    @property
    def use(self) -> SystemUse:
        """What happened in the window, once it is closed."""
        assert self._use is not None, "the window is still open"
        return self._use

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def combine(uses: Sequence[SystemUse]) -> SystemUse:
    """Return several windows as one: times and counts added, states of the last, thread counts at their largest."""
    assert uses, "no window to combine"
    last = uses[-1]
    names = {thread.name for use in uses for thread in use.threads}
    threads = [
        ThreadUse(
            name,
            max(thread.threads for use in uses for thread in use.threads if thread.name == name),
            sum(thread.cpu_seconds for use in uses for thread in use.threads if thread.name == name),
            sum(thread.run_queue_seconds for use in uses for thread in use.threads if thread.name == name),
        )
        for name in names
    ]
    states = ("cores", "threads", "n_threads", "rss_bytes")
    added = [field.name for field in fields(SystemUse) if field.name not in states]
    values: dict[str, list[Any]] = {name: [getattr(use, name) for use in uses] for name in added}
    sums: dict[str, Any] = {name: None if None in column else sum(column) for name, column in values.items()}
    return SystemUse(
        **sums,
        cores=last.cores,
        threads=_largest_first(threads),
        n_threads=max(use.n_threads for use in uses),
        rss_bytes=last.rss_bytes,
    )


def available_cores(proc: Path = PROC, cgroup: Path = CGROUP) -> float:
    """Return the cores that this process may use: the smaller of its affinity and its control group's limit."""
    affinity = len(os.sched_getaffinity(0))
    limit = read_cgroup(proc, cgroup).cores
    return float(affinity) if limit is None else min(float(affinity), limit)


def read_threads(process: Path = PROC / "self") -> dict[int, ThreadClock]:
    """Return ``{thread id: clocks}`` of a process's live threads.

    The kernel's own clock (``schedstat``, nanoseconds, behind by up to a timer tick) where there is one, else ``stat``.
    """
    python_names = {thread.native_id: thread.name for thread in threading.enumerate()}
    clocks = {}
    for task in _list_numbers(process / "task"):
        folder = process / "task" / str(task)
        stat = _read_stat(folder / "stat")
        if stat is None:  # the thread ended between listing and reading
            continue
        name, cpu = stat
        queue = None
        scheduled = _numbers(_read(folder / "schedstat"))
        if len(scheduled) >= 2 and scheduled[0] > 0:
            cpu, queue = scheduled[0] / 1e9, scheduled[1] / 1e9
        clocks[task] = ThreadClock(python_names.get(task, name), cpu, queue)
    return clocks


def read_cgroup(proc: Path = PROC, cgroup: Path = CGROUP) -> CgroupCpu:
    """Return CPU limit and throttling of the process's control group and those above it (v2 first, then v1)."""
    for folders in _cgroup_folders(_read(proc / "self" / "cgroup"), cgroup):
        limits = [limit for folder in folders if (limit := _cgroup_limit(folder)) is not None]
        stats = [_key_values(_read(folder / "cpu.stat")) for folder in folders]
        stats = [stat for stat in stats if "nr_throttled" in stat]
        if not limits and not stats:
            continue
        seconds = [stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9 for stat in stats]
        periods = [stat["nr_throttled"] for stat in stats]
        return CgroupCpu(min(limits, default=None), max(seconds, default=None), max(periods, default=None))
    return CgroupCpu(None, None, None)


def cpu_flags(proc: Path = PROC) -> frozenset[str]:
    """Return the instruction-set flags of the first core; empty where /proc/cpuinfo names none."""
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", _read(proc / "cpuinfo"), re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


@dataclass(frozen=True)
class _Snapshot:
    threads: dict[int, ThreadClock]
    children: dict[int, float]
    ended_children_seconds: float
    usage: resource.struct_rusage
    reader: int
    reader_usage: resource.struct_rusage
    memory_stall_seconds: float | None
    cgroup: CgroupCpu
    rss_bytes: int | None
    read_bytes: int | None
    machine_seconds: float | None
    steal_seconds: float | None


def _snapshot(*, is_end: bool) -> _Snapshot:
    """Read all clocks; the own ones nearest to the window, so that what the reading takes is not in it."""
    usages = _usages()
    resident = _numbers(_read(PROC / "self" / "statm"))
    machine, steal = _machine_seconds(_read(PROC / "stat"))
    threads, cgroup = read_threads(), read_cgroup()
    children, ended = _child_clocks(), resource.getrusage(resource.RUSAGE_CHILDREN)
    stalled = _memory_stall_seconds(_read(PROC / "pressure" / "memory"))
    usage, reader_usage = usages if is_end else _usages()
    return _Snapshot(
        threads=threads,
        children=children,
        ended_children_seconds=ended.ru_utime + ended.ru_stime,
        usage=usage,
        reader=threading.get_native_id(),
        reader_usage=reader_usage,
        memory_stall_seconds=stalled,
        cgroup=cgroup,
        rss_bytes=resident[1] * _PAGE if len(resident) > 1 else None,
        read_bytes=_key_values(_read(PROC / "self" / "io").replace(":", "")).get("read_bytes"),
        machine_seconds=machine,
        steal_seconds=steal,
    )


def _usages() -> tuple[resource.struct_rusage, resource.struct_rusage]:
    return resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_THREAD)


def _difference(a: _Snapshot, b: _Snapshot, seconds: float, cores: float, caller: int) -> SystemUse:
    grouped: dict[str, list[tuple[float, float]]] = {}
    caller_cpu = caller_queue = 0.0
    for task, end in b.threads.items():
        begin = a.threads.get(task, ThreadClock(end.name, 0.0, 0.0))
        cpu = max(0.0, end.cpu_seconds - begin.cpu_seconds)
        queue = max(0.0, (end.run_queue_seconds or 0.0) - (begin.run_queue_seconds or 0.0))
        grouped.setdefault(re.sub(r"[-_ ]?\d+", "", end.name) or end.name, []).append((cpu, queue))
        if task == caller:
            caller_cpu, caller_queue = cpu, queue
    threads = [
        ThreadUse(name, len(uses), sum(cpu for cpu, _ in uses), sum(queue for _, queue in uses))
        for name, uses in grouped.items()
    ]
    own = (b.usage.ru_utime + b.usage.ru_stime) - (a.usage.ru_utime + a.usage.ru_stime)
    same = a.reader == b.reader  # a thread can ask for its own use only
    return SystemUse(
        seconds=seconds,
        cores=cores,
        cpu_seconds=own,
        child_cpu_seconds=_child_seconds(a, b),
        caller_cpu_seconds=caller_cpu,
        caller_run_queue_seconds=caller_queue,
        run_queue_seconds=sum(use.run_queue_seconds for use in threads),
        threads=_largest_first(threads),
        n_threads=len(b.threads),
        throttled_seconds=_minus(b.cgroup.throttled_seconds, a.cgroup.throttled_seconds),
        throttled_periods=_minus(b.cgroup.throttled_periods, a.cgroup.throttled_periods),
        minor_faults=b.usage.ru_minflt - a.usage.ru_minflt,
        major_faults=b.usage.ru_majflt - a.usage.ru_majflt,
        involuntary_switches=b.usage.ru_nivcsw - a.usage.ru_nivcsw,
        rss_bytes=b.rss_bytes,
        read_bytes=_minus(b.read_bytes, a.read_bytes),
        machine_cpu_seconds=_minus(b.machine_seconds, a.machine_seconds),
        steal_seconds=_minus(b.steal_seconds, a.steal_seconds),
        caller_system_seconds=b.reader_usage.ru_stime - a.reader_usage.ru_stime if same else 0.0,
        caller_minor_faults=b.reader_usage.ru_minflt - a.reader_usage.ru_minflt if same else 0,
        memory_stall_seconds=_minus(b.memory_stall_seconds, a.memory_stall_seconds),
    )


def _child_seconds(a: _Snapshot, b: _Snapshot) -> float:
    """Return the CPU time of children: of those that live, and of those that have ended, less what these had used before."""
    live = sum(max(0.0, cpu - a.children.get(pid, 0.0)) for pid, cpu in b.children.items())
    before = sum(cpu for pid, cpu in a.children.items() if pid not in b.children)
    return live + max(0.0, b.ended_children_seconds - a.ended_children_seconds - before)


def _largest_first(threads: list[ThreadUse]) -> tuple[ThreadUse, ...]:
    return tuple(sorted(threads, key=lambda use: (-use.cpu_seconds, use.name)))


def _minus(end: Any, begin: Any) -> Any:
    return None if end is None or begin is None else end - begin


def _child_clocks() -> dict[int, float]:
    """Return ``{process id: CPU seconds}`` of the live descendants."""
    clocks: dict[int, float] = {}
    waiting = [PROC / "self"]
    while waiting:
        process = waiting.pop()
        for task in _list_numbers(process / "task"):
            for child in _numbers(_read(process / "task" / str(task) / "children")):
                stat = _read_stat(PROC / str(child) / "stat")
                if stat is not None and child not in clocks:
                    clocks[child] = stat[1]
                    waiting.append(PROC / str(child))
    return clocks


def _machine_seconds(stat: str) -> tuple[float | None, float | None]:
    """Return busy and stolen seconds of all cores since boot."""
    fields = stat.partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None, None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(value) for value in fields[1:9])
    return (user + nice + system + irq + softirq) / _TICKS, steal / _TICKS


def _memory_stall_seconds(pressure: str) -> float | None:
    """Return the seconds since boot in which some process waited for memory."""
    match = re.search(r"^some .*total=(\d+)", pressure, re.MULTILINE)
    return int(match.group(1)) / 1e6 if match else None


def _cgroup_folders(membership: str, mount: Path) -> list[list[Path]]:
    """Return, for each hierarchy that may rule the CPU, the group's folder and those above it."""
    hierarchies = []
    for line in sorted(membership.splitlines(), key=lambda line: not line.startswith("0::")):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            bases = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [mount / "cpu", mount / controllers]
        else:
            continue
        parts = [] if ".." in path else [part for part in path.split("/") if part]
        hierarchies += [[base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)] for base in bases]
    return hierarchies


def _cgroup_limit(folder: Path) -> float | None:
    """Return a group's own limit in cores."""
    quota = _read(folder / "cpu.max").split() or [
        _read(folder / "cpu.cfs_quota_us").strip(),
        _read(folder / "cpu.cfs_period_us").strip(),
    ]
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
        return int(quota[0]) / int(quota[1])
    return None


def _read_stat(path: Path) -> tuple[str, float] | None:
    """Return name and CPU seconds from a ``stat`` file; the name may hold blanks and brackets."""
    text = _read(path)
    head, bracket, tail = text.rpartition(")")
    fields = tail.split()
    if not bracket or len(fields) < 13:
        return None
    return head.partition("(")[2], (int(fields[11]) + int(fields[12])) / _TICKS


def _list_numbers(folder: Path) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
    except OSError:
        return []


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdigit()]


def _key_values(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _read(path: Path) -> str:
    """Return a small kernel file's text; empty where it is missing, forbidden, or of a thread that has ended."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
