"""Configuration: defaults, TOML, overrides, and every refusal."""

from pathlib import Path

import pytest

from coreclip.config import Config, config_from_table, config_to_table, config_to_toml, load_config
from coreclip.errors import CoreclipError
from coreclip.settings_page import settings_page

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_page_of_all_settings_is_that_of_the_docstrings_and_names_every_key():
    page = (EXAMPLES.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == settings_page(), "make it anew: python -m coreclip.settings_page > docs/configuration.md"
    for section, values in config_to_table(Config()).items():
        part = page.partition(f"## [{section}]")[2].partition("\n## ")[0]
        assert [key for key in values if f"`{key}`" not in part] == []


def test_without_a_file_the_defaults_hold():
    assert load_config() == Config()


def test_toml_round_trip(tmp_path):
    config = load_config(overrides=["train.lr=0.002", "data.jitter=[0.4, 0.4, 0, 0.1]", "model.image_tower=vit"])
    (tmp_path / "c.toml").write_text(config_to_toml(config))
    assert load_config(tmp_path / "c.toml") == config


def test_table_round_trip():
    config = load_config(overrides=["train.seed=7"])
    assert config_from_table(config_to_table(config)) == config


def test_the_later_override_wins_over_the_earlier_and_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("[train]\nlr = 0.5\n")
    config = load_config(tmp_path / "c.toml", ["train.lr=0.1", "train.lr=1e-3"])
    assert config.train.lr == 1e-3


def test_a_whole_number_may_stand_for_a_real_one():
    assert load_config(overrides=["train.weight_decay=1"]).train.weight_decay == 1.0


def test_a_preset_lies_below_the_file_and_the_overrides(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[model]\nembed_dim = 96\n", encoding="utf-8")
    config = load_config(path, ["model.text_depth=2"], preset="ViT-B-32")
    assert (config.model.image_width, config.model.embed_dim, config.model.text_depth) == (768, 96, 2)
    assert config.data.image_size == 224
    assert load_config(preset="ViT-B-32").model.embed_dim == 512


def test_an_unknown_preset_is_refused():
    with pytest.raises(CoreclipError, match=r"preset 'ViT-L' is unknown; there are cnn-1m, .*ViT-B-32"):
        load_config(preset="ViT-L")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr=1", ["section.key=value"]),
        ("train.lr", ["section.key=value"]),
        ("train.learning_rate=1e-3", ["unknown key train.learning_rate", "lr"]),
        ("trian.lr=1e-3", ["unknown section [trian]", "train"]),
        ("train.lr=fast", ["train.lr", "'fast'", "float"]),
        ("train.lr=nan", ["train.lr", "float"]),
        ("train.lr=0", ["train.lr", "between 0 and 1"]),
        ("data.batch_size=1", ["data.batch_size", "1", "second pair"]),
        ("data.batch_size=2.5", ["data.batch_size", "int"]),
        ("data.crop_scale=[0.5]", ["data.crop_scale", "2 numbers"]),
        ("data.crop_scale=[0.9, 0.5]", ["data.crop_scale", "low <= high"]),
        ("data.order=sequential", ["data.order", "random, quasi_random"]),
        ("data.workers=257", ["data.workers", "1 to 256, or 0"]),
        ("data.flip=1.5", ["data.flip", "probability"]),
        ("data.grey=-0.1", ["data.grey", "probability"]),
        ("data.cutout=2", ["data.cutout", "fraction of the image's side"]),
        ("data.jitter=[0.4, 0.4, 0.4]", ["data.jitter", "4 numbers"]),
        ("data.jitter=[0.4, 0.4, 0.4, 0.6]", ["data.jitter", "hue's 0.5 at most"]),
        ("model.image_tower=resnext", ["model.image_tower", "cnn, resnet, vit"]),
        ("model.image_stride=3", ["model.image_stride", "2 or 4"]),
        ("model.heads=3", ["model.text_width", "multiple of model.heads = 3"]),
        ("train.dropout=1", ["train.dropout", "a share, 0 to below 1"]),
        ("train.word_dropout=-0.1", ["train.word_dropout", "a share, 0 to below 1"]),
        ("train.checkpoints=-1", ["train.checkpoints", "0 to 1000"]),
        ("jest.keep=0", ["jest.keep", "a share of each batch"]),
        ("jest.keep=0.5", ["jest.reference", "jest.keep = 0.5", "RUN or FEATURES"]),
        ("jest.chunks=0", ["jest.chunks", "1 to 256"]),
        ("train.signals=1", ["train.signals", "bool"]),
        ("train.precision=fp8", ["train.precision", "auto, fp32, bf16"]),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(override, words):
    with pytest.raises(CoreclipError) as refusal:
        load_config(overrides=[override])
    for word in words:
        assert word in str(refusal.value)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(CoreclipError, match=r"model.patch_size = 7.*divisor of data.image_size = 64"):
        load_config(overrides=["model.image_tower=vit", "model.patch_size=7"])


def test_a_share_that_asks_for_too_large_batches_is_refused():
    with pytest.raises(CoreclipError, match=r"jest.keep = 1e-06.*they are 256,000,000"):
        load_config(overrides=["jest.keep=1e-6", "jest.reference=run"])
    assert load_config(overrides=["jest.keep=0.3", "jest.reference=run"]).super_batch_size == 853
    assert load_config().super_batch_size == 256


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CoreclipError, match=r"none.toml can't be read"):
        load_config(tmp_path / "none.toml")


def test_a_file_that_is_not_toml_is_refused_with_the_place(tmp_path):
    (tmp_path / "c.toml").write_text("[train\n")
    with pytest.raises(CoreclipError, match=r"is not TOML.*line 1"):
        load_config(tmp_path / "c.toml")


def test_a_section_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "c.toml").write_text("train = 3\n")
    with pytest.raises(CoreclipError, match=r"write \[train\]"):
        load_config(tmp_path / "c.toml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_configurations(path):
    assert load_config(path) != Config()
