"""The drawn scenes: what is planted is what the truth says, and the shards are as a stranger's would be."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from coreclip.errors import CoreclipError
from coreclip.pipeline.scene_backgrounds import paint_background
from coreclip.pipeline.scene_objects import paint_object, shape_names
from coreclip.pipeline.scene_world import COLOURS, KINDS, PATTERNS, SETTINGS, Group
from coreclip.pipeline.scenes import BROKEN_KINDS, ScenesReport, draw_scenes

N, HELDOUT, BROKEN = 120, 20, 5


def _members(folder: Path, prefix: str) -> dict[str, dict[str, bytes]]:
    """Return {key: {suffix: bytes}} of the shards that begin with ``prefix``."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob(f"{prefix}-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                assert member.mtime == 0
                samples.setdefault(key, {})[suffix] = file.read()
    return samples


def _readable(content: bytes) -> bool:
    try:
        Image.open(io.BytesIO(content)).load()
    except (OSError, SyntaxError):
        return False
    return True


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScenesReport]:
    folder = tmp_path_factory.mktemp("scenes") / "out"
    report = draw_scenes(folder, n=N, n_heldout=HELDOUT, size=48, broken=BROKEN, workers=2, pairs_per_shard=50, seed=5)
    return folder, report


def test_counts_in_report_truth_and_shards_agree(drawn: tuple[Path, ScenesReport]) -> None:
    folder, report = drawn
    truth = pd.read_parquet(folder / "truth.parquet")
    train, heldout = truth[truth.split == "train"], truth[truth.split == "heldout"]
    assert (len(train), len(heldout)) == (N, HELDOUT) == (report.n, report.heldout)
    assert train.mismatched.sum() == report.mismatched == round(0.25 * N)
    assert (train.duplicate_of != "").sum() == report.near_duplicates == round(0.15 * N)
    assert (train.broken != "").sum() == report.broken == BROKEN
    assert sorted(train.key) == sorted(_members(folder, "train"))
    assert sorted(heldout.key) == sorted(_members(folder, "heldout"))
    assert report.shards == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    assert json.loads((folder / "truth.json").read_text())["mismatched"] == report.mismatched


def test_heldout_is_clean(drawn: tuple[Path, ScenesReport]) -> None:
    folder, _ = drawn
    truth = pd.read_parquet(folder / "truth.parquet").query("split == 'heldout'")
    assert not truth.mismatched.any()
    assert (truth.duplicate_of == "").all()
    assert all(_readable(sample["jpg"]) for sample in _members(folder, "heldout").values())


def test_exactly_the_planted_files_are_broken_and_each_in_its_way(drawn: tuple[Path, ScenesReport]) -> None:
    folder, _ = drawn
    truth = pd.read_parquet(folder / "truth.parquet").query("split == 'train'").set_index("key")
    samples = _members(folder, "train")
    assert set(truth.broken) == {"", *BROKEN_KINDS}
    for key, sample in samples.items():
        broken = truth.broken[key]
        assert _readable(sample["jpg"]) == (broken in ("", "no caption"))
        assert ("txt" in sample) == (broken != "no caption")
        assert (sample["jpg"] == b"") == (broken == "zero bytes")


def test_json_repeats_the_text_as_its_first_caption(drawn: tuple[Path, ScenesReport]) -> None:
    samples = _members(drawn[0], "train").values()
    several = [sample for sample in samples if "json" in sample]
    assert 0 < len(several) < N
    for sample in several:
        captions = json.loads(sample["json"])["captions"]
        assert 2 <= len(captions) <= 3
        assert len(set(captions)) == len(captions)
        assert sample["txt"].decode().strip() == captions[0]


def test_mismatched_pairs_carry_the_captions_of_the_pair_that_the_truth_names(drawn: tuple[Path, ScenesReport]) -> None:
    folder, _ = drawn
    truth = pd.read_parquet(folder / "truth.parquet").query("split == 'train'").set_index("key")
    samples = _members(folder, "train")
    readable = truth[truth.broken != "no caption"]
    for key, row in readable.iterrows():
        source = row.caption_of or key
        assert samples[key]["txt"].decode().strip() == truth.true_caption[source]
    swapped = truth[truth.mismatched]
    assert set(swapped.caption_of) == set(swapped.index)  # a permutation
    root = truth.duplicate_of.where(truth.duplicate_of != "", truth.index)
    assert (root[swapped.index].to_numpy() != root[swapped.caption_of].to_numpy()).all()  # not its duplicate's either


