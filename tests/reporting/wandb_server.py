"""Servers that W&B gets no run written to."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "2", "name": "tests", "entity": {"id": "3", "name": "me"}}


@contextmanager
def mute() -> Iterator[str]:
    """The address of a server that takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    """An address without a server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    yield address


@contextmanager
def falling_silent() -> Iterator[str]:
    """A server that lets a run begin, and answers nothing that is sent of it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Begins)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()


class _Begins(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        answer = _answer(json.loads(asked)) if self.path == "/graphql" else None
        if answer is None:
            time.sleep(3600)
        body = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Tests show what W&B prints."""


def _answer(asked: dict[str, Any]) -> dict[str, Any] | None:
    for name, answer in (("RunResumeStatus", {"model": None}), ("Viewer", {"viewer": VIEWER})):
        if f"query {name}" in asked["query"]:
            return answer
    if "mutation UpsertBucket" not in asked["query"]:
        return None
    run = {
        "id": "4",
        "name": asked["variables"]["name"],
        "displayName": "a run",
        "config": "{}",
        "project": PROJECT,
        "historyLineCount": 0,
    }
    return {"upsertBucket": {"bucket": run, "inserted": True}}
