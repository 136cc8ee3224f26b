"""A data set on disk: what was stored is read by index, lazily, and whatever does not fit together is named."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from coreclip.errors import CoreclipError
from coreclip.pipeline.dataset import Dataset
from tests.helpers import encode_jpeg, make_captions, make_dataset, make_pixels

N = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """Three shards; JPEG and raw images of many sizes; one to three captions; labels; a warning for pair 4."""
    path = tmp_path_factory.mktemp("dataset") / "data"
    with make_dataset(
        path, N, captions_per_pair=(1, 3, 2), raw_every=5, labels=["x", "y"], warnings={4: "stray bytes"}
    ) as made:
        yield made


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A small data set to damage."""
    make_dataset(tmp_path / "data", 4, rows_per_shard=2).close()
    return tmp_path / "data"


def size_of(i: int) -> tuple[int, int]:
    return 48 + 8 * (i % 3), 32 + 8 * (i % 2)


def edit(path: Path, **changes: Any) -> None:
    info = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps({**info, **changes}))


def test_every_pair_is_read_by_its_index(dataset: Dataset) -> None:
    texts, offsets = dataset.all_captions()
    for i in range(N):
        expected = make_captions(i, (1, 3, 2)[i % 3])
        assert dataset.captions(i) == expected
        assert texts[offsets[i] : offsets[i + 1]] == expected
        image = dataset.image(i)
        assert image.shape == (*size_of(i)[::-1], 3)
        assert np.abs(image.astype(int) - make_pixels(i, *size_of(i))).mean() < (0.001 if i % 5 == 0 else 8)
        if i % 5:
            assert dataset.image_bytes(i) == encode_jpeg(make_pixels(i, *size_of(i)))


def test_attributes(dataset: Dataset) -> None:
    assert (len(dataset), dataset.n, dataset.context, dataset.captions_per_row) == (N, N, 16, 3)
    assert dataset.class_names == ["x", "y"]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [i % 2 for i in range(N)]
    assert dataset.keys.tolist() == [f"k{i:04d}" for i in range(N)]
    assert np.flatnonzero(dataset.tolerated).tolist() == [4]
    assert dataset.pairs["index"].tolist() == list(range(N))
    assert {"key", "shard", "row", "captions", "width", "warning", "label"} <= set(dataset.pairs.columns)
    assert dataset.column_names == dataset.pairs.columns.tolist()
    assert dataset.tokenizer().sha256 == dataset.tokenizer_sha256
    assert repr(dataset) == f"Dataset({str(dataset.path)!r}, n=12)"


def test_stored_tokens_come_in_the_order_of_the_indices(dataset: Dataset) -> None:
    indices = np.array([11, 0, 5, 5, 4])
    tokens = dataset.stored_tokens(indices)
    assert (tokens.shape, tokens.dtype) == ((5, 3, 16), np.uint16)
    for i, stored in zip(indices, tokens, strict=True):
        captions = make_captions(i, (1, 3, 2)[i % 3])
        assert np.array_equal(stored[: len(captions)], dataset.tokenizer().encode(captions, 16))
        assert not stored[len(captions) :].any()
    assert dataset.stored_tokens([]).shape == (0, 3, 16)


