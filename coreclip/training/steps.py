"""The parts of one training step: rows on the device, forward, update. The loop joins them; :func:`make_step` makes one callable
of them for whoever measures a step without training a run."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.heap import keep_freed_memory
from coreclip.pipeline import Augment, Batch, Dataset, Loader, Tokenizer, make_loader
from coreclip.training.compiling import compile_blocks, decide_compile
from coreclip.training.device import Fetched, check_threads, decoding_threads, resolve_device, send
from coreclip.training.distributed import ONE, Ranks
from coreclip.training.ema import WeightAverage
from coreclip.training.jest import make_selector, take_rows
from coreclip.training.loss import LEAST_ROWS, caption_numbers
from coreclip.training.model import END, Clip
from coreclip.training.muon import Muon, Optimiser, Together, is_hidden_matrix
from coreclip.training.objectives import Objective, make_objective
from coreclip.training.signals import SignalRecorder
from coreclip.training.starting import first_model
from coreclip.training.text_towers import caption_lengths
from coreclip.watch import NoWatch, Watch

# bf16 must win clearly: a choice that noise could turn would make two equal commands differ.
_LEAST_BF16_GAIN = 1.1
_LR_RATIO = "lr_ratio"  # of a group's rate to the schedule's


@dataclass
class Rows:
    """A batch on the device, without the pairs that do not count.

    Attributes
    ----------
    images : uint8 (b, 3, size, size)
    tokens : int64 (b, context)
    lengths : int64 (b,), on the CPU
        Tokens of each caption.
    weight : float32 (b,)
    labels : int64 (b,) or None
    index : int64 (b,), numpy
    share : float
        Of a whole batch, 0 to 1.
    broken : list of int
        Indices of the batch's pairs whose image did not decode.
    caption : int64 (b,), numpy, or None
        Which of each pair's captions the tokens are; None: the first.
    caption_number : int64 (b,), on the CPU, or None
        Equal for equal captions; None: to be read off the tokens.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    weight: Tensor
    labels: Tensor | None
    index: np.ndarray
    share: float
    broken: list[int]
    caption: np.ndarray | None = None
    caption_number: Tensor | None = None


@dataclass(frozen=True)
class MeasuredStep:
    """What :func:`make_step` returns.

    Attributes
    ----------
    step : callable
        ``step(batch)`` does all of a training step, under the watch's stages; nothing is written.
    transfer, compute : callable
        Its two parts: ``compute(transfer(batch))``. Only the second opens stages.
    loader : Loader
        Its batches.
    precision : {"fp32", "bf16"}
    compiled : bool
        Whether blocks of the model are compiled.
    device : torch.device
    """

    step: Callable[[Batch], None]
    transfer: Callable[[Batch], Rows]
    compute: Callable[[Rows], None]
    loader: Loader
    precision: str
    compiled: bool
    device: torch.device


def no_usable_batch() -> CoreclipError:
    """Return the error for a pass in which no batch can be trained on."""
    return CoreclipError(
        "no batch has two pairs with an image that decodes and a weight above 0, and a contrast needs two; "
        "look at the subset's weights, or run the same convert command again: it checks every file"
    )


def training_loader(
    dataset: Dataset,
    config: Config,
    subset: Any,
    tokenizer: Tokenizer,
    ranks: Ranks = ONE,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
) -> Loader:
    """Return the loader of a training run on a device, watched or not; with several processes, of this one's part of each batch.

    Raises
    ------
    CoreclipError
        For fewer than two pairs a process, a batch that the processes can't divide, or a bad subset.
    """
    n, size = dataset.n if subset is None else len(getattr(subset, "indices", subset)), ranks.size
    if n < LEAST_ROWS * size:
        where = f" on each of {size} processes" if size > 1 else ""
        raise CoreclipError(f"{n} pairs to train on; a contrast needs 2{where} at least; take a larger subset")
    if config.data.batch_size % size or config.data.batch_size < LEAST_ROWS * size:
        raise CoreclipError(
            f"data.batch_size = {config.data.batch_size} is not allowed with {size} processes: each has an equal part of it, 2 pairs "
            "at least; change it with --set data.batch_size=VALUE"
        )
    return make_loader(
        dataset,
        # Of other numbers of pairs, chosen later, another last batch would be lost; one of a single pair is passed over anyway.
        drop_last=not config.reselect.every and pairs_per_pass(n, config.super_batch_size, size) < n,
        batch_size=config.super_batch_size // size,
        rank=ranks.rank,
        world_size=size,
        image_size=config.data.image_size,
        train=True,
        crop_scale=config.data.crop_scale,
        augment=Augment(
            flip=config.data.flip, jitter=config.data.jitter, grey=config.data.grey, cutout=config.data.cutout
        ),
        order=config.data.order,
        subset=subset,
        draws=config.data.weights == "draws",
        workers=decoding_threads(config.data.workers, torch.device(device)),
        seed=config.train.seed,
        tokenizer=tokenizer,
        context=config.model.context,
        resident=config.data.resident,
        pin_memory=torch.device(device).type == "cuda",
        watch=watch,
    )


