import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from harness.config.loading.tokens import check_prompt_lengths, model_digest, plain_text
from harness.config.schema.model import SdxlModel
from harness.errors import ConfigError
from tests.diffusion.tiny import refiner_folder, tiny_sdxl
from tests.diffusion.tiny import tiny_config as spec_of


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("low quality, (blurry)++++, noisy", "low quality, blurry, noisy"),
        ("((a red)++ fox)1.3 and (hat)--", "a red fox and hat"),
        ("fox+ and cat--, hat++", "fox and cat, hat"),
        ("a t-shirt (small), a - b, 1990-1995", "a t-shirt (small), a - b, 1990-1995"),
        (r"a \(wrong\)++ fox", r"a \(wrong\)++ fox"),
        ("", ""),
    ],
)
def test_plain_text_has_no_weights(prompt: str, plain: str):
    assert plain_text(prompt) == plain


def test_a_prompt_may_have_75_tokens(tiny_config: SdxlModel):
    check_prompt_lengths(tiny_config, ["fox " * 75, "", "(fox)++++ " * 75])
    with pytest.raises(ConfigError, match=r"'a fox fox.* has 78 tokens, and the model's tokenizer takes 77"):
        check_prompt_lengths(tiny_config, ["a fox", "a " + "fox " * 75])


def test_the_older_tokenizer_files_count_the_same(tiny_folder: Path, tmp_path: Path):
    folder = tiny_sdxl(tmp_path / "sdxl")
    for name in ("tokenizer", "tokenizer_2"):
        file = folder / name / "tokenizer.json"
        model = json.loads(file.read_text())["model"]
        file.with_name("vocab.json").write_text(json.dumps(model["vocab"]))
        file.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
        file.unlink()
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder, subfolder="tokenizer")
    odd = "Xylophone, it's  3 é! "
    prompt = odd + "fox " * (77 - len(tokenizer(odd).input_ids))
    check_prompt_lengths(spec_of(folder), [prompt])
    with pytest.raises(ConfigError, match="78 tokens"):
        check_prompt_lengths(spec_of(folder), [prompt + "fox"])


def test_a_model_that_is_not_here_is_not_checked():
    config = SdxlModel(source="nobody/nothing")
    check_prompt_lengths(config, ["word " * 500])
    assert model_digest(config.model_copy(update={"vae": None, "refiner": None})) is None


def test_a_folder_that_is_not_here_is_an_error(tmp_path: Path):
    for source in (str(tmp_path / "nothing"), "./nothing", "a/b/c"):
        with pytest.raises(ConfigError, match="does not exist"):
            check_prompt_lengths(SdxlModel(source=source), ["a fox"])


def test_a_broken_tokenizer_is_an_error(tmp_path: Path):
    folder = tiny_sdxl(tmp_path / "sdxl")
    (folder / "tokenizer_2" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="tokenizer_2 cannot be read"):
        check_prompt_lengths(spec_of(folder), ["a fox"])


def test_digest_follows_the_files_and_nothing_else(tmp_path: Path):
    one, moved = tiny_sdxl(tmp_path / "one"), tiny_sdxl(tmp_path / "moved")
    digest = model_digest(spec_of(one))
    assert digest == model_digest(spec_of(moved)) and digest is not None and len(digest) == 64
    (moved / "README.md").write_text("not the model")
    assert digest == model_digest(spec_of(moved))
    assert digest != model_digest(spec_of(moved, refiner=False))
    weights = refiner_folder(moved) / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert digest != model_digest(spec_of(moved))


def test_reads_no_heavy_library(tiny_folder: Path):
    program = f"""
import sys
from harness.config.loading.tokens import check_prompt_lengths, model_digest
from harness.config.schema.model import SdxlModel
spec = SdxlModel(source={str(tiny_folder)!r}, refiner=None, vae=None, variant=None)
check_prompt_lengths(spec, ["a fox"]); model_digest(spec)
assert not {{"torch", "transformers", "diffusers", "compel"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
