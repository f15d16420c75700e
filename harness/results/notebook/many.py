"""Several sweeps at once: their frames one below the other, and comparisons across them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import metric_of
from harness.errors import ArtifactError, ConfigError
from harness.results import tables
from harness.results.notebook.compare import compared
from harness.results.notebook.results import NotebookResults
from harness.store.workspace import Workspace

SAME = ("model", "prompts", "seeds", "sampler")  # of sweeps whose images can be paired, beside the scorer


class SweepSet:
    """Sweeps by name. Its frames are those of `Results` with a column `sweep` in front."""

    def __init__(self, sweeps: Mapping[str, NotebookResults]) -> None:
        """Give them by name."""
        self.sweeps = dict(sweeps)

    def __repr__(self) -> str:
        """The names, and what differs."""
        differ = list(dict.fromkeys(self.differences["what"]))
        names = ", ".join(self.sweeps)
        return f"{len(self.sweeps)} sweeps: {names}; they differ in {', '.join(differ) or 'nothing'}"

    def __getitem__(self, name: str) -> NotebookResults:
        """One of them."""
        return self.sweeps[name]

    @property
    def trials(self) -> pd.DataFrame:
        """As `Results.trials`; an axis that a sweep does not have is null."""
        return self._joined("trials")

    @property
    def arms(self) -> pd.DataFrame:
        """As `Results.arms`."""
        return self._joined("arms")

    @property
    def images(self) -> pd.DataFrame:
        """As `Results.images`."""
        return self._joined("images")

    @property
    def scores(self) -> pd.DataFrame:
        """As `Results.scores`."""
        return self._joined("scores")

    @property
    def summary(self) -> pd.DataFrame:
        """As `Results.summary`; p_adjusted is for the trials of its own sweep."""
        return self._joined("summary")

    @property
    def losses(self) -> pd.DataFrame:
        """As `Results.losses`."""
        return self._joined("losses")

    def pairs(
        self, *, control: str | None = None, arm: str | None = None, split: str | None = None
    ) -> pd.DataFrame:
        """As `Results.pairs`, of each sweep; `control` None: its own `analysis.control`."""
        return self._concat(
            {name: r.pairs(control=control, arm=arm, split=split) for name, r in self.sweeps.items()}
        )

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Where the sweeps are not alike: what (model, prompts, seeds, sampler, a scorer), sweep, value."""
        facts = {name: dict(_facts(results)) for name, results in self.sweeps.items()}
        whats = list(dict.fromkeys(what for known in facts.values() for what in known))
        unlike = [what for what in whats if len({known.get(what) for known in facts.values()}) > 1]
        rows = [
            {"what": what, "sweep": name, "value": facts[name].get(what)}
            for what in unlike
            for name in self.sweeps
        ]
        return pd.DataFrame(rows, columns=["what", "sweep", "value"])

    def compare(
        self,
        *,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        by: Sequence[str] = (),
        metric: str | None = None,
        split: str = "dev",
    ) -> pd.DataFrame:
        """As `Results.compare`, across sweeps: `s.compare(a={"sweep": "one"}, b={"sweep": "two"})`.

        Raises ConfigError, saying what differs, where the sweeps' images are no pairs: another model, other
        prompts, seeds or sampler, or another scorer.
        """
        first = next(iter(self.sweeps.values()))
        analysis = AnalysisConfig.model_validate(first.sweep["analysis"])
        kind = metric or analysis.primary
        named = {side["sweep"] for side in (a, b) if side.get("sweep") in self.sweeps}
        chosen = {name: r for name, r in self.sweeps.items() if not named or name in named}
        unlike = SweepSet(chosen).differences
        unlike = unlike[unlike["what"].isin([*SAME, f"scorer {kind}"])]
        if len(unlike):
            what = unlike["what"].iloc[0]
            rows = unlike[unlike["what"] == what]
            says = "; ".join(f"{n}: {str(v)[:60]}" for n, v in zip(rows["sweep"], rows["value"], strict=True))
            raise ConfigError(f"these sweeps cannot be compared, they differ in {what} ({says})")
        table = self._concat({name: r.cells(metric=kind) for name, r in chosen.items()})
        axes = ["sweep", *dict.fromkeys(axis for r in chosen.values() for axis in r.axes)]
        config = metric_of(next(m for m in first.sweep["metrics"] if m["name"] == kind))
        return compared(table, axes, (a, b), by=by, metric=config, split=split, analysis=analysis)

    def _joined(self, frame: str) -> pd.DataFrame:
        return self._concat({name: getattr(results, frame) for name, results in self.sweeps.items()})

    def _concat(self, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        parts = []
        for name, frame in frames.items():
            part = frame.copy()
            part.insert(0, "sweep", name)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)


def load_many(paths: Sequence[str | Path]) -> SweepSet:
    """Several sweeps by their folders, as `results.load` takes them.

    Raises what `results.load` raises, and ConfigError where two have the same name or there is none.
    """
    found: dict[str, NotebookResults] = {}
    for path in paths:
        workspace, folder = Workspace.of_sweep(path)
        results = NotebookResults.read(folder, workspace)
        name = str(results.sweep["name"])
        if name in found:
            raise ConfigError(f"two sweeps are named {name!r}; run one of them under another name")
        found[name] = results
    if not found:
        raise ConfigError("load_many: give at least one folder, as WORKSPACE/sweeps/NAME")
    return SweepSet(found)


def sweeps(workspace: str | Path) -> pd.DataFrame:
    """The finished sweeps of a workspace: name, question, finished_at, trials, folder (to load it), reason.

    `reason` says why a sweep cannot be loaded, as one that is damaged or of another version; what is not
    known of it is then null.
    """
    store = Workspace(str(workspace))
    rows: list[dict[str, Any]] = []
    for name in store.sweep_names():
        folder = store.fetch_sweep(name)
        row = {"name": name, "folder": f"{store.address}/sweeps/{name}", "reason": None}
        if not (folder / tables.SWEEP).is_file():
            continue
        try:
            sweep = tables.read_sweep(folder)
            trials = tables.read_table(folder / tables.table_file("trials"), tables.TRIALS)
        except ArtifactError as error:
            rows.append({**row, "reason": str(error)})
            continue
        facts = {key: sweep[key] for key in ("question", "finished_at")}
        rows.append({**row, **facts, "trials": len(trials)})
    columns = ["name", "question", "finished_at", "trials", "folder", "reason"]
    return pd.DataFrame(rows, columns=columns).astype({"trials": "Int64"})


def _facts(results: NotebookResults) -> Iterator[tuple[str, str]]:
    """What must be alike, as text."""
    sweep = results.sweep
    yield "model", json.dumps(sweep["model"], sort_keys=True)
    prompts = sorted((prompt["text"], prompt["split"]) for prompt in sweep["prompts"])
    yield "prompts", f"{len(prompts)}, beginning with " + ", ".join(map(str, prompts))
    yield "seeds", ", ".join(map(str, sorted(sweep["seeds"])))
    yield "sampler", json.dumps(sweep["sampler"], sort_keys=True)
    scorers = results.scores[["metric", "metric_version", "weights_hash"]].drop_duplicates()
    for row in scorers.astype(object).fillna("none").to_dict("records"):
        yield f"scorer {row['metric']}", f"version {row['metric_version']}, weights {row['weights_hash']}"
