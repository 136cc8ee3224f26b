"""Where FFCV's compiled library lies, which carries TurboJPEG; importing ``ffcv`` itself would take 5 s and 400 MB."""

import importlib.util
from pathlib import Path

from coreclip.errors import CoreclipError

REMEDY = "install ffcv anew with libturbojpeg (2.0 or later) present"


def find_ffcv_library() -> Path:
    """Return the file.

    Raises
    ------
    CoreclipError
        Where ffcv is not installed, or not whole.
    """
    spec = importlib.util.find_spec("ffcv")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("_libffcv*.so"))]
    if not files:
        raise CoreclipError(
            f"FFCV's compiled decoder (_libffcv*.so) is not found in {folders or 'any package'}; {REMEDY}"
        )
    return files[0]
