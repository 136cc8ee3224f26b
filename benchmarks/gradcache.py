"""What a batch in pieces saves in memory and costs in time: peak resident memory and seconds of a step, each in a process of its own.

Batches are random pixels and tokens, so that nothing is decoded; a step is forward, backward and update. The peak is above what the
process holds before its first step.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from side_by_side import arguments, write_result

from coreclip.config import Config, load_config
from coreclip.training.distributed import ONE
from coreclip.training.model import END, build_model
from coreclip.training.objectives import Objective
from coreclip.training.steps import Rows, make_optimiser, update
from coreclip.training.text_towers import caption_lengths

VOCABULARY = 4000


def random_rows(config: Config) -> Rows:
    """Return a batch of noise."""
    b, size, context = config.data.batch_size, config.data.image_size, config.model.context
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, VOCABULARY, (b, context), generator=generator)
    tokens[:, context // 2] = END
    tokens[:, context // 2 + 1 :] = 0
    return Rows(
        images=torch.randint(0, 256, (b, 3, size, size), dtype=torch.uint8, generator=generator),
        tokens=tokens,
        lengths=caption_lengths(tokens, END),
        weight=torch.ones(b),
        labels=None,
        index=np.arange(b),
        share=1.0,
        broken=[],
    )


def peak_bytes() -> int:
    """Return the most memory that this process has had resident."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def one(settings: list[str], steps: int) -> dict[str, float]:
    """Take steps in this process; return the peak above what was held before them, bytes, and the least seconds of a step."""
    config = load_config(None, settings)
    model = build_model(config, vocab_size=VOCABULARY, seed=0).train()
    optimiser, rows, objective = make_optimiser(model, config), random_rows(config), Objective(config, None, None, ONE)
    before, seconds = peak_bytes(), []
    for _ in range(steps):
        begin = time.perf_counter()
        _, backward = objective.forward(model, rows, bf16=False)
        optimiser.zero_grad(set_to_none=True)
        backward()
        update(model, optimiser, clip_norm=1.0, rate=1e-4)
        seconds.append(time.perf_counter() - begin)
    return {"bytes": peak_bytes() - before, "seconds": min(seconds)}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[3:], int(sys.argv[2]))))
        return
    options = arguments(__doc__ or "", batch_size=2048, micro_batch=128, image_size=64, steps=3)
    lines = ["| pieces of | peak above the start, MiB | seconds of a step |", "|---|---|---|"]
    for piece in (0, options.micro_batch):
        settings = [
            f"data.batch_size={options.batch_size}",
            f"data.image_size={options.image_size}",
            f"train.micro_batch={piece}",
        ]
        command = [sys.executable, __file__, "--one", str(options.steps), *settings]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        name = f"{piece:,}" if piece else f"{options.batch_size:,} (the whole batch)"
        lines.append(f"| {name} | {found['bytes'] / 2**20:,.0f} | {found['seconds']:.2f} |")
    body = "\n".join(lines) + f"\n\nThe default model, {options.image_size} px, {torch.get_num_threads()} threads."
    write_result(
        f"gradcache_{options.batch_size}_{options.micro_batch}", "A large batch in pieces", body, "coreclip", "torch"
    )


if __name__ == "__main__":
    main()
