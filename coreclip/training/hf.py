"""CLIP in the format of Hugging Face's ``transformers`` (``CLIPModel``): a folder with ``config.json`` and the weights.

Neither reading nor writing imports ``transformers``. Left out: sharded weights, sizes of the hidden layer other than four times the
width, activations that differ between the towers.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.files import write_json, write_text
from coreclip.pipeline import Tokenizer
from coreclip.pipeline.publishing import new_folder
from coreclip.pipeline.tokenizer import CLIP_ENDS
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
from coreclip.training.model import Clip
from coreclip.training.tensor_names import Tie, tie, tie_blocks, tie_layer, to_ours, to_theirs

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LEGACY_END = 2  # configurations of before 2023 name this id, and their models read the largest id of a caption
_BICUBIC = 3  # as Pillow numbers its filters
# Of what is read from a configuration: a model of such sizes is laid out before its weights are looked at.
_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "image_size", "patch_size",
)  # fmt: skip
_MOST_SIZE, _MOST_LAYERS = 65_536, 256
# What transformers takes where a configuration is silent.
_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
         "max_position_embeddings": 77, "vocab_size": 49_408, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
         "eos_token_id": 49_407}  # fmt: skip
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
           "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3}  # fmt: skip


def weights_of_hf(folder: Path) -> Path:
    """Return the file with the weights of a folder.

    Raises
    ------
    CoreclipError
        Where there is none, or several that hold parts.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
        if (folder / f"{name}.index.json").is_file():
            raise CoreclipError(f"{folder} has its weights in several files, which is not supported; save them as one")
    raise CoreclipError(
        f"no weights in {folder}: it has neither {' nor '.join(_WEIGHTS)}; download the whole repository"
    )


def read_hf(folder: Path) -> Foreign:
    """Read a ``CLIPModel``.

    Raises
    ------
    CoreclipError
        For a folder without one, another architecture, weights that do not fit the configuration.
    """
    where = f"hf:{folder}"
    if not (folder / "config.json").is_file():
        raise CoreclipError(f"no Hugging Face model at {folder}: it has no config.json; check the path")
    stored = read_object(folder / "config.json", "configuration")
    if stored.get("model_type") != "clip" or (stored.get("architectures") or ["CLIPModel"]) != ["CLIPModel"]:
        raise CoreclipError(
            f"{where} is a {stored.get('model_type')!r} model {stored.get('architectures')}; only CLIPModel is supported"
        )
    text = _section(where, stored, "text_config", _TEXT)
    vision = _section(where, stored, "vision_config", _VISION)
    config = _config(where, stored, text, vision)
    tensors = {k: v for k, v in read_tensors(weights_of_hf(folder)).items() if not k.endswith(".position_ids")}
    shapes = {k: v.shape for k, v in empty_model(where, config, text["vocab_size"]).state_dict().items()}
    mean, std = _preprocessing(folder, where, config.data.image_size)
    return Foreign(
        config=config,
        state=to_ours(where, tensors, hf_ties(config), shapes),
        mean=mean,
        std=std,
        folder=folder,
        end=None if text["eos_token_id"] == _LEGACY_END else text["eos_token_id"],
    )


