"""What a worker may use of its machine."""

import os
from pathlib import Path

import pytest

from harness.engine.worker import usable_cpus


def test_affinity_and_quota_limit_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    quota, old_quota, period = (tmp_path / name for name in ("cpu.max", "quota", "period"))
    quotas = ((str(quota),), (str(old_quota), str(period)))
    assert usable_cpus(quotas) == 8, "no cgroup"
    quota.write_text("max 100000\n")
    assert usable_cpus(quotas) == 8
    quota.write_text("250000 100000\n")
    assert usable_cpus(quotas) == 2
    quota.write_text("50000 100000\n")
    assert usable_cpus(quotas) == 1, "never none"
    quota.unlink()
    old_quota.write_text("-1\n")
    period.write_text("100000\n")
    assert usable_cpus(quotas) == 8
    old_quota.write_text("300000\n")
    assert usable_cpus(quotas) == 3
