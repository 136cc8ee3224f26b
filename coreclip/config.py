"""Configuration of a run: frozen dataclasses, filled from TOML and ``section.key=value`` overrides.

Unknown keys, wrong types and values out of range are refused with the allowed ones named.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.presets import preset_table

_OBJECTIVES = ("softmax", "sigmoid", "classification")


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise CoreclipError(
            f"{name} = {value!r} is not allowed: {rule}; change it in the configuration or with --set {name}=VALUE"
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How batches are made.

    Attributes
    ----------
    image_size : int
        Side of the square images that the model sees, pixels.
    crop_scale : (float, float)
        Range of the random crop's area, as a fraction of the image's; e.g. ``--set 'data.crop_scale=[0.5,1.0]'``.
    batch_size : int
        Pairs in a training batch.
    workers : int
        Decoding threads. 0: two where the model trains on the processor, on a GPU this process's share of the cores but one.
    resident : bool
        Whether the decoded images, a little larger than ``image_size``, are kept in memory after the first pass.
    sizes : list of int
        Image sizes of as many equal parts of the budget, none by default: ``[32, 48, 64]`` trains a third of it at 32 pixels.
        The last one must be ``image_size``; a size may come several times. For the convolutional image tower.
    weights : {"loss", "draws"}
        Where a subset's weights go: into the loss, or into how often each pair is drawn in a pass.
    order : {"random", "quasi_random"}
        ``quasi_random`` shuffles within parts of the data, so that what memory does not hold is read in long runs.
    flip, jitter, grey, cutout
        Changes of training images, none by default; see :class:`coreclip.pipeline.Augment`. E.g.
        ``--set data.flip=0.5 --set data.jitter=[0.4,0.4,0.4,0.1] --set data.grey=0.2 --set data.cutout=0.25``.
    """

    image_size: int = 64
    crop_scale: tuple[float, float] = (0.9, 1.0)
    batch_size: int = 256
    workers: int = 0
    resident: bool = False
    sizes: tuple[int, ...] = ()
    weights: str = "loss"
    order: str = "random"
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    grey: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        _require(8 <= self.image_size <= 1024, "data.image_size", self.image_size, "8 to 1024 pixels")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "0 < low <= high <= 1")
        _require(
            2 <= self.batch_size <= 1 << 20,
            "data.batch_size",
            self.batch_size,
            "2 to 1,048,576; a contrast needs a second pair",
        )
        _require(0 <= self.workers <= 256, "data.workers", self.workers, "1 to 256, or 0 for what the device wants")
        for size in self.sizes:
            _require(
                8 <= size <= self.image_size, "data.sizes", self.sizes, f"8 to data.image_size = {self.image_size}"
            )
        _require(
            not self.sizes or self.sizes[-1] == self.image_size,
            "data.sizes",
            self.sizes,
            f"the last one is data.image_size = {self.image_size}, at which the model is used",
        )
        _require(self.weights in ("loss", "draws"), "data.weights", self.weights, "one of loss, draws")
        _require(self.order in ("random", "quasi_random"), "data.order", self.order, "one of random, quasi_random")
        for name in ("flip", "grey"):
            _require(0 <= getattr(self, name) <= 1, f"data.{name}", getattr(self, name), "a probability, 0 to 1")
        _require(0 <= self.cutout <= 1, "data.cutout", self.cutout, "a fraction of the image's side, 0 to 1")
        _require(
            min(self.jitter) >= 0 and self.jitter[3] <= 0.5,
            "data.jitter",
            self.jitter,
            "brightness, contrast, saturation, hue: each at least 0, the hue's 0.5 at most",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes of the two towers; :data:`coreclip.presets.PRESETS` has whole models.

    Attributes
    ----------
    image_tower : {"cnn", "resnet", "vit"}
        A small residual network, CLIP's ResNet with attention pooling, CLIP's Vision Transformer.
    image_width : int
        Channels of the CNN's first stage (each of the next three doubles them) or after the ResNet's stem (its last stage has 32
        times as many), or the ViT's width.
    image_depth : int
        Residual blocks of each CNN stage, or the ViT's layers.
    image_stride : {2, 4}
        Of the CNN's first convolution: 2 sees smaller things, for about four times the multiplications at the same width.
    resnet_blocks : (int, int, int, int)
        Bottlenecks of each of the ResNet's stages.
    image_heads : int
        Attention heads of the ViT and of the ResNet's pooling. 0: one for each 64 channels.
    patch_size : int
        The ViT's, pixels; must divide ``data.image_size``.
    text_tower : {"transformer", "cbow"}
        ``cbow``: the mean of the words' embeddings and an MLP; faster, blind to word order.
    text_width : int
        Of the text Transformer, or of the bag of words.
    text_depth, heads : int
        Layers of the text Transformer, and attention heads of each.
    text_causal : bool
        Whether a token sees only those before it, as in CLIP.
    activation : {"gelu", "quick_gelu"}
        Of the Transformers; OpenAI's CLIPs have ``quick_gelu``.
    embed_dim : int
        Numbers of a feature: the width of the space that images and texts share.
    context : int
        Tokens of a caption that the text tower reads.
    """

    image_tower: str = "cnn"
    image_width: int = 48
    image_depth: int = 1
    image_stride: int = 4
    resnet_blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    image_heads: int = 0
    patch_size: int = 8
    text_tower: str = "transformer"
    text_width: int = 128
    text_depth: int = 2
    heads: int = 4
    text_causal: bool = False
    activation: str = "gelu"
    embed_dim: int = 256
    context: int = 32

    def __post_init__(self) -> None:
        for name, known in _MODEL_CHOICES.items():
            _require(getattr(self, name) in known, f"model.{name}", getattr(self, name), f"one of {', '.join(known)}")
        for name in ("image_width", "image_depth", "patch_size", "text_width", "text_depth", "heads", "embed_dim"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        _require(self.image_stride in (2, 4), "model.image_stride", self.image_stride, "2 or 4")
        _require(min(self.resnet_blocks) >= 1, "model.resnet_blocks", self.resnet_blocks, "four numbers of at least 1")
        _require(self.image_heads >= 0, "model.image_heads", self.image_heads, "0 or more")
        _require(4 <= self.context <= 1024, "model.context", self.context, "4 to 1024 tokens")
        if self.image_tower == "resnet":
            _require(self.image_width % 2 == 0, "model.image_width", self.image_width, "even for a ResNet")
        uses_heads = {
            "text_width": (self.text_tower == "transformer", "heads", self.heads, self.text_width),
            "image_width": (
                self.image_tower != "cnn", "image_heads", self.resolved_image_heads, self.attended_image_width,
            ),
        }  # fmt: skip
        for name, (used, heads, count, width) in uses_heads.items():
            _require(
                not used or width % count == 0,
                f"model.{name}",
                getattr(self, name),
                f"a multiple of model.{heads} = {count}",
            )

    @property
    def attended_image_width(self) -> int:
        """Channels that the image tower's attention works on; its vectors' width for the CNN."""
        return self.image_width * {"cnn": 8, "resnet": 32, "vit": 1}[self.image_tower]

    @property
    def resolved_image_heads(self) -> int:
        """``image_heads``, or what 0 stands for."""
        return self.image_heads or max(1, self.attended_image_width // 64)


_MODEL_CHOICES = {
    "image_tower": ("cnn", "resnet", "vit"),
    "text_tower": ("transformer", "cbow"),
    "activation": ("gelu", "quick_gelu"),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the model is trained.

    Attributes
    ----------
    objective : {"softmax", "sigmoid", "classification"}
        CLIP's loss; SigLIP's, with a learned bias; for labelled data the softmax over the classes' texts.
    micro_batch : int
        Pairs that go through the towers at once; the batch's gradient stays what it is (GradCache), for a second forward pass and
        less memory. At least 4; 0: the whole batch.
    optimiser : {"adamw", "muon"}
        ``muon`` takes the matrices and convolutions between the first and the last layer of each tower by Muon, AdamW the rest. It
        learns more of each pair, and takes longer for a step.
    muon_lr : float
        Muon's peak learning rate; it goes as ``lr`` goes.
    lr : float
        Peak learning rate of AdamW; 1e-5 is common for a pretrained CLIP (``--init-from``).
    weight_decay : float
        Of AdamW and Muon, on matrices only: not on gains, biases, positions and the temperature.
    beta1, beta2, eps : float
        AdamW's decay rates of the gradient's mean and square, and what is added to the root of the latter.
    warmup : float
        Fraction of the budget over which the learning rate rises; but 100 steps at least, and a fifth of the budget at most.
    clip_norm : float
        Largest norm of the gradient of all parameters together; a larger one is scaled down to it before the step.
    temperature : float
        Of the softmax, 1 / exp(logit_scale), at the start; it is learned.
    precision : {"auto", "fp32", "bf16"}
        ``auto`` measures at the start and keeps the faster one.
    compile : {"auto", "on", "off"}
        Whether torch.compile is used on the towers' blocks; ``auto`` tries it where that costs a twentieth of the budget at most,
        and keeps it where steps get faster.
    dropout : float
        Share of the channels of each tower's vector that are left out before its projection, others each time, while training;
        e.g. 0.3 for a few thousand pairs. 0: none.
    word_dropout : float
        Share of each caption's words that are left out, others each time, while training; e.g. 0.2 for a few thousand pairs.
    ema : float
        Above 0, the run's model is an average of the weights over the last steps: the width of that average (its standard deviation)
        as a fraction of the steps so far, e.g. 0.05; 0.25 at most. 0: the last step's weights.
    evaluate_every : float
        Fraction of the budget between two evaluations on the data set that ``--validation`` names.
    checkpoint_seconds : float
        Time between two writings of ``RUN/checkpoint.pt``: what a kill can cost at most.
    checkpoints : int
        Copies of the weights that are kept, from the middles of this many equal parts of the budget; selection by ``grand``,
        ``tracin`` and ``vog`` and ``coreclip explain`` read them. 0: none.
    signals : bool
        Whether each pair's loss, correctness, margins, confidence, entropy and EL2N are recorded.
    freeze : {"", "image", "text"}
        A tower that stays as it is, with its projection; for a start from a trained model (locked-image tuning, Zhai et al. 2022).
    deterministic : bool
        Whether a GPU uses only kernels that give equal bits each time, so that a run that was interrupted ends with the bits of an
        undisturbed one; they are slower. A processor's are such anyway.
    seed : int
        Of the first weights, the order of the pairs, and every other draw.
    """

    objective: str = "softmax"
    micro_batch: int = 0
    optimiser: str = "adamw"
    muon_lr: float = 0.02
    lr: float = 1e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    warmup: float = 0.03
    clip_norm: float = 1.0
    temperature: float = 0.07
    precision: str = "auto"
    compile: str = "auto"
    dropout: float = 0.0
    word_dropout: float = 0.0
    ema: float = 0.0
    evaluate_every: float = 0.1
    checkpoint_seconds: float = 60.0
    checkpoints: int = 5
    signals: bool = True
    freeze: str = ""
    deterministic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.objective in _OBJECTIVES, "train.objective", self.objective, f"one of {', '.join(_OBJECTIVES)}")
        _require(
            self.micro_batch == 0 or self.micro_batch >= 4,
            "train.micro_batch",
            self.micro_batch,
            "0 (the whole batch) or 4 pairs at least",
        )
        _require(self.optimiser in ("adamw", "muon"), "train.optimiser", self.optimiser, "one of adamw, muon")
        for name in ("lr", "muon_lr"):
            _require(0 < getattr(self, name) < 1, f"train.{name}", getattr(self, name), "between 0 and 1")
        _require(0 <= self.weight_decay < 10, "train.weight_decay", self.weight_decay, "0 to 10")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "0 <= beta < 1")
        _require(self.eps > 0, "train.eps", self.eps, "above 0")
        _require(0 <= self.warmup <= 0.2, "train.warmup", self.warmup, "a fraction of the budget, 0 to 0.2")
        _require(self.clip_norm > 0, "train.clip_norm", self.clip_norm, "above 0")
        _require(0.01 <= self.temperature <= 10, "train.temperature", self.temperature, "0.01 to 10")
        _require(
            self.precision in ("auto", "fp32", "bf16"), "train.precision", self.precision, "one of auto, fp32, bf16"
        )
        _require(self.compile in ("auto", "on", "off"), "train.compile", self.compile, "one of auto, on, off")
        for name in ("dropout", "word_dropout"):
            _require(0 <= getattr(self, name) < 1, f"train.{name}", getattr(self, name), "a share, 0 to below 1")
        _require(0 <= self.ema <= 0.25, "train.ema", self.ema, "a fraction of the steps, 0 (none) to 0.25")
        _require(
            0.001 <= self.evaluate_every <= 1,
            "train.evaluate_every",
            self.evaluate_every,
            "a fraction of the budget, 0.001 to 1",
        )
        _require(self.checkpoint_seconds > 0, "train.checkpoint_seconds", self.checkpoint_seconds, "above 0")
        _require(self.freeze in ("", "image", "text"), "train.freeze", self.freeze, "image, text, or empty for neither")
        _require(0 <= self.checkpoints <= 1000, "train.checkpoints", self.checkpoints, "0 to 1000")
        _require(0 <= self.seed < 2**63, "train.seed", self.seed, "0 to 2**63 - 1")


