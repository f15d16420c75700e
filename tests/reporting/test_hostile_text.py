"""Whatever a user writes stands in every output as that text: no markup, no formula, no traceback.

One sweep, read from its file: its question, prompts, tags, negative prompts, axis values, recipe are hostile.
"""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import yaml
from matplotlib import pyplot

from harness import results as harness_results
from harness.cli.check import print_plan
from harness.cli.console import print_contrasts, print_verdict
from harness.config.loading.load import load_plan
from harness.config.schema.evaluation import Prompt
from harness.config.schema.sweep import WandbTracking
from harness.reporting.export import export_trial
from harness.reporting.report import write_report
from harness.reporting.wandb_report import FILE
from harness.reporting.wandb_tracker import make_tracker
from harness.results import NotebookResults
from harness.results.format import code, figure_text, markdown
from harness.store.workspace import Workspace
from tests.reporting.export.example import finished
from tests.reporting.report import example
from tests.reporting.wandb_files import content, offline_runs

EVIL = r"$x_$ \[/x\] <script> | `b` *c* " + "\x1b\u202e"
LONG = "z" * 10_000
WORDS = (f"wrong {EVIL}", "wrong $a$ <b>")
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f\u202e]")  # control characters, a line feed aside


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    finished(
        root,
        question=f"Is {EVIL}\n# better? </script><b>{LONG}",
        prompts=[
            {"text": f"a {animal} {EVIL}\nb", "split": split, "tags": [EVIL, "\x00\n# h", LONG]}
            for split, animals in (("dev", ("cat", "dog", "fox")), ("test", ("owl", "pig", "hen")))
            for animal in animals
        ],
        axes={"training.prompt": list(WORDS)},
        arms=[
            {"name": "baseline"},
            {"name": "placebo", "negative": WORDS[0]},
            {"name": "wrong_lora", "negative": WORDS[0], "adapters": [{"scale": 1.5}]},
        ],
        recipe={"kind": "keywords", "name": "<i>$q_$</i>[/x]", "keywords": ["blurry"], "guidance": [3]},
    )
    return root


@pytest.fixture(scope="module")
def results(root: Path) -> NotebookResults:
    return harness_results.load(root / "sweeps" / "small")


def test_the_page_and_its_figures(root: Path, results: NotebookResults) -> None:
    write_report(results, Workspace(root), root / "report.html")
    page = (root / "report.html").read_text()
    assert page.count("<script") == 2 and "</script><b>" not in page and "<i>" not in page
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not RAW.search(shown)
    assert r"$x_$ \[/x\] &lt;script&gt; | `b` *c* \x1b\u202e" in shown, "in a figure, too"
    assert "wrong $a$ &lt;b&gt;" in shown and LONG in shown


