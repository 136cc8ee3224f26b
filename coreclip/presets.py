"""Whole models by name: what ``--preset`` puts below a configuration's own values.

Sizes in names are parameters with a vocabulary of 4,096. The last three are OpenAI's shapes (Radford et al. 2021), whose checkpoints
fit them with CLIP's vocabulary of 49,408.
"""

import copy
from typing import Any

from coreclip.errors import CoreclipError

_CLIP = {"text_causal": True, "activation": "quick_gelu", "context": 77}
_CLIP_TEXT = _CLIP | {"text_width": 512, "text_depth": 12, "heads": 8}


def _vit(image_size: int, patch_size: int, width: int, text_width: int, embed_dim: int) -> dict[str, Any]:
    return {
        "data": {"image_size": image_size},
        "model": {
            "image_tower": "vit", "patch_size": patch_size, "image_width": width, "image_depth": 12,
            "text_width": text_width, "text_depth": 6, "heads": text_width // 64, "embed_dim": embed_dim,
        },
    }  # fmt: skip


def _clip_vit(patch_size: int) -> dict[str, Any]:
    table = _vit(224, patch_size, 768, 512, 512)
    return table | {"model": table["model"] | _CLIP_TEXT}


PRESETS: dict[str, dict[str, Any]] = {
    "cnn-1m": {"model": {"image_width": 20, "text_width": 96, "text_depth": 1, "embed_dim": 128}},
    "cnn-4m": {},  # the defaults
    "cnn-14m": {"model": {"image_width": 96, "text_width": 192, "text_depth": 3, "embed_dim": 384}},
    "cnn-83m": {
        "data": {"image_size": 112},
        "model": {
            "image_width": 160,
            "image_depth": 2,
            "text_width": 384,
            "text_depth": 6,
            "heads": 6,
            "embed_dim": 512,
        },
    },
    "resnet-8m": {
        "model": {"image_tower": "resnet", "image_width": 32, "text_width": 192, "text_depth": 4, "embed_dim": 256}
    },
    "vit-ti": _vit(64, 8, 192, 192, 256),
    "vit-s": _vit(112, 14, 384, 256, 384),
    "vit-b": _vit(224, 16, 768, 512, 512),
    "RN50": {
        "data": {"image_size": 224},
        "model": _CLIP_TEXT
        | {"image_tower": "resnet", "image_width": 64, "resnet_blocks": [3, 4, 6, 3], "embed_dim": 1024},
    },
    "ViT-B-32": _clip_vit(32),
    "ViT-B-16": _clip_vit(16),
}


def preset_table(name: str) -> dict[str, Any]:
    """Return a preset as nested dictionaries of its own.

    Raises
    ------
    CoreclipError
        For an unknown name.
    """
    if name not in PRESETS:
        raise CoreclipError(f"preset {name!r} is unknown; there are {', '.join(PRESETS)}")
    return copy.deepcopy(PRESETS[name])
