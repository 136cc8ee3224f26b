"""The data set tools through the command line: what they print, their exit codes, and what a user can get wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coreclip.cli import run_command
from coreclip.pipeline import Dataset, verify
from coreclip.selection import Subset
from tests.helpers import encode_jpeg, make_dataset, make_pixels


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the data sets ``data`` and ``more``, ``subset.parquet`` of the former and ``foreign.parquet``."""
    at = tmp_path_factory.mktemp("tools")
    data = make_dataset(at / "data", 12, captions_per_pair=(1, 2), labels=["x", "y"], size=(48, 32))
    images = {i: encode_jpeg(make_pixels(50 + i, 48, 32)) for i in range(6)}
    make_dataset(at / "more", 6, labels=["y", "x"], size=(48, 32), images=images).close()
    for name, fingerprint in (("subset", data.fingerprint), ("foreign", "f" * 64)):
        Subset(
            indices=np.array([8, 1, 3]), weights=np.ones(3), gains=np.zeros(3), method="m", n=12, fingerprint=fingerprint
        ).save(at / f"{name}.parquet")  # fmt: skip
    return at


def run(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert run_command([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def run_json(capsys, *arguments: object, code: int = 0) -> dict:
    return json.loads(run(capsys, *arguments, "--json", code=code)[0])


def refused(capsys, *arguments: object) -> str:
    out, err = run(capsys, *arguments, code=2)
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    return err


def test_verify_says_yes(made, capsys):
    report = run_json(capsys, "verify", made / "data", "--decode", "all")
    assert (report["ok"], report["pairs"], report["decoded"], report["problems"]) == (True, 12, 12, [])
    out, err = run(capsys, "verify", made / "data")
    assert "True" in out
    assert err == ""


def test_verify_says_no_with_every_problem(made, capsys, tmp_path):
    data = shutil.copytree(made / "data", tmp_path / "data")
    (data / "00001.beton").unlink()
    (data / "tokenizer.json").unlink()
    report = run_json(capsys, "verify", data, code=2)
    assert not report["ok"]
    assert {problem["file"] for problem in report["problems"]} == {"00001.beton", "tokenizer.json"}
    assert all(problem.keys() == {"file", "index", "problem", "remedy"} for problem in report["problems"])
    out, err = run(capsys, "verify", data, code=2)
    assert "False" in out
    assert [line.split(": ")[1] for line in err.splitlines()] == ["tokenizer.json", "00001.beton"]


def test_extract(made, capsys, tmp_path):
    (pair,) = run_json(capsys, "extract", made / "data", "--index", 7, "--out", tmp_path / "seven.jpg")["pairs"]
    assert (tmp_path / "seven.jpg").read_bytes() == Dataset(made / "data").image_bytes(7)
    out, _ = run(capsys, "extract", made / "data", "--index", 7, "--index", 2, "--out", tmp_path / "out")
    assert pair["captions"][0] in out
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_materialise_merge_split_and_export(made, capsys, tmp_path):
    report = run_json(capsys, "materialise", made / "data", made / "subset.parquet", tmp_path / "best")
    assert (report["pairs"], report["of"]) == (3, 12)
    report = run_json(capsys, "merge", made / "data", made / "more", tmp_path / "both", "--drop-duplicates")
    assert (report["pairs"], report["dropped"]) == (18, 0)
    report = run_json(capsys, "split", tmp_path / "both", tmp_path / "parts", "--parts", "a=0.5,b=0.5", "--by", "image")
    assert {name: part["pairs"] for name, part in report["parts"].items()} == {"a": 9, "b": 9}
    report = run_json(capsys, "export-webdataset", tmp_path / "both", tmp_path / "tars", "--shard-size", "64K")
    assert report["pairs"] == 18
    assert run_json(capsys, "convert", tmp_path / "tars", tmp_path / "back", "--classes", "x,y")["pairs"] == 18
    for name in ("best", "both", "parts/a", "parts/b", "back"):
        assert verify(tmp_path / name, decode="all").ok
    report = run_json(capsys, "append", tmp_path / "best", tmp_path / "tars")
    assert (report["pairs"], report["added"]) == (21, 18)
    assert verify(tmp_path / "best", decode="all").ok


def test_split_into_subsets(made, capsys, tmp_path):
    report = run_json(capsys, "split", made / "data", tmp_path / "parts", "--parts", "a=0.75,b=0.25", "--subsets")
    loaded = {path.stem: Subset.load(path) for path in (tmp_path / "parts").iterdir()}
    assert {name: part["pairs"] for name, part in report["parts"].items()} == {"a": 9, "b": 3}
    assert {name: subset.k for name, subset in loaded.items()} == {"a": 9, "b": 3}
    for subset in loaded.values():
        subset.check(12, Dataset(made / "data").fingerprint)


@pytest.fixture(scope="module")
def with_uids(tmp_path_factory) -> Path:
    """A data set of twelve pairs with uids that are in another order than the pairs."""
    at = tmp_path_factory.mktemp("uids")
    make_dataset(at / "data", 12, size=(48, 32)).close()
    pairs = pd.read_parquet(at / "data" / "pairs.parquet")
    pairs["uid"] = [f"{(7 * i + 5) % 12:016x}{i:016x}" for i in range(12)]
    pairs.to_parquet(at / "data" / "pairs.parquet", index=False)
    return at / "data"


def test_subsets_are_combined_resized_and_exchanged(with_uids, capsys, tmp_path):
    select = ["select", with_uids, "--method", "random"]
    for name, k in (("a", 4), ("b", 8)):
        run_json(capsys, *select[:2], tmp_path / f"{name}.parquet", *select[2:], "--k", k)
    a, b = (Subset.load(tmp_path / f"{name}.parquet") for name in "ab")
    report = run_json(
        capsys, "subset", tmp_path / "b.parquet", tmp_path / "a.parquet", tmp_path / "c.parquet", "--difference"
    )
    assert (report["method"], report["n"], report["k"]) == ("difference(random, random)", 12, 4)
    assert Subset.load(tmp_path / "c.parquet").indices.tolist() == b.indices[4:].tolist()
    run(
        capsys,
        "subset",
        tmp_path / "a.parquet",
        tmp_path / "c.parquet",
        tmp_path / "d.parquet",
        "--union",
        "--resize",
        5,
    )
    assert Subset.load(tmp_path / "d.parquet").indices.tolist() == b.indices[:5].tolist()
    run(
        capsys,
        "subset",
        tmp_path / "a.parquet",
        tmp_path / "e.parquet",
        "--resize",
        6,
        "--fill",
        tmp_path / "b.parquet",
    )
    assert Subset.load(tmp_path / "e.parquet").indices.tolist() == b.indices[:6].tolist()
    run(
        capsys, "subset", tmp_path / "a.parquet", tmp_path / "e.parquet", "--resize", 9, "--fill", "random", "--seed", 4
    )
    assert Subset.load(tmp_path / "e.parquet").k == 9
    for form, name in (("index", "i.npy"), ("uids", "u.npy"), ("keys", "k.txt")):
        run(capsys, "subset", tmp_path / "a.parquet", tmp_path / name, "--export", form, "--dataset", with_uids)
        run(capsys, "subset", tmp_path / name, tmp_path / "back.parquet", "--dataset", with_uids)
        back = Subset.load(tmp_path / "back.parquet")
        assert set(back.indices) == set(a.indices)
        back.check(12, Dataset(with_uids).fingerprint)
    assert (tmp_path / "k.txt").read_text().split() == [f"k{i:04d}" for i in a.indices]
    mixed = [tmp_path / "b.parquet", tmp_path / "u.npy", tmp_path / "mixed.parquet"]
    assert run_json(capsys, "subset", *mixed, "--intersection", "--dataset", with_uids)["k"] == 4


@pytest.mark.parametrize("name", ["uids", "keys"])
def test_features_of_others_are_put_in_the_order_of_the_data_set(with_uids, name, capsys, tmp_path):
    data = Dataset(with_uids)
    names = data.metadata("uid") if name == "uids" else data.keys
    image = np.eye(12, dtype=np.float32)
    text = image * np.linspace(1, 0.1, 12)[:, None] + np.roll(image, 1, axis=1)  # the first pairs agree best
    order = np.random.default_rng(0).permutation(12)
    np.savez(tmp_path / "f.npz", l14_img=image[order], l14_txt=text[order], **{name: names[order].astype(str)})
    arguments = ["--method", "clipscore", "--k", 5, "--features", tmp_path / "f.npz"]
    run(capsys, "select", with_uids, tmp_path / "s.parquet", *arguments)
    assert Subset.load(tmp_path / "s.parquet").indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["subset", "{at}/subset.parquet", "{at}/foreign.parquet", "{tmp}/out.parquet"], ["2 subsets and none of --union"]),
        (["subset", "{at}/subset.parquet", "{tmp}/out.parquet", "--union"], ["1 subsets and --union", "two subsets or more"]),
        (["subset", "{at}/subset.parquet", "{at}/subset.parquet", "{tmp}/out.parquet", "--union", "--difference"], ["--union, --difference of"]),
        (["subset", "{at}/subset.parquet", "{at}/foreign.parquet", "{tmp}/out.parquet", "--union"], ["ffff", "one data set"]),
        (["subset", "{at}/foreign.parquet", "{tmp}/out.parquet", "--dataset", "{at}/data"], ["ffff"]),
        (["subset", "{at}/subset.parquet", "{tmp}/out.parquet", "--resize", "4"], ["k = 4", "fill up"]),
        (["subset", "{at}/subset.parquet", "{tmp}/out.parquet", "--fill", "random"], ["--fill random without --resize"]),
        (["subset", "{at}/subset.parquet", "{tmp}/file"], ["file"]),
        (["subset", "{at}/subset.parquet", "{tmp}/out.npy", "--export", "list"], ["unknown form 'list'"]),
        (["subset", "{at}/subset.parquet", "{tmp}/out.txt", "--export", "keys"], ["none are given"]),
        (["subset", "{at}/subset.parquet", "{tmp}/out.npy", "--export", "uids", "--dataset", "{at}/data"], ["no column 'uid'", "use keys"]),
        (["subset", "{at}/data/none.npy", "{tmp}/out.parquet"], ["none.npy", "does not exist"]),
        (["verify", "{at}/data", "--decode", "some"], ["decode", "some"]),
        (["extract", "{at}/data", "--index", "12"], ["12", "0 to 11"]),
        (["extract", "{at}/data", "--index", "1", "--out", "{tmp}/file"], ["file"]),
        (["extract", "{at}/data", "--index", "1", "--out", "{tmp}/one.png"], ["one.png", ".jpg"]),
        (["materialise", "{at}/data", "{at}/none.parquet", "{tmp}/out"], ["none.parquet"]),
        (["materialise", "{at}/data", "{at}/foreign.parquet", "{tmp}/out"], ["ffff"]),
        (["materialise", "{at}/data", "{at}/subset.parquet", "{tmp}/file"], ["file"]),
        (["append", "{at}/data", "{tmp}/none.tar"], ["none.tar"]),
        (["append", "{at}/data", "{tmp}/file"], ["file"]),
        (["merge", "{at}/data", "{tmp}/out"], ["two or more"]),
        (["merge", "{at}/data", "{at}/more", "{tmp}/file"], ["file"]),
        (["merge", "{at}/data", "{at}/more", "{tmp}/out", "--tokenizer", "{tmp}/none.json"], ["none.json"]),
        (["split", "{at}/data", "{tmp}/out", "--parts", "a=0.5"], ["a=0.5", "two or more"]),
        (["split", "{at}/data", "{tmp}/out", "--parts", "half"], ["half", "NAME=FRACTION"]),
        (["split", "{at}/data", "{tmp}/out", "--by", "key"], ["key"]),
        (["split", "{at}/data", "{tmp}/file", "--parts", "a=0.5,b=0.5", "--subsets"], ["file"]),
        (["export-webdataset", "{at}/data", "{tmp}/out", "--shard-size", "big"], ["--shard-size", "big"]),
        (["export-webdataset", "{at}/data", "{tmp}/out", "--shard-size", "1K"], ["1024"]),
        (["export-webdataset", "{at}/data", "{tmp}/out", "--subset", "{at}/foreign.parquet"], ["ffff"]),
        (["export-webdataset", "{at}/data", "{tmp}/file"], ["file"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_costs_nothing(made, capsys, tmp_path, arguments, words):
    (tmp_path / "file").write_text("kept")
    message = refused(capsys, *(argument.format(at=made, tmp=tmp_path) for argument in arguments))
    assert all(word in message for word in words), message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "kept")]
    assert sorted(path.name for path in made.iterdir()) == ["data", "foreign.parquet", "more", "subset.parquet"]
    assert verify(made / "data", decode="none").ok
