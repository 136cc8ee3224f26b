"""DataComp's metadata folders: what is read, what its baselines keep, and its files of uids."""

import zipfile

import numpy as np
import pandas as pd
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import (
    Features,
    clip_scores,
    datacomp_baseline,
    is_datacomp,
    load_uids,
    parse_uids,
    read_datacomp,
    save_uids,
    select,
)
from coreclip.selection.english import looks_english
from coreclip.selection.shardrows import ShardedRows
from tests.datacomp_pool import make_pool


def published(table, keep):
    """The kept uids as DataComp's tool saves them: number pairs in ascending order."""
    pairs = [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in table["uid"][np.asarray(keep)]]
    array = np.array(pairs, np.dtype("u8,u8"))
    array.sort()
    return array


@pytest.fixture
def pool(tmp_path):
    table = make_pool(tmp_path / "metadata")
    return tmp_path / "metadata", table


def test_columns_come_in_the_order_of_the_files(pool):
    folder, table = pool
    found = read_datacomp(folder)
    assert found.n == len(table) == 100
    assert (
        found.metadata("caption").tolist() == table["text"].astype(object).where(table["text"].notna(), None).tolist()
    )
    assert found.metadata("url").tolist() == table["url"].tolist()
    np.testing.assert_array_equal(found.metadata("width"), table["original_width"].to_numpy(float, na_value=np.nan))
    np.testing.assert_array_equal(found.scores("b32"), table["clip_b32_similarity_score"])
    assert [f"{a:016x}{b:016x}" for a, b in found.uids.tolist()] == table["uid"].tolist()


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.77, 0.97])
@pytest.mark.parametrize("arch", ["l14", "b32"])
def test_a_fraction_keeps_what_the_published_rule_keeps(pool, fraction, arch):
    folder, table = pool
    scores = table[f"clip_{arch}_similarity_score"].to_numpy()
    threshold = -np.sort(-scores)[int(len(scores) * fraction)]
    found = datacomp_baseline(folder, "clip_score", arch=arch, fraction=fraction)
    expected = published(table, scores >= threshold) if not np.isnan(threshold) else published(table, ~np.isnan(scores))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.dtype("u8,u8")
    assert fraction == 0.97 or len(found) > int(100 * fraction) + 1, "no scores tie at the threshold"


def test_without_ties_a_fraction_keeps_the_pair_at_the_threshold_too(tmp_path):
    scores = np.random.default_rng(0).permutation(10) / 10
    uids = [f"{i:032x}" for i in range(10)]
    pd.DataFrame({"uid": uids, "clip_l14_similarity_score": scores}).to_parquet(tmp_path / "0.parquet")
    found = datacomp_baseline(tmp_path, "clip_score", fraction=0.3)
    assert sorted(found["f1"].tolist()) == sorted(np.argsort(-scores)[:4].tolist())


def test_a_fraction_of_1_keeps_all_that_have_a_score(pool):
    folder, table = pool
    expected = published(table, table["clip_l14_similarity_score"].notna())
    np.testing.assert_array_equal(datacomp_baseline(folder, "clip_score", fraction=1.0), expected)
    assert len(expected) == 97


def test_a_threshold_keeps_what_reaches_it(pool):
    folder, table = pool
    expected = published(table, table["clip_l14_similarity_score"] >= 0.3)
    np.testing.assert_array_equal(datacomp_baseline(folder, "clip_score", threshold=0.3), expected)


@pytest.mark.parametrize("language", ["english", "any"])
def test_the_basic_filter_keeps_what_the_published_rules_keep(pool, language):
    folder, table = pool
    keep = []
    for row in table.itertuples():
        text = row.text if isinstance(row.text, str) else ""
        known = not (pd.isna(row.original_width) or pd.isna(row.original_height))
        sides = sorted([int(row.original_width), int(row.original_height)]) if known else [1, 100]
        keep.append(
            len(text.split()) > 2
            and len(text) > 5
            and sides[0] >= 200
            and sides[1] / sides[0] <= 3.0
            and (language == "any" or looks_english(text))
        )
    found = datacomp_baseline(folder, "basic_filter", language=language)
    np.testing.assert_array_equal(found, published(table, keep))
    assert 0 < len(found) < 100
    metadata = {name: read_datacomp(folder).metadata(name) for name in ("caption", "width", "height")}
    subset = select(None, 100, method=f"datacomp-basic(language={language})", metadata=metadata)
    assert subset.indices.tolist() == np.flatnonzero(keep).tolist()


