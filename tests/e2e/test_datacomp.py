"""Selecting from a DataComp metadata folder through the real command line."""

import numpy as np
import pytest

from coreclip.cli import run_command
from coreclip.selection import Subset, datacomp_baseline, load_uids, read_datacomp
from tests.datacomp_pool import make_pool
from tests.e2e.conftest import coreclip_json
from tests.helpers import make_dataset


@pytest.fixture
def folder(tmp_path):
    make_pool(tmp_path / "metadata")
    return tmp_path / "metadata"


def test_a_metadata_folder_is_selected_from_and_its_uids_are_exported(folder, tmp_path):
    method = "datacomp-basic(language=any) | negcliploss(keep=0.5) | semdedup"
    report = coreclip_json(
        "select", folder, tmp_path / "s.parquet", "--method", method, "--k", 8, "--uids", tmp_path / "uids.npy"
    )
    subset, pool = Subset.load(tmp_path / "s.parquet"), read_datacomp(folder)
    assert (report["n"], report["k"]) == (100, 8)
    assert subset.fingerprint == pool.fingerprint
    uids = load_uids(tmp_path / "uids.npy")
    assert uids.tolist() == sorted(uids.tolist()) == sorted(pool.uids[subset.indices].tolist())
    allowed = datacomp_baseline(folder, "basic_filter", language="any")
    assert set(uids.tolist()) <= set(allowed.tolist())


def test_the_basic_filter_alone_exports_what_the_baseline_keeps(folder, tmp_path):
    arguments = ["select", folder, tmp_path / "s.parquet", "--method", "datacomp-basic", "--uids", tmp_path / "u.npy"]
    assert run_command([str(argument) for argument in arguments]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "u.npy"), datacomp_baseline(folder, "basic_filter"))


def test_no_embeddings_are_needed_where_no_method_reads_them(folder, tmp_path):
    for file in folder.glob("*.npz"):
        file.unlink()
    assert run_command(["select", str(folder), str(tmp_path / "s.parquet"), "--method", "random", "--k", "5"]) == 0


@pytest.mark.parametrize(("arch", "dim"), [("l14", 6), ("b32", 8)])
def test_the_embeddings_can_be_named(folder, tmp_path, arch, dim):
    arguments = ["select", folder, tmp_path / "s.parquet", "--method", "clipscore", "--k", 5, "--arch", arch]
    assert run_command([str(argument) for argument in arguments]) == 0
    features = read_datacomp(folder).features(arch)
    assert features.dim == dim
    gains = Subset.load(tmp_path / "s.parquet").gains
    scores = np.einsum("ij,ij->i", features.vectors("image"), features.vectors("text"))
    np.testing.assert_allclose(gains, np.sort(scores)[::-1][:5], atol=1e-6)


def test_other_embeddings_take_the_place_of_its_own(folder, tmp_path):
    np.save(tmp_path / "x.npy", np.eye(100, dtype=np.float32))
    arguments = [
        "select",
        folder,
        tmp_path / "s.parquet",
        "--method",
        "semdedup(eps=0.1)",
        "--features",
        tmp_path / "x.npy",
    ]
    assert run_command([str(argument) for argument in arguments]) == 0
    assert Subset.load(tmp_path / "s.parquet").k == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uids", "{tmp}/uids.txt"], "uids.txt does not end in .npy"),
        (["--uids", "{tmp}/x.npy"], "x.npy exists and holds no uids"),
        (["--arch", "h14"], "unknown architecture 'h14'"),
        (["--arch", "l14", "--features", "{tmp}/x.npy"], "--arch names the embeddings of a DataComp metadata folder"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(folder, tmp_path, capsys, arguments, message):
    np.save(tmp_path / "x.npy", np.eye(100, dtype=np.float32))
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert (
        run_command(["select", str(folder), str(tmp_path / "s.parquet"), "--method", "clipscore", "--k", "5", *given])
        == 2
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s.parquet").exists()


def test_a_data_set_without_uids_exports_none(tmp_path, capsys):
    make_dataset(tmp_path / "data")
    arguments = ["select", tmp_path / "data", tmp_path / "s.parquet", "--method", "random", "--k", 5]
    assert run_command([*map(str, arguments), "--uids", str(tmp_path / "u.npy")]) == 2
    assert "uid" in capsys.readouterr().err
    assert not (tmp_path / "s.parquet").exists()
    assert run_command([*map(str, arguments), "--arch", "l14"]) == 2
    assert run_command([str(argument) for argument in arguments]) == 0
