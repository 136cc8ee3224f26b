"""CLIP in the format of ``open_clip`` and of OpenAI's own code: a state dict, and ``open_clip_config.json`` beside it.

The shape follows from the tensors; the configuration, where there is one, adds what they do not show: heads and activation. Without it
a head has 64 channels, as in all of OpenAI's and most others, and the activation is GELU, unless the file is OpenAI's own TorchScript
archive. ``open_clip`` itself is not imported. Left out: SigLIP, CoCa, timm's and Hugging Face's towers, and what few models change
within the towers (layer scale, other poolings, hidden layers other than four times the width).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.files import write_json
from coreclip.pipeline import Tokenizer
from coreclip.pipeline.clip_vocabulary import CLIP_VOCAB_SIZE, has_clip_files
from coreclip.pipeline.publishing import new_folder
from coreclip.training.checkpoint_files import (
    CLIP_MEAN,
    CLIP_STD,
    Foreign,
    empty_model,
    make_config,
    read_object,
    read_tensors,
    say_once,
    three_numbers,
)
from coreclip.training.hf import write_vocabulary
from coreclip.training.image_towers import RESNET_STRIDE, STAGES
from coreclip.training.model import Clip
from coreclip.training.tensor_names import Tie, tie, tie_blocks, tie_layer, tie_norm, to_ours, to_theirs
from coreclip.training.torchscript_tensors import is_torchscript

_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HEAD_WIDTH = 64
_WIDEST_OF_64 = 1024  # wider ViTs (H, g, G) have wider heads
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_UNSUPPORTED = {
    "logit_bias": "SigLIP's sigmoid loss",
    "text_decoder.": "CoCa's decoder",
    "visual.trunk.": "an image tower of timm",
    "transformer.embeddings.": "a text tower of Hugging Face",
    "visual.attn_pool.": "pooling by attention in a ViT",
}
# Keys of a configuration that change no shape, with the values that the towers here stand for; None is as good as absent.
_VISION_KEYS = {"layers": ..., "width": ..., "head_width": ..., "patch_size": ..., "image_size": ..., "patch_dropout": ...,
                "mlp_ratio": 4.0, "pool_type": "tok", "pos_embed_type": "learnable", "block_type": "default",
                "timm_pool": ..., "timm_proj": ..., "timm_drop": ..., "attn_pooler_queries": ..., "attn_pooler_heads": ...}  # fmt: skip
_TEXT_KEYS = {"context_length": ..., "vocab_size": ..., "width": ..., "heads": ..., "layers": ..., "mlp_ratio": 4.0,
              "pool_type": "argmax", "proj_type": "linear", "pad_id": ..., "eos_id": ..., "block_type": "default",
              "hf_tokenizer_name": ..., "hf_model_pretrained": ..., "hf_proj_type": ..., "hf_pooler_type": ...}  # fmt: skip


def weights_of_open_clip(path: Path) -> Path:
    """Return the file with the weights: the path itself, or what open_clip calls it in a folder.

    Raises
    ------
    CoreclipError
        For a folder without it.
    """
    if not path.is_dir():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise CoreclipError(f"no weights in {path}: it has neither {' nor '.join(_WEIGHTS)}; name the file")


def read_open_clip(path: Path, *, activation: str | None = None, image_heads: int | None = None) -> Foreign:
    """Read a checkpoint.

    Parameters
    ----------
    path : path
        A file, or a folder in the layout of open_clip's repositories.
    activation : {"gelu", "quick_gelu"}, optional
    image_heads : int, optional
        In place of what the configuration says.

    Raises
    ------
    CoreclipError
        For a file without a CLIP, an architecture that is not supported, weights that do not fit the configuration.
    """
    file = weights_of_open_clip(path)
    where = f"open_clip:{file}"
    tensors = _plain_names(read_tensors(file))
    for name, what in _UNSUPPORTED.items():
        if any(key.startswith(name) for key in tensors):
            raise CoreclipError(
                f"{where} has {what} ({name.rstrip('.')}), which is not supported; only CLIP's towers are"
            )
    stored: dict[str, Any] = {}
    if (file.parent / _CONFIG).is_file():
        stored = read_object(file.parent / _CONFIG, "configuration")
    described = stored.get("model_cfg", stored if "embed_dim" in stored else None)
    if described is not None:
        _check_described(where, described, file.parent)
    found = _shape(where, tensors)
    if described is not None:
        _check_same(where, found, described)
    if activation is None:
        activation = _activation(where, file, described)
    heads = _heads(where, found, described, image_heads)
    config = make_config(where, found["image_size"], found["model"] | heads | {"activation": activation})
    shapes = {k: v.shape for k, v in empty_model(where, config, found["vocab_size"]).state_dict().items()}
    mean, std = _preprocessing(where, stored.get("preprocess_cfg"))
    state = to_ours(where, tensors, open_clip_ties(config), shapes)
    return Foreign(config=config, state=state, mean=mean, std=std, folder=file.parent)


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers put before the names, and what is no weight."""
    for prefix in ("module.", "_orig_mod.", "text."):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in _NOT_WEIGHTS}


