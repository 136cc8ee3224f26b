"""What a run loses by being exported: retrieval on held-out pairs by the run itself and by each format and precision of it.

Int8 is calibrated on 128 of the held-out pairs, as ``coreclip export --dataset`` does. Sizes are of both towers' files.
"""

import argparse
import tempfile
from pathlib import Path

from side_by_side import write_result

from coreclip.pipeline import Dataset
from coreclip.training import export

EXPORTS = [(name, precision) for name in ("onnx", "openvino") for precision in ("fp32", "fp16", "int8")]
FIGURES = [f"{way}_recall_at_{k}" for way in ("text_to_image", "image_to_text") for k in (1, 10)]
GRAPHS = {".onnx", ".bin"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("dataset", help="pairs that the run was not trained on")
    options = parser.parse_args()
    dataset = Dataset(options.dataset)
    lines = [
        "| | MB | text to image R@1 | R@10, % | image to text R@1 | R@10, % | least cosine to the run's features |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, precision in EXPORTS:
        with tempfile.TemporaryDirectory() as folder:
            report = export(options.run, Path(folder) / "out", format=name, precision=precision, dataset=dataset)
        assert report.accuracy is not None
        if len(lines) == 2:
            lines.append(_row("the run itself", None, report.accuracy["run"], None))
        size = sum(n_bytes for file, n_bytes in report.files.items() if Path(file).suffix in GRAPHS) / 1e6
        lines.append(_row(f"{name}, {precision}", size, report.accuracy["export"], report.least_cosine))
        print(lines[-1], flush=True)
    body = "\n".join([*lines, "", f"{dataset.n:,} pairs that the run was not trained on."])
    write_result("export_accuracy", "What exports lose", body, "coreclip", "torch", "onnxruntime", "openvino")


def _row(name: str, megabytes: float | None, result: dict[str, float], cosine: float | None) -> str:
    cells = ["" if megabytes is None else f"{megabytes:.1f}", *(f"{100 * result[figure]:.1f}" for figure in FIGURES)]
    return f"| {name} | " + " | ".join([*cells, "" if cosine is None else f"{cosine:.5f}"]) + " |"


if __name__ == "__main__":
    main()
