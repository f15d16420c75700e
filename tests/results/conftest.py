"""The example sweep of the page's tests, for the tests of what the page says."""

from tests.reporting.report.conftest import results, study, workspace

__all__ = ["results", "study", "workspace"]
