"""The ways onto a cluster in `sweeps/clusters`: each checked as far as one machine allows.

SLURM's script really starts Ray: a head and workers as processes of their own, on addresses of the loopback
network. Only `srun`, `scontrol` and `harness` are stand-ins.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import kuberay

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "sweeps" / "clusters"
SLURM = CLUSTERS / "slurm.sh"

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
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


StartJob = Callable[..., Job]


@pytest.fixture
def start_job(tmp_path: Path) -> Iterator[StartJob]:
    started: list[Job] = []
    node_tmp = Path(tempfile.mkdtemp(prefix="n"))  # short: Ray's sockets lie below it

    def start(commands: dict[str, str], *, nodes: int, head_ip: str | None = None) -> Job:
        started.append(Job(tmp_path, node_tmp, commands, nodes=nodes, head_ip=head_ip))
        return started[-1]

    yield start
    for job in started:
        for process in job.processes():
            process.kill()
        output, _ = job.process.communicate()
        print(output)  # shown where the test failed
    shutil.rmtree(node_tmp, ignore_errors=True)


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


def test_the_slurm_script_is_sound_shell() -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("bash -n passed; shellcheck is not installed (apt install shellcheck)")
    done = subprocess.run(["shellcheck", SLURM], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_slurm_job_gathers_its_nodes_and_queues_itself_again(start_job: StartJob) -> None:
    commands = {"harness": WORKING_HARNESS}
    for name in ("python", "ray"):  # not links: an interpreter finds its environment by its own path
        commands[name] = f'#!/bin/bash\nexec "{Path(sys.executable).with_name(name)}" "$@"\n'
    job = start_job(commands, nodes=3)
    found = json.loads(began(job, "found.json").read_text())
    assert found["arguments"] == ["run", "sweep.yaml", "--workspace", "/shared/runs", "--set", "seeds=[0, 1]"]
    assert found["address"] == f"{job.network}.1:{job.port}"
    assert set(found["nodes"]) == {f"{job.network}.{node}" for node in (1, 2, 3)}
    assert all((has["CPU"], has["GPU"]) == (3, 2) for has in found["nodes"].values())
    assert all(has["object_store_memory"] == 2e9 for has in found["nodes"].values())
    assert found["all_worked"]

    job.process.send_signal(signal.SIGUSR1)  # SLURM's, shortly before the time is up
    status, output = job.ends()
    assert status == 130, output
    assert "Ray: 3 nodes, 9 CPU, 6 GPU" in output
    head, workers, requeued = job.calls()
    assert "--nodes=1 --ntasks=1 --nodelist=node1 --cpus-per-task=3" in head
    assert "--nodes=2 --ntasks=2 --exclude=node1 --cpus-per-task=3" in workers
    assert requeued == f"scontrol requeue {job.number}"
    wait_for(lambda: not job.processes(), seconds=10)


def stand_ins(harness: str, *, join: str = "0", lose_workers: bool = False) -> dict[str, str]:
    return {
        "harness": f"#!/bin/bash\n{harness}\n",
        "python": PYTHON.replace("JOIN", join),
        "ray": RAY.replace("LOSE_WORKERS", str(lose_workers)),
    }


@pytest.mark.parametrize("status", [0, 1])
def test_a_slurm_job_ends_as_the_sweep_ends(start_job: StartJob, status: int) -> None:
    job = start_job(stand_ins(f"exit {status}"), nodes=1)
    ended, output = job.ends()
    assert ended == status, output
    (head,) = job.calls()  # one node has no workers, and what ended by itself is not queued again
    assert "ray start --head" in head
    assert not job.processes()


def test_the_heads_address_is_its_first_that_others_can_reach(start_job: StartJob) -> None:
    hostname = "#!/bin/bash\n[[ $1 == --ip-address ]] && echo 127.0.1.1 || echo fe80::1 0.0.0.0 127.0.1.2\n"
    job = start_job({**stand_ins("exit 0"), "hostname": hostname}, nodes=1, head_ip="")
    status, output = job.ends()
    assert status == 0, output
    assert f"--node-ip-address=0.0.0.0 --port={job.port}" in job.calls()[0]


def test_a_given_address_asks_no_name_server(start_job: StartJob) -> None:
    """`hostname --ip-address` may wait half a minute for one that does not answer."""
    job = start_job({**stand_ins("exit 0"), "hostname": "#!/bin/bash\nsleep 60\n"}, nodes=1)
    assert job.ends()[0] == 0
    assert f"--node-ip-address={job.network}.1 --port={job.port}" in job.calls()[0]


def test_a_slurm_job_whose_workers_do_not_start_says_so_and_ends(start_job: StartJob) -> None:
    job = start_job(stand_ins("touch began", join="60", lose_workers=True), nodes=3)
    status, output = job.ends()
    assert status == 1
    assert "slurm.sh: Ray did not start on the other nodes" in output
    assert not (job.folder / "began").exists()
    assert not job.processes()


def test_a_slurm_job_that_loses_its_head_says_so_and_ends(start_job: StartJob) -> None:
    job = start_job(stand_ins("touch began; exec sleep 60"), nodes=2)
    began(job, "began")
    (head,) = (one for one in job.processes() if "--head" in one.cmdline() and "srun" not in one.cmdline()[1])
    head.kill()
    status, output = job.ends()
    assert status != 0
    assert "slurm.sh: Ray's head was lost" in output
    assert not any(call.startswith("scontrol") for call in job.calls())
    assert not job.processes()


def test_a_cancelled_slurm_job_stops_the_sweep_and_is_not_queued_again(start_job: StartJob) -> None:
    stopping = "trap 'touch stopped; exit 130' INT; touch began; while true; do sleep 0.1; done"
    job = start_job(stand_ins(stopping), nodes=2)
    began(job, "began")
    job.process.send_signal(signal.SIGTERM)
    status, output = job.ends()
    assert status == 130, output
    assert (job.folder / "stopped").exists()
    assert not any(call.startswith("scontrol") for call in job.calls())
    assert not job.processes()


def test_a_slurm_job_without_a_workspace_says_how_it_is_called(tmp_path: Path) -> None:
    done = subprocess.run(["bash", SLURM, "sweep.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "usage: sbatch slurm.sh SWEEP.yaml SHARED_WORKSPACE" in done.stderr


def aws() -> dict[str, Any]:
    """The configuration with Ray's defaults, as `ray up` reads it."""
    from ray.autoscaler._private.util import prepare_config

    prepared: dict[str, Any] = prepare_config(yaml.safe_load((CLUSTERS / "aws.yaml").read_text()))
    return prepared