def test_near_duplicates_look_like_their_originals_and_others_do_not(drawn: tuple[Path, ScenesReport]) -> None:
    folder, _ = drawn
    truth = pd.read_parquet(folder / "truth.parquet").query("split == 'train'").set_index("key")
    samples = _members(folder, "train")

    def small(key: str) -> np.ndarray:
        image = Image.open(io.BytesIO(samples[key]["jpg"])).resize((12, 12), Image.Resampling.BOX)
        values = np.asarray(image, dtype=np.float64).ravel()
        return (values - values.mean()) / values.std()

    sound = truth[~truth.broken.isin(BROKEN_KINDS[:4])]
    pairs = [(k, r.duplicate_of) for k, r in sound.iterrows() if r.duplicate_of in sound.index]
    assert len(pairs) > 10
    like = np.mean([small(a) @ small(b) / small(a).size for a, b in pairs])
    unlike = np.mean([small(a[0]) @ small(b[0]) / small(a[0]).size for a, b in itertools.pairwise(pairs)])
    assert like > 0.85
    assert unlike < 0.6
    assert all(samples[a]["jpg"] != samples[b]["jpg"] for a, b in pairs)


@pytest.mark.parametrize("workers", [1, 3])
def test_same_bytes_for_same_seed_with_any_number_of_workers(
    drawn: tuple[Path, ScenesReport], tmp_path: Path, workers: int
) -> None:
    folder, _ = drawn
    draw_scenes(
        tmp_path / "again", n=N, n_heldout=HELDOUT, size=48, broken=BROKEN, workers=workers, pairs_per_shard=50, seed=5
    )
    for path in sorted(folder.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_seed_gives_other_pictures(drawn: tuple[Path, ScenesReport], tmp_path: Path) -> None:
    draw_scenes(tmp_path / "other", n=20, n_heldout=0, size=48, broken=1, workers=1, seed=6)
    assert (
        _members(tmp_path / "other", "train")["scene-000001"]["jpg"]
        != _members(drawn[0], "train")["scene-000001"]["jpg"]
    )


def test_refuses_a_directory_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CoreclipError, match="is not empty; scenes are drawn into a new directory"):
        draw_scenes(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("n", 5),
        ("n_heldout", -1),
        ("size", 16),
        ("mismatched", 0.6),
        ("near_duplicates", 0.5),
        ("broken", 400),
        ("workers", 0),
    ],
)
def test_refuses_values_out_of_range_with_the_range_named(tmp_path: Path, option: str, value: float) -> None:
    options: dict[str, float] = {"n": 100, option: value}
    with pytest.raises(CoreclipError, match=f"{option} = {value} is out of range: it must be between"):
        draw_scenes(tmp_path / "out", **options)  # type: ignore[arg-type]


def test_every_kind_has_a_shape_that_shows_its_colour() -> None:
    assert shape_names() == set(KINDS)
    for kind in KINDS:
        looks = []
        for name in ("red", "blue"):
            colour, alpha = paint_object(Group(kind, name, "plain", "large", 1), 40, np.random.default_rng(1))
            assert alpha.max() == 1
            assert 0.08 < alpha.mean() < 0.95, kind
            looks.append((colour * alpha[..., None]).sum((0, 1)) / alpha.sum())
        assert looks[0][0] - looks[1][0] > 0.08, kind  # more red in the red one
        assert looks[1][2] - looks[0][2] > 0.08, kind


def test_patterns_change_the_picture() -> None:
    plain, *others = (
        paint_object(Group("box", "red", name, "large", 1), 40, np.random.default_rng(1))[0] for name in PATTERNS
    )
    assert all(np.abs(plain - other).mean() > 0.03 for other in others)


def test_backgrounds_differ_and_are_pictures() -> None:
    means = []
    for setting in SETTINGS:
        picture = paint_background(setting, 48, np.random.default_rng(2))
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert picture.std() > 0.02, setting
        means.append(picture[::8, ::8].ravel())
    assert min(np.abs(a - b).mean() for i, a in enumerate(means) for b in means[:i]) > 0.02


def test_every_concept_is_visible_in_a_table() -> None:
    assert len(KINDS) >= 25
    assert len(set(COLOURS) | set(SETTINGS) | set(KINDS)) == len(COLOURS) + len(SETTINGS) + len(KINDS)