def _shape(where: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read sizes off the tensors."""

    def size(name: str, axis: int, ndim: int = 2) -> int:
        if name not in tensors or tensors[name].ndim != ndim:
            raise CoreclipError(
                f"{where} is no CLIP: it lacks the tensor {name} with {ndim} axes; name a CLIP's state dict"
            )
        return tensors[name].shape[axis]

    def count(prefix: str) -> int:
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)}
        return len(numbers)

    model: dict[str, Any] = {
        "text_width": size("token_embedding.weight", 1),
        "text_depth": count("transformer.resblocks."),
        "text_causal": True,
        "embed_dim": size("text_projection", 1),
        "context": size("positional_embedding", 0),
    }
    if "visual.layer1.0.conv1.weight" in tensors:
        places = size("visual.attnpool.positional_embedding", 0) - 1
        model |= {
            "image_tower": "resnet",
            "image_width": size("visual.layer1.0.conv1.weight", 0, 4),
            "resnet_blocks": [count(f"visual.layer{stage + 1}.") for stage in range(STAGES)],
        }
        side = RESNET_STRIDE
    else:
        places = size("visual.positional_embedding", 0) - 1
        side = size("visual.conv1.weight", 3, 4)
        model |= {
            "image_tower": "vit",
            "image_width": size("visual.conv1.weight", 0, 4),
            "image_depth": count("visual.transformer.resblocks."),
            "patch_size": side,
        }
        if "visual.class_embedding" not in tensors:
            raise CoreclipError(f"{where} has no class token (visual.class_embedding), which is not supported")
    rows = math.isqrt(max(places, 0))
    if rows * rows != places or not rows:
        raise CoreclipError(f"{where} has positions for {places} places, no square of them, which is not supported")
    return {"model": model, "image_size": rows * side, "vocab_size": size("token_embedding.weight", 0)}


def _check_described(where: str, described: Any, folder: Path) -> None:
    """Refuse a configuration that asks for what the towers here do not do, whether or not the tensors show it."""
    if not isinstance(described, dict):
        raise CoreclipError(f"{where}: model_cfg in {_CONFIG} is no object; copy the file anew")
    for name in ("multimodal_cfg", "init_logit_bias"):
        if described.get(name) is not None:
            raise CoreclipError(f"{where}: {name} in {_CONFIG} is not supported; only CLIP's two towers are")
    for section, known in (("vision_cfg", _VISION_KEYS), ("text_cfg", _TEXT_KEYS)):
        part = described.get(section) or {}
        if not isinstance(part, dict):
            raise CoreclipError(f"{where}: {section} in {_CONFIG} is no object; copy the file anew")
        for key, value in part.items():
            wanted = known.get(key)
            if not (value is None or value is False or wanted is ... or value == wanted):
                raise CoreclipError(
                    f"{where}: {section}.{key} = {value!r} is not supported; only CLIP's own towers are"
                )
    text = described.get("text_cfg") or {}
    if text.get("hf_tokenizer_name") is not None and not has_clip_files(folder):
        raise CoreclipError(
            f"{where} has the vocabulary of {text['hf_tokenizer_name']!r}; put its tokenizer.json beside the checkpoint"
        )


def _check_same(where: str, found: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    model = found["model"]
    vision, text = described.get("vision_cfg") or {}, described.get("text_cfg") or {}
    layers = model["resnet_blocks"] if model["image_tower"] == "resnet" else model["image_depth"]
    for name, value, tensors in (
        ("embed_dim", described.get("embed_dim"), model["embed_dim"]),
        ("vision_cfg.image_size", vision.get("image_size"), found["image_size"]),
        ("vision_cfg.layers", vision.get("layers"), layers),
        ("vision_cfg.width", vision.get("width"), model["image_width"]),
        ("vision_cfg.patch_size", vision.get("patch_size"), model.get("patch_size")),
        ("text_cfg.context_length", text.get("context_length"), model["context"]),
        ("text_cfg.vocab_size", text.get("vocab_size"), found["vocab_size"]),
        ("text_cfg.width", text.get("width"), model["text_width"]),
        ("text_cfg.layers", text.get("layers"), model["text_depth"]),
    ):
        if value not in (None, tensors, [tensors, tensors]):
            raise CoreclipError(
                f"{where} does not fit its {_CONFIG}: {name} is {value!r} there, {tensors!r} in the tensors; "
                "its files belong to different models"
            )


def _activation(where: str, file: Path, described: Mapping[str, Any] | None) -> str:
    if described is not None:
        return "quick_gelu" if described.get("quick_gelu") else "gelu"
    if is_torchscript(file):
        return "quick_gelu"  # OpenAI's own
    say_once(
        f"{where} does not say its activation: gelu is taken, as by open_clip; add ?activation=quick_gelu for a model of OpenAI, "
        "DFN or MetaCLIP, or ?activation=gelu to hide this"
    )
    return "gelu"


def _heads(
    where: str, found: Mapping[str, Any], described: Mapping[str, Any] | None, image_heads: int | None
) -> dict[str, int]:
    model = found["model"]
    vision, text = ({}, {}) if described is None else ((described.get(n) or {}) for n in ("vision_cfg", "text_cfg"))
    width = model["image_width"] * (RESNET_STRIDE if model["image_tower"] == "resnet" else 1)
    if image_heads is None:
        head_width = vision.get("head_width") or _HEAD_WIDTH
        if not isinstance(head_width, int) or head_width < 1:
            raise CoreclipError(f"{where}: vision_cfg.head_width = {head_width!r} is not allowed: at least 1")
        if described is None and model["image_tower"] == "vit" and width > _WIDEST_OF_64:
            raise CoreclipError(
                f"{where} does not say how many heads its image tower has, and {width} channels are too many to guess; "
                "add ?image_heads=N, e.g. 16 for a ViT-H-14"
            )
        image_heads = max(1, width // head_width)
    heads = text.get("heads") or (8 if described is not None else max(1, model["text_width"] // _HEAD_WIDTH))
    return {"image_heads": image_heads, "heads": heads}


def _preprocessing(where: str, stored: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    part = stored if isinstance(stored, dict) else {}
    how = (part.get("interpolation", "bicubic"), part.get("resize_mode", "shortest"))
    if how != ("bicubic", "shortest"):
        say_once(
            f"{where} asks for images resized otherwise ({how[0]}, {how[1]}); here the shorter side is resized by bicubic interpolation "
            "and the centre is cropped"
        )
    return (
        three_numbers(where, "mean", part.get("mean"), CLIP_MEAN),
        three_numbers(where, "std", part.get("std"), CLIP_STD),
    )


_LAYERS = {"norm1": "ln_1", "out": "attn.out_proj", "norm2": "ln_2", "mlp.wide": "mlp.c_fc", "mlp.out": "mlp.c_proj"}


def open_clip_ties(config: Config) -> list[Tie]:
    """Return which tensor of open_clip's ``CLIP`` is which of ours."""
    m = config.model
    return [
        *(_tie_resnet(m.resnet_blocks) if m.image_tower == "resnet" else _tie_vit(m.image_depth)),
        *tie("text.embedding.weight", "token_embedding.weight"),
        *tie("text.position", "positional_embedding"),
        *_tie_blocks("text", "transformer", m.text_depth),
        *tie_layer("text.norm", "ln_final"),
        *tie("text_projection.weight", "text_projection", is_transposed=True),
        *tie("logit_scale", "logit_scale"),
    ]


def _tie_vit(depth: int) -> list[Tie]:
    return [
        *tie("image.patches.weight", "visual.conv1.weight"),
        *tie("image.first", "visual.class_embedding"),
        *tie("image.position", "visual.positional_embedding"),
        *tie_layer("image.norm_before", "visual.ln_pre"),
        *_tie_blocks("image", "visual.transformer", depth),
        *tie_layer("image.norm", "visual.ln_post"),
        *tie("image_projection.weight", "visual.proj", is_transposed=True),
    ]


def _tie_blocks(ours: str, theirs: str, depth: int) -> list[Tie]:
    def qkv(layer: str, block: str) -> list[Tie]:
        names = ("weight", "bias")
        return [one for name in names for one in tie(f"{layer}.{name}", f"{block}.attn.in_proj_{name}")]

    return tie_blocks(ours, f"{theirs}.resblocks", depth, _LAYERS, qkv)


def _tie_resnet(blocks: tuple[int, ...]) -> list[Tie]:
    ties = _tie_convolutions("image", "visual")
    for stage, count in enumerate(blocks):
        for number in range(count):
            block, layer = f"image.stages.{stage}.{number}", f"visual.layer{stage + 1}.{number}"
            ties += _tie_convolutions(block, layer)
            if number == 0:
                ties += tie(f"{block}.shortcut.weight", f"{layer}.downsample.0.weight")
                ties += tie_norm(f"{block}.shortcut_norm", f"{layer}.downsample.1")
    pool = "visual.attnpool"
    return [
        *ties,
        *tie("image.pool.position", f"{pool}.positional_embedding"),
        *tie_layer("image.pool.q", f"{pool}.q_proj"),
        *tie_layer("image.pool.kv", f"{pool}.k_proj", f"{pool}.v_proj"),
        *tie_layer("image_projection", f"{pool}.c_proj"),
    ]


def _tie_convolutions(ours: str, theirs: str) -> list[Tie]:
    ties: list[Tie] = []
    for number in (1, 2, 3):
        ties += tie(f"{ours}.conv{number}.weight", f"{theirs}.conv{number}.weight")
        ties += tie_norm(f"{ours}.norm{number}", f"{theirs}.bn{number}")
    return ties


def save_open_clip(model: Clip, tokenizer: Tokenizer, config: Config, folder: str | Path) -> None:
    """Write a model as a folder that ``open_clip.create_model("local-dir:FOLDER")`` reads.

    Parameters
    ----------
    model : Clip
        With a ViT or a ResNet, a causal text Transformer, and CLIP's vocabulary.
    tokenizer : Tokenizer
    config : Config
        Its model and image size.
    folder : path
        Made here: ``open_clip_config.json``, ``open_clip_model.safetensors`` and the vocabulary.

    Raises
    ------
    CoreclipError
        For a model that the format has no place for, or a folder that is there already.
    """
    m = config.model
    for holds, reason in (
        (m.image_tower in ("vit", "resnet"), f"its image tower is a {m.image_tower}, and there a ViT or a ResNet is needed"),
        (m.text_tower == "transformer", f"its text tower is a {m.text_tower}, and there a Transformer is needed"),
        (m.text_causal, "its text tower sees what comes after a token but no padding, and open_clip's no_causal_mask sees both; train with "
                        "model.text_causal=true"),
        (tokenizer.is_clip and tokenizer.vocab_size == CLIP_VOCAB_SIZE,
         "its vocabulary is not CLIP's, which open_clip has built in; train on a data set that was converted with --tokenizer clip"),
    ):  # fmt: skip
        if not holds:
            raise CoreclipError(f"the model can't be saved for open_clip: {reason}")
    with new_folder(folder) as out:
        save_file(to_theirs(model.state_dict(), open_clip_ties(config)), out / _WEIGHTS[0], {"format": "pt"})
        mean, std = ([round(float(v) / 255, 8) for v in statistic.flatten()] for statistic in (model.mean, model.std))
        preprocessing = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
        write_json(out / _CONFIG, {"model_cfg": _open_clip_config(config), "preprocess_cfg": preprocessing})
        write_vocabulary(out, tokenizer, m.context)


def _open_clip_config(config: Config) -> dict[str, Any]:
    m = config.model
    is_resnet = m.image_tower == "resnet"
    return {
        "embed_dim": m.embed_dim,
        "quick_gelu": m.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": config.data.image_size,
            "layers": list(m.resnet_blocks) if is_resnet else m.image_depth,
            "width": m.image_width,
            "head_width": m.attended_image_width // m.resolved_image_heads,
            "patch_size": None if is_resnet else m.patch_size,
        },
        "text_cfg": {
            "context_length": m.context,
            "vocab_size": CLIP_VOCAB_SIZE,
            "width": m.text_width,
            "heads": m.heads,
            "layers": m.text_depth,
        },
    }