def test_the_terminal(root: Path, results: NotebookResults, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(load_plan(root / "small.yaml"), workers=1)
    print_verdict(results, "runs/sweeps/small")
    print_contrasts(results, results.trials["trial_id"].iloc[0], "dev")
    said = "".join(capsys.readouterr())
    assert not RAW.search(said) and r"wrong $x_$ \[/x\] <script> | `b` *c* \x1b\u202e" in said


def test_a_card(root: Path, results: NotebookResults) -> None:
    out = export_trial(results, Workspace(root), "best", folder=root / "out", layout="both")
    _, front, card = (out / "README.md").read_text().split("---\n", 2)
    widget = yaml.safe_load(front)["widget"]
    assert widget[0]["text"].endswith(f"{EVIL.strip()}\nb")
    assert widget[0]["parameters"]["negative_prompt"] == WORDS[0].strip()
    assert not RAW.search(card) and LONG in card
    assert r"# better? \</script>\<b>zzz" in card
    outside = re.sub(r"```.*?```|(`+)(?!`).*?(?<!`)\1(?!`)", "", card, flags=re.DOTALL)  # of code
    assert not re.search(r"(?<!\\)<(b|i|script)|(?<!\\)\$", outside)


def test_a_notebook(results: NotebookResults) -> None:
    html = results._repr_html_()
    assert not re.search("<(script|i|b>wrong)", html) and not RAW.search(html)
    assert "wrong $a$ &lt;b&gt;" in html and "&lt;/script&gt;&lt;b&gt;zzz" in html


@pytest.fixture
def one(results: NotebookResults) -> pd.DataFrame:
    return results.summary.query("metric == 'clip_score' and control == 'placebo' and split == 'dev'")


@pytest.fixture(autouse=True)
def plain_figures() -> Iterator[None]:
    matplotlib.use("agg")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")  # that no font has
        yield
    pyplot.close("all")


def test_figures(results: NotebookResults, one: pd.DataFrame, tmp_path: Path) -> None:
    plot = harness_results.plot
    drawn = {
        "heat map": plot.heat_map(one, x="training.prompt", y="arm"),
        "doses": plot.dose_response(one, x="n_pairs", by=["training.prompt"]),
        "forest": plot.forest(one, label=["training.prompt"]),
        "parallel": plot.parallel_coordinates(one, columns=["training.prompt"]),
        "images": results.show(results.pairs().head(2)),
        "grid": results.grid(x="arm", y="prompt"),
    }
    for name, axes in drawn.items():
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            figure = axes.get_figure(root=True)
            assert figure is not None
            figure.savefig(tmp_path / "a.svg")
        text = (tmp_path / "a.svg").read_text()
        assert ("$x_$" in text and "&lt;script&gt;" in text) or name == "images", name
        assert "\\$" not in text and "font-style: italic" not in text


def test_wandb(tmp_path: Path) -> None:
    sweep = example.config(axes={"training.prompt": list(WORDS)}, n_prompts=4, seeds=(0,))
    prompts = tuple(Prompt(text=f"{p.text} {EVIL}", split=p.split, tags=(EVIL, LONG)) for p in sweep.prompts)
    question = f"Is {EVIL}\n# better? </script><b>{LONG}"
    root = tmp_path / "workspace"
    results = example.build(
        root, sweep.model_copy(update={"prompts": prompts, "question": question}), failed=(1,)
    )
    config = WandbTracking(project="tests", images_per_trial=1, report=True)
    make_tracker(config, folder=tmp_path).publish(results, Workspace(root))
    runs = [content(run) for run in offline_runs(tmp_path).values()]
    names = [run["name"] for run in runs]
    assert all(len(name) <= 128 and not RAW.search(name) and "\n" not in name for name in names)
    assert r"prompt=wrong $x_$ \[/x\] <script> | `b` *c* \x1b\u202e" in names
    spec = json.loads((tmp_path / "wandb" / FILE).read_text())["spec"]
    texts = [block["content"] for block in spec["blocks"] if block["type"] == "markdown-block"]
    for text in texts:
        outside = re.sub(r"```.*?```|`[^`]*`", "", text.replace(r"\`", ""), flags=re.DOTALL)
        assert not re.search(r"(?<!\\)<(b|i|script)|(?<!\\)\$", outside) and not RAW.search(text)
    assert any(r"\$a\$ \<b>" in text or r"\$x\_\$" in text for text in texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b [1, 2] p < 0.001", "a_b [1, 2] p < 0.001"),
        ("_a_ *b* `c` | $d$", r"\_a\_ \*b\* \`c\` \| \$d\$"),
        ("<b>&amp;</b>", r"\<b>\&amp;\</b>"),
        ("[x](y) ![z](w)", r"[x]\(y) \![z]\(w)"),
        ("a\n# b\x1b\\", r"a # b\\x1b\\"),
    ],
)
def test_a_text_in_markdown(text: str, expected: str) -> None:
    assert markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", "`a`"), ("a`b", "``a`b``"), ("`a``", "``` `a`` ```"), ("a\n\nb", "`a b`"), ("", "`  `")],
)
def test_a_text_as_code(text: str, expected: str) -> None:
    assert code(text) == expected


def test_a_text_in_a_figure() -> None:
    assert figure_text("$x$\n\x1b") == r"\$x\$ \x1b"
    assert len(figure_text("$" * 100).replace("\\", "")) == 60
