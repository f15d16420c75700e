"""Models, adapters and captions that a sweep names, opened before any work.

What models and adapters are, whether the model has their layers, whether a prompt holds the word that an
adapter stands for, and whether a caption would be cut.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.config.loading.files import one_line
from harness.config.loading.image_folder import find_images, name_of, read_captions
from harness.config.loading.prompt_syntax import holds_word
from harness.config.loading.tokens import EMOJI_FOLDER, cached_file, hub_file, local_folder, too_long
from harness.config.plan.axes import PointsAndTrials
from harness.config.plan.plan import Plan, adapter_trial
from harness.config.schema.adapter import GivenAdapter, HubFile, TextualInversion
from harness.config.schema.evaluation import ArmAdapter, ArmConfig, negative_text
from harness.config.schema.model import EmojiModel, ModelConfig, SdxlModel
from harness.config.schema.recipe import FolderRecipe
from harness.config.schema.sweep import SweepConfig, TrialConfig
from harness.config.schema.training import CAPTION
from harness.config.weights import checkpoint
from harness.config.weights.header import PICKLES, not_finite, read_header
from harness.config.weights.layout import (
    CLIP_KEYS,
    LORA_FILE,
    Layer,
    Layout,
    adapter_path,
    described,
    oft_block_size,
    read_layout,
)
from harness.config.weights.names import PARTS, TEXT_BODY, Part
from harness.config.weights.sdxl import PUBLISHED, Shapes, sdxl_shapes
from harness.errors import HarnessError, ModelError

TOKENS = "embeddings.token_embedding"


def check_models(configs: Sequence[TrialConfig]) -> Iterator[str]:
    """Every fault of a model whose parts are files."""
    for model in dict.fromkeys(config.model for config in configs):
        yield from (f"model.{fault}" for fault in checkpoint.model_faults(model))


def check_adapters(
    sweep: SweepConfig, configs: Sequence[TrialConfig], *, download: bool = False
) -> Iterator[str]:
    """Every fault of an adapter that is a file, by where it is named.

    One of the hub is looked at where it was downloaded before, or with `download`.
    """
    for arm in sweep.arms:
        for place, adapter in enumerate(arm.adapters):
            where = f"arms.{arm.name}.adapters[{place}]"
            given = set[tuple[str, Path | None, HubFile | None, ModelConfig]]()
            for config in configs:
                if adapter.is_file:
                    given.add((where, adapter.file, adapter.hub, config.model))
                elif adapter.is_own and isinstance(config.adapter, GivenAdapter):
                    given.add(("adapter", config.adapter.file, config.adapter.hub, config.model))
            for name, path, hub, model in sorted(given, key=lambda one: (one[0], str(one[1:3]))):
                try:
                    file = _found(path, hub, download=download)
                    if file is not None:
                        layout = read_layout(file)
                        yield from (f"{name}.file: {file.name} {fault}" for fault in _odd_numbers(file))
                        yield from (f"{name}.file: {fault}" for fault in _misfits(file, layout, model))
                        yield from (f"{where}: {file.name} {f}" for f in _inert(layout, sweep, arm, adapter))
                except HarnessError as error:
                    yield f"{name}.{'file' if hub is None else 'hub'}: {error}"


def _found(file: Path | None, hub: HubFile | None, *, download: bool) -> Path | None:
    """Where a file is on this machine; None where it is on the hub alone."""
    if hub is None:
        return file
    return hub_file(hub) if download else cached_file(hub.id, hub.revision, hub.weight_name or LORA_FILE)


def _inert(layout: Layout, sweep: SweepConfig, arm: ArmConfig, adapter: ArmAdapter) -> Iterator[str]:
    """Where an embedding would do nothing, or cannot do what is asked of it."""
    if layout.word is None:
        return
    if adapter.scale != 1 and f"{CLIP_KEYS[0]}_start" not in layout.header.shapes:
        yield f"does not say where its vectors started, so it can act at scale 1 alone, not {adapter.scale:g}"
    prompts = [prompt.text for prompt in sweep.prompts]
    texts = {"negative": [negative_text(arm.negative, prompt) for prompt in prompts], "positive": prompts}
    word = re.compile(rf"(?<!\w){re.escape(layout.word)}(?!\w)", flags=re.IGNORECASE)
    for branch, of_branch in texts.items():
        if adapter.branch in (branch, "both") and not any(map(word.search, of_branch)):
            what = f"arms.{arm.name}.negative" if branch == "negative" else "one of the prompts"
            yield f"stands for {layout.word!r} on branch {branch}, so {what} must hold it as a word"


def check_captions(arms: Sequence[ArmConfig], configs: Sequence[TrialConfig]) -> Iterator[str]:
    """Captions that are longer than the model's tokenizers take, where they are trained on."""
    seen = set()
    for config in configs:
        trained = [("training.prompt", config)]
        trained += [
            (f"arms.{arm.name}.adapters[{place}].training.prompt", adapter_trial(config, adapter))
            for arm in arms
            for place, adapter in enumerate(arm.adapters)
            if adapter.is_trained_apart
        ]
        for where, one in trained:
            if not one.is_trained:
                continue
            recipe, _, training = one.trained
            prompt = training.prompt
            if not isinstance(recipe, FolderRecipe) or CAPTION not in prompt:
                continue
            if (key := (recipe.path, prompt, one.model)) not in seen:
                seen.add(key)
                yield from (f"{where}: {fault}" for fault in _long_captions(recipe.path, prompt, one.model))


