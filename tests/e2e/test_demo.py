"""The demonstration from start to end, as small as it goes."""

import json
from pathlib import Path

import pytest

from coreclip.demo import ARMS, run_demo
from coreclip.report import GENERATOR, METRIC, is_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Return a demonstration that replaced an older one."""
    out = tmp_path_factory.mktemp("demo") / "report"
    (out / "work" / "runs" / "old").mkdir(parents=True)
    (out / "index.html").write_text(f'<meta name="generator" content="{GENERATOR}">old')
    (out / "notes.txt").write_text("mine")
    return out, run_demo(out, minutes=0.1, pairs=200, seeds=2)


def test_demo_ends_with_a_page_and_a_result_that_agree(finished: tuple[Path, dict]) -> None:
    out, result = finished
    assert is_report(out / "index.html")
    assert result["verdict"]["sentence"] in (out / "index.html").read_text(encoding="utf-8")
    assert json.loads((out / "work" / "result.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result))
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "notes.txt", "work"]


def test_all_arms_see_the_same_number_of_samples(finished: tuple[Path, dict]) -> None:
    out, result = finished
    for arm in ARMS:
        assert len(result["arms"][arm]["runs"]) == 2
        for i, run in enumerate(result["arms"][arm]["runs"]):
            record = json.loads((out / "work" / "runs" / f"{arm}-{i}" / "run.json").read_text())
            assert record["report"]["samples_seen"] == result["samples_per_run"]
            assert 0 <= run[METRIC] <= 1
    assert (
        result["arms"]["random"]["pairs"]
        == result["arms"]["coreset"]["pairs"]
        == result["arms"]["everything"]["pairs"] // 2
    )


def test_broken_files_are_named_and_counted(finished: tuple[Path, dict]) -> None:
    _, result = finished
    assert len(result["data"]["rejected"]) == 12 == result["data"]["pairs"] - result["data"]["converted"]
    assert all(reject["reason"] for reject in result["data"]["rejected"])


def test_an_older_report_is_replaced_and_a_file_beside_it_stays(finished: tuple[Path, dict]) -> None:
    out, _ = finished
    assert not (out / "work" / "runs" / "old").exists()
    assert (out / "notes.txt").read_text() == "mine"
