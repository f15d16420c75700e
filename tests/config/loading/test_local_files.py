import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from harness.config.plan.plan import expand
from harness.errors import ConfigError
from tests.config.example import load, lora
from tests.diffusion.original import write_original


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, colour in {"a.png": "red", "b.png": "blue"}.items():
        Image.new("RGB", (8, 8), colour).save(folder / name)
    return folder


def recipe(**more: Any) -> dict[str, Any]:
    return {"kind": "folder", "path": "mine", **more}


def test_folder_is_found_beside_the_sweep_and_hashed_everywhere(tmp_path: Path, images: Path) -> None:
    arms = [
        {"name": "placebo"},
        {"name": "sham", "adapters": [{"recipe": recipe()}]},
        {"name": "lora", "adapters": [{}]},
    ]
    plain = {"kind": "plain", "prompts": ["a cat"]}
    sweep = load(tmp_path, recipe=None, axes__recipe=[recipe(), plain], arms=arms)
    found = [sweep.recipe, expand(sweep).trials[0].config.recipe, sweep.arms[1].adapters[0].recipe]
    for one in found:
        assert one is not None and one.kind == "folder"
        assert (one.path, one.count) == (images, 2)
        assert one.digest is not None
    assert len({one.digest for one in found if one is not None and one.kind == "folder"}) == 1


def test_moving_the_folder_changes_no_id_but_another_image_does(tmp_path: Path, images: Path) -> None:
    first = expand(load(tmp_path, recipe=recipe())).trials[0]
    images.rename(tmp_path / "elsewhere")
    moved = expand(load(tmp_path, recipe=recipe(path="elsewhere"))).trials[0]
    assert (moved.trial_id, moved.run_id) == (first.trial_id, first.run_id)
    Image.new("RGB", (8, 8), "green").save(tmp_path / "elsewhere" / "c.png")
    assert expand(load(tmp_path, recipe=recipe(path="elsewhere"))).trials[0].trial_id != first.trial_id


def test_broken_image_is_named(tmp_path: Path, images: Path) -> None:
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"x\.yaml: recipe: .*b\.png"):
        load(tmp_path, recipe=recipe())


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.yaml: recipe: .*mine is not a folder"):
        load(tmp_path, recipe=recipe())
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="no images in"):
        load(tmp_path, recipe=recipe())


def test_stated_digest_is_held_to(tmp_path: Path, images: Path) -> None:
    right = load(tmp_path, recipe=recipe()).recipe
    assert right is not None and right.kind == "folder"
    assert load(tmp_path, recipe=recipe(digest=right.digest)).recipe == right
    with pytest.raises(ConfigError, match="is not what the sweep's digest abc says"):
        load(tmp_path, recipe=recipe(digest="abc"))


def test_local_model_has_a_digest_and_a_hub_model_has_none(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(f'{{"name": "{name}"}}')
    digests = {
        source: load_model_only(tmp_path, source).digest for source in ("one", "./two", "some-org/some-model")
    }
    assert digests["some-org/some-model"] is None
    assert digests["one"] not in (None, digests["./two"])
    with pytest.raises(ConfigError, match=r"model: .*/three is not a folder"):
        load_model_only(tmp_path, "./three")


def test_a_model_in_one_file_is_its_content(tmp_path: Path, tiny_folder: Path) -> None:
    """Moved, it is the same model; another file of the same name, or read otherwise, is another."""
    model = {"kind": "sdxl", "config": str(tiny_folder), "vae": None}

    def trial_id(source: str, **more: Any) -> str:
        trial = expand(load(tmp_path, model={**model, "source": source, **more})).trials[0]
        assert trial.config.model.digest is not None
        return trial.trial_id

    write_original(tiny_folder, tmp_path / "one.safetensors")
    first = trial_id("one.safetensors")
    (tmp_path / "there").mkdir()
    (tmp_path / "one.safetensors").rename(tmp_path / "there" / "moved.safetensors")
    assert trial_id("there/moved.safetensors") == first
    write_original(tiny_folder, tmp_path / "one.safetensors", v_pred=torch.zeros(0))
    assert trial_id("one.safetensors") != first
    shutil.copytree(tiny_folder, tmp_path / "otherwise")
    scheduler = tmp_path / "otherwise" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("trailing", "leading"))
    assert trial_id("there/moved.safetensors", config="otherwise") != first
    (tmp_path / "otherwise" / "unet" / "diffusion_pytorch_model.safetensors").unlink()  # not read
    trial_id("there/moved.safetensors", config="otherwise")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {"source": "none.safetensors"},
            "model: source: {0}/none.safetensors is not a folder",
        ),
        ({"source": "old.ckpt"}, "model: source: {0}/old.ckpt is not a folder or a .safetensors file"),
        (
            {"source": "lora.safetensors"},
            "model.source: {0}/lora.safetensors is an adapter: give it to an arm",
        ),
        ({"source": "org/name", "config": "x"}, "model: config is of a source in one .safetensors file"),
        ({"source": "lora.safetensors", "config": "x"}, "model: config: {0}/x is not a folder"),
        (
            {"source": "lora.safetensors", "revision": "x"},
            "model: revision is of a hub id, and source is a file",
        ),
        ({"source": "org/name", "vae": "lora.safetensors"}, "model.vae: {0}/lora.safetensors is an adapter"),
    ],
)
def test_what_is_no_model_is_said_before_work(tmp_path: Path, model: dict[str, Any], words: str) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    lora(tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, model={"kind": "sdxl", "vae": None, **model})
    text = str(caught.value)
    assert words.format(tmp_path) in text and "\n" not in text
    assert len(text) - len(str(tmp_path)) < 300


