"""The model and the tokenizer that a run starts with."""

from dataclasses import asdict
from pathlib import Path

import torch

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, Tokenizer
from coreclip.training.model import Clip, fit_to_training, new_model
from coreclip.training.positions import with_image_size
from coreclip.training.store import load_run


def first_model(dataset: Dataset, config: Config, init_from: str | Path | None) -> tuple[Clip, Tokenizer]:
    """The model at step 0 and the tokenizer that is its own from then on."""
    if config.train.freeze and init_from is None:
        raise CoreclipError(
            f"train.freeze = {config.train.freeze!r} keeps a tower that was never trained; name a start by --init-from, or leave it out"
        )
    if init_from is None:
        tokenizer = dataset.tokenizer()
        return new_model(config, tokenizer), tokenizer
    model, tokenizer, other = load_run(init_from, torch.device("cpu"))
    for key, value in asdict(other.model).items():
        if getattr(config.model, key) != value:
            raise CoreclipError(
                f"{init_from} has model.{key} = {value!r}, the configuration asks for {getattr(config.model, key)!r}; a start keeps its "
                "model; leave [model] and --preset out"
            )
    if other.data.image_size != config.data.image_size:
        model = with_image_size(model, other, config.data.image_size)
    fit_to_training(model, config)
    return model, tokenizer
