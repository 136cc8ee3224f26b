"""Whatever the subset and the batch size: each pair once, with its own pixels, and resumable anywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.loader import make_loader
from tests.helpers import make_dataset

N = 11


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("loader") / "set", N, rows_per_shard=4, size=(16, 16), raw_every=1)


@settings(deadline=None, max_examples=25)
@given(
    subset=st.lists(st.integers(0, N - 1), min_size=1, max_size=25),
    batch_size=st.integers(1, 9),
    train=st.booleans(),
    workers=st.integers(1, 4),
    prefetch=st.integers(0, 4),
)
def test_every_pair_comes_as_often_as_asked_with_its_own_pixels(dataset, subset, batch_size, train, workers, prefetch):
    loader = make_loader(
        dataset, subset=subset, batch_size=batch_size, train=train, workers=workers, prefetch=prefetch, image_size=16
    )
    batches = list(loader)
    index = torch.cat([batch.index for batch in batches]).tolist()
    assert len(batches) == len(loader)
    assert (sorted(index) == sorted(subset)) if train else (index == subset)
    if not train:  # raw images at their own size: to the byte
        images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
        assert (images == np.stack([dataset.image(i) for i in index])).all()


@settings(deadline=None, max_examples=20)
@given(
    before=st.integers(1, 7), after=st.integers(1, 7), taken=st.integers(1, 30), drop_last=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_resume_with_another_batch_size_visits_the_rest(dataset, before, after, taken, drop_last, seed):
    def loader(batch_size: int, drop: bool):
        return make_loader(dataset, batch_size=batch_size, image_size=8, seed=seed, drop_last=drop)

    first = loader(before, drop_last)
    epoch, seen = 0, []
    for batch in first:
        seen += batch.index.tolist()
        if len(seen) >= taken:
            break
    second = loader(after, False)
    second.load_state_dict(first.state_dict())
    epoch = second.epoch
    rest = [i for batch in second for i in batch.index.tolist()]
    assert epoch in (0, 1)
    assert sorted(rest if epoch else seen + rest) == list(range(N))


@settings(deadline=None, max_examples=25)
@given(
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)), sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    taken=st.integers(0, 9), order=st.sampled_from(["random", "quasi_random", "sequential"]), drop_last=st.booleans(),
    subset=st.lists(st.integers(0, N - 1), min_size=16, max_size=25), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_ranks_share_an_epoch_that_other_ranks_can_end(dataset, worlds, sizes, taken, order, drop_last, subset, seed):
    def loaders(world_size: int, batch_size: int, drop: bool):
        return [
            make_loader(
                dataset, subset=subset, batch_size=batch_size, image_size=8, order=order, window=2, seed=seed,
                drop_last=drop, rank=rank, world_size=world_size, workers=1, prefetch=1,
            )
            for rank in range(world_size)
        ]  # fmt: skip

    before = loaders(worlds[0], sizes[0], drop_last)
    iterators = [iter(loader) for loader in before]
    seen: list[int] = []
    count = min(taken, len(before[0]) - 1)
    assert len({len(loader) for loader in before}) == 1
    for _ in range(count):
        batches = [next(iterator) for iterator in iterators]
        assert {len(batch) for batch in batches} == {sizes[0]}
        seen += [i for batch in batches for i in batch.index.tolist()]
    assert -1 not in seen
    state = before[-1].state_dict()
    after = loaders(worlds[1], sizes[1], False)
    for loader in after:
        loader.load_state_dict(state)
    epochs = [list(loader) for loader in after]
    assert len({len(batches) for batches in epochs}) == 1
    for step in zip(*epochs, strict=True):
        assert len({len(batch) for batch in step}) == 1
    rest = [i for batches in epochs for batch in batches for i in batch.index.tolist() if i >= 0]
    assert sorted(seen + rest) == sorted(subset)
    assert after[0].epoch == 1
