"""`coreclip profile` through the real command line: conditions, remedies tried, the gate, mistakes."""

import json
import tomllib

from tests.e2e.conftest import SMALL, coreclip, coreclip_json


def test_fix_measures_what_it_predicts_and_writes_what_it_keeps(flow, at, tmp_path):
    out = tmp_path / "improved.toml"
    report = coreclip_json(
        "profile", at / "data", "--steps", 8, "--samples", 6400, "--fix", "--fix-minutes", 0.3, "--out", out, *SMALL
    )
    fix = report["fix"]
    assert fix["trials"]
    for trial in fix["trials"]:
        assert trial["measured_speedup"] is not None or trial["note"]
    tried = {json.dumps(trial["change"]) for trial in fix["trials"] if not trial["on_top_of"]}
    for remedy in report["remedies"]:
        if json.dumps(remedy["change"]) in tried:
            assert remedy["measured_speedup"] is not None
    assert out.exists() == any(trial["kept"] for trial in fix["trials"])
    if out.exists():
        assert tomllib.loads(out.read_text())["model"]["image_width"] == 8
        assert fix["speedup"] > 1


def test_gate_passes_the_same_profile_and_fails_a_slower_one(flow, at, tmp_path):
    done = coreclip("profile", at / "data", "--steps", 8, "--json", *SMALL)
    assert "profiler_start" not in done.stderr  # what torch's profiler says of itself
    before = json.loads(done.stdout)
    before["conditions"]["real"]["block_milliseconds"] = [99, 100, 101, 100, 100]  # of a quiet machine
    before["stalls"] = None
    after = json.loads(json.dumps(before))
    real = after["conditions"]["real"]
    real["block_milliseconds"] = [1.5 * block for block in real["block_milliseconds"]]
    for name, profile in (("before", before), ("after", after)):
        (tmp_path / name).write_text(json.dumps(profile))
    same = coreclip_json("profile", "--compare", tmp_path / "before", tmp_path / "before", "--fail-on", "5%")
    assert same["is_slower"] is False
    done = coreclip("profile", "--compare", tmp_path / "before", tmp_path / "after", code=1)
    assert "50.0% slower" in done.stdout
    assert "too slow" in done.stdout
    assert coreclip("profile", "--compare", tmp_path / "after", tmp_path / "before", "--fail-on", "0.1").returncode == 0


def test_mistakes_end_with_one_line(at, tmp_path):
    (tmp_path / "mine.toml").write_text("[data]\n")
    (tmp_path / "bad.json").write_text("{}")
    for arguments, message in (
        ((), "no data set to profile"),
        ((at / "data", "--fix", "--out", tmp_path / "mine.toml"), "is no configuration that --fix has written"),
        ((at / "data", "--minutes", 1, "--epochs", 1), "are two budgets"),
        ((at / "data", "--fix-any", "--fix-minutes", 0), "minutes = 0.0 is not allowed"),
        (("--compare", tmp_path / "bad.json", tmp_path / "bad.json"), "the first file is no profile"),
        (("--compare", tmp_path / "bad.json", tmp_path / "none.json"), "no profile at"),
        (("--compare", tmp_path / "bad.json", tmp_path / "bad.json", "--fail-on", "lots"), "is no share"),
    ):
        done = coreclip("profile", *arguments, code=2)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert (tmp_path / "mine.toml").read_text() == "[data]\n"
