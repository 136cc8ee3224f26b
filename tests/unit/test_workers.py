"""Worker processes answer, fail in the open, and end with their parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.workers import WorkerPool


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, pids))


def test_answers_come_from_other_processes():
    with WorkerPool(2) as pool:
        futures = [pool.submit(divmod, i, 7) for i in range(20)]
        assert [future.result() for future in futures] == [divmod(i, 7) for i in range(20)]
        assert pool.submit(os.getpid).result() in pool.pids
    assert wait_until_dead(pool.pids)


def test_what_a_function_prints_does_not_disturb_the_answers(capfd):
    with WorkerPool(1) as pool:
        pool.submit(print, "said aloud").result()
        assert pool.submit(abs, -3).result() == 3
    assert "said aloud" in capfd.readouterr().err


def test_an_exception_comes_back_and_the_worker_goes_on():
    with WorkerPool(1) as pool:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            pool.submit(divmod, 1, 0).result()
        assert pool.submit(divmod, 7, 7).result() == (1, 0)


def test_want_of_memory_is_named():
    with WorkerPool(1) as pool, pytest.raises(CoreclipError, match="no memory left; use fewer workers"):
        pool.submit(bytearray, 1 << 62).result()


@pytest.mark.parametrize(
    ("end", "message"),
    [((os._exit, 3), "exit code 3"), ((signal.raise_signal, signal.SIGKILL), "SIGKILL"), ((os.abort,), "SIGABRT")],
)
def test_a_worker_that_dies_raises_and_does_not_hang(end, message):
    with pytest.raises(CoreclipError, match=message), WorkerPool(2) as pool:
        pool.submit(*end).result(timeout=30)
    assert wait_until_dead(pool.pids)


def test_leaving_by_an_exception_ends_work_at_once():
    start = time.monotonic()
    pool = WorkerPool(1)

    def work_and_interrupt() -> None:
        with pool:
            pool.submit(time.sleep, 60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_and_interrupt()
    assert time.monotonic() - start < 20
    assert wait_until_dead(pool.pids)


def test_workers_end_with_a_parent_that_is_killed():
    code = (
        "import time\nfrom coreclip.pipeline.workers import WorkerPool\npool = WorkerPool(2)\n"
        "pool.submit(abs, 1).result()\nprint(*pool.pids, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pids = list(map(int, parent.stdout.readline().split()))
        assert all(map(is_alive, pids))
        parent.kill()
    assert wait_until_dead(pids)


def test_a_script_without_a_main_guard_works(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from coreclip.pipeline.workers import WorkerPool\n"
        "with WorkerPool(1) as pool: print(pool.submit(abs, -4).result())\n"
    )
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout == "4\n"
