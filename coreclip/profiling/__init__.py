"""What slows a run down, measured from outside: stages, differential runs, a verdict, and what each fix would bring."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.profiling.conditions import Condition, ConditionRun, run_conditions
    from coreclip.profiling.diagnosis import VERDICTS, Diagnosis, diagnose, diagnose_records
    from coreclip.profiling.growth import Growth, find_growth, fit_growth
    from coreclip.profiling.recorder import StageRecorder, StepRecords
    from coreclip.profiling.remedies import REMEDIES, MeasuredSpeedup, Remedy, measure_remedy, propose
    from coreclip.profiling.report import render_html, render_text
    from coreclip.profiling.system import SystemUse, SystemWindow, available_cores, read_cgroup

_MODULES = {
    "conditions": ("Condition", "ConditionRun", "run_conditions"),
    "diagnosis": ("VERDICTS", "Diagnosis", "diagnose", "diagnose_records"),
    "growth": ("Growth", "find_growth", "fit_growth"),
    "recorder": ("StageRecorder", "StepRecords"),
    "remedies": ("REMEDIES", "MeasuredSpeedup", "Remedy", "measure_remedy", "propose"),
    "report": ("render_html", "render_text"),
    "system": ("SystemUse", "SystemWindow", "available_cores", "read_cgroup"),
}
_NAMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "REMEDIES",
    "VERDICTS",
    "Condition",
    "ConditionRun",
    "Diagnosis",
    "Growth",
    "MeasuredSpeedup",
    "Remedy",
    "StageRecorder",
    "StepRecords",
    "SystemUse",
    "SystemWindow",
    "available_cores",
    "diagnose",
    "diagnose_records",
    "find_growth",
    "fit_growth",
    "measure_remedy",
    "propose",
    "read_cgroup",
    "render_html",
    "render_text",
    "run_conditions",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
