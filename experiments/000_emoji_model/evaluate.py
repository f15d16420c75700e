"""Measure what the shipped folders can do; writes figures.json, contact_sheet.jpg and the card's table.

    python experiments/000_emoji_model/evaluate.py --cache DIR

DIR keeps the two data packages (downloaded if absent): held-out scenes are drawn from them with another seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageDraw
from pool import as_pool, render
from safetensors.torch import load_file
from scipy.stats import spearmanr
from subjects import BAD_WORDS, COLOURS, FORBIDDEN, SCENES, SUBJECTS
from world import download, with_article

HERE = Path(__file__).parent
HARNESS = HERE.parents[1] / "harness"
HELD_OUT_SEED = 777
NAMES = list(SUBJECTS)
STEPS, GUIDANCE, HAND_OVER = 20, 4.0, 0.8


class Judge:
    """The shipped scorer, loaded as any user of open_clip would."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder / 'clip'}"
        self.clip, _, self.preprocess = open_clip.create_model_and_transforms(name)
        self.clip.eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        head = load_file(folder / "aesthetic.safetensors")
        self.weight, self.bias = head["weight"][0], head["bias"][0]
        self.names = self.words([f"a picture of {with_article(name)}" for name in NAMES])

    @torch.no_grad()
    def words(self, texts: list[str]) -> torch.Tensor:
        """Unit text embeddings."""
        return self.clip.encode_text(self.tokenizer(texts), normalize=True)

    @torch.no_grad()
    def look(self, pictures: list[Image.Image]) -> torch.Tensor:
        """Unit image embeddings."""
        chunks = [pictures[i : i + 200] for i in range(0, len(pictures), 200)]
        return torch.cat(
            [
                self.clip.encode_image(torch.stack([self.preprocess(p) for p in c]), normalize=True)
                for c in chunks
            ]
        )

    def quality(self, seen: torch.Tensor) -> np.ndarray:
        """Scores on the 1-10 scale, higher is better."""
        return (seen @ self.weight + self.bias).numpy()

    def picks(self, seen: torch.Tensor, truth: list[str], seed: int = 5) -> np.ndarray:
        """Whether each picture's subject beats 15 others drawn at random."""
        rng, likeness = np.random.default_rng(seed), (seen @ self.names.T).numpy()
        right = []
        for row, name in zip(likeness, truth, strict=True):
            own = NAMES.index(name)
            others = rng.choice([i for i in range(len(NAMES)) if i != own], 15, replace=False)
            right.append(row[own] > row[others].max())
        return np.array(right)


class Painter:
    """Base and refiner, as stock pipelines."""

    def __init__(self, folder: Path) -> None:
        self.base = StableDiffusionXLPipeline.from_pretrained(folder / "base")
        self.refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            folder / "refiner", text_encoder_2=self.base.text_encoder_2, tokenizer_2=self.base.tokenizer_2,
            vae=self.base.vae,
        )  # fmt: skip
        for pipeline in (self.base, self.refiner):
            pipeline.set_progress_bar_config(disable=True)

    def draw(
        self,
        prompts: list[str],
        negative: str | None = None,
        refine: bool = True,
        seed: int = 0,
        batch: int = 22,
    ) -> list[Image.Image]:
        """One picture per prompt; picture i starts from seed + i whatever the batch."""
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), batch):
            words: dict[str, Any] = {"prompt": prompts[start : start + batch], "guidance_scale": GUIDANCE}
            count = len(words["prompt"])
            words["negative_prompt"] = None if negative is None else [negative] * count
            words["num_inference_steps"] = STEPS
            noise = torch.cat([
                torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(seed + start + i))
                for i in range(count)
            ])  # fmt: skip
            if not refine:
                pictures += self.base(**words, latents=noise, height=64, width=64).images
                continue
            latents = self.base(
                **words, latents=noise, height=64, width=64, denoising_end=HAND_OVER, output_type="latent"
            ).images
            pictures += self.refiner(
                **words, image=torch.zeros(1, 3, 64, 64), latents=latents, denoising_start=HAND_OVER
            ).images  # `latents`: the pipeline takes an image of other than 4 channels for pixels
        return pictures


def plain_prompts(repeat: int) -> tuple[list[str], list[str]]:
    """Every subject on `repeat` backdrops; prompts and subjects."""
    places = [f"on a {c} background" for c in COLOURS] + list(SCENES.values())
    prompts, truth = [], []
    for turn in range(repeat):
        for i, name in enumerate(NAMES):
            prompts.append(f"{with_article(name)} {places[(7 * i + 5 * turn) % len(places)]}")
            truth.append(name)
    return prompts, truth


def judge_scenes(judge: Judge, cache: Path) -> dict[str, float]:
    """Figures on scenes that no model has seen."""
    scenes = as_pool(*render(cache, 2000, HELD_OUT_SEED, workers=1))
    seen = judge.look([Image.fromarray(p) for p in scenes.pictures])
    single = np.array([len(s) == 1 for s in scenes.subjects])
    right = judge.picks(seen[torch.from_numpy(single)], [s[0] for s in scenes.subjects if len(s) == 1])
    severity = scenes.severities
    quality = judge.quality(seen)
    bad = severity > 0
    return {
        "retrieval_clean": float(right[~bad[single]].mean()),
        "retrieval_all": float(right.mean()),
        "spearman_severity": float(spearmanr(quality, severity).statistic),
        "spearman_severity_spoiled_only": float(spearmanr(quality[bad], severity[bad]).statistic),
        "quality_clean": float(quality[~bad].mean()),
        "quality_spoiled": float(quality[bad].mean()),
    }


