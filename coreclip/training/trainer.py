"""Train a compact CLIP on a data set, or on a weighted subset of it: one function, read from top to bottom.

After big_vision's ``train.py`` in form. The budget is time, samples or epochs; a run that was interrupted goes on where its last
checkpoint was, bit for bit where the budget is samples or epochs. Several processes
(``torchrun``) go through it side by side; :mod:`coreclip.training.distributed` has what they exchange.
"""

import collections
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from coreclip.config import Config
from coreclip.files import check_free_disk, lock, write_json
from coreclip.heap import keep_freed_memory
from coreclip.pipeline import Batch, Dataset
from coreclip.training.ahead import AheadOnDevice
from coreclip.training.asked import all_asked
from coreclip.training.compiling import compile_blocks
from coreclip.training.device import Fetched, deterministic_kernels, resolve_device, torch_threads
from coreclip.training.distributed import Ranks, check_processes, cut, processes
from coreclip.training.ema import WeightAverage, averaged
from coreclip.training.finite import LastGradient, check_weights, refuse_not_finite
from coreclip.training.interrupts import interrupts
from coreclip.training.jest import JestSelector, make_selector
from coreclip.training.logs import MetricsLog, summary_writer
from coreclip.training.loss import LEAST_ROWS
from coreclip.training.model import Clip
from coreclip.training.objectives import make_objective
from coreclip.training.panel import make_display
from coreclip.training.place import Place, restore, state_of
from coreclip.training.reselection import Reselector, make_reselector
from coreclip.training.resolution import GrowingImages
from coreclip.training.schedule import Budget, learning_rate, parts_passed
from coreclip.training.signals import SignalRecorder
from coreclip.training.starting import first_model
from coreclip.training.steps import (
    decide_speed,
    labels_of,
    make_optimiser,
    no_usable_batch,
    pairs_per_pass,
    to_device,
    training_loader,
    update,
)
from coreclip.training.store import (
    disk_needed,
    drop_later,
    keep_weights,
    load_checkpoint,
    open_run,
    save_checkpoint,
    save_weights,
)
from coreclip.training.validation import Validator, check_validation
from coreclip.watch import NoWatch, Watch

_METRICS_SECONDS = 1.0
_LEAST_TOLD_FLOOR = 0.05
_LOSS_WINDOW = 32  # steps over which the reported loss is averaged


@dataclass(frozen=True)
class TrainReport:
    """What :func:`train` returns.

    Attributes
    ----------
    steps, samples_seen : int
        Of the samples some may have had an image that does not decode; they took no part in their steps.
    seconds : float
        Wall time, of all sittings of an interrupted run together.
    samples_per_second : float
        ``samples_seen / seconds``, so with set-up and waiting.
    loss : float
        Mean over the last 32 steps.
    scored : int
        Pairs that ``[jest]`` chose among, over all steps; 0 without it. ``samples_seen`` counts those that were trained on.
    reselections : int
    reselection_seconds : float
        Choices of new pairs by ``[reselect]``, and what they took of ``seconds``.
    evaluations : int
    evaluation_seconds : float
        On the data set for validation, and what they took of ``seconds``.
    best_step : int or None
        Of the evaluation with the highest mean recall, the first of several; None without any.
    """

    steps: int
    samples_seen: int
    seconds: float
    samples_per_second: float
    loss: float
    scored: int = 0
    reselections: int = 0
    reselection_seconds: float = 0.0
    evaluations: int = 0
    evaluation_seconds: float = 0.0
    best_step: int | None = None


