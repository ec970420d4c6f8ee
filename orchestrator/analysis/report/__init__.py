"""Reports on sweeps and runs: one HTML page that needs nothing else. Plain data in, text out."""

from orchestrator.analysis.report.data import Axis, Curve, Entry, Kept, Report
from orchestrator.analysis.report.page import render

__all__ = ["Axis", "Curve", "Entry", "Kept", "Report", "render"]
