"""What may start when, what a lost artifact takes with it, and how a story goes on, ends, or breaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from harness.engine.outcomes import Outcome, failure
from harness.engine.queue import Phase, Queue, Story
from harness.engine.tasks import Task, TrainingTask


@dataclass(frozen=True, kw_only=True)
class Several(Task):
    """A task that does without what is lost: it then makes the rest."""

    made_of: tuple[tuple[str, str], ...]  # what it makes, and of what

    def without(self, lost: str) -> Task | None:
        """As an ImagesTask."""
        left = tuple((name, need) for name, need in self.made_of if need != lost)
        return several(self.name, left) if left else None


def several(name: str, made_of: tuple[tuple[str, str], ...]) -> Several:
    needs = frozenset(need for _, need in made_of)
    return Several(name=name, makes=tuple(made for made, _ in made_of), needs=needs, made_of=made_of)


def task(name: str, *needs: str) -> Task:
    return Task(name=name, makes=(f"thing {name}",), needs=frozenset(f"thing {need}" for need in needs))


def training(name: str, *needs: str) -> TrainingTask:
    plain = task(name, *needs)
    return TrainingTask(name=name, makes=plain.makes, needs=plain.needs, runs=())


def queue_of(
    *phases: Sequence[Task], stop: Callable[[], bool] = lambda: False
) -> tuple[Queue, list[list[Outcome]]]:
    """A queue, and what its story is sent at the end of each phase."""
    sent: list[list[Outcome]] = []

    def story() -> Story:
        for tasks in phases:
            sent.append((yield Phase(tasks=tasks)))
        return None

    return Queue(story(), stop), sent


def taken(queue: Queue, **how: Any) -> list[str]:
    """The names of all tasks that can start now."""
    found = []
    while (ready := queue.next(**how)) is not None:
        found.append(ready.name)
    return found


def test_a_task_starts_once_all_that_it_needs_is_there() -> None:
    first, second, both, last = task("a"), task("b"), task("c", "a", "b"), task("d", "c")
    queue, sent = queue_of([last, both, second, first])
    assert taken(queue) == ["b", "a"], "in the order of the list"
    queue.done(Outcome(task=first))
    assert taken(queue) == []
    queue.done(Outcome(task=second))
    assert taken(queue) == ["c"]
    queue.done(Outcome(task=both))
    assert taken(queue) == ["d"] and not sent
    queue.done(Outcome(task=last))
    assert queue.finished and [outcome.task.name for outcome in sent[0]] == ["a", "b", "c", "d"]


def test_what_no_task_of_the_phase_makes_is_there_already() -> None:
    queue, _ = queue_of([task("a", "of the phase before")])
    assert taken(queue) == ["a"]


def test_training_tasks_can_be_left_where_they_are() -> None:
    queue, _ = queue_of([training("t"), task("a"), training("u")])
    assert taken(queue, training=False) == ["a"]
    assert taken(queue) == ["t", "u"]
    queue, _ = queue_of([training("t"), task("a"), training("u")])
    assert taken(queue) == ["t", "a", "u"], "else all in the order of the list"


def test_a_lost_artifact_takes_with_it_what_needs_it_and_no_other() -> None:
    broken, sound = task("a"), task("b")
    queue, sent = queue_of([broken, sound, task("c", "a"), task("d", "c"), task("e", "b")])
    assert taken(queue) == ["a", "b"]
    queue.done(failure(broken, "no room"))
    queue.done(Outcome(task=sound))
    assert taken(queue) == ["e"]
    queue.done(Outcome(task=task("e", "b")))
    told = {outcome.task.name: outcome for outcome in sent[0]}
    assert {name: outcome.reason for name, outcome in told.items()} == {
        "a": "no room",
        "b": None,
        "c": "no room",
        "d": "no room",
        "e": None,
    }
    assert [name for name, outcome in told.items() if outcome.skipped] == ["c", "d"]


def test_what_can_do_without_it_makes_the_rest() -> None:
    broken, sound = task("a"), task("b")
    images = several("images", (("images x", "thing a"), ("images y", "thing b")))
    queue, sent = queue_of([broken, sound, images, Task(name="d", makes=(), needs=frozenset({"images x"}))])
    assert taken(queue) == ["a", "b"]
    queue.done(failure(broken, "no room", again=True))
    assert queue.next() is None, "it still needs the other"
    queue.done(Outcome(task=sound))
    left = queue.next()
    assert left is not None and left.makes == ("images y",)
    queue.done(Outcome(task=left))
    skipped = [outcome for outcome in sent[0] if outcome.skipped]
    assert [outcome.reasons for outcome in skipped] == [{"x": "no room"}]
    assert all(outcome.again for outcome in skipped), "as what it waited for is made again"


def test_one_lost_of_several_is_named_with_its_own_reason() -> None:
    pack = Task(name="pack", makes=("checkpoint p 1", "checkpoint q 1"))
    of_both = [
        Task(name=f"of {run}", makes=(f"images {run}",), needs=frozenset({f"checkpoint {run} 1"}))
        for run in "pq"
    ]
    queue, sent = queue_of([pack, *of_both])
    assert taken(queue) == ["pack"]
    queue.done(
        Outcome(
            task=pack, reason="1 of 2", reasons={"q": "its loss is nan"}, lost=frozenset({"checkpoint q 1"})
        )
    )
    assert taken(queue) == ["of p"]
    queue.done(Outcome(task=of_both[0]))
    assert [(outcome.task.name, outcome.reason) for outcome in sent[0] if outcome.skipped] == [
        ("of q", "its loss is nan")
    ]


def test_what_a_stopped_run_does_not_make_is_no_failure() -> None:
    run = Task(name="run", makes=("checkpoint p 1", "checkpoint p 2"))
    images = [
        Task(name=f"images {step}", makes=(f"images {step}",), needs=frozenset({f"checkpoint p {step}"}))
        for step in (1, 2)
    ]
    queue, sent = queue_of([run, *images])
    assert taken(queue) == ["run"]
    queue.done(Outcome(task=run, lost=frozenset({"checkpoint p 2"})))
    assert taken(queue) == ["images 1"]
    queue.done(Outcome(task=images[0]))
    assert [(outcome.task.name, outcome.reason) for outcome in sent[0]] == [("run", None), ("images 1", None)]


def test_a_phase_begins_when_nothing_of_the_last_runs() -> None:
    first, second = task("a"), task("b")
    queue, sent = queue_of([first, second], [], [task("c")])
    assert taken(queue) == ["a", "b"]
    queue.done(Outcome(task=second))
    assert not sent
    queue.done(Outcome(task=first))
    assert len(sent) == 2 and sent[1] == [], "a phase without tasks is over as it begins"
    assert taken(queue) == ["c"] and not queue.finished


def test_after_a_stop_nothing_starts_and_what_runs_is_waited_for() -> None:
    stopped: list[bool] = []
    first = task("a")
    queue, sent = queue_of([first, task("b")], [task("c")], stop=lambda: bool(stopped))
    assert queue.next() == first
    stopped.append(True)
    assert queue.next() is None
    queue.advance()
    assert not sent, "one runs"
    queue.done(Outcome(task=first))
    assert [outcome.task.name for outcome in sent[0]] == ["a"]


@pytest.mark.parametrize("phases", [0, 1])
def test_an_error_of_the_story_is_raised_where_its_result_is_asked_for(phases: int) -> None:
    def story() -> Story:
        for _ in range(phases):
            yield Phase(tasks=[task("a")])
        raise RuntimeError("the tables")

    queue = Queue(story(), lambda: False)
    for _ in range(phases):
        assert taken(queue) == ["a"] and not queue.finished
        queue.done(Outcome(task=task("a")))
    assert queue.finished and queue.next() is None
    with pytest.raises(RuntimeError, match="the tables"):
        queue.result()


def test_each_outcome_is_heard_when_it_ends() -> None:
    heard: list[str] = []

    def story() -> Story:
        yield Phase(tasks=[task("a"), task("b")])
        return None

    queue = Queue(story(), lambda: False, lambda outcome: heard.append(outcome.task.name))
    assert taken(queue) == ["a", "b"]
    queue.done(Outcome(task=task("b")))
    assert heard == ["b"] and not queue.finished
