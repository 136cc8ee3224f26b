"""What a RUN holds, and how it is written and read: every file whole or absent, and none of them a pickle that could run code.

``config.toml`` (resolved), ``run.json`` (what the run was asked for, what it decided, what came of it), ``metrics.jsonl``,
``tokenizer.json``, ``checkpoint.pt`` (weights, optimiser, place in the data; for going on), ``checkpoints/STEP.safetensors``
(weights on the way; kept), ``model.safetensors`` (weights; at the end), ``signals/``.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from coreclip.config import Config, config_to_toml, load_config
from coreclip.errors import CoreclipError
from coreclip.files import atomic_path, read_json, remove, write_json, write_text
from coreclip.pipeline import Tokenizer
from coreclip.training.model import Clip, new_model
from coreclip.training.pretrained import is_pretrained, load_pretrained, pretrained_config, pretrained_weights
from coreclip.training.signals import SIGNAL_BYTES
from coreclip.training.torchscript_tensors import UNREADABLE

FORMAT_VERSION = 1
_NOTE = "coreclip"  # the metadata's name


def open_run(run: Path, asked: dict[str, Any], config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Begin a run or go on with it; return its record, the content of ``run.json``.

    Parameters
    ----------
    run : path
    asked : dict
        All that decides the result: data set, configuration, budget, subset. JSON values.
    config : Config
    tokenizer : Tokenizer
        The model's.

    Raises
    ------
    CoreclipError
        Where the folder holds something else, or a run that was asked for something else.
    """
    if (run / "run.json").exists():
        record = read_record(run)
        # A run that has not come to its first checkpoint has nothing to lose: it may be asked for something else.
        if record["finished"] or (run / "checkpoint.pt").exists():
            _refuse_other(run, record.get("asked", {}), asked)
        if record.get("asked") == asked:
            return record
    elif run.exists() and (not run.is_dir() or any(not _is_first_file(path) for path in run.iterdir())):
        raise CoreclipError(
            f"{run} exists and is no run of coreclip; a run needs a folder of its own; name another one"
        )
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "config.toml", config_to_toml(config))
    tokenizer.save(run / "tokenizer.json")
    record = {"format_version": FORMAT_VERSION, "asked": asked, "decisions": {}, "finished": False}
    write_json(run / "run.json", record)
    return record


def _is_first_file(path: Path) -> bool:
    """Whether a run writes this before its record; a run that was killed between the two is begun again."""
    return path.name in ("config.toml", "tokenizer.json") or path.name.startswith(".")


def read_record(run: Path) -> dict[str, Any]:
    """Return the content of ``run.json``, refusing a folder without one and a newer format."""
    if is_pretrained(run):
        raise CoreclipError(
            f"{run} is a checkpoint of another tool: it has neither signals nor weights on its way; name a run made by train"
        )
    if not (run / "run.json").is_file():
        raise CoreclipError(f"no run at {run}: it has no run.json; check the path, or make one with train")
    record = read_json(run / "run.json", "run record")
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise CoreclipError(
            f"run {run} has format version {version!r}; this coreclip reads {FORMAT_VERSION}; train it again or change the version"
        )
    return record