def train(
    dataset: Dataset,
    run: str | Path,
    *,
    config: Config | None = None,
    subset: Any = None,
    minutes: float | None = None,
    samples: int | None = None,
    epochs: float | None = None,
    device: str = "cpu",
    threads: int | None = None,
    watch: Watch | None = None,
    init_from: str | Path | None = None,
    started: float | None = None,
    validation: Dataset | None = None,
    tensorboard: bool = False,
    panel: bool | None = None,
    ranks: Ranks | None = None,
) -> TrainReport:
    """Train a model and write it to ``run``.

    The same call on an unfinished run goes on with it, on a finished one it returns the stored report.

    Parameters
    ----------
    dataset : Dataset
    run : path
        Output folder.
    config : Config, optional
    subset : int array (k,) or object with ``indices`` and ``weights``, optional
        What to train on; None for all pairs.
    minutes, samples, epochs : number, optional
        The budget, exactly one of them. Minutes are wall time from ``started`` to the end of the call; samples and epochs count
        the pairs of the batches that are trained on.
    device : {"cpu", "cuda", "cuda:N", "auto"}
    threads : int, optional
        Of torch on the CPU; None leaves torch's own number. The bits of the result depend on it.
    watch : Watch, optional
        Is told the stages of each step: wait, transfer, (with jest) select, forward, backward, optimiser, metrics, logging.
    init_from : path, optional
        A finished run, or a checkpoint of another tool, whose weights and tokenizer are the start. The configuration's model must
        be its own (:func:`coreclip.training.config_of`); with another image size the positions are interpolated.
    started : float, optional
        ``time.monotonic()`` at the start of the command; None for now.
    validation : Dataset, optional
        Held-out pairs on which retrieval is measured at the start and after each ``train.evaluate_every`` of the budget.
    tensorboard : bool
        Whether the numbers of ``metrics.jsonl`` also go to ``RUN/tensorboard``.
    panel : bool, optional
        Whether a panel shows the run where stderr is a terminal; None shows it there.
    ranks : Ranks, optional
        The processes that share the run, which each make this call; the first one writes it. None: those that ``torchrun`` has
        started, else this one alone.

    Returns
    -------
    TrainReport

    Raises
    ------
    CoreclipError
        For a bad budget, device, subset or run folder, too little free disk, another run's settings, a loss or gradient that is not
        finite, TensorBoard where it is not installed, or a process of several that has ended.

    Notes
    -----
    On the CPU the process keeps freed memory from then on, see :mod:`coreclip.heap`.
    """
    started = time.monotonic() if started is None else started
    config = Config() if config is None else config
    budget = Budget(minutes=minutes, samples=samples, epochs=epochs)
    watch = NoWatch() if watch is None else watch
    run = Path(run)
    with contextlib.ExitStack() as stack:
        if ranks is None:
            ranks = stack.enter_context(processes(device))
        target_device = resolve_device(device) if ranks.device is None else ranks.device
        if ranks.is_first:
            stack.enter_context(lock(run))
        if target_device.type == "cpu":
            keep_freed_memory()
        stack.enter_context(torch_threads(threads))
        stack.enter_context(deterministic_kernels(config.train.deterministic))
        stack.enter_context(torch.random.fork_rng(devices=[target_device] if target_device.type == "cuda" else []))

        # The run: what is asked for, what is there already.
        model, tokenizer = first_model(dataset, config, init_from)
        check_processes(ranks, config)
        pairs = training_loader(dataset, config, subset, tokenizer, ranks, target_device)
        objective = make_objective(dataset, config, tokenizer, ranks)
        jest = make_selector(dataset, config, tokenizer, target_device)
        reselector = make_reselector(run, dataset, config, tokenizer, subset, target_device)
        if validation is not None:
            check_validation(validation, dataset)
        if tensorboard:
            summary_writer()  # a missing package is told of before there is a run
        total = budget.total_samples(pairs_per_pass(pairs.n_samples, config.super_batch_size, ranks.size))
        if ranks.is_first and not (run / "checkpoint.pt").exists():
            check_free_disk(run, disk_needed(model, config, dataset.n, passes=(total or 0) / pairs.n_samples))
        asked = all_asked(dataset, config, budget, subset, init_from, jest, objective)
        record = ranks.once(lambda: open_run(run, asked, config, tokenizer))
        if record["finished"]:
            return TrainReport(**record["report"])
        labels = labels_of(dataset)
        if config.train.freeze:
            model.freeze(config.train.freeze)
        model.to(target_device).train()
        optimiser = make_optimiser(model, config)
        signals = SignalRecorder(run / "signals", dataset.n) if config.train.signals and ranks.is_first else None
        average = WeightAverage(model, config.train.ema) if config.train.ema else None
        validator = None if validation is None else Validator(validation, config, tokenizer, target_device)
        usable_seconds = budget.usable_seconds()
        state = ranks.once(lambda: load_checkpoint(run))
        place = Place()
        if state is not None:
            place = restore(state, model, optimiser, pairs, signals, average, reselector)
        if ranks.is_first:
            drop_later(run, place.step if state is not None else -1)

        # The loop.
        clock = _Clock(started - place.seconds)
        losses = collections.deque(place.losses, maxlen=_LOSS_WINDOW)
        saved_at = logged_at = ranks.first(clock.seconds())
        logged_samples = place.samples_seen
        step_seconds = cycle_seconds = wait_seconds = 0.0
        stop = stack.enter_context(interrupts(second=ranks.size == 1))
        display = make_display(
            total=total,
            usable_seconds=usable_seconds,
            done=place.samples_seen,
            seconds=clock.seconds(),
            panel=panel,
            quiet=not ranks.is_first,
        )
        log = stack.enter_context(
            MetricsLog(run, place.step, display, tensorboard=tensorboard, quiet=not ranks.is_first)
        )
        if validator is not None and not place.evaluations:
            place = _evaluate(ranks, validator, model, average, place, log)
        end_seconds = _end_seconds(usable_seconds, place)
        growth = GrowingImages(
            pairs,
            config.data.sizes,
            delivered=place.delivered,
            count=lambda batch: _wanted(len(batch.index), jest),
            used=lambda delivered: clock.seconds() / end_seconds if total is None else delivered / total,
        )
        loader = AheadOnDevice(pairs, target_device, through=growth, endless=reselector is None)
        if not place.finished:
            _reselect(reselector, model, loader, growth, place, end_seconds - clock.seconds(), log)
        is_compiled, last = False, LastGradient()
        ready = clock.seconds()
        for batch in watch.iterate("wait", () if place.finished else _batches(loader)):
            begin, ready, delivered = ranks.begin_step(clock.seconds(), ready, batch.index)  # pairs, of each process
            wait_seconds += begin - ready
            wanted = _wanted(sum(delivered), jest)
            place.delivered += wanted
            if total is not None and place.samples_seen + wanted > total:
                wanted = max(total - place.samples_seen, LEAST_ROWS * ranks.size)
                if jest is None:
                    batch = _first_rows(batch, cut(delivered, wanted, LEAST_ROWS)[ranks.rank])
            if total is None:
                fraction = (begin + step_seconds / 2) / end_seconds
            else:
                fraction = (place.samples_seen + wanted / 2) / total
            with watch.stage("transfer"):
                rows = to_device(batch, labels, target_device, config.data.batch_size // ranks.size, end=model.end)
            if not place.step and fraction >= 1:
                _report_no_time(begin)
            if rows.broken and not place.broken:
                _report_broken(rows.broken)
            least, broken = ranks.least_and_broken(len(rows.index), len(rows.broken))
            place.broken += broken
            if least < LEAST_ROWS:
                place.skipped += 1
                if place.skipped >= 2 * len(loader):  # so a whole pass at least
                    raise no_usable_batch()
                _end_batch(place, loader, signals)
                _reselect(reselector, model, loader, growth, place, end_seconds - clock.seconds(), log)
                ready = clock.seconds()
                continue
            place.skipped = 0
            if "precision" not in record["decisions"]:
                display.say("measuring what is faster")
                left = _seconds_left(total, usable_seconds - clock.seconds(), config.data.batch_size)
                record["decisions"] = ranks.first(decide_speed(model, rows, config, left, objective.alone()))
                display.say("")
                if ranks.is_first:
                    write_json(run / "run.json", record)
            if record["decisions"].get("compile") and not is_compiled:
                compile_blocks(model)
                is_compiled = True
            bf16 = record["decisions"]["precision"] == "bf16"
            ranks.reseed(config.train.seed, place.step)
            if jest is not None:
                last.check(ranks)
                with watch.stage("select"):
                    place.scored += len(rows.index)
                    rows = jest.choose(model, rows, wanted, step=place.step, bf16=bf16)
            with watch.stage("forward"):
                result, backward = objective.forward(model, rows, bf16=bf16, step=place.step)
                figures = Fetched(torch.stack([result.loss.detach(), result.floor]))
            with watch.stage("metrics"):
                found = ranks.signals(rows.index, result) if config.train.signals else None
            with watch.stage("backward"):
                optimiser.zero_grad(set_to_none=True)
                backward()
            # A device has the backward pass to do while the host looks at what came out of the forward pass.
            loss, floor = figures.read().tolist()
            last.check(ranks)
            if not math.isfinite(loss):
                refuse_not_finite("the loss", loss, place.step, ranks.indices(rows.index))
            if place.step == 0 and ranks.is_first and floor > _LEAST_TOLD_FLOOR:
                _report_floor(floor)
            with watch.stage("metrics"):
                if signals is not None and found is not None:
                    signals.record(*found)
            with watch.stage("optimiser"):
                rate = learning_rate(config.train.lr, config.train.warmup, step=place.step, fraction=fraction)
                norm = update(model, optimiser, clip_norm=config.train.clip_norm, rate=rate, bf16=bf16)
                last = LastGradient(Fetched(norm), place.step, rows.index)
                if average is not None:
                    average.update(place.step + 1)

            place.step += 1
            place.samples_seen += wanted
            losses.append(loss)
            _end_batch(place, loader, signals)
            now, stopped = ranks.end_step(clock.seconds(), stop.is_set())
            step_seconds = (step_seconds + now - begin) / 2
            cycle_seconds = (cycle_seconds + now - ready) / 2
            finished = place.samples_seen >= total if total is not None else now + cycle_seconds >= end_seconds
            used = place.samples_seen / total if total is not None else now / end_seconds
            interrupted = stopped and not finished
            if not (finished or interrupted):
                if reselector is not None and place.step_in_pass == 0:
                    last.check(ranks)
                _reselect(reselector, model, loader, growth, place, end_seconds - now, log)
            if validator is not None and (finished or parts_passed(used, config.train.evaluate_every) > place.parts):
                place.parts = parts_passed(used, config.train.evaluate_every)
                last.check(ranks)
                place = _evaluate(ranks, validator, model, average, place, log)
                end_seconds = _end_seconds(usable_seconds, place)
            with watch.stage("logging"):
                display.advance(wanted, loss)
                if finished or place.step == 1 or now - logged_at >= _METRICS_SECONDS:
                    line = {
                        "step": place.step,
                        "samples_seen": place.samples_seen,
                        "seconds": now,
                        "loss": loss,
                        "floor": floor,
                        "lr": rate,
                        "logit_scale": model.logit_scale.item(),
                        "samples_per_second": (place.samples_seen - logged_samples) / max(now - logged_at, 1e-9),
                        "wait_share": min(wait_seconds / max(now - logged_at, 1e-9), 1.0),
                        "broken": place.broken,
                    }
                    if jest is not None:
                        line["scored"] = place.scored
                    if config.data.sizes:
                        line["image_size"] = batch.images.shape[-1]
                    if model.logit_bias is not None:
                        line["logit_bias"] = model.logit_bias.item()
                    log.write(line)
                    logged_at, logged_samples, wait_seconds = now, place.samples_seen, 0.0
                due = math.floor(config.train.checkpoints * min(used, 1.0) + 0.5)
                saves = interrupted or (not finished and now - saved_at >= config.train.checkpoint_seconds)
                if saves or finished or due > place.kept:
                    last.check(ranks)  # no weights are written that a bad gradient has spoiled
                if due > place.kept:
                    if ranks.is_first:
                        keep_weights(run, model, step=place.step, learning_rate=rate)
                    place.kept = due
                if saves:
                    place.seconds, place.losses = clock.seconds(), list(losses)
                    log.flush()
                    if ranks.is_first:
                        save_checkpoint(run, state_of(place, model, optimiser, loader, signals, average))
                    saved_at = ranks.first(clock.seconds())  # the others wait: torchrun ends all when one has ended
            watch.step(wanted)
            if interrupted:
                raise KeyboardInterrupt
            if finished:
                break
            ready = clock.seconds()

        # The end: the state, the weights, the report.
        if signals is not None:
            signals.end_pass()
        place.seconds, place.losses, place.finished = clock.seconds(), list(losses), True
        log.flush()
        if ranks.is_first:
            save_checkpoint(run, state_of(place, model, optimiser, loader, signals, average))
        stack.enter_context(averaged(average))
        check_weights(model)
        if ranks.is_first:
            save_weights(run / "model.safetensors", model)
        seconds = clock.seconds()
        report = TrainReport(
            steps=place.step,
            samples_seen=place.samples_seen,
            seconds=seconds,
            samples_per_second=place.samples_seen / seconds,
            loss=sum(losses) / len(losses),
            scored=place.scored,
            reselections=place.reselections,
            reselection_seconds=place.reselection_seconds,
            evaluations=place.evaluations,
            evaluation_seconds=place.evaluation_seconds,
            best_step=place.best_step,
        )
        if ranks.is_first:
            write_json(
                run / "run.json",
                record | {"finished": True, "report": asdict(report), "logit_scale": model.logit_scale.item()},
            )
        return report


def _seconds_left(total: int | None, seconds: float, batch_size: int) -> Callable[[float], float]:
    """Return the seconds of a budget of ``total`` samples, or of ``seconds``, given those of a step."""
    return lambda step_seconds: seconds if total is None else step_seconds * total / batch_size


class _Clock:
    def __init__(self, zero: float) -> None:
        self._zero = zero

    def seconds(self) -> float:
        return time.monotonic() - self._zero


def _batches(loader: AheadOnDevice) -> Iterator[Batch]:
    while True:  # where pairs are chosen anew each pass is an iteration of its own
        yield from loader


def _wanted(delivered: int, jest: JestSelector | None) -> int:
    """Return how many of the pairs of a batch are to be trained on."""
    return delivered if jest is None else jest.wanted(delivered)


def _end_batch(place: Place, loader: AheadOnDevice, signals: SignalRecorder | None) -> None:
    """Count a batch, and end the pass with its last one."""
    place.step_in_pass += 1
    if place.step_in_pass >= len(loader):  # with other processes than before a pass may have fewer batches
        place.step_in_pass = 0
        place.passes += 1
        if signals is not None:
            signals.end_pass()


def _end_seconds(usable_seconds: float, place: Place) -> float:
    """Return when the last step should end: what an evaluation takes is kept back for the one that follows it."""
    return max(usable_seconds - place.last_evaluation_seconds, 0.5 * usable_seconds)


def _evaluate(
    ranks: Ranks,
    validator: Validator,
    model: Clip,
    average: WeightAverage | None,
    place: Place,
    log: MetricsLog,
) -> Place:
    """Measure the model, or its average, in the first process, and note the result in the place that is returned to all."""
    if not ranks.is_first:
        return ranks.first(place)
    log.display.say("evaluating")
    with averaged(average):
        result = validator.measure(model)
    place.evaluations += 1
    place.evaluation_seconds += result["seconds"]
    place.last_evaluation_seconds = result["seconds"]
    if result["mean_recall"] > place.best_recall:
        place.best_recall, place.best_step = result["mean_recall"], place.step
    line = {
        "step": place.step,
        "samples_seen": place.samples_seen,
        "evaluation": result | {"best_step": place.best_step},
    }
    log.write(line)
    log.display.say("")
    return ranks.first(place)


def _reselect(
    reselector: Reselector | None,
    model: Clip,
    loader: AheadOnDevice,
    growth: GrowingImages,
    place: Place,
    seconds_left: float,
    log: MetricsLog,
) -> None:
    """Choose the pairs to train on anew where a pass is about to begin, it is due, and time is left to train on them."""
    if (
        reselector is None
        or place.step_in_pass
        or place.selected == place.passes
        or not reselector.is_due(place.passes)
    ):
        return
    if 2 * place.reselection_seconds > seconds_left * max(place.reselections, 1):
        return
    begin = time.monotonic()
    log.display.say("selecting")
    chosen = reselector.choose(model, place.passes, growth.size_after(place.delivered))
    loader.set_subset(chosen)
    seconds = time.monotonic() - begin
    place.selected = place.passes
    place.reselections += 1
    place.reselection_seconds += seconds
    note = {"passes": place.passes, "pool": chosen.parameters["pool"], "k": chosen.k, "seconds": seconds}
    if chosen.objective is not None:
        note["objective"] = chosen.objective
    line = {"step": place.step, "samples_seen": place.samples_seen, "reselection": note}
    log.write(line)
    log.display.say("")


def _first_rows(batch: Batch, n: int) -> Batch:
    return replace(batch, **{name: value[:n] for name, value in vars(batch).items()})


def _report_no_time(seconds: float) -> None:
    print(
        f"coreclip: the budget was used up by the start, which took {seconds:.1f} s: the model is left as it began; give more --minutes",
        file=sys.stderr,
    )


def _report_floor(floor: float) -> None:
    print(
        f"coreclip: the loss cannot fall below about {floor:.2f} on these batches: captions or classes repeat, and equal pairs share "
        'their target (metrics.jsonl has each batch\'s "floor")',
        file=sys.stderr,
    )


def _report_broken(indices: list[int]) -> None:
    shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    print(
        f"coreclip: the images of the pairs {shown} do not decode and are left out; the data set is damaged: convert it again "
        '(metrics.jsonl counts them as "broken")',
        file=sys.stderr,
    )