def judge_drawings(judge: Judge, painter: Painter, repeat: int) -> dict[str, float]:
    """Figures on drawn pictures: subjects, and what negative prompts do to quality (paired by seed)."""
    prompts, truth = plain_prompts(repeat)
    figures: dict[str, float] = {}
    plain = judge.look(painter.draw(prompts))
    figures["drawn_subject_right"] = float(judge.picks(plain, truth).mean())
    alone = judge.look(painter.draw(prompts, refine=False))
    figures["drawn_subject_right_base_alone"] = float(judge.picks(alone, truth).mean())
    figures["drawn_quality"] = float(judge.quality(plain).mean())
    for name, negative in (("keywords", ", ".join(BAD_WORDS)), ("placebo", FORBIDDEN)):
        seen = judge.look(painter.draw(prompts, negative))
        gain = judge.quality(seen) - judge.quality(plain)
        figures[f"gain_negative_{name}"] = float(gain.mean())
        figures[f"gain_negative_{name}_error"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        figures[f"drawn_subject_right_negative_{name}"] = float(judge.picks(seen, truth).mean())
    return figures


def timing(painter: Painter) -> dict[str, float]:
    """Seconds per picture, one at a time and in batches, after a warm-up."""
    painter.draw(["a fox"])
    figures = {}
    for batch, count in ((1, 4), (16, 32)):
        start = time.perf_counter()
        painter.draw(["a fox"] * count, batch=batch)
        figures[f"seconds_per_picture_batch_{batch}"] = (time.perf_counter() - start) / count
    return figures


def contact_sheet(painter: Painter, path: Path) -> None:
    """Every subject once, with its name; on plain prompts, so good and bad pictures mix."""
    prompts, truth = plain_prompts(1)
    columns, side = 11, 92
    sheet = Image.new("RGB", (columns * side, -(-len(truth) // columns) * (side + 14)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, name) in enumerate(zip(painter.draw(prompts, seed=900), truth, strict=True)):
        x, y = i % columns * side, i // columns * (side + 14)
        sheet.paste(picture.resize((side - 4, side - 4), Image.Resampling.LANCZOS), (x + 2, y + 2))
        pen.text((x + 4, y + side - 2), name, fill="black")
    sheet.save(path, quality=88)


ROWS = (
    ("retrieval_clean", "judge picks the subject of a held-out clean scene among 16", "at least 0.95"),
    ("retrieval_all", "the same, half of the scenes spoiled, up to severity 1", ""),
    ("spearman_severity", "quality head against severity, held-out scenes (Spearman)", "at most -0.85"),
    ("spearman_severity_spoiled_only", "the same among spoiled scenes alone", ""),
    (
        "drawn_subject_right",
        "judge picks the subject of a drawn picture among 16, with refiner",
        "at least 0.80",
    ),
    ("drawn_subject_right_base_alone", "the same, base alone", ""),
    ("drawn_quality", "mean quality of pictures from plain prompts", ""),
    ("gain_negative_keywords", "quality gained by the 13 words as negative prompt, same noise", "above 0"),
    ("gain_negative_keywords_error", "its standard error", ""),
    ("gain_negative_placebo", "quality gained by `wrong` as negative prompt, same noise", "about 0"),
    ("gain_negative_placebo_error", "its standard error", ""),
    (
        "seconds_per_picture_batch_1",
        "seconds per picture, one at a time, 20 steps, guidance 4, refiner",
        "0.5",
    ),
    ("seconds_per_picture_batch_16", "the same, 16 at a time", "0.5"),
)


def write_card(figures: dict[str, float], card: Path) -> None:
    """Put the table between the card's two marks."""
    table = ["| figure | measured | wanted |", "|---|---|---|"]
    table += [f"| {words} | {figures[name]:.3f} | {wanted} |" for name, words, wanted in ROWS]
    before, _, rest = card.read_text().partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- end of figures -->\n")
    body = "\n".join(table)
    card.write_text(f"{before}<!-- figures -->\n{body}\n<!-- end of figures -->\n{after}")


def measure(cache: Path, repeat: int = 2) -> dict[str, float]:
    """All figures and the sheet, from the shipped folders."""
    judge, painter = Judge(HARNESS / "metrics" / "emoji"), Painter(HARNESS / "models" / "emoji")
    contact_sheet(painter, HERE / "contact_sheet.jpg")
    figures = judge_scenes(judge, download(cache))
    print(json.dumps(figures, indent=1), flush=True)
    figures |= timing(painter) | judge_drawings(judge, painter, repeat)
    figures = {name: round(value, 4) for name, value in figures.items()}
    (HERE / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(figures, HERE / "README.md")
    print(json.dumps(figures, indent=1), flush=True)
    return figures


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="where the data packages are or will be kept"
    )
    parser.add_argument("--repeat", type=int, default=2, help="backdrops per subject")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    measure(arguments.cache, arguments.repeat)


if __name__ == "__main__":
    main()
