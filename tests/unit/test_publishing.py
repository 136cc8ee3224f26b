"""Folders are whole or absent, and a folder is replaced in one step."""

import errno
import os
from pathlib import Path

import pytest

from coreclip.errors import CoreclipError
from coreclip.files import lock
from coreclip.pipeline import publishing
from coreclip.pipeline.publishing import new_folder, replace_folder, restore_folder


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "file").read_text() == "content"
    assert os.listdir(tmp_path) == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out") as folder:
        (folder / "none" / "file").write_text("content")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_command_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".out.building").mkdir()
    (tmp_path / ".out.building" / "half").write_text("half")
    with new_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
    assert os.listdir(tmp_path / "out") == ["file"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_replaced(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("kept")
    elif kind == "folder":
        out.mkdir()
        (out / "file").write_text("kept")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CoreclipError, match="nothing of yours is replaced"), new_folder(out):
        pass
    assert os.path.lexists(out)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path / "out"), pytest.raises(CoreclipError, match="another process"), new_folder(tmp_path / "out"):
        pass


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CoreclipError, match=r"the disk of .* is full"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="Input/output"), new_folder(tmp_path / "out"):
        raise OSError(errno.EIO, "Input/output error")
    assert os.listdir(tmp_path) == []


def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "new", tmp_path / "out"


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    new, out = two_folders(tmp_path)
    if not in_one_step:
        monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
    replace_folder(new, out)
    assert (out / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_this_system_exchanges_names_in_one_step(tmp_path: Path) -> None:
    new, out = two_folders(tmp_path)
    assert publishing._exchange(new, out)
    assert [(path / "file").read_text() for path in (new, out)] == ["out", "new"]


def test_a_crash_between_two_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, out = two_folders(tmp_path)
    monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
    rename, calls = os.rename, []

    def fail_second(*arguments: Path) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(*arguments)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, out)
    assert not out.exists()
    restore_folder(out)
    assert (out / "file").read_text() == "out"
    restore_folder(out)
    assert sorted(os.listdir(tmp_path)) == ["new", "out"]
