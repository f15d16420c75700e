"""The model of the engine keeps its books: nothing is made twice, nothing is made for nothing."""

import pytest

from benchmarks.simulation import Cluster, Item, Job, Simulation, lower_bound


def item(name: str, seconds: float, grain: float = 1.0) -> Item:
    return Item(name=name, seconds=seconds, grain=grain)


def alone(name: str, seconds: float) -> Job:
    return Job(makes=(item(name, seconds),))


def spent(jobs: list[Job], **cluster: float) -> float:
    return Simulation(Cluster(gpus=int(cluster.pop("gpus")), **cluster)).run(jobs)  # type: ignore[arg-type]


def test_work_is_shared_in_order_and_a_worker_starts_once() -> None:
    jobs = [alone(name, 10) for name in "abcd"]
    assert spent(jobs, gpus=1) == 40
    assert spent(jobs, gpus=2) == 20
    assert spent(jobs, gpus=2, start=5) == 25
    assert spent(jobs, gpus=4, dispatch=1) == 14, "the driver starts one after the other"
    longest_last = [alone("a", 10), alone("b", 10), alone("c", 30)]
    assert (spent(longest_last, gpus=2), spent(longest_last[::-1], gpus=2)) == (40, 30)


def test_what_several_need_is_made_once_and_waited_for() -> None:
    dataset = item("dataset", 7)
    jobs = [Job(makes=(dataset,)), *(Job(needs=(dataset,), makes=(item(name, 10),)) for name in "abc")]
    assert spent(jobs, gpus=4) == 17
    assert spent(jobs, gpus=1) == 37
    assert lower_bound([jobs], 4) == 17 and lower_bound([jobs], 1) == 37


def test_what_can_be_shared_is_made_by_all_who_need_it() -> None:
    dataset = Item(name="dataset", seconds=12, grain=1, workers=3)
    jobs = [Job(makes=(dataset,)), *(Job(needs=(dataset,), makes=(item(name, 10),)) for name in "abc")]
    assert spent(jobs, gpus=4) == 4 + 10, "three draw it, the fourth has nothing left to do"
    assert spent(jobs, gpus=2) == 8 + 20, "the first has two shares, the second one, and waits"
    assert spent(jobs, gpus=1) == 42
    assert lower_bound([jobs], 4) == 14 and lower_bound([jobs], 1) == 42


def test_a_later_stage_finds_what_an_earlier_one_made() -> None:
    run = item("run", 10)
    artifacts = [[Job(makes=(run,))], [Job(needs=(run,), makes=(item("confirmed", 3),))]]
    simulation = Simulation(Cluster(gpus=2))
    assert [simulation.run(jobs) for jobs in artifacts] == [10, 13] and lower_bound(artifacts, 2) == 13


@pytest.mark.parametrize("seed", range(5))
def test_lost_nodes_cost_time_and_nothing_else(seed: int) -> None:
    """Two nodes; what is kept is a multiple of the grain, and all jobs come to their end."""
    dataset = item("dataset", 20, 5)
    jobs = [
        Job(needs=(dataset,), makes=(item(f"run {n}", 50, 10), item(f"draw {n}", 8, 4))) for n in range(12)
    ]
    cluster = Cluster(gpus=4, gpus_per_node=2, start=2, node_lives=60, node_away=15)
    simulation = Simulation(cluster, seed=seed)
    ended = simulation.run(jobs)
    assert simulation.lost_nodes > 0
    assert simulation.seconds_kept() == {
        "dataset": 20,
        **{f"run {n}": 50 for n in range(12)},
        **{f"draw {n}": 8 for n in range(12)},
    }
    assert ended > lower_bound([jobs], 4)
