"""Blind votes of people on pairs of images, tested as a metric is: `vote`, arm − control from −1 to 1.

A vote is on two images of one prompt and seed, of which the rater knew neither arm nor score: the preferred
one has 1, the other 0, both ½ in a tie. Several raters of a pair are averaged first, so that the prompt stays
the unit. Some pairs are one image twice: a preference there measures the noise of voting.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from harness.config.schema.evaluation import AnalysisConfig
from harness.config.schema.metric import MetricConfig
from harness.errors import ArtifactError, ConfigError
from harness.results.contrast import Contrast
from harness.results.summary import summarise
from harness.results.sweep_results import Results
from harness.store.artifact import read_json, write_json

VOTES = "votes"  # a sweep's folder of ballots, one JSON file per rater
FORMAT = 1
RATER = re.compile(r"[A-Za-z0-9_-]{1,40}")
CHOICES = ("left", "right", "tie")

Choice = Literal["left", "right", "tie"]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Two image ids, as they stood, and which was preferred. The same twice: a disguised identical pair."""

    left: str
    right: str
    choice: Choice

    @property
    def identical(self) -> bool:
        """One image twice."""
        return self.left == self.right


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """All votes of one rater."""

    rater: str
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class VoteMetric:
    """What the statistics ask of a metric."""

    name: str = "vote"
    kind: str = "vote"
    higher_is_better: bool | None = True


def parse(file: Path, results: Results, *, rater: str | None = None) -> Ballot:
    """A ballot that the page saved. `rater` replaces the name in it.

    Raises ConfigError where it is another file, of another sweep, or names images that are no pair here.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as votes: {str(error)[:120]}") from error
    return _ballot(file, given, results, rater)


def _ballot(file: Path, given: Any, results: Results, rater: str | None) -> Ballot:
    if not isinstance(given, dict) or given.get("harness_votes") != FORMAT:
        raise ConfigError(f"{file} is no file of votes: save one from the report page, under Blind votes")
    name = rater or given.get("rater")
    if not isinstance(name, str) or not RATER.fullmatch(name):
        raise ConfigError(f"{file}: rater {str(name)[:40]!r}; give --rater with letters, digits, - and _")
    rows = given.get("votes")
    if given.get("sweep") != results.sweep["name"] or not isinstance(rows, list) or not rows:
        raise ConfigError(f"{file} has votes on sweep {str(given.get('sweep'))[:60]!r}, or none at all")
    votes = []
    images = results.images.set_index("image_id")
    for place, row in enumerate(rows):
        fields = row if isinstance(row, dict) else {}
        left, right, choice = (fields.get(key) for key in ("left", "right", "choice"))
        if choice not in CHOICES:
            raise ConfigError(f"{file}: votes[{place}].choice must be left, right or tie")
        if left not in images.index or right not in images.index:
            raise ConfigError(f"{file}: votes[{place}] is on an image that this sweep does not have")
        cell_of = images[["prompt_id", "seed", "split"]]
        if tuple(cell_of.loc[str(left)]) != tuple(cell_of.loc[str(right)]):
            raise ConfigError(f"{file}: votes[{place}] is on images of different prompts or seeds")
        votes.append(Vote(left=str(left), right=str(right), choice=choice))
    return Ballot(rater=name, votes=tuple(votes))


def add(folder: Path, ballot: Ballot, sweep: str) -> bool:
    """Keep a ballot in a sweep's folder. True where it replaces an earlier one of the same rater."""
    place = folder / VOTES / f"{ballot.rater}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    before = place.exists()
    votes = [{"left": v.left, "right": v.right, "choice": v.choice} for v in ballot.votes]
    write_json(place, {"harness_votes": FORMAT, "sweep": sweep, "rater": ballot.rater, "votes": votes})
    return before


def read(folder: Path) -> list[Ballot]:
    """The ballots of a sweep's folder, by rater. Raises ArtifactError where one is damaged."""
    found = []
    for file in sorted((folder / VOTES).glob("*.json")):
        try:
            known = read_json(file)
            votes = tuple(Vote(**vote) for vote in known["votes"])
            found.append(Ballot(rater=str(known["rater"]), votes=votes))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{file} is damaged; delete it, or add the votes again") from error
    return found


def noise(ballots: Sequence[Ballot]) -> tuple[int, int]:
    """Of the identical pairs, in how many a side was preferred; and how many there were."""
    identical = [vote for ballot in ballots for vote in ballot.votes if vote.identical]
    return sum(vote.choice != "tie" for vote in identical), len(identical)


def vote_contrasts(results: Results, ballots: Sequence[Ballot]) -> list[Contrast]:
    """The voted pairs as contrasts of metric `vote`, with the statistics of every other metric.

    One per trial, arm, control and split, p not adjusted: nothing is selected by votes. Votes on images that
    the sweep does not have any more are left out.
    """
    frame = _differences(results, ballots)
    if frame.empty:
        return []
    analysis = AnalysisConfig.model_validate(results.sweep["analysis"])
    found = []
    for (trial_id, arm, control), rows in frame.groupby(["trial_id", "arm", "control"], sort=False):
        own = results.arms[(results.arms["trial_id"] == trial_id) & results.arms["arm"].isin([arm, control])]
        ids = [*rows["own"], *rows["other"]]
        images = results.images[results.images["image_id"].isin(ids)]
        scores = pd.DataFrame({"image_id": ids, "value": [*rows["vote"], *(1 - rows["vote"])]})
        scores = scores.assign(metric=VoteMetric.kind, reason=None)
        summary = summarise(
            results.trials[results.trials["trial_id"] == trial_id],
            own,
            images,
            scores,
            analysis=analysis,
            metrics=[cast(MetricConfig, VoteMetric())],
        )
        found += [Contrast.of(row) for row in summary.to_dict("records") if row["n_pairs"]]
    return found


def _differences(results: Results, ballots: Sequence[Ballot]) -> pd.DataFrame:
    """A row per voted pair: trial_id, arm, control, own and other image, vote (mean over raters, 0 to 1)."""
    images = results.images.set_index("image_id")
    controls = set(results.arms.loc[results.arms["is_control"].astype(bool), "arm"])
    rows = []
    for ballot in ballots:
        for vote in ballot.votes:
            if vote.identical or vote.left not in images.index or vote.right not in images.index:
                continue
            own = [side for side in (vote.left, vote.right) if images.loc[side, "arm"] not in controls]
            if len(own) != 1:
                continue
            other = vote.right if own[0] == vote.left else vote.left
            chosen = {"left": vote.left, "right": vote.right}.get(vote.choice)
            rows.append(
                {
                    "trial_id": images.loc[own[0], "trial_id"],
                    "arm": images.loc[own[0], "arm"],
                    "control": images.loc[other, "arm"],
                    "own": own[0],
                    "other": other,
                    "vote": 0.5 if chosen is None else float(chosen == own[0]),
                }
            )
    if not rows:
        return pd.DataFrame()
    keys = ["trial_id", "arm", "control", "own", "other"]
    return pd.DataFrame(rows).groupby(keys, sort=False)[["vote"]].mean().reset_index()
