from harness.generation.plan import missing_chunks
from harness.spec.expand import Cell


def cells(count: int) -> list[Cell]:
    return [
        Cell(
            image_id=f"image{n}",
            draw_id="draw",
            prompt_id="prompt",
            prompt="a fox",
            tags=(),
            split="dev",
            seed=n,
        )
        for n in range(count)
    ]


def test_cells_come_in_order_and_all_but_the_last_chunk_are_full():
    chunks = missing_chunks(cells(10), set(), 4)
    assert [len(chunk.cells) for chunk in chunks] == [4, 4, 2]
    assert [cell.seed for chunk in chunks for cell in chunk.cells] == list(range(10))


def test_an_interruption_between_chunks_changes_no_chunk():
    everything = missing_chunks(cells(10), set(), 4)
    for done in everything:
        have = {cell.image_id for cell in done.cells}
        assert missing_chunks(cells(10), have, 4) == [chunk for chunk in everything if chunk != done]
    assert missing_chunks(cells(10), {cell.image_id for cell in cells(10)}, 4) == []


def test_a_chunk_is_named_by_its_pictures():
    ids = [chunk.chunk_id for chunk in missing_chunks(cells(10), set(), 4)]
    assert ids == [chunk.chunk_id for chunk in missing_chunks(cells(12), set(), 4)][:2] + ids[2:]
    assert len(set(ids)) == 3 and not set(ids) & {c.chunk_id for c in missing_chunks(cells(10), set(), 3)}
