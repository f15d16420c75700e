"""Votes come back as a metric: read strictly, averaged over raters, tested as everything else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ArtifactError, ConfigError
from harness.results import Results
from harness.results.votes import Ballot, Vote, add, noise, parse, read, vote_contrasts
from tests.reporting.report import example


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return example.build(tmp_path_factory.mktemp("votes"), example.config(axes={}), failed=())


def ballot(results: Results, *, for_arm: int, rater: str = "ann") -> Ballot:
    """On every test pair against placebo: in this many of ten the arm is preferred, sides alternating."""
    pairs = results.pairs(control="placebo", arm="wrong_lora", split="test")
    pairs = pairs[pairs["metric"] == "aesthetic"].reset_index(drop=True)
    votes = []
    for place, row in pairs.iterrows():
        number = int(str(place))
        sides = [row["image_id_arm"], row["image_id_control"]]
        chosen = sides[0] if number % 10 < for_arm else sides[1]
        left, right = sides if number % 2 else sides[::-1]
        votes.append(Vote(left=left, right=right, choice="left" if chosen == left else "right"))
    return Ballot(rater=rater, votes=tuple(votes))


def written(file: Path, results: Results, found: Ballot, **changes: Any) -> Path:
    rows = [vars(vote) for vote in found.votes]
    content = {"harness_votes": 1, "sweep": results.sweep["name"], "rater": found.rater, "votes": rows}
    file.write_text(json.dumps({**content, **changes}))
    return file


def test_an_arm_that_all_prefer_is_better(results: Results) -> None:
    (c,) = vote_contrasts(results, [ballot(results, for_arm=10)])
    assert (c.arm, c.control, c.metric, c.split) == ("wrong_lora", "placebo", "vote", "test")
    assert c.difference == 1 and c.n_pairs == 24 and c.n_prompts == 12 and c.win_rate == 1


def test_a_preference_has_interval_and_p(results: Results) -> None:
    (c,) = vote_contrasts(results, [ballot(results, for_arm=8)])
    assert c.difference is not None and c.low is not None and c.p is not None
    assert 0 < c.low < c.difference < 1 and c.p < 0.05 and c.finding == "better"
    (c,) = vote_contrasts(results, [ballot(results, for_arm=1)])
    assert c.finding == "worse"


def test_raters_of_a_pair_are_averaged(results: Results) -> None:
    both = [ballot(results, for_arm=10), ballot(results, for_arm=0, rater="ben")]
    (c,) = vote_contrasts(results, both)
    assert c.difference == 0 and c.n_pairs == 24


def test_identical_pairs_measure_noise_and_nothing_else(results: Results) -> None:
    image = results.images["image_id"].iloc[0]
    twice = [Vote(left=image, right=image, choice=choice) for choice in ("left", "tie", "tie")]
    found = ballot(results, for_arm=8)
    noisy = replace(found, votes=(*found.votes, *twice))
    assert noise([noisy]) == (1, 3)
    assert vote_contrasts(results, [noisy]) == vote_contrasts(results, [found])


def test_a_ballot_is_kept_and_replaced(results: Results, tmp_path: Path) -> None:
    found = ballot(results, for_arm=8)
    assert parse(written(tmp_path / "votes.json", results, found), results) == found
    assert not add(tmp_path, found, "example") and add(tmp_path, found, "example")
    add(tmp_path, replace(found, rater="ben"), "example")
    assert [one.rater for one in read(tmp_path)] == ["ann", "ben"] and read(tmp_path)[0] == found
    (tmp_path / "votes" / "ann.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"ann\.json is damaged"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"harness_votes": 2}, "no file of votes"),
        ({"sweep": "another"}, "on sweep 'another'"),
        ({"rater": "../ann"}, "--rater"),
        ({"votes": []}, "none at all"),
        ({"votes": [{"left": "x", "right": "y", "choice": "left"}]}, "does not have"),
        ({"votes": [{"left": "x", "right": "y", "choice": "both"}]}, "left, right or tie"),
        ({"votes": [3]}, "left, right or tie"),
    ],
)
def test_what_is_no_ballot_is_refused_by_name(
    results: Results, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    file = written(tmp_path / "votes.json", results, ballot(results, for_arm=8), **changes)
    with pytest.raises(ConfigError, match=said) as error:
        parse(file, results)
    assert len(str(error.value)) < 300 + len(str(file))


def test_images_of_different_prompts_are_no_pair(results: Results, tmp_path: Path) -> None:
    images = results.images[results.images["arm"] == "placebo"]["image_id"]
    rows = [{"left": images.iloc[0], "right": images.iloc[-1], "choice": "tie"}]
    file = written(tmp_path / "votes.json", results, ballot(results, for_arm=8), votes=rows)
    with pytest.raises(ConfigError, match="different prompts or seeds"):
        parse(file, results)
