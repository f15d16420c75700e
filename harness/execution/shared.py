"""Whether every node of a cluster sees the workspace that the driver sees: it is tried."""

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.errors import HarnessError, WorkspaceError
from harness.workspace import Workspace

PATIENCE_SECONDS = 120.0  # a node's first worker takes its time to start


def check_all_nodes_see(workspace: Workspace) -> None:
    """Raise HarnessError where a node cannot read what the driver writes there, with the node and the reason.

    It would train into a folder of its own, and nobody would find what it made.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    with workspace.mark() as mark:
        asked = [_look_from(node["NodeID"]).remote(workspace.address, mark) for node in others]
        for node, answer in zip(others, asked, strict=True):
            try:
                fault = ray.get(answer, timeout=PATIENCE_SECONDS)
            except (ray.exceptions.RayError, TimeoutError):  # lost, or busy: then it is no danger now
                continue
            if fault is not None:
                where = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                raise HarnessError(f"{where} {fault}")


def _look_from(node_id: str) -> "ray.remote_function.RemoteFunction":
    on_that_node = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(_look).options(num_cpus=0, max_retries=0, scheduling_strategy=on_that_node)


def _look(address: str, mark: str) -> str | None:
    """What is wrong, seen from this process; null where nothing is."""
    try:
        if Workspace(address).sees(mark):
            return None
    except WorkspaceError as error:
        return f"cannot use the workspace: {error}"
    return (
        f"does not see what this machine writes into --workspace {address}: that folder is of one machine "
        "alone; give one that all nodes mount at the same path (NFS), or a URL (s3://bucket/prefix)"
    )
