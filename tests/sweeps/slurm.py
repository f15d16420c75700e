"""SLURM's batch script run on one machine: stand-ins for the commands that it calls, and a job to watch."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.cli import ctrl_c
from tests.limits import HANGS

SLURM = Path(__file__).parents[2] / "sweeps" / "clusters" / "slurm.sh"

# Notes what it was asked for and runs the command once for each node: the first at HEAD_IP, the others after.
# What real nodes have of their own is told apart: address, port of the agent, temporary folder.
SRUN = r"""#!/bin/bash
echo "srun $*" >> "$CALLS"
first=2
while [[ $1 == --* ]]; do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --nodelist=*) first=1 ;;
  esac
  shift
done
trap 'kill $(jobs -p); wait' TERM
for ((node = first; node < first + nodes; node++)); do
  own=(--temp-dir="$NODE_TMP/$node" --dashboard-agent-listen-port=0)
  ((node == 1)) || own+=(--node-ip-address="${HEAD_IP%.*}.$node")
  "$@" "${own[@]}" &
done
wait
"""

SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
"""

# Works on every node of the cluster that RAY_ADDRESS names, writes what it found, and goes on until stopped.
WORKING_HARNESS = f"""#!{sys.executable}
import json, os, sys, time
import ray

try:
    ray.init(logging_level="ERROR", log_to_driver=False)

    @ray.remote(num_gpus=2)
    def work():
        time.sleep(0.2)
        return ray.get_runtime_context().get_node_id()

    spread = work.options(scheduling_strategy="SPREAD")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    worked = set(ray.get([spread.remote() for _ in nodes]))
    found = {{
        "arguments": sys.argv[1:],
        "address": os.environ["RAY_ADDRESS"],
        "nodes": {{node["NodeManagerAddress"]: node["Resources"] for node in nodes}},
        "all_worked": worked == {{node["NodeID"] for node in nodes}},
    }}
    with open("found.new", "w") as file:
        json.dump(found, file)
    os.rename("found.new", "found.json")
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""

# For what the script decides without Ray: a head that only listens, and nodes that have joined at once.
RAY = f"""#!{sys.executable}
import socket, sys, time
given = dict(one.split("=", 1) for one in sys.argv if one.startswith("--") and "=" in one)
if "--head" in sys.argv:
    listening = socket.create_server((given["--node-ip-address"], int(given["--port"])))
elif LOSE_WORKERS:
    sys.exit(1)
time.sleep(60)
"""

PYTHON = f"""#!/bin/bash
if [[ $1 == -c ]]; then exec "{sys.executable}" "$@"; fi
exec sleep JOIN
"""


def free_port() -> int:
    """One that the script could choose; random, so that two runs of the tests do not meet."""
    while True:
        port = random.randrange(20000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


class Job:
    """A run of the batch script as SLURM would start it on its first node."""

    def __init__(
        self, folder: Path, node_tmp: Path, commands: dict[str, str], *, nodes: int, head_ip: str | None
    ) -> None:
        self.folder = folder
        self.node_tmp = node_tmp
        self.port = free_port()
        self.number = self.port - 20000  # as the script makes the port of the job's number
        self.network = f"127.{1 + self.number // 100}.{self.number % 100}"
        (folder / "bin").mkdir()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **commands}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM"))}
        self.process = subprocess.Popen(
            ["bash", str(SLURM), "sweep.yaml", "/shared/runs", "--set", "seeds=[0, 1]"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=ctrl_c.heard,  # bash cannot trap a signal that it was started to ignore
            env={
                **clean,
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
                "HARNESS_BIN": str(folder / "bin"),
                "HEAD_IP": f"{self.network}.1" if head_ip is None else head_ip,
                "NODE_TMP": str(node_tmp),
                "CALLS": str(folder / "calls"),
                "SLURM_JOB_ID": str(self.number),
                "SLURM_JOB_NUM_NODES": str(nodes),
                "SLURMD_NODENAME": "node1",
                "SLURM_CPUS_PER_TASK": "3",
                "SLURM_GPUS_ON_NODE": "2",
            },
        )

    def calls(self) -> list[str]:
        """What SLURM's commands were asked for, in order."""
        return (self.folder / "calls").read_text().splitlines()

    def processes(self) -> list[psutil.Process]:
        """The job's own processes that are left, known by a variable that they inherit."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("NODE_TMP") == str(self.node_tmp):
                    mine.append(process)
            except psutil.Error:
                continue
        return mine

    def ends(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=HANGS)
        return self.process.returncode, output


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.2)


def began(job: Job, file: str) -> Path:
    """What the sweep wrote when it had begun; a job that ended before fails with what it said."""
    written = job.folder / file
    wait_for(lambda: written.exists() or job.process.poll() is not None, seconds=120)
    assert written.exists(), job.ends()
    return written


def stand_ins(harness: str, *, join: str = "0", lose_workers: bool = False) -> dict[str, str]:
    return {
        "harness": f"#!/bin/bash\n{harness}\n",
        "python": PYTHON.replace("JOIN", join),
        "ray": RAY.replace("LOSE_WORKERS", str(lose_workers)),
    }
