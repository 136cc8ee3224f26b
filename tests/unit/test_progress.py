"""Progress: silent and quick work says nothing, long work a line every 30 seconds."""

from coreclip import progress


def test_quick_work_prints_nothing(capsys):
    with progress.Progress(10, "converting") as bar:
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_count_rate_and_time_left_on_stderr(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress(100, "converting") as bar:
        now[0] = 20.0
        bar.advance(20)
        now[0] = 40.0
        bar.advance(20, note="loss 1.5")
        now[0] = 41.0
        bar.advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "converting: 40 of 100 pairs, 1/s, 60 s left loss 1.5\n"


def test_what_was_done_before_does_not_count_in_the_rate(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress(1000, "training", done=900) as bar:
        now[0] = 40.0
        bar.advance(40)
    assert capsys.readouterr().err == "training: 940 of 1,000 pairs, 1/s, 60 s left\n"


def test_an_unknown_total_is_not_invented(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress(None, "scanning", "files") as bar:
        now[0] = 30.0
        bar.advance(60)
    assert capsys.readouterr().err == "scanning: 60 files, 2/s\n"
