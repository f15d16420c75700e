"""A scorer of one's own: the contract with the program, and every way in which it can be broken."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.config.schema.metric import CommandMetric
from harness.errors import ConfigError, ModelError
from harness.metrics import build_metrics, ensure_weights, metric_fingerprint
from tests.config.example import load

REDNESS = """
import json, sys
from PIL import Image
for line in sys.stdin:
    asked = json.loads(line)
    red, green, blue = Image.open(asked["image"]).resize((1, 1)).getpixel((0, 0))
    print("looked at", asked["image"], file=sys.stderr)
    if asked["prompt"] == "none":
        print(json.dumps({"value": None, "reason": "asked for none"}))
    elif asked["prompt"] == "null":
        print("null")
    elif asked["prompt"] == "nan":
        print("NaN")
    else:
        print(json.dumps({"value": red - blue}) if green else red - blue)
"""


@pytest.fixture
def images(tmp_path: Path) -> pd.DataFrame:
    colours = {
        "red": (250, 10, 50),
        "blue": (10, 0, 200),
        "none": (1, 1, 1),
        "null": (1, 1, 1),
        "nan": (1, 1, 1),
    }
    for name, colour in colours.items():
        Image.fromarray(np.full((8, 8, 3), colour, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "gone.png").write_text("not an image")
    names = ["red", "blue", "gone", "none", "null", "nan"]
    return pd.DataFrame({"image_id": names, "prompt": names, "path": [f"{name}.png" for name in names]})


def command(folder: Path, program: str, **settings: object) -> CommandMetric:
    (folder / "scorer.py").write_text(program)
    words = [sys.executable, "scorer.py"]
    raw = {"kind": "command", "command": words, "higher_is_better": True, **settings}
    (found,) = load(folder, metrics=[raw], analysis={"primary": str(raw.get("name", "command"))}).metrics
    assert isinstance(found, CommandMetric)
    return found


def test_numbers_nulls_and_reasons_in_the_order_of_the_images(tmp_path: Path, images: pd.DataFrame) -> None:
    ((*rows,),) = build_metrics([command(tmp_path, REDNESS)]).score(images, tmp_path)
    assert [row["image_id"] for row in rows] == images["image_id"].tolist()
    assert [row["value"] for row in rows] == [200, -190, None, None, None, None]
    assert [row["reason"] for row in rows[2:]] == [
        "the image cannot be read: not an image",  # never given to the program
        "asked for none",
        "the command gave no reason",
        "the score is not a finite number",
    ]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no weights')", "ended with exit code 1: no weights"),
        ("raise SystemExit(3)", "ended with exit code 3: nothing on stderr"),
        ("print(1)", "printed 1 lines for 5 images; expected for each: a number"),
        ("import sys\nfor _ in sys.stdin: print('high')", "printed 'high'; expected: a number, null, or"),
        ("import sys\nfor _ in sys.stdin: print(True)", "printed 'True'; expected"),
        ("import sys\nfor _ in sys.stdin: print('true')", "printed 'true'; expected"),
        ("import sys\nfor _ in sys.stdin: print('{\"score\": 1}')", "expected: a number, null, or"),
        ('import sys\nfor _ in sys.stdin: print(\'{"value": "1"}\')', "expected: a number, null, or"),
    ],
)
def test_what_a_program_does_wrong_is_one_line(
    tmp_path: Path, images: pd.DataFrame, program: str, message: str
) -> None:
    scorer = build_metrics([command(tmp_path, program, name="mine")])
    with pytest.raises(ModelError, match=message) as error:
        scorer.score(images, tmp_path)
    assert str(error.value).startswith("metric mine: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_program_that_hangs_ends_with_all_that_it_started(tmp_path: Path, images: pd.DataFrame) -> None:
    hang = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with pytest.raises(ModelError, match=r"took more than 0\.5 s \(timeout\)"):
        build_metrics([command(tmp_path, hang, timeout=0.5)]).score(images, tmp_path)


def test_scores_follow_the_program_and_its_version_not_its_place(tmp_path: Path) -> None:
    places = [tmp_path / name for name in "ab"]
    for place in places:
        place.mkdir()
    here, there = (metric_fingerprint(command(place, "print(1)")) for place in places)
    assert here == there
    assert (
        metric_fingerprint(command(places[0], "print(1)", timeout=5, name="x", higher_is_better=False))
        == here
    )
    assert metric_fingerprint(command(places[0], "print(2)")) != here
    assert metric_fingerprint(command(places[0], "print(1)", version="2")) != here


def test_a_program_that_is_not_there_stops_before_any_work(tmp_path: Path) -> None:
    raw = {"kind": "command", "command": ["no-such-scorer"], "higher_is_better": True}
    with pytest.raises(ConfigError, match=r"metrics\[0\]\.command: no program 'no-such-scorer' is here"):
        load(tmp_path, metrics=[raw], analysis={"primary": "command"})
    with pytest.raises(ConfigError, match=r"metrics\[0\]\.higher_is_better is missing"):
        load(tmp_path, metrics=[{"kind": "command", "command": ["true"]}])


def test_a_command_that_cannot_work_stops_a_sweep_before_it_trains(tmp_path: Path) -> None:
    ensure_weights((command(tmp_path, REDNESS),))
    with pytest.raises(ModelError, match="ended with exit code 1: ModuleNotFoundError"):
        ensure_weights((command(tmp_path, "import gone"),))
    with pytest.raises(ModelError, match="printed 1 lines for 0 images"):
        ensure_weights((command(tmp_path, "print('ready')"),))


def test_a_command_without_a_direction_cannot_select(tmp_path: Path) -> None:
    raw = {"kind": "command", "command": ["true"], "higher_is_better": None}
    with pytest.raises(ConfigError, match=r"analysis\.primary 'command' cannot select"):
        load(tmp_path, metrics=[raw, "contrast"], analysis={"primary": "command"})
