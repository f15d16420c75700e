"""The command line: typer and rich; nothing else knows a terminal."""
