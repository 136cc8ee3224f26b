"""Torch's own trace of some steps, for Chrome's and Perfetto's viewers, with the loop's stages marked in it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from coreclip.files import atomic_path
from coreclip.profiling.recorder import StageRecorder

if TYPE_CHECKING:
    from torch.profiler import profile


def write_trace(run: Callable[[], object], path: str | Path, *, recorder: StageRecorder, cuda: bool = False) -> None:
    """Run some steps under torch's profiler and write what it saw as a Chrome trace.

    Parameters
    ----------
    run : callable
        Does the steps.
    path : path
        ``.json``, or ``.json.gz`` for a compressed one; replaced where it is there.
    recorder : StageRecorder
        Whose stages are marked.
    cuda : bool
        Whether a GPU's kernels are in it too.
    """
    from torch.profiler import record_function

    recorder.around = record_function
    try:
        with torch_profile(cuda=cuda) as watched:
            run()
    finally:
        recorder.around = None
    with atomic_path(path) as temporary:
        # Torch compresses what is called so.
        beside = temporary.with_name(temporary.name + (".gz" if str(path).endswith(".gz") else ""))
        watched.export_chrome_trace(str(beside))
        beside.rename(temporary)


def torch_profile(*, cuda: bool) -> "profile":
    """Return torch's profiler, of a GPU's kernels too where ``cuda`` is true."""
    from torch.profiler import ProfilerActivity, profile

    # On a GPU its errors are of use; else all that it has to say is two lines about beginning and end, at this level.
    if not cuda:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
