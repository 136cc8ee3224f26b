"""What torch.compile makes of a model: graph breaks and their source lines, recompiles over the shapes of training, fused kernels.

Two looks. *Whole towers*, by ``torch._dynamo.explain``, which traces and compiles nothing: into how many graphs each falls, and why.
*As trained*: the parts that :mod:`coreclip.training.compiling` compiles are compiled by inductor and run forward and backward over
batches like training's, last and smaller one included; the compiler's own records then say what was compiled again and why, and the
code that it wrote says which operations share a kernel. Parameters and running statistics are a copy's. Left out: bfloat16, CUDA graphs.
"""

import contextlib
import copy
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreclip.errors import CoreclipError
from coreclip.pipeline import Dataset
from coreclip.randomness import permutation
from coreclip.training.clip_model import ClipModel
from coreclip.training.compiling import compile_blocks
from coreclip.training.export_inputs import drawn_inputs
from coreclip.training.text_towers import caption_lengths

_MOST_SHAPES = 6
_RESUMED = "torch_dynamo_resume_in_"  # what the compiler calls the rest of a function after a break
_KERNEL = re.compile(r"^(?:triton|cpp)_\w*?fused_(\w+?)_?(\d+) = async_compile", re.MULTILINE)
_LIBRARY = re.compile(r"\b(?:extern_kernels|torch\.ops\.mkldnn|aten)\.(\w+)(?:\.\w+)?\(")


