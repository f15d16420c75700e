"""An export: which trial, what is in the folder, what must not be, and that stock diffusers takes it."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.config.schema.adapter import LowRankAdapter
from harness.config.schema.model import EmojiModel
from harness.diffusion.adapters.adapter import LowRankLayer
from harness.diffusion.adapters.files import read_adapter
from harness.diffusion.models import load_model
from harness.diffusion.models.model import Row, RowAdapter, SamplerSettings
from harness.errors import ArtifactError, ConfigError, ExportError
from harness.reporting.export import export_trial
from harness.results.sweep_results import Results
from harness.store.artifact import sha256
from harness.store.workspace import Workspace
from tests.diffusion.adapters.adapters import products
from tests.diffusion.models.test_sdxl import difference
from tests.reporting.export.example import finished


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    root = tmp_path_factory.mktemp("workspace")
    return root, finished(root)


@pytest.fixture(scope="module")
def best(sweep: tuple[Path, Results], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, results = sweep
    return export_trial(
        results, Workspace(root), "best", folder=tmp_path_factory.mktemp("out") / "best", layout="both"
    )


def header(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def test_the_folder_explains_itself(best: Path) -> None:
    found = sorted(path.relative_to(best).as_posix() for path in best.rglob("*") if path.is_file())
    assert found == [
        "README.md",
        "contact_sheet.png",
        *(f"images/{number}.png" for number in (1, 2, 3)),
        "pytorch_lora_weights.safetensors",
        "small_1.safetensors",
        "trial.json",
    ]
    config = json.loads((best / "trial.json").read_text())
    assert config["trial"] == 1 and config["spec"]["training"]["steps"] == 4


@pytest.mark.parametrize(
    ("layout", "files"),
    [("diffusers", {"pytorch_lora_weights.safetensors"}), ("kohya", {"small_0.safetensors"})],
)
def test_one_layout_alone(sweep: tuple[Path, Results], tmp_path: Path, layout: Any, files: set[str]) -> None:
    out = export_trial(sweep[1], Workspace(sweep[0]), 0, folder=tmp_path / "out", layout=layout)
    assert {path.name for path in out.glob("*.safetensors")} == files
    assert json.loads((out / "trial.json").read_text())["spec"]["training"]["steps"] == 2


def test_nothing_tells_of_the_machine(tmp_path: Path) -> None:
    """Paths of the model, of the images and of the workspace are in the specification and in the store."""
    images = tmp_path / "secret-images"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "a.png")
    root = tmp_path / "workspace"
    results = finished(root, recipe={"kind": "folder", "path": str(images)})
    out = export_trial(results, Workspace(root), "best", folder=tmp_path / "out", layout="both")
    assert str(images) in results.trials["config"].iloc[0]
    for file in out.rglob("*.*"):
        for told in (str(tmp_path), "secret-host"):
            assert told.encode() not in file.read_bytes(), file
    assert "secret-images" in (out / "README.md").read_text()  # its name alone
    with Image.open(out / "images" / "1.png") as image:
        assert not image.text  # type: ignore[attr-defined, unused-ignore]


def test_exporting_twice_gives_the_same_bytes(
    sweep: tuple[Path, Results], best: Path, tmp_path: Path
) -> None:
    out = export_trial(sweep[1], Workspace(sweep[0]), "best", folder=tmp_path / "out", layout="both")
    before = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    assert before == {path.name: path.read_bytes() for path in best.rglob("*.*")}
    export_trial(sweep[1], Workspace(sweep[0]), "best", folder=out, layout="both")
    assert before == {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_nothing_is_removed_that_no_export_wrote(sweep: tuple[Path, Results], tmp_path: Path) -> None:
    out = export_trial(sweep[1], Workspace(sweep[0]), "best", folder=tmp_path / "out", layout="both")
    (out / "notes").mkdir()
    (out / "notes" / "thesis.txt").write_text("years of work")
    export_trial(sweep[1], Workspace(sweep[0]), "best", folder=out, layout="diffusers")
    assert (out / "notes" / "thesis.txt").read_text() == "years of work"
    assert not (out / "small_1.safetensors").exists(), "of the earlier export, and not of this one"
    (out / "README.md").write_text("my own words")
    with pytest.raises(ExportError, match=r"README\.md is not of the earlier export"):
        export_trial(sweep[1], Workspace(sweep[0]), "best", folder=out, layout="both")
    assert (out / "README.md").read_text() == "my own words"


def test_another_programs_trial_json(sweep: tuple[Path, Results], tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("years of work")
    out = tmp_path / "out"
    out.mkdir()
    for content in ({}, {"files": {"README.md": "x", "../victim.txt": sha256(victim)}}, [1], {"files": 3}):
        (out / "trial.json").write_text(json.dumps(content))
        with contextlib.suppress(ExportError):
            export_trial(sweep[1], Workspace(sweep[0]), "best", folder=out, layout="both")
        assert victim.read_text() == "years of work"


def test_a_damaged_adapter_is_not_exported(sweep: tuple[Path, Results], tmp_path: Path) -> None:
    shutil.copytree(sweep[0], tmp_path / "w")
    (file,) = (tmp_path / "w").glob("adapters/*/steps-000004/pytorch_lora_weights.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    for damage in (lambda: None, file.unlink):
        damage()
        with pytest.raises(ArtifactError, match=r"(does not match its manifest|is missing); `harness store"):
            export_trial(sweep[1], Workspace(tmp_path / "w"), "best", folder=tmp_path / "out", layout="both")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(sweep: tuple[Path, Results], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="no earlier export"):
        export_trial(sweep[1], Workspace(sweep[0]), "best", folder=tmp_path, layout="both")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_readers_find_what_they_show(best: Path) -> None:
    for file in best.glob("*.safetensors"):
        told = header(file)
        assert told["ss_network_dim"] == "4"
        assert float(told["ss_network_alpha"]) == 2
        assert told["ss_output_name"] == "small_1"
        assert told["ss_base_model_version"] == "emoji"
        assert json.loads(told["ss_tag_frequency"]) == {"keywords": {"wrong": 4}}
        assert told["ss_steps"] == "4"
        assert told["modelspec.trigger_phrase"] == "wrong"
        assert told["modelspec.resolution"] == "64x64"
        assert json.loads(told["harness.trial"])["adapter"]["alpha"] == 2
        assert told["sshs_model_hash"] == told["modelspec.hash_sha256"].removeprefix("0x")


def test_sdxls_header_is_sdxls(tmp_path: Path) -> None:
    """A1111 tells SDXL by `sdxl_`; kohya's names of blocks are those of SDXL's own code."""
    model = {"kind": "sdxl", "source": "someone/sdxl-tune", "refiner": None, "vae": None}
    results = finished(
        tmp_path,
        model=model,
        sampler={"refiner_start": None},
        recipe={
            "kind": "keywords",
            "keywords": ["ugly"],
            "guidance": [8],
            "refiner_start": None,
        },
    )
    out = export_trial(results, Workspace(tmp_path), "best", folder=tmp_path / "out", layout="kohya")
    told = header(out / "small_1.safetensors")
    assert told["ss_base_model_version"].startswith("sdxl_")
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    names = load_file(out / "small_1.safetensors").keys()
    assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.alpha" in names
    assert 'base_model: "someone/sdxl-tune"' in (out / "README.md").read_text()


@pytest.mark.parametrize(("kind", "alpha"), [("lora", 2.0), ("rslora", 4.0), ("dora", 2.0)])
def test_kohyas_alpha_makes_the_same_scale(tmp_path: Path, kind: str, alpha: float) -> None:
    """kohya divides by the rank whatever the kind; rsLoRA by its root."""
    adapter = {"kind": kind, "rank": 4, "alpha": 2}
    results = finished(tmp_path, adapter=adapter)
    out = export_trial(results, Workspace(tmp_path), 1, folder=tmp_path / "out", layout="both")
    kohya = load_file(out / "small_1.safetensors")
    alphas = {float(tensor) for key, tensor in kohya.items() if key.endswith(".alpha")}
    assert alphas == {alpha}
    assert alpha / 4 == pytest.approx(LowRankAdapter.model_validate(adapter).scale)
    ours, theirs = (
        read_adapter(out / name, device=torch.device("cpu"), dtype=torch.float32)
        for name in ("pytorch_lora_weights.safetensors", "small_1.safetensors")
    )
    for part in ("unet", "text_encoder", "text_encoder_2"):
        layers, others = getattr(ours, part), getattr(theirs, part)
        assert layers.keys() == others.keys() and layers
        for name, layer in layers.items():
            assert others[name].scale == pytest.approx(alpha / 4)
            assert layer.scale == 1, "diffusers' layout has its scale in its numbers"
            assert torch.equal(layer.down, others[name].down)
            torch.testing.assert_close(layer.up, others[name].up * others[name].scale)
            if kind == "dora":
                assert torch.equal(layer.magnitude_O, others[name].magnitude_O)
    assert ("dora_scale" in (out / "README.md").read_text()) == (kind == "dora")


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_tensors_alone_are_the_adapter(tmp_path: Path, kind: str) -> None:
    """With or without its header the file reads as the checkpoint does."""
    results = finished(tmp_path, adapter={"kind": kind, "rank": 4, "alpha": 2})
    out = export_trial(results, Workspace(tmp_path), 1, folder=tmp_path / "out", layout="diffusers")
    save_file(load_file(out / "pytorch_lora_weights.safetensors"), tmp_path / "bare.safetensors")
    checkpoint = tmp_path / str(results.trials["adapter_path"].iloc[1])
    with_header, bare, own = (
        products(read_adapter(path, device=torch.device("cpu"), dtype=torch.float32).unet)
        for path in (out / "pytorch_lora_weights.safetensors", tmp_path / "bare.safetensors", checkpoint)
    )
    for name, layer in own.items():
        assert layer.scale in (0.5, 1.0)
        for other in (with_header[name], bare[name]):
            torch.testing.assert_close(
                other.up @ other.down * other.scale, layer.up @ layer.down * layer.scale
            )


def test_the_average_comes_along(tmp_path: Path) -> None:
    arms = [
        {"name": "placebo", "negative": "wrong"},
        {"name": "wrong_lora", "negative": "wrong", "adapters": [{"weights": "ema"}]},
    ]
    training = {"learning_rate": 0.001, "steps": 4, "ema": 0.9}
    results = finished(tmp_path, arms=arms, training=training)
    out = export_trial(results, Workspace(tmp_path), 1, folder=tmp_path / "out", layout="both")
    for last, average in (
        ("small_1.safetensors", "small_1_ema.safetensors"),
        ("pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors"),
    ):
        plain, averaged = load_file(out / last), load_file(out / average)
        up = next(key for key in plain if key.endswith(("lora_up.weight", "lora_B.weight")))
        assert torch.equal(plain[up] / 2, averaged[up])
    text = (out / "README.md").read_text()
    assert 'subfolder="ema"' in text and "its average" in text


def test_a_textual_inversion(tmp_path: Path) -> None:
    adapter = {"kind": "textual_inversion", "word": "wrong", "vectors": 2}
    results = finished(tmp_path, adapter=adapter)
    out = export_trial(results, Workspace(tmp_path), "best", folder=tmp_path / "out", layout="both")
    assert load_file(out / "small_1.safetensors").keys() == {"clip_l", "clip_g"}
    assert header(out / "small_1.safetensors")["modelspec.is_negative_embedding"] == "true"
    assert header(out / "learned_embeds.safetensors")["word"] == "wrong"
    text = (out / "README.md").read_text()
    assert 'negative_prompt="<wrong>"' in text and "textual_inversion" in text
    plain = run_card(out, lambda code: code.replace("learnt[", "0 * learnt["))
    assert run_card(out) != plain


@pytest.mark.parametrize(
    "adapter",
    [{"kind": "loha", "rank": 2, "alpha": 4.0}, {"kind": "oft", "block_size": 8}],
    ids=["loha", "oft"],
)
def test_pefts_kinds(tmp_path: Path, adapter: dict[str, Any]) -> None:
    """The card's lines load PEFT's folder; LyCORIS's file holds the scale in its numbers."""
    results, workspace = finished(tmp_path, adapter=adapter), Workspace(tmp_path)
    out = export_trial(results, workspace, "best", folder=tmp_path / "out", layout="both")
    assert (out / "adapter_model.safetensors").is_file() and (out / "adapter_config.json").is_file()
    text = (out / "README.md").read_text()
    if adapter["kind"] == "oft":
        assert "PEFT alone loads it" in text and not (out / "small_1.safetensors").exists()
        assert "**An OFT" not in text.split("## ")[0] and "An OFT with blocks of 8" in text
        with pytest.raises(ExportError, match="give --layout diffusers"):
            export_trial(results, workspace, "best", folder=tmp_path / "other", layout="kohya")
    else:
        assert "A LoHa of rank 2" in text
        read = partial(read_adapter, device=torch.device("cpu"), dtype=torch.float32)
        own, lycoris = read(out), read(out / "small_1.safetensors")
        assert own.unet.keys() == lycoris.unet.keys() != set()
        for name, layer in own.unet.items():
            other = lycoris.unet[name]
            assert isinstance(layer, LowRankLayer) and isinstance(other, LowRankLayer)
            assert (layer.scale, other.scale) == (2.0, 1.0)
            torch.testing.assert_close(layer.scale * layer.up @ layer.down, other.up @ other.down)

    def without(code: str) -> str:
        return "\n".join(line for line in code.splitlines() if not re.search("unet|set_scale", line))

    assert run_card(out) != run_card(out, without)


