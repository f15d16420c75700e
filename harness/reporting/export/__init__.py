"""Export of a trial's adapter: files for other tools, a model card, the upload to the hub."""

from harness.reporting.export.export import export_trial

__all__ = ["export_trial"]
