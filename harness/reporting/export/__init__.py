"""Export: a trial's adapter as others take it: files for their tools, a model card, the way to the hub."""

from harness.reporting.export.export import export_trial

__all__ = ["export_trial"]
