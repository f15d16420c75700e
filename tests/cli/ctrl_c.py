"""Ctrl-C in commands that tests start."""

import signal


def heard() -> None:
    """A `preexec_fn`: a test runner in the background ignores Ctrl-C, and would hand that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