def pairs_per_pass(n: int, batch_size: int, processes: int = 1) -> int:
    """Return how many of ``n`` pairs a pass visits: a last batch of one is left out, it has nothing to be told from.

    So is, on several processes, one that does not have two pairs for each.
    """
    last = n % batch_size
    return n - last if n > batch_size and last < LEAST_ROWS * processes else n


def labels_of(dataset: Dataset) -> Tensor | None:
    """Return the data set's labels as int64 (n,), None where it has none."""
    return None if dataset.labels is None else torch.tensor(dataset.labels)


def make_optimiser(model: Clip, config: Config) -> Optimiser:
    """Return AdamW whose weight decay falls on matrices only: not on gains, biases, positions, temperature. With Muon the hidden ones are
    that one's, and lose as much to the decay."""
    c = config.train
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = {name: p for name, p in learned if c.optimiser == "muon" and is_hidden_matrix(name, p)}
    rest = [(name, p) for name, p in learned if name not in hidden]
    matrices = [p for name, p in rest if p.ndim >= 2 and not name.endswith("position")]
    others = [p for name, p in rest if p.ndim < 2 or name.endswith("position")]
    groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, fused=True)
    if not hidden:
        return adamw
    ratio = c.muon_lr / c.lr
    muon = Muon(
        [{"params": list(hidden.values()), _LR_RATIO: ratio}], lr=c.muon_lr, weight_decay=c.weight_decay / ratio
    )
    return Together([adamw, muon])


def to_device(batch: Batch, labels: Tensor | None, device: torch.device, batch_size: int, *, end: int = END) -> Rows:
    """Drop broken and weightless pairs, so that they take no part in the batch's statistics either, and move the rest.

    Fewer than two rows may be left: then there is nothing to be told from, and no step to take.
    """
    broken: list[int] = batch.index[~batch.valid & (batch.index >= 0)].tolist()  # -1 only fills a process's batch up
    keep = (batch.valid & (batch.weight > 0)).nonzero().squeeze(1)
    if len(keep) < len(batch.index):
        batch = replace(batch, **{name: value[keep.to(value.device)] for name, value in vars(batch).items()})
    return Rows(
        images=send(batch.images, device),
        tokens=send(batch.tokens, device),
        lengths=caption_lengths(batch.tokens, end),
        weight=send(batch.weight, device),
        labels=None if labels is None else send(labels[batch.index], device),
        index=batch.index.numpy(),
        share=len(keep) / batch_size,
        broken=broken,
        caption=batch.caption.numpy(),
        caption_number=caption_numbers(batch.tokens),
    )


