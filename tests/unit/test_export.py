"""WebDataset archives that other loaders, and convert, read back with the same bytes, captions, labels and keys."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, convert, export_webdataset
from tests.helpers import make_dataset
from tests.unit.test_merge import edit


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    at = tmp_path_factory.mktemp("export") / "data"
    make_dataset(at, 14, captions_per_pair=(1, 3), raw_every=4, size=(24, 32), labels=["x", "y"]).close()
    return edit(at, score=[i / 2 if i % 3 else None for i in range(14)], place=["here"] * 14)


def read(folder: Path) -> list[dict]:
    urls = sorted(map(str, folder.glob("*.tar")))
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def test_webdataset_reads_it(data, tmp_path):
    report = export_webdataset(data, tmp_path / "out")
    samples = read(tmp_path / "out")
    assert (report["pairs"], report["shards"], report["changed_keys"]) == (14, 1, 0)
    assert report["bytes_out"] == (tmp_path / "out" / "00000.tar").stat().st_size
    assert [sample["__key__"] for sample in samples] == data.keys.tolist()
    for index, sample in enumerate(samples):
        if index % 4 == 0:
            with Image.open(io.BytesIO(sample["png"])) as image:
                assert np.array_equal(np.asarray(image), data.image(index))
        else:
            assert sample["jpg"] == data.image_bytes(index)
        described = json.loads(sample["json"])
        assert described["captions"] == data.captions(index)
        assert sample["txt"].decode() == data.captions(index)[0]
        assert int(sample["cls"]) == data.labels[index]
        assert described["place"] == "here"
        assert described.get("score") == (index / 2 if index % 3 else None)


def test_convert_reads_it_back(data, tmp_path):
    export_webdataset(data, tmp_path / "out", shard_bytes=1 << 16)
    convert([tmp_path / "out"], tmp_path / "back", class_names=["x", "y"], workers=1, tokenizer=data.path, context=16)
    back = Dataset(tmp_path / "back")
    assert back.keys.tolist() == data.keys.tolist()
    assert np.array_equal(back.labels, data.labels)
    assert np.array_equal(back.stored_tokens(range(14)), data.stored_tokens(range(14)))
    assert back.pairs["place"].tolist() == ["here"] * 14
    for index in range(14):
        assert back.image_bytes(index) == data.image_bytes(index)
        assert back.captions(index) == data.captions(index)


def test_the_bytes_are_always_the_same(data, tmp_path):
    for name in ("one", "two"):
        export_webdataset(data, tmp_path / name)
    assert (tmp_path / "one" / "00000.tar").read_bytes() == (tmp_path / "two" / "00000.tar").read_bytes()
    with tarfile.open(tmp_path / "one" / "00000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}


def test_archives_end_at_their_size_and_lose_nothing(tmp_path):
    source = make_dataset(tmp_path / "data", 30, size=(200, 150))
    report = export_webdataset(source, tmp_path / "out", shard_bytes=1 << 16)
    assert report["shards"] == len(list((tmp_path / "out").glob("*.tar"))) > 2
    assert all(path.stat().st_size <= (1 << 16) + tarfile.RECORDSIZE for path in (tmp_path / "out").glob("*.tar"))
    assert [sample["__key__"] for sample in read(tmp_path / "out")] == source.keys.tolist()


def test_a_subset_is_written_with_its_weights(data, tmp_path):
    class Chosen:
        indices, weights, fingerprint = np.array([9, 2]), np.array([0.25, 2.0]), data.fingerprint

    export_webdataset(data, tmp_path / "out", subset=Chosen)
    samples = read(tmp_path / "out")
    assert [sample["__key__"] for sample in samples] == ["k0002", "k0009"]
    assert [json.loads(sample["json"])["weight"] for sample in samples] == [2.0, 0.25]
    Chosen.fingerprint = "other"
    with pytest.raises(CoreclipError, match="chosen from data set other"):
        export_webdataset(data, tmp_path / "refused", subset=Chosen)


def test_keys_become_safe_and_unique(tmp_path):
    make_dataset(tmp_path / "data", 8, size=(24, 32)).close()
    keys = ["same", "same", "../../etc/passwd", "a.b", "/root", "same-1", "", "long " * 100]
    data = edit(tmp_path / "data", key=keys)
    report = export_webdataset(data, tmp_path / "out")
    samples = read(tmp_path / "out")
    names = [sample["__key__"] for sample in samples]
    assert [json.loads(sample["json"])["key"] for sample in samples] == keys
    assert len(set(names)) == 8
    assert names[0] == "same"
    assert names[5] == "same-1"
    assert report["changed_keys"] == 6
    assert all("." not in name and not name.startswith("/") and 0 < len(name) < 130 for name in names)
    assert [sample["jpg"] for sample in samples] == [data.image_bytes(i) for i in range(8)]


@pytest.mark.parametrize("shard_bytes", [0, 1000])
def test_a_size_that_is_too_small_is_refused(data, tmp_path, shard_bytes):
    with pytest.raises(CoreclipError, match="shard_bytes"):
        export_webdataset(data, tmp_path / "out", shard_bytes=shard_bytes)


def test_nothing_is_replaced_and_damage_is_not_exported(data, tmp_path):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(CoreclipError, match="nothing of yours is replaced"):
        export_webdataset(data, tmp_path / "out")
    make_dataset(tmp_path / "data", 4).close()
    edit(tmp_path / "data", captions=[["other"]] * 4)
    with pytest.raises(CoreclipError, match=r"pair 0 of .* is damaged: captions"):
        export_webdataset(tmp_path / "data", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]
