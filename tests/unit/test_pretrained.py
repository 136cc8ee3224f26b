"""Checkpoints of other tools: names, what is refused and why, other image sizes, frozen towers, what reads a RUN."""

import io
import json
import os
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coreclip.config import Config, DataConfig, JestConfig, ModelConfig, TrainConfig, load_config
from coreclip.errors import CoreclipError
from coreclip.files import sha256_file
from coreclip.pipeline import Tokenizer
from coreclip.pipeline.clip_vocabulary import read_clip_tokenizer
from coreclip.training import (
    ClipModel,
    build_model,
    clip_model,
    config_of,
    embed,
    evaluate,
    explain,
    save_hf,
    save_open_clip,
    search,
    train,
)
from coreclip.training.hf import hf_ties
from coreclip.training.open_clip import open_clip_ties
from coreclip.training.positions import resize_positions, with_image_size
from coreclip.training.pretrained import is_pretrained, load_pretrained, pretrained_weights
from coreclip.training.tensor_names import to_theirs
from coreclip.training.torchscript_tensors import read_torchscript
from tests.clip_files import write_hf_vocabulary
from tests.helpers import make_dataset

pytestmark = pytest.mark.usefixtures("one_thread")

VIT = ModelConfig(
    image_tower="vit", image_width=64, image_depth=2, patch_size=8, text_width=64, text_depth=1, heads=1, text_causal=True,
    embed_dim=16, context=20,
)  # fmt: skip
RESNET = replace(VIT, image_tower="resnet", image_width=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_hf_vocabulary(folder)
    return read_clip_tokenizer(folder)


def new_network(tokenizer, model=VIT, size=32):
    config = Config(data=DataConfig(image_size=size), model=model)
    return build_model(config, vocab_size=tokenizer.vocab_size, end=tokenizer.end, seed=3).eval(), config


@pytest.fixture
def hf(tokenizer, tmp_path):
    """A checkpoint in Hugging Face's format, written by us."""
    network, config = new_network(tokenizer)
    save_hf(network, tokenizer, config, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def open_clip(tokenizer, tmp_path):
    """A state dict in open_clip's names, its vocabulary beside it."""
    network, config = new_network(tokenizer)
    (tmp_path / "oc").mkdir()
    tokenizer.save(tmp_path / "oc" / "tokenizer.json")
    save_file(to_theirs(network.state_dict(), open_clip_ties(config)), tmp_path / "oc" / "model.safetensors")
    return tmp_path / "oc" / "model.safetensors"


def change_json(path, *keys, **values):
    """Set values in an object of a JSON file, the one below ``keys``."""
    whole = json.loads(path.read_text())
    part = whole
    for key in keys:
        part = part[key]
    part.update(values)
    path.write_text(json.dumps(whole))


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def refused(name, message):
    with pytest.raises(CoreclipError, match=message) as found:
        load_pretrained(name)
    assert "\n" not in str(found.value)


# ------------------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("hf:x", True), ("open_clip:x.pt?activation=gelu", True), ("run", False), ("hf", False), ("a/hf:x", False)],
)
def test_what_stands_for_a_checkpoint(name, is_one):
    assert is_pretrained(name) is is_one


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:", "names no folder; write hf:PATH"),
        ("open_clip:?activation=gelu", "names no file; write open_clip:PATH"),
        ("open_clip:x.pt?layers=3", "the option 'layers' is unknown; there are activation, image_heads"),
        ("open_clip:x.pt?activation=relu", "activation = 'relu' is unknown; it is one of gelu, quick_gelu"),
        ("open_clip:x.pt?image_heads=many", "image_heads = 'many' is not allowed: 1 to 1024"),
        ("open_clip:none.pt", "no checkpoint at none.pt: there is no such file"),
        ("hf:none", "no Hugging Face model at none: it has no config.json"),
    ],
)
def test_a_bad_name_is_refused(name, message):
    refused(name, message)


def test_a_file_may_have_a_question_mark(open_clip):
    odd = open_clip.rename(open_clip.with_name("what?.safetensors"))
    assert pretrained_weights(f"open_clip:{odd}") == odd
    assert pretrained_weights(f"open_clip:{odd}?activation=gelu") == odd


