"""How long a test waits before it is taken to hang."""

HANGS = 900.0  # seconds: against a test that hangs, not to judge speed; a busy machine is many times slower