def explain_compile(
    run: str | Path,
    dataset: Dataset | None = None,
    *,
    batch_size: int | None = None,
    fusions: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Report what torch.compile makes of a run's model.

    Parameters
    ----------
    run : path
        A finished run, or a checkpoint of another tool.
    dataset : Dataset, optional
        Whose captions give the shapes: those of the first batches of a pass, and of its last one. Without it they are assumed:
        captions of all lengths, and a last batch of half the size.
    batch_size : int, optional
        In place of the run's ``data.batch_size``.
    fusions : bool
        Whether the parts that training compiles are compiled, which takes minutes.
    device : {"cpu", "cuda", "cuda:N", "auto"}
        What is compiled for; on a GPU in bf16, as training is there.
    seed : int
        Of the order of the pass.

    Returns
    -------
    dict
        ``shapes``: ``source`` and ``batches``, a list of (rows, longest caption). ``towers``: for each, ``graphs``, ``operations`` of
        each graph, and ``breaks``; see :func:`explain_graphs`. ``training``: what :func:`compiled_record` returns of the parts
        that training compiles, or None.

    Raises
    ------
    CoreclipError
        For a run that can't be loaded, or where torch.compile finds no compiler.
    """
    clip = ClipModel.load(run, device)
    size = clip.config.data.batch_size if batch_size is None else batch_size
    source, batches = ("assumed", _assumed(clip, size, seed)) if dataset is None else (
        "data set", _batches(clip, dataset, size, seed)
    )  # fmt: skip
    model = copy.deepcopy(clip.network).train().requires_grad_(True)
    images, tokens = _inputs(clip, batches[0])
    towers = {
        "image tower": explain_graphs(model.encode_image, images),
        "text tower, packed (trained so)": explain_graphs(model.encode_text, tokens),
        "text tower, padded (exported so)": explain_graphs(lambda rows: model.encode_text(rows, packed=False), tokens),
    }
    compile_blocks(model)

    def step(rows: Tensor) -> None:
        with torch.autocast(clip.network.mean.device.type, torch.bfloat16, enabled=clip.network.mean.is_cuda):
            features = model(*_inputs(clip, rows))
        sum(part.square().sum() for part in features).backward()

    shapes = [(len(rows), int(caption_lengths(rows, clip.network.end).max())) for rows in batches]
    return {
        "shapes": {"source": source, "batches": shapes},
        "towers": towers,
        "training": compiled_record(step, batches) if fusions else None,
    }


def _inputs(clip: ClipModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return images for token rows; their content decides no shape."""
    place = clip.network.mean.device
    return torch.zeros(len(tokens), 3, clip.image_size, clip.image_size, dtype=torch.uint8, device=place), tokens.to(
        place
    )


def _assumed(clip: ClipModel, size: int, seed: int) -> list[Tensor]:
    rows = torch.from_numpy(drawn_inputs(clip, 2 * size + 3, seed=seed).tokens[:-1])  # the last one is padding alone
    by_length = rows[caption_lengths(rows, clip.network.end).argsort()]
    return [
        by_length[:size],
        by_length[size // 2 : size // 2 + size],
        by_length[-size:],
        by_length[-max(2, size // 2) :],
    ]


def _batches(clip: ClipModel, dataset: Dataset, size: int, seed: int) -> list[Tensor]:
    """Token rows of the first batches of a pass whose shapes differ, and of the last batch."""
    order = permutation(dataset.n, seed)
    starts = list(range(0, dataset.n, size))
    if len(starts) > 1 and dataset.n - starts[-1] < 2:
        starts.pop()  # training leaves a last batch of one out
    found: dict[tuple[int, int], Tensor] = {}
    for start in [*starts[: 8 * _MOST_SHAPES], starts[-1]]:
        texts = [dataset.captions(int(i))[0] for i in np.sort(order[start : start + size])]
        rows = torch.from_numpy(clip.tokenizer.encode(texts, clip.config.model.context))
        key = (len(rows), int(caption_lengths(rows, clip.network.end).max()))
        if len(found) < _MOST_SHAPES - 1 or start == starts[-1]:
            found.setdefault(key, rows)
    return list(found.values())


@contextlib.contextmanager
def _fresh_compiler() -> Iterator[None]:
    """With the compiler's memory of this process empty, before and after, and its remarks unsaid: they are what is reported."""
    torch._dynamo.reset()
    level = logging.getLogger("torch._dynamo").level
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch._dynamo").setLevel(level)
        torch._dynamo.reset()


def explain_graphs(function: Callable[..., Any], *inputs: Tensor) -> dict[str, Any]:
    """Trace a function and report into which graphs it falls.

    Returns
    -------
    dict
        ``graphs``: int; ``operations``: of each graph; ``breaks``: list of {``where``, ``reason``, ``count``}, ``where`` being file, line
        and code.
    """
    import torch._dynamo

    with _fresh_compiler():
        found = torch._dynamo.explain(function)(*inputs)
    breaks = Counter((_where(one.user_stack), _first_line(one.reason)) for one in found.break_reasons)
    return {
        "graphs": found.graph_count,
        "operations": [len(operations) for operations in found.ops_per_graph],
        "breaks": [{"where": where, "reason": reason, "count": count} for (where, reason), count in breaks.items()],
    }


def _first_line(text: str) -> str:
    """What a message says first, and its explanation where it has one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    explained = next((line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")), None)
    return lines[0] if explained is None else f"{lines[0]}: {explained}"


def _where(stack: Sequence[Any]) -> str:
    if not stack:
        return "unknown"
    frame = stack[-1]
    return f"{_short(frame.filename)}:{frame.lineno}: {(frame.line or '').strip()}"


def _short(filename: str) -> str:
    """A file's path from its package on."""
    path = Path(filename)
    root = next((i for i, part in enumerate(path.parts) if part in ("coreclip", "torch")), len(path.parts) - 1)
    return "/".join(path.parts[root:])


def compiled_record(step: Callable[[Any], None], batches: Sequence[Any]) -> dict[str, Any]:
    """Run a step that compiles over some batches, and report what the compiler did.

    Parameters
    ----------
    step : callable
        ``step(batch)``; holds functions or modules under torch.compile.
    batches : sequence
        At least one.

    Returns
    -------
    dict
        ``graphs``: int, all that were compiled; ``recompiles``: list of {``function``, ``where``, ``batch``, ``reason``}: what was compiled
        again for a batch, and the guard that its earlier code failed; ``compiles_per_batch``: list of int; ``breaks``: list of the
        lines at which a function was cut in two; ``kernels``: list of {``operations``, ``count``}, the fused ones, most operations first;
        ``library_calls``: {name: count}; ``seconds``.

    Raises
    ------
    CoreclipError
        Where torch.compile finds no C++ compiler.
    """
    import torch._dynamo
    import torch._inductor.config
    from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics
    from torch._inductor.utils import run_and_get_code

    ends: list[int] = []

    def steps() -> None:
        for batch in batches:
            step(batch)
            ends.append(len(get_compilation_metrics()))

    with _fresh_compiler(), torch._inductor.config.patch(force_disable_caches=True):
        counters.clear()
        clear_compilation_metrics()
        try:
            codes = run_and_get_code(steps)[1]
        except Exception as error:
            if "compiler" not in str(error).lower():
                raise
            raise CoreclipError(
                f"torch.compile does not work here ({_first_line(str(error))[:120]}); install a C++ compiler, e.g. g++"
            ) from None
        records = get_compilation_metrics()
        graphs = int(counters["stats"].get("unique_graphs", 0))
    compiled: list[tuple[int, Any]] = [
        (int(np.searchsorted(ends, i, "right")), one) for i, one in enumerate(records) if one.co_name
    ]
    again = [(number, metrics) for number, metrics in compiled if metrics.recompile_reason]
    return {
        "graphs": graphs,
        "compiles_per_batch": np.bincount([number for number, _ in compiled], minlength=len(batches)).tolist(),
        "recompiles": [
            {
                "function": metrics.co_name,
                "where": _place(metrics),
                "batch": number,
                "reason": metrics.recompile_reason.splitlines()[0].partition(": ")[2].split("  #")[0].strip(),
            }
            for number, metrics in again
        ],
        "breaks": sorted({_place(one) for _, one in compiled if one.co_name.startswith(_RESUMED)}),
        **_fusions(codes),
        "seconds": float(sum(metrics.entire_frame_compile_time_s or 0 for _, metrics in compiled)),
    }


def _place(metrics: Any) -> str:
    return f"{_short(metrics.co_filename)}:{metrics.co_firstlineno}"


def _fusions(codes: Sequence[str]) -> dict[str, Any]:
    """Read fused kernels and library calls off the code that inductor wrote."""
    kernels: dict[str, int] = {}
    calls: dict[str, int] = {}
    for code in codes:
        for name, _ in _KERNEL.findall(code):
            kernels[name] = kernels.get(name, 0) + 1
        for name in _LIBRARY.findall(code):
            calls[name] = calls.get(name, 0) + 1
    fused = [{"operations": name, "count": count} for name, count in kernels.items()]
    fused.sort(key=lambda kernel: (-len(str(kernel["operations"])), kernel["operations"]))
    return {"kernels": fused, "library_calls": dict(sorted(calls.items()))}


def compile_text(report: dict[str, Any]) -> str:
    """Return the report of :func:`explain_compile` for people."""
    shapes, training = report["shapes"], report["training"]
    lines = [
        f"batches ({shapes['source']}), rows x longest caption: "
        + ", ".join(f"{b} x {n}" for b, n in shapes["batches"])
    ]
    for name, tower in report["towers"].items():
        lines.append(f"{name}: {tower['graphs']} graphs of {', '.join(map(str, tower['operations']))} operations")
        lines += [
            f"  {each['count']} break{'s' * (each['count'] > 1)} at {each['where']}\n    {each['reason']}"
            for each in tower["breaks"]
        ]
    if training is None:
        return "\n".join(lines)
    lines.append(
        f"compiled as in training: {training['graphs']} graphs in {training['seconds']:.1f} s; "
        f"functions compiled for each batch: {', '.join(map(str, training['compiles_per_batch']))}"
    )
    lines += [f"  break at {where}" for where in training["breaks"]]
    lines += [
        f"  again for batch {each['batch']}: {each['function']} ({each['where']}): {each['reason']}"
        for each in training["recompiles"]
    ]
    lines += [f"  fused, {kernel['count']} times: {kernel['operations']}" for kernel in training["kernels"]]
    lines += [f"  left to libraries, {count} times: {name}" for name, count in training["library_calls"].items()]
    return "\n".join(lines)
