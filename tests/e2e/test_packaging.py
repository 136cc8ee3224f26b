"""The wheel holds all that the commands need, and its metadata pins nothing."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, as setuptools writes beside them."""
    at = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "coreclip", at / "source" / "coreclip", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, at / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        at,
        at / "source",
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return next(at.glob("coreclip-*.whl"))


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("coreclip/")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "coreclip").rglob("*") if path.is_file()}
    assert packed == {name for name in sources if "__pycache__" not in name}


def test_the_metadata_holds_lower_bounds_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    for name in (
        "torch",
        "ffcv",
        "apricot-select",
        "numpy",
        "numba",
        "torchmetrics",
        "pandas",
        "pillow",
        "scikit-learn",
    ):
        assert any(line.startswith(f"Requires-Dist: {name}") for line in needed), name
    assert not [line for line in needed if "==" in line and "extra ==" not in line]


def test_the_command_works_from_the_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        entry_points = archive.read(
            next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        ).decode()
    assert "coreclip = coreclip.cli:main" in entry_points
    code = "import coreclip.cli, coreclip.report; print(coreclip.__file__); coreclip.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert str(tmp_path) in done.stdout
    assert "coreclip 0.1.0" in done.stdout
