"""The towers as graphs give the model's features, for any batch and caption, without batch normalisation and foreign weights."""

import pytest
import torch
from torch import nn

from coreclip.config import Config, DataConfig, ModelConfig
from coreclip.pipeline import Tokenizer
from coreclip.training import ClipModel
from coreclip.training.export_inputs import drawn_inputs
from coreclip.training.export_parity import compare_features, reference_features
from coreclip.training.model import new_model
from coreclip.training.towers_for_export import exported_program, fold_batch_norms, make_tower

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = {
    "cnn, transformer": {"image_tower": "cnn", "image_width": 8, "text_tower": "transformer"},
    "resnet, cbow": {"image_tower": "resnet", "image_width": 8, "resnet_blocks": (1, 1, 1, 1), "text_tower": "cbow"},
    "vit, causal": {"image_tower": "vit", "image_width": 16, "text_causal": True, "activation": "quick_gelu"},
}


def make_clip(**shape):
    """An untrained model whose batch normalisations do something."""
    tokenizer = Tokenizer.train(["a red dog on a boat", "a green house"], 300)
    model = ModelConfig(text_width=16, text_depth=2, image_depth=1, heads=2, embed_dim=8, context=12, **shape)
    config = Config(data=DataConfig(image_size=32), model=model)
    network = new_model(config, tokenizer).eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return ClipModel(network, tokenizer, config)


@pytest.mark.parametrize("name", SHAPES)
def test_a_graph_says_what_the_model_says(name):
    clip = make_clip(**SHAPES[name])
    inputs = drawn_inputs(clip, 9)
    for tower in ("image_tower", "text_tower"):
        rows = torch.from_numpy(inputs.of(tower))
        program = exported_program(make_tower(tower, clip.network), rows[:2])
        run = program.module()
        expected = reference_features(clip, tower, inputs.of(tower))
        for size in (1, 4, 9):
            found = torch.cat([run(rows[i : i + size]) for i in range(0, 9, size)]).numpy()
            assert compare_features(found, expected)["max_abs_difference"] < 1e-5
        assert not [n for n in program.graph.nodes if "batch_norm" in str(n.target)]
        own = sum(p.numel() for part in ("image", "image_projection") for p in getattr(clip.network, part).parameters())
        if tower == "image_tower":
            assert sum(t.numel() for t in program.state_dict.values()) <= own + 2 * 3


def test_half_precision_keeps_inputs_and_outputs():
    clip = make_clip(**SHAPES["cnn, transformer"])
    inputs = drawn_inputs(clip, 6)
    for tower in ("image_tower", "text_tower"):
        rows = torch.from_numpy(inputs.of(tower))
        found = make_tower(tower, clip.network, torch.float16)(rows)
        assert found.dtype == torch.float32
        compared = compare_features(found.numpy(), reference_features(clip, tower, inputs.of(tower)))
        assert 1e-6 < compared["max_abs_difference"] < 1e-2
        assert compared["least_cosine"] > 0.999
        torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


def test_a_batch_norm_that_is_not_a_convolutions_alone_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y + self.other(y.relu())

    net, x = Net().eval(), torch.randn(2, 2, 4, 4)
    folded = fold_batch_norms(torch.export.export(net, (x,)).module())
    assert len([n for n in folded.graph.nodes if "batch_norm" in str(n.target)]) == 2
    torch.testing.assert_close(folded(x), net(x))


def test_drawn_inputs_follow_from_the_seed_and_reach_the_edges():
    clip = make_clip(**SHAPES["cnn, transformer"])
    inputs, again = drawn_inputs(clip, 20, seed=3), drawn_inputs(clip, 20, seed=3)
    assert (inputs.images == again.images).all()
    assert (inputs.tokens == again.tokens).all()
    assert (drawn_inputs(clip, 20, seed=4).images != inputs.images).any()
    assert (inputs.images[0] == 0).all()
    assert (inputs.images[1] == 255).all()
    lengths = (inputs.tokens != 0).sum(1)
    assert lengths.min() == 0
    assert 2 in lengths
    assert lengths.max() == 12
