"""Imports point one way, and the house has the four rooms that its plan names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import coreclip

ROOT = Path(coreclip.__file__).parent
PARTS = {"pipeline", "selection", "training", "profiling"}
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "selection": {"selection"},
    "training": {"training", "pipeline", "selection"},
    "profiling": {"profiling"},
}
LEAVES = {"errors", "files", "progress", "randomness", "config", "pages", "presets", "watch", "heap", "spread"}
COMPOSERS = {
    "cli", "demo", "demo_truth", "profiled", "remedied", "report", "search_report", "selection_pool", "selection_report", "settings_page",
}  # fmt: skip


def imported_modules(source: str) -> set[str]:
    """Every module below coreclip that a source imports, at any depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("coreclip."):
            names.add(node.value)  # the module names of a lazy façade
    return {name for name in names if name.split(".")[0] == "coreclip"}


def parts_of(modules: set[str]) -> set[str]:
    return {name.split(".")[1] for name in modules if "." in name} & PARTS


def test_the_four_sub_packages_are_the_only_ones():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == PARTS


def test_every_part_runs_as_a_module():
    assert {path.parent.name for path in ROOT.glob("*/__main__.py")} == PARTS


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_imports_only_what_its_arrow_allows(part):
    for path in (ROOT / part).rglob("*.py"):
        if path.name == "__main__.py":
            continue  # an entry point: it hands over to the command line and nobody imports it
        modules = imported_modules(path.read_text(encoding="utf-8"))
        assert parts_of(modules) <= MAY_IMPORT[part], path
        assert not {name.split(".")[1] for name in modules if "." in name} & COMPOSERS, path


def test_leaves_import_no_part():
    for name in LEAVES:
        assert not parts_of(imported_modules((ROOT / f"{name}.py").read_text(encoding="utf-8"))), name


def test_there_are_no_other_modules_at_the_top():
    assert {path.stem for path in ROOT.glob("*.py")} == LEAVES | COMPOSERS | {"__init__", "__main__"}


def test_the_arrow_check_sees_an_import_inside_a_function():
    assert parts_of(imported_modules("def f():\n    from coreclip.training import train\n")) == {"training"}


@pytest.mark.parametrize("module", ["cli", "pipeline.loader", "selection", "profiling", "training"])
def test_importing_does_not_import_ffcv(module):
    code = f"import sys, coreclip.{module}; sys.exit('ffcv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_imports_nothing_heavy():
    heavy = ["torch", "numba", "pandas", "pyarrow", "faiss", "sklearn", "matplotlib", "ffcv"]
    code = (
        "import sys; sys.argv = ['coreclip', '--help']\n"
        "from coreclip.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_function_with_its_modules_name_stays_a_function():
    code = (
        "import importlib, types, coreclip.pipeline as p\n"
        "names = [n for n in p.__all__ if p._MODULES[n].endswith('.' + n)]\n"
        "modules = [importlib.import_module(p._MODULES[n]) for n in names]\n"
        "assert {'append', 'convert', 'merge', 'split', 'verify'} <= set(names)\n"
        "assert all(isinstance(getattr(p, n), types.FunctionType) for n in names)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