def test_no_filter_keeps_all(pool):
    folder, table = pool
    np.testing.assert_array_equal(datacomp_baseline(folder, "no_filter"), published(table, np.ones(100, bool)))


def stacked(folder, member):
    parts = [np.load(file)[member] for file in sorted(folder.glob("*.npz"))]
    return np.concatenate(parts)


@pytest.mark.parametrize("compressed", [False, True])
def test_embeddings_are_those_of_the_files(tmp_path, compressed):
    folder = tmp_path / "metadata"
    make_pool(folder, compressed=compressed)
    found = read_datacomp(folder)
    for arch, given in (("l14", None), ("l14", "l14"), ("b32", "b32")):
        features = found.features(given)
        image = stacked(folder, f"{arch}_img")
        assert (features.n, features.dim) == image.shape
        assert features.image.dtype == np.float16
        np.testing.assert_array_equal(np.asarray(features.image), image)
        np.testing.assert_array_equal(features.image[3:80:7], image[3:80:7])
        order = np.random.default_rng(0).integers(0, 100, 50)
        np.testing.assert_array_equal(features.image[order], image[order])
        np.testing.assert_array_equal(features.image[-order[:3]], image[-order[:3]])
        np.testing.assert_array_equal(features.image[order > 50], image[:50][order > 50])
        direct = Features.from_arrays(image, stacked(folder, f"{arch}_txt"))
        np.testing.assert_array_equal(features.vectors("both"), direct.vectors("both"))
        np.testing.assert_array_equal(clip_scores(features), clip_scores(direct))
    assert features.fingerprint == found.fingerprint


def test_a_selection_does_not_see_how_embeddings_lie_on_the_disk(tmp_path):
    folder = tmp_path / "metadata"
    make_pool(folder)
    features = read_datacomp(folder).features()
    direct = Features.from_arrays(stacked(folder, "l14_img"), stacked(folder, "l14_txt"))
    for method in ("negcliploss(batch_size=30)", "semdedup(eps=0.5) | clipcov(clusters=3)", "normsim-2", "d4"):
        one, other = (select(x, 100, method=method, k=10) for x in (features, direct))
        assert one.indices.tolist() == other.indices.tolist()


def test_rows_are_read_not_held(tmp_path):
    """Embeddings that were read once are read from the file again: nothing has kept them in memory."""
    folder = tmp_path / "metadata"
    make_pool(folder, rows=(4,))
    features = read_datacomp(folder).features()
    before = features.image[np.array([2])]
    (file,) = folder.glob("*.npz")
    content = bytearray(file.read_bytes())
    at = content.find(before.tobytes())
    content[at : at + before.nbytes] = np.ones_like(before).tobytes()
    file.write_bytes(content)
    np.testing.assert_array_equal(features.image[np.array([2])], np.ones_like(before))


def test_rows_outside_are_refused(tmp_path):
    make_pool(tmp_path / "metadata")
    rows = read_datacomp(tmp_path / "metadata").features().image
    for index in (np.array([100]), np.array([-101])):
        with pytest.raises(IndexError, match="out of bounds for 100 rows"):
            rows[index]
    assert rows[np.array([], int)].shape == (0, 6)


def test_b32_stands_in_where_there_is_no_l14(tmp_path):
    folder = tmp_path / "metadata"
    make_pool(folder, rows=(5,))
    (file,) = folder.glob("*.npz")
    with np.load(file) as arrays:
        kept = {name: arrays[name] for name in ("b32_img", "b32_txt")}
    np.savez(file, **kept)
    assert read_datacomp(folder).features().dim == 8
    with pytest.raises(CoreclipError, match="holds b32_img, b32_txt, and no l14_img; name another architecture"):
        read_datacomp(folder).features("l14")


