"""Puts the figures of figures.json between the marks of the card, beside what was wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROWS = (
    ("psnr_clean", "reconstruction of held-out clean scenes, PSNR in dB", "sharp"),
    ("psnr_damaged", "the same, damaged scenes", ""),
    (
        "second_subject_right",
        "subject of a drawn picture picked among 16 by the second judge, base alone",
        "≥ 0.97",
    ),
    ("first_subject_right", "the same by the first judge", ""),
    ("pairs_in_place", "two subjects, each picked among 16 in the half where the prompt puts it", ""),
    ("pairs_exchanged", "the same with left and right exchanged", ""),
    ("first_quality", "mean quality of pictures from plain prompts, first judge", ""),
    ("first_gain_keywords", "quality gained by the 13 words as negative prompt, same noise", "above 0"),
    ("first_gain_keywords_error", "its standard error", ""),
    ("first_gain_placebo", "quality gained by `wrong` as negative prompt, same noise", "within ±0.05"),
    ("first_gain_placebo_error", "its standard error", "0.02"),
    ("second_gain_placebo", "the same by the second judge", ""),
    ("second_gain_placebo_error", "its standard error", ""),
    ("first_gain_refiner", "quality gained by the refiner, same noise", "above 0, or not used"),
    ("first_gain_refiner_error", "its standard error", ""),
    ("second_gain_refiner", "the same by the second judge", ""),
    ("second_gain_refiner_error", "its standard error", ""),
    ("seconds_per_picture_batch_8", "seconds per picture, eight at a time, 20 steps, two cores", "≤ 0.25"),
    ("seconds_per_picture_batch_1", "the same, one at a time", ""),
    ("megabytes", "size of the model's folder in MB", "≤ 32"),
    ("megabytes_judges", "size of the judges' folder in MB", ""),
)
SCENES = (
    ("retrieval_clean", "subject of a clean held-out scene picked among 16", "≥ 0.99"),
    ("retrieval_all", "the same, half of the scenes damaged, up to severity 1", ""),
    ("spearman_severity", "quality against severity, held-out scenes (Spearman)", "≤ −0.85"),
    ("spearman_severity_damaged_only", "the same among damaged scenes alone", ""),
)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _main(figures: dict[str, Any]) -> str:
    rows = [[words, f"{figures[key]:.3f}", wanted] for key, words, wanted in ROWS if key in figures]
    return _table(["figure", "measured", "wanted"], rows)


def _judges(figures: dict[str, Any]) -> str:
    names = list(figures["scenes"])
    rows = [
        [words, *(f"{figures['scenes'][name][key]:.3f}" for name in names), wanted]
        for key, words, wanted in SCENES
    ]
    return _table(["held-out scenes", *(f"{name} judge" for name in names), "wanted"], rows)


def _damage(figures: dict[str, Any]) -> str:
    names = list(figures["damage"])
    rows = []
    for word in figures["damage"][names[0]]:
        cells = [word]
        for name in names:
            row = figures["damage"][name][word]
            steps = " / ".join(f"{row[f'change_{s}']:.2f}" for s in (0.1, 0.4, 0.8))
            cells += [steps, f"{row['d_0.4']:.2f}", "yes" if row["monotone"] else "no"]
        rows.append(cells)
    heads = [f"{name}: {h}" for name in names for h in ("change at 0.1 / 0.4 / 0.8", "d at 0.4", "monotone")]
    return _table(["damage of drawn pictures", *heads], rows)


def _points(figures: dict[str, Any]) -> str:
    rows = [
        [f"{p['steps']}", f"{p['guidance']:g}", f"{p['first_quality']:.2f}", f"{p['first_quality_sd']:.2f}",
         f"{p['first_subject_right']:.3f}"]
        for p in figures["points"]
    ]  # fmt: skip
    return _table(["steps", "guidance", "quality of the baseline", "sd over prompts", "subject right"], rows)


def write(figures: dict[str, Any], path: Path) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->` for each of the tables."""
    text = path.read_text()
    tables = {"figures": _main, "judges": _judges, "damage": _damage, "points": _points}
    for name, table in tables.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- end of {name} -->\n")
        text = f"{before}<!-- {name} -->\n{table(figures)}\n<!-- end of {name} -->\n{after}"
    path.write_text(text)
