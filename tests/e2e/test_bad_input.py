"""What a user can get wrong on each command gives one clear line and exit code 2, and loses nothing."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from coreclip.cli import app, run_command
from tests.e2e.conftest import SMALL

COMMANDS = {command.callback.__name__: command.callback for command in app.registered_commands}


def refused(capsys, *arguments) -> str:
    """Run in this process, check the exit code and that the message is one or two lines without a traceback."""
    capsys.readouterr()
    code = run_command([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    message = [line for line in err.splitlines() if line.startswith("coreclip: ")]
    assert len(message) == 1, err
    assert len(err[err.index("coreclip: ") :].strip().splitlines()) <= 4, err
    return err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_documents_itself_with_an_example(name):
    text = COMMANDS[name].__doc__
    assert len(text.splitlines()[0]) > 20
    assert f"Example: coreclip {name.replace('_', '-')} " in " ".join(text.split())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_json(name):
    assert "as_json" in COMMANDS[name].__annotations__


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"convert", "demo"}))
def test_a_data_set_that_is_not_there_is_named(name, tmp_path, capsys, at, monkeypatch):
    extra = {
        "train": ["RUN"],
        "embed": ["F", "--model", at / "proxy"],
        "select": ["S", "--method", "random", "--k", "1"],
        "extract": ["--index", "0"],
        "materialise": [at / "subset.parquet", "OUT"],
        "append": [at / "scenes"],
        "merge": [at / "data", "OUT"],
        "split": ["OUT"],
        "export_webdataset": ["OUT"],
        "subset": ["OUT"],
        "explain": ["--index", "0"],
        "export": ["OUT", "--format", "torch-export"],
    }
    front = {name: [at / "run"] for name in ("evaluate", "search", "explain", "classify")}
    front["rerank"] = [at / "run", "a query"]
    after = {"search": ["a query"], "classify": ["--classes", "cat,dog"]}
    monkeypatch.chdir(tmp_path)
    arguments = [name.replace("_", "-"), *front.get(name, []), "nowhere", *extra.get(name, []), *after.get(name, [])]
    assert "nowhere" in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none.tar", "{tmp}/out"], ["none.tar"]),
        (["{at}/subset.parquet", "{tmp}/out"], ["subset.parquet"]),
        (["{tmp}/empty", "{tmp}/out"], ["empty"]),
        (["{tmp}/empty.tar", "{tmp}/out"], ["empty.tar"]),
        (["{tmp}/garbage.tar", "{tmp}/out"], ["garbage.tar"]),
        (["{tmp}/garbage.gz", "{tmp}/out"], ["garbage.gz"]),
        (["{tar}", "{tmp}/out", "--tokenizer", "{tmp}/none.json"], ["none.json"]),
        (["{tar}", "{tmp}/out", "--tokenizer", "clip"], ["clip"]),
        (["{tar}", "{tmp}/out", "--vocab-size", "3"], ["vocab", "3"]),
        (["{tar}", "{tmp}/out", "--context", "1"], ["context", "1"]),
        (["{tar}", "{tmp}/out", "--max-side", "0"], ["max_side", "0"]),
        (["{tar}", "{tmp}/out", "--check", "none"], ["check", "none", "decode"]),
        (["{tar}", "{tmp}/out", "--workers", "0"], ["workers", "0"]),
        (["{tar}", "{tmp}/out", "--captions", "{tmp}/none.csv"], ["captions"]),
        (["{tar}", "{tmp}/out", "--classes", "cat"], ["--classes", "cat"]),
        (["{tar}", "{at}/data"], ["data"]),
        (["{tar}", "{tmp}/file"], ["file"]),
    ],
)
def test_convert_refuses(arguments, words, tmp_path, capsys, at, flow):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    (tmp_path / "garbage.tar").write_bytes(b"garbage" * 3000)
    (tmp_path / "garbage.gz").write_bytes(b"garbage" * 3000)
    (tmp_path / "file").write_text("kept")
    message = refused(capsys, "convert", *(a.format(tmp=tmp_path, at=at, tar=flow["tars"][0]) for a in arguments))
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["minutes", "epochs", "samples"]),
        (["--minutes", "1", "--samples", "10"], ["minutes", "samples"]),
        (["--minutes", "0"], ["minutes", "0"]),
        (["--samples", "-5"], ["samples", "-5"]),
        (["--epochs", "nan"], ["epochs", "nan"]),
        (["--samples", "64", "--set", "train.lr=fast"], ["train.lr", "fast"]),
        (["--samples", "64", "--config", "none.toml"], ["none.toml"]),
        (["--samples", "64", "--device", "tpu"], ["device", "tpu"]),
        (["--samples", "64", "--threads", "0"], ["threads", "0"]),
        (["--samples", "64", "--subset", "none.parquet"], ["none.parquet"]),
        (["--samples", "64", "--subset", "{at}/data/pairs.parquet"], ["pairs.parquet"]),
        (["--samples", "64", "--subset", "{other}"], ["subset", "data set"]),
    ],
)
def test_train_refuses(arguments, words, tmp_path, capsys, at, other_subset):
    arguments = [a.format(at=at, other=other_subset) for a in arguments]
    message = refused(capsys, "train", at / "data", tmp_path / "run", *arguments)
    assert all(word in message.lower() for word in words), message
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.fixture
def other_subset(at, tmp_path, capsys):
    """A subset of another data set."""
    path = tmp_path / "other.parquet"
    assert run_command(["select", str(at / "heldout"), str(path), "--method", "random", "--k", "5"]) == 0
    return path


def test_a_foreign_subset_is_refused_with_both_fingerprints(tmp_path, capsys, at, other_subset):
    message = refused(capsys, "train", at / "data", tmp_path / "run", "--samples", 64, "--subset", other_subset)
    for name in ("data", "heldout"):
        assert json.loads((at / name / "dataset.json").read_text())["fingerprint"][:12] in message


def test_a_finished_run_is_not_trained_over(capsys, at):
    before = (at / "proxy" / "model.safetensors").read_bytes()
    message = refused(capsys, "train", at / "data", at / "proxy", "--samples", 9999, *SMALL)
    assert "proxy" in message
    assert (at / "proxy" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "best", "--k", "5"], ["best", "facility-location"]),
        (["--method", "random"], ["fraction"]),
        (["--method", "random", "--k", "5", "--fraction", "0.5"], ["fraction", "k"]),
        (["--method", "random", "--fraction", "0"], ["fraction", "0"]),
        (["--method", "random", "--fraction", "1.5"], ["fraction", "1.5"]),
        (["--method", "random", "--k", "0"], ["k", "0"]),
        (["--method", "random", "--k", "1000000"], ["1000000"]),
        (["--method", "clipscore", "--k", "5"], ["features"]),
        (["--method", "clipscore(keep=2) | random", "--k", "5", "--features", "{at}/features"], ["keep"]),
        (["--method", "clipscore(keep=0.5 | random", "--k", "5", "--features", "{at}/features"], ["^"]),
        (["--method", "semdedup(epsilon=0.1)", "--k", "5", "--features", "{at}/features"], ["epsilon", "eps"]),
        (["--method", "apricot:Nothing", "--k", "5", "--features", "{at}/features"], ["Nothing", "FacilityLocation"]),
        (["--method", "random", "--k", "5", "--features", "{tmp}/none"], ["none"]),
        (["--method", "facility-location", "--k", "5", "--features", "{tmp}/nan.npy"], ["nan.npy"]),
        (["--method", "facility-location", "--k", "5", "--features", "{tmp}/short.npy"], ["7"]),
        (["--method", "facility-location", "--k", "5", "--features", "{tmp}/pickled.npy"], ["pickled.npy"]),
        (["--method", "random @ class", "--k", "5"], ["no class labels", "^"]),
        (["--method", "random(k=5) & craig", "--k", "5"], ["craig does not say", "^"]),
        (
            ["--method", "facility-location", "--k", "5", "--features", "{tmp}/keys.npz"],
            ["'scene-000000'", "not in the features"],
        ),
        (["--method", "facility-location", "--k", "5", "--features", "{tmp}/uids.npz"], ["no column 'uid'"]),
    ],
)
def test_select_refuses(arguments, words, tmp_path, capsys, at, flow):
    n = flow["convert"]["pairs"]
    np.save(tmp_path / "nan.npy", np.full((n, 4), np.nan, dtype=np.float32))
    np.save(tmp_path / "short.npy", np.ones((7, 4), dtype=np.float32))
    unit = np.ones((n, 1), dtype=np.float32)
    np.savez(tmp_path / "keys.npz", l14_img=unit, keys=np.array([f"k{i}" for i in range(n)]))
    np.savez(tmp_path / "uids.npz", l14_img=unit, uids=np.array([f"{i:032x}" for i in range(n)]))
    np.save(tmp_path / "pickled.npy", np.array([{}] * n, dtype=object), allow_pickle=True)
    arguments = [a.format(at=at, tmp=tmp_path) for a in arguments]
    message = refused(capsys, "select", at / "data", tmp_path / "s.parquet", *arguments)
    assert all(word in message for word in words), message
    assert not (tmp_path / "s.parquet").exists()


@pytest.mark.parametrize("command", ["evaluate", "search", "embed"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_a_run_without_a_model_is_refused(command, damage, tmp_path, capsys, at):
    run = tmp_path / "run"
    if damage != "missing":
        shutil.copytree(at / "run", run)
        (run / "model.safetensors").write_bytes(b"" if damage == "empty" else b"garbage" * 100)
    arguments = {
        "evaluate": [run, at / "heldout"],
        "search": [run, at / "heldout", "a boat"],
        "embed": [at / "heldout", tmp_path / "f", "--model", run],
    }[command]
    assert "run" in refused(capsys, command, *arguments)
    assert not (tmp_path / "f").exists()


def test_search_refuses_an_empty_query(capsys, at):
    assert "query" in refused(capsys, "search", at / "run", at / "heldout", "  ")


def test_profile_refuses_a_bad_configuration(capsys, at):
    assert "data.image_size" in refused(capsys, "profile", at / "data", "--set", "data.image_size=3")


def test_demo_does_not_overwrite_what_it_did_not_make(capsys, tmp_path):
    (tmp_path / "thesis.txt").write_text("kept")
    assert str(tmp_path) in refused(capsys, "demo", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "kept"


def test_demo_refuses_a_budget_that_is_too_small(capsys, tmp_path):
    assert "minutes" in refused(capsys, "demo", tmp_path / "out", "--minutes", 0)


@pytest.mark.parametrize("file", ["dataset.json", "00000.beton", "tokenizer.json", "pairs.parquet"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_data_set_is_refused(file, damage, tmp_path, capsys, at):
    data = tmp_path / "data"
    shutil.copytree(at / "heldout", data)
    content = (data / file).read_bytes()
    (data / file).unlink() if damage == "missing" else (data / file).write_bytes(content[: len(content) // 2])
    message = refused(capsys, "train", data, tmp_path / "run", "--samples", 64, *SMALL)
    assert file in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_usage_errors_exit_with_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "coreclip", "train", "--nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_ends_training_cleanly_and_the_same_command_goes_on(at, tmp_path):
    command = [sys.executable, "-m", "coreclip", "train", at / "data", tmp_path / "run", "--samples", "100000", *SMALL]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    reached = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert reached > 0
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while json.loads(metrics.read_text().splitlines()[-1])["step"] <= reached:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    process.send_signal(signal.SIGTERM)  # of a scheduler, or of `timeout`: as much time to stop
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert steps == sorted(steps)
    assert min(step for step in steps if step > reached) <= reached + 200


def test_select_does_not_overwrite_what_is_no_subset(capsys, at, tmp_path):
    (tmp_path / "captions.csv").write_text("kept")
    assert "nothing of yours" in refused(
        capsys, "select", at / "data", tmp_path / "captions.csv", "--method", "random", "--k", 3
    )
    assert (tmp_path / "captions.csv").read_text() == "kept"
    before = (at / "data" / "pairs.parquet").read_bytes()
    assert "no subset" in refused(
        capsys, "select", at / "data", at / "data" / "pairs.parquet", "--method", "random", "--k", 3
    )
    assert (at / "data" / "pairs.parquet").read_bytes() == before
    for _ in range(2):  # a subset may be made anew
        assert (
            run_command(["select", str(at / "data"), str(tmp_path / "s.parquet"), "--method", "random", "--k", "3"])
            == 0
        )


def test_profile_does_not_overwrite_what_is_no_report(capsys, at, tmp_path):
    (tmp_path / "page.html").write_text("<p>kept</p>")
    assert "no profile report" in refused(capsys, "profile", at / "data", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "<p>kept</p>"


def test_class_names_may_be_many_and_must_be_utf8(capsys, flow, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Mädchen\nJunge\n".encode("latin-1"))
    assert "UTF-8" in refused(capsys, "convert", flow["tars"][0], tmp_path / "out", "--classes", tmp_path / "latin.txt")
    names = ",".join(f"class number {i}" for i in range(300))
    message = refused(capsys, "convert", flow["tars"][0], tmp_path / "out", "--classes", names)
    assert "too long" not in message


def test_the_root_of_the_disk_is_no_output(capsys, flow):
    assert "root of the disk" in refused(capsys, "convert", flow["tars"][0], "/")


def test_a_query_that_is_no_text_is_refused(capsys, at):
    assert "UTF-8" in refused(capsys, "search", at / "run", at / "heldout", "a\udcff")
