"""Names of devices to torch devices, once per command."""

import torch

from coreclip.errors import CoreclipError


def resolve_device(name: str) -> torch.device:
    """Return the device that ``name`` stands for.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "cuda:0", ...}
        ``auto`` is CUDA where there is one.

    Raises
    ------
    CoreclipError
        For an unknown name, or CUDA where torch finds none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, ordinal = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (ordinal and not ordinal.isdecimal())):
        raise CoreclipError(f"device {name!r} is unknown; it must be auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(ordinal or 0) >= torch.cuda.device_count():
        raise CoreclipError(
            f"device {name!r} was asked for, but torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices "
            "here; use --device cpu, or install a CUDA build of torch"
        )
    return torch.device(name)