def _long_captions(folder: Path, prompt: str, model: ModelConfig) -> Iterator[str]:
    captions = read_captions(folder, find_images(folder))
    found = [
        (name_of(folder, file), why)
        for file, caption in captions.items()
        if caption is not None and (why := too_long(model, prompt.replace(CAPTION, caption), verbatim=True))
    ]
    if found:
        others = f"; so do {len(found) - 1} others" if len(found) > 1 else ""
        yield f"with the caption of {found[0][0]} it {found[0][1]}{others}; shorten it"


def about_files(plan: Plan) -> list[str]:
    """What models' and adapters' files hold, alike ones in one line, what is left out of them included."""
    adapters = (adapter for arm in plan.arms.values() for adapter in arm.adapters)
    files = dict.fromkeys(_found(a.file, a.hub, download=False) for a in adapters if a.run_id is None)
    alike: dict[str, list[str]] = {}
    for file in files:
        if file is not None:
            alike.setdefault(described(read_layout(file)), []).append(file.name)
    models = map(checkpoint.described, dict.fromkeys(trial.config.model for trial in plan.trials))
    return [
        *(text for text in models if text is not None),
        *(
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}"
            for text, names in alike.items()
        ),
    ]


def _odd_numbers(file: Path) -> Iterator[str]:
    """Of a pickle they are known once torch reads it."""
    file = adapter_path(file)
    if file.suffix not in PICKLES and (tensor := not_finite(file)) is not None:
        yield f"has NaN or infinity in {one_line(tensor, 100)}: its training failed"


def _misfits(file: Path, layout: Layout, model: ModelConfig) -> Iterator[str]:
    """The first layer that the model has not in this shape. Nothing if the model's are not known."""
    shapes = module_shapes(model)
    if layout.kind == "embedding":
        for key, part in zip(CLIP_KEYS, PARTS[1:], strict=True):
            width, own = layout.header.shapes[key][1], shapes.get(part, {}).get(TOKENS)
            if own is not None and own[1] != width:
                yield f"{file.name} has {key} of width {width}, and the model's {part} takes {own[1]}"
                return
        return
    for part, layers in layout.layers.items():
        if part not in shapes:
            continue
        for module, layer in layers.items():
            own = shapes[part].get(module)
            if own is None:
                yield f"{file.name} acts on {part}.{module}, which the model has not: it is of another model"
                return
            if "oft_R" in layer.keys and len(own) > 2:
                yield f"{file.name} turns the inputs of the convolution {part}.{module}, which cannot be done"
                return
            made = _made_for(layer, layout)
            if any(
                size not in (None, has) for size, has in zip(made, (own[0], math.prod(own[1:])), strict=True)
            ):
                takes, gives = ("as many" if size is None else size for size in reversed(made))
                yield (
                    f"{file.name} is of another model: its {part}.{module} takes {takes} numbers and gives "
                    f"{gives}, and the model's {math.prod(own[1:])} and {own[0]}"
                )
                return


