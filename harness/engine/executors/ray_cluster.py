"""The Ray cluster of a sweep: connection, resources, and the check that all nodes see the workspace."""

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.config.loading.files import one_line
from harness.config.schema.compute import ComputeConfig
from harness.engine.worker import usable_cpus
from harness.errors import HarnessError, WorkspaceError
from harness.store.workspace import Workspace

PATIENCE_SECONDS = 120.0  # a node's first worker takes its time to start


def check_all_nodes_see(workspace: Workspace) -> None:
    """Raise HarnessError where a node cannot read what the driver writes there, with the node and the reason.

    It would train into a folder that no other node reads.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    with workspace.marker() as marker:
        asked = [_check_on(node["NodeID"]).remote(workspace.address, marker) for node in others]
        for node, answer in zip(others, asked, strict=True):
            try:
                fault = ray.get(answer, timeout=PATIENCE_SECONDS)
            except (ray.exceptions.RayError, TimeoutError):  # lost, or busy: then it is no danger now
                continue
            if fault is not None:
                where = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                raise HarnessError(f"{where} {fault}")


def _check_on(node_id: str) -> "ray.remote_function.RemoteFunction":
    on_that_node = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(_check).options(num_cpus=0, max_retries=0, scheduling_strategy=on_that_node)


def _check(address: str, marker: str) -> str | None:
    """What is wrong, seen from this process; None if nothing is."""
    try:
        if Workspace(address).sees(marker):
            return None
    except WorkspaceError as error:
        return f"cannot use the workspace: {error}"
    return (
        f"does not see what this machine writes into --workspace {address}: that folder is of one machine "
        "alone; give one that all nodes mount at the same path (NFS), or a URL (s3://bucket/prefix)"
    )


WAIT_FOR_NODES_SECONDS = 20.0
NODE_GROUP = "ray.io/node-group"  # a node's label where KubeRay or the autoscaler started it


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """A Ray to work with: the one connected already, the one at the address, or a fresh local one.

    Yields whether it is a fresh one of this machine alone. If the cluster's head is lost, Ray ends this
    process in one line, with exit code 1, after RAY_gcs_rpc_server_reconnect_timeout_s (60 s).
    """
    if ray.is_initialized():
        yield False
        return
    if address is not None and address not in ("auto", "local") and not ADDRESS.fullmatch(address):
        raise HarnessError(
            f"no Ray cluster at {address} (--address or RAY_ADDRESS): give auto, or HOST:PORT of the head's "
            "GCS, as 10.0.0.1:6379, not the dashboard's"
        )
    with _token_sent(address):
        yield from _connected(address)


def _connected(address: str | None) -> Iterator[bool]:
    handler = signal.getsignal(signal.SIGTERM)
    # CRITICAL: a failed trial is an outcome with its reason; Tune would print its traceback over the display.
    try:
        ray.init(
            # Without an address Ray would join whatever cluster was last started on this machine.
            address=address or "local",
            num_cpus=None if address else usable_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise HarnessError(_why_not(address, error)) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would abort
    try:
        yield address is None
    finally:
        ray.shutdown()


ADDRESS = re.compile(r"[^/]+:\d+")  # HOST:PORT
TOKEN_FILE = "~/.ray/auth_token"  # where Ray keeps one


@contextlib.contextmanager
def _token_sent(address: str | None) -> Iterator[None]:
    """While the block runs, Ray sends the token that is there to the cluster at an address.

    By itself it sends one only where RAY_AUTH_MODE says so, which it has read when it was imported.
    """
    keys = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    has_token = Path(os.path.expanduser(TOKEN_FILE)).is_file() or keys & os.environ.keys()
    ours = address is not None and has_token and "RAY_AUTH_MODE" not in os.environ
    if ours:
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")
    try:
        yield
    finally:
        if ours:
            os.environ.pop("RAY_AUTH_MODE", None)
            Config.initialize("")


def _why_not(address: str | None, error: Exception) -> str:
    """One line: what Ray says, and what would do."""
    said = one_line(str(error), 160)
    if address is None:
        return (
            f"Ray cannot start on this machine: {said}. It needs a HOME it can write to and a short TMPDIR "
            "(TMPDIR=/tmp); --executor local needs no Ray"
        )
    return (
        f"no Ray cluster that answers at {address} (--address or RAY_ADDRESS): {said}. If it needs a token, "
        "set RAY_AUTH_TOKEN"
    )


def workers(compute: ComputeConfig) -> int:
    """How many tasks the cluster has room for as it is; at least one."""
    together = max(1, _room(compute) // compute.training_workers)
    return min(together, compute.max_concurrent or together)


def of_one_process(compute: ComputeConfig) -> dict[str, float]:
    """What one process holds, by Ray's names: where several train one trial, each has its share."""
    asked = {"GPU": compute.gpus_per_trial, **compute.resources}
    shares = {name: amount / compute.training_workers for name, amount in asked.items()}
    return {"CPU": compute.cpus_per_trial, **shares}


def check_it_fits(compute: ComputeConfig, *, alone: bool) -> None:
    """Raise HarnessError where no node will ever have what a worker asks for; Tune would wait for it.

    `alone`: this machine is all there is. Nodes of a cluster may join a little late; one that grows by itself
    is not judged by what it has now.
    """
    deadline = time.monotonic() + WAIT_FOR_NODES_SECONDS
    while _room(compute) < compute.training_workers:
        if any(node["Labels"].get(NODE_GROUP) for node in _alive()):
            return
        if alone or time.monotonic() > deadline:
            raise HarnessError(_does_not_fit(compute))
        time.sleep(0.5)


def _room(compute: ComputeConfig) -> int:
    """How many processes the nodes hold side by side."""
    asked = {name: amount for name, amount in of_one_process(compute).items() if amount}
    return sum(
        min(int(has.get(name, 0) / amount + 1e-9) for name, amount in asked.items())  # 1 / 0.1 may be 9.99…
        for has in (node["Resources"] for node in _alive())
    )


def _alive() -> list[dict[str, Any]]:
    """The nodes. Not `ray.cluster_resources()`, which knows nothing in its first moments."""
    return [node for node in ray.nodes() if node["Alive"]]


def _does_not_fit(compute: ComputeConfig) -> str:
    asked = " and ".join(f"{amount:g} {name}" for name, amount in of_one_process(compute).items())
    nodes = [
        ", ".join(
            f"{amount:g} {name}"
            for name, amount in sorted(node["Resources"].items())
            if _asked_by_users(name)
        )
        for node in _alive()
    ]
    where = "this machine" if len(nodes) == 1 else f"any of the {len(nodes)} nodes"
    keys = "cpus_per_trial, gpus_per_trial, resources or workers_per_trial"
    processes = "one process" if compute.training_workers == 1 else f"{compute.training_workers} processes"
    verb = "does" if compute.training_workers == 1 else "do"
    return (
        f"compute: {processes} of {asked} {verb} not fit into {where} "
        f"({'; '.join(nodes)}); lower {keys}, or name a cluster that has them by --address"
    )


def _asked_by_users(resource: str) -> bool:
    """Not what Ray counts for itself."""
    return not resource.startswith(("node:", "memory", "object_store_memory", "accelerator_type:"))