@dataclass(frozen=True, kw_only=True)
class JestConfig:
    """Which rows of a larger batch are trained on; see :mod:`coreclip.training.jest`.

    Attributes
    ----------
    keep : float
        Share of the rows that is trained on: the loader's batches hold ``data.batch_size / keep`` pairs. 1: all, no selection.
    chunks : int
        Rounds in which the rows of a batch are drawn, each given those before it.
    reference : str
        A finished RUN (or ``hf:FOLDER``, ``open_clip:FILE``) with the same tokenizer, or FEATURES of the data set: the model whose
        loss is what can be learned.
        E.g. ``--set jest.keep=0.5 --set jest.reference=proxy``.
    """

    keep: float = 1.0
    chunks: int = 4
    reference: str = ""

    def __post_init__(self) -> None:
        _require(0 < self.keep <= 1, "jest.keep", self.keep, "a share of each batch, above 0, at most 1")
        _require(1 <= self.chunks <= 256, "jest.chunks", self.chunks, "1 to 256")
        _require(
            self.keep == 1 or self.reference != "",
            "jest.reference",
            self.reference,
            f"with jest.keep = {self.keep} a finished RUN or FEATURES to compare with",
        )


@dataclass(frozen=True, kw_only=True)
class ReselectConfig:
    """When and how the pairs to train on are chosen anew by the model under way; see :mod:`coreclip.training.reselection`.

    Attributes
    ----------
    every : int
        Passes over the chosen pairs between two selections. 0: none. E.g. ``--set reselect.every=2``.
    method : str
        As ``coreclip select`` takes it, e.g. ``"semdedup(keep=0.9) | craig"``.
    fraction : float
        Share that is chosen of the pairs that are looked at.
    pool : int
        Pairs that are looked at, drawn anew each time; 0: all that the run was given.
    after : int
        Passes over all pairs before the first selection.
    """

    every: int = 0
    method: str = "craig"
    fraction: float = 0.3
    pool: int = 0
    after: int = 1

    def __post_init__(self) -> None:
        _require(0 <= self.every <= 1 << 20, "reselect.every", self.every, "passes, 0 (never) to 1,048,576")
        _require(0 < self.fraction <= 1, "reselect.fraction", self.fraction, "a share, above 0, at most 1")
        _require(self.pool == 0 or self.pool >= 2, "reselect.pool", self.pool, "2 pairs at least, or 0 for all")
        _require(0 <= self.after <= 1 << 20, "reselect.after", self.after, "passes, 0 to 1,048,576")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A teacher whose features are a second target; see :mod:`coreclip.training.distillation`.

    Attributes
    ----------
    features : str
        FEATURES of the data set, made by ``coreclip embed`` with the teacher. Empty: no teacher.
        E.g. ``--set distill.features=teacher-features``.
    captions : bool
        Whether the data set's own captions are the teacher: pairs are alike as the words of all their captions are. For pairs with
        several captions; e.g. ``--set distill.captions=true --set distill.weight=0.7``.
    temperature : float
        Of the softmax of the captions' cosines; a teacher's features have their own.
    weight : float
        Share of the teacher's part in the loss; the objective has the rest.
    """

    features: str = ""
    captions: bool = False
    temperature: float = 0.15
    weight: float = 0.5

    def __post_init__(self) -> None:
        _require(
            not (self.features and self.captions),
            "distill.captions",
            self.captions,
            "one teacher, not distill.features beside it",
        )
        _require(0.01 <= self.temperature <= 10, "distill.temperature", self.temperature, "0.01 to 10")
        _require(0 < self.weight <= 1, "distill.weight", self.weight, "a share of the loss, above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that a run depends on beside its data and its budget."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    jest: JestConfig = field(default_factory=JestConfig)
    reselect: ReselectConfig = field(default_factory=ReselectConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        _require(
            self.super_batch_size <= 1 << 20,
            "jest.keep",
            self.jest.keep,
            f"at most 1,048,576 pairs a batch, data.batch_size / jest.keep; they are {self.super_batch_size:,}",
        )
        _require(
            len(set(self.data.sizes)) <= 1 or self.model.image_tower == "cnn",
            "data.sizes",
            self.data.sizes,
            f"model.image_tower = {self.model.image_tower} has positions of one size; leave it out, or use model.image_tower=cnn",
        )
        if self.model.image_tower == "vit":
            _require(
                self.data.image_size % self.model.patch_size == 0,
                "model.patch_size", self.model.patch_size, f"a divisor of data.image_size = {self.data.image_size}",
            )  # fmt: skip
        if self.model.image_tower == "resnet":
            _require(
                self.data.image_size % 32 == 0, "data.image_size", self.data.image_size, "a multiple of 32 for a ResNet"
            )

    @property
    def super_batch_size(self) -> int:
        """Pairs that the loader delivers at a time; more than ``data.batch_size`` where rows are selected among them."""
        return max(self.data.batch_size, round(self.data.batch_size / self.jest.keep))


def load_config(
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    start: Config | None = None,
) -> Config:
    """Read a configuration.

    Parameters
    ----------
    path : path or None
        A TOML file with the sections ``data``, ``model``, ``train``, ``jest``, ``reselect``, ``distill``; None for the defaults.
    overrides : sequence of str
        ``"train.lr=1e-3"``; the later one wins.
    preset : str, optional
        One of :data:`coreclip.presets.PRESETS`; the file and the overrides change it.
    start : Config, optional
        Of the model that training starts from: its model and image size take the place of the defaults.

    Raises
    ------
    CoreclipError
        For a file that can't be read, an unknown section or key, a wrong type, a value out of range.
    """
    table: dict[str, Any] = {} if start is None else _shape_of(start)
    if preset is not None:
        table = _merged(table, preset_table(preset))
    if path is not None:
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise CoreclipError(f"configuration {path} can't be read: {error.strerror}; check the path") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CoreclipError(f"configuration {path} is not TOML: {error}; mend that place") from None
        table = _merged(table, given)
    for override in overrides:
        _apply_override(table, override)
    return config_from_table(table)


def _shape_of(config: Config) -> dict[str, Any]:
    table = config_to_table(config)
    return {"model": table["model"], "data": {"image_size": table["data"]["image_size"]}}


def _merged(table: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for section, values in given.items():
        old = merged.get(section)
        merged[section] = old | values if isinstance(old, dict) and isinstance(values, dict) else values
    return merged


def config_from_table(table: dict[str, Any]) -> Config:
    """Build a :class:`Config` from nested dictionaries, refusing what it does not know."""
    sections = {f.name: typing.get_type_hints(Config)[f.name] for f in dataclasses.fields(Config)}
    built: dict[str, Any] = {}
    for section, values in table.items():
        if section not in sections:
            raise CoreclipError(f"unknown section [{section}] in the configuration; known: {', '.join(sections)}")
        if not isinstance(values, dict):
            raise CoreclipError(f"{section} = {values!r} in the configuration: a section is a table; write [{section}]")
        built[section] = _build_section(section, sections[section], values)
    return Config(**built)


def config_to_table(config: Config) -> dict[str, dict[str, Any]]:
    """Return ``config`` as nested dictionaries of TOML's types."""
    return {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for section, values in dataclasses.asdict(config).items()
    }


