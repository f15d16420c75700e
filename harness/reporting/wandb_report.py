"""A W&B report of a sweep, built from code: the verdict as static text, and panels that read its runs.

Headline, facts, cautions and the table of controls are text, which stays as it is when runs are hidden or
deleted. Panels name only keys that the sweep's runs have.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema.sweep import WandbTracking
from harness.errors import TrackingError
from harness.reporting.wandb_runs import (
    DEV_IMAGES,
    DIFFERENCE,
    EVAL_DIFFERENCE,
    LOSS,
    STEP,
    TEST_IMAGES,
    VALIDATION_LOSS,
    Run,
    flat_names,
)
from harness.results.contrast import Contrast, text
from harness.results.format import MISSING, interval, markdown, metric_name, p_text, percent, plain, signed
from harness.results.headline import verdict
from harness.results.study import Study
from harness.results.tables import FACTS

if TYPE_CHECKING:
    from harness.results import Results

FILE = "report.json"  # offline, beside the runs
LONGEST_TITLE = 128  # characters; W&B refuses more
WIDE, HIGH = 24, 10  # of a panel, in W&B's units: a row is 24 wide
SMOOTHING = 0.9  # of the loss of a step, which depends mostly on its random timestep
FINDINGS = {"missing": "no numbers"}  # the others are words already


def require_library() -> None:
    """Raise TrackingError, before any work, where the extra is not installed."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise TrackingError(
            "a W&B report needs wandb-workspaces: pip install 'lora-sweep-harness[report]', or leave out "
            "--report (tracking.report: true)"
        )


def build(results: "Results", runs: Sequence[Run], config: WandbTracking) -> Any:
    """The report. Nothing is sent; a project is named by the report alone, so that no server is asked."""
    import wandb_workspaces.reports.v2 as wr

    page = _Blocks(results, runs)
    found = verdict(page.study)
    return wr.Report(
        project=config.project,
        entity=config.entity or "",
        title=_shortened(f"{results.sweep['name']}: {found.headline}"),
        description=results.sweep["question"],
        width="fluid",
        blocks=[
            wr.CalloutBlock(text=found.headline),
            wr.MarkdownBlock(text=_bullets(map(markdown, found.facts))),
            wr.TableOfContents(),
            wr.H2(text="Against the controls"),
            wr.MarkdownBlock(text=page.controls(found.contrasts)),
            *([wr.MarkdownBlock(text=_bullets(map(markdown, found.cautions)))] if found.cautions else []),
            *page.trials(),
            *page.training(),
            *page.images(),
            *page.tables(),
            *page.methods(),
        ],
    )


def as_json(report: Any) -> str:
    """The report as W&B stores it."""
    # The one way without a server: `save` sends this model, and has no face of its own for it.
    text_of_it: str = report._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
    return text_of_it


def digest(report_json: str) -> str:
    """Hex sha256 of a report's JSON without the ids that W&B's library draws for each panel."""
    return hashlib.sha256(json.dumps(_without_ids(json.loads(report_json))).encode()).hexdigest()


def save(report: Any, known: dict[str, Any], config: WandbTracking, folder: Path) -> dict[str, Any]:
    """Write the report, offline as a file; `known` is what the ledger has of it, and the answer its new row.

    Online a report that was saved before is replaced, and one that is still the same is left alone.
    """
    import wandb

    content = as_json(report)
    now = digest(content)
    if known.get("digest") == now:
        return known
    if config.mode == "offline":
        file = folder / FILE
        temporary = file.with_suffix(".tmp")
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(file)
        return {"digest": now, "folder": FILE}
    if not report.entity:
        report.entity = wandb.Api().default_entity or ""
    report.id = known.get("id", "")
    report.save()
    return {"digest": now, "folder": FILE, "id": report.id, "url": report.url}


