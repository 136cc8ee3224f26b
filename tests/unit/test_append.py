"""More pairs into a data set: old indices keep their meaning, and any crash leaves the old or the new data set."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coreclip.errors import CoreclipError
from coreclip.files import lock, read_json, write_json
from coreclip.pipeline import Dataset, append, convert, materialise, publishing, verify
from tests.unit.test_convert import SMALL, samples, write_tar


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    at = tmp_path_factory.mktemp("append")
    return [write_tar(at / f"{name}.tar", samples(n, first)) for name, n, first in (("a", 30, 0), ("b", 20, 30))]


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("append-data") / "data"
    convert(sources[:1], at, workers=1, **SMALL)
    return at


@pytest.fixture
def data(converted, tmp_path) -> Path:
    return shutil.copytree(converted, tmp_path / "data")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def keys(data: Path) -> list[str]:
    return Dataset(data).keys.tolist()


def test_new_pairs_come_after_the_old_ones(data, converted, sources):
    old = Dataset(converted)
    report = append(data, sources[1:], workers=1)
    new = Dataset(data)
    assert verify(data, decode="all").ok
    assert (report["pairs"], report["added"], report["rejected"]) == (len(new), len(new) - len(old), 3)
    assert keys(data)[: len(old)] == old.keys.tolist()
    for index in range(len(old)):
        assert new.image_bytes(index) == old.image_bytes(index)
    assert sorted([*keys(data), *pd.read_parquet(data / "rejects.parquet")["key"]]) == sorted(samples(50))
    assert new.tokenizer_sha256 == old.tokenizer_sha256
    assert new.fingerprint == report["fingerprint"] != old.fingerprint
    assert new.info["convert"]["options"] == old.info["convert"]["options"]
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_old_shards_are_shared_not_copied(data, sources):
    nodes = {path.name: path.stat().st_ino for path in data.glob("*.beton")}
    append(data, sources[1:], workers=1)
    assert {name: (data / name).stat().st_ino for name in nodes} == nodes


def test_a_subset_of_the_old_data_set_is_refused(data, sources, tmp_path):
    class Chosen:
        indices, weights, fingerprint = np.array([0]), np.ones(1), Dataset(data).fingerprint

    append(data, sources[1:], workers=1)
    with pytest.raises(CoreclipError, match="chosen from data set"):
        materialise(data, Chosen, tmp_path / "out")


def test_options_of_the_first_conversion_are_kept_where_they_make_sense(tmp_path, sources):
    convert(sources[:1], tmp_path / "data", workers=1, max_side=32, **SMALL)
    info = read_json(tmp_path / "data" / "dataset.json", "")
    info["convert"]["options"] |= {"quality": "high"}
    write_json(tmp_path / "data" / "dataset.json", info)
    append(tmp_path / "data", sources[1:], workers=1)
    assert Dataset(tmp_path / "data").pairs["width"].max() == 32


def test_appended_pairs_are_stored_as_the_others(sources, tmp_path):
    convert(sources[:1], tmp_path / "raw", raw=True, workers=1, **SMALL)
    append(tmp_path / "raw", sources[1:], workers=1)
    assert set(Dataset(tmp_path / "raw").pairs["mode"]) == {"raw"}


def test_a_link_stays_a_link(data, sources, tmp_path):
    (tmp_path / "link").symlink_to(data)
    append(tmp_path / "link", sources[1:], workers=1)
    assert (tmp_path / "link").is_symlink()
    assert len(Dataset(data)) == 43
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "link"]


def test_an_open_data_set_stays_readable(data, sources):
    old = Dataset(data)
    images = [old.image_bytes(index) for index in range(len(old))]
    with old.open_shards() as shards:
        append(data, sources[1:], workers=1)
        assert shards.n == len(old)
        assert [old.image_bytes(index) for index in range(len(old))] == images


def test_more_captions_than_before_widen_all_rows(data, tmp_path, sources):
    more = samples(3, 60)
    more["0060"]["txt"] = b"one\ntwo\nthree\nfour\nfive"
    before = Dataset(data).stored_tokens(range(5))
    append(data, [write_tar(tmp_path / "more.tar", more)], workers=1)
    made = Dataset(data)
    assert made.captions_per_row == 5
    assert np.array_equal(made.stored_tokens(range(5))[:, :3], before)
    assert verify(data).ok


def test_the_same_source_is_added_once(data, sources):
    append(data, sources[1:], workers=1)
    before = contents(data)
    for source in sources:
        with pytest.raises(CoreclipError, match=r"is in data set .* already"):
            append(data, [source], workers=1)
    assert contents(data) == before
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_sources_that_convert_refuses_leave_the_data_set_alone(data, tmp_path):
    before = contents(data)
    with pytest.raises(CoreclipError, match="does not exist"):
        append(data, [tmp_path / "nowhere.tar"], workers=1)
    with pytest.raises(CoreclipError, match="no pair in"):
        append(data, [write_tar(tmp_path / "bad.tar", {"x": {"jpg": b"broken", "txt": b"text"}})], workers=1)
    assert contents(data) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "data"]


def test_labels_must_fit(tmp_path, sources):
    labelled = {key: {**members, "cls": b"1"} for key, members in samples(4, 70).items()}
    numbered = write_tar(tmp_path / "labelled.tar", labelled)
    convert([numbered], tmp_path / "labelled", workers=1, **SMALL)
    with pytest.raises(CoreclipError, match="have class labels, the new ones have none"):
        append(tmp_path / "labelled", sources[1:], workers=1)
    convert(sources[1:], tmp_path / "plain", workers=1, **SMALL)
    append(tmp_path / "plain", [numbered], workers=1)
    assert Dataset(tmp_path / "plain").labels is None
    assert verify(tmp_path / "plain").ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labelled", "labelled.tar", "plain"]


def test_no_data_set_no_append(tmp_path, sources):
    with pytest.raises(CoreclipError, match="no data set"):
        append(tmp_path / "nowhere", sources, workers=1)
    with pytest.raises(CoreclipError, match="no data set"):
        append(tmp_path / "no" / "where", sources, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_are_refused(data, sources):
    with lock(data), pytest.raises(CoreclipError, match="another process"):
        append(data, sources[1:], workers=1)


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_failure_at_any_file_operation_leaves_the_old_or_the_new_data_set(
    data, converted, sources, monkeypatch, tmp_path, in_one_step
):
    """Fail the n-th fsync, rename, link and removal after the conversion, for every n."""
    if not in_one_step:
        monkeypatch.setattr(publishing, "_exchange", lambda one, other: False)
    old = contents(data)
    reference = shutil.copytree(data, tmp_path / "reference")
    append(reference, sources[1:], workers=1)
    new = contents(reference)
    names = ("fsync", "rename", "replace", "link", "rmdir")
    real = {name: getattr(os, name) for name in names}
    module = sys.modules["coreclip.pipeline.append"]
    swap = module._swap
    failed = 0
    for n in range(1, 200):
        calls = 0

        def counted(name, last=n):
            def call(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls == last:
                    raise KeyboardInterrupt
                return real[name](*arguments, **options)

            return call

        def failing(*arguments):
            with monkeypatch.context() as patched:
                for name in names:
                    patched.setattr(os, name, counted(name))
                return swap(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(module, "_swap", failing)
            try:
                append(data, sources[1:], workers=1)
            except KeyboardInterrupt:
                failed += 1
        if not data.exists():
            assert not in_one_step
            publishing.restore_folder(data)
        assert contents(data) in (old, new)
        if calls < n:
            break
        if contents(data) == new:  # the source would be refused now: begin anew
            shutil.rmtree(data)
            shutil.copytree(converted, data)
    assert failed > 10
    assert contents(data) == new


@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_killed_append_is_run_again(data, sources, delay, tmp_path):
    reference = shutil.copytree(data, tmp_path / "reference")
    append(reference, sources[1:], workers=1)
    code = "import sys; from coreclip.pipeline import append; append(sys.argv[1], sys.argv[2:], workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code, data, *sources[1:]], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(data.parent.glob(".*data*")):
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert verify(data).ok
    if len(Dataset(data)) < len(Dataset(reference)):
        append(data, sources[1:], workers=1)
    assert contents(data) == contents(reference)
