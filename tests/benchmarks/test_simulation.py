"""The model of workers around the queue: tasks wait for what they need, lost nodes cost time alone."""

import pytest

from benchmarks.simulation import Cluster, Cost, Simulation, lower_bound
from harness.engine.tasks import Task

SECONDS = {"run": 50.0, "dataset": 20.0, "images": 8.0}


def task(name: str, seconds: float, *needs: str) -> Task:
    return Task(name=f"{name} {seconds}", makes=(name,), needs=frozenset(needs))


def cost(task: Task) -> Cost:
    return Cost(seconds=float(task.name.split()[-1]), grain=4.0)


def spent(tasks: list[Task], cluster: Cluster) -> float:
    return Simulation([tasks], cost, cluster).run()


def test_work_is_taken_in_order_and_a_worker_starts_once() -> None:
    tasks = [task(name, 10) for name in "abcd"]
    assert spent(tasks, Cluster(gpus=1)) == 40
    assert spent(tasks, Cluster(gpus=2)) == 20
    assert spent(tasks, Cluster(gpus=2, start=5)) == 25
    assert spent(tasks, Cluster(gpus=4, dispatch=1)) == 14, "the driver starts one after the other"
    longest_last = [task("a", 10), task("b", 10), task("c", 30)]
    assert spent(longest_last, Cluster(gpus=2)) == 40
    assert spent(longest_last[::-1], Cluster(gpus=2)) == 30


def test_what_several_need_is_waited_for() -> None:
    tasks = [task("dataset", 7), *(task(name, 10, "dataset") for name in "abc")]
    assert spent(tasks, Cluster(gpus=4)) == 17
    assert spent(tasks, Cluster(gpus=1)) == 37
    assert lower_bound([tasks], cost, 4) == 17 and lower_bound([tasks], cost, 1) == 37


def test_a_phase_waits_for_all_of_the_one_before() -> None:
    phases = [[task("a", 10), task("b", 4)], [task("c", 3)]]
    assert Simulation(phases, cost, Cluster(gpus=2)).run() == 13 == lower_bound(phases, cost, 2)


@pytest.mark.parametrize("seed", range(5))
def test_lost_nodes_cost_time_and_nothing_else(seed: int) -> None:
    """Two nodes; what is kept is a multiple of the grain, and all tasks come to their end."""
    tasks = [task("dataset", 20)]
    for n in range(12):
        tasks += [task(f"run{n}", 50, "dataset"), task(f"images{n}", 8, f"run{n}")]
    cluster = Cluster(gpus=4, gpus_per_node=2, start=2, node_lives=60, node_away=15)
    simulation = Simulation([tasks], cost, cluster, seed=seed)
    ended = simulation.run()
    assert simulation.lost_nodes > 0
    assert ended > spent(tasks, Cluster(gpus=4, gpus_per_node=2, start=2)) > lower_bound([tasks], cost, 4)
