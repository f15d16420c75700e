"""Leases: one holder, a dead one's is taken over, clocks of machines are never compared."""

import json
import threading
import time

import pytest

from harness.store import locks as lease
from harness.store.locks import Lease, Leases
from harness.store.objects import Bucket

LOCK = ".locks/run-1"


def of_another_machine(beat: int, **changes: object) -> bytes:
    said = {"machine": "another", "process": 1, "started": "1", "seconds": 1.0, "beat": beat}
    return json.dumps({**said, **changes}).encode()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.2)
    return Bucket(s3)


def test_one_that_stands_still_is_taken_over_by_the_watchers_clock(bucket: Bucket) -> None:
    bucket.write(f"{LOCK}/00000007", of_another_machine(3))
    leases, began = Leases(bucket), time.monotonic()
    assert leases.locked(LOCK)
    with leases.lock_if_free(LOCK) as free:
        assert free and time.monotonic() - began >= 1.0
        assert list(bucket.find(LOCK)) == [f"{LOCK}/00000008"]
    assert not leases.locked(LOCK)


def test_one_that_beats_is_left_alone(bucket: Bucket) -> None:
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(0.1):
            count += 1
            bucket.write(f"{LOCK}/00000001", of_another_machine(count))

    bucket.write(f"{LOCK}/00000001", of_another_machine(0))
    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with Leases(bucket).lock_if_free(LOCK) as free:
            assert not free
    finally:
        over.set()
        beating.join()


def test_a_dead_process_of_this_machine_is_known_at_once(bucket: Bucket) -> None:
    content = json.loads(lease._content(beat=0))
    bucket.write(f"{LOCK}/00000001", json.dumps({**content, "started": "0", "seconds": 1000}).encode())
    with Leases(bucket).lock_if_free(LOCK) as free:
        assert free


def test_a_held_one_beats_and_ends_free(bucket: Bucket) -> None:
    leases = Leases(bucket)
    with leases.lock_if_free(LOCK) as free:
        first = bucket.read([f"{LOCK}/00000001"])
        time.sleep(0.6)
        assert free and bucket.read([f"{LOCK}/00000001"]) != first
        with Leases(bucket).lock_if_free(LOCK) as again:
            assert not again
    assert Lease(LOCK, 1, bucket.read([f"{LOCK}/00000001"])[f"{LOCK}/00000001"]).held is False


def test_of_many_who_see_a_dead_one_one_takes_it(bucket: Bucket) -> None:
    bucket.write(f"{LOCK}/00000001", of_another_machine(0, seconds=0.3))
    inside, most = [0], [0]
    count = threading.Lock()

    def work() -> None:
        with Leases(bucket).lock(LOCK):
            with count:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.2)
            with count:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.parametrize(("seen", "there"), [(1, 3), (7, 1)], ids=["gone on", "cleared and begun anew"])
def test_whoever_looked_long_ago_does_not_hold_it(
    seen: int, there: int, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write(f"{LOCK}/{there:08d}", of_another_machine(0, seconds=1000))
    late = Leases(bucket)
    long_ago = Lease(LOCK, seen, of_another_machine(0, free=True))
    monkeypatch.setattr(late, "_all", lambda lock: [long_ago])
    assert late._take(LOCK, lease._Watch()) is None
    assert list(bucket.find(LOCK)) == [f"{LOCK}/{there:08d}"]


def test_two_that_died_are_taken_over_and_one_alive_among_them_is_not(bucket: Bucket) -> None:
    """A holder that died before it had taken its predecessor away leaves both."""
    dead = of_another_machine(0, seconds=0.3)
    bucket.write(f"{LOCK}/00000003", dead)
    bucket.write(f"{LOCK}/00000004", dead)
    with Leases(bucket).lock_if_free(LOCK) as free:
        assert free and list(bucket.find(LOCK)) == [f"{LOCK}/00000005"]
        bucket.write(f"{LOCK}/00000009", dead)  # of one that was halted for long, and then went on
        with Leases(bucket).lock_if_free(LOCK) as again:
            assert not again