def test_the_aws_configuration_passes_rays_own_check() -> None:
    from ray.autoscaler._private.util import validate_config

    config = aws()
    validate_config(config)
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config({**config, "idle_timeout": 5})


def test_the_aws_cluster_installs_nothing_and_keeps_trials_off_the_head() -> None:
    config = aws()
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[key] == [], f"{key}: Ray's default would install another version"
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert config["max_workers"] >= config["available_node_types"]["gpu"]["max_workers"] > 0


def test_every_aws_node_mounts_the_shared_folder_for_its_container() -> None:
    config = aws()
    mounts = [command for command in config["initialization_commands"] if "mount -t nfs4" in command]
    assert len(mounts) == 1 and mounts[0].endswith(" /mnt/shared")
    assert "--volume /mnt/shared:/shared" in config["docker"]["run_options"]
    for command in config["initialization_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def kuberay_documents() -> tuple[kuberay.PersistentVolumeClaim, kuberay.RayJob]:
    claim, job = yaml.safe_load_all((CLUSTERS / "kuberay.yaml").read_text())
    return kuberay.PersistentVolumeClaim.model_validate(claim), kuberay.RayJob.model_validate(job)


def test_the_rayjob_keeps_to_kuberays_fields_and_ends_its_cluster() -> None:
    _, job = kuberay_documents()
    assert job.spec.backoffLimit > 0
    # KubeRay refuses a time to live where the cluster is not to be ended.
    assert job.spec.shutdownAfterJobFinishes and job.spec.ttlSecondsAfterFinished > 0
    assert job.spec.rayClusterSpec.headGroupSpec.rayStartParams["num-cpus"] == "0"
    for group in job.spec.rayClusterSpec.workerGroupSpecs:
        assert group.minReplicas <= group.replicas <= group.maxReplicas
        (container,) = group.template.spec.containers
        assert int(container.resources.limits["nvidia.com/gpu"]) > 0


def test_every_pod_of_the_rayjob_has_the_workspace() -> None:
    claim, job = kuberay_documents()
    assert claim.spec.accessModes == ["ReadWriteMany"]
    cluster = job.spec.rayClusterSpec
    pods = [
        cluster.headGroupSpec.template.spec,
        *(group.template.spec for group in cluster.workerGroupSpecs),
    ]
    workspace = Path(job.spec.entrypoint.split("--workspace ")[1])
    for pod in pods:
        (container,) = pod.containers
        volumes = {volume.name: volume for volume in pod.volumes}
        mounts = {volumes[mount.name].name: Path(mount.mountPath) for mount in container.volumeMounts}
        shared = volumes["shared"].persistentVolumeClaim
        assert shared is not None and shared.claimName == claim.metadata.name
        assert workspace.is_relative_to(mounts["shared"])
        assert mounts["object-store"] == Path("/dev/shm")


def test_one_image_and_one_version_of_ray_everywhere() -> None:
    _, job = kuberay_documents()
    cluster = job.spec.rayClusterSpec
    pods = [cluster.headGroupSpec.template, *(group.template for group in cluster.workerGroupSpecs)]
    images = {container.image for pod in pods for container in pod.spec.containers}
    assert images == {aws()["docker"]["image"]}
    assert all(image.startswith("REPLACE-") for image in images)
    assert f"ray=={cluster.rayVersion}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert f"rayproject/ray:{cluster.rayVersion}-py311" in (CLUSTERS / "Dockerfile").read_text()