def _section(where: str, stored: dict[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a tower's part; older configurations hold it twice, and then the one of name ``..._dict`` counts."""
    merged = dict(defaults)
    for key in (name, f"{name}_dict"):
        part = stored.get(key)
        if part is not None and not isinstance(part, dict):
            raise CoreclipError(f"{where}: {key} in config.json is no object; copy the file anew")
        merged |= part or {}
    return merged


def _config(where: str, stored: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> Config:
    for name, part in (("text_config", text), ("vision_config", vision)):
        for key in filter(part.__contains__, _SIZES):
            if type(part[key]) is not int or not 1 <= part[key] <= _MOST_SIZE:
                raise CoreclipError(
                    f"{where}: {name}.{key} = {part[key]!r} is not allowed: a number from 1 to {_MOST_SIZE:,}"
                )
        if part["num_hidden_layers"] > _MOST_LAYERS:
            raise CoreclipError(
                f"{where}: {name}.num_hidden_layers = {part['num_hidden_layers']} is not allowed: at most {_MOST_LAYERS}"
            )
        for key, wanted in (("layer_norm_eps", 1e-5), ("intermediate_size", 4 * part["hidden_size"])):
            if part[key] != wanted:
                raise CoreclipError(f"{where}: {name}.{key} = {part[key]!r} is not supported; here it is {wanted!r}")
    if text["hidden_act"] != vision["hidden_act"]:
        raise CoreclipError(
            f"{where}: its towers have the activations {text['hidden_act']!r} and {vision['hidden_act']!r}; only equal ones are supported"
        )
    if vision["num_channels"] != 3:
        raise CoreclipError(
            f"{where}: vision_config.num_channels = {vision['num_channels']!r} is not supported; only 3 is"
        )
    model = {
        "image_tower": "vit",
        "image_width": vision["hidden_size"],
        "image_depth": vision["num_hidden_layers"],
        "image_heads": vision["num_attention_heads"],
        "patch_size": vision["patch_size"],
        "text_width": text["hidden_size"],
        "text_depth": text["num_hidden_layers"],
        "heads": text["num_attention_heads"],
        "text_causal": True,
        "activation": text["hidden_act"],
        "embed_dim": stored.get("projection_dim", 512),
        "context": text["max_position_embeddings"],
    }
    return make_config(where, vision["image_size"], model)


def _preprocessing(folder: Path, where: str, image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the pixels' mean and standard deviation, and say where the images' resizing is another one than ours."""
    processor: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        processor = read_object(folder / "preprocessor_config.json", "image preprocessing")
    elif (folder / "processor_config.json").is_file():
        processor = read_object(folder / "processor_config.json", "image preprocessing").get("image_processor") or {}
    if not isinstance(processor, dict):
        raise CoreclipError(f"{where}: image_processor in processor_config.json is no object; copy the file anew")
    for key in ("do_rescale", "do_normalize"):
        if processor.get(key, True) is not True:
            raise CoreclipError(f"{where}: {key} = {processor[key]!r} is not supported; pixels are standardised here")
    factor = processor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise CoreclipError(f"{where}: rescale_factor = {factor!r} is not supported; here it is 1 / 255")
    shortest, crop = processor.get("size", image_size), processor.get("crop_size", image_size)
    if isinstance(shortest, dict):
        shortest = shortest.get("shortest_edge", shortest)
    if isinstance(crop, dict):
        crop = crop.get("height", crop)
    asked = (shortest, crop, processor.get("resample", _BICUBIC), processor.get("do_center_crop", True))
    if asked != (image_size, image_size, _BICUBIC, True):
        say_once(
            f"{where} asks for images resized otherwise (size {asked[0]}, crop {asked[1]}, filter {asked[2]}); here the shorter side "
            f"becomes {image_size} by bicubic interpolation and the centre is cropped"
        )
    return (
        three_numbers(where, "image_mean", processor.get("image_mean"), CLIP_MEAN),
        three_numbers(where, "image_std", processor.get("image_std"), CLIP_STD),
    )


_LAYERS = {
    "norm1": "layer_norm1", "out": "self_attn.out_proj", "norm2": "layer_norm2", "mlp.wide": "mlp.fc1", "mlp.out": "mlp.fc2",
}  # fmt: skip


def hf_ties(config: Config) -> list[Tie]:
    """Return which tensor of a ``CLIPModel`` is which of ours."""
    vision = "vision_model.embeddings"
    text = "text_model.embeddings"
    return [
        *tie("image.patches.weight", f"{vision}.patch_embedding.weight"),
        *tie("image.first", f"{vision}.class_embedding"),
        *tie("image.position", f"{vision}.position_embedding.weight"),
        *tie_layer("image.norm_before", "vision_model.pre_layrnorm"),
        *_tie_blocks("image", "vision_model", config.model.image_depth),
        *tie_layer("image.norm", "vision_model.post_layernorm"),
        *tie("image_projection.weight", "visual_projection.weight"),
        *tie("text.embedding.weight", f"{text}.token_embedding.weight"),
        *tie("text.position", f"{text}.position_embedding.weight"),
        *_tie_blocks("text", "text_model", config.model.text_depth),
        *tie_layer("text.norm", "text_model.final_layer_norm"),
        *tie("text_projection.weight", "text_projection.weight"),
        *tie("logit_scale", "logit_scale"),
    ]


def _tie_blocks(ours: str, theirs: str, depth: int) -> list[Tie]:
    def qkv(layer: str, block: str) -> list[Tie]:
        return tie_layer(layer, *(f"{block}.self_attn.{name}_proj" for name in "qkv"))

    return tie_blocks(ours, f"{theirs}.encoder.layers", depth, _LAYERS, qkv)


def save_hf(model: Clip, tokenizer: Tokenizer, config: Config, folder: str | Path) -> None:
    """Write a model as a folder that ``transformers.CLIPModel.from_pretrained`` and ``CLIPProcessor.from_pretrained`` read.

    Parameters
    ----------
    model : Clip
        With a ViT, a causal text Transformer, and CLIP's vocabulary.
    tokenizer : Tokenizer
    config : Config
        Its model and image size.
    folder : path
        Made here.

    Raises
    ------
    CoreclipError
        For a model that the format has no place for, or a folder that is there already.
    """
    m = config.model
    for holds, reason in (
        (m.image_tower == "vit", f"its image tower is a {m.image_tower}, and CLIPModel has a ViT"),
        (m.text_tower == "transformer", f"its text tower is a {m.text_tower}, and CLIPModel has a Transformer"),
        (m.text_causal, "its text tower sees what comes after a token, and CLIPModel's does not; train with model.text_causal=true"),
        (tokenizer.is_clip, "its vocabulary is not CLIP's; train on a data set that was converted with --tokenizer clip"),
    ):  # fmt: skip
        if not holds:
            raise CoreclipError(f"the model can't be saved for Hugging Face: {reason}")
    with new_folder(folder) as out:
        save_file(to_theirs(model.state_dict(), hf_ties(config)), out / "model.safetensors", {"format": "pt"})
        write_json(out / "config.json", _hf_config(model, tokenizer, config))
        mean, std = ([round(float(v) / 255, 8) for v in statistic.flatten()] for statistic in (model.mean, model.std))
        side = {"height": config.data.image_size, "width": config.data.image_size}
        write_json(
            out / "preprocessor_config.json",
            {
                "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True,
                "do_resize": True, "size": {"shortest_edge": config.data.image_size}, "resample": _BICUBIC,
                "do_center_crop": True, "crop_size": side,
                "do_rescale": True, "rescale_factor": 1 / 255,
                "do_normalize": True, "image_mean": mean, "image_std": std,
            },
        )  # fmt: skip
        write_vocabulary(out, tokenizer, m.context)


def _hf_config(model: Clip, tokenizer: Tokenizer, config: Config) -> dict[str, Any]:
    m = config.model
    shared = {
        "hidden_act": m.activation,
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "projection_dim": m.embed_dim,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": m.embed_dim,
        "logit_scale_init_value": model.logit_scale.item(),
        "torch_dtype": "float32",
        "text_config": {
            **shared,
            "model_type": "clip_text_model",
            "vocab_size": model.state_dict()["text.embedding.weight"].shape[0],
            "hidden_size": m.text_width,
            "intermediate_size": 4 * m.text_width,
            "num_hidden_layers": m.text_depth,
            "num_attention_heads": m.heads,
            "max_position_embeddings": m.context,
            "bos_token_id": tokenizer.start,
            "eos_token_id": tokenizer.end,
            "pad_token_id": tokenizer.end,
        },
        "vision_config": {
            **shared,
            "model_type": "clip_vision_model",
            "num_channels": 3,
            "hidden_size": m.image_width,
            "intermediate_size": 4 * m.image_width,
            "num_hidden_layers": m.image_depth,
            "num_attention_heads": m.resolved_image_heads,
            "image_size": config.data.image_size,
            "patch_size": m.patch_size,
        },
    }


def write_vocabulary(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write CLIP's vocabulary in Hugging Face's three forms: each of its tokenizers reads one of them."""
    stored = json.loads(tokenizer.serialised)["model"]
    tokenizer.save(folder / "tokenizer.json")
    write_text(folder / "vocab.json", json.dumps(stored["vocab"], ensure_ascii=False) + "\n")
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in stored["merges"])
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    start, end = CLIP_ENDS
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json", {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": context}
    )
