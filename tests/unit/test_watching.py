"""Loops that nobody here wrote, watched by wrapping what they are made of."""

import threading
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coreclip.errors import CoreclipError
from coreclip.profiling import Watcher, watch, watched


def train(loader, model, optimiser, loss_of):
    """A plain PyTorch loop."""
    for images, labels in loader:
        loss = loss_of(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def parts(n=20, slow=0.0):
    class Slow(TensorDataset):
        def __getitem__(self, index):
            time.sleep(slow)
            return super().__getitem__(index)

    torch.manual_seed(0)
    data = Slow(torch.randn(4 * n, 16), torch.randint(0, 3, (4 * n,)))
    model = nn.Linear(16, 3)
    return DataLoader(data, batch_size=4), model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_plain_loop_with_a_slow_loader_is_data_bound():
    loader, model, optimiser = parts(slow=0.003)
    train(watch("wait", loader), watch("forward", model), optimiser, nn.functional.cross_entropy)
    diagnosis = watched()
    assert diagnosis.verdict == "data-bound"
    assert diagnosis.stages["wait"]["milliseconds_per_step"] >= 12
    assert diagnosis.samples_per_second < 4 / 0.012
    with pytest.raises(CoreclipError, match="nothing is watched in this process"):
        watched()


def test_stages_of_the_loaders_threads_name_the_cause():
    watcher = Watcher(warmup=2)
    read, augment = watcher.watch("read", lambda: time.sleep(0.02)), watcher.watch("augment", lambda: time.sleep(0.004))

    class Loader:
        def __iter__(self):
            for _ in range(16):
                thread = threading.Thread(target=lambda: (read(), augment()))
                thread.start()
                thread.join()
                yield [0]

    for _ in watcher.watch("wait", Loader()):
        time.sleep(0.002)
    assert watcher.recorder.elsewhere["read"].calls == 16
    diagnosis = watcher.diagnosis()
    assert (diagnosis.verdict, diagnosis.cause) == ("data-bound", "read")


def test_time_that_nobody_watches_is_said_so():
    watcher = Watcher(warmup=1)
    forward = watcher.watch("forward", lambda: time.sleep(0.001))
    for _ in watcher.watch("wait", [[0]] * 12):
        forward()
        time.sleep(0.01)
    assert watcher.diagnosis().verdict == "unwatched"


def test_watched_things_stay_what_they_are():
    watcher = Watcher()
    loader = watcher.watch("wait", DataLoader(TensorDataset(torch.arange(8)), batch_size=2))
    assert len(loader) == 4
    assert loader.batch_size == 2
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    named = watcher.watch("forward", nn.Linear(2, 2).forward)
    assert named.__name__ == "forward"


@pytest.mark.parametrize("watched_first", [True, False])
def test_a_watched_step_goes_with_a_schedule_of_the_learning_rate(watched_first, recwarn):
    watcher, (_, model, optimiser) = Watcher(), parts()
    if watched_first:
        optimiser.step = watcher.watch("optimiser", optimiser.step)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5)
    if not watched_first:
        optimiser.step = watcher.watch("optimiser", optimiser.step)
    model(torch.ones(1, 16)).sum().backward()
    optimiser.step()
    schedule.step()
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.05)
    assert not [str(warning.message) for warning in recwarn if "optimizer" in str(warning.message)]


def test_what_comes_after_the_loop_is_not_in_the_systems_window():
    watcher = Watcher(warmup=1)
    for _ in watcher.watch("wait", [[0]] * 12):
        time.sleep(0.002)
    time.sleep(0.3)
    assert watcher.diagnosis().system.seconds < 0.25


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Watcher(warmup=-1), "warmup = -1 is not allowed"),
        (lambda: Watcher().diagnosis(), "0 steps were watched"),
        (lambda: Watcher().watch("wait", 3), "a int can't be watched"),
    ],
)
def test_mistakes_are_refused(act, message):
    with pytest.raises(CoreclipError, match=message):
        act()
