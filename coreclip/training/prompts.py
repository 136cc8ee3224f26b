"""Class names to class features: prompts by templates, and the ensemble of Radford et al. 2021 over them.

``coreclip`` is this project's own set, for small models whose captions are plain; ``clip-80`` is the ensemble for ImageNet that CLIP's
authors published, which most published zero-shot figures are of, and ``clip-7`` what they found to be its best seven. Left out: prompts
that are learned or written by a language model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreclip.errors import CoreclipError

if TYPE_CHECKING:
    from coreclip.training.clip_model import ClipModel

# Of CLIP's eighty all but four come in two, with "a" and with "the".
_OF = (
    "a bad photo", "a sculpture", "a low resolution photo", "a rendering", "graffiti", "a cropped photo", "a tattoo", "a bright photo",
    "a dark photo", "a drawing", "a close-up photo", "a black and white photo", "a painting", "a pixelated photo",
    "a jpeg corrupted photo", "a blurry photo", "a photo", "a good photo", "a doodle", "a sketch", "a rendition", "art", "itap",
)  # fmt: skip
_LOOKS = ("hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small")
_KINDS = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
_CLIP_80 = (
    *(f"{what} of {article} {{}}." for what in _OF for article in ("a", "the")),
    *(f"a photo of {article} {look} {{}}." for look in _LOOKS for article in ("a", "the")),
    *(f"{article} {kind} {{}}." for kind in _KINDS for article in ("a", "the")),
    *(f"{article} {{}} in a video game." for article in ("a", "the")),
    "a photo of many {}.",
    "a photo of my {}.",
    "a photo of one {}.",
    "itap of my {}.",
)

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "coreclip": (
        "{}",
        "a photo of a {}",
        "a picture of a {}",
        "a small photo of a {}",
        "a large photo of a {}",
        "a close-up photo of a {}",
        "a blurry photo of a {}",
        "a drawing of a {}",
    ),
    "clip-7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "clip-80": _CLIP_80,
    "photo": ("a photo of a {}",),
    "name": ("{}",),
}
TEMPLATES = TEMPLATE_SETS["coreclip"]
_MOST_BYTES = 1 << 20  # of a file of templates


def read_templates(name: str) -> tuple[str, ...]:
    """Return a set of templates by its name, or those of a file with one a line.

    Raises
    ------
    CoreclipError
        For what is neither, a file that is no UTF-8 text, and what :func:`check_templates` refuses.
    """
    if name in TEMPLATE_SETS:
        return TEMPLATE_SETS[name]
    path = Path(name)
    if not path.is_file():
        raise CoreclipError(
            f"--templates {name!r} is neither a set nor a file; give {', '.join(TEMPLATE_SETS)} or a file with one template a line"
        )
    try:
        with open(path, "rb") as file:
            lines = [line.strip() for line in file.read(_MOST_BYTES).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise CoreclipError(f"--templates {name} is not UTF-8; save it as UTF-8, one template a line") from None
    return check_templates([line for line in lines if line])


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return templates, each of which must have ``{}`` for the class name.

    Raises
    ------
    CoreclipError
        For a single string, none at all, and one without ``{}``.
    """
    if isinstance(templates, str) or not templates or any("{}" not in template for template in templates):
        raise CoreclipError(
            f"templates = {templates!r} are not allowed: a list in which each has {{}} for the class name"
        )
    return tuple(templates)


def class_features(clip: "ClipModel", names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Return float32 (classes, d): each class's normalised mean over the prompts.

    Parameters
    ----------
    clip : ClipModel
    names : sequence of str
        Underscores are read as spaces.
    templates : sequence of str
    """
    prompts = [template.replace("{}", name.replace("_", " ")) for name in names for template in templates]
    mean = clip.encode_text(prompts).view(len(names), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(mean, dim=1)
