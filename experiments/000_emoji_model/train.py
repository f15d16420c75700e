"""Train the emoji model, stage by stage; every stage goes on where it was stopped.

python experiments/000_emoji_model/train.py --work DIR              # everything
python experiments/000_emoji_model/train.py --work DIR --stage vae  # one stage
"""

from __future__ import annotations

import argparse
from pathlib import Path

STAGES = ("pool", "vae", "text", "latents", "base", "decoder", "scorer", "refiner", "export", "evaluate")


def run(stage: str, cache: Path, work: Path, minutes: float | None) -> None:
    """One stage; imports are inside so that a stage loads only what it needs."""
    import pool
    import text
    from world import World

    if stage == "pool":
        pool.make(cache, work, 80_000)
        return
    scenes = pool.load(work)
    match stage:
        case "vae":
            import vae

            vae.train(scenes, pool.held_out(cache), cache, work, 5000)
        case "text":
            text.train(World(cache), scenes, work, 700)
        case "latents":
            unet.cache_texts(text.load(work), scenes, work)
            (work / "scaling.txt").write_text(str(vae.encode_pool(vae.load(work), scenes, work)))
        case "base" | "refiner":
            refiner = stage == "refiner"
            default = 11 if refiner else 52
            unet.train(unet.load_cache(work, scenes), work, minutes or default, refiner)
        case "decoder":
            vae.train_decoder(scenes, work, minutes or 8)
            vae.reconstruct_pool(vae.load(work), work, 8000)
        case "scorer":
            import scorer

            scorer.train(World(cache), scenes, work, minutes or 9)
        case "look":
            import look

            look.sheet(work, work / "look.png")
        case "evaluate":
            import evaluate

            evaluate.measure(cache)
        case "export":
            import export

            harness = Path(__file__).parents[2] / "harness"
            export.export_model(World(cache), work, harness / "models" / "emoji")
            if (work / "scorer.pt").exists():
                export.export_scorer(work, harness / "metrics" / "emoji")


def main() -> None:
    """Parse, fetch the data, run the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument(
        "--cache", type=Path, help="the two data packages (downloaded if absent); default WORK/data"
    )
    parser.add_argument("--stage", choices=(*STAGES, "look"), action="append", help="default: all")
    parser.add_argument(
        "--minutes", type=float, help="how long a UNet or the decoder learns, in place of the default"
    )
    arguments = parser.parse_args()
    from world import download

    cache = download(arguments.cache or arguments.work / "data")
    for stage in arguments.stage or STAGES:
        run(stage, cache, arguments.work, arguments.minutes)


if __name__ == "__main__":
    main()
