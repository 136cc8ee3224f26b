"""The towers: shapes, and that neither padding nor the company of other rows changes an answer."""

import math

import pytest
import torch

from coreclip.config import Config, DataConfig, ModelConfig, load_config
from coreclip.presets import PRESETS
from coreclip.training.device import decoding_threads, resolve_device
from coreclip.training.model import END, build_model, set_statistics_share
from coreclip.training.text_towers import caption_lengths

TOWERS = [("cnn", "transformer"), ("vit", "cbow"), ("resnet", "transformer")]
OPENAI = {"RN50": 102_007_137, "ViT-B-32": 151_277_313, "ViT-B-16": 149_620_737}  # parameters of the published models


def tiny(image: str = "cnn", text: str = "transformer", context: int = 12, **model) -> Config:
    return Config(
        data=DataConfig(image_size=32),
        model=ModelConfig(
            image_tower=image,
            text_tower=text,
            image_width=8,
            text_width=16,
            heads=2,
            embed_dim=10,
            context=context,
            **model,
        ),
    )


def captions(*lengths: int, context: int = 12) -> torch.Tensor:
    rows = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.tensor([1, *range(5, 3 + length), END])
    return rows


def pictures(b: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (b, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("image", "text"), TOWERS)
def test_features_have_the_asked_width_and_unit_norm(image, text):
    model = build_model(tiny(image, text), vocab_size=40, seed=0).eval()
    images, texts, scale = model(pictures(3), captions(4, 12, 3))
    for features in (images, texts):
        assert features.shape == (3, 10)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert scale.item() == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize("text", ["transformer", "cbow"])
def test_a_caption_does_not_notice_padding_nor_its_neighbours(text):
    model = build_model(tiny(text=text), vocab_size=40, seed=0).eval()
    alone = torch.cat([model.encode_text(captions(length)) for length in (3, 7, 5)])
    together = model.encode_text(captions(3, 7, 5))
    wider = model.encode_text(torch.nn.functional.pad(captions(3, 7, 5), (0, 9)))
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, wider)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_text_tower_is_its_blocks_run_on_the_padded_matrix_with_torchs_own_attention(packed, causal):
    model = build_model(tiny(text_causal=causal), vocab_size=40, seed=0).eval()
    tower, tokens = model.text, captions(4, 9, 6)
    mask = (tokens != 0)[:, None, None].expand(3, 1, 12, 12)
    if causal:
        mask = mask & torch.ones(12, 12, dtype=torch.bool).tril()
    x = tower.embedding(tokens) + tower.position
    for block in tower.blocks:
        q, k, v = block.qkv(block.norm1(x)).view(3, 12, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + block.out(y.transpose(1, 2).reshape(3, 12, 16))
        x = x + block.mlp(block.norm2(x))
    expected = tower.norm(x[torch.arange(3), torch.tensor([3, 8, 5])])
    torch.testing.assert_close(tower(tokens, torch.tensor([4, 9, 6]), packed=packed), expected)


def test_an_image_tower_is_its_blocks_run_whole_and_read_at_the_class_token():
    model = build_model(tiny("vit", image_depth=2), vocab_size=40, seed=0).eval()
    tower = model.image
    x = tower.patches(model.pixels(pictures(3))).flatten(2).transpose(1, 2)
    x = tower.norm_before(torch.cat([tower.first.expand(3, 1, -1), x], 1) + tower.position)
    for block in tower.blocks:
        q, k, v = block.qkv(block.norm1(x)).view(3, 17, 3, 1, 8).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + block.out(y.transpose(1, 2).reshape(3, 17, 8))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(tower(model.pixels(pictures(3))), tower.norm(x[:, 0]))


def test_a_caption_ends_with_its_first_end_token_whatever_pads_it():
    tokens = torch.tensor(
        [[1, 7, END, 0, 0], [1, 0, 7, END, 0], [1, 7, END, END, END], [1, 7, 8, 9, 5], [0, 0, 0, 0, 0]]
    )
    assert caption_lengths(tokens, END).tolist() == [3, 4, 3, 5, 5]


@pytest.mark.parametrize("text", ["transformer", "cbow"])
def test_the_end_token_is_the_tokenizers_own(text):
    # A vocabulary in which 0 is a word's piece and the last id ends a caption, as in CLIP's.
    model = build_model(tiny(text=text), vocab_size=40, end=39, seed=0).eval()
    alone = model.encode_text(torch.tensor([[38, 0, 7, 39]]))
    padded = model.encode_text(torch.tensor([[38, 0, 7, 39, 0, 0], [38, 5, 6, 7, 8, 39]]))
    torch.testing.assert_close(padded[:1], alone)
    assert not torch.allclose(alone, model.encode_text(torch.tensor([[38, 7, 39]])), atol=1e-6)


@pytest.mark.parametrize("context", [12, 6])
def test_the_padded_path_gives_what_the_packed_one_does(context):
    for causal in (False, True):
        model = build_model(tiny(context=context, text_causal=causal), vocab_size=40, seed=0).eval()
        tokens = captions(3, 12, 5)
        torch.testing.assert_close(model.encode_text(tokens, packed=False), model.encode_text(tokens))


@pytest.mark.parametrize(("name", "parameters"), OPENAI.items())
def test_openais_shapes_have_their_number_of_parameters(name, parameters):
    with torch.device("meta"):
        model = build_model(load_config(preset=name), vocab_size=49_408, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_presets_span_one_to_150_million_parameters_and_their_names_say_how_many():
    def millions(name, vocab_size):
        with torch.device("meta"):
            model = build_model(load_config(preset=name), vocab_size=vocab_size, seed=0)
        return sum(parameter.numel() for parameter in model.parameters()) / 1e6

    for name in PRESETS:
        if name[-1] == "m":
            assert millions(name, 4096) == pytest.approx(int(name.rpartition("-")[2][:-1]), rel=0.15)
    assert min(millions(name, 4096) for name in PRESETS) < 1.2
    assert 145 < max(millions(name, 49_408) for name in PRESETS) < 160


def test_a_row_of_padding_alone_stays_finite():
    model = build_model(tiny(), vocab_size=40, seed=0).eval()
    assert model.encode_text(captions(4, 3) * torch.tensor([[1], [0]])).isfinite().all()


def test_a_caption_longer_than_the_context_ends_with_the_end_token():
    model = build_model(tiny(context=6), vocab_size=40, seed=0).eval()
    cut = captions(12)[:, :6].clone()
    cut[0, 5] = END
    torch.testing.assert_close(model.encode_text(captions(12)), model.encode_text(cut))


def test_word_order_matters_to_the_transformer_only():
    tokens, swapped = torch.tensor([[1, 7, 8, 2]]), torch.tensor([[1, 8, 7, 2]])
    for text, equal in (("transformer", False), ("cbow", True)):
        model = build_model(tiny(text=text), vocab_size=40, seed=0).eval()
        assert torch.allclose(model.encode_text(tokens), model.encode_text(swapped), atol=1e-6) is equal


def test_the_first_weights_follow_from_the_seed_alone():
    before = torch.get_rng_state()
    a, b, c = (build_model(tiny(), vocab_size=40, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["image_projection.weight"], c["image_projection.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_the_temperature_has_a_floor():
    model = build_model(tiny(), vocab_size=40, seed=0).eval()
    model.logit_scale.data.fill_(9.0)
    assert model(pictures(2), captions(3, 4))[2].item() == pytest.approx(math.log(100))


@pytest.mark.parametrize(("image", "text"), TOWERS)
def test_every_parameter_gets_a_gradient(image, text):
    model = build_model(tiny(image, text), vocab_size=40, seed=0)
    images, texts, scale = model(pictures(4), captions(4, 9, 6, 12))
    (scale.exp() * (images @ texts.T)).softmax(1).diag().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_small_batch_counts_less_in_the_running_statistics():
    moved = []
    for share in (1.0, 0.25):
        model = build_model(tiny(), vocab_size=40, seed=0)
        set_statistics_share(model, share)
        model.encode_image(pictures(4))
        moved.append(model.image.norm.running_mean.abs().sum().item())
    assert moved[1] == pytest.approx(moved[0] / 4, rel=1e-4)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:1"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match="it must be auto, cpu, cuda or cuda:N"):
        resolve_device(name)


def test_auto_takes_what_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_cuda_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"finds \d+ CUDA devices here; use --device cpu"):
        resolve_device("cuda:99")


def test_a_gpu_is_fed_by_this_processs_share_of_the_cores(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16))
    assert [decoding_threads(3, device) for device in (cpu, gpu)] == [3, 3]
    assert [decoding_threads(0, device) for device in (cpu, gpu)] == [2, 15]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decoding_threads(0, gpu) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(1))
    assert decoding_threads(0, gpu) == 1


def test_bfloat16_gradients_are_right_where_a_stage_has_nothing_left_to_halve():
    # 16 pixels leave the last stage a 1x1 image.
    config = Config(data=DataConfig(image_size=16), model=ModelConfig(image_width=16, text_width=16, heads=2))
    gradients = []
    for bf16 in (False, True):
        model = build_model(config, vocab_size=40, seed=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = model.encode_image(pictures(6, 16))
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        gradients.append(torch.cat([block.conv1.weight.grad.flatten() for block in model.image.blocks]))
    assert gradients[1].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() <= 0.2 * gradients[0].norm()


def test_channels_are_dropped_while_training_only():
    config = load_config(None, ["train.dropout=0.5"])
    model = build_model(config, vocab_size=40, seed=0)
    assert model.dropout == 0.5
    plain = build_model(Config(), vocab_size=40, seed=0)
    hidden = []
    for name in ("image_projection", "text_projection"):
        getattr(model, name).register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    for kind in (model, plain):
        kind.eval()
    for ours, theirs in zip(
        model(pictures(3, 64), captions(4, 12, 3)), plain(pictures(3, 64), captions(4, 12, 3)), strict=True
    ):
        assert torch.equal(ours, theirs)
    model.train()(pictures(3, 64), captions(4, 12, 3))
    texts, images = hidden[0], hidden[1]  # evaluation
    dropped_texts, dropped_images = hidden[2], hidden[3]
    assert not (texts == 0).any()
    for values in (dropped_texts, dropped_images):
        assert 0.3 < (values == 0).float().mean() < 0.8
    kept = dropped_texts != 0
    torch.testing.assert_close(
        dropped_texts[kept], 2 * texts[kept]
    )  # no batch normalisation there: the rest is doubled
    assert images.shape == dropped_images.shape


def test_a_finer_first_convolution_sees_four_times_as_many_places():
    fine, coarse = (
        build_model(load_config(None, [f"model.image_stride={stride}"]), vocab_size=40, seed=0).eval()
        for stride in (2, 4)
    )
    places = []
    for model in (fine, coarse):
        model.image.stem.register_forward_hook(lambda module, inputs, output: places.append(output.shape[-2:]))
        assert model.encode_image(pictures(2, 64)).shape == (2, 256)
    assert [tuple(shape) for shape in places] == [(32, 32), (16, 16)]
