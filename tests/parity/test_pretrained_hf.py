"""Checkpoints of ``transformers``: the same embeddings and logits as its ``CLIPModel``, both ways, and the same preprocessing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from coreclip.config import Config, DataConfig, ModelConfig
from coreclip.pipeline import make_loader
from coreclip.pipeline.clip_vocabulary import read_clip_tokenizer
from coreclip.training import ClipModel, build_model, save_hf
from tests.clip_files import save_hf_model, write_hf_vocabulary
from tests.helpers import make_dataset

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a photo of a red boat", "Two cats, and 12 dogs!", "", "boat " * 60, "CAFÉ &amp; house's"]
TOLERANCE = 1e-5


def images(size=32):
    return torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixel_values(pixels, processor):
    """What the model is given: as ``CLIPImageProcessor`` scales."""
    mean, std = (torch.tensor(processor[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    return (pixels / 255 - mean) / std


def compare(model, clip, folder):
    """Assert that a model of ``transformers`` and ours embed and score alike; both get the same ids and pixels."""
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    ids = torch.from_numpy(clip.tokenizer.encode(TEXTS, clip.config.model.context))
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=pixel_values(images(clip.image_size), processor))
        image, text = clip.encode_image(images(clip.image_size)), clip.encode_text(TEXTS)
        logits = clip.network.logit_scale.exp() * image @ text.T
    for ours, reference in (
        (image, theirs.image_embeds),
        (text, theirs.text_embeds),
        (logits, theirs.logits_per_image),
    ):
        assert reference.std() > 0.01  # no two rows are alike
        torch.testing.assert_close(ours, reference, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("activation", "image_heads", "heads"), [("gelu", 3, 2), ("quick_gelu", 6, 4), ("quick_gelu", 1, 8)]
)
def test_logits_are_those_of_transformers(activation, image_heads, heads, tmp_path):
    model = save_hf_model(tmp_path, activation=activation, image_heads=image_heads, heads=heads)
    clip = ClipModel.load(f"hf:{tmp_path}")
    assert clip.config.model.activation == activation
    compare(model, clip, tmp_path)


def test_older_files_are_read(tmp_path):
    """Weights that torch pickled, positions as tensors, and the configuration of 2021: twice, and with another end token."""
    model = save_hf_model(tmp_path)
    state = model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config_dict"] = config.pop("vision_config")
    config["text_config_dict"] = config["text_config"] | {"eos_token_id": 2}
    config["text_config"] = {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = ClipModel.load(f"hf:{tmp_path}")
    model.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
    model.text_model.eos_token_id = 2
    compare(model, clip, tmp_path)


def test_another_mean_and_deviation_are_read(tmp_path):
    model = save_hf_model(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]})
    )
    compare(model, ClipModel.load(f"hf:{tmp_path}"), tmp_path)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_model_of_ours_is_saved_for_transformers_and_comes_back_bit_for_bit(activation, tmp_path):
    n_tokens = write_hf_vocabulary(tmp_path / "vocabulary")
    tokenizer = read_clip_tokenizer(tmp_path / "vocabulary")
    config = Config(
        data=DataConfig(image_size=24),
        model=ModelConfig(
            image_tower="vit", image_width=40, image_depth=2, image_heads=5, text_width=24, text_depth=2, heads=3, patch_size=8,
            text_causal=True, activation=activation, embed_dim=16, context=20,
        ),
    )  # fmt: skip
    network = build_model(config, vocab_size=n_tokens, end=tokenizer.end, seed=0).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    save_hf(network, tokenizer, config, tmp_path / "saved")
    clip = ClipModel.load(f"hf:{tmp_path / 'saved'}")
    assert clip.tokenizer.sha256 == tokenizer.sha256
    assert clip.config == replace(config, data=clip.config.data)
    state, back = network.state_dict(), clip.network.state_dict()
    statistics = {"mean", "std"}  # are written as transformers has them, divided by 255
    assert [name for name in state if not torch.equal(state[name], back[name])] in (
        [],
        *map(list, [statistics, ["mean"], ["std"]]),
    )
    model = transformers.CLIPModel.from_pretrained(tmp_path / "saved").eval()
    compare(model, clip, tmp_path / "saved")
    theirs = transformers.CLIPTokenizerFast.from_pretrained(tmp_path / "saved")
    for text in TEXTS[:4]:
        ids = theirs(text, truncation=True)["input_ids"]
        assert ids == tokenizer.encode([text], 20)[0, : len(ids)].tolist()


def test_preprocessing_is_that_of_its_processor_within_its_rounding(tmp_path):
    """JPEGs as the data set stores them, through the loader, and through Pillow and the image processor."""
    save_hf_model(tmp_path / "model", image_size=32)
    # Resized to 42 x 32: where a margin is odd, it crops half a pixel to the left, and torchvision (as we do) to the right.
    data = make_dataset(tmp_path / "data", 6, size=(80, 60))
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "model")
    clip = ClipModel.load(f"hf:{tmp_path / 'model'}")
    loader = make_loader(data, batch_size=6, image_size=clip.image_size, train=False, tokenizer=clip.tokenizer)
    [batch] = loader
    ours = clip.network.pixels(batch.images).numpy()
    for index, pixels in enumerate(ours):
        (tmp_path / "one.jpg").write_bytes(data.image_bytes(index))
        reference = processor(Image.open(tmp_path / "one.jpg"), return_tensors="np")["pixel_values"][0]
        difference = np.abs(pixels - reference) * 0.2686 * 255  # of a uint8
        assert difference.mean() < 0.5
        assert difference.max() <= 3
