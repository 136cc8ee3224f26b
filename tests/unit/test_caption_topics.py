"""The captions as the teacher: alike words, alike vectors; what it is in a run; what can't be."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer

from coreclip.config import Config, DataConfig, DistillConfig, ModelConfig, TrainConfig, load_config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, convert
from coreclip.training import train
from coreclip.training.caption_topics import WIDTH, caption_topics
from coreclip.training.distillation import make_teacher
from tests.helpers import encode_jpeg, make_dataset, make_pixels

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = [
    *(["A dog runs on the grass", "the brown DOG plays on grass"] for _ in range(4)),
    *(["A man rides a wave", "the surfer rides on a wave"] for _ in range(4)),
    *(["Children on the swing", "the children play"] for _ in range(4)),
    ["zyzzyva", "quokka"],
    ["numbat", "quoll"],
]
CONFIG = Config(
    data=DataConfig(image_size=16, batch_size=7, workers=1),
    model=ModelConfig(image_width=8, text_width=16, text_depth=1, heads=2, embed_dim=8, context=16),
    train=TrainConfig(precision="fp32", checkpoints=0),
    distill=DistillConfig(captions=True, weight=0.7),
)


def write_pairs(folder: Path, captions: list[list[str]]) -> Dataset:
    with tarfile.open(folder / "pairs.tar", "w") as archive:
        for i, texts in enumerate(captions):
            for extension, content in (("jpg", encode_jpeg(make_pixels(i))), ("txt", "\n".join(texts).encode())):
                info = tarfile.TarInfo(f"{i:04d}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    convert([folder / "pairs.tar"], folder / "data", vocab_size=300, context=16)
    return Dataset(folder / "data")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("topics"), CAPTIONS)


def test_pairs_are_alike_as_their_words_are(data):
    vectors = caption_topics(data)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = vectors @ vectors.T
    group = np.repeat(np.arange(3), 4)
    same = group[:, None] == group
    assert cosines[:12, :12][same].min() > 0.999  # the same captions
    assert np.abs(cosines[:12, :12][~same]).max() < 0.2
    # The last two share no word with anything: they are like nothing but themselves.
    assert np.abs(cosines[12:] - np.eye(14)[12:]).max() < 0.95
    assert not np.array_equal(vectors[12], vectors[13])
    assert np.array_equal(vectors, caption_topics(data))


def test_the_vectors_are_those_of_the_singular_value_decomposition(tmp_path):
    data = make_dataset(tmp_path / "set", 40, captions_per_pair=(2, 1, 3))
    texts = [" ".join(data.captions(i)) for i in range(data.n)]
    counts = CountVectorizer(token_pattern=r"\w+").fit_transform(texts).toarray()
    having = (counts > 0).sum(0)
    counts, having = counts[:, (having >= 3) & (having < 40)], having[(having >= 3) & (having < 40)]
    weighted = np.log(1 + counts) * np.log(40 / having)
    expected = TruncatedSVD(min(WIDTH, min(weighted.shape) - 1), algorithm="arpack").fit_transform(weighted)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = caption_topics(data)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_the_captions_teach(data):
    teacher = make_teacher(data, CONFIG)
    assert teacher.scale == pytest.approx(1 / 0.15)
    images, texts = teacher.take(np.array([3, 12]), np.array([1, 0]), torch.zeros(1))
    assert torch.equal(images, texts)
    np.testing.assert_allclose(images, caption_topics(data)[[3, 12]], atol=1e-6)


def test_a_taught_run_is_another_than_one_without_and_goes_on_bit_for_bit(data, tmp_path):
    for name, config in {"taught": CONFIG, "again": CONFIG, "alone": replace(CONFIG, distill=DistillConfig())}.items():
        train(data, tmp_path / name, config=config, samples=42)
    taught, again, alone = (load_file(tmp_path / name / "model.safetensors") for name in ("taught", "again", "alone"))
    assert all(torch.equal(values, again[name]) for name, values in taught.items())
    assert not torch.equal(taught["image_projection.weight"], alone["image_projection.weight"])
    assert json.loads((tmp_path / "taught" / "run.json").read_text())["asked"]["distill_features"] == data.fingerprint


@pytest.mark.parametrize("captions", [[["a dog"], ["a cat"], ["a bird"]], [["..."], ["?"], ["!"]]])
def test_captions_without_common_words_are_refused(tmp_path, captions):
    data = write_pairs(tmp_path, captions)
    with pytest.raises(
        CoreclipError, match=r"distill.captions: 0 words of the captions of .* leave distill.captions out"
    ):
        train(data, tmp_path / "run", config=CONFIG, samples=6)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.captions=true", "distill.features=teacher"], "one teacher, not distill.features beside it"),
        (["distill.temperature=0"], "distill.temperature = 0.0 is not allowed: 0.01 to 10"),
    ],
)
def test_what_can_not_be_is_refused(overrides, message):
    with pytest.raises(CoreclipError, match=message):
        load_config(overrides=overrides)
