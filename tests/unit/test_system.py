"""The system's samplers, on the real process and on hand-made /proc and control-group trees."""

import json
import subprocess
import sys
import threading
import time

import pytest

from coreclip.profiling import SystemWindow, available_cores, read_cgroup
from coreclip.profiling.lockprobe import LockProbe
from coreclip.profiling.system import combine, cpu_flags, read_threads


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def test_window_sees_the_cpu_time_of_each_thread():
    ready, go_on = threading.Event(), threading.Event()

    def work():
        _spin(0.15)
        ready.set()
        go_on.wait()

    with SystemWindow() as window:
        thread = threading.Thread(target=work, name="decoder-7")
        thread.start()
        ready.wait()
    go_on.set()
    thread.join()
    use = window.use
    named = {thread.name: thread for thread in use.threads}
    assert use.cpu_seconds >= 0.14
    assert named["decoder"].cpu_seconds >= 0.1
    assert named["decoder"].threads == 1
    assert use.caller_cpu_seconds < 0.1
    assert use.n_threads >= 2
    assert use.rss_bytes > 1 << 20


def test_children_that_end_in_the_window_count():
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    with SystemWindow() as window:
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert window.use.child_cpu_seconds >= 0.28


def test_of_a_child_that_lived_before_only_the_windows_part_counts():
    burn = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()  # the child has burnt its time
        with SystemWindow() as window:
            child.communicate(b"\n")
    assert window.use.child_cpu_seconds < 0.2


def test_the_lock_is_blamed_only_where_waiting_for_a_core_can_be_told_from_it(monkeypatch):
    probe = LockProbe().start()
    time.sleep(0.05)
    assert probe.stop() >= 0
    monkeypatch.setattr("coreclip.profiling.lockprobe._run_queue_seconds", lambda clock: None)
    probe = LockProbe().start()
    time.sleep(0.05)
    assert probe.stop() is None


def test_sleep_leaves_the_cores_idle():
    with SystemWindow() as window:
        time.sleep(0.1)
    assert 0.1 <= window.use.seconds < 5
    assert window.use.cpu_seconds < 0.08


def test_combined_windows_add_up_and_are_json():
    uses = []
    for _ in range(2):
        with SystemWindow(cores=3.0) as window:
            _spin(0.03)
        uses.append(window.use)
    both = combine(uses)
    assert both.seconds == pytest.approx(uses[0].seconds + uses[1].seconds)
    assert both.cpu_seconds == pytest.approx(uses[0].cpu_seconds + uses[1].cpu_seconds)
    assert both.cores == 3.0
    assert json.loads(json.dumps(both.to_dict()))["busy_cores"] == pytest.approx(both.busy_cores)


def test_threads_read_schedstat_and_fall_back_to_stat(tmp_path):
    after_name = " ".join(["R", *["0"] * 10, "150", "50", *["0"] * 20])
    _write(tmp_path / "task/11/stat", f"11 (odd) name (x) {after_name}")
    _write(tmp_path / "task/11/schedstat", "3000000000 500000000 9\n")
    _write(tmp_path / "task/12/stat", f"12 (plain) {after_name}")
    (tmp_path / "task/13").mkdir()  # has ended
    threads = read_threads(tmp_path)
    assert set(threads) == {11, 12}
    assert (threads[11].name, threads[11].cpu_seconds, threads[11].run_queue_seconds) == ("odd) name (x", 3.0, 0.5)
    assert threads[12].name == "plain"
    assert threads[12].cpu_seconds > 0
    assert threads[12].run_queue_seconds is None


def test_cgroup_v2_limit_is_the_smallest_up_the_tree(tmp_path):
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    _write(proc / "self/cgroup", "0::/a/b\n")
    _write(mount / "a/b/cpu.max", "max 100000\n")
    _write(mount / "a/b/cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 2500000\n")
    _write(mount / "a/cpu.max", "150000 100000\n")
    group = read_cgroup(proc, mount)
    assert (group.cores, group.throttled_periods, group.throttled_seconds) == (1.5, 4, 2.5)
    assert available_cores(proc, mount) <= 1.5


def test_cgroup_v1_limit_and_throttling(tmp_path):
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    _write(proc / "self/cgroup", "3:cpuset:/\n2:cpu,cpuacct:/job\n0::/\n")
    _write(mount / "cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n")
    _write(mount / "cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    _write(mount / "cpu,cpuacct/job/cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 1500000000\n")
    group = read_cgroup(proc, mount)
    assert (group.cores, group.throttled_periods, group.throttled_seconds) == (0.5, 2, 1.5)


def test_unlimited_cgroup_and_missing_files_are_no_limit(tmp_path):
    assert read_cgroup(tmp_path, tmp_path).cores is None
    _write(tmp_path / "self/cgroup", "4:cpu:/\n")
    _write(tmp_path / "cpu/cpu.cfs_quota_us", "-1\n")
    _write(tmp_path / "cpu/cpu.cfs_period_us", "100000\n")
    assert read_cgroup(tmp_path, tmp_path).cores is None
    assert available_cores(tmp_path, tmp_path) >= 1
    assert read_threads(tmp_path) == {}


def test_cpu_flags_are_read(tmp_path):
    assert cpu_flags(tmp_path) == frozenset()
    _write(tmp_path / "cpuinfo", "processor : 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor : 1\nflags : fpu\n")
    assert cpu_flags(tmp_path) == {"fpu", "avx2", "amx_bf16"}