def test_an_axis_over_files_must_give_whole_models(tmp_path: Path, tiny_folder: Path) -> None:
    write_original(tiny_folder, tmp_path / "one.safetensors")
    write_original(tiny_folder, tmp_path / "two.safetensors", v_pred=torch.zeros(0))
    model = {"kind": "sdxl", "config": str(tiny_folder), "vae": None}
    models = [{**model, "source": f"{name}.safetensors"} for name in ("one", "two")]
    with pytest.raises(ConfigError, match=r"axes\.model\.source chooses between local folders or files"):
        load(tmp_path, model=models[0], axes={"model.source": ["one.safetensors", "two.safetensors"]})
    trials = expand(load(tmp_path, model=None, axes={"model": models})).trials
    assert [trial.params["model"] for trial in trials] == ["one.safetensors", "two.safetensors"]


def load_model_only(folder: Path, source: str) -> Any:
    """The model of a sweep, with tokenizers of its own so that prompts are not the matter here."""
    for name in ("one", "two"):
        for part in ("tokenizer", "tokenizer_2"):
            write_tokenizer(folder / name / part)
    model = {"kind": "sdxl", "source": source, "refiner": "org/refiner", "vae": None}
    return load(folder, model=model).model


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    folder.mkdir(exist_ok=True)
    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")


def test_axis_over_local_folders_must_give_whole_models(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(name)
    load_model_only(tmp_path, "one")
    model = {"kind": "sdxl", "source": "one", "refiner": "org/refiner", "vae": None}
    axis = [str(tmp_path / "one"), str(tmp_path / "two")]
    with pytest.raises(ConfigError, match=r"axes\.model\.source chooses between local folders"):
        load(tmp_path, model=model, axes={"model.source": axis})


def test_missing_metric_weights_stop_before_any_work(tmp_path: Path) -> None:
    metric = {"kind": "aesthetic", "encoder": "local-dir:clip", "head": "emoji"}
    with pytest.raises(ConfigError, match=r"metrics\[0\]\.encoder: .*/clip is not a folder"):
        load(tmp_path, metrics=[metric])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"encoder": "emoji", "head": "head.pth"}, r"metrics\[0\]\.head: .*laion.*emoji"),
        ({"encoder": "ViT-L-14/laion2b_s32b_b82k", "head": "laion"}, "head laion was trained on .*quickgelu"),
        ({"encoder": "emoji", "head": "laion"}, "head laion was trained on .*quickgelu"),
        ({"encoder": "ViT-L-14-quickgelu/openai", "head": "emoji"}, "head emoji was trained on .*emoji"),
    ],
)
def test_a_head_is_used_with_its_own_encoder(tmp_path: Path, metric: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, metrics=[{"kind": "aesthetic", **metric}])