def test_uids_are_saved_sorted_and_found_again(pool, tmp_path):
    folder, table = pool
    found = read_datacomp(folder)
    chosen = np.array([70, 3, 42])
    save_uids(tmp_path / "subset.npy", found.uids[chosen])
    np.testing.assert_array_equal(np.load(tmp_path / "subset.npy"), published(table, np.isin(np.arange(100), chosen)))
    assert found.indices_of(load_uids(tmp_path / "subset.npy")).tolist() == [3, 42, 70]
    save_uids(tmp_path / "subset.npy", found.uids[:1])  # replaces uids
    assert len(load_uids(tmp_path / "subset.npy")) == 1
    foreign = parse_uids(np.array(["f" * 32], object))
    with pytest.raises(CoreclipError, match="1 of 2 uids are not in"):
        found.indices_of(np.concatenate([found.uids[:1], foreign]))


def test_uids_with_zeros_at_their_ends_are_told_apart(tmp_path):
    texts = ["00" * 16, "00" * 15 + "01", "01" + "00" * 15, "01" + "00" * 14 + "01"]
    uids = parse_uids(np.array(texts, object))
    assert [(int(a) << 64) + int(b) for a, b in uids] == [int(text, 16) for text in texts]
    pd.DataFrame({"uid": texts}).to_parquet(tmp_path / "0.parquet")
    assert [read_datacomp(tmp_path).indices_of(uids[i : i + 1]).tolist() for i in range(4)] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("uid", ["abc", "g" * 32, " " * 2 + "0" * 30, "é" * 32, None, 5])
def test_other_uids_are_refused(uid):
    with pytest.raises(CoreclipError, match="at row 1 is no uid of DataComp: 32 hexadecimal digits"):
        parse_uids(np.array(["0" * 32, uid], object))


def test_the_fingerprint_is_of_the_uids_in_their_order(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_pool(tmp_path / name, rows=(5, 6), seed=seed)
    prints = [read_datacomp(tmp_path / name).fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_only_metadata_folders_count_as_such(pool, tmp_path):
    folder, _ = pool
    assert is_datacomp(folder)
    assert not is_datacomp(tmp_path / "none")
    assert not is_datacomp(tmp_path)
    (folder / "dataset.json").write_text("{}")
    assert not is_datacomp(folder)
    other = tmp_path / "other"
    other.mkdir()
    pd.DataFrame({"x": [1]}).to_parquet(other / "a.parquet")
    assert not is_datacomp(other)
    (other / "a.parquet").write_bytes(b"none")
    assert not is_datacomp(other)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("laion2b", {}, "unknown baseline 'laion2b'; known: no_filter, basic_filter, clip_score"),
        ("clip_score", {}, "takes a fraction or a threshold; got fraction = None, threshold = None"),
        ("clip_score", {"fraction": 0.3, "threshold": 0.3}, "takes a fraction or a threshold"),
        ("clip_score", {"fraction": 0.0}, "fraction = 0.0 is not allowed"),
        ("clip_score", {"fraction": 0.3, "arch": "h14"}, "unknown architecture 'h14'; known: l14, b32"),
        ("basic_filter", {"fraction": 0.3}, "basic_filter takes no fraction and no threshold"),
        ("basic_filter", {"language": "german"}, "unknown language"),
    ],
)
def test_wrong_baselines_are_refused(pool, name, arguments, message):
    with pytest.raises(CoreclipError, match=message):
        datacomp_baseline(pool[0], name, **arguments)


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(CoreclipError, match=r"holds no \*.parquet"):
        read_datacomp(tmp_path)
    pd.DataFrame({"uid": pd.Series([], dtype="str")}).to_parquet(tmp_path / "0.parquet")
    with pytest.raises(CoreclipError, match="hold no rows"):
        read_datacomp(tmp_path)
    pd.DataFrame({"uid": ["0" * 32]}).to_parquet(tmp_path / "1.parquet")
    pool = read_datacomp(tmp_path)
    with pytest.raises(CoreclipError, match=r"0.parquet has no column 'text'; it has uid"):
        pool.metadata("caption")
    with pytest.raises(CoreclipError, match=r"no embeddings at .*0.npz: the file does not exist"):
        pool.features()
    pd.DataFrame({"uid": ["0" * 32] * 2}).to_parquet(tmp_path / "1.parquet")
    with pytest.raises(CoreclipError, match="holds 2 rows, 1 when it was opened"):
        pool.metadata("uid")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "2.parquet")
    with pytest.raises(CoreclipError, match=r"2.parquet has no column 'uid'"):
        read_datacomp(tmp_path)
    (tmp_path / "2.parquet").write_bytes(b"none")
    with pytest.raises(CoreclipError, match=r"2.parquet is not a readable parquet file"):
        read_datacomp(tmp_path)