def run_card(folder: Path, change: Callable[[str], str] = lambda code: code) -> bytes:
    """The image that the card's own lines draw, in two steps."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "negative_prompt=" in code
    few = ", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]"
    names: dict[str, Any] = {"torch": torch}
    with contextlib.chdir(folder):
        exec(change(code).replace(").images[0]", few), names)
    return names["image"].tobytes()


def test_the_guider_on_the_card_draws_the_harness_image(best: Path, tmp_path: Path) -> None:
    """The LoRA on the negative branch alone, in diffusers' modular pipelines."""
    file = tmp_path / "pytorch_lora_weights.safetensors"
    state = load_file(best / file.name)  # of the UNet alone: encoders' parts would act on both prompts
    save_file({key: tensor for key, tensor in state.items() if key.startswith("unet.")}, file)
    blocks = [part.split("```")[0] for part in (best / "README.md").read_text().split("```python\n")[1:]]
    assert "OneBranch" in blocks[1]
    seeded = ', num_inference_steps=3, generator=torch.Generator().manual_seed(0), output="images")'
    names: dict[str, Any] = {"torch": torch}
    with contextlib.chdir(tmp_path):
        for code in ("\n".join(blocks[0].splitlines()[:-1]), blocks[1].replace(', output="images")', seeded)):
            exec(code, names)
    model = load_model(EmojiModel(), device="cpu")
    found = re.search(r'modular\(prompt="([^"]*)", negative_prompt="([^"]*)"', blocks[1])
    guidance = re.search(r"guidance_scale=([\d.]+)", blocks[1])
    assert found is not None and guidance is not None
    adapter = RowAdapter(path=file, scale=1.5, branch="negative")
    row = Row(prompt=found[1], negative=found[2], seed=0, guidance=float(guidance[1]), adapters=(adapter,))
    settings = SamplerSettings(steps=3, refiner_start=None)
    both = replace(row, adapters=(replace(adapter, branch="both"),))
    ours, other = (image.image for image in model.generate([row, both], settings))
    assert difference(ours, names["image"]) <= 2
    assert difference(ours, other) > 2


def test_the_code_on_the_card_runs_and_both_files_draw_the_same(best: Path) -> None:
    def without(code: str) -> str:
        return "\n".join(line for line in code.splitlines() if "lora" not in line and "adapters" not in line)

    ours = run_card(best)
    assert ours == run_card(best, lambda code: code.replace("pytorch_lora_weights", "small_1"))
    assert ours != run_card(best, without)


@pytest.mark.parametrize(
    ("trial", "words"), [(7, "allowed: best, 0, 1"), (0, "no adapter \\(its loss became NaN\\)")]
)
def test_a_trial_that_is_not_there(tmp_path: Path, trial: int, words: str) -> None:
    results = finished(tmp_path, lost=(0,))
    with pytest.raises(ConfigError, match=words):
        export_trial(results, Workspace(tmp_path), trial, folder=tmp_path / "out", layout="both")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    results = finished(tmp_path)
    with pytest.raises(ArtifactError, match="harness run"):
        export_trial(
            results, Workspace(tmp_path / "elsewhere"), "best", folder=tmp_path / "out", layout="both"
        )