def test_a_repository_in_the_cache_is_found_by_its_name(hf, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--openai--clip" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    os.rename(hf, snapshot)
    assert load_pretrained("hf:openai/clip")[2] == load_pretrained(f"hf:{snapshot}")[2]


# --------------------------------------------------------------------------------------------------------- refused: Hugging Face's


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ([], {"model_type": "siglip"}, "is a 'siglip' model .*only CLIPModel is supported"),
        ([], {"architectures": ["CLIPVisionModel"]}, r"\['CLIPVisionModel'\]; only CLIPModel is supported"),
        (["text_config"], {"hidden_act": "gelu_new"}, "its towers have the activations 'gelu_new' and 'gelu'"),
        (["vision_config"], {"layer_norm_eps": 1e-6}, "vision_config.layer_norm_eps = 1e-06 is not supported; here it is 1e-05"),
        (["vision_config"], {"intermediate_size": 300}, "vision_config.intermediate_size = 300 is not supported; here it is 256"),
        (["vision_config"], {"num_channels": 1}, "vision_config.num_channels = 1 is not supported; only 3 is"),
        (["vision_config"], {"num_attention_heads": 7}, "a shape that is not supported: model.image_width = 64 .*multiple of model.image_heads = 7"),
        (["vision_config"], {"num_hidden_layers": "2"}, "vision_config.num_hidden_layers = '2' is not allowed: a number from 1 to 65,536"),
        (["vision_config"], {"hidden_size": None}, "vision_config.hidden_size = None is not allowed: a number from 1 to 65,536"),
        (["text_config"], {"hidden_size": 10**12, "intermediate_size": 4 * 10**12}, "text_config.hidden_size = 1000000000000 is not allowed"),
        (["text_config"], {"num_hidden_layers": 60_000}, "text_config.num_hidden_layers = 60000 is not allowed: at most 256"),
        (["vision_config"], {"image_size": 48}, "does not fit its configuration: vision_model.embeddings.position_embedding.weight"),
        (["vision_config"], {"num_hidden_layers": 3}, "lacks the tensor vision_model.encoder.layers.2"),
        (["vision_config"], {"num_hidden_layers": 1}, r"holds the tensor vision_model.encoder.layers.1.* \(and 15 more\)"),
        (["text_config"], {"vocab_size": -4}, "has a vocabulary of -4 tokens"),
        (["text_config"], {"eos_token_id": 7}, "reads a caption at the token 7, but the vocabulary .its own. ends captions with"),
        ([], {"text_config": [1]}, "text_config in config.json is no object"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_supported_is_refused(hf, keys, values, message):
    change_json(hf / "config.json", *keys, **values)
    refused(f"hf:{hf}", message)


def test_both_towers_with_an_unknown_activation_are_refused(hf):
    for section in ("text_config", "vision_config"):
        change_json(hf / "config.json", section, hidden_act="gelu_new")
    refused(f"hf:{hf}", "model.activation = 'gelu_new' is not allowed: one of gelu, quick_gelu")


def test_weights_that_are_missing_or_in_parts_are_refused(hf):
    (hf / "model.safetensors").rename(hf / "elsewhere")
    refused(f"hf:{hf}", "no weights in .*neither model.safetensors nor pytorch_model.bin")
    (hf / "model.safetensors.index.json").write_text("{}")
    refused(f"hf:{hf}", "weights in several files, which is not supported")
    (hf / "model.safetensors.index.json").unlink()
    (hf / "model.safetensors").write_bytes(b"nonsense")
    refused(f"hf:{hf}", "model.safetensors is damaged .*copy the file anew")


def test_numbers_that_are_not_finite_are_refused(hf):
    change_tensors(hf / "model.safetensors", lambda tensors: tensors["text_projection.weight"].fill_(torch.nan))
    refused(f"hf:{hf}", "holds numbers that are not finite in text_projection.weight")


def test_a_vocabulary_that_is_larger_than_the_model_is_refused_and_a_smaller_one_cuts_the_table(hf, tokenizer):
    def change(tensors):
        table = tensors["text_model.embeddings.token_embedding.weight"]
        tensors["text_model.embeddings.token_embedding.weight"] = torch.cat([table, table[:8]])

    change_tensors(hf / "model.safetensors", change)
    change_json(hf / "config.json", "text_config", vocab_size=tokenizer.vocab_size + 8)
    model, found, _ = load_pretrained(f"hf:{hf}")
    assert len(model.text.embedding.weight) == found.vocab_size == tokenizer.vocab_size
    write_hf_vocabulary(hf, [])  # no merges: another vocabulary
    change_tensors(
        hf / "model.safetensors",
        lambda t: t.update({"text_model.embeddings.token_embedding.weight": torch.zeros(9, 64)}),
    )
    change_json(hf / "config.json", "text_config", vocab_size=9)
    refused(f"hf:{hf}", r"knows 9 tokens, the vocabulary \(its own\) has \d+; put the model's tokenizer.json beside it")


def test_statistics_of_pixels_that_cannot_be_are_refused(hf):
    change_json(hf / "preprocessor_config.json", image_std=[0.2, 0.0, 0.2])
    refused(f"hf:{hf}", r"image_std = \[0.2, 0.0, 0.2\] is not allowed: three numbers")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_normalize": False}, "do_normalize = False is not supported"),
        ({"do_rescale": None}, "do_rescale = None is not supported"),
        ({"rescale_factor": 1.0}, "rescale_factor = 1.0 is not supported; here it is 1 / 255"),
    ],
)
def test_pixels_that_are_prepared_otherwise_are_refused(hf, values, message):
    change_json(hf / "preprocessor_config.json", **values)
    refused(f"hf:{hf}", message)