def test_the_set_of_shards_has_each_pairs_bytes_at_its_address(dataset: Dataset) -> None:
    import ctypes

    with dataset.open_shards() as shards:
        assert (len(shards), shards.captions_per_row, shards.context) == (N, 3, 16)
        assert shards.shard.tolist() == [i // 5 for i in range(N)]
        assert shards.mode.tolist() == [int(i % 5 == 0) for i in range(N)]
        assert np.flatnonzero(shards.tolerated).tolist() == [4]
        assert list(zip(shards.width.tolist(), shards.height.tolist(), strict=True)) == [size_of(i) for i in range(N)]
        shards.prefetch(np.arange(N)[::-1])
        shards.prefetch(np.array([], np.int64))
        for i in range(N):
            stored = ctypes.string_at(int(shards.image_address[i]), int(shards.image_size[i]))
            assert stored == dataset.image_bytes(i)
            tokens = ctypes.string_at(int(shards.token_address[i]), 3 * 16 * 2)
            assert np.array_equal(np.frombuffer(tokens, np.uint16).reshape(1, 3, 16), dataset.stored_tokens([i]))
    assert shards.closed
    shards.close()


def test_closing_lets_the_data_set_be_used_again(dataset: Dataset) -> None:
    before = dataset.image_bytes(0)
    dataset.close()
    assert dataset.image_bytes(0) == before


def test_opening_reads_the_description_alone(broken: Path) -> None:
    for file in broken.iterdir():
        if file.name != "dataset.json":
            file.unlink()
    dataset = Dataset(broken)
    assert dataset.n == 4
    assert dataset.labels is None
    for use in (lambda: dataset.pairs, lambda: dataset.keys, dataset.all_captions):
        with pytest.raises(CoreclipError, match=r"pairs\.parquet is missing, and a data set has one"):
            use()
    with pytest.raises(CoreclipError, match=r"00000\.beton can't be read: No such file"):
        dataset.image(0)
    with pytest.raises(CoreclipError, match=r"tokenizer\.json"):
        dataset.tokenizer()


def test_opening_imports_nothing_heavy() -> None:
    code = (
        "import sys, coreclip.pipeline.dataset; print({'ffcv', 'torch', 'pandas', 'pyarrow', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("index", [-1, N, 1 << 40])
def test_an_index_that_is_not_there_is_refused(dataset: Dataset, index: int) -> None:
    for use in (dataset.image, dataset.captions, dataset.image_bytes, lambda i: dataset.stored_tokens([0, i])):
        with pytest.raises(CoreclipError, match=f"index {index} is not in .*: it must be 0 to 11"):
            use(index)


@pytest.mark.parametrize("indices", [[True, False], [0.5], [[0]]])
def test_indices_of_another_kind_are_refused(dataset: Dataset, indices: Any) -> None:
    with pytest.raises(CoreclipError, match="are not allowed: they must be a list of integers"):
        dataset.stored_tokens(indices)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CoreclipError, match="it is not a folder; name the folder"):
        Dataset(tmp_path / "none")
    with pytest.raises(CoreclipError, match=r"dataset\.json is missing; run `coreclip convert`"):
        Dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(CoreclipError, match=r"data set description .*dataset\.json is damaged"):
        Dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(CoreclipError, match="has the format version null, this coreclip reads 1"):
        Dataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2, this coreclip reads 1; convert again"),
        ({"n": "4"}, 'n is "4", it must be of type int'),
        ({"n": True}, "n is true, it must be of type int"),
        ({"n": 5}, "n is 5 and the shards have 4 rows"),
        ({"class_names": {}}, "class_names is {}, it must be of type list or NoneType"),
        ({"class_names": [1]}, "class_names has an entry that is no text"),
        ({"shards": [7]}, "file is null, it must be of type str"),
        ({"shards": []}, "n is 4 and the shards have 0 rows"),
        (
            {"shards": [{"file": "../a.beton", "rows": 4, "bytes": 1, "sha256": ""}]},
            r"a shard is called '\.\./a\.beton', it must be the plain name",
        ),
        ({"fields": ["image"]}, r'fields is \["image"\]'),
        ({"context": 0}, r"\(captions_per_row, context\) is \(2, 0\)"),
        ({"fingerprint": None}, "fingerprint is null"),
    ],
)
def test_a_description_that_makes_no_sense_is_named(broken: Path, changes: dict[str, Any], message: str) -> None:
    edit(broken, **changes)
    with pytest.raises(CoreclipError, match=message):
        Dataset(broken)


