"""Image-text pairs in, FFCV data sets of checked samples, batches out.

A façade: every name is imported on first use, so that ``coreclip --help`` stays quick.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.pipeline.append import append
    from coreclip.pipeline.augment import Augment
    from coreclip.pipeline.convert import ConvertReport, convert
    from coreclip.pipeline.dataset import Dataset
    from coreclip.pipeline.decoding_costs import decoding_costs
    from coreclip.pipeline.export import export_webdataset
    from coreclip.pipeline.extract import extract
    from coreclip.pipeline.ffcv_loader import make_ffcv_loader
    from coreclip.pipeline.inspect import inspect
    from coreclip.pipeline.loader import Batch, Loader, make_loader
    from coreclip.pipeline.materialise import materialise
    from coreclip.pipeline.merge import merge
    from coreclip.pipeline.miniatures import thumbnails
    from coreclip.pipeline.planning import ConversionPlan, plan_conversion
    from coreclip.pipeline.scenes import draw_scenes
    from coreclip.pipeline.split import SplitPlan, plan_split, split
    from coreclip.pipeline.tokenizer import Tokenizer
    from coreclip.pipeline.verify import VerifyReport, verify

__all__ = [
    "Augment",
    "Batch",
    "ConversionPlan",
    "ConvertReport",
    "Dataset",
    "Loader",
    "SplitPlan",
    "Tokenizer",
    "VerifyReport",
    "append",
    "convert",
    "decoding_costs",
    "draw_scenes",
    "export_webdataset",
    "extract",
    "inspect",
    "make_ffcv_loader",
    "make_loader",
    "materialise",
    "merge",
    "plan_conversion",
    "plan_split",
    "split",
    "thumbnails",
    "verify",
]

_MODULES = {
    "Augment": "coreclip.pipeline.augment",
    "Batch": "coreclip.pipeline.loader",
    "ConversionPlan": "coreclip.pipeline.planning",
    "ConvertReport": "coreclip.pipeline.convert",
    "Dataset": "coreclip.pipeline.dataset",
    "Loader": "coreclip.pipeline.loader",
    "SplitPlan": "coreclip.pipeline.split",
    "Tokenizer": "coreclip.pipeline.tokenizer",
    "VerifyReport": "coreclip.pipeline.verify",
    "append": "coreclip.pipeline.append",
    "convert": "coreclip.pipeline.convert",
    "decoding_costs": "coreclip.pipeline.decoding_costs",
    "draw_scenes": "coreclip.pipeline.scenes",
    "export_webdataset": "coreclip.pipeline.export",
    "extract": "coreclip.pipeline.extract",
    "inspect": "coreclip.pipeline.inspect",
    "make_ffcv_loader": "coreclip.pipeline.ffcv_loader",
    "make_loader": "coreclip.pipeline.loader",
    "plan_conversion": "coreclip.pipeline.planning",
    "materialise": "coreclip.pipeline.materialise",
    "merge": "coreclip.pipeline.merge",
    "plan_split": "coreclip.pipeline.split",
    "split": "coreclip.pipeline.split",
    "thumbnails": "coreclip.pipeline.miniatures",
    "verify": "coreclip.pipeline.verify",
}


class _Facade(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each sub-module to its package; where a function has its module's name
        # (convert, inspect, ...), the package's attribute must stay the function.
        if name in _MODULES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