def update(model: Clip, optimiser: Optimiser, *, clip_norm: float, rate: float, bf16: bool = False) -> Tensor:
    """Clip the gradient and take an optimiser step at a learning rate; returns the gradient's norm before, float32 ().

    With ``bf16`` what an optimiser multiplies, which only Muon does, is multiplied in bfloat16. The temperature stays within its bound:
    beyond it nothing would ever lead it back.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get(_LR_RATIO, 1.0)
    with torch.autocast(norm.device.type, torch.bfloat16, enabled=bf16):
        optimiser.step()
    model.limit_scale()
    return norm


def decide_precision(model: Clip, rows: Rows, asked: str, objective: Objective) -> dict[str, Any]:
    """Choose between fp32 and bf16 autocast by steps on copies of the model; returns the choice and the seconds of each."""
    if asked != "auto":
        return {"precision": asked}
    seconds = {"fp32": math.inf, "bf16": math.inf}
    for _ in range(3):  # the first one warms up; the least of three is least disturbed
        for name in seconds:
            trial = copy.deepcopy(model)
            begin = time.perf_counter()
            objective.forward(trial, rows, bf16=name == "bf16")[1]()
            trial.logit_scale.grad.item()  # type: ignore[union-attr]  # waits for a CUDA device
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    gain = seconds["fp32"] / seconds["bf16"]
    return {
        "precision": "bf16" if gain >= _LEAST_BF16_GAIN else "fp32",
        "precision_seconds_per_step": seconds,
    }


def decide_speed(
    model: Clip, rows: Rows, config: Config, seconds_left: Callable[[float], float], objective: Objective
) -> dict[str, Any]:
    """Measure what makes steps faster here and say what to use.

    Parameters
    ----------
    model : Clip
        Left as it is.
    rows : Rows
        A batch to measure with; no more of it than a step is trained on.
    config : Config
    seconds_left : callable
        Seconds of training that are left, given those that a step takes.
    objective : Objective
        Of this process alone.

    Returns
    -------
    dict
        As of :func:`decide_precision` and :func:`coreclip.training.compiling.decide_compile`.
    """
    if len(rows.index) > config.data.batch_size:
        rows = take_rows(rows, np.arange(config.data.batch_size), 1.0)
    precision = decide_precision(model, rows, config.train.precision, objective)
    trial = copy.deepcopy(model)

    def step() -> None:
        trial.zero_grad(set_to_none=True)
        objective.forward(trial, rows, bf16=precision["precision"] == "bf16")[1]()
        trial.logit_scale.grad.item()  # type: ignore[union-attr]  # waits for a CUDA device

    compiling = decide_compile(
        trial, step, asked=config.train.compile, device=rows.images.device, seconds_left=seconds_left
    )
    return precision | compiling


def make_step(
    dataset: Dataset,
    config: Config,
    *,
    subset: Any = None,
    init_from: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    watch: Watch | None = None,
    watch_loader: bool = False,
) -> MeasuredStep:
    """Return the step and the loader of ``train``, to be measured; no run is written.

    Parameters
    ----------
    dataset, config, subset, init_from, device
        As of :func:`coreclip.training.train`.
    threads : int, optional
        Of torch on the CPU, from now on; None leaves torch's own number.
    watch : Watch, optional
        Is told the stages transfer, (with jest) select, forward, backward, optimiser and metrics; it ends the steps itself.
    watch_loader : bool
        Whether it is told the stages of the loader too, in whose threads they are (see :func:`coreclip.pipeline.make_loader`).

    Raises
    ------
    CoreclipError
        As :func:`coreclip.training.train`.

    Notes
    -----
    On the CPU the process keeps freed memory from then on, see :mod:`coreclip.heap`.
    """
    target = resolve_device(device)
    if target.type == "cpu":
        keep_freed_memory()
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    watched = NoWatch() if watch is None else watch
    model, tokenizer = first_model(dataset, config, init_from)
    loader = training_loader(dataset, config, subset, tokenizer, device=target, watch=watch if watch_loader else None)
    if config.train.freeze:
        model.freeze(config.train.freeze)
    model.to(target).train()
    optimiser, labels = make_optimiser(model, config), labels_of(dataset)
    average = WeightAverage(model, config.train.ema) if config.train.ema else None
    objective = make_objective(dataset, config, tokenizer)
    jest = make_selector(dataset, config, tokenizer, target)
    # Never written, since no pass ends.
    signals = SignalRecorder(Path("signals"), dataset.n) if config.train.signals else None
    batches = (to_device(batch, labels, target, config.data.batch_size, end=model.end) for batch in loader)
    first = next((rows for rows in batches if len(rows.index) >= LEAST_ROWS), None)
    if first is None:
        raise no_usable_batch()
    decisions = decide_speed(model, first, config, lambda seconds: 0.0, objective)
    precision = decisions["precision"]
    if decisions["compile"]:
        compile_blocks(model)

    def transfer(batch: Batch) -> Rows:
        return to_device(batch, labels, target, config.data.batch_size, end=model.end)

    def compute(rows: Rows) -> None:
        if len(rows.index) < LEAST_ROWS:
            return
        if jest is not None:
            with watched.stage("select"):
                wanted = jest.wanted(round(rows.share * config.data.batch_size))
                rows = jest.choose(model, rows, wanted, step=0, bf16=precision == "bf16")
        with watched.stage("forward"):
            result, backward = objective.forward(model, rows, bf16=precision == "bf16")
            figures = Fetched(result.loss)
        with watched.stage("metrics"):
            found = None if signals is None else ONE.signals(rows.index, result)
        with watched.stage("backward"):
            optimiser.zero_grad(set_to_none=True)
            backward()
        figures.read()  # waits for a device where train does
        with watched.stage("metrics"):
            if signals is not None and found is not None:
                signals.record(*found)
        with watched.stage("optimiser"):
            update(model, optimiser, clip_norm=config.train.clip_norm, rate=config.train.lr, bf16=precision == "bf16")
            if average is not None:
                average.update(1000)  # any step: each costs the same

    def step(batch: Batch) -> None:
        with watched.stage("transfer"):
            rows = transfer(batch)
        compute(rows)

    return MeasuredStep(
        step=step,
        transfer=transfer,
        compute=compute,
        loader=loader,
        precision=precision,
        compiled=decisions["compile"],
        device=target,
    )