def test_a_shard_of_another_data_set_is_refused(broken: Path) -> None:
    (broken / "00000.beton").write_bytes((broken / "00001.beton").read_bytes())
    with pytest.raises(CoreclipError, match=r"00000\.beton has .*, dataset\.json says .*they are not of one data set"):
        Dataset(broken).image(0)
    with pytest.raises(CoreclipError, match="they are not of one data set"):
        Dataset(broken).open_shards()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 17}, "has a context of 16, dataset.json says 17"),
        ({"captions_per_row": 3}, "has captions per row: 2, dataset.json says 3"),
        ({"fields": ["image", "captions", "tokens", "index", "label"]}, r"has the fields \['image'"),
    ],
)
def test_a_shard_that_is_not_as_described_is_refused(broken: Path, changes: dict[str, Any], message: str) -> None:
    edit(broken, **changes)
    with pytest.raises(CoreclipError, match=message):
        Dataset(broken).image(0)


def test_the_first_damaged_shard_is_named_and_the_others_are_unmapped(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", 12, rows_per_shard=1).close()
    for number in (4, 9):
        (tmp_path / "data" / f"{number:05d}.beton").write_bytes(b"nothing")
    with pytest.raises(CoreclipError, match=r"00004\.beton is damaged"):
        Dataset(tmp_path / "data").open_shards()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("n", [1 << 50, 1 << 62])
def test_more_pairs_than_memory_holds_are_refused(broken: Path, n: int) -> None:
    edit(broken, n=n, shards=[{"file": "00000.beton", "rows": n, "bytes": 1, "sha256": ""}])
    with pytest.raises(
        CoreclipError, match=f"has {n} pairs by its dataset.json, and a loader needs 34 bytes of memory"
    ):
        Dataset(broken).open_shards()


_FEW_FILES = """
import os, resource, sys
from coreclip.pipeline.dataset import Dataset
few = len(os.listdir("/proc/self/fd")) + 12
resource.setrlimit(resource.RLIMIT_NOFILE, (few, int(sys.argv[2]) or few))
with Dataset(sys.argv[1]).open_shards() as shards:
    print(len(shards), shards.image_size.all())
"""


def test_a_data_set_may_have_more_shards_than_files_are_allowed_at_first(tmp_path: Path) -> None:
    path = tmp_path / "data"
    make_dataset(path, 20, rows_per_shard=1).close()
    command = [sys.executable, "-c", _FEW_FILES, str(path)]
    done = subprocess.run([*command, "1000"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["20", "True"]
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
    assert "Too many open files; raise this process's limit of open files, ulimit -n" in done.stderr


def test_a_single_read_opens_its_own_shard_alone(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", 4, rows_per_shard=2).close()
    (tmp_path / "data" / "00000.beton").unlink()
    with Dataset(tmp_path / "data") as dataset:
        assert dataset.image(3).shape == (40, 48, 3)
        assert dataset.captions(2) == make_captions(2, 2)
        assert list(dataset._open) == [1]


def test_a_truncated_shard_is_refused_before_any_batch(broken: Path) -> None:
    file = broken / "00001.beton"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CoreclipError, match=r"00001\.beton is damaged"):
        Dataset(broken).open_shards()


def change_pairs(path: Path, change: Any) -> None:
    table = pd.read_parquet(path / "pairs.parquet")
    change(table).to_parquet(path / "pairs.parquet", index=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[::-1], "its rows must be the 4 pairs in order"),
        (lambda table: table[:3], "its rows must be the 4 pairs in order"),
        (lambda table: table.assign(key=[None, "a", "b", "c"]), r"without gaps in \['key'\]"),
        (lambda table: table.drop(columns="key"), r"pairs\.parquet has no column 'key'"),
    ],
)
def test_a_table_that_is_not_the_pairs_is_refused(broken: Path, change: Any, message: str) -> None:
    change_pairs(broken, change)
    with pytest.raises(CoreclipError, match=message):
        _ = Dataset(broken).keys


@pytest.mark.parametrize("name", ["tolerated", "labels"])
@pytest.mark.parametrize(
    "change", [lambda t: t.iloc[[0, 1, 2, 3, 5, 4, 6, 7]], lambda t: t[:7], lambda t: pd.concat([t, t])]
)
def test_a_column_in_pieces_is_checked_like_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any
) -> None:
    monkeypatch.setattr("coreclip.pipeline.dataset._TABLE_PIECE", 3)
    make_dataset(tmp_path / "data", 8, labels=["x", "y"], warnings={1: "a", 6: "b"}).close()
    expected = {"tolerated": [i in (1, 6) for i in range(8)], "labels": [i % 2 for i in range(8)]}
    assert getattr(Dataset(tmp_path / "data"), name).tolist() == expected[name]
    change_pairs(tmp_path / "data", change)
    with pytest.raises(CoreclipError, match="its rows must be the 8 pairs in order, without gaps"):
        getattr(Dataset(tmp_path / "data"), name)


