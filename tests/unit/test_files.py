"""Outputs are whole or absent, and have one writer."""

import hashlib
import json
import subprocess
import sys

import pytest

from coreclip import files
from coreclip.errors import CoreclipError


def test_an_atomic_file_appears_whole(tmp_path):
    with files.atomic_path(tmp_path / "out.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "out.txt").exists()
    assert (tmp_path / "out.txt").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "out.txt").write_text("old")

    def fail_half_way():
        with files.atomic_path(tmp_path / "out.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (tmp_path / "out.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_an_atomic_directory_replaces_the_old_one(tmp_path):
    for content in ("old", "new"):
        with files.atomic_path(tmp_path / "out") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_round_trip_keeps_text_beyond_ascii(tmp_path):
    files.write_json(tmp_path / "a.json", {"caption": "ein Käfer"})
    assert files.read_json(tmp_path / "a.json", "test") == {"caption": "ein Käfer"}
    assert "Käfer" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), (b"{", "damaged"), (b"\xff", "damaged")])
def test_json_that_cannot_be_read_is_named(tmp_path, content, words):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CoreclipError, match=f"run description.*a.json.*{words}|run description.*{words}"):
        files.read_json(path, "run description")


def test_json_of_a_directory_is_refused(tmp_path):
    with pytest.raises(CoreclipError, match="it is a directory"):
        files.read_json(tmp_path, "run description")


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_a_second_writer_is_refused_and_may_come_later(tmp_path):
    code = (
        "import sys; from coreclip import files\n"
        "from coreclip.errors import CoreclipError\n"
        "try:\n"
        "    with files.lock(sys.argv[1]): print('got it')\n"
        "except CoreclipError as error: print(error)"
    )

    def other_process() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True
        ).stdout

    with files.lock(tmp_path / "out"):
        assert "is being written by another process" in other_process()
    assert "got it" in other_process()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(tmp_path):
    with pytest.raises(CoreclipError, match=r"1099511627776 MiB needed, \d+ MiB free"):
        files.check_free_disk(tmp_path / "not" / "there", 1 << 60)
    files.check_free_disk(tmp_path, 1)


def test_remove_takes_trees_files_and_nothing(tmp_path):
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("tree", "file", "none"):
        files.remove(tmp_path / name)
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == "[]"
