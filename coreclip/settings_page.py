"""The page of all settings and presets, docs/configuration.md, from the docstrings of :mod:`coreclip.config`.

``python -m coreclip.settings_page > docs/configuration.md`` makes it anew; a test holds the two against each other.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from coreclip.config import Config, load_config
from coreclip.presets import PRESETS

_HEAD = """\
# Configuration

Every setting of a run, with its default. A TOML file has them in sections (`--config mine.toml`), and `--set section.key=value` changes one, as often as
needed: `--set train.lr=1e-3 --set 'data.crop_scale=[0.5,1.0]' --set model.text_tower=cbow`. `--preset` puts a whole model below both. `RUN/config.toml` spells all of
them out, and can be given to `--config` again. What is unknown, of another type or out of range is refused.
"""
_PRESETS_HEAD = """\
## Presets

`coreclip train flickr run --minutes 5 --preset vit-s`. Parameters are in millions, temperature included, with a vocabulary of 4,096 (that of `convert`) and of 49,408 (CLIP's, of
`convert --tokenizer clip`). `RN50`, `ViT-B-32` and `ViT-B-16` are OpenAI's shapes, whose checkpoints fit them where the data set was converted with `--tokenizer clip`.

| preset | image tower | image size | text tower | features | parameters, 4,096 | parameters, 49,408 |
|---|---|---|---|---|---|---|
"""
_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?: : (?P<kind>.+))?")


def settings_page() -> str:
    """Return the page as Markdown."""
    sections = [_section(field.name, kind) for field, kind in _sections()]
    return "\n".join([_HEAD, *sections, _PRESETS_HEAD + "\n".join(map(_preset, PRESETS)), ""])


def _sections() -> Iterator[tuple[dataclasses.Field[Any], type]]:
    kinds = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        yield field, kinds[field.name]


def _section(name: str, kind: type) -> str:
    text = inspect.getdoc(kind) or ""
    summary = text.partition("\n")[0].partition("; see ")[0].rstrip(".")
    lines = [f"## [{name}]", "", f"{_markdown(summary)}.", "", "| key | type | default | |", "|---|---|---|---|"]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for names, of, meaning in _entries(text):
        shown = ", ".join(f"`{key}`" for key in names)
        values = ", ".join(f"`{_value(defaults[key])}`" for key in names)
        lines.append(f"| {shown} | {of} | {values} | {_markdown(meaning)} |")
    return "\n".join([*lines, ""])


def _entries(docstring: str) -> Iterator[tuple[list[str], str, str]]:
    """Yield names, type and meaning of what a docstring lists as attributes."""
    _, _, listed = docstring.partition("Attributes\n----------\n")
    entry: tuple[list[str], str, list[str]] | None = None
    for line in listed.splitlines():
        if line.startswith(" "):
            assert entry is not None
            entry[2].append(line.strip())
            continue
        if entry is not None:
            yield entry[0], entry[1], " ".join(entry[2])
        found = _ENTRY.fullmatch(line)
        assert found is not None, line
        entry = found["names"].split(", "), found["kind"] or "", []
    if entry is not None:
        yield entry[0], entry[1], " ".join(entry[2])


def _markdown(text: str) -> str:
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value!r}"


def _preset(name: str) -> str:
    import torch

    from coreclip.training import build_model

    config = load_config(preset=name)
    m = config.model
    image = {
        "cnn": f"CNN, {m.image_width} channels, {m.image_depth} block{'s' if m.image_depth > 1 else ''} a stage",
        "resnet": f"ResNet, {m.image_width} channels, {list(m.resnet_blocks)} blocks",
        "vit": f"ViT, width {m.image_width}, {m.image_depth} layers, patch {m.patch_size}",
    }[m.image_tower]
    text = f"width {m.text_width}, {m.text_depth} layer{'s' if m.text_depth > 1 else ''}, {m.context} tokens"
    sizes = []
    for vocabulary in (4096, 49_408):
        with torch.device("meta"):
            model = build_model(config, vocab_size=vocabulary, seed=0)
        sizes.append(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f}")
    return f"| `{name}` | {image} | {config.data.image_size} | {text} | {m.embed_dim} | {sizes[0]} | {sizes[1]} |"


if __name__ == "__main__":
    print(settings_page(), end="")