def test_a_gap_in_a_column_in_pieces_is_refused(broken: Path) -> None:
    change_pairs(broken, lambda table: table.assign(warning=["", "", None, ""]))
    with pytest.raises(CoreclipError, match=r"without gaps in \['warning'\]"):
        Dataset(broken).open_shards()


def test_a_table_that_is_no_parquet_is_refused(broken: Path) -> None:
    (broken / "pairs.parquet").write_bytes(b"nonsense")
    with pytest.raises(CoreclipError, match=r"pairs\.parquet is damaged \("):
        _ = Dataset(broken).pairs


def test_metadata_are_columns_and_the_first_captions(dataset: Dataset) -> None:
    assert dataset.metadata("width").tolist() == [size_of(i)[0] for i in range(N)]
    assert dataset.metadata("caption").tolist() == [make_captions(i, 1)[0] for i in range(N)]
    with pytest.raises(CoreclipError, match="aesthetics"):
        dataset.metadata("aesthetics")


@pytest.mark.parametrize("captions", [[[], ["a"], ["a"], ["a"]], [["a"], ["a", None], ["a"], ["a"]]])
def test_captions_that_are_not_there_are_refused(broken: Path, captions: Any) -> None:
    change_pairs(broken, lambda table: table.assign(captions=captions))
    with pytest.raises(CoreclipError, match="each pair must have one caption or more"):
        Dataset(broken).all_captions()


def test_labels_beyond_the_class_names_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", 4, labels=["x", "y"]).close()
    change_pairs(tmp_path / "data", lambda table: table.assign(label=[0, 1, 2, 0]))
    with pytest.raises(CoreclipError, match="labels must be integers from 0 to 1"):
        _ = Dataset(tmp_path / "data").labels


def test_another_tokenizer_is_refused(broken: Path, dataset: Dataset) -> None:
    (broken / "tokenizer.json").write_bytes((dataset.path / "tokenizer.json").read_bytes())
    with pytest.raises(CoreclipError, match=r"has the hash .*, the data set's tokens were made with"):
        Dataset(broken).tokenizer()


def test_an_image_that_is_not_what_it_should_be_is_refused(tmp_path: Path) -> None:
    good = encode_jpeg(make_pixels(0))
    images = {
        0: good[: len(good) // 2],
        1: b"garbage",
        2: encode_jpeg(make_pixels(2, 64, 64)),
        3: good[:-2] + b"junk\xff\xd9",
    }
    with make_dataset(tmp_path / "data", 4, size=(48, 32), images=images) as dataset:
        for i, cause in enumerate(["(?i:truncated)", "cannot identify", "it has 64 x 64 pixels, not 48 x 32"]):
            with pytest.raises(CoreclipError, match=f"the image of pair {i} in .* can't be decoded: .*{cause}"):
                dataset.image(i)
        assert dataset.image(3).shape == (32, 48, 3)  # stray bytes are harmless


def test_a_grey_jpeg_becomes_rgb(tmp_path: Path) -> None:
    grey = encode_jpeg(make_pixels(0)[:, :, 0])
    with make_dataset(tmp_path / "data", 1, images={0: grey}) as dataset:
        assert dataset.image(0).shape == (32, 48, 3)
