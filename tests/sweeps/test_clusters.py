"""The ways onto a cluster in `sweeps/clusters`: each checked as far as one machine allows.

SLURM's script really starts Ray: a head and workers as processes of their own, on addresses of the loopback
network. Only `srun`, `scontrol` and `harness` are stand-ins.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sweeps import kuberay
from tests.sweeps.slurm import SLURM, WORKING_HARNESS, Job, began, stand_ins, wait_for

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "sweeps" / "clusters"

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
