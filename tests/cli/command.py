"""The `harness` command in this process."""

from unittest.mock import patch

from harness.cli.main import main


def harness(*arguments: object) -> int:
    """Run it; its exit code."""
    with patch("sys.argv", ["harness", *map(str, arguments)]):
        try:
            main()
        except SystemExit as leave:
            return int(leave.code or 0)
    return 0
