"""The loader: right pairs, owned memory, resume, subsets, errors and threads."""

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from coreclip.errors import CoreclipError
from coreclip.pipeline import feeds
from coreclip.pipeline.loader import make_loader
from coreclip.pipeline.tokenizer import Tokenizer
from coreclip.randomness import hash64
from tests.helpers import encode_jpeg, make_dataset, make_pixels

N = 23


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("loader") / "set", N, raw_every=4, captions_per_pair=(3, 1, 2))


def joined(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


def same(left, right):
    names = ("images", "tokens", "index", "weight", "valid", "caption")
    return len(left) == len(right) and all((joined(left, name) == joined(right, name)).all() for name in names)


def test_evaluation_delivers_every_pair_with_its_own_image_and_caption(dataset):
    batches = list(make_loader(dataset, train=False, batch_size=8, image_size=32))
    assert [len(batch) for batch in batches] == [8, 8, 7]
    assert joined(batches, "index").tolist() == list(range(N))
    assert joined(batches, "valid").all()
    assert (joined(batches, "tokens").numpy() == dataset.stored_tokens(np.arange(N))[:, 0]).all()
    images = joined(batches, "images").permute(0, 2, 3, 1).numpy().astype(int)
    sizes = [dataset.image(i).shape[:2] for i in range(N)]
    for i, (height, width) in enumerate(sizes):
        left, top = round(((width * 32 // height) - 32) / 2) * height / 32, 0
        side = height
        centre = dataset.image(i)[top:, round(left) : round(left) + side]
        means = np.abs(centre.mean((0, 1)) - images.mean((1, 2))).mean(1)
        assert means[i] < 2
        if height == 32:  # no resize: the centre crop itself
            assert np.abs(images[i] - centre).mean() < 0.5


def test_types_and_memory_format(dataset):
    batch = next(iter(make_loader(dataset, batch_size=8, image_size=32)))
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    kinds = {name: getattr(batch, name).dtype for name in ("images", "tokens", "index", "weight", "valid", "caption")}
    assert kinds == {
        "images": torch.uint8, "tokens": torch.int64, "index": torch.int64, "weight": torch.float32,
        "valid": torch.bool, "caption": torch.int64,
    }  # fmt: skip
    assert batch.tokens.shape == (8, dataset.context)


def test_batches_own_their_memory(dataset):
    kept = list(make_loader(dataset, train=False, batch_size=4, image_size=16, prefetch=1))
    assert len({batch.images.data_ptr() for batch in kept}) == len(kept)
    again = list(make_loader(dataset, train=False, batch_size=4, image_size=16, prefetch=1))
    kept[0].images.zero_()
    assert same(kept[1:], again[1:])


def test_damaged_image_is_zeroed_flagged_and_weightless(tmp_path):
    dataset = make_dataset(tmp_path / "set", 9, images={4: b"\xff\xd8\xff" + b"garbage" * 50})
    whole = make_dataset(tmp_path / "whole", 9)
    options = {"train": False, "batch_size": 4, "image_size": 32, "workers": 1}
    batches, right = list(make_loader(dataset, **options)), list(make_loader(whole, **options))
    valid = joined(batches, "valid")
    assert torch.nonzero(~valid).flatten().tolist() == [4]
    assert not joined(batches, "images")[4].any()
    assert joined(batches, "weight").tolist() == valid.float().tolist()
    assert (joined(batches, "images")[valid] == joined(right, "images")[valid]).all()
    resident = list(make_loader(dataset, resident=True, **options))
    assert same(batches, resident)


def test_warned_images_are_delivered(tmp_path):
    file = encode_jpeg(make_pixels(1, 56, 40))
    at = file.index(b"\xff\xda")
    images = {1: file[:at] + b"\0\0\0\0" + file[at:]}
    for warnings, expected in (({1: "stray bytes"}, True), ({}, False)):
        dataset = make_dataset(tmp_path / str(expected), 3, images=images, warnings=warnings)
        batch = next(iter(make_loader(dataset, train=False, image_size=16)))
        assert batch.valid.tolist() == [True, expected, True]


@pytest.mark.parametrize("train", [True, False])
def test_workers_and_prefetch_change_nothing(dataset, train):
    options = {"train": train, "batch_size": 8, "image_size": 16, "seed": 3}
    first = list(make_loader(dataset, workers=1, prefetch=0, **options))
    for workers, prefetch in ((2, 2), (5, 9)):
        assert same(first, list(make_loader(dataset, workers=workers, prefetch=prefetch, **options)))


def test_epochs_differ_and_are_repeatable(dataset):
    loader = make_loader(dataset, batch_size=8, image_size=16, seed=1, crop_scale=(0.3, 0.8))
    assert loader.epoch == 0
    first, second = list(loader), list(loader)
    assert loader.epoch == 2
    assert sorted(joined(first, "index").tolist()) == sorted(joined(second, "index").tolist()) == list(range(N))
    assert joined(first, "index").tolist() != joined(second, "index").tolist()
    by_pair = [joined(epoch, "images")[joined(epoch, "index").argsort()] for epoch in (first, second)]
    assert (by_pair[0] != by_pair[1]).flatten(1).any(1).sum() > N // 2  # other crops
    loader.set_epoch(0)
    assert same(first, list(loader))


def test_captions_are_drawn_among_those_present(dataset):
    loader = make_loader(dataset, batch_size=8, image_size=8, seed=5)
    seen = [set() for _ in range(N)]
    for epoch in range(12):
        for batch in loader:
            stored = dataset.stored_tokens(batch.index.numpy())
            assert (batch.tokens.numpy() == stored[np.arange(len(batch)), batch.caption.numpy()]).all()
            present = np.array([3, 1, 2])[batch.index.numpy() % 3].astype(np.uint64)
            assert (batch.caption.numpy() == hash64(5, epoch, batch.index.numpy(), 2) % present).all()
            for index, caption in zip(batch.index.tolist(), batch.caption.tolist(), strict=True):
                seen[index].add(caption)
    assert sum(map(len, seen)) >= 2 * N - 6
    assert all(seen[i] == {0} for i in range(1, N, 3))


def test_another_tokenizer_encodes_the_raw_captions(dataset, tmp_path):
    texts, offsets = dataset.all_captions()
    other = Tokenizer.train(texts[:5], 280)
    assert other.sha256 != dataset.tokenizer_sha256
    expected = other.encode(texts, dataset.context)
    for train in (True, False):
        for batch in make_loader(dataset, train=train, tokenizer=other, batch_size=8, image_size=8):
            rows = offsets[batch.index.numpy()] + batch.caption.numpy()
            assert (batch.tokens.numpy() == expected[rows]).all()
    own = make_loader(dataset, tokenizer=dataset.tokenizer(), batch_size=8, image_size=8)
    assert same(list(own), list(make_loader(dataset, batch_size=8, image_size=8)))


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resume_goes_on_with_the_same_batches(dataset, stop):
    def loader(**options):
        return make_loader(dataset, batch_size=8, image_size=16, seed=2, **options)

    straight = loader()
    expected = [*straight, *straight]
    first = loader()
    taken = []
    while len(taken) < stop:
        for batch in first:
            taken.append(batch)
            if len(taken) == stop:
                break
    second = loader(workers=1, prefetch=0)
    second.load_state_dict(first.state_dict())
    rest = []
    while len(taken) + len(rest) < 6:
        rest += list(second)
    assert same(expected, taken + rest)


def test_leaving_early_starts_the_next_epoch(dataset):
    loader = make_loader(dataset, batch_size=8, image_size=8)
    next(iter(loader))
    assert loader.state_dict()["position"] == 8
    next(iter(loader))
    assert (loader.epoch, loader.state_dict()["position"]) == (1, 8)


def test_state_of_another_loader_is_refused(dataset):
    state = make_loader(dataset, seed=1).state_dict()
    with pytest.raises(CoreclipError, match="has seed 1, this loader 0; make the loader as before"):
        make_loader(dataset).load_state_dict(state)
    with pytest.raises(CoreclipError, match="has subset"):
        make_loader(dataset, seed=1, subset=[1, 2]).load_state_dict(state)
    with pytest.raises(CoreclipError, match="must have the keys epoch, position"):
        make_loader(dataset).load_state_dict({"epoch": 0})
    with pytest.raises(CoreclipError, match="position = 23 is not allowed"):
        make_loader(dataset, seed=1).load_state_dict({**state, "position": N})


def test_subset_with_duplicates_and_weights(dataset):
    subset = SimpleNamespace(indices=np.array([5, 2, 5, 20]), weights=np.array([1.5, 0.25, 2.0, 0.0]))
    loader = make_loader(dataset, train=False, subset=subset, batch_size=3, image_size=16)
    assert (len(loader), loader.n_samples) == (2, 4)
    batches = list(loader)
    assert joined(batches, "index").tolist() == [5, 2, 5, 20]
    assert joined(batches, "weight").tolist() == [1.5, 0.25, 2.0, 0.0]
    whole = joined(list(make_loader(dataset, train=False, image_size=16)), "images")
    assert (joined(batches, "images") == whole[[5, 2, 5, 20]]).all()
    shuffled = list(make_loader(dataset, subset=subset, batch_size=3, image_size=16))
    pairs = zip(joined(shuffled, "index").tolist(), joined(shuffled, "weight").tolist(), strict=True)
    assert sorted(pairs) == [(2, 0.25), (5, 1.5), (5, 2.0), (20, 0.0)]


def test_subset_can_change_between_epochs(dataset):
    loader = make_loader(dataset, subset=[1, 2, 3], image_size=8)
    assert sorted(joined(list(loader), "index").tolist()) == [1, 2, 3]
    loader.set_subset(np.array([7, 8], np.uint16))
    assert (loader.epoch, len(loader), loader.n_samples) == (1, 1, 2)
    assert sorted(joined(list(loader), "index").tolist()) == [7, 8]
    loader.set_subset(None)
    assert len(joined(list(loader), "index")) == N


def test_drop_last(dataset):
    loader = make_loader(dataset, batch_size=8, drop_last=True, image_size=8)
    assert len(loader) == 2
    assert [len(batch) for batch in loader] == [8, 8]
    assert loader.epoch == 1
    with pytest.raises(CoreclipError, match="drop_last=True leaves no batch of 8 of 3 pairs"):
        loader.set_subset([1, 2, 3])


def test_resident_images_are_the_same_for_evaluation(dataset):
    options = {"train": False, "batch_size": 8, "image_size": 16, "subset": [9, 3, 3, 12]}
    loader = make_loader(dataset, resident=True, **options)
    expected = list(make_loader(dataset, **options))
    assert same(expected, list(loader))
    assert same(expected, list(loader))
    loader.set_subset([1])
    assert same(list(make_loader(dataset, **{**options, "subset": [1]})), list(loader))


def test_resident_training_crops_resemble_the_others(tmp_path):
    dataset = make_dataset(tmp_path / "set", N, size=(40, 40))
    options = {"image_size": 16, "batch_size": N}
    resident, decoded = (next(iter(make_loader(dataset, resident=r, **options))) for r in (True, False))
    assert (resident.index == decoded.index).all()
    assert (resident.caption == decoded.caption).all()
    assert not (resident.images == decoded.images).all()
    pixels = [batch.images.float().flatten(1) for batch in (resident, decoded)]
    assert (torch.cdist(*pixels).argmin(1) == torch.arange(N)).all()


def test_resident_is_refused_where_memory_is_short(dataset, monkeypatch):
    monkeypatch.setattr(feeds, "_free_memory", lambda: 1000)
    with pytest.raises(CoreclipError, match=r"resident=True needs .* use resident=False, a smaller image_size"):
        next(iter(make_loader(dataset, resident=True)))


def test_no_thread_survives_an_iteration(dataset):
    before = threading.active_count()
    loader = make_loader(dataset, batch_size=4, image_size=16, workers=3)
    list(loader)
    assert threading.active_count() == before
    for _ in loader:
        break
    gc.collect()
    assert threading.active_count() == before
    iterator = iter(loader)
    next(iterator)
    gone = weakref.ref(loader)
    del loader, iterator, _
    gc.collect()
    assert threading.active_count() == before
    assert gone() is None


def test_failure_in_a_worker_reaches_the_consumer(dataset, monkeypatch):
    def broken(*_):
        raise MemoryError("no memory for the decoder")

    before = threading.active_count()
    loader = make_loader(dataset, batch_size=4, image_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(feeds, "decode_images", broken)
        with pytest.raises(MemoryError, match="no memory for the decoder"):
            list(loader)
    assert threading.active_count() == before
    assert len(list(loader)) == 6


_EXIT = """
import sys
from coreclip.pipeline.dataset import Dataset
from coreclip.pipeline.loader import make_loader
iterator = iter(make_loader(Dataset(sys.argv[1]), batch_size=2, image_size=64, prefetch=8))
print(len(next(iterator)), "ffcv" in sys.modules)
"""


def test_interpreter_exits_in_the_middle_of_an_epoch(dataset):
    done = subprocess.run(
        [sys.executable, "-c", _EXIT, str(dataset.path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0 is not allowed: it must be an integer from 1"),
        ({"batch_size": True}, "batch_size = True"),
        ({"batch_size": 2.0}, "batch_size = 2.0"),
        ({"image_size": 4}, "image_size = 4 is not allowed: it must be an integer from 8"),
        ({"workers": 0}, "workers = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"prefetch": -1}, "prefetch = -1"),
        ({"train": "yes"}, "train = 'yes' is not allowed: it must be True or False"),
        ({"resident": 1}, "resident = 1"),
        ({"drop_last": None}, "drop_last = None"),
        ({"pin_memory": 1}, "pin_memory = 1 is not allowed: it must be True or False"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale = \(0.5, 0.2\) is not allowed"),
        ({"crop_scale": 0.9}, "crop_scale = 0.9"),
        ({"crop_scale": (0.0, 1.0)}, "0 < low <= high <= 1"),
        ({"tokenizer": "clip"}, "tokenizer = 'clip' is not a Tokenizer"),
        ({"subset": np.ones(N, bool)}, r"subset of type bool .* numpy.flatnonzero\(mask\)"),
        ({"subset": [0.5]}, "subset of type float64"),
        ({"subset": []}, "non-empty"),
        ({"subset": [[1, 2]]}, r"shape \(1, 2\)"),
        ({"subset": [0, N]}, f"has the index {N}, .* it must be 0 to {N - 1}"),
        ({"subset": [-1]}, "has the index -1"),
        ({"subset": SimpleNamespace(indices=[1, 2], weights=[1.0])}, "2 finite numbers"),
        ({"subset": SimpleNamespace(indices=[1], weights=[np.nan])}, "finite"),
        ({"subset": SimpleNamespace(indices=[1], weights=[-1.0])}, "at least 0"),
    ],
)
def test_wrong_arguments_are_refused(dataset, options, message):
    with pytest.raises(CoreclipError, match=message):
        make_loader(dataset, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_pinned_memory_needs_a_gpu(dataset):
    with pytest.raises(CoreclipError, match="pin_memory=True needs a GPU"):
        make_loader(dataset, pin_memory=True)


def test_path_in_place_of_a_dataset_is_refused(dataset):
    with pytest.raises(CoreclipError, match=r"is not a Dataset; open a converted folder with Dataset\(path\)"):
        make_loader(Path(dataset.path))  # type: ignore[arg-type]


def test_subset_of_another_dataset_is_refused(dataset):
    subset = SimpleNamespace(indices=[1], weights=[1.0], fingerprint="abc")
    with pytest.raises(CoreclipError, match=f"chosen from data set abc, .* is {dataset.fingerprint}"):
        make_loader(dataset, subset=subset)
    subset.fingerprint = dataset.fingerprint
    make_loader(dataset, subset=subset)


def test_negative_epoch_is_refused(dataset):
    with pytest.raises(CoreclipError, match="epoch = -1 is not allowed"):
        make_loader(dataset).set_epoch(-1)


def test_a_loader_does_without_pandas(tmp_path):
    """Its import takes a quarter of a second, which every start would wait for."""
    make_dataset(tmp_path / "data", warnings={2: "extraneous bytes"})
    code = (
        "import sys; from coreclip.pipeline import Dataset, make_loader; data = Dataset(sys.argv[1]); "
        "next(iter(make_loader(data, batch_size=4, image_size=16))); print(data.tolerated.nonzero()[0], 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "data"], capture_output=True, text=True, check=True)
    assert done.stdout == "[2] False\n"
