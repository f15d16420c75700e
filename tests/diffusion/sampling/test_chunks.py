from harness.config.plan.plan import Cell
from harness.diffusion.sampling.generate import chunk_of


def cells(count: int) -> list[Cell]:
    return [
        Cell(
            image_id=f"image{n}",
            arm_id="arm",
            prompt_id="prompt",
            prompt="a fox",
            tags=(),
            split="dev",
            noise_seed=0,
            seed=n,
        )
        for n in range(count)
    ]


def test_a_chunk_is_named_by_its_images():
    assert chunk_of(cells(3)) == chunk_of(cells(3))
    assert chunk_of(cells(3)).cells == tuple(cells(3))
    assert len({chunk_of(cells(n)).chunk_id for n in (1, 2, 3)}) == 3
