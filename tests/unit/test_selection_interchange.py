"""Subsets go to other tools and come back; whatever does not fit the data set is named."""

import numpy as np
import pytest

from coreclip.errors import CoreclipError
from coreclip.selection import Subset, export_subset, form_of, import_subset

N = 9
KEYS = [f"{i:05d}" for i in range(N)]
UIDS = [f"{(i * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}" for i in range(1, N + 1)]
NAMES = {"index": None, "keys": KEYS, "uids": UIDS}


def make_subset(indices=(4, 0, 7, 2)):
    k = len(indices)
    return Subset(indices=indices, weights=np.ones(k), gains=np.arange(k), method="m", n=N, fingerprint="f" * 64)


def write(path, array):
    if path.suffix == ".txt":
        path.write_bytes(array)
    else:
        np.save(path, array)
    return path


@pytest.mark.parametrize(("form", "suffix"), [("index", "npy"), ("keys", "txt"), ("uids", "npy")])
def test_what_is_written_is_read_back(form, suffix, tmp_path):
    path = tmp_path / f"s.{suffix}"
    export_subset(make_subset(), path, form, NAMES[form])
    assert form_of(path) == form
    back = import_subset(path, N, keys=KEYS, uids=[uid.upper() for uid in UIDS], fingerprint="f" * 64)
    expected = [4, 0, 7, 2]
    assert back.indices.tolist() == (sorted(expected, key=lambda i: UIDS[i]) if form == "uids" else expected)
    assert (back.method, back.parameters) == ("import", {"file": str(path), "form": form})
    assert (back.n, back.fingerprint, set(back.weights), set(back.gains)) == (N, "f" * 64, {1.0}, {0.0})


def test_the_files_are_what_other_tools_expect(tmp_path):
    for form in NAMES:
        export_subset(make_subset(), tmp_path / f"{form}.{'txt' if form == 'keys' else 'npy'}", form, NAMES[form])
    index = np.load(tmp_path / "index.npy")
    assert (index.dtype, index.tolist()) == (np.int64, [4, 0, 7, 2])
    assert (tmp_path / "keys.txt").read_bytes() == b"00004\n00000\n00007\n00002\n"
    uids = np.load(tmp_path / "uids.npy")
    assert uids.dtype == np.dtype("u8,u8")
    # DataComp's own way to make it.
    theirs = np.array(
        [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in sorted(UIDS[i] for i in (4, 0, 7, 2))], "u8,u8"
    )
    assert uids.tolist() == theirs.tolist()


def test_lists_of_other_editors_and_types_are_read(tmp_path):
    lines = "\ufeff00003\r\n00001".encode()
    assert import_subset(write(tmp_path / "k.txt", lines), N, keys=KEYS).indices.tolist() == [3, 1]
    small = np.array([8, 1], np.uint8)
    assert import_subset(write(tmp_path / "i.npy", small), N).indices.tolist() == [8, 1]
    numbers = np.arange(100, 100 + N)
    assert import_subset(write(tmp_path / "n.txt", b"103\n"), N, keys=numbers).indices.tolist() == [3]


def halves(*uids):
    return np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], "u8,u8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.npy", np.array([1, 9, -1]), "index 9 at 1 is not one of the 9 pairs; it must be 0 to 8"),
        ("i.npy", np.array([1, -1]), "index -1 at 1 is not one of"),
        ("i.npy", np.array([1, 2, 5, 2, 1]), "index 2 is there twice, again at 3"),
        ("i.npy", np.zeros(0, int), "lists no pair"),
        ("i.npy", np.ones(9, bool), r"holds bool of shape \(9,\); it must be a list of integers \(of a mask: np.flatnonzero\)"),
        ("i.npy", np.ones((2, 2), int), r"holds int64 of shape \(2, 2\)"),
        ("i.npy", np.array([1.0]), "holds float64"),
        ("u.npy", halves(UIDS[1], "0" * 32), f"1 of the 2 of the uids of .*u.npy are not in the data set's uids, the first is '{'0' * 32}'"),
        ("u.npy", halves(UIDS[1], UIDS[0], UIDS[1]), f"uids of .*u.npy: '{UIDS[1]}' is there twice, at 0 and 2"),
        ("k.txt", b"00001\nx\ny\n", "2 of the 3 of the keys of .*k.txt are not in the data set's keys, the first is 'x'"),
        ("k.txt", b"00001\n00001\n", "'00001' is there twice, at 0 and 1"),
        ("k.txt", b"00001\n\n00002\n", "line 2 is empty; it must be one key a line"),
        ("k.txt", b"", "lists no pair"),
        ("k.txt", b"\xff\xfe", "is not UTF-8"),
        ("k.csv", None, "k.csv is no list of pairs: a .npy of indices or uids, or a .txt of keys"),
        ("k.txt", None, "k.txt: the file does not exist"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, content, message, tmp_path):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(CoreclipError, match=message):
        import_subset(tmp_path / name, N, keys=KEYS, uids=UIDS)


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "i.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "j.npy").write_text("no array")
    for name in ("i", "j"):
        with pytest.raises(CoreclipError, match="is not a readable"):
            import_subset(tmp_path / f"{name}.npy", N)


def test_names_must_be_the_data_sets(tmp_path):
    path = write(tmp_path / "k.txt", b"00001\n")
    with pytest.raises(CoreclipError, match="keys are those of a data set, and none are given"):
        import_subset(path, N)
    with pytest.raises(CoreclipError, match="the data set has 8 keys of 9 pairs; they must be as many"):
        import_subset(path, N, keys=KEYS[:8])
    with pytest.raises(CoreclipError, match="the data set's keys: '00001' is there twice, at 1 and 8"):
        import_subset(path, N, keys=[*KEYS[:8], "00001"])


@pytest.mark.parametrize(
    ("name", "form", "names", "message"),
    [
        ("s.npy", "uid", UIDS, "unknown form 'uid'; known: index, keys, uids"),
        ("s.npy", "keys", KEYS, r"must end in \.txt to hold keys"),
        ("s.txt", "uids", UIDS, r"must end in \.npy to hold uids"),
        ("old.npy", "index", None, "exists; nothing of yours is replaced"),
        ("s.txt", "keys", None, "keys are those of a data set, and none are given"),
        ("s.txt", "keys", KEYS[:5], "the data set has 5 keys of 9 pairs"),
        ("s.txt", "keys", [*KEYS[:8], "00004"], "'00004' is there twice, at 4 and 8; export the index instead"),
        ("s.txt", "keys", [*KEYS[:4], "a\nb", *KEYS[5:]], r"the key 'a\\nb' can't be a line of a list"),
        ("s.npy", "uids", [*UIDS[:4], "xyz", *UIDS[5:]], "'xyz' at row 0 is no uid of DataComp: 32 hexadecimal digits"),
        ("s.npy", "uids", [*UIDS[:4], "g" * 32, *UIDS[5:]], "is no uid of DataComp"),
    ],
)
def test_exports_that_could_not_be_read_are_refused(name, form, names, message, tmp_path):
    (tmp_path / "old.npy").write_text("kept")
    with pytest.raises(CoreclipError, match=message):
        export_subset(make_subset(), tmp_path / name, form, names)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.npy", "kept")]