def config_to_toml(config: Config) -> str:
    """Return ``config``, every value spelled out, as TOML that :func:`load_config` reads back equal."""
    lines = []
    for section, values in config_to_table(config).items():
        lines += [f"[{section}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return repr(value)


def _apply_override(table: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not key:
        raise CoreclipError(f"--set {override!r} is not of the form section.key=value; e.g. --set train.lr=1e-3")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word, e.g. model.image_tower=vit
    if not isinstance(table.setdefault(section, {}), dict):
        raise CoreclipError(f"{section} in the configuration is not a table; write [{section}]")
    table[section][key] = value


def _build_section(section: str, kind: type, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise CoreclipError(f"unknown key {section}.{key} in the configuration; known: {', '.join(hints)}")
        values = {**values, key: _coerce(f"{section}.{key}", value, hints[key])}
    return kind(**values)


def _coerce(name: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, types.GenericAlias):  # tuple[float, float]
        parts = typing.get_args(kind)
        if parts[-1:] == (Ellipsis,) and isinstance(value, (list, tuple)):  # tuple[int, ...]: of any length
            return tuple(_coerce(name, item, parts[0]) for item in value)
        if isinstance(value, (list, tuple)) and len(value) == len(parts):
            return tuple(_coerce(name, item, part) for item, part in zip(value, parts, strict=True))
        of = "numbers" if parts[-1:] == (Ellipsis,) else f"{len(parts)} numbers"
        raise CoreclipError(f"{name} = {value!r} must be a list of {of}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise CoreclipError(f"{name} = {value!r} must be of type {kind.__name__}; change it with --set {name}=VALUE")
    return value