def test_a_processor_that_is_no_object_is_refused(hf):
    (hf / "preprocessor_config.json").unlink()
    (hf / "processor_config.json").write_text('{"image_processor": "x"}')
    refused(f"hf:{hf}", "image_processor in processor_config.json is no object")


def test_whole_numbers_are_no_weights(hf):
    def change(tensors):
        tensors["text_projection.weight"] = tensors["text_projection.weight"].to(torch.int8)

    change_tensors(hf / "model.safetensors", change)
    refused(f"hf:{hf}", "holds torch.int8 in text_projection.weight; weights are floating point")


def test_other_resizing_is_said_once(hf, capsys):
    change_json(hf / "preprocessor_config.json", size={"height": 32, "width": 32}, do_center_crop=False)
    for _ in range(2):
        load_pretrained(f"hf:{hf}")
    assert capsys.readouterr().err.count("asks for images resized otherwise") == 1


# ------------------------------------------------------------------------------------------------------------- refused: open_clip's


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("logit_bias", "has SigLIP's sigmoid loss"),
        ("text_decoder.x", "has CoCa's decoder"),
        ("visual.trunk.x", "has an image tower of timm"),
        ("text.transformer.embeddings.x", "has a text tower of Hugging Face"),
        (
            "visual.transformer.resblocks.0.ls_1.gamma",
            r"holds the tensor visual.transformer.resblocks.0.ls_1.gamma \(and 0 more\)",
        ),
    ],
)
def test_other_architectures_are_refused_by_name(open_clip, key, message):
    change_tensors(open_clip, lambda tensors: tensors.update({key: torch.zeros(1)}))
    refused(f"open_clip:{open_clip}?activation=gelu", message)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("text_projection", "is no CLIP: it lacks the tensor text_projection with 2 axes"),
        ("visual.class_embedding", "has no class token"),
        ("visual.ln_pre.weight", "lacks the tensor visual.ln_pre.weight"),
    ],
)
def test_what_lacks_a_tensor_is_refused(open_clip, key, message):
    change_tensors(open_clip, lambda tensors: tensors.pop(key))
    refused(f"open_clip:{open_clip}?activation=gelu", message)


def test_positions_of_no_square_are_refused(open_clip):
    change_tensors(open_clip, lambda t: t.update({"visual.positional_embedding": torch.zeros(16, 64)}))
    refused(f"open_clip:{open_clip}", "has positions for 15 places, no square of them")


