"""A sweep as a notebook has it: it shows itself, explains its columns, shows images, compares."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.errors import ConfigError
from harness.results import plot
from harness.results.notebook import compare as comparing
from harness.results.notebook.columns import AXIS, COLUMNS, WITH_AXES
from harness.results.notebook.display import as_html, as_text
from harness.results.sweep_results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class NotebookResults(Results):
    """What `results.load` gives."""

    def __repr__(self) -> str:
        """The verdict, controls and counts on at most ten lines."""
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def columns(self, table: str) -> pd.DataFrame:
        """What the columns of a frame mean: name, type, meaning, null (when it is; "" for never).

        `table`: trials, arms, images, scores, summary, pairs or losses. Raises ConfigError for another.
        """
        if table not in COLUMNS:
            raise ConfigError(f"no table {table!r}; allowed: {', '.join(COLUMNS)}")
        frame = self.pairs() if table == "pairs" else getattr(self, table)
        known = {**COLUMNS[table], **(dict.fromkeys(self.axes, AXIS) if table in WITH_AXES else {})}
        rows = [(str(name), str(frame[name].dtype), *known[str(name)]) for name in frame.columns]
        return pd.DataFrame(rows, columns=["name", "type", "meaning", "null"])

    def show(self, frame: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
        """The images of a frame: `r.show(r.pairs().head(6))`. See `results.plot.show`."""
        return plot.show(self, frame, ax=ax)

    def grid(
        self, *, x: str, y: str, metric: str | None = None, ax: "Axes | None" = None, **where: Any
    ) -> "Axes":
        """Images over two of an axis, arm, prompt, seed: `r.grid(x="arm", y="prompt", seed=0)`.

        `where` fixes the others; a dotted axis is given as `**{"adapter.rank": 8}`. See `results.plot.grid`.
        """
        return plot.grid(self, x=x, y=y, metric=metric, where=where, ax=ax)

    def compare(
        self,
        *,
        a: Mapping[str, Any],
        b: Mapping[str, Any],
        by: Sequence[str] = (),
        metric: str | None = None,
        split: str = "dev",
    ) -> pd.DataFrame:
        """Compare settings image by image: `r.compare(a={"adapter.rank": 8}, b={"adapter.rank": 2})`.

        See `results.notebook.compare.compare`.
        """
        return comparing.compare(self, a=a, b=b, by=by, metric=metric, split=split)
