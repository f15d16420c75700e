"""A cluster that is reached through Ray's client port alone, where it does not let one in."""

import os
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.execution.client import Far, drive_at
from harness.execution.cluster import connected
from tests.execution.disturbing import carried_out
from tests.execution.nodes import cluster

# Of the client's server that the head starts first, as Ray's own sometimes does: it ends at once.
ENDS_ONCE = """
import os, sys
if any("specific-server" in word for word in sys.orig_argv):
    try:
        os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
        os._exit(1)
    except FileExistsError:
        pass
"""


def test_a_cluster_that_is_not_there_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INITIAL_TIMEOUT_SEC", "MAX_TIMEOUT_SEC"):  # Ray waits for a minute in all
        monkeypatch.setattr(f"ray.util.client.worker.{name}", 0.2)
    with pytest.raises(HarnessError, match=r"no Ray cluster at ray://127\.0\.0\.1:1 ") as told:
        drive_at("ray://127.0.0.1:1", lambda *_: pytest.fail("there is nobody"), Far(), lambda: False)
    assert "\n" not in str(told.value)
    with connected(None) as alone:
        assert alone, "this process can go on without that cluster"


@pytest.mark.slow
def test_a_clients_server_that_ends_at_once_is_asked_for_again(
    long_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ended"
    (tmp_path / "sitecustomize.py").write_text(ENDS_ONCE.format(mark=str(mark)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with cluster(tmp_path, clients_server_seconds=15) as nodes:
        banana = ("--set", "compute.resources={banana: 1}")
        told = carried_out(long_sweep, tmp_path / "workspace", "--address", nodes.client_address, *banana)
    assert mark.exists(), "no server ended, so this shows nothing"
    assert told.returncode == 2 and "banana" in told.stderr, "it was let in"