def test_a_wide_tower_needs_its_heads(tokenizer, tmp_path):
    config = Config(data=DataConfig(image_size=16), model=replace(VIT, image_width=1280, image_depth=1))
    network = build_model(config, vocab_size=tokenizer.vocab_size, end=tokenizer.end, seed=0)
    tokenizer.save(tmp_path / "tokenizer.json")
    torch.save(to_theirs(network.state_dict(), open_clip_ties(config)), tmp_path / "h.pt")
    refused(
        f"open_clip:{tmp_path / 'h.pt'}?activation=gelu", r"1280 channels are too many to guess; add \?image_heads=N"
    )
    assert load_pretrained(f"open_clip:{tmp_path / 'h.pt'}?activation=gelu&image_heads=16")[2].model.image_heads == 16


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"vision_cfg": {"layers": 3}}, "vision_cfg.layers is 3 there, 2 in the tensors"),
        ({"text_cfg": {"width": 32}}, "text_cfg.width is 32 there, 64 in the tensors"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask = True is not supported"),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg.pool_type = 'avg' is not supported"),
        ({"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}}, "vision_cfg.norm_kwargs = .*is not supported"),
        ({"vision_cfg": {"head_width": "wide"}}, "vision_cfg.head_width = 'wide' is not allowed"),
        ({"multimodal_cfg": {}}, "multimodal_cfg in open_clip_config.json is not supported"),
        ({"vision_cfg": [1]}, "vision_cfg in open_clip_config.json is no object"),
    ],
)
def test_a_configuration_beside_it_must_fit(open_clip, described, message):
    (open_clip.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 16} | described}))
    refused(f"open_clip:{open_clip}", message)


def test_another_vocabulary_must_lie_beside_it(open_clip):
    (open_clip.parent / "tokenizer.json").unlink()
    described = {"embed_dim": 16, "text_cfg": {"hf_tokenizer_name": "bert-base"}}
    (open_clip.parent / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    refused(f"open_clip:{open_clip}", "has the vocabulary of 'bert-base'; put its tokenizer.json beside the checkpoint")


def test_an_activation_that_is_not_said_is_open_clips_default_and_that_is_said(open_clip, capsys):
    assert load_pretrained(f"open_clip:{open_clip}")[2].model.activation == "gelu"
    assert "does not say its activation: gelu is taken" in capsys.readouterr().err
    assert load_pretrained(f"open_clip:{open_clip}?activation=quick_gelu")[2].model.activation == "quick_gelu"
    assert capsys.readouterr().err == ""


def test_an_empty_folder_is_refused(tmp_path):
    refused(
        f"open_clip:{tmp_path}", "no weights in .*neither open_clip_model.safetensors nor open_clip_pytorch_model.bin"
    )


# ------------------------------------------------------------------------------------------------------------------- hostile files


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run(tmp_path):
    torch.save({"text_projection": _Runs(tmp_path / "was run")}, tmp_path / "model.pt")
    refused(f"open_clip:{tmp_path / 'model.pt'}", "is damaged or holds more than tensors .*only state dicts are read")
    (tmp_path / "model.pt").write_bytes(pickle.dumps(_Runs(tmp_path / "was run"), 2))
    refused(f"open_clip:{tmp_path / 'model.pt'}", "is damaged or holds more than tensors")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"a",
        b"e",
        b"t",
        b"s",
        b"torch>=2\nnumpy\n",
        b"\x80\x02}q\x00",
        b"",
        b"PK\x03\x04",
        b"cfg = 1\n",
        b"\x80\x02K\x01.",
        bytes(64),
    ],
)
def test_what_is_no_checkpoint_at_all_is_refused(content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    refused(f"open_clip:{tmp_path / 'model.pt'}", "is damaged or holds more than tensors|is no state dict")


def test_an_archive_whose_directory_is_damaged_is_refused(tmp_path):
    path = archive(tmp_path / "a.pt", b"N.")
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[:at] + b"xxxx" + content[at + 4 :])
    refused(f"open_clip:{path}", "is damaged or holds more than tensors")


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "model.pt")
    refused(f"open_clip:{tmp_path / 'model.pt'}", "holds a list that is no state dict")


def archive(path, tree, compression=zipfile.ZIP_STORED, **files):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", tree, compression)
        file.writestr("a/constants.pkl", pickle.dumps(()))
        for name, content in files.items():
            file.writestr(f"a/data/{name[1:]}", content)
    return path


class _Storage:
    """Pickles as a tensor of an archive does."""

    def __init__(self, count, size, stride, offset=0, kind="storage"):
        self.count, self.size, self.stride, self.offset, self.kind = count, size, stride, offset, kind


