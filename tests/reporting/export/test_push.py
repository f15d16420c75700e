"""Pushing: against a small server that answers as the hub does, and where there is none."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from harness.errors import ExportError
from harness.reporting.export.export import push
from harness.store.artifact import sha256


class Hub(BaseHTTPRequestHandler):
    """The calls that an upload of small files makes; keeps what it was told on the server object."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer right":
            return self._answer({"error": "Invalid username or password."}, 401)
        url = f"http://{self.headers['Host']}/someone/adapter"
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)  # type: ignore[attr-defined]
            return self._answer({"url": url, "name": "someone/adapter"})
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            return self._answer(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        if self.path.endswith("/validate-yaml"):
            return self._answer({"warnings": [], "errors": []})
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.files = {line["value"]["path"] for line in lines if line["key"] == "file"}  # type: ignore[attr-defined]
        self._answer({"success": True, "commitUrl": f"{url}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer({"error": "Repository not found"}, 404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "right")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# adapter\n")
    (tmp_path / "adapter.safetensors").write_bytes(b"numbers")
    names = ("README.md", "adapter.safetensors")
    (tmp_path / "trial.json").write_text(json.dumps({"files": {n: sha256(tmp_path / n) for n in names}}))
    (tmp_path / "notes.txt").write_text("not of the export")
    return tmp_path


def test_every_file_goes_up(hub: ThreadingHTTPServer, export: Path) -> None:
    address = push(export, "someone/adapter", private=True)
    assert address.endswith("/someone/adapter")
    created: dict[str, Any] = hub.created  # type: ignore[attr-defined]
    assert created.get("private") is True or created.get("visibility") == "private"
    assert hub.files == {"README.md", "adapter.safetensors", "trial.json"}  # type: ignore[attr-defined]


def test_a_changed_file_is_not_pushed(hub: ThreadingHTTPServer, export: Path) -> None:
    (export / "adapter.safetensors").write_bytes(b"numbexs")
    with pytest.raises(ExportError, match=r"adapter\.safetensors is not what was exported"):
        push(export, "someone/adapter", private=True)
    assert not hasattr(hub, "created")


def test_a_wrong_token(hub: ThreadingHTTPServer, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ExportError, match=r"HTTP 401.*hf auth login"):
        push(export, "someone/adapter", private=True)


def test_not_logged_in(export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ExportError, match="not logged in"):
        push(export, "someone/adapter", private=True)


def test_no_network(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ExportError, match="cannot be reached") as caught:
        push(export, "someone/adapter", private=True)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none(hub: ThreadingHTTPServer, export: Path) -> None:
    with pytest.raises(ExportError, match="OWNER/NAME"):
        push(export, "three/part/name", private=True)


def test_a_folder_without_a_card(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no export"):
        push(tmp_path, "someone/adapter", private=False)
