"""Images of a sweep in one figure: pairs side by side, a grid over two axes, the best and the worst pairs."""

import textwrap
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.errors import ConfigError
from harness.results.contrast import known
from harness.results.format import MISSING, axis_name, decimals_for, figure_text, plain, signed
from harness.results.plot.charts import listed_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harness.results.sweep_results import Results

SIDE = 256  # px of an image in a figure
INCHES = 1.5  # of an image in a figure
MOST = 400  # images in one figure


def show(results: "Results", frame: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
    """The images of a frame. Rows of `pairs()`: control and arm side by side; of `images` or `wide()`: one.

    Raises ConfigError for a frame of neither kind, and for more than 400 images.
    """
    if {"image_id_arm", "image_id_control"} <= set(frame.columns):
        rows = [_pair(row) for row in frame.to_dict("records")]
        heads: list[str] = [listed_names(frame["control"]), listed_names(frame["arm"])]
    elif "image_id" in frame.columns:
        flat = [(row["image_id"], _caption(row)) for row in frame.to_dict("records")]
        rows, heads = [flat[start : start + 6] for start in range(0, len(flat), 6)], []
    else:
        raise ConfigError("show: give rows of pairs(), images or wide(): the frame has no column image_id")
    return _sheet(results, rows, columns=heads, rows_named=[""] * len(rows), ax=ax)


def best_and_worst(
    results: "Results", pairs: pd.DataFrame, *, n: int = 3, ax: "Axes | None" = None
) -> "Axes":
    """The n pairs that gain most over the control, then the n that lose most, as `show` has them.

    By the difference; for a metric where lower is better, by its opposite.
    """
    frame = pairs.dropna(subset=["difference"])
    directions = results.summary.drop_duplicates("metric").set_index("metric")["higher_is_better"]
    falls = frame["metric"].map(directions).astype("boolean").fillna(True)
    gain = frame["difference"].where(falls.astype(bool), -frame["difference"])
    order = gain.sort_values(ascending=False, kind="stable").index
    ends = [*order[:n], *order[max(n, len(order) - n) :]]
    return show(results, frame.loc[ends], ax=ax)


def grid(
    results: "Results",
    *,
    x: str,
    y: str,
    where: dict[str, Any] | None = None,
    metric: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Images over two of: an axis, `arm`, `prompt`, `seed`; `where` fixes the rest.

    Under an image stand its score and, for an arm with the trial's own adapter, its difference from the
    control. What `where` leaves open takes its first value: the selected trial's, the first prompt, seed and
    own arm. Raises ConfigError for an unknown name or value.
    """
    table = _with_differences(results, metric)
    for name in (x, y):
        _check("grid", name, [*results.axes, "arm", "prompt", "seed"])
    for name, value in _fixed(results, table, x, y, where or {}).items():
        table = table[table[name].isna()] if known(value) is None else table[table[name] == value]
    columns, rows = _values(results, table, x), _values(results, table, y)
    decimals = decimals_for(float(4 * table["difference"].std()))
    found = {(row[y], row[x]): row for row in table.to_dict("records")}
    drawn = [[_cell(found.get((r, c)), decimals) for c in columns] for r in rows]
    heads, sides = [_value_name(x, c) for c in columns], [_value_name(y, r) for r in rows]
    return _sheet(results, drawn, columns=heads, rows_named=sides, ax=ax)


def _value_name(name: str, value: Hashable) -> str:
    return figure_text(value if name in ("arm", "prompt") else f"{axis_name(name)} {value}")


def _with_differences(results: "Results", metric: str | None) -> pd.DataFrame:
    """`Results.cells` with the difference from the control of the selection; None for the control itself."""
    table = results.cells(metric=metric)
    table = table.merge(results.trials[["trial_id", "selected"]], on="trial_id")
    keys, name = ["trial_id", "prompt", "seed", "split"], results.sweep["analysis"]["control"]
    control = table.loc[table["arm"] == name, [*keys, "value"]]
    table = table.merge(control.rename(columns={"value": "value_control"}), on=keys, how="left")
    return table.assign(difference=(table["value"] - table["value_control"]).mask(table["arm"] == name))


def _fixed(results: "Results", table: pd.DataFrame, x: str, y: str, where: dict[str, Any]) -> dict[str, Any]:
    """A value for every axis, prompt, seed and arm that is neither x nor y."""
    free = [name for name in (*results.axes, "split", "prompt", "seed", "arm") if name not in (x, y)]
    for name in where:
        _check("grid: where", name, free)
    selected = table[table["selected"].fillna(False).astype(bool)]
    own = table[~table["is_control"].astype(bool)]
    found: dict[str, Any] = {}
    for name in free:
        first = own if name == "arm" else selected if len(selected) and name in results.axes else table
        found[name] = first[name].iloc[0] if name not in where else where[name]
        if name in where:
            _check(f"grid: {name}", where[name], table[name].unique().tolist())
        if name == "split" and name not in where:
            found[name] = "dev" if "prompt" not in where else _split_of(table, where["prompt"])
    return found


def _split_of(table: pd.DataFrame, prompt: Any) -> Any:
    of_prompt = table.loc[table["prompt"] == prompt, "split"]
    return of_prompt.iloc[0] if len(of_prompt) else "dev"


def _values(results: "Results", table: pd.DataFrame, name: str) -> list[Hashable]:
    """Values along an axis of the grid: arms in the sweep's order, controls first; numbers ascending."""
    values = table[name].dropna().unique().tolist()
    if name == "arm":
        order = [arm["name"] for arm in results.sweep["arms"]]
        controls = set(table.loc[table["is_control"].astype(bool), "arm"])
        values.sort(key=lambda arm: (arm not in controls, order.index(arm)))
    elif pd.api.types.is_numeric_dtype(table[name]):
        values.sort()
    return values


def _cell(row: dict[Hashable, Any] | None, decimals: int) -> tuple[str | None, str]:
    if row is None:
        return None, MISSING
    value, difference = known(row["value"]), known(row["difference"])
    text = plain(None if value is None else float(value), decimals)
    return row["image_id"], text if difference is None else f"{text} ({signed(float(difference), decimals)})"


def _pair(row: dict[Hashable, Any]) -> list[tuple[str | None, str]]:
    sides = []
    for side in ("control", "arm"):
        value, image_id = known(row[f"value_{side}"]), known(row[f"image_id_{side}"])
        sides.append((image_id, plain(None if value is None else float(value), 2)))
    difference = known(row["difference"])
    words = f"{sides[1][1]} ({signed(None if difference is None else float(difference), 2)})"
    prompt = figure_text(textwrap.shorten(f"{row['prompt']} · {row['seed']}", 34, placeholder="…"))
    return [(sides[0][0], f"{sides[0][1]}\n{prompt}"), (sides[1][0], f"{words}\n")]


def _caption(row: dict[Hashable, Any]) -> str:
    prompt = figure_text(textwrap.shorten(str(row["prompt"]), 26, placeholder="…"))
    return f"{row['arm']} · seed {row['seed']}\n{prompt}"


def _sheet(
    results: "Results",
    rows: Sequence[Sequence[tuple[str | None, str]]],
    *,
    columns: Sequence[str],
    rows_named: Sequence[str],
    ax: "Axes | None",
) -> "Axes":
    """Images with a caption below each, on one axes: unit squares, half a unit apart downwards."""
    from matplotlib import pyplot

    width = max((len(row) for row in rows), default=1)
    if sum(map(len, rows)) > MOST:
        raise ConfigError(f"{sum(map(len, rows))} images are too many for one figure; at most {MOST}")
    if ax is None:
        size = (INCHES * width * 1.1 + 1, INCHES * len(rows) * 1.45 + 0.4)
        ax = pyplot.subplots(figsize=size, layout="constrained")[1]
    for i, row in enumerate(rows):
        for j, (image_id, caption) in enumerate(row):
            left, top = 1.1 * j, -1.45 * i
            if image_id is not None:
                image = results.image(image_id)
                image.thumbnail((SIDE, SIDE))
                ax.imshow(image, extent=(left, left + 1, top - 1, top), interpolation="nearest")
            ax.text(left + 0.5, top - 1.03, caption, ha="center", va="top", fontsize=7)
        ax.text(-0.08, -1.45 * i - 0.5, rows_named[i], ha="right", va="center", fontsize=8, wrap=True)
    for j, name in enumerate(columns):
        ax.text(1.1 * j + 0.5, 0.04, name, ha="center", va="bottom", fontsize=8)
    ax.set_xlim(-0.1, 1.1 * width)
    ax.set_ylim(-1.45 * max(len(rows), 1), 0.2)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _check(what: str, value: Any, allowed: Any) -> None:
    if value not in list(allowed):
        names = ", ".join(str(name) for name in list(allowed)[:12])
        raise ConfigError(f"{what}: {value!r} is not in this sweep; allowed: {names}")
