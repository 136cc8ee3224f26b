"""open_clip's side of ``open_clip_parity.py``: models of its own, saved with their features, and the features of models that it is given.

Reads one JSON of options from the command line and writes ``NAME.npz`` beside each model: ``tokens``, ``image``, ``text`` (unit norm) and
``logit_scale``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES


def main(options: dict[str, Any]) -> dict[str, Any]:
    folder = Path(options["folder"])
    images = torch.from_numpy(np.load(folder / "images.npy"))
    for name, reference in options["models"].items():
        torch.manual_seed(0)
        model = open_clip.create_model(reference).eval()
        preprocessing = open_clip.get_model_preprocess_cfg(model)
        mean, std = (torch.tensor(preprocessing[statistic]).view(1, 3, 1, 1) for statistic in ("mean", "std"))
        pixels = (images.float() / 255 - mean) / std
        tokens = open_clip.get_tokenizer(reference)(options["texts"])
        if not reference.startswith("local-dir:"):
            torch.save(model.state_dict(), folder / f"{name}.pt")
        with torch.inference_mode():
            features = {
                "image": F.normalize(model.encode_image(pixels), dim=1).numpy(),
                "text": F.normalize(model.encode_text(tokens), dim=1).numpy(),
            }
        np.savez(folder / f"{name}.npz", tokens=tokens.numpy(), logit_scale=model.logit_scale.item(), **features)
    templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return {"versions": {"open_clip": open_clip.__version__, "torch": torch.__version__}, "templates": templates}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