def tree_of(storage):
    """The tree of a module with one tensor, written by torch's own names."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return (
                (storage.kind, torch.FloatStorage, "0", "cpu", storage.count) if isinstance(value, _Storage) else None
            )

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, storage.offset, storage.size, storage.stride, False, {})

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(Tensor())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (_Storage(4, (2, 4), (4, 1)), "larger than its storage"),
        (_Storage(4, (4,), (1,), offset=2), "larger than its storage"),
        (_Storage(4, (9,), (0,)), "larger than its storage"),
        (_Storage(4, (-2,), (1,)), "impossible shape"),
        (_Storage(9, (4,), (1,)), "storage 0 holds 4 numbers, 9 are named"),
        (_Storage(4, (4,), (1,), kind="other"), "holds a 'other', not a storage"),
    ],
)
def test_a_tensor_outside_its_archive_is_refused(storage, message, tmp_path):
    path = archive(tmp_path / "a.pt", tree_of(storage), _0=bytes(16))
    with pytest.raises(CoreclipError, match=message):
        read_torchscript(path)


@pytest.mark.parametrize("name", ["os.mkdir", "builtins.eval", "torch.load", "torch.jit.load"])
def test_an_archive_that_names_code_is_refused(name, tmp_path):
    module, _, function = name.rpartition(".")
    path = archive(tmp_path / "a.pt", f"c{module}\n{function}\n(Vx\ntR.".encode())
    refused(f"open_clip:{path}", f"names {name}, which the weights of a model do not need")


def test_modules_that_name_each_other_have_an_end(tmp_path):
    """Each of forty holds the next one twice: two to the fortieth places."""
    tree = b"c__torch__\nM\n)\x81p0\n"
    for number in range(1, 41):
        tree += b"c__torch__\nM\n)\x81(dVa\ng%d\nsVb\ng%d\nsbp%d\n" % (number - 1, number - 1, number)
    path = archive(tmp_path / "a.pt", tree + b".")
    with pytest.raises(CoreclipError, match="has more than 100,000 modules, or nests them"):
        read_torchscript(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = archive(tmp_path / "a.pt", b"N.", zipfile.ZIP_DEFLATED)
    refused(f"open_clip:{path}", "data.pkl is compressed, which torch never does")


# ----------------------------------------------------------------------------------------------------------------- another size


def test_positions_on_the_same_grid_stay_and_constant_ones_stay_constant():
    position = torch.randn(17, 6, generator=torch.Generator().manual_seed(0))
    assert resize_positions(position, 4) is position
    flat = torch.cat([position[:1], position[1:2].expand(16, -1)])
    torch.testing.assert_close(resize_positions(flat, 7)[1:], position[1:2].expand(49, -1))


def test_positions_keep_their_directions():
    ramp = torch.arange(8.0)
    grid = torch.stack([ramp.repeat_interleave(8), ramp.repeat(8)], 1)  # rows, columns
    resized = resize_positions(torch.cat([torch.tensor([[99.0, 98.0]]), grid]), 4)
    assert resized[0].tolist() == [99, 98]
    rows, columns = resized[1:].T.view(2, 4, 4)
    assert (rows.diff(dim=0) > 1.5).all()
    assert (columns.diff(dim=1) > 1.5).all()
    torch.testing.assert_close(rows, columns.T)


@pytest.mark.parametrize(("model", "size", "new"), [(VIT, 32, 48), (VIT, 32, 16), (RESNET, 64, 96)])
def test_a_model_takes_images_of_another_size(tokenizer, model, size, new):
    network, config = new_network(tokenizer, model, size)
    resized = with_image_size(network, config, new).eval()
    pixels = torch.randint(0, 256, (2, 3, new, new), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert resized.encode_image(pixels).isfinite().all()
    before, after = network.state_dict(), resized.state_dict()
    changed = [
        name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    ]
    assert changed == ["image.position" if model is VIT else "image.pool.position"]


def test_a_bias_goes_along(tokenizer):
    network, config = new_network(tokenizer)
    network.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))
    assert with_image_size(network, config, 48).logit_bias.item() == -3


# -------------------------------------------------------------------------------------------------------------------- what reads a RUN


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set", 10, labels=("dog", "cat"))


def test_a_checkpoint_is_evaluated_searched_and_embedded(hf, data, tmp_path):
    name = f"hf:{hf}"
    result = evaluate(name, data)
    assert result["trained_on_this_data"] is None
    assert 0 <= result["image_to_text_recall_at_1"] <= 1
    assert 0 <= result["zero_shot_accuracy"] <= 1
    assert len(search(name, data, "a red dog", top=3)) == 3
    embed(data, tmp_path / "features", model=name)
    described = json.loads((tmp_path / "features" / "features.json").read_text())
    assert described["model"]["run"] == name
    assert described["model"]["sha256"] == sha256_file(hf / "model.safetensors")
    clip = ClipModel.load(name)
    expected = clip.encode_text(data.all_captions()[0])
    np.testing.assert_allclose(np.load(tmp_path / "features" / "captions.npy"), expected, atol=1e-3)


def test_features_of_the_same_weights_read_otherwise_are_refused(open_clip, data, tmp_path):
    embed(data, tmp_path / "features", model=f"open_clip:{open_clip}?activation=gelu")
    same = f"open_clip:{open_clip}?activation=gelu"
    assert len(search(same, data, "a red dog", top=3, features=tmp_path / "features")) == 3
    for other in ("activation=quick_gelu", "activation=gelu&image_heads=2"):
        with pytest.raises(CoreclipError, match="with another activation, number of heads, vocabulary or preparation"):
            search(f"open_clip:{open_clip}?{other}", data, "a red dog", features=tmp_path / "features")


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_processor_is_given_as_many_rows_at_a_time_as_it_has_room_for(tower, hf, data, monkeypatch):
    model = ClipModel.load(f"hf:{hf}")
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    texts = [f"dog number {i}" for i in range(7)]
    encode = (lambda: model.encode_image(images)) if tower == "image" else (lambda: model.encode_text(texts))
    whole, asked = encode(), []
    inner = getattr(model.network, f"encode_{tower}")
    monkeypatch.setattr(model.network, f"encode_{tower}", lambda rows: asked.append(len(rows)) or inner(rows))
    length = 17 if tower == "image" else VIT.context  # tokens; one head
    monkeypatch.setattr(clip_model, "_SCORE_BYTES", 3 * 3 * 4 * length**2)
    torch.testing.assert_close(encode(), whole, rtol=1e-5, atol=1e-6)
    assert asked == [3, 3, 1]


def test_what_needs_a_run_says_so(hf, data):
    with pytest.raises(
        CoreclipError, match="is a checkpoint of another tool: it has neither signals nor weights on its way"
    ):
        explain(f"hf:{hf}", data, [0])


def settings(name, *overrides, **changes):
    return load_config(
        None, ["data.batch_size=5", "train.precision=fp32", "data.workers=1", *overrides], start=config_of(name)
    )


def test_training_starts_from_a_checkpoint_with_its_tokenizer_and_its_pixels(hf, data, tmp_path):
    name = f"hf:{hf}"
    config = settings(name, "train.lr=1e-9")
    assert (config.model, config.data.image_size) == (config_of(name).model, 32)
    train(data, tmp_path / "run", config=config, samples=10, init_from=name)
    start, tuned = ClipModel.load(name), ClipModel.load(tmp_path / "run")
    assert start.tokenizer.sha256 == tuned.tokenizer.sha256 != data.tokenizer_sha256
    for key, tensor in start.network.state_dict().items():
        torch.testing.assert_close(tuned.network.state_dict()[key], tensor)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["asked"]["init_from"] == sha256_file(hf / "model.safetensors")


def test_captions_of_another_tokenizer_are_as_long_as_the_model_reads(hf, data):
    from coreclip.training.steps import training_loader

    config, tokenizer = settings(f"hf:{hf}"), load_pretrained(f"hf:{hf}")[1]
    assert data.context == 16
    batch = next(iter(training_loader(data, config, None, tokenizer)))
    assert batch.tokens.shape[1] == config.model.context == 20
    assert (batch.tokens == tokenizer.end).any(1).all()


def test_another_image_size_interpolates_and_another_model_is_refused(hf, data, tmp_path):
    name = f"hf:{hf}"
    train(data, tmp_path / "run", config=settings(name, "data.image_size=48"), samples=5, init_from=name)
    assert ClipModel.load(tmp_path / "run").network.image.position.shape == (37, 64)
    with pytest.raises(
        CoreclipError, match=r"has model.embed_dim = 16, the configuration asks for 32; a start keeps its model"
    ):
        train(data, tmp_path / "other", config=settings(name, "model.embed_dim=32"), samples=5, init_from=name)


@pytest.mark.parametrize("pieces", [[], ["train.micro_batch=4"]], ids=["whole", "pieces"])
@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("model", [VIT, RESNET])
def test_a_frozen_tower_stays_bit_for_bit(tower, model, pieces, tokenizer, data, tmp_path):
    network, config = new_network(tokenizer, model)
    (tmp_path / "start").mkdir()
    tokenizer.save(tmp_path / "start" / "tokenizer.json")
    torch.save(to_theirs(network.state_dict(), open_clip_ties(config)), tmp_path / "start" / "model.pt")
    name = f"open_clip:{tmp_path / 'start' / 'model.pt'}?activation=gelu"
    train(data, tmp_path / "run", config=settings(name, f"train.freeze={tower}", *pieces), samples=10, init_from=name)
    before, after = network.state_dict(), ClipModel.load(tmp_path / "run").network.state_dict()
    same = {key for key in before if torch.equal(before[key], after[key])}
    frozen = {key for key in before if key.startswith((f"{tower}.", f"{tower}_projection"))}
    assert frozen <= same
    other = {"image": "text", "text": "image"}[tower]
    assert f"{other}_projection.weight" not in same


def test_a_tower_that_was_never_trained_is_not_frozen(data, tmp_path):
    config = Config(train=TrainConfig(freeze="image"))
    with pytest.raises(CoreclipError, match="keeps a tower that was never trained; name a start by --init-from"):
        train(data, tmp_path / "run", config=config, samples=5)
    with pytest.raises(CoreclipError, match=r"train.freeze = 'both' is not allowed: image, text, or empty"):
        TrainConfig(freeze="both")


def test_a_checkpoint_is_a_reference_for_jest(hf, data, tmp_path):
    name = f"hf:{hf}"
    config = replace(settings(name), jest=JestConfig(keep=0.5, reference=name))
    report = train(data, tmp_path / "run", config=config, samples=10, init_from=name)
    assert report.scored > report.samples_seen == 10


# ------------------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    ("change", "hf_reason", "open_clip_reason"),
    [
        ({"image_tower": "cnn"}, "its image tower is a cnn, and CLIPModel has a ViT", "its image tower is a cnn, and there a ViT or a ResNet"),
        ({"text_tower": "cbow"}, "its text tower is a cbow", "its text tower is a cbow"),
        ({"text_causal": False}, "its text tower sees what comes after a token", "open_clip's no_causal_mask sees both"),
    ],
)  # fmt: skip
def test_what_a_format_has_no_place_for_is_not_saved(change, hf_reason, open_clip_reason, tokenizer, tmp_path):
    network, config = new_network(tokenizer, replace(VIT, **change))
    for save, reason in ((save_hf, hf_reason), (save_open_clip, open_clip_reason)):
        with pytest.raises(CoreclipError, match=f"can't be saved for .*{reason}"):
            save(network, tokenizer, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_vocabularies_and_towers_are_not_saved(tokenizer, tmp_path):
    network, config = new_network(tokenizer)
    ours = Tokenizer.train(["a dog"] * 3, 300)
    with pytest.raises(
        CoreclipError,
        match="its vocabulary is not CLIP's; train on a data set that was converted with --tokenizer clip",
    ):
        save_hf(network, ours, config, tmp_path / "out")
    for other in (ours, tokenizer):  # a small vocabulary in CLIP's form is not the one that open_clip has built in
        with pytest.raises(CoreclipError, match="its vocabulary is not CLIP's, which open_clip has built in"):
            save_open_clip(network, other, config, tmp_path / "out")
    resnet, config = new_network(tokenizer, RESNET)
    with pytest.raises(CoreclipError, match="its image tower is a resnet, and CLIPModel has a ViT"):
        save_hf(resnet, tokenizer, config, tmp_path / "out")


def test_nothing_is_saved_over_what_is_there(hf, tokenizer):
    network, config = new_network(tokenizer)
    with pytest.raises(CoreclipError, match="exists; nothing of yours is replaced"):
        save_hf(network, tokenizer, config, hf)


def test_every_tensor_of_a_model_has_a_counterpart(tokenizer):
    for model, ties in ((VIT, hf_ties), (VIT, open_clip_ties), (RESNET, open_clip_ties)):
        network, config = new_network(tokenizer, model)
        assert {one.ours for one in ties(config)} == set(network.state_dict()) - {"mean", "std"}
