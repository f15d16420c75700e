"""A W&B report from code, without any connection: what it says, and that all it names is in the runs."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema.sweep import WandbTracking
from harness.errors import TrackingError
from harness.reporting import wandb_report
from harness.reporting.wandb_tracker import make_tracker
from harness.results import Results
from harness.results.headline import verdict
from harness.results.study import Study
from harness.results.tables import FACTS
from harness.store.workspace import Workspace
from tests.reporting.report import example
from tests.reporting.wandb_files import captions, content, offline_runs

WITH_REPORT = WandbTracking(project="tests", images_per_trial=2, report=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def results(workspace: Path) -> Results:
    """Two recipes, ranks 4 and 16, 100 and 200 steps; trial 2 failed."""
    return example.build(workspace, example.config(n_prompts=12, seeds=(0,)), gain=2.0)


@pytest.fixture(scope="module")
def published(results: Results, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published while every connection that leaves the machine, or asks for a name, is refused."""
    folder = tmp_path_factory.mktemp("published")
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        # W&B's own background process listens on loopback or on a file.
        if isinstance(address, tuple) and not str(address[0]).startswith("127."):
            raise ConnectionRefusedError(address)
        connect(self, address)

    def unknown(host: object, *_: Any, **__: Any) -> None:
        raise socket.gaierror(f"no names here: {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", unknown)
        make_tracker(WITH_REPORT, folder=folder).publish(results, Workspace(workspace))
    return folder


@pytest.fixture(scope="module")
def report(published: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((published / "wandb" / wandb_report.FILE).read_text())
    return found


def texts(report: dict[str, Any]) -> list[str]:
    return [block["content"] for block in report["spec"]["blocks"] if block["type"] == "markdown-block"]


def code(report: dict[str, Any]) -> str:
    (found,) = [block for block in report["spec"]["blocks"] if block["type"] == "code-block"]
    return "\n".join(line["children"][0]["text"] for line in found["children"])


def grids(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for block in report["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            yield block["metadata"]


def panels(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for grid in grids(report) for panel in grid["panelBankSectionConfig"]["panels"]]


def test_wandbs_own_reader_takes_it(report: dict[str, Any]) -> None:
    from wandb_workspaces.reports.v2 import interface, internal

    spec = internal.Spec.model_validate(report["spec"])
    model = internal.ReportViewspec.model_validate({**report, "spec": json.dumps(report["spec"])})
    again = interface.Report._from_model(model)
    assert len(spec.blocks) == len(report["spec"]["blocks"])
    kinds = [type(block).__name__ for block in again.blocks]
    assert kinds[:3] == ["CalloutBlock", "MarkdownBlock", "TableOfContents"]
    assert not [kind for kind in kinds if kind.startswith("Unknown")]


def test_the_verdict_and_the_controls_are_text(report: dict[str, Any], results: Results) -> None:
    found = verdict(Study(results))
    assert report["displayName"].startswith("example: ") and len(report["displayName"]) <= 128
    assert report["spec"]["blocks"][1]["children"][0]["children"][0]["text"] == found.headline
    said = "\n".join(texts(report))
    for line in (*found.facts, *found.cautions):
        assert line in said
    for control in ("baseline", "placebo", "sham"):
        assert re.search(rf"^\| {control} \| .*\[.*\]", said, re.MULTILINE)


def test_the_methods_have_hashes_and_the_command_to_run_again(
    report: dict[str, Any], results: Results
) -> None:
    said = "\n".join(texts(report))
    assert "harness run example.json --workspace" in said
    assert results.sweep["model"]["digest"] in said
    for weights in results.scores["weights_hash"].dropna().unique():
        assert weights in said
    assert json.loads(code(report)) == {key: results.sweep[key] for key in results.sweep if key not in FACTS}


def test_there_is_each_kind_of_panel(report: dict[str, Any]) -> None:
    assert {panel["viewType"] for panel in panels(report)} == {
        "Parallel Coordinates Plot",
        "Parameter Importance",
        "Scatter Plot",
        "Run Comparer",
        "Run History Line Plot",
        "Media Browser",
        "Weave",
    }
    (first, second) = [panel["config"] for panel in panels(report) if panel["viewType"] == "Media Browser"]
    assert first["gridSettings"] == {"xAxis": "index", "yAxis": "run"}
    assert first["mediaKeys"] == ["images/wrong_lora"]
    assert set(second["mediaKeys"]) == {
        f"test_images/{arm}" for arm in ("wrong_lora", "baseline", "placebo", "sham")
    }


def test_every_key_and_run_that_it_names_exists(report: dict[str, Any], published: Path) -> None:
    folders = offline_runs(published)
    runs = {run_id: content(folder) for run_id, folder in folders.items()}
    config = {key for run in runs.values() for key in run["config"]}
    summary = {key for run in runs.values() for key in run["summary"]}
    history = {key for run in runs.values() for row in run["history"] for key in row}
    media = {key for run in runs.values() for key in captions(run["history"])}
    text = json.dumps(report["spec"])
    named_config = set(re.findall(r'"config:([^"]+?)\.value"', text))
    named_summary = set(re.findall(r'"summary:([^"]+?)"', text))
    assert named_config == {"recipe", "rank", "steps"} <= config
    assert {"primary/difference", "primary/ci_low"} <= named_summary <= summary
    lines = [panel["config"] for panel in panels(report) if panel["viewType"] == "Run History Line Plot"]
    named = {key for line in lines for key in [line["xAxis"], *line["metrics"]]}
    assert {"train/step", "train/loss", "eval/primary/difference"} <= named <= history
    assert {line["groupBy"] for line in lines if "groupBy" in line} == {"recipe.value"}
    for panel in panels(report):
        assert set(panel["config"].get("mediaKeys", [])) <= media
        assert panel["config"].get("targetKey", "primary/difference") in summary
    for grid in grids(report):
        for runset in grid["runSets"]:
            for rule in runset["filters"]["filters"]:
                values = [rule["value"]] if isinstance(rule["value"], str) else rule["value"]
                field = {"group": "group", "jobType": "job_type", "name": "run_id"}[rule["key"]["name"]]
                assert set(values) <= {run[field] for run in runs.values()}
    assert re.findall(r'"val": "(\w+)"', text) == ["contrasts"]
    assert "contrasts" in runs["example-sweep"]["summary"]


def test_twice_is_once_and_a_change_is_written(published: Path, results: Results, workspace: Path) -> None:
    file = published / "wandb" / wandb_report.FILE
    before = file.read_bytes()
    published_again = make_tracker(WITH_REPORT, folder=published).publish(results, Workspace(workspace))
    assert file.read_bytes() == before
    assert published_again.next_steps[-1] == str(file)
    changed = replace(results, sweep={**results.sweep, "question": "Another?"})
    runs = wandb_report.build(changed, [], WITH_REPORT)
    assert wandb_report.digest(wandb_report.as_json(runs)) != wandb_report.digest(before.decode())


def test_a_sweep_without_a_usable_trial_has_a_report_too(results: Results) -> None:
    trials = results.trials.assign(status="failed", reason="out of memory", selected=False)
    none = results.summary.assign(mean_difference=None, ci_low=None, ci_high=None)
    report = wandb_report.build(replace(results, trials=trials, summary=none), [], WITH_REPORT)
    content = json.loads(wandb_report.as_json(report))
    assert "No verdict" in content["displayName"]
    assert {panel["viewType"] for panel in panels(content)} == {"Run Comparer", "Weave"}


def test_without_the_extra_it_says_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrackingError, match=r"lora-sweep-harness\[report\]"):
        make_tracker(WITH_REPORT, folder=tmp_path)