def _refuse_other(run: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    stored, asked = _flat(stored), _flat(asked)
    differing = [key for key in sorted(stored | asked) if stored.get(key) != asked.get(key)]
    if differing:
        key = differing[0]
        more = f" (and {len(differing) - 1} more differences)" if len(differing) > 1 else ""
        raise CoreclipError(
            f"{run} holds a run with {key} = {stored.get(key)!r}, now {asked.get(key)!r} is asked for{more}; "
            "a run is continued with its own settings only; name another folder"
        )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def disk_needed(model: Clip, config: Config, n: int, *, passes: float) -> int:
    """Return how many bytes a run writes at most: what it ends with, and a checkpoint beside the one that it replaces.

    Parameters
    ----------
    model : Clip
    config : Config
    n : int
        Pairs of the data set.
    passes : float
        Over the pairs; 0 where a budget of minutes does not say how many.
    """
    c = config.train
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    signals = SIGNAL_BYTES * n if c.signals else 0
    checkpoint = (4 if c.ema else 3) * weights + signals  # the weights, the optimiser's two moments, the average
    return 2 * checkpoint + (1 + c.checkpoints) * weights + math.ceil(passes) * signals


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write ``checkpoint.pt`` atomically."""
    with atomic_path(run / "checkpoint.pt") as temporary:
        torch.save(state, temporary)


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """Return the state in ``checkpoint.pt``, None where there is none yet."""
    path = run / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or ["it ends early"])[0][:80]
        raise CoreclipError(f"{path} is damaged ({reason}); remove the folder {run} and train again") from None


def save_weights(path: Path, model: Clip, note: dict[str, Any] | None = None) -> None:
    """Write the model's tensors as safetensors, atomically; a note goes along as JSON."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # One entry: safetensors writes several in any order, and equal runs must leave equal bytes.
    metadata = None if note is None else {_NOTE: json.dumps(note, sort_keys=True)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_weights(run: Path, model: Clip) -> None:
    """Fill ``model`` from ``RUN/model.safetensors``.

    Raises
    ------
    CoreclipError
        Where the file is missing, damaged, or of another model.
    """
    path = run / "model.safetensors"
    if not path.is_file():
        raise CoreclipError(
            f"run {run} is not finished: it has no model.safetensors; run its train command again, it goes on"
        )
    _fill(path, run, model)


def _fill(path: Path, run: Path, model: Clip) -> None:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CoreclipError(f"{path} is damaged ({error}); train again, or copy the file anew") from None
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CoreclipError(f"{path} holds weights that are not finite; train again with a lower train.lr")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CoreclipError(
            f"{path} does not fit {run / 'config.toml'} ({reason}); restore the run's own files"
        ) from None


@dataclass(frozen=True)
class KeptWeights:
    """One file of ``RUN/checkpoints``: the weights after ``step`` steps, the last of which was taken at ``learning_rate``."""

    path: Path
    step: int
    learning_rate: float


def keep_weights(run: Path, model: Clip, *, step: int, learning_rate: float) -> None:
    """Write ``RUN/checkpoints/STEP.safetensors``, atomically, with the step and its learning rate as metadata."""
    path = run / "checkpoints" / f"{step:08d}.safetensors"
    save_weights(path, model, {"step": step, "learning_rate": learning_rate})


def drop_later(run: Path, step: int) -> None:
    """Remove what was written of the steps past ``step``: they are done again. -1: of all, where no checkpoint is left.

    What a sitting was writing when it was killed goes too.
    """
    for half in (*run.glob(".*.tmp"), *run.glob("*/.*.tmp")):
        remove(half)
    _cut_metrics(run / "metrics.jsonl", step)
    _drop_weights(run, step)
    if step < 0:
        for name in ("signals", "subsets", "tensorboard"):
            remove(run / name)


def _drop_weights(run: Path, step: int) -> None:
    for path in (run / "checkpoints").glob("*.safetensors"):
        if path.stem.isdecimal() and int(path.stem) > step:
            path.unlink()


def kept_weights(run: str | Path) -> list[KeptWeights]:
    """Return the weights that a finished run has kept, in order of their steps.

    Raises
    ------
    CoreclipError
        For a run that is missing or unfinished, one that kept none, or a damaged file.
    """
    run = Path(run)
    if not read_record(run)["finished"]:
        raise CoreclipError(f"run {run} is not finished; run its train command again, it goes on")
    paths = (run / "checkpoints").glob("*.safetensors")
    found = [_kept(path) for path in sorted(path for path in paths if path.stem.isdecimal())]
    if not found:
        raise CoreclipError(
            f"run {run} has no checkpoints/*.safetensors, which are needed here; train with --set train.checkpoints=5"
        )
    return found


def _kept(path: Path) -> KeptWeights:
    try:
        with safe_open(path, "pt") as file:
            note = json.loads(file.metadata()[_NOTE])
        return KeptWeights(path, int(note["step"]), float(note["learning_rate"]))
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise CoreclipError(f"{path} is damaged or no checkpoint of a run ({error}); train again") from None


def load_kept(run: str | Path, device: torch.device) -> tuple[list[tuple[KeptWeights, Clip]], Tokenizer, Config]:
    """Return a finished run's kept models (in evaluation mode, on ``device``) in order, its tokenizer and its configuration."""
    run = Path(run)
    kept = kept_weights(run)
    config, tokenizer = load_config(run / "config.toml"), Tokenizer.load(run / "tokenizer.json")
    models = []
    for one in kept:
        model = new_model(config, tokenizer)
        _fill(one.path, run, model)
        models.append((one, model.to(device).eval().requires_grad_(False)))
    return models, tokenizer, config


def load_run(run: str | Path, device: torch.device) -> tuple[Clip, Tokenizer, Config]:
    """Return the model of a finished run or of another tool's checkpoint (:mod:`coreclip.training.pretrained`).

    It is in evaluation mode, on ``device``; its tokenizer and its configuration come with it.
    """
    if is_pretrained(run):
        model, tokenizer, config = load_pretrained(run)
        return model.to(device), tokenizer, config
    run = Path(run)
    read_record(run)
    config = load_config(run / "config.toml")
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    model = new_model(config, tokenizer)
    load_weights(run, model)
    return model.to(device).eval(), tokenizer, config


def weights_file(run: str | Path) -> Path:
    """Return the file with the weights of a run or of another tool's checkpoint."""
    return pretrained_weights(run) if is_pretrained(run) else Path(run) / "model.safetensors"


def config_of(run: str | Path) -> Config:
    """Return the configuration of a run; of another tool's checkpoint its model and image size, with defaults beside them."""
    if is_pretrained(run):
        return pretrained_config(run)
    read_record(Path(run))
    return load_config(Path(run) / "config.toml")


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of ``metrics.jsonl`` past ``step``; a half-written last line goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break
    write_text(path, "".join(line + "\n" for line in kept))
