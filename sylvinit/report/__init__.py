"""What was done to every layer, and how people are shown it: a table, HTML, figures."""

from __future__ import annotations

from sylvinit.report.record import Candidate, LayerReport, Report

__all__ = ["Candidate", "LayerReport", "Report"]
