"""How well the model under way retrieves on held-out pairs, measured between two steps.

The ranks, the groups of what is equal and the recalls are :mod:`coreclip.training.ranking`'s; the images are decoded once and the
texts encoded as tokens once, so that an evaluation costs the two towers' passes alone. Left out: classification, and early stopping.
"""

import time

import torch
from torch import Tensor

from coreclip.config import Config
from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset, Tokenizer, make_loader
from coreclip.training.device import decoding_threads
from coreclip.training.model import Clip
from coreclip.training.ranking import image_groups, retrieval_recalls, text_groups

_ROWS = 512
_MOST_RESIDENT_BYTES = 1 << 30


class Validator:
    """Measures retrieval on a data set.

    Parameters
    ----------
    dataset : Dataset
        Held out; all of it is ranked.
    config : Config
        Of the run; images are seen at ``data.image_size``, whatever the size under way.
    tokenizer : Tokenizer
        The model's.
    device : torch.device
        The model's.
    """

    def __init__(self, dataset: Dataset, config: Config, tokenizer: Tokenizer, device: torch.device) -> None:
        self._dataset, self._device = dataset, device
        size = config.data.image_size
        self._loader = make_loader(
            dataset,
            batch_size=_ROWS,
            image_size=size,
            train=False,
            workers=decoding_threads(config.data.workers, device),
            tokenizer=tokenizer,
            resident=3 * dataset.n * size**2 <= _MOST_RESIDENT_BYTES,
        )
        texts, self._offsets = dataset.all_captions()
        self._text_groups, first = text_groups(texts)
        self._tokens = torch.from_numpy(tokenizer.encode([texts[i] for i in first.tolist()], config.model.context))
        self._image_groups, self._first_images = image_groups(dataset.metadata("content_hash"))

    @torch.no_grad()
    def measure(self, model: Clip) -> dict[str, float]:
        """Return ``image_to_text_recall_at_1`` (5, 10), ``text_to_image_recall_at_1`` (5, 10), their mean and the seconds.

        The model is in evaluation mode meanwhile, and in training mode afterwards.

        Raises
        ------
        CoreclipError
            For an image that does not decode.
        """
        begin = time.monotonic()
        model.eval()
        images, texts = self._images(model)[torch.from_numpy(self._first_images)], self._texts(model)
        model.train()
        found = retrieval_recalls(images, texts, self._image_groups, self._text_groups, self._offsets)
        result = {name: value for name, value in found.items() if "_recall_at_" in name}
        result["mean_recall"] = sum(result.values()) / len(result)
        result["seconds"] = time.monotonic() - begin
        return result

    def _images(self, model: Clip) -> Tensor:
        rows = []
        for batch in self._loader:
            batch.check_decoded(self._dataset)
            rows.append(model.encode_image(batch.images.to(self._device)).cpu())
        return torch.cat(rows)

    def _texts(self, model: Clip) -> Tensor:
        return torch.cat([model.encode_text(tokens.to(self._device)).cpu() for tokens in self._tokens.split(_ROWS)])


def check_validation(dataset: Dataset, training: Dataset) -> None:
    """Refuse to measure on the pairs that are trained on."""
    if dataset.fingerprint == training.fingerprint:
        raise CoreclipError(
            f"--validation {dataset.path} is the data set that is trained on; it must hold pairs that are held out; "
            "make two with coreclip split"
        )
