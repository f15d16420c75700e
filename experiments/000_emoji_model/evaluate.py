"""Measure what the model and the judges can do; writes figures.json, the sheets and the card's tables.

    python experiments/000_emoji_model/evaluate.py --cache DIR

DIR keeps the data packages (downloaded if absent): held-out scenes are drawn from them with another seed.
`--model`, `--judges` and `--out` measure other folders than the shipped ones, such as an export on the way.
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
from common import Threads
from degrade import degrade
from diffusers import AutoencoderKL, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pool import Pool, as_pool, render
from safetensors.torch import load_file
from scipy.stats import spearmanr
from subjects import BAD_WORDS, COLOURS, FORBIDDEN, SCENES, SPECIFIC_WORDS, SUBJECTS
from vae import psnr, reconstruct
from world import download, with_article

HERE = Path(__file__).parent
HARNESS = HERE.parents[1] / "harness"
HELD_OUT_SEED = 777
NAMES = list(SUBJECTS)
STEPS, GUIDANCE, HAND_OVER = 20, 4.0, 0.8
SEVERITIES = (0.1, 0.4, 0.8)
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
Figures = dict[str, float]


class Judge:
    """A shipped judge, loaded as any user of open_clip would."""

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
        chunks = [pictures[i : i + 100] for i in range(0, len(pictures), 100)]
        pixels = (torch.stack([self.preprocess(p) for p in chunk]) for chunk in chunks)
        return torch.cat([self.clip.encode_image(x, normalize=True) for x in pixels])

    def quality(self, seen: torch.Tensor) -> NDArray[np.float64]:
        """Scores on the 1-10 scale, higher is better."""
        return (seen @ self.weight + self.bias).double().numpy()

    def picks(self, seen: torch.Tensor, truth: list[str], seed: int = 5) -> NDArray[np.bool_]:
        """Whether each picture's subject beats 15 others drawn at random."""
        rng, likeness = np.random.default_rng(seed), (seen @ self.names.T).numpy()
        right = []
        for row, name in zip(likeness, truth, strict=True):
            own = NAMES.index(name)
            others = rng.choice([i for i in range(len(NAMES)) if i != own], 15, replace=False)
            right.append(row[own] > row[others].max())
        return np.array(right)


class Painter:
    """Base and, where there is one, refiner, as stock pipelines."""

    def __init__(self, folder: Path) -> None:
        self.base = StableDiffusionXLPipeline.from_pretrained(folder / "base")
        self.refiner: StableDiffusionXLImg2ImgPipeline | None = None
        self.threads = Threads()
        if (folder / "refiner").is_dir():
            self.refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
                folder / "refiner", text_encoder_2=self.base.text_encoder_2,
                tokenizer_2=self.base.tokenizer_2, vae=self.base.vae,
            )  # fmt: skip
        for pipeline in (self.base, self.refiner):
            if pipeline is not None:
                pipeline.set_progress_bar_config(disable=True)

    def draw(
        self,
        prompts: list[str],
        negative: str | None = None,
        *,
        refine: bool = False,
        seed: int = 0,
        guidance: float = GUIDANCE,
        steps: int = STEPS,
        batch: int = 16,
    ) -> list[Image.Image]:
        """One picture per prompt; picture i starts from seed + i whatever the batch."""
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), batch):
            self.threads.adapt()
            words: dict[str, Any] = {"prompt": prompts[start : start + batch], "guidance_scale": guidance}
            count = len(words["prompt"])
            words["negative_prompt"] = None if negative is None else [negative] * count
            words["num_inference_steps"] = steps
            shape = (1, self.base.unet.config.in_channels, *[self.base.unet.config.sample_size] * 2)
            noise = torch.cat([
                torch.randn(shape, generator=torch.Generator().manual_seed(seed + start + i))
                for i in range(count)
            ])  # fmt: skip
            if not refine or self.refiner is None:
                pictures += self.base(**words, latents=noise, height=64, width=64).images
                continue
            latents = self.base(
                **words, latents=noise, height=64, width=64, denoising_end=HAND_OVER, output_type="latent"
            ).images
            pictures += self.refiner(**words, image=latents, denoising_start=HAND_OVER).images
        return pictures


