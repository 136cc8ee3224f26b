"""The panel: what it says, and that the terminal is as before when it is gone, however the run ends."""

import io
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from coreclip.training.panel import Panel, Sparkline, make_display
from tests.helpers import make_dataset

LINE = {
    "step": 70, "samples_seen": 4480, "seconds": 12.0, "loss": 2.5, "floor": 0.125, "lr": 5e-4, "logit_scale": 2.66,
    "samples_per_second": 1234.0, "wait_share": 0.07, "broken": 0,
}  # fmt: skip
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def shown(act, **settings):
    """Return what a panel has written to a terminal of 120 columns."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, legacy_windows=False)
    options = {"total": 1000, "usable_seconds": math.inf, "done": 0, "seconds": 0.0} | settings
    with Panel(console=console, **options) as panel:
        act(panel)
        panel.say("")
    return file.getvalue()


def test_the_panel_says_where_the_run_is():
    def act(panel):
        for loss in np.linspace(3, 2, 40):
            panel.advance(10, float(loss))
        panel.note(LINE)

    text = plain(shown(act))
    assert "400 of 1,000 pairs, 0:00 so far, 0:00 left" in text
    assert "loss    2.500  (floor 0.125)  █" in text
    assert "step    70  lr 5.00e-04  logit scale 2.66" in text
    assert "speed   1,234 pairs/s, 7% waiting for data" in text
    for absent in ("jest", "chosen", "held out", "broken", "px"):
        assert absent not in text


def test_what_a_run_has_besides_gets_a_row():
    recalls = {f"{way}_recall_at_{k}": 0.01 * k + (way == "text_to_image") / 5 for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}  # fmt: skip

    def act(panel):
        panel.note(LINE | {"scored": 8960, "image_size": 48, "broken": 3})
        panel.note({"step": 50, "reselection": {"passes": 2, "pool": 8192, "k": 2458, "seconds": 3.21}})
        panel.note({"step": 60, "evaluation": recalls | {"mean_recall": 0.2, "seconds": 1.5, "best_step": 40}})
        panel.say("evaluating")

    text = plain(shown(act))
    assert "training - evaluating" in text
    assert "1,234 pairs/s, 7% waiting for data, 48 px" in text
    assert "4,480 of 8,960 pairs trained on" in text
    assert "2,458 of 8,192 pairs after 2 passes, 3.2 s" in text
    assert (
        "text to image R@1 21.0 R@10 30.0, image to text R@1 1.0 R@10 10.0 %  (step 60, 1.5 s; best: step 40)" in text
    )
    assert "3 images did not decode" in text


def test_a_budget_of_time_shows_the_time_that_is_left():
    text = plain(shown(lambda panel: panel.note(LINE), total=None, usable_seconds=4000.0, seconds=300.0, done=77))
    assert re.search(r"77 pairs, 5:0\d so far, 1:01:\d\d left", text)


def test_the_panel_is_gone_after_an_error_and_the_cursor_is_back():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, legacy_windows=False)

    def interrupted():
        with Panel(total=10, usable_seconds=math.inf, done=0, seconds=0.0, console=console) as panel:
            panel.advance(5, 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = file.getvalue()
    assert text.index(HIDE) < text.index(SHOW)
    assert text.count(HIDE) == text.count(SHOW) == 1
    rows = 4  # the frame's two, the bar, the pairs
    assert text[text.index(SHOW) :].count("\x1b[1A\x1b[2K") == rows


def test_a_sparkline_shows_the_whole_run_in_a_fixed_width():
    line = Sparkline(8)
    assert line.text() == ""
    for value in (4.0, 4.0, 2.0):
        line.add(value)
    assert line.text("01234") == "440"
    for _ in range(2000):
        line.add(1.0)
        assert len(line.text()) < 8
    falling = Sparkline(8)
    for value in np.linspace(1, 0, 700):
        falling.add(float(value))
    heights = [int(c) for c in falling.text("0123456789")]
    assert heights == sorted(heights, reverse=True)
    assert (heights[0], heights[-1]) == (9, 0)


def test_elsewhere_than_on_a_terminal_there_are_lines(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("coreclip.progress.time.monotonic", lambda: now[0])
    for panel in (None, True, False):
        with make_display(total=100, usable_seconds=math.inf, done=20, seconds=5.0, panel=panel) as display:
            now[0] += 31.0
            display.advance(20, 1.2345)
            display.note(LINE)
            display.say("evaluating")
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"training: 40 of 100 pairs, 1/s, \d+ s left loss 1\.234\n", err)


def in_terminal(arguments, interrupt_at):
    """Run the command line on a terminal of its own and interrupt it; return its exit code and all it wrote."""
    own, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "coreclip", *arguments]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        text = ""
        while select.select([own], [], [], 120)[0]:
            try:
                text += os.read(own, 1 << 16).decode(errors="replace")
            except OSError:  # the end, on Linux
                break
            if interrupt_at in text:
                process.send_signal(signal.SIGINT)
                interrupt_at = "never again"
        process.kill()  # of one that hangs; the others have ended
    os.close(own)
    return process.returncode, text


def test_ctrl_c_leaves_a_clean_terminal_and_a_run_to_go_on_with(tmp_path):
    data = make_dataset(tmp_path / "set", 12)
    command = [
        "train", str(data.path), str(tmp_path / "run"), "--samples", "10000000", "--threads", "1", "--device", "cpu",
        "--set", "data.batch_size=5", "--set", "data.image_size=16", "--set", "model.image_width=8", "--set", "train.precision=fp32",
        "--set", "train.compile=off",
    ]  # fmt: skip
    code, text = in_terminal(command, interrupt_at="logit scale")
    assert code == 130
    assert text.count(HIDE) == text.count(SHOW) == 1
    after = text[text.index(SHOW) :]
    assert "\x1b[1A\x1b[2K" in after  # the panel is wiped
    assert plain(after).strip().startswith("coreclip: interrupted; nothing is half-written")
    assert (tmp_path / "run" / "checkpoint.pt").exists()
