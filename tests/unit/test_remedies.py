"""Remedies: predictions with known answers, measurement, and the reports they end up in."""

import json
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from coreclip.config import load_config
from coreclip.errors import CoreclipError
from coreclip.profiling import (
    REMEDIES,
    Growth,
    Remedy,
    Stalls,
    diagnose,
    measure_remedy,
    propose,
    render_html,
    render_text,
)
from coreclip.profiling.remedies import compare
from coreclip.profiling.situation import Situation

_SETTING = {"workers": 2, "image_size": 64, "device": "cuda", "precision": "fp32"}


def _situation(*, wait=0.0, slowed=0.0, compute=100.0, loader=None, setting=None, spread=0.0, **more):
    noise = 1 + spread * np.linspace(-1, 1, 41)
    parts = {name: more.pop(name, 0.0) for name in ("transfer", "side", "matmul")}
    costs = {"wait": wait, "slowed": slowed, "compute": compute, "real": wait + slowed + compute, **parts}
    if loader is not None:
        costs["loader"] = loader
    draws = {name: value * noise for name, value in costs.items()}
    return Situation(draws=draws, cores=2.0, setting=_SETTING if setting is None else setting, **more)


def _named(situation):
    return {remedy.name: remedy for remedy in propose(situation)}


def test_resident_data_is_capped_by_computing():
    remedy = _named(_situation(wait=100, loader=200))["resident-data"]
    assert remedy.predicted_speedup == pytest.approx(2)
    assert remedy.low < 2
    assert "resident-data" not in _named(_situation(wait=100, loader=200, setting={"resident": True}))


def test_a_stall_stays_unless_it_is_what_is_mended():
    stalls = Stalls(stage="logging", period=10, first=0, milliseconds=1000, low=990, high=1010, seen=5)
    named = _named(_situation(wait=100, loader=200, stalls=stalls))
    assert named["resident-data"].predicted_speedup == pytest.approx(300 / 200)
    assert named["rarer-stalls"].predicted_speedup == pytest.approx(300 / 200)


def test_prefetching_overlaps_loading_and_computing():
    remedy = _named(_situation(wait=50, loader=50))["prefetch"]
    assert remedy.predicted_speedup == pytest.approx(1.5)
    assert "prefetch" not in _named(_situation(wait=20, loader=120))


def test_prefetching_can_do_no_more_than_the_cores():
    assert _named(_situation(wait=50, loader=50, cpu_floor=125))["prefetch"].predicted_speedup == pytest.approx(1.2)


def test_more_threads_where_they_sleep_or_cores_are_free():
    sleepy = _named(_situation(wait=100, loader=200, loader_cores=0.1))["more-loader-threads"]
    assert sleepy.change == {"data.workers": 4}
    assert sleepy.predicted_speedup == pytest.approx(2)
    assert "more-loader-threads" not in _named(_situation(wait=100, loader=200, loader_cores=2.0))
    assert "more-loader-threads" not in _named(_situation(wait=100, loader=200, loader_cores=0.1, setting={}))


def test_no_core_is_spared_twice():
    setting = {"device": "cpu", "threads": 2}
    assert _named(_situation(slowed=80, loader=30, setting=setting))["spare-a-core"].change == {"threads": 1}
    assert "spare-a-core" not in _named(_situation(slowed=80, loader=30, setting={**setting, "threads": 1}))


def test_fewer_threads_against_contention():
    remedy = _named(_situation(slowed=44, loader=30, cpu_floor=110))["fewer-loader-threads"]
    assert remedy.change == {"data.workers": 1}
    assert 1 <= remedy.low < remedy.predicted_speedup < remedy.high == pytest.approx(144 / 110)
    assert "fewer-loader-threads" not in _named(_situation(slowed=44, loader=30, setting={"workers": 1}))


def test_smaller_images_are_offered_where_the_size_is_known():
    remedy = _named(_situation())["smaller-images"]
    assert remedy.change == {"data.image_size": 48}
    assert 1 < remedy.low < remedy.predicted_speedup < remedy.high == pytest.approx(16 / 9)
    assert "smaller-images" not in _named(_situation(setting={}))


def test_bf16_follows_amdahl():
    remedy = _named(_situation(matmul=80.0))["bf16"]
    assert remedy.predicted_speedup == pytest.approx(100 / (100 - 80 * (1 - 1 / 1.25)))
    assert remedy.low == pytest.approx(1)
    assert "bf16" not in _named(_situation(matmul=80.0, setting={**_SETTING, "precision": "bf16"}))
    assert "bf16" not in _named(_situation(matmul=80.0, wait=80))


def test_metrics_and_transfers_can_be_taken_off_the_step():
    remedies = _named(_situation(side=50.0, transfer=20.0))
    assert remedies["metric-off-the-step"].predicted_speedup == pytest.approx(2)
    assert remedies["overlap-transfer"].predicted_speedup == pytest.approx(1.25)
    assert not {"metric-off-the-step", "overlap-transfer"} & set(_named(_situation(side=1.0, transfer=1.0)))


def test_on_the_cpu_there_is_no_transfer_to_overlap():
    situation = _situation(transfer=50.0, setting={**_SETTING, "device": "cpu"})
    assert "overlap-transfer" not in _named(situation)


