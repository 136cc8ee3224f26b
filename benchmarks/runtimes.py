"""Latency and throughput of a small model's towers on each runtime that it can be exported to, beside eager and compiled torch.

Without ``--run`` a model of the default shape is trained for a moment on drawn scenes: speed does not depend on what it has learned.
"""

import tempfile
from pathlib import Path

from side_by_side import arguments, write_result

from coreclip.config import load_config
from coreclip.pipeline import Dataset, convert, draw_scenes
from coreclip.training import train
from coreclip.training.runtimes import compare_runtimes, runtimes_table


def small_run(folder: Path, overrides: list[str]) -> Path:
    """Draw scenes, convert them, and train for one batch."""
    draw_scenes(folder / "scenes", n=300, n_heldout=16, seed=0)
    convert([str(path) for path in sorted((folder / "scenes").glob("train-*.tar"))], folder / "data")
    config = load_config(None, ["data.batch_size=64", "train.precision=fp32", *overrides])
    train(Dataset(folder / "data"), folder / "run", config=config, samples=64)
    return folder / "run"


def main() -> None:
    options = arguments(__doc__ or "", run="", image_size=64, image_tower="cnn", batch_size=64, rounds=9, threads=0)
    shape = [f"data.image_size={options.image_size}", f"model.image_tower={options.image_tower}"]
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(options.run) if options.run else small_run(Path(temporary), shape)
        report = compare_runtimes(
            run, batch_sizes=(1, options.batch_size), rounds=options.rounds, threads=options.threads or None
        )
    what = options.run or f"{options.image_tower}, {options.image_size} px, default shape"
    packages = ["coreclip", "torch", "onnx", "onnxruntime", "openvino"]
    write_result("runtimes", "Runtimes", f"Model: {what}.\n\n{runtimes_table(report)}", *packages)


if __name__ == "__main__":
    main()
