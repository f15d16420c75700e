"""The page that explains a sweep's keys says what the specifications say."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic_core import PydanticUndefined

from harness.config.loading.messages import kinds_of
from harness.config.schema.adapter import (
    GivenAdapter,
    HubFile,
    LowRankAdapter,
    OftAdapter,
    ProductAdapter,
    TextualInversion,
)
from harness.config.schema.base import Frozen
from harness.config.schema.compute import ComputeConfig
from harness.config.schema.evaluation import (
    AnalysisConfig,
    ApgGuider,
    ArmAdapter,
    ArmConfig,
    CfgZeroStarGuider,
    MatchConfig,
    MergeConfig,
    PostConfig,
    Prompt,
    SamplerConfig,
)
from harness.config.schema.metric import (
    AestheticMetric,
    ClipIqaMetric,
    ClipScoreMetric,
    CommandMetric,
    DiversityMetric,
    DriftMetric,
    LegibilityMetric,
    PreferenceMetric,
)
from harness.config.schema.model import EmojiModel, SdxlModel
from harness.config.schema.recipe import (
    GOOD_WORDS,
    DegradeRecipe,
    FolderRecipe,
    KeywordsRecipe,
    PlainRecipe,
    ShamConfig,
)
from harness.config.schema.search import (
    AshaScheduler,
    ConditionalValues,
    ContrastObjective,
    MedianScheduler,
    OptunaSearch,
    RandomSearch,
    RungObjective,
    ValueRange,
)
from harness.config.schema.sweep import SweepConfig, TrialConfig, WandbTracking
from harness.config.schema.training import (
    OptimizerConfig,
    PriorConfig,
    ScheduleConfig,
    TimestepConfig,
    TrainingConfig,
)
from tests.config.example import load, lora

README = Path(__file__).parents[3] / "sweeps" / "README.md"
SECTIONS: dict[str, type[Frozen]] = {
    "The whole": SweepConfig,
    "axes: conditional values": ConditionalValues,
    "axes: ranges": ValueRange,
    "search: random": RandomSearch,
    "search: optuna": OptunaSearch,
    "search: objective": ContrastObjective,
    "scheduler: asha": AshaScheduler,
    "scheduler: median": MedianScheduler,
    "scheduler: contrast": RungObjective,
    "model: emoji": EmojiModel,
    "model: sdxl": SdxlModel,
    "recipe: keywords": KeywordsRecipe,
    "recipe: plain": PlainRecipe,
    "recipe: degrade": DegradeRecipe,
    "recipe: folder": FolderRecipe,
    "adapter: lora, rslora, dora": LowRankAdapter,
    "adapter: loha, lokr": ProductAdapter,
    "adapter: oft": OftAdapter,
    "adapter: textual_inversion": TextualInversion,
    "adapter: file": GivenAdapter,
    "adapter: hub": HubFile,
    "training": TrainingConfig,
    "training: optimizer": OptimizerConfig,
    "training: schedule": ScheduleConfig,
    "training: timesteps": TimestepConfig,
    "training: prior": PriorConfig,
    "arms": ArmConfig,
    "arms: adapters": ArmAdapter,
    "arms: sham": ShamConfig,
    "arms: match": MatchConfig,
    "arms: post": PostConfig,
    "arms: merge": MergeConfig,
    "prompts": Prompt,
    "sampler": SamplerConfig,
    "sampler: guider cfg_zero_star": CfgZeroStarGuider,
    "sampler: guider apg": ApgGuider,
    "metrics: clip_score": ClipScoreMetric,
    "metrics: aesthetic": AestheticMetric,
    "metrics: pick_score, hps_v2": PreferenceMetric,
    "metrics: clip_iqa": ClipIqaMetric,
    "metrics: drift": DriftMetric,
    "metrics: diversity": DiversityMetric,
    "metrics: legibility": LegibilityMetric,
    "metrics: command": CommandMetric,
    "analysis": AnalysisConfig,
    "tracking: wandb": WandbTracking,
    "compute": ComputeConfig,
}


def tables() -> dict[str, dict[str, str]]:
    """Heading → key → default, as the page has them."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^#+ ", README.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text, flags=re.MULTILINE)
        if rows:
            found[heading] = dict(rows)
    return found


def default_of(config: type[Frozen], name: str) -> Any:
    field = config.model_fields[name]
    return _as_stated(field.get_default(call_default_factory=True, validated_data={}))


def _as_stated(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.model_dump(mode="json", exclude_defaults=True, exclude={"kind"}) or value.model_dump(
            include={"kind"}
        )
    return [_as_stated(inner) for inner in value] if isinstance(value, tuple) else value


def test_every_section_has_a_table_and_no_more() -> None:
    assert set(tables()) == set(SECTIONS)


@pytest.mark.parametrize("heading", SECTIONS)
def test_table_has_every_key_with_its_default(heading: str) -> None:
    config, rows = SECTIONS[heading], tables()[heading]
    kinds = get_args(config.model_fields["kind"].annotation) if "kind" in config.model_fields else ()
    in_heading = len(kinds) == 1 or heading == "metrics: pick_score, hps_v2"
    assert set(rows) == set(config.model_fields) - ({"kind"} if in_heading else set())
    for name, shown in rows.items():
        if shown in ("by hash", "its kind", f"a list of {len(GOOD_WORDS)}"):
            continue
        default = default_of(config, name)
        if default is PydanticUndefined:
            assert shown == "**required**", name
        else:
            stated = yaml.safe_load(shown.strip("`"))
            assert stated == ({} if default == {"kind": "lora"} else default), name


def test_every_kind_is_explained() -> None:
    for section in ("model", "recipe"):
        kinds = kinds_of(TrialConfig.model_fields[section].annotation)
        assert {f"{section}: {kind}" for kind in kinds} <= set(SECTIONS)


def test_every_example_is_part_of_a_valid_sweep(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks
    for rank, name in enumerate(("out/wrong-000010", "out/wrong-000020", "elsewhere/other"), 1):
        file = tmp_path / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        lora(file, rank=rank)
    for block in blocks:
        changes = {"recipe__guidance": [8, 9, 12], **yaml.safe_load(block)}  # six images: some are held out
        load(tmp_path, **changes)
