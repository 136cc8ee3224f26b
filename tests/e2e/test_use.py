"""A trained run in use, through the real command line: measured, searched, re-ranking and classifying files.

Each command runs once in a process of its own; its variants run in this one, which has imported everything already.
"""

import csv
import json
import os

import numpy as np
import pytest

from coreclip.cli import run_command
from coreclip.pipeline import Dataset
from tests.e2e.conftest import coreclip, coreclip_json


@pytest.fixture(scope="module")
def files(flow, tmp_path_factory):
    """A folder of ten held-out images called by their indices, and one file that is no image."""
    folder = tmp_path_factory.mktemp("files")
    data = Dataset(flow["at"] / "heldout")
    for i in range(10):
        (folder / f"{i:02d}.jpg").write_bytes(data.image_bytes(i))
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def here(capsys):
    """A function that runs a command in this process and returns what it printed: on stdout, or on stderr where it must fail."""

    def run(*arguments, code=0):
        capsys.readouterr()
        assert run_command([*map(str, arguments)]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def test_evaluate_reads_features_in_place_of_embedding(flow, at, tmp_path, here):
    here("embed", at / "heldout", tmp_path / "features", "--model", at / "run")
    found = coreclip_json("evaluate", at / "run", at / "heldout", "--features", tmp_path / "features")
    for key, value in flow["evaluate"].items():
        assert found[key] == (pytest.approx(value, abs=0.1) if isinstance(value, float) else value), key
    assert "embed this data set" in here(
        "evaluate", at / "run", at / "data", "--features", tmp_path / "features", code=2
    )
    wrong = coreclip("evaluate", at / "proxy", at / "heldout", "--features", tmp_path / "features", code=2)
    assert "embed the data set with this run" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_probes_and_templates_come_from_the_command_line(at, files, tmp_path, here):
    classes = tmp_path / "classes"
    for i, path in enumerate(sorted(files.glob("[0-9]*.jpg"))):
        (classes / ("ab"[i % 2])).mkdir(parents=True, exist_ok=True)
        (classes / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    here("convert", classes, tmp_path / "labelled", "--tokenizer", at / "data")
    (tmp_path / "mine.txt").write_text("a picture of {}\n")
    options = ["--templates", tmp_path / "mine.txt", "--few-shot", "1,2", "--draws", 2, "--confusion", "--linear-probe"]
    found = json.loads(here("evaluate", at / "run", tmp_path / "labelled", *options, "--json"))
    assert [row["shots"] for row in found["few_shot"]] == [1, 2]
    assert np.sum(found["zero_shot_confusion"]) == 10
    assert 0 <= found["linear_probe_accuracy"] <= 1
    text = here("evaluate", at / "run", tmp_path / "labelled", *options)
    assert "logistic" in text
    assert "confusion: a row for each true class" in text
    assert "is no list of numbers" in here("evaluate", at / "run", at / "heldout", "--few-shot", "one", code=2)


def test_search_takes_several_queries_and_images_and_writes_a_page(flow, at, files, tmp_path, here):
    (tmp_path / "queries.txt").write_text("a red boat\n\na green house\n")
    options = ["--queries", tmp_path / "queries.txt", "--image", files / "03.jpg", "--html", tmp_path / "found.html"]
    found = coreclip_json("search", at / "run", at / "heldout", "a dog", *options, "--top", 3)
    assert [one["query"] for one in found["searches"]] == [
        "a dog",
        "a red boat",
        "a green house",
        str(files / "03.jpg"),
    ]
    assert found["searches"][1]["results"] == [
        hit | {"score": pytest.approx(hit["score"], abs=1e-5)} for hit in flow["search"]["results"]
    ]
    assert found["searches"][3]["results"][0]["index"] == 3
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64") == 13
    assert "coreclip search" in page
    assert (flow["search"]["query"], len(flow["search"]["results"])) == ("a red boat", 3)
    assert "nothing is asked for" in here("search", at / "run", at / "heldout", code=2)
    strange = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    strange.write_bytes((files / "03.jpg").read_bytes())
    printed = here("search", at / "run", at / "heldout", "--image", strange, "--html", tmp_path / "one.html", "--json")
    assert json.loads(printed)["query"].endswith("caf?.jpg")
    assert json.loads(printed)["results"][0]["index"] == 3
    for content, message in (
        (b" \n", "is empty; it must have one a line"),
        (b"\xe9\n", "is not UTF-8; save it as UTF-8"),
    ):
        (tmp_path / "queries.txt").write_bytes(content)
        assert message in here("search", at / "run", at / "heldout", "--queries", tmp_path / "queries.txt", code=2)
    (tmp_path / "thesis.html").write_text("mine")
    refused = here("search", at / "run", at / "heldout", "x", "--html", tmp_path / "thesis.html", code=2)
    assert "nothing of yours is replaced" in refused


def test_rerank_orders_files_and_names_those_that_are_none(at, files, tmp_path, here):
    (tmp_path / "theirs.csv").write_text("path,score\n" + "".join(f"{files}/{i:02d}.jpg,{i}\n" for i in range(10)))
    done = coreclip("rerank", at / "run", "a red boat", files, "--candidates", tmp_path / "theirs.csv", "--json")
    found = json.loads(done.stdout)
    assert {hit["path"] for hit in found["results"]} == {f"{files}/{i:02d}.jpg" for i in range(10)}
    scores = [hit["score"] for hit in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert {hit["their_rank"] for hit in found["results"]} == set(range(1, 11))
    assert f"{files}/broken.jpg is left out: not an image of a known kind" in done.stderr
    assert "none of the 1 images can be read" in here("rerank", at / "run", "x", files / "broken.jpg", code=2)
    assert "(theirs: 1, 9)" in here("rerank", at / "run", "a red boat", "--candidates", tmp_path / "theirs.csv")


def test_classify_gives_probabilities_and_a_table(at, files, tmp_path, here):
    table = tmp_path / "table.csv"
    options = ["--classes", "boat,house,a red car", "--top", 2, "--csv", table]
    found = coreclip_json("classify", at / "run", files, *options, "--templates", "clip-7")
    assert found["classes"] == ["boat", "house", "a red car"]
    assert [one["reason"][:12] for one in found["failed"]] == ["not an image"]
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert rows[0]["class"] == found["results"][0]["predictions"][0]["class"]
    assert float(rows[0]["probability"]) == found["results"][0]["predictions"][0]["probability"]
    assert "nothing of yours is replaced" in here("classify", at / "run", files, *options, code=2)
    assert "%" in here("classify", at / "run", files / "00.jpg", "--classes", "boat,house")
    (tmp_path / "names.txt").write_text("\ufeffboat\nhouse\n", encoding="utf-8")
    named = json.loads(here("classify", at / "run", files / "00.jpg", "--classes", tmp_path / "names.txt", "--json"))
    assert named["classes"] == ["boat", "house"]
    unknown = os.fsdecode(b"b\xe9,house")
    assert "is not UTF-8 text; type it" in here("classify", at / "run", files, "--classes", unknown, code=2)
