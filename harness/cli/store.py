"""`harness store`: list, verify and delete artifacts."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from harness.cli.console import err, out, styled
from harness.engine.accounting.gc import (
    Entry,
    Finding,
    Kind,
    collect_garbage,
    damaged_sweeps,
    find,
    holdings,
    manifest_of,
    verify,
)
from harness.results.format import duration
from harness.store.workspace import Workspace

app = typer.Typer(no_args_is_help=True, help="List, verify and delete the artifacts of a workspace.")

Where = Annotated[
    str,
    typer.Option("--workspace", "-w", help="The store: a folder, or s3://BUCKET/PREFIX.", metavar="FOLDER"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: one object with every artifact.")]


@app.command()
def ls(
    kind: Annotated[
        Kind | None, typer.Argument(help="List the artifacts of this kind; default: totals per kind.")
    ] = None,
    workspace: Where = "workspace",
    as_json: AsJson = False,
) -> None:
    """List artifacts with size, age, and the sweeps of this workspace that need them."""
    found = holdings(Workspace(workspace))
    entries = [entry for entry in found.entries if kind in (None, entry.kind)]
    if as_json:
        artifacts = [_described(entry) for entry in entries]
        _print_json({"artifacts": artifacts, "sweeps": found.sweeps, "unreadable_sweeps": found.unreadable})
        return
    unused = "not known" if found.unreadable else "no sweep"
    if kind is None:
        _print_sums(entries, unused)
    else:
        _print_entries(entries, unused)
    for reason in found.unreadable.values():
        err.print(styled("note:", "yellow"), f"{reason}; what it needs is not known")


@app.command()
def show(
    artifact: Annotated[
        str, typer.Argument(help="Name of an artifact, as in ls, or the beginning of an id.")
    ],
    workspace: Where = "workspace",
    as_json: AsJson = False,
) -> None:
    """Show one artifact: files, inputs, time, machine and versions."""
    entry = find(holdings(Workspace(workspace)), artifact)
    manifest = manifest_of(entry)
    if as_json:
        _print_json({**_described(entry), "manifest": manifest})
        return
    out.print(styled(entry.name, "bold"), f" {entry.kind}, needed by {_sweeps(entry, 'no sweep')}")
    if manifest is None:
        out.print("no manifest: a partial artifact; the next run, or gc, removes it")
        return
    table = Table("file", "size", "sha256", box=None, pad_edge=False)
    for name, facts in manifest["files"].items():
        table.add_row(name, decimal(facts["bytes"]), facts["sha256"][:16])
    out.print(table)
    for name in ("finished_at", "host", "seconds", "versions", "facts"):
        out.print(f"{name}  {json.dumps(manifest.get(name), indent=1)}")


@app.command("verify")
def verify_files(
    workspace: Where = "workspace",
    delete: Annotated[
        bool,
        typer.Option("--delete-damaged", help="Delete damaged artifacts; the next run makes them again."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every file with its hash. Exit code 1 if damaged artifacts remain."""
    place = Workspace(workspace)
    entries = holdings(place).entries
    findings, sweeps = verify(entries, delete=delete), damaged_sweeps(place)
    if as_json:
        damaged = [_found(finding) for finding in findings]
        _print_json({"verified": len(entries), "damaged": damaged, "damaged_sweeps": sweeps})
    else:
        for finding in findings:
            for fault in finding.faults:
                out.print(styled(finding.state, "red"), f" {fault}")
        for fault in sweeps:
            out.print(styled("damaged", "red"), f" {fault}")
        out.print(f"{len(entries)} artifacts verified, {len(findings)} damaged")
        if findings and not delete:
            out.print("--delete-damaged removes them; then the sweep's next run makes them again")
    if sweeps or any(finding.state != "removed" for finding in findings):
        raise typer.Exit(1)


@app.command()
def gc(
    workspace: Where = "workspace",
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without this option, only list.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what no sweep needs. To release a sweep's artifacts, delete WORKSPACE/sweeps/NAME first."""
    findings = collect_garbage(Workspace(workspace), delete=delete)
    if as_json:
        _print_json({"deleted": delete, "unneeded": [_found(finding) for finding in findings]})
        return
    if not findings:
        out.print("Sweeps need every artifact there is: nothing to remove.")
        return
    _print_sums([finding.entry for finding in findings], "no sweep")
    busy = sum(finding.state == "in use" for finding in findings)
    size = decimal(sum(finding.entry.size for finding in findings if finding.state != "in use"))
    out.print(f"removed: {size}" if delete else f"not needed: {size}; --delete removes it")
    if busy:
        out.print(f"{busy} of them are being worked on right now, and stay")


def _print_sums(entries: Sequence[Entry], unused: str) -> None:
    """One row per kind and set of sweeps. `unused` is shown if no sweep is known to need an artifact."""
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.kind, _sweeps(entry, unused)].append(entry)
    table = _table("kind", "artifacts", "size", "age", "needed by")
    for (kind, sweeps), members in groups.items():
        ages = sorted(_age(entry) for entry in members)
        age = " – ".join(dict.fromkeys([duration(ages[0]), duration(ages[-1])]))
        size = decimal(sum(entry.size for entry in members))
        table.add_row(kind, str(len(members)), size, age, sweeps)
    out.print(table)


def _print_entries(entries: Sequence[Entry], unused: str) -> None:
    table = _table("artifact", "size", "age", "needed by")
    for entry in entries:
        table.add_row(entry.name, decimal(entry.size), duration(_age(entry)), _sweeps(entry, unused))
    out.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        number = heading in ("artifacts", "size")
        table.add_column(heading, overflow="fold", justify="right" if number else "left")
    return table


def _sweeps(entry: Entry, unused: str) -> str:
    return ", ".join(entry.needed_by) or unused


def _age(entry: Entry) -> float:
    return max(0.0, (datetime.now(UTC) - entry.finished_at).total_seconds())


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "bytes": entry.size,
        "finished_at": entry.finished_at.isoformat(),
        "needed_by": entry.needed_by,
    }


def _found(finding: Finding) -> dict[str, Any]:
    faults = {"faults": finding.faults} if finding.faults else {}
    return {**_described(finding.entry), "state": finding.state, **faults}


def _print_json(content: dict[str, Any]) -> None:
    out.print_json(json.dumps(content))