def open_rows(path, n=3):
    return ShardedRows.open([path], "l14_img", np.array([n]))


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"none")
    with pytest.raises(CoreclipError, match=r"is not a readable .npz of numbers"):
        open_rows(path)
    for array, message in (
        (np.ones(3), "shape \\(3,\\), not rows of floats"),
        (np.ones((3, 2), int), "an array of int64"),
        (np.array([[{}]]), "an array of object"),
        (np.asfortranarray(np.ones((3, 2))), "not rows of floats"),
        (np.ones((4, 2)), "l14_img is float64 \\(4, 2\\); it must be float64 \\(3, 2\\)"),
    ):
        np.savez(path, l14_img=array)
        with pytest.raises(CoreclipError, match=message):
            open_rows(path)
    for save in (np.savez, np.savez_compressed):
        save(path, l14_img=np.random.default_rng(0).normal(size=(3, 2)))
        content = path.read_bytes()
        path.write_bytes(content[:-40])
        with pytest.raises(CoreclipError, match=r"is not a readable .npz of numbers"):
            open_rows(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("l14_img.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(CoreclipError, match=r"is not a readable .npz of numbers"):
        open_rows(path)


def test_a_short_member_is_refused(tmp_path):
    """The header promises more rows than the archive holds, stored and compressed."""
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    content = (tmp_path / "x.npy").read_bytes()[:-8]
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", kind) as file:
            file.writestr("l14_img.npy", content)
        with pytest.raises(CoreclipError, match=r"is not a readable .npz of numbers"):
            open_rows(tmp_path / "a.npz")


def test_compressed_bytes_that_changed_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", l14_img=np.random.default_rng(0).normal(size=(300, 20)))
    content = (tmp_path / "a.npz").read_bytes()
    for at in (200, 20_000, 40_000):
        damaged = bytearray(content)
        damaged[at : at + 50] = bytes(byte ^ 255 for byte in damaged[at : at + 50])
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(CoreclipError, match=r"is not a readable .npz of numbers"):
            open_rows(tmp_path / "a.npz", 300)


def test_embeddings_that_the_disk_can_not_hold_unpacked_are_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", l14_img=np.zeros((3, 2)))
    monkeypatch.setattr("coreclip.files.free_disk", lambda path: 47)
    with pytest.raises(CoreclipError, match="not enough disk"):
        open_rows(tmp_path / "a.npz")


def test_shards_of_two_models_are_refused(tmp_path):
    for name, width in (("a", 4), ("b", 5)):
        np.savez(tmp_path / f"{name}.npz", l14_img=np.ones((2, width), np.float16))
    with pytest.raises(CoreclipError, match=r"b.npz: l14_img is float16 \(2, 5\); it must be float16 \(2, 4\)"):
        ShardedRows.open([tmp_path / "a.npz", tmp_path / "b.npz"], "l14_img", np.array([2, 2]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no uids at"),
        (b"none", "is not a readable .npy"),
        (np.arange(3), "holds int64 of shape"),
        (np.zeros((2, 2), "u8,u8"), "holds .* of shape \\(2, 2\\)"),
    ],
)
def test_other_files_than_uids_are_refused(tmp_path, content, message):
    path = tmp_path / "uids.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(CoreclipError, match=message):
        load_uids(path)
    if content is not None:
        with pytest.raises(CoreclipError, match="exists and holds no uids; nothing of yours is replaced"):
            save_uids(path, np.zeros(1, "u8,u8"))
    with pytest.raises(CoreclipError, match=r"does not end in .npy"):
        save_uids(tmp_path / "uids", np.zeros(1, "u8,u8"))
