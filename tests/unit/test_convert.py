"""The whole conversion: the same bytes however it runs, resumed after a kill, refused where it must be."""

import gzip
import hashlib
import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from coreclip import files
from coreclip.errors import CoreclipError
from coreclip.files import read_json, write_json
from coreclip.pipeline import ConvertReport, Dataset, Tokenizer, convert, verify
from coreclip.pipeline.beton import read_shard
from coreclip.pipeline.job import check_job

SMALL = {"vocab_size": 300, "shard_bytes": 1 << 16, "context": 16}


def jpeg(seed: int, size: tuple[int, int] = (64, 64), **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def samples(n: int, first: int = 0) -> dict[str, dict[str, bytes]]:
    """Pairs of which every seventh is broken and every fifth has three captions and is progressive."""
    made = {}
    for i in range(first, first + n):
        image = b"broken" if i % 7 == 3 else jpeg(i, progressive=i % 5 == 0)
        text = "\n".join(
            f"the picture number {i} seen from {side}" for side in ("left", "right", "above")[: 1 + 2 * (i % 5 == 0)]
        )
        made[f"{i:04d}"] = {"jpg": image, "txt": text.encode()}
    return made


@pytest.fixture
def tar(tmp_path) -> Path:
    return write_tar(tmp_path / "pairs.tar", samples(60))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[str, Path | ConvertReport]:
    """A finished conversion, for tests that only look."""
    at = tmp_path_factory.mktemp("done")
    source = write_tar(at / "pairs.tar", samples(60))
    report = convert([source], at / "data", workers=2, **SMALL)
    return {"source": source, "data": at / "data", "report": report}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_every_sample_is_a_pair_or_a_reject(done):
    data, report = Dataset(done["data"]), done["report"]
    rejects = pd.read_parquet(done["data"] / "rejects.parquet")
    assert (report.pairs, report.rejected) == (len(data), len(rejects)) == (51, 9)
    assert sorted([*data.keys, *rejects["key"]]) == sorted(samples(60))
    assert set(rejects["source"]) == {"pairs.tar"}
    assert rejects["reason"].str.contains("not an image").all()
    assert report.bytes_out == sum(path.stat().st_size for path in done["data"].glob("*.beton"))
    assert not report.already_done


def test_baseline_jpegs_keep_their_bytes_and_progressive_ones_their_pixels(done):
    data, source = Dataset(done["data"]), samples(60)
    for index, key in enumerate(data.keys):
        original = source[key]["jpg"]
        row = data.pairs.iloc[index]
        assert row["content_hash"] == hashlib.sha256(original).hexdigest()
        assert row["transcoded"] == (int(key) % 5 == 0)
        if not row["transcoded"]:
            assert data.image_bytes(index) == original
        with Image.open(io.BytesIO(original)) as image:
            assert np.abs(data.image(index).astype(int) - np.asarray(image)).mean() < 8


def test_raw_pixels_are_those_that_pillow_decodes(tmp_path):
    source = write_tar(tmp_path / "pairs.tar", samples(12))
    convert([source], tmp_path / "raw", raw=True, workers=1, **SMALL)
    data = Dataset(tmp_path / "raw")
    assert set(data.pairs["mode"]) == {"raw"}
    assert data.pairs["transcoded"].all()
    for index, key in enumerate(data.keys):
        with Image.open(io.BytesIO(samples(12)[key]["jpg"])) as image:
            assert np.array_equal(data.image(index), np.asarray(image.convert("RGB")))
    assert verify(tmp_path / "raw").ok


def test_a_data_set_is_converted_to_small_raw_pixels_with_its_tokenizer(done, tmp_path):
    convert([done["data"]], tmp_path / "raw", tokenizer=done["data"], raw=True, max_side=24, workers=1, **SMALL)
    small, large = Dataset(tmp_path / "raw"), Dataset(done["data"])
    assert set(small.pairs["mode"]) == {"raw"}
    assert small.pairs[["width", "height"]].max().max() == 24
    assert [list(texts) for texts in small.pairs["captions"]] == [list(texts) for texts in large.pairs["captions"]]
    assert np.array_equal(small.stored_tokens(range(len(small))), large.stored_tokens(range(len(large))))


def test_a_data_set_of_jpegs_is_not_taken_for_one_of_pixels(done, tmp_path):
    shutil.copytree(done["data"], tmp_path / "data")
    description = read_json(tmp_path / "data" / "dataset.json", "")
    del description["convert"]["options"]["raw"]  # as data sets were described before there was a choice
    write_json(tmp_path / "data" / "dataset.json", description)
    assert convert([done["source"]], tmp_path / "data", workers=2, **SMALL).already_done
    with pytest.raises(CoreclipError, match=r"raw \(False there, True now\)"):
        convert([done["source"]], tmp_path / "data", raw=True, workers=2, **SMALL)


def test_captions_tokens_and_tables_agree_with_the_source(done):
    data, source = Dataset(done["data"]), samples(60)
    tokenizer = data.tokenizer()
    tokens = data.stored_tokens(range(len(data)))
    assert tokens.shape == (51, 3, 16)
    for index, key in enumerate(data.keys):
        captions = source[key]["txt"].decode().split("\n")
        assert data.captions(index) == captions == list(data.pairs["captions"].iloc[index])
        assert np.array_equal(tokens[index, : len(captions)], tokenizer.encode(captions, 16))
        assert not tokens[index, len(captions) :].any()


def test_shards_are_cut_and_counted(done):
    info = Dataset(done["data"]).info
    assert len(info["shards"]) > 2
    first = 0
    for entry in info["shards"]:
        with read_shard(done["data"] / entry["file"]) as shard:
            assert shard.rows == entry["rows"]
            assert shard.image_sizes.sum() <= 1.1 * (1 << 16), "what is stored is about as large as its source"
            keys = Dataset(done["data"]).keys[first : first + shard.rows]
            assert sum(len(samples(60)[key]["jpg"]) for key in keys) <= 1 << 16, "shards are cut by the sources' sizes"
            assert shard.index.tolist() == list(range(first, first + shard.rows))
        assert files.sha256_file(done["data"] / entry["file"]) == entry["sha256"]
        first += entry["rows"]
    assert first == info["n"] == info["pairs"] == 51
    assert info["rejected"] == 9


def test_nothing_but_the_data_set_is_left(done):
    assert {path.name for path in done["data"].parent.iterdir()} == {"pairs.tar", "data"}
    assert {path.name for path in done["data"].iterdir() if path.suffix != ".beton"} == {
        "dataset.json",
        "pairs.parquet",
        "rejects.parquet",
        "tokenizer.json",
    }


def test_one_worker_writes_the_same_bytes_as_two(done, tmp_path):
    convert([done["source"]], tmp_path / "data", workers=1, **SMALL)
    assert contents(tmp_path / "data") == contents(done["data"])


def test_the_check_of_large_conversions_accepts_and_refuses_the_same(tmp_path, monkeypatch):
    pairs = samples(30)
    whole = pairs["0001"]["jpg"]
    pairs["0001"]["jpg"] = whole[: len(whole) // 2]  # premature end
    pairs["0002"]["jpg"] = whole[:-2] + b"stray" * 5 + whole[-2:]  # harmless, and recorded
    source = write_tar(tmp_path / "a.tar", pairs)
    convert([source], tmp_path / "small", **SMALL)
    monkeypatch.setattr("coreclip.pipeline.preparing._BYTES_FOR_COMPILED_CODE", 0)
    convert([source], tmp_path / "large", **SMALL)
    assert contents(tmp_path / "large") == contents(tmp_path / "small")
    pairs_table = Dataset(tmp_path / "large").pairs
    assert pairs_table.set_index("key")["warning"]["0002"] != ""
    assert "0001" in set(pd.read_parquet(tmp_path / "large" / "rejects.parquet")["key"])


def test_the_same_conversion_again_is_verified_and_changes_nothing(done):
    before = {path: path.stat().st_mtime_ns for path in done["data"].iterdir()}
    report = convert([done["source"]], done["data"], workers=1, **SMALL)
    assert report.already_done
    assert (report.pairs, report.rejected) == (done["report"].pairs, done["report"].rejected)
    assert {path: path.stat().st_mtime_ns for path in done["data"].iterdir()} == before


def test_other_options_or_sources_are_refused_and_named(done, tmp_path):
    before = contents(done["data"])
    with pytest.raises(CoreclipError, match=r"with other context \(16 there, 24 now\); remove it or name another"):
        convert([done["source"]], done["data"], **{**SMALL, "context": 24})
    other = write_tar(tmp_path / "pairs.tar", samples(3))
    with pytest.raises(CoreclipError, match="with other sources"):
        convert([other], done["data"], **SMALL)
    assert contents(done["data"]) == before


@pytest.mark.parametrize("name", ["00001.beton", "pairs.parquet", "rejects.parquet", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_data_set_is_named_not_taken_for_done(name, damage, done, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(done["data"], data)
    content = bytearray((data / name).read_bytes())
    content[len(content) // 2] ^= 1
    (data / name).unlink() if damage == "missing" else (data / name).write_bytes(content)
    with pytest.raises(CoreclipError, match=rf"damaged: {name} .*convert again"):
        convert([done["source"]], data, **SMALL)


def converting(arguments: dict, **options) -> subprocess.Popen:
    """The conversion in a process of its own."""
    code = "import json, sys\nfrom coreclip.pipeline import convert\nconvert(**json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps(arguments, default=str)]
    # A shell's background jobs ignore Ctrl-C, and so would their children.
    return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_conversion_goes_on_and_ends_with_the_same_bytes(sent, tmp_path):
    source = write_tar(tmp_path / "pairs.tar", samples(130))
    arguments = {"sources": [source], "dataset": tmp_path / "data", "workers": 2, **SMALL}
    journal = tmp_path / ".data.partial" / "work" / "journal.jsonl"
    process = converting(arguments, stderr=subprocess.PIPE)
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2, process)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert not (tmp_path / "data").exists()
    whole = journal.read_bytes().count(b"\n")
    first_shard = tmp_path / ".data.partial" / "00000.beton"
    written = first_shard.stat().st_mtime_ns
    # A torn line and the piece of a shard are what a crash can leave besides.
    with open(journal, "a") as file:
        file.write('{"file": "00')
    (tmp_path / ".data.partial" / ".dataset.json.4028.tmp").write_text('{"bytes_in": 59')  # of a kill at the very end
    convert(**arguments)
    assert (tmp_path / "data" / "00000.beton").stat().st_mtime_ns == written, "whole shards are not written again"
    convert(**{**arguments, "dataset": tmp_path / "undisturbed"})
    assert contents(tmp_path / "data") == contents(tmp_path / "undisturbed")
    assert len(Dataset(tmp_path / "data").info["shards"]) > whole >= 2


def test_a_partial_conversion_of_something_else_is_begun_anew(done, tmp_path):
    partial = tmp_path / ".data.partial"
    (partial / "work").mkdir(parents=True)
    files.write_json(partial / "work" / "request.json", {"sources": [], "options": {}, "version": "0"})
    files.write_json(partial / "work" / "plan.json", {"rows": 3})
    (partial / "00000.beton").write_bytes(b"of another conversion")
    convert([done["source"]], tmp_path / "data", **SMALL)
    assert contents(tmp_path / "data") == contents(done["data"])


def test_a_conversion_stopped_just_before_it_is_published_is_published(done, tmp_path):
    shutil.copytree(done["data"], tmp_path / ".data.partial")
    (tmp_path / ".data.partial" / "work").mkdir()
    before = contents(done["data"])
    assert convert([done["source"]], tmp_path / "data", **SMALL).pairs == 51
    assert contents(tmp_path / "data") == before
    assert not (tmp_path / ".data.partial").exists()
    assert not (tmp_path / "data" / "work").exists()


def workers_of(pid: int) -> list[int]:
    """Child processes that serve a conversion; there may be others, such as multiprocessing's resource tracker."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += list(map(int, (task / "children").read_text().split()))
    return [child for child in found if b"coreclip.pipeline.workers" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_worker_that_is_killed_ends_the_conversion_with_its_reason(tmp_path):
    source = write_tar(tmp_path / "pairs.tar", samples(130))
    errors = []

    def run() -> None:
        try:
            convert([source], tmp_path / "data", workers=2, **SMALL)
        except CoreclipError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: workers_of(os.getpid()))
    os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert "SIGKILL" in errors[0]
    assert not (tmp_path / "data").exists()
    convert([source], tmp_path / "data", **SMALL)
    assert Dataset(tmp_path / "data").n == sum(i % 7 != 3 for i in range(130))


def test_a_second_writer_is_refused(tar, tmp_path):
    with files.lock(tmp_path / "data"), pytest.raises(CoreclipError, match="being written by another"):
        convert([tar], tmp_path / "data", **SMALL)


def test_what_is_no_data_set_is_not_replaced(tar, tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("kept")
    for name in ("file", "folder"):
        with pytest.raises(CoreclipError, match=f"{name} exists and is not a data set"):
            convert([tar], tmp_path / name, **SMALL)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "thesis.txt").read_text() == "kept"


def test_an_empty_folder_is_filled(tar, tmp_path):
    (tmp_path / "data").mkdir()
    assert convert([tar], tmp_path / "data", **SMALL).pairs == 51


def test_no_pair_at_all_is_an_error_with_the_reasons(tmp_path):
    bad = {f"{i}": {"jpg": b"broken", "txt": b"text"} for i in range(3)} | {"lonely": {"txt": b"text"}}
    source = write_tar(tmp_path / "bad.tar", bad)
    with pytest.raises(
        CoreclipError, match=r"no pair in .*bad\.tar: 1 x text without an image.*3 x not an image"
    ) as caught:
        convert([source], tmp_path / "data", **SMALL)
    assert "\n" not in str(caught.value)
    with pytest.raises(CoreclipError, match=r"no pair in .*empty\.tar: .*they hold no sample"):
        convert([write_tar(tmp_path / "empty.tar", {})], tmp_path / "data", **SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"bad.tar", "empty.tar"}


def test_rejects_at_the_end_are_kept_too(tmp_path):
    source = write_tar(tmp_path / "a.tar", {"0": {"jpg": jpeg(0), "txt": b"t"}, "1": {"jpg": b"broken", "txt": b"t"}})
    convert([source], tmp_path / "data", **SMALL)
    assert pd.read_parquet(tmp_path / "data" / "rejects.parquet")["key"].tolist() == ["1"]


def test_an_image_larger_than_the_page_begins_a_shard_with_a_larger_one(tmp_path):
    large = jpeg(1, (1400, 1400), quality=95)
    assert len(large) > 1 << 21
    source = write_tar(
        tmp_path / "a.tar", {str(i): {"jpg": large if i == 2 else jpeg(i), "txt": b"t"} for i in range(20)}
    )
    convert([source], tmp_path / "data", vocab_size=300)
    data = Dataset(tmp_path / "data")
    assert data.image_bytes(2) == large
    assert [shard["rows"] for shard in data.info["shards"]] == [2, 18]


def test_large_images_share_pages_so_that_little_of_a_shard_is_padding(tmp_path):
    images = {str(i): {"jpg": jpeg(i, (1000, 1100), quality=95), "txt": b"t"} for i in range(24)}
    n_bytes = sum(len(image["jpg"]) for image in images.values())
    assert n_bytes / 24 > 1 << 20  # one would lie in a page of 2 MiB alone
    convert([write_tar(tmp_path / "a.tar", images)], tmp_path / "data", vocab_size=300)
    (shard,) = Dataset(tmp_path / "data").info["shards"]
    assert shard["bytes"] < 1.7 * n_bytes  # the first page of 16 MiB is the header's and the metadata's


def test_columns_of_the_sources_are_kept_with_one_type_each(tmp_path):
    rows = [
        {"caption": "a", "score": 1, "width": 9},
        {"caption": "b", "score": 0.5, "tag": "x"},
        {"caption": "c", "tag": 3},
    ]
    source = write_tar(
        tmp_path / "a.tar", {str(i): {"jpg": jpeg(i), "json": json.dumps(row).encode()} for i, row in enumerate(rows)}
    )
    convert([source], tmp_path / "data", **SMALL)
    pairs = Dataset(tmp_path / "data").pairs
    assert pairs["score"].tolist()[:2] == [1.0, 0.5]
    assert pairs["tag"].tolist()[1:] == ["x", "3"]
    assert pairs["source_width"].tolist()[0] == 9
    assert pairs["width"].tolist() == [64] * 3


def test_idx_becomes_labels_and_captions_of_the_template(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in pixels.shape)
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    (tmp_path / "t-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 6, 0, 1, 2, 2, 1, 0])))
    arguments = {"class_names": ["cat", "dog", "owl"], "template": "a photo of a {}"}
    convert([tmp_path / "t-images-idx3-ubyte.gz"], tmp_path / "data", **arguments, **SMALL)
    data = Dataset(tmp_path / "data")
    assert data.labels.tolist() == [0, 1, 2, 2, 1, 0]
    assert data.class_names == ["cat", "dog", "owl"]
    assert data.captions(2) == ["a photo of a owl"]
    assert np.array_equal(data.image(4), np.repeat(pixels[4][..., None], 3, axis=2))


def test_a_pair_without_a_label_among_labelled_ones_is_refused(tmp_path):
    source = write_tar(
        tmp_path / "a.tar", {"0": {"jpg": jpeg(0), "cls": b"1"}, "1": {"jpg": jpeg(1), "txt": b"no class"}}
    )
    assert convert([source], tmp_path / "data", class_names=["cat", "dog"], **SMALL).pairs == 1
    assert "no class number" in pd.read_parquet(tmp_path / "data" / "rejects.parquet")["reason"].item()


def test_a_tokenizer_is_taken_from_a_file_or_a_data_set(done, tar, tmp_path):
    Tokenizer.train(["some other words"] * 4, 280).save(tmp_path / "t.json")
    for i, source in enumerate((tmp_path / "t.json", done["data"])):
        convert([tar], tmp_path / f"data{i}", tokenizer=source, **SMALL)
        path = source / "tokenizer.json" if source.is_dir() else source
        assert (tmp_path / f"data{i}" / "tokenizer.json").read_bytes() == path.read_bytes()


def test_a_disk_that_is_too_small_is_noticed_before_the_work(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    size = 200 << 20
    n = shutil.disk_usage(tmp_path).free // size + 1
    with open(images / "0.jpg", "wb") as file:
        file.truncate(size)  # a hole that takes no disk
    for i in range(1, n):
        os.link(images / "0.jpg", images / f"{i}.jpg")
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{i}.jpg,text\n" for i in range(n)))
    with pytest.raises(CoreclipError, match=r"not enough disk for .*data: .* MiB needed"):
        convert([images], tmp_path / "data", captions=tmp_path / "t.csv", **SMALL)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 3}, "context = 3 is not allowed: 4 to 1024"),
        ({"workers": 0}, "workers = 0 is not allowed: 1 to 256"),
        ({"shard_bytes": 10}, "shard_bytes = 10 is not allowed"),
        ({"max_side": 0}, "max_side = 0 is not allowed: at least 1"),
        ({"check": "none"}, "check = none is not allowed: decode or header"),
        ({"max_pixels": 0}, "max_pixels = 0 is not allowed"),
        ({"quality": 100}, "quality = 100 is not allowed: 1 to 95"),
        ({"vocab_size": 10}, "vocab_size = 10 is not allowed: 260"),
        ({"template": "a photo"}, "template = 'a photo' is not allowed"),
        ({"template": "a {x} {"}, "is not allowed: it has {} once"),
        ({"template": "{0.__class__}"}, "is not allowed: it has {} once"),
        ({"class_names": "cat"}, "--classes cat is not allowed: a list"),
        ({"class_names": ["a", "a"]}, "--classes a,a is not allowed: a list of different names"),
        ({"class_names": []}, "--classes"),
        (
            {"class_names": ["a", "b"]},
            "classes a,b are named, but no pair .* class number; convert sources that have, or leave --classes out",
        ),
        ({"tokenizer": "none.json"}, "tokenizer none.json can't be read: No such file"),
    ],
)
def test_options_that_are_not_allowed_are_named_with_their_rule(options, message, tar, tmp_path):
    with pytest.raises(CoreclipError, match=message):
        convert([tar], tmp_path / "data", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.tar"}


def test_the_facade_gives_the_functions_even_after_their_modules_were_imported():
    code = (
        "import coreclip.pipeline.convert, coreclip.pipeline.inspect, coreclip.pipeline as p\n"
        "from coreclip.pipeline import convert, inspect\n"
        "assert callable(convert) and callable(inspect) and callable(p.convert)\n"
        "assert set(p.__all__) <= set(dir(p)) and not hasattr(p, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_checked_job_has_the_defaults_of_convert():
    assert inspect.signature(check_job).parameters == inspect.signature(convert).parameters
