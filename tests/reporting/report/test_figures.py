"""Figures say what the tables say, as text in the SVG."""

import re
import xml.etree.ElementTree as ET

from harness.reporting.report.figures.effects import dose_response, forest, heatmap
from harness.results.study import Study
from tests.reporting.report import example

SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str | None) -> list[str]:
    assert svg is not None
    tree = ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    return ["".join(node.itertext()).strip() for node in tree.iter(f"{SVG}text")]


def test_the_effect_plot_has_every_trial_with_a_number_best_first(study: Study) -> None:
    text = words(forest(study))
    dev = study.results.summary.query("control == 'placebo' and metric == 'aesthetic' and split == 'dev'")
    ranked = dev.dropna(subset=["mean_difference"]).sort_values("mean_difference", ascending=False)
    labels = [study.labels[trial_id] for trial_id in ranked["trial_id"]]
    assert [word for word in text if word in labels] == labels
    assert "selected, on held-out prompts" in text
    assert any(word.startswith(f"+{ranked['mean_difference'].iloc[0]:.2f}") for word in text)


def test_the_grid_has_a_value_or_no_result_in_every_cell(study: Study) -> None:
    text = words(heatmap(study))
    values = [word for word in text if re.fullmatch(r"[+−]?\d\.\d+", word)]
    assert len(values) == 11 and text.count("no result") == 1
    assert text.count("n = 12") == 11
    assert {"keywords", "damaged", "rank", "steps"} <= set(text)


def test_dose_response_needs_three_step_counts(study: Study) -> None:
    assert {"keywords", "damaged", "training steps", "4", "16"} <= set(words(dose_response(study)))
    two_counts = example.outline(example.config(steps=(100, 200)))
    assert dose_response(Study(two_counts)) is None


def test_a_sweep_without_numbers_has_no_effect_plot() -> None:
    nothing = Study(example.outline(example.config()))
    assert forest(nothing) is None
    assert words(heatmap(nothing)).count("no result") == 8
    assert dose_response(nothing) is None


def test_figures_follow_the_page_and_share_no_ids(study: Study) -> None:
    figures = [str(figure) for figure in (forest(study), heatmap(study), dose_response(study))]
    ids = [found for figure in figures for found in re.findall(r'\bid="([^"]+)"', figure)]
    assert len(ids) == len(set(ids))
    for figure in figures:
        assert "var(--ink)" in figure and "#010203" not in figure
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', figure)
        assert {a or b for a, b in used} <= set(ids)
        assert figure.startswith('<svg role="img" aria-label="')