def plain_prompts(repeat: int) -> tuple[list[str], list[str]]:
    """Every subject on `repeat` backdrops; prompts and subjects."""
    places = [
        *(f"on {'an' if c == 'orange' else 'a'} {c} background" for c in COLOURS), *SCENES.values()
    ]  # fmt: skip
    prompts, truth = [], []
    for turn in range(repeat):
        for i, name in enumerate(NAMES):
            prompts.append(f"{with_article(name)} {places[(7 * i + 5 * turn) % len(places)]}")
            truth.append(name)
    return prompts, truth


def pair_prompts(count: int, seed: int = 9) -> list[tuple[str, str, str]]:
    """(prompt, subject on the left, subject on the right); half of the prompts name the right one first."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        left, right = (str(name) for name in rng.choice(NAMES, 2, replace=False))
        words = (left, "left of", right) if i % 2 == 0 else (right, "right of", left)
        prompt = f"{with_article(words[0])} {words[1]} {with_article(words[2])}"
        found.append((f"{prompt} {['on a blue background', 'on grass', 'at sunset'][i % 3]}", left, right))
    return found


def held_out(cache: Path, size: int = 2000) -> Pool:
    """Scenes that neither the model nor a judge has seen."""
    return as_pool(*render(cache, size, HELD_OUT_SEED, workers=1))


def autoencoder(vae: AutoencoderKL, scenes: Pool, count: int = 500) -> Figures:
    """Reconstruction of held-out scenes, clean and damaged."""
    given = reconstruct(vae, scenes.pictures[:count])
    clean = scenes.severities[:count] == 0
    return {
        "psnr_clean": psnr(scenes.pictures[:count][clean], given[clean]),
        "psnr_damaged": psnr(scenes.pictures[:count][~clean], given[~clean]),
    }


def judge_scenes(judge: Judge, scenes: Pool) -> Figures:
    """Figures on held-out scenes."""
    seen = judge.look([Image.fromarray(p) for p in scenes.pictures])
    single = np.array([len(s) == 1 for s in scenes.subjects])
    right = judge.picks(seen[torch.from_numpy(single)], [s[0] for s in scenes.subjects if len(s) == 1])
    severity, quality = scenes.severities, judge.quality(seen)
    bad = severity > 0
    return {
        "retrieval_clean": float(right[~bad[single]].mean()),
        "retrieval_all": float(right.mean()),
        "spearman_severity": float(spearmanr(quality, severity).statistic),
        "spearman_severity_damaged_only": float(spearmanr(quality[bad], severity[bad]).statistic),
        "quality_clean": float(quality[~bad].mean()),
        "quality_damaged": float(quality[bad].mean()),
    }


def judge_damage(judge: Judge, drawn: list[Image.Image], seed: int = 3) -> dict[str, Figures]:
    """Per damage: mean change of quality at each severity, its d (mean over sd of pairs), and if monotone."""
    plain, table = judge.quality(judge.look(drawn)), {}
    for word in SPECIFIC_WORDS:
        row: Figures = {}
        means = []
        for severity in SEVERITIES:
            rng = np.random.default_rng((seed, SPECIFIC_WORDS.index(word)))
            bad = judge.quality(judge.look([degrade(p.convert("RGB"), word, severity, rng) for p in drawn]))
            change = bad - plain
            means.append(float(change.mean()))
            row[f"change_{severity}"] = means[-1]
            row[f"d_{severity}"] = float(change.mean() / change.std(ddof=1))
        row["monotone"] = float(0 > means[0] > means[1] > means[2])
        table[word] = row
    return table


def halves(pictures: list[Image.Image]) -> tuple[list[Image.Image], list[Image.Image]]:
    """The left and the right half of each picture, as large as a picture of one subject."""
    crops = [[p.crop((x, 16, x + 32, 48)) for p in pictures] for x in (0, 32)]
    left, right = ([c.resize((64, 64), Image.Resampling.BICUBIC) for c in crop] for crop in crops)
    return left, right


def two_subjects(judge: Judge, painter: Painter, count: int) -> tuple[Figures, list[Image.Image]]:
    """How often the halves show the subjects that the prompt puts there (each among 16)."""
    asked = pair_prompts(count)
    pictures = painter.draw([prompt for prompt, _, _ in asked], seed=40_000)
    left, right = (judge.look(half) for half in halves(pictures))
    lefts, rights = [a for _, a, _ in asked], [b for _, _, b in asked]
    in_place = judge.picks(left, lefts) & judge.picks(right, rights)
    exchanged = judge.picks(left, rights) & judge.picks(right, lefts)
    return {"pairs_in_place": float(in_place.mean()), "pairs_exchanged": float(exchanged.mean())}, pictures


def gain(judge: Judge, pictures: list[Image.Image], plain: list[Image.Image]) -> tuple[float, float]:
    """Mean change of quality, same noise, and its standard error."""
    change = judge.quality(judge.look(pictures)) - judge.quality(judge.look(plain))
    return float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(change)))


def drawings(judges: dict[str, Judge], painter: Painter, repeat: int) -> tuple[Figures, list[Image.Image]]:
    """Figures on drawn pictures: subjects, and what negative prompts and refiner do, same noise."""
    prompts, truth = plain_prompts(repeat)
    plain = painter.draw(prompts)
    others = {
        "keywords": painter.draw(prompts, ", ".join(BAD_WORDS)), "placebo": painter.draw(prompts, FORBIDDEN)
    }  # fmt: skip
    if painter.refiner is not None:
        others["refiner"] = painter.draw(prompts, refine=True)
    figures: Figures = {}
    for name, judge in judges.items():
        seen = judge.look(plain)
        figures[f"{name}_subject_right"] = float(judge.picks(seen, truth).mean())
        figures[f"{name}_quality"] = float(judge.quality(seen).mean())
        for what, pictures in others.items():
            mean, error = gain(judge, pictures, plain)
            figures[f"{name}_gain_{what}"], figures[f"{name}_gain_{what}_error"] = mean, error
            right = judge.picks(judge.look(pictures), truth)
            figures[f"{name}_subject_right_{what}"] = float(right.mean())
    return figures, plain


def operating_points(judges: dict[str, Judge], painter: Painter) -> list[Figures]:
    """Quality and subjects of the baseline alone, by steps and guidance: where the sweeps can work."""
    prompts, truth = plain_prompts(1)
    rows = []
    for steps, guidances in ((20, GUIDANCES), (10, (2.0, 4.0))):
        for guidance in guidances:
            pictures = painter.draw(prompts, guidance=guidance, steps=steps, seed=60_000)
            row: Figures = {"steps": steps, "guidance": guidance}
            for name, judge in judges.items():
                seen = judge.look(pictures)
                quality = judge.quality(seen)
                row |= {
                    f"{name}_quality": float(quality.mean()),
                    f"{name}_quality_sd": float(quality.std(ddof=1)),
                    f"{name}_subject_right": float(judge.picks(seen, truth).mean()),
                }  # fmt: skip
            rows.append(row)
    return rows


def timing(painter: Painter, refine: bool) -> Figures:
    """Seconds per picture in a batch of eight and alone, best of three; needs two free cores."""
    painter.threads = Threads(every=float("inf"))
    torch.set_num_threads(2)
    painter.draw(["a fox"], refine=refine)
    figures = {}
    for batch, count in ((8, 8), (1, 1)):
        spent = []
        for _ in range(3):
            start = time.perf_counter()
            painter.draw(["a fox"] * count, batch=batch, refine=refine)
            spent.append((time.perf_counter() - start) / count)
        figures[f"seconds_per_picture_batch_{batch}"] = min(spent)
    painter.threads = Threads()
    return figures


def folder_size(folder: Path) -> float:
    """Megabytes (of 10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def named_sheet(pictures: list[Image.Image], names: list[str], path: Path, columns: int = 8) -> None:
    """Pictures in rows, each with its name; an empty name gives a sheet to guess from."""
    side, foot = 100, 14 if any(names) else 0
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * (side + foot)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        x, y = i % columns * side, i // columns * (side + foot)
        sheet.paste(picture.resize((side - 4, side - 4), Image.Resampling.LANCZOS), (x + 2, y + 2))
        if name:
            pen.text((x + 4, y + side - 2), name, fill="black")
    sheet.save(path, quality=90)


def vae_sheet(vae: AutoencoderKL, scenes: Pool, path: Path, before: AutoencoderKL | None = None) -> None:
    """Held-out pictures, as another autoencoder gives them back (if given), and as this one does."""
    clean, bad = np.flatnonzero(scenes.severities == 0)[:11], np.flatnonzero(scenes.severities > 0)[:11]
    rows = []
    for chosen in (clean, bad):
        sources = [scenes.pictures[chosen]]
        sources += [reconstruct(v, scenes.pictures[chosen]) for v in (before, vae) if v is not None]
        rows += [np.concatenate(list(source), 1) for source in sources]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path, quality=92)


