"""What slows a run down, measured from outside: stages, differential runs, a verdict, and what each fix would bring."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreclip.profiling.comparison import Comparison, compare_profiles, comparison_text
    from coreclip.profiling.conditions import Condition, ConditionRun, run_conditions
    from coreclip.profiling.diagnosis import Diagnosis, diagnose, diagnose_records
    from coreclip.profiling.findings import VERDICTS, Finding
    from coreclip.profiling.growth import Growth, find_growth, fit_growth
    from coreclip.profiling.probe import Criticality, probe_delays
    from coreclip.profiling.readbacks import ReadBack, find_read_backs
    from coreclip.profiling.recorder import StageRecorder, StepRecords
    from coreclip.profiling.remedies import REMEDIES, MeasuredSpeedup, Remedy, measure_remedy, propose
    from coreclip.profiling.report import render_html, render_text
    from coreclip.profiling.roofline import Peaks, Roofline, measure_peaks, measure_roofline
    from coreclip.profiling.stalls import Stalls, find_stalls
    from coreclip.profiling.system import SystemUse, SystemWindow, available_cores, read_cgroup
    from coreclip.profiling.trace import write_trace
    from coreclip.profiling.watching import Watcher, watch, watched

_MODULES = {
    "comparison": ("Comparison", "compare_profiles", "comparison_text"),
    "conditions": ("Condition", "ConditionRun", "run_conditions"),
    "diagnosis": ("Diagnosis", "diagnose", "diagnose_records"),
    "findings": ("VERDICTS", "Finding"),
    "growth": ("Growth", "find_growth", "fit_growth"),
    "probe": ("Criticality", "probe_delays"),
    "readbacks": ("ReadBack", "find_read_backs"),
    "recorder": ("StageRecorder", "StepRecords"),
    "remedies": ("REMEDIES", "MeasuredSpeedup", "Remedy", "measure_remedy", "propose"),
    "report": ("render_html", "render_text"),
    "roofline": ("Peaks", "Roofline", "measure_peaks", "measure_roofline"),
    "stalls": ("Stalls", "find_stalls"),
    "system": ("SystemUse", "SystemWindow", "available_cores", "read_cgroup"),
    "trace": ("write_trace",),
    "watching": ("Watcher", "watch", "watched"),
}
_NAMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "REMEDIES",
    "VERDICTS",
    "Comparison",
    "Condition",
    "ConditionRun",
    "Criticality",
    "Diagnosis",
    "Finding",
    "Growth",
    "MeasuredSpeedup",
    "Peaks",
    "ReadBack",
    "Remedy",
    "Roofline",
    "StageRecorder",
    "Stalls",
    "StepRecords",
    "SystemUse",
    "SystemWindow",
    "Watcher",
    "available_cores",
    "compare_profiles",
    "comparison_text",
    "diagnose",
    "diagnose_records",
    "find_growth",
    "find_read_backs",
    "find_stalls",
    "fit_growth",
    "measure_peaks",
    "measure_remedy",
    "measure_roofline",
    "probe_delays",
    "propose",
    "read_cgroup",
    "render_html",
    "render_text",
    "run_conditions",
    "watch",
    "watched",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