@pytest.mark.parametrize(
    ("last_call", "compute", "call", "total_steps", "speedup"),
    [
        # 120 ms at call 20, of which 20 ms are grown; on average over the run 500 ms will be.
        (40, 120, 20, 1000, 600 / 100),
        # A run that is shorter than what was measured: 300 ms at call 200, of its mean step 50 ms are grown.
        (400, 300, 200, 100, 150 / 100),
    ],
)
def test_constant_cost_is_predicted_over_the_whole_run(last_call, compute, call, total_steps, speedup):
    growth = Growth(
        stage="metrics", milliseconds=0, milliseconds_per_call=1, low=0.9, high=1.1, first_call=0, last_call=last_call
    )
    situation = _situation(compute=compute, growth=growth, call=call, total_steps=total_steps)
    remedy = _named(situation)["constant-cost"]
    assert remedy.predicted_speedup == pytest.approx(speedup)
    assert remedy.low < remedy.predicted_speedup < remedy.high


def test_what_the_step_saves_shows_as_far_as_the_loader_lets_it():
    slow = _named(_situation(wait=0, compute=100, side=50.0, loader=90))["metric-off-the-step"]
    assert slow.predicted_speedup == pytest.approx(100 / 90)
    quick = _named(_situation(wait=0, compute=100, side=50.0, loader=20))["metric-off-the-step"]
    assert quick.predicted_speedup == pytest.approx(2)
    inline = _named(_situation(wait=90, compute=100, side=50.0, loader=90))["metric-off-the-step"]
    assert inline.predicted_speedup == pytest.approx(190 / 140)


def test_smaller_or_raw_images_name_what_to_store():
    setting = {**_SETTING, "stored": "jpg", "stored_side": 400.0, "stored_aspect": 1.3}
    named = _named(_situation(slowed=40, loader=80, setting=setting))
    assert named["raw-images"].change == {"images.raw": True, "images.max_side": 104}
    assert named["cached-resolution"].change == {"images.max_side": 104}
    assert not named["raw-images"].same_result
    pixels = _named(_situation(slowed=40, loader=80, setting={**setting, "stored": "raw"}))
    assert "raw-images" not in pixels
    assert pixels["cached-resolution"].change == {"images.raw": True, "images.max_side": 104}


def test_nothing_to_gain_no_remedy():
    assert _named(_situation(loader=10, setting={})) == {}


def test_largest_gain_comes_first_and_noise_widens_the_interval():
    situation = _situation(wait=100, loader=200, loader_cores=0.1, side=10.0)
    speedups = [remedy.predicted_speedup for remedy in propose(situation)]
    assert speedups == sorted(speedups, reverse=True)
    assert len(speedups) >= 3


def test_every_change_is_one_that_the_configuration_takes():
    situations = [
        _situation(wait=100, loader=200, loader_cores=0.1),
        _situation(slowed=44, loader=30, cpu_floor=110, matmul=80.0),
    ]
    changes = [remedy.change for situation in situations for remedy in propose(situation) if remedy.change]
    assert len(changes) >= 4
    for change in changes:
        load_config(overrides=[f"{key}={value}" for key, value in change.items()])


def test_measured_speed_up_is_found_and_kept():
    measured = measure_remedy(lambda: time.sleep(0.03), lambda: time.sleep(0.01), repeats=3)
    assert measured.baseline_milliseconds >= 30
    assert measured.speedup > 1.5
    assert measured.low <= measured.speedup <= measured.high
    remedy = propose(_situation(wait=100, loader=200))[0]
    assert remedy.measured_speedup is None
    assert remedy.with_measurement(measured).measured_speedup == measured.speedup


def test_the_same_against_itself_brings_nothing():
    times = [10.0, 12.0, 9.0, 11.0, 10.5]
    same = compare(times, times)
    assert same.speedup == same.low == same.high == 1


def test_measuring_runs_in_turn_and_leaves_warm_up_out():
    order = []
    measure_remedy(lambda: order.append("a"), lambda: order.append("b"), repeats=2, warmup=1)
    assert order == ["a", "b"] * 3


@pytest.mark.parametrize("wrong", [{"repeats": 1}, {"warmup": -1}])
def test_wrong_repeats_are_refused(wrong):
    with pytest.raises(CoreclipError, match="at least 2 repeats"):
        measure_remedy(list, list, **wrong)


def test_every_remedy_says_when_and_how():
    for kind in REMEDIES.values():
        assert kind.condition
        assert kind.how


@pytest.fixture(scope="module")
def table():
    diagnosis = diagnose(lambda batch: time.sleep(0.005), [[1, 2]] * 9, steps=4, warmup=1, repeats=2)
    return json.loads(json.dumps(diagnosis.to_dict()))


def test_text_report_shows_verdict_stages_evidence_and_remedies(table):
    remedy = Remedy(
        name="bf16", condition="c", how="train in bfloat16", predicted_speedup=1.5, low=1.2, high=1.8,
        change={"train.precision": "bf16"}, measured_speedup=1.25,
    )  # fmt: skip
    text = render_text({**table, "remedies": [remedy.to_dict()]})
    assert text.startswith(table["verdict"])
    assert "step" in text
    assert table["evidence"][0] in text
    assert "bf16: 1.50 x (1.20 to 1.80), measured 1.25 x (prediction off by 20%)" in text
    assert "train in bfloat16 (train.precision=bf16)" in text


def test_html_report_is_self_contained_and_escaped(table):
    wild = "<script>alert(1)</script>"
    stages = {wild: table["stages"]["step"], **table["stages"]}
    page = render_html({**table, "stages": stages, "evidence": [wild]}, title=wild)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "<svg" in page
    for outside in ("http:", "https:", "src=", "url(", "@import", "<link"):
        assert outside not in page


def test_html_fragment_is_a_section(table):
    fragment = render_html(table, page=False)
    section = ElementTree.fromstring(fragment)  # well-formed
    assert section.tag == "section"
    assert len(section.findall("./svg/g")) == len(table["stages"])
    assert "<html" not in fragment
