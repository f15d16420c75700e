"""What is wrong with a bucket is told in one line; trouble that passes is waited out."""

import sys
import time
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.errors import WorkspaceError
from harness.store import objects as bucket_module
from harness.store.objects import Bucket
from harness.store.workspace import Workspace
from tests.store import server
from tests.store.test_remote import build, on_another_machine


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "FIRST_PATIENCE_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("changes", "url", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, None, "set AWS_ACCESS_KEY_ID and"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "no permission: .*signature"),
        ({}, "s3://nowhere/x", "there is no such bucket; make it, or correct the name"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, None, "check the network, the address and"),
        ({}, "nothing://x", "Protocol not known: nothing"),
    ],
)
def test_what_its_user_has_to_mend(
    changes: dict[str, str | None],
    url: str | None,
    told: str,
    s3: str,
    tmp_path: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in changes.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(WorkspaceError, match=told) as raised:
        Workspace(url or s3).check_writable()
    assert "\n" not in str(raised.value) and (url or s3) in str(raised.value)


def test_without_the_extra_it_is_said_what_to_install(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setenv("AWS_A_NEW", "environment")
    with pytest.raises(WorkspaceError, match=r"needs s3fs: pip install 'lora-sweep-harness\[s3\]'"):
        Workspace(s3).check_writable()


def test_the_command_line_says_it_and_leaves_with_two(
    s3: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", "store", "ls", "--workspace", "s3://nowhere/x"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "there is no such bucket" in " ".join(capsys.readouterr().err.split())


def test_errors_resets_and_cut_answers_cost_nothing(
    s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.proxy(s3_endpoint, server.now_and_then(seed=0, share=0.2)) as in_the_way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", in_the_way.endpoint)
        here = Workspace(s3)
        for number in range(6):
            build(here, f"d{number}", f"{number}" * 1000)
        there = on_another_machine(here, monkeypatch, "there")
        for number in range(6):
            assert there.dataset(f"d{number}").whole()
    assert {"busy", "reset", "cut"} <= set(in_the_way.done)


def test_an_outage_is_waited_out(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [0.0]

    def out(method: str, path: str) -> server.Fault | None:
        return "busy" if time.monotonic() < ends[0] else None

    with server.proxy(s3_endpoint, out) as in_the_way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", in_the_way.endpoint)
        bucket = Bucket(s3)
        bucket.write("a", b"1")
        ends[0] = time.monotonic() + 4
        assert bucket.read(["a"]) == {"a": b"1"}
        assert in_the_way.done["busy"] > 1
        ends[0] = time.monotonic() + 1000
        monkeypatch.setattr(bucket_module, "PATIENCE_SECONDS", 1.0)
        with pytest.raises(WorkspaceError, match="no usable answer"):
            bucket.read(["a"])