@dataclass(frozen=True)
class _Blocks:
    """The sections of the report. Every key in a panel is one that the runs have."""

    results: "Results"
    runs: Sequence[Run]

    @cached_property
    def study(self) -> Study:
        """The sweep, seen from its question."""
        return Study(self.results)

    def controls(self, contrasts: Sequence[Contrast]) -> str:
        """The selected trial against each control, as a Markdown table."""
        study = self.study
        decimals = study.decimals[study.primary]
        where = "held-out test prompts" if study.split == "test" else "dev prompts, on which it was selected"
        confidence = f"{100 * self.results.sweep['analysis']['confidence']:g} %"
        head = [
            "control",
            f"mean of {study.arm}",
            "its mean",
            "difference",
            f"{confidence} interval",
            "as guidance",
            "p",
            "wins",
            "finding",
            "what it is",
        ]
        rows = [
            [
                c.control,
                plain(c.mean_arm, decimals),
                plain(c.mean_control, decimals),
                signed(c.difference, decimals),
                interval(c.low, c.high, decimals),
                study.as_guidance(c),
                p_text(c.p),
                percent(c.win_rate),
                FINDINGS.get(c.finding, c.finding),
                study.about(c.control),
            ]
            for c in contrasts
        ]
        rows += [
            [
                f"{c.arm} − {c.control}",
                plain(c.mean_arm, decimals),
                plain(c.mean_control, decimals),
                signed(c.difference, decimals),
                interval(c.low, c.high, decimals),
                MISSING,
                p_text(c.p),
                percent(c.win_rate),
                "found" if found else "not found",
                study.about(name),
            ]
            for name, c, found in (study.known_damage if contrasts else ())
        ]
        selected = study.labels.get(study.selected or "", "no trial")
        return f"{metric_name(study.primary)}, {markdown(selected)}, {where}:\n\n{_table(head, rows)}"

    def trials(self) -> Iterator[Any]:
        """Which settings do it: parallel coordinates, importance, a scatter plot per axis, the comparer."""
        import wandb_workspaces.reports.v2 as wr

        axes = self._axes()
        yield wr.H2(text="Trials, on dev prompts")
        panels: list[Any] = []
        if DIFFERENCE in self._keys and axes:
            columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(axis)) for axis in axes]
            columns.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(DIFFERENCE)))
            panels.append(wr.ParallelCoordinatesPlot(columns=columns, layout=wr.Layout(w=16, h=HIGH)))
            importance = wr.ParameterImportancePlot(with_respect_to=DIFFERENCE, layout=wr.Layout(w=8, h=HIGH))
            panels.append(importance)
            panels += [
                wr.ScatterPlot(
                    title=f"difference over {axis}", x=wr.Config(axis), y=wr.SummaryMetric(DIFFERENCE)
                )
                for axis in axes
            ]
        panels.append(wr.RunComparer(diff_only="split", layout=wr.Layout(w=WIDE, h=HIGH)))
        yield wr.PanelGrid(runsets=[self._runset("trials", "trial")], panels=panels)

    def training(self) -> Iterator[Any]:
        """Losses by step, and the difference at each checkpoint that was scored."""
        import wandb_workspaces.reports.v2 as wr

        group = self._axes()[:1]
        lines = [(LOSS, SMOOTHING), (VALIDATION_LOSS, 0.0), (EVAL_DIFFERENCE, 0.0)]
        panels = [
            wr.LinePlot(
                title=key,
                x=STEP,
                y=[key],
                smoothing_factor=smoothing or None,
                groupby=wr.Config(group[0]) if group and key == EVAL_DIFFERENCE else None,
            )
            for key, smoothing in lines
            if key in self._keys
        ]
        if panels:
            yield wr.H2(text="Training")
            yield wr.PanelGrid(runsets=[self._runset("trials", "trial")], panels=panels)

    def images(self) -> Iterator[Any]:
        """The same prompts and seeds in all trials, then the selected trial beside its controls."""
        import wandb_workspaces.reports.v2 as wr

        study = self.study
        own = f"{DEV_IMAGES}/{study.arm}"
        if own not in self._keys:
            return
        yield wr.H2(text="Images")
        yield wr.P(text="A column is a prompt and seed, the same in every row; a row is a trial.")
        browser = wr.MediaBrowser(
            title=own, media_keys=[own], grid_x_axis="index", grid_y_axis="run", layout=_whole(wr)
        )
        yield wr.PanelGrid(runsets=[self._runset("trials", "trial")], panels=[browser])
        if study.selected is None:
            return
        key = TEST_IMAGES if f"{TEST_IMAGES}/{study.arm}" in self._keys else DEV_IMAGES
        shown = [name for arm in [study.arm, *study.controls] if (name := f"{key}/{arm}") in self._keys]
        where = "held-out" if key == TEST_IMAGES else "dev"
        yield wr.P(text=f"The selected trial and its controls, {where} prompts.")
        browser = wr.MediaBrowser(
            title="selected and controls",
            media_keys=shown,
            grid_x_axis="index",
            grid_y_axis="run",
            layout=_whole(wr),
        )
        yield wr.PanelGrid(runsets=[self._selected()], panels=[browser])

    def tables(self) -> Iterator[Any]:
        """Every contrast, from the table of the sweep's run."""
        import wandb_workspaces.reports.v2 as wr

        yield wr.H2(text="All contrasts")
        panel = wr.WeavePanelSummaryTable(table_name="contrasts", layout=_whole(wr))
        yield wr.PanelGrid(runsets=[self._runset("sweep", "sweep")], panels=[panel])

    def methods(self) -> Iterator[Any]:
        """Model, scorers and their hashes, splits, versions, and the command that runs the sweep again."""
        import wandb_workspaces.reports.v2 as wr

        sweep = self.results.sweep
        config = {key: value for key, value in sweep.items() if key not in FACTS}
        yield wr.H2(text="Methods")
        yield wr.MarkdownBlock(text=_bullets(self._facts()))
        yield wr.P(text=f"To run it again, save this as {sweep['name']}.json:")
        code = json.dumps(config, indent=1, ensure_ascii=False)
        yield wr.CodeBlock(code=code, language="json")
        command = f"harness run {sweep['name']}.json --workspace runs"
        yield wr.MarkdownBlock(text=f"and run\n\n```bash\n{command}\n```")

    def _facts(self) -> Iterator[str]:
        sweep, analysis = self.results.sweep, self.results.sweep["analysis"]
        splits = [prompt["split"] for prompt in sweep["prompts"]]
        model = sweep["model"]
        yield f"Model: {markdown(model.get('source', model['kind']))}, `{model['digest']}`"
        scorers = self.results.scores[["metric", "metric_version", "weights_hash"]].drop_duplicates()
        for row in scorers.to_dict("records"):
            weights = text(row["weights_hash"])
            hashed = f", weights `{weights}`" if weights else ""
            yield f"Metric: {row['metric']}, version {row['metric_version']}{hashed}"
        yield (
            f"Prompts: {splits.count('dev')} dev, {splits.count('test')} test; seeds "
            f"{', '.join(map(str, sweep['seeds']))}; all arms of a (prompt, seed) start from the same latents"
        )
        yield (
            f"Intervals: {100 * analysis['confidence']:g} %, prompts are the unit; p by sign flips, adjusted "
            "over all trials and arms; the trial is selected on dev prompts and reported on test prompts"
        )
        versions = ", ".join(f"{name} {version}" for name, version in sorted(sweep["versions"].items()))
        yield f"Versions: {versions}; finished {sweep['finished_at']}"

    def _axes(self) -> list[str]:
        """Config keys of the axes that vary."""
        names = flat_names(self.results.axes)
        return [names[axis] for axis in self.study.axes]

    @cached_property
    def _keys(self) -> frozenset[str]:
        """Every metric and media key of the runs; a panel names no other."""
        found = {key for run in self.runs for key in (*run.summary, *run.images)}
        return frozenset(found | {key for run in self.runs for row in run.history for key in row})

    def _runset(self, name: str, job_type: str) -> Any:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as wr

        study = self.study
        lower = any(c.higher_is_better is False for c in study.against(split="dev", metric=study.primary))
        columns = [f"config:{axis}.value" for axis in self._axes()] if job_type == "trial" else []
        numbers = [f"summary:{DIFFERENCE}", "summary:primary/ci_low", "summary:primary/ci_high"]
        return wr.Runset(
            name=name,
            filters=expr.And(
                expr.Metric("Group") == self.results.sweep["name"],
                expr.Metric("JobType") == job_type,
            ),
            order=[wr.OrderBy(wr.SummaryMetric(DIFFERENCE), ascending=lower)] if columns else [],
            pinned_columns=columns + [key for key in numbers if columns and key[8:] in self._keys],
        )

    def _selected(self) -> Any:
        """The selected trial's run and those of the controls it is compared with."""
        import wandb_workspaces.expr as expr
        import wandb_workspaces.reports.v2 as wr

        arms = self.results.arms
        arms = arms[(arms["trial_id"] == self.study.selected) & arms["is_control"].astype(bool)]
        name = self.results.sweep["name"]
        ids = [f"{name}-{self.study.selected}", *(f"{name}-control-{arm_id}" for arm_id in arms["arm_id"])]
        return wr.Runset(
            name="selected and controls", filters=expr.And(expr.Metric("ID").isin(ids)), order=[]
        )


def _whole(wr: Any) -> Any:
    return wr.Layout(w=WIDE, h=2 * HIGH)


def _shortened(title: str) -> str:
    return title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(markdown, row)) + " |" for row in cells)


def _without_ids(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_ids(inner) for key, inner in value.items() if key not in ("id", "__id__")}
        case list():
            return [_without_ids(inner) for inner in value]
        case _:
            return value
