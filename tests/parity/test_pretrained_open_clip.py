"""Checkpoints in open_clip's format against a reference that is written here from its description, with torch's own attention."""

import json
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coreclip.pipeline.clip_vocabulary import read_clip_tokenizer
from coreclip.training import ClipModel, save_open_clip
from tests.clip_files import write_merge_list

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a photo of a red boat", "Two cats, and 12 dogs!", "", "boat " * 60]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, quick):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        gelu = QuickGelu() if quick else nn.GELU()
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=gelu, c_proj=nn.Linear(4 * width, width))
        )

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, depth, heads, quick):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, quick) for _ in range(depth))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, size, patch, width, depth, heads, dim, quick):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, depth, heads, quick)
        self.proj = nn.Parameter(torch.randn(width, dim))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.pool = nn.AvgPool2d(stride)
        self.downsample = None
        if stride > 1 or inputs != 4 * planes:
            layers = {
                "-1": nn.AvgPool2d(stride),
                "0": nn.Conv2d(inputs, 4 * planes, 1, bias=False),
                "1": nn.BatchNorm2d(4 * planes),
            }
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.pool(F.relu(self.bn2(self.conv2(y))))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    def __init__(self, side, width, heads, dim):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side * side + 1, width))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj, self.heads = nn.Linear(width, dim), heads

    def forward(self, x):
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positional_embedding[:, None]
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        y, _ = F.multi_head_attention_forward(
            x[:1], x, x, x.shape[2], self.heads, None, bias, None, None, False, 0.0, self.c_proj.weight, self.c_proj.bias,
            use_separate_proj_weight=True, q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight, training=False, need_weights=False,
        )  # fmt: skip
        return y[0]


class ModifiedResNet(nn.Module):
    def __init__(self, size, width, layers, heads, dim):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for number, count in enumerate(layers):
            planes = width * 2**number
            blocks = [
                Bottleneck(inputs, planes, 2 if number else 1),
                *(Bottleneck(4 * planes, planes, 1) for _ in range(count - 1)),
            ]
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
            inputs = 4 * planes
        self.attnpool = AttentionPool(size // 32, 32 * width, heads, dim)

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for number in range(4):
            x = getattr(self, f"layer{number + 1}")(x)
        return self.attnpool(x)


class Reference(nn.Module):
    """open_clip's ``CLIP``."""

    def __init__(self, visual, vocab_size, *, width=64, depth=2, heads=1, dim=24, context=20, quick=False):
        super().__init__()
        self.visual = visual
        self.transformer = Transformer(width, depth, heads, quick)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(context, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("attn_mask", torch.full((context, context), -torch.inf).triu(1), persistent=False)

    def forward(self, images, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.attn_mask))
        text = x[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection
        return F.normalize(self.visual(images), dim=1), F.normalize(text, dim=1), self.logit_scale.exp()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A small vocabulary, to be copied beside checkpoints."""
    return write_merge_list(tmp_path_factory.mktemp("vocabulary") / "bpe_simple_vocab_16e6.txt.gz")


def make_reference(tower, n_tokens, quick=False, heads=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if tower == "vit":
            visual = VisionTransformer(32, 8, 64, 2, heads, 24, quick)
        else:
            visual = ModifiedResNet(64, 8, (1, 2, 1, 1), 32 * 8 // 64, 24)
        model = Reference(visual, n_tokens, heads=heads, quick=quick).eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        for name, statistic in model.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_(0, 0.1)
            elif name.endswith("running_var"):
                statistic.uniform_(0.5, 1.5)
    return model


def compare(model, clip):
    size = clip.image_size
    pixels = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        image, text, scale = model((pixels / 255 - mean) / std, torch.from_numpy(clip.tokenizer.encode(TEXTS, 20)))
        ours, our_text = clip.encode_image(pixels), clip.encode_text(TEXTS)
        logits, their_logits = clip.network.logit_scale.exp() * ours @ our_text.T, scale * image @ text.T
    for found, reference in ((ours, image), (our_text, text), (logits, their_logits)):
        assert reference.std() > 0.01
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("tower", "quick"), [("vit", False), ("vit", True), ("resnet", False)])
def test_logits_are_those_of_the_reference(tower, quick, vocabulary, tmp_path):
    n_tokens = read_clip_tokenizer(vocabulary).vocab_size
    (tmp_path / vocabulary.name).write_bytes(vocabulary.read_bytes())
    model = make_reference(tower, n_tokens, quick)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    activation = "quick_gelu" if quick else "gelu"
    clip = ClipModel.load(f"open_clip:{tmp_path / 'model.pt'}?activation={activation}")
    assert clip.config.model.image_tower == tower
    compare(model, clip)


def test_heads_and_activation_come_from_the_configuration_beside_it(vocabulary, tmp_path):
    n_tokens = read_clip_tokenizer(vocabulary).vocab_size
    (tmp_path / vocabulary.name).write_bytes(vocabulary.read_bytes())
    model = make_reference("vit", n_tokens, quick=True, heads=4)
    # As a training script saves: of a model in several processes, beside the optimiser's state.
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / "epoch_3.pt")
    described = {
        "embed_dim": 24, "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": n_tokens, "width": 64, "heads": 4, "layers": 2},
    }  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    compare(model, ClipModel.load(f"open_clip:{tmp_path / 'epoch_3.pt'}"))


@pytest.mark.filterwarnings("ignore")  # torch discourages tracing; OpenAI's archives are traced
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_openais_archives_are_read_without_running_them(tower, vocabulary, tmp_path):
    n_tokens = read_clip_tokenizer(vocabulary).vocab_size
    (tmp_path / vocabulary.name).write_bytes(vocabulary.read_bytes())
    model = make_reference(tower, n_tokens, quick=True)
    tokens = torch.zeros(2, 20, dtype=torch.int64)
    torch.jit.trace(model, (torch.rand(2, 3, *[64 if tower == "resnet" else 32] * 2), tokens)).save(
        tmp_path / "openai.pt"
    )
    clip = ClipModel.load(f"open_clip:{tmp_path / 'openai.pt'}")
    assert clip.config.model.activation == "quick_gelu"
    compare(model, clip)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_what_is_saved_is_the_references_state_bit_for_bit(tower, vocabulary, tmp_path, monkeypatch):
    n_tokens = read_clip_tokenizer(vocabulary).vocab_size
    monkeypatch.setattr(
        "coreclip.training.open_clip.CLIP_VOCAB_SIZE", n_tokens
    )  # only that is saved, and it takes seconds
    (tmp_path / vocabulary.name).write_bytes(vocabulary.read_bytes())
    model = make_reference(tower, n_tokens)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    clip = ClipModel.load(f"open_clip:{tmp_path / 'model.pt'}?activation=gelu")
    save_open_clip(clip.network, clip.tokenizer, clip.config, tmp_path / "saved")
    from safetensors.torch import load_file

    saved, state = load_file(tmp_path / "saved" / "open_clip_model.safetensors"), model.state_dict()
    assert saved.keys() == state.keys()
    assert [name for name in state if not torch.equal(saved[name], state[name])] == []
    again = ClipModel.load(f"open_clip:{tmp_path / 'saved'}")
    assert (again.config, again.tokenizer.sha256) == (clip.config, clip.tokenizer.sha256)
    compare(model, again)
