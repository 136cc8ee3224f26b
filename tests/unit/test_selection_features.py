"""Embeddings of every known form are read; wrong ones are refused with the cause."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Features


def unit_rows(n, d, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_folder(folder, n=6, d=4, info=None, **arrays):
    folder.mkdir()
    arrays = {"image": unit_rows(n, d).astype(np.float16), "text": unit_rows(n, d, 1).astype(np.float16)} | arrays
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    default = {"format_version": 1, "n": n, "dim": d, "logit_scale": 20.0, "fingerprint": "f" * 64}
    (folder / "features.json").write_text(json.dumps(default if info is None else info))
    return folder


def test_our_own_folder_is_memory_mapped_and_keeps_its_information(tmp_path):
    folder = write_folder(
        tmp_path / "f", captions=unit_rows(9, 4).astype(np.float16), offsets=np.array([0, 1, 3, 4, 6, 7, 9])
    )
    features = Features.load(folder)
    assert isinstance(features.image, np.memmap)
    assert features.image.dtype == np.float16
    assert (features.n, features.dim, features.fingerprint) == (6, 4, "f" * 64)
    assert features.info["logit_scale"] == 20.0
    assert features.captions.shape == (9, 4)
    assert features.offsets[-1] == 9


def test_a_single_npy_holds_images(tmp_path):
    np.save(tmp_path / "x.npy", unit_rows(5, 3))
    features = Features.load(tmp_path / "x.npy")
    assert features.text is None
    np.testing.assert_allclose(features.vectors("image"), unit_rows(5, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(("b32_img", "b32_txt", "l14_img", "l14_txt"), 2), (("b32_img", "b32_txt"), 0)],
)
def test_datacomp_files_prefer_the_larger_model(tmp_path, names, chosen):
    np.savez(tmp_path / "d.npz", **{name: unit_rows(4, 3, seed) for seed, name in enumerate(names)})
    features = Features.load(tmp_path / "d.npz")
    np.testing.assert_array_equal(features.image, unit_rows(4, 3, chosen))
    np.testing.assert_array_equal(features.text, unit_rows(4, 3, chosen + 1))


def test_datacomp_files_may_hold_images_only(tmp_path):
    np.savez(tmp_path / "d.npz", l14_img=unit_rows(4, 3))
    assert Features.load(tmp_path / "d.npz").text is None


def test_clip_retrieval_parts_are_joined_by_number(tmp_path):
    rows = unit_rows(12, 3)
    for folder in ("img_emb", "text_emb"):
        (tmp_path / folder).mkdir()
        for part in range(12):
            np.save(tmp_path / folder / f"{folder}_{part}.npy", rows[part : part + 1])
    features = Features.load(tmp_path)
    np.testing.assert_array_equal(features.image, rows)
    np.testing.assert_array_equal(features.text, rows)


def write_retrieval(folder, columns):
    """Twelve rows in parts whose numbers are not in the order of their names."""
    rows = unit_rows(12, 3)
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    start = 0
    for number, stop in zip((2, 10), (3, 12), strict=True):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows[start:stop])
        table = pa.table({name: column[start:stop] for name, column in columns.items()})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
        start = stop
    return folder


def test_clip_retrieval_metadata_name_the_rows(tmp_path):
    stems = [f"img{i}" for i in range(12)]
    columns = {"image_path": [f"/data/a.b/{stem}.jpg" for stem in stems], "caption": ["a dog"] * 12}
    features = Features.load(write_retrieval(tmp_path / "paths", columns))
    assert (features.keys.tolist(), features.keyed_by) == (stems, "key")
    keys = [f"{i:09d}" for i in range(12)]
    assert Features.load(write_retrieval(tmp_path / "keys", {**columns, "key": keys})).keys.tolist() == keys
    assert Features.load(write_retrieval(tmp_path / "none", {"caption": ["a dog"] * 12})).keys is None


@pytest.mark.parametrize(
    ("arrays", "columns", "keys", "kind"),
    [
        ({"keys": np.array(["a", "b", "c"])}, None, ["a", "b", "c"], "key"),
        ({"keys": np.array([b"a", b"b", b"c"])}, None, ["a", "b", "c"], "key"),
        ({"keys": np.array([7, 8, 9])}, None, ["7", "8", "9"], "key"),
        ({"uids": np.array([(1, 2), (0, 15), (2**64 - 1, 0)], "u8,u8")}, None,
         ["00000000000000010000000000000002", "0" * 31 + "f", "f" * 16 + "0" * 16], "uid"),
        ({}, {"uid": ["u", "v", "w"], "text": ["x"] * 3}, ["u", "v", "w"], "uid"),
        ({}, {"key": ["u", "v", "w"]}, ["u", "v", "w"], "key"),
        ({"keys": np.array(["a", "b", "c"])}, {"uid": ["u", "v", "w"]}, ["a", "b", "c"], "key"),
    ],
)  # fmt: skip
def test_datacomp_rows_are_named_inside_or_beside(tmp_path, arrays, columns, keys, kind):
    np.savez(tmp_path / "d.npz", l14_img=unit_rows(3, 4), **arrays)
    if columns is not None:
        pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    features = Features.load(tmp_path / "d.npz")
    assert (features.keys.tolist(), features.keyed_by) == (keys, kind)


def test_rows_are_put_in_the_order_of_a_data_set():
    image, text = unit_rows(6, 4), unit_rows(6, 4, 1)
    features = Features.from_arrays(image, text, keys=list("fedcba"))
    aligned = features.align(np.array(["a", "c", "f"], object))
    np.testing.assert_array_equal(aligned.image, image[[5, 3, 0]])
    np.testing.assert_array_equal(aligned.text, text[[5, 3, 0]])
    assert aligned.keys.tolist() == ["a", "c", "f"]
    assert features.align(list("fedcba")) is features
    assert features.take(np.array([2, 1])).keys.tolist() == ["d", "e"]


@pytest.mark.parametrize(
    ("keys", "wanted", "message"),
    [
        (
            "abcdef",
            "abxy",
            "2 of the 4 of the data set's keys are not in the features, the first is 'x'; every pair must have",
        ),
        ("abcdea", "abc", "the features: 'a' is there twice, at 0 and 5"),
        ("abcdef", "abca", "the data set's keys: 'a' is there twice, at 0 and 3"),
        ("abcdff", "abc", None),
    ],
)
def test_keys_that_do_not_fit_are_named(keys, wanted, message):
    features = Features.from_arrays(unit_rows(6, 4), keys=list(keys))
    if message is None:
        assert features.align(list(wanted)).n == 3  # nobody asks for the doubled one
        return
    with pytest.raises(CoreclipError, match=message):
        features.align(list(wanted))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": ["a"]}, "features: 1 keys of 6 embeddings; they must be as many"),
        ({"keys": np.zeros((6, 2), int)}, r"keys have shape \(6, 2\)"),
        ({"keys": ["a", "b", None, "d", "e", "f"]}, "features: key 2 is None; it must be text or a whole number"),
        ({"keys": [0.5] * 6}, "key 0 is 0.5; it must be text"),
        ({"keys": [b"\xff"] * 6}, "key 0 is .*, not UTF-8"),
        ({"keys": list("abcdef"), "keyed_by": "url"}, "keyed_by = 'url' is not allowed: uid or key"),
    ],
)
def test_wrong_keys_are_refused(changes, message):
    with pytest.raises(CoreclipError, match=message):
        Features.from_arrays(unit_rows(6, 4), **changes)


def test_features_without_keys_can_not_be_aligned():
    with pytest.raises(CoreclipError, match="these features have no keys to be put in order by"):
        Features.from_arrays(unit_rows(6, 4)).align(list("abcdef"))


def test_a_damaged_table_of_keys_is_named(tmp_path):
    np.savez(tmp_path / "d.npz", l14_img=unit_rows(3, 4))
    (tmp_path / "d.parquet").write_text("no table")
    with pytest.raises(CoreclipError, match=r"d\.parquet is not readable as Parquet"):
        Features.load(tmp_path / "d.npz")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_that_are_not_unit_are_normalised(dtype):
    features = Features.from_arrays((unit_rows(50, 8) * 7).astype(dtype))
    np.testing.assert_allclose(np.linalg.norm(features.image.astype(np.float64), axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(features.vectors(), unit_rows(50, 8), atol=2e-3)


def test_vectors_are_float32_and_exactly_unit_even_from_float16():
    vectors = Features.from_arrays(unit_rows(50, 8).astype(np.float16)).vectors()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_both_modalities_give_the_mean_of_the_two_cosines():
    image, text = unit_rows(6, 4), unit_rows(6, 4, 1)
    both = Features.from_arrays(image, text).vectors("both")
    np.testing.assert_allclose(both @ both.T, (image @ image.T + text @ text.T) / 2, atol=1e-6)


def test_take_keeps_the_order_asked_for():
    features = Features.from_arrays(unit_rows(6, 4), unit_rows(6, 4, 1), info={"logit_scale": 3.0})
    taken = features.take(np.array([4, 0]))
    np.testing.assert_array_equal(taken.image, unit_rows(6, 4)[[4, 0]])
    np.testing.assert_array_equal(taken.text, unit_rows(6, 4, 1)[[4, 0]])
    assert taken.info == {"logit_scale": 3.0}


def with_row(value):
    rows = unit_rows(6, 4)
    rows[3] = value
    return rows


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (with_row(np.nan), None, "image embeddings: 1 of 6 rows are NaN or infinite, the first at index 3"),
        (unit_rows(6, 4), with_row(np.inf), "text embeddings: 1 of 6 rows are NaN or infinite"),
        (with_row(0), None, "rows are all zeros, the first at index 3"),
        (unit_rows(6, 4), unit_rows(5, 4), r"image embeddings are \(6, 4\), text embeddings \(5, 4\)"),
        (unit_rows(6, 4), unit_rows(6, 3), "must be .pairs, dimensions. of one model"),
        (np.zeros(5, np.float32), None, r"shape \(5,\)"),
        (np.zeros((0, 5), np.float32), None, r"shape \(0, 5\)"),
        (np.ones((5, 2), int), None, "of type int64; they must be float16"),
        (None, None, "neither image nor text"),
    ],
)
def test_wrong_arrays_are_refused(image, text, message):
    with pytest.raises(CoreclipError, match=message):
        Features.from_arrays(image, text)


def test_offsets_must_fit_the_captions():
    with pytest.raises(CoreclipError, match="offsets do not fit the 9 captions"):
        Features.from_arrays(unit_rows(2, 4), captions=unit_rows(9, 4), offsets=np.array([0, 4, 8]))


@pytest.mark.parametrize(
    ("modality", "message"), [("sound", "unknown modality 'sound'; known: image, text, both"), ("text", "hold no text")]
)
def test_a_modality_that_is_not_there_is_refused(modality, message):
    with pytest.raises(CoreclipError, match=message):
        Features.from_arrays(unit_rows(3, 4)).vectors(modality)


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", a=unit_rows(3, 4))
    (tmp_path / "empty").mkdir()
    (tmp_path / "retrieval" / "img_emb").mkdir(parents=True)
    (tmp_path / "widths" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "widths" / "img_emb" / "img_emb_0.npy", unit_rows(3, 4))
    np.save(tmp_path / "widths" / "img_emb" / "img_emb_1.npy", unit_rows(3, 5))
    write_folder(tmp_path / "future", info={"format_version": 2})
    write_folder(tmp_path / "count", info={"format_version": 1, "n": 7, "dim": 4})
    for name, message in {
        "absent": "it does not exist; make them with coreclip embed",
        "text.npy": "not a readable .npy",
        "objects.npy": "not a readable .npy",
        "text.npz": "not a readable .npz",
        "other.npz": "holds a; a DataComp .npz holds l14_img",
        "empty": "holds no features",
        "retrieval": "holds no .npy files",
        "widths": "unequal widths",
        "future": "format version 1, the only one known",
        "count": "says 7 pairs of 4 dimensions",
    }.items():
        with pytest.raises(CoreclipError, match=message):
            Features.load(tmp_path / name)