def measure(
    cache: Path, model: Path, judging: Path, out: Path, repeat: int, timed: bool, before: Path | None = None
) -> dict[str, Any]:
    """All figures and the sheets; figures.json is written after each part."""
    out.mkdir(parents=True, exist_ok=True)
    judges = {"first": Judge(judging)}
    if (judging / "second").is_dir():
        judges["second"] = Judge(judging / "second")
    painter, scenes = Painter(model), held_out(download(cache))
    figures: dict[str, Any] = {"megabytes": folder_size(model), "megabytes_judges": folder_size(judging)}

    def note(**more: Any) -> None:
        figures.update(more)
        text = json.dumps(rounded(figures), indent=1)
        (out / "figures.json").write_text(text + "\n")

    prompts, truth = plain_prompts(1)
    pictures = painter.draw(prompts, seed=900)
    named_sheet(pictures, truth, out / "contact_sheet.jpg")
    note(**autoencoder(painter.base.vae, scenes))
    other = AutoencoderKL.from_pretrained(before).eval() if before else None
    vae_sheet(painter.base.vae, scenes, out / "vae_sheet.jpg", other)
    if timed:
        note(**timing(painter, refine=False))
        if painter.refiner is not None:
            note(**{f"refiner_{k}": v for k, v in timing(painter, refine=True).items()})
    found, plain = drawings(judges, painter, repeat)
    note(**found)
    pairs, two = two_subjects(judges["first"], painter, 96)
    note(**pairs)
    named_sheet(two[:32], [""] * 32, out / "pairs_sheet.jpg")
    note(scenes={name: judge_scenes(judge, scenes) for name, judge in judges.items()})
    note(damage={name: judge_damage(judge, plain[:64]) for name, judge in judges.items()})
    note(points=operating_points(judges, painter))
    print(json.dumps(rounded(figures), indent=1), flush=True)
    return figures


def rounded(value: Any) -> Any:
    """The same with four decimals."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Parse, measure and write the card's tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="where the data packages are or will be")
    parser.add_argument("--model", type=Path, default=HARNESS / "diffusion" / "models" / "emoji")
    parser.add_argument("--judges", type=Path, default=HARNESS / "metrics" / "emoji")
    parser.add_argument("--out", type=Path, default=HERE, help="figures.json, sheets and (if there) the card")
    parser.add_argument("--repeat", type=int, default=4, help="backdrops per subject")
    parser.add_argument("--untimed", action="store_true", help="the machine is busy: no seconds per picture")
    parser.add_argument("--before", type=Path, help="the folder of another VAE to show on its sheet")
    arguments = parser.parse_args()
    figures = measure(
        arguments.cache, arguments.model, arguments.judges, arguments.out, arguments.repeat,
        not arguments.untimed, arguments.before,
    )  # fmt: skip
    if (arguments.out / "README.md").exists():
        import card

        card.write(rounded(figures), arguments.out / "README.md")


if __name__ == "__main__":
    main()
