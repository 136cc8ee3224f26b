"""What docs/selection.md shows is what the code does."""

import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from coreclip.cli import run_command
from coreclip.selection import METHODS, Features
from tests.helpers import make_dataset

PAGE = (Path(__file__).parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)


def test_its_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_dataset(Path("flickr"), 2400, rows_per_shard=2400, size=(16, 16), captions_per_pair=(1,), raw_every=1).close()
    pairs = pd.read_parquet("flickr/pairs.parquet")
    pairs["uid"] = [f"{i:032x}" for i in range(len(pairs))]
    pairs.to_parquet("flickr/pairs.parquet", index=False)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(len(pairs), 8)).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    np.savez(
        "features.npz", l14_img=image, l14_txt=Features.from_arrays(image + rng.normal(size=image.shape)).vectors()
    )
    commands = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("coreclip ")]
    assert len(commands) == 12
    for command in commands:
        arguments = [{"features": "features.npz"}.get(word, word) for word in shlex.split(command)[1:]]
        assert run_command(arguments) == 0, (command, capsys.readouterr().err)


def test_its_python_runs():
    names: dict[str, object] = {}
    for code in [block for language, block in BLOCKS if language == "python"]:
        exec(code, names)
    assert names["mixed"].k == 50
    assert names["exactly"].k == 80
    assert set(names["both"].indices) <= set(names["spread"].indices)


def method_rows():
    """The tier and the needs of each method in the table, by its name."""
    table = PAGE.partition("## Methods\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return {name: (row[1].strip(), row[2].strip()) for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def test_its_table_has_every_method_and_no_other():
    assert sorted(method_rows()) == sorted(METHODS)


def test_its_table_says_the_tier_and_the_inputs_of_each_method():
    for name, (tier, needs) in method_rows().items():
        assert tier == METHODS[name].tier, name
        taken = inspect.signature(METHODS[name].function).parameters.keys()
        for inputs in ("features", "labels", "signals", "metadata"):
            assert (inputs in needs) == (inputs in taken), (name, inputs)


@pytest.mark.parametrize("message", [block for _, block in BLOCKS if block.startswith("coreclip: ")])
def test_its_message_is_the_real_one(message, tmp_path, capsys):
    make_dataset(tmp_path / "data", 4).close()
    expression = message.splitlines()[1].strip()
    arguments = ["select", str(tmp_path / "data"), str(tmp_path / "s.parquet"), "--method", expression, "--k", "2"]
    assert run_command(arguments) == 2
    assert capsys.readouterr().err == message
