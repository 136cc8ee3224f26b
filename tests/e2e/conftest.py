"""The whole path, run once through the real command line on drawn scenes, for the tests that look at its outputs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coreclip.pipeline import draw_scenes

SMALL = ["--set", "data.image_size=32", "--set", "data.batch_size=32", "--set", "model.image_width=8", "--set", "model.text_width=32",
         "--set", "model.image_depth=1", "--set", "model.text_depth=1", "--set", "model.embed_dim=32"]  # fmt: skip


def coreclip(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own and check its exit code."""
    command = [sys.executable, "-m", "coreclip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def coreclip_json(*arguments: object) -> dict[str, Any]:
    """Run a command with --json; stdout must be that one object."""
    return json.loads(coreclip(*arguments, "--json").stdout)


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outputs of each command by name, and under ``"at"`` the directory that holds what they wrote."""
    at = tmp_path_factory.mktemp("flow")
    draw_scenes(at / "scenes", n=200, n_heldout=40, seed=1, size=64)
    train_tars = sorted((at / "scenes").glob("train-*.tar"))
    results: dict[str, Any] = {"at": at, "tars": train_tars}
    results["convert"] = coreclip_json("convert", *train_tars, at / "data", "--vocab-size", 400)
    results["convert_heldout"] = coreclip_json(
        "convert", *sorted((at / "scenes").glob("heldout-*.tar")), at / "heldout", "--tokenizer", at / "data"
    )
    results["train"] = coreclip_json("train", at / "data", at / "proxy", "--samples", 384, *SMALL)
    results["embed"] = coreclip_json("embed", at / "data", at / "features", "--model", at / "proxy")
    method = "clipscore(keep=0.8) | facility-location"
    results["select"] = coreclip_json(
        "select",
        at / "data",
        at / "subset.parquet",
        "--method",
        method,
        "--fraction",
        0.3,
        "--features",
        at / "features",
    )
    results["train_subset"] = coreclip_json(
        "train", at / "data", at / "run", "--subset", at / "subset.parquet", "--samples", 384, *SMALL
    )
    results["evaluate"] = coreclip_json("evaluate", at / "run", at / "heldout")
    results["search"] = coreclip_json("search", at / "run", at / "heldout", "a red boat", "--top", 3)
    return results


@pytest.fixture
def at(flow: dict[str, Any]) -> Path:
    """The directory with ``data``, ``heldout``, ``proxy``, ``features``, ``subset.parquet`` and ``run``."""
    return flow["at"]
