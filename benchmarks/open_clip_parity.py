"""The same features as open_clip, both ways: its models read here, ours read there; and the same tokens and templates.

Weights are random, as none can be had without a network. Needs .venv-open-clip (``make bench-open-clip``); open_clip runs in a process of
its own.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import OPEN_CLIP_PYTHON, write_result

from coreclip.config import load_config
from coreclip.pipeline.clip_vocabulary import read_clip_tokenizer
from coreclip.training import TEMPLATE_SETS, ClipModel, save_open_clip
from coreclip.training.model import build_model

HERE = Path(__file__).parent
THEIRS = {"ViT-B-32-quickgelu": "quick_gelu", "ViT-B-32": "gelu", "RN50-quickgelu": "quick_gelu"}
OURS = ("ViT-B-32", "ViT-B-16", "RN50")
TEXTS = [
    "a photo of a red boat",
    "Two cats, and 12 dogs!",
    "",
    "boat " * 100,
    "a &amp; b",
    "caf\u00e9 \u2014 \u5317\u4eac",
]
CLOSE = 1e-5


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = np.random.default_rng(0).integers(0, 256, (8, 3, 224, 224), dtype=np.uint8)
        np.save(folder / "images.npy", images)
        for preset in OURS:
            config = load_config(preset=preset)
            tokenizer = read_clip_tokenizer(_vocabulary())
            model = build_model(config, vocab_size=tokenizer.vocab_size, end=tokenizer.end, seed=1)
            save_open_clip(model, tokenizer, config, folder / f"ours-{preset}")
        models = {f"theirs-{name}": name for name in THEIRS} | {
            f"ours-{preset}": f"local-dir:{folder / f'ours-{preset}'}" for preset in OURS
        }
        options = {"folder": scratch, "models": models, "texts": TEXTS}
        script = [str(OPEN_CLIP_PYTHON), str(HERE / "peers" / "open_clip_parity.py"), json.dumps(options)]
        done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True)
        peer = json.loads(done.stdout.splitlines()[-1])
        lines = ["| model | image features | text features | logits | tokens |", "|---|---|---|---|---|"]
        for name in models:
            lines.append(_row(name, folder, images))
            print(lines[-1], flush=True)
    same = set(peer["templates"]) == set(TEMPLATE_SETS["clip-80"]) and len(peer["templates"]) == 80
    lines += [
        "",
        f"Largest differences on {len(images)} random images and {len(TEXTS)} texts, features of unit norm; logits at each model's own temperature, 0.07. "
        f"The eighty templates are {'equal' if same else 'NOT EQUAL'}.",
    ]
    write_result(
        "open_clip_parity",
        "The same features as open_clip",
        "\n".join(lines),
        "coreclip",
        "torch",
        peers=peer["versions"],
    )
    if not same or any("NOT" in line for line in lines):
        raise SystemExit("open_clip and coreclip differ; see above")


def _row(name: str, folder: Path, images: np.ndarray) -> str:
    kind, _, model = name.partition("-")
    path = f"{folder / f'{name}.pt'}?activation={THEIRS[model]}" if kind == "theirs" else folder / name
    clip = ClipModel.load(f"open_clip:{path}")
    theirs: dict[str, Any] = dict(np.load(folder / f"{name}.npz"))
    tokens = clip.tokenizer.encode(TEXTS, clip.config.model.context)
    features = {"image": clip.encode_image(images).numpy(), "text": clip.encode_text(TEXTS).numpy()}
    found = [np.abs(features[side] - theirs[side]).max() for side in ("image", "text")]
    scales = (clip.logit_scale, float(theirs["logit_scale"]))
    logits = [
        np.exp(scale) * side["image"] @ side["text"].T for scale, side in zip(scales, (features, theirs), strict=True)
    ]
    found.append(np.abs(logits[0] - logits[1]).max())
    equal = np.array_equal(tokens, theirs["tokens"])
    shown = [f"{value:.1e}{'' if value <= CLOSE else ' NOT CLOSE'}" for value in found]
    return f"| {model}, {'of open_clip, read here' if kind == 'theirs' else 'of coreclip, read by open_clip'} | " + " | ".join(
        [*shown, "equal" if equal else "NOT EQUAL"]
    ) + " |"  # fmt: skip


def _vocabulary() -> Path:
    [path] = (HERE.parent / ".venv-open-clip").glob("lib/python*/site-packages/open_clip/bpe_simple_vocab_16e6.txt.gz")
    return path


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    os.environ["CORECLIP_CLIP_VOCABULARY"] = str(_vocabulary())
    main()
