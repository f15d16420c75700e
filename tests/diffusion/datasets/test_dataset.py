from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from harness.diffusion.datasets.dataset import Sample, png_bytes, write_dataset


def test_a_source_files_own_metadata_is_left_behind() -> None:
    image = Image.new("RGB", (8, 8), "red")
    plain = png_bytes(image)
    image.info.update({"icc_profile": b"x" * 40, "comment": "mine"})
    image.info["exif"] = PngImagePlugin.PngInfo()
    assert png_bytes(image) == plain


@pytest.mark.parametrize(
    "image", [Image.new("L", (8, 8)), Image.new("RGB", (8, 9)), Image.new("RGB", (16, 24))]
)
def test_what_does_not_fit_the_model_is_a_fault_of_the_recipe(image: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_dataset([Sample(image=image)], tmp_path, resolution=8, report=lambda _: None)
    assert not (tmp_path / "metadata.jsonl").exists()