def _made_for(layer: Layer, layout: Layout) -> tuple[int | None, int | None]:
    """The outputs of the module, and its inputs times the kernel's size; None for what OFT does not tell."""
    shapes = {role: layout.header.shapes[key] for role, key in layer.keys.items()}
    if "oft_R" in shapes:
        blocks, numbers = shapes["oft_R"]
        return None, blocks * (oft_block_size(numbers) or 0)
    if "oft_blocks" in shapes:
        return math.prod(shapes["oft_blocks"][:2]), None
    if "hada_w1_a" in shapes:
        return shapes["hada_w1_a"][0], math.prod(shapes["hada_w1_b"][1:])
    if "down" not in shapes:
        sides = []
        for n in "12":
            whole = shapes.get(f"lokr_w{n}") or (*shapes[f"lokr_w{n}_a"][:1], *shapes[f"lokr_w{n}_b"][1:])
            sides.append((whole[0], math.prod(whole[1:])))
        return sides[0][0] * sides[1][0], sides[0][1] * sides[1][1]
    kernel = shapes["mid"][2:] if "mid" in shapes else shapes["down"][2:]
    return shapes["up"][0], shapes["down"][1] * math.prod(kernel)


@functools.lru_cache(maxsize=8)
def module_shapes(model: ModelConfig) -> Shapes:
    """The shapes of the model's weights where they can be known here: in its files, or because it is SDXL."""
    match model:
        case EmojiModel():
            return _of_folder(EMOJI_FOLDER / "base", None)
        case SdxlModel(source=source) if source in PUBLISHED:
            return {part: {**modules} for part, modules in sdxl_shapes().items()}
        case SdxlModel(source=source) if checkpoint.is_file(source):
            return checkpoint.module_shapes(model)
        case SdxlModel(source=source, revision=revision, variant=variant):
            folder = local_folder(source)
            if folder is None:
                name = f"unet/diffusion_pytorch_model{f'.{variant}' if variant else ''}.safetensors"
                found = cached_file(source, revision, name)
                folder = None if found is None else found.parents[1]
            return {} if folder is None else _of_folder(folder, variant)


def _of_folder(folder: Path, variant: str | None) -> Shapes:
    found: dict[Part, dict[str, tuple[int, ...]]] = {}
    for part in PARTS:
        files = [
            path for path in sorted((folder / part).glob("*")) if path.suffix in (".safetensors", *PICKLES)
        ]
        of_variant = [path for path in files if variant is not None and f".{variant}" in path.name]
        plain = [path for path in files if path.name.count(".") == 1]
        shapes: dict[str, tuple[int, ...]] = {}
        for path in of_variant or plain:
            try:
                header = read_header(path)
            except ModelError:  # loading the model says what is wrong with it
                continue
            for key, shape in header.shapes.items():
                if key.endswith(".weight"):
                    shapes[key.removesuffix(".weight").removeprefix(TEXT_BODY)] = shape
        if shapes:
            found[part] = shapes
    return found


def check_words(sweep: SweepConfig, trials: PointsAndTrials) -> Iterator[str]:
    """An adapter that stands for a word finds it, as a word, in every branch that it acts on."""
    for arm in sweep.arms:
        negatives = [negative_text(arm.negative, prompt.text) for prompt in sweep.prompts]
        texts = {"negative": negatives, "positive": [prompt.text for prompt in sweep.prompts]}
        for place, adapter in enumerate(arm.adapters):
            branches = [branch for branch in texts if adapter.branch in (branch, "both")]
            for word in dict.fromkeys(_words(adapter, [config for _, config in trials])):
                for branch in branches:
                    if not any(holds_word(text, word) for text in texts[branch]):
                        yield (
                            f"arms.{arm.name}.adapters[{place}]: stands for the word {one_line(word, 40)!r}, "
                            f"which no {branch} prompt of the arm holds, so it does nothing there"
                        )


def _words(adapter: ArmAdapter, configs: Sequence[TrialConfig]) -> Iterator[str]:
    """The words that an arm's adapter learns in the trials; those of files are checked with the files."""
    is_trained = adapter.is_own or adapter.is_trained_apart
    own = [adapter_trial(config, adapter).adapter for config in configs] if is_trained else []
    yield from (one.word for one in own if isinstance(one, TextualInversion))
