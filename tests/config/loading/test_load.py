import re
import time
from pathlib import Path
from typing import Any

import pytest

from harness.config.loading.load import load_sweep
from harness.config.plan.plan import expand
from harness.config.schema.sweep import SweepConfig
from harness.errors import ConfigError
from tests.config.example import load

QUICKSTART = Path(__file__).parents[3] / "sweeps" / "quickstart.yaml"


def message(folder: Path, *overrides: str, **changes: Any) -> str:
    """The error of a changed example, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides, **changes)
    return str(caught.value).replace(f"{folder}/", "")


def test_valid_sweep_keeps_what_was_written(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    assert sweep.axes == {"adapter.rank": (2, 8), "training.steps": (100, 200)}
    assert [metric.kind for metric in sweep.metrics] == ["aesthetic", "saturation"]
    assert [arm.is_control for arm in sweep.arms] == [True, True, True, False]


def test_dump_loads_again_to_an_equal_sweep(tmp_path: Path) -> None:
    recipes = [
        {"kind": "keywords", "keywords": ["ugly"]},
        {"kind": "plain", "prompts": ["a cat"], "name": "p"},
    ]
    sweep = load(tmp_path, axes__recipe=recipes, recipe=None)
    again = SweepConfig.model_validate(sweep.model_dump(mode="json"))
    assert again == sweep
    assert list(expand(again).trials) == list(expand(sweep).trials)


def test_dump_written_as_yaml_is_a_sweep(tmp_path: Path) -> None:
    import yaml

    sweep = load(tmp_path, axes__recipe=[{"kind": "keywords", "keywords": ["ugly"]}], recipe=None)
    text = yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False)
    assert load(tmp_path, text=text) == sweep


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"adapter": {"rnak": 8}},
            "x.yaml: adapter.rnak is not known; did you mean adapter.rank? "
            "allowed: alpha, blocks, dropout, init, kind, rank, targets, text_encoder_targets, text_encoders",
        ),
        ({"adapter": {"rank": 0}}, "x.yaml: adapter.rank: 0 is not allowed: must be ≥ 1"),
        ({"adapter": {"rank": 1.5}}, "x.yaml: adapter.rank: 1.5 is not allowed: must be a whole number"),
        (
            {"adapter": {"alpha": "double"}},
            'x.yaml: adapter.alpha: "double" is not allowed: must be a number or one of rank, sqrt_rank',
        ),
        (
            {"recipe__kind": "keyword"},
            "x.yaml: recipe.kind: keyword is not known; did you mean keywords? "
            "allowed: degrade, folder, keywords, plain",
        ),
        (
            {"recipe__severity": [0.5, 1]},
            "x.yaml: recipe.severity is not known; "
            "allowed: emphasis, guidance, keywords, kind, name, refiner_start, seed, steps",
        ),
        ({"recipe__keywords": []}, "x.yaml: recipe.keywords is empty: must be a list of at least 1"),
        (
            {"recipe__keywords": ["ok", ""]},
            'x.yaml: recipe.keywords[1]: "" is not allowed: must be text that is not empty',
        ),
        ({"recipe__keywords": None}, "x.yaml: recipe.keywords is missing"),
        ({"recipe": None}, "x.yaml: recipe is missing"),
        ({"training": {"learning_rate": 0}}, "x.yaml: training.learning_rate: 0 is not allowed: must be > 0"),
        (
            {"training": {"prompt": 404}},
            "x.yaml: training.prompt: 404 is not allowed: "
            "must be text (in quotes where it looks like a number)",
        ),
        ({"sampler": {"refiner_start": 1}}, "x.yaml: sampler.refiner_start: 1 is not allowed: must be < 1"),
        (
            {"axes__adapter.rank": []},
            "x.yaml: axes.adapter.rank is empty: must be a list of at least 1 or a mapping, as {key: value}",
        ),
        (
            {"axes__adapter.rank": 8},
            "x.yaml: axes.adapter.rank: 8 is not allowed: "
            "must be a list, as [a, b] or a mapping, as {key: value}",
        ),
        ({"seeds": [0, 0]}, "x.yaml: seeds must differ; given twice: 0"),
        (
            {"metrics": ["contrast", {"kind": "contrast", "name": "second"}, "contrast"]},
            "x.yaml: metrics must differ; given twice: contrast (two of one kind need names: "
            "{kind: …, name: …})",
        ),
        ({"seeds": "all"}, 'x.yaml: seeds: "all" is not allowed: must be a list, as [a, b]'),
        (
            {"metrics": ["aesthetic"]},
            "x.yaml: metrics[0].encoder is missing\nx.yaml: metrics[0].head is missing",
        ),
        ({"model": "emoji"}, 'x.yaml: model: "emoji" is not allowed: must be a mapping, as {key: value}'),
        ({"model": {}}, "x.yaml: model.kind is missing"),
        (
            {"name": "a/b"},
            'x.yaml: name: "a/b" is not allowed: '
            "must be at most 64 letters, digits and . _ - and begin with a letter or digit",
        ),
        (
            {"analysis": {"control": "sham2"}},
            "x.yaml: analysis.control 'sham2' is not a control arm without match and post; allowed: "
            "baseline, placebo, sham",
        ),
        (
            {"analysis": {"primary": "saturation"}},
            "x.yaml: analysis.primary 'saturation' cannot select; allowed: aesthetic",
        ),
    ],
)
def test_fault_is_one_line_that_says_what_is_allowed(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    assert message(tmp_path, **changes) == line


def test_several_faults_are_several_lines(tmp_path: Path) -> None:
    lines = message(tmp_path, adapter={"rank": 0}, sampler={"step": 3}, seeds=[-1]).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("x.yaml: ") for line in lines)


def test_two_arms_of_one_name(tmp_path: Path) -> None:
    arms = [{"name": "placebo"}, {"name": "placebo"}, {"name": "lora", "adapters": [{}]}]
    assert message(tmp_path, arms=arms) == "x.yaml: arms must differ; given twice: placebo"


def test_sweep_without_the_trials_own_adapter(tmp_path: Path) -> None:
    assert "at least one must use the trial's own adapter" in message(
        tmp_path, arms=[{"name": "placebo"}, {"name": "b"}]
    )


def test_unknown_key_deep_in_an_arm_names_its_place(tmp_path: Path) -> None:
    arms = [{"name": "placebo"}, {"name": "lora", "adapters": [{"scal": 2}]}]
    assert message(tmp_path, arms=arms).startswith(
        "x.yaml: arms[1].adapters[0].scal is not known; did you mean arms[1].adapters[0].scale?"
    )


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"^no/such\.yaml does not exist$"):
        load_sweep(Path("no/such.yaml"))


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        load_sweep(tmp_path)


def test_prompt_that_a_tokenizer_would_cut(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    for name in ("tokenizer", "tokenizer_2"):
        folder = tmp_path / "model" / name
        folder.mkdir(parents=True)
        tokenizer = Tokenizer(models.WordLevel({"word": 0, "?": 1}, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    model = {"kind": "sdxl", "source": "model", "refiner": "org/refiner", "vae": None}
    assert load(tmp_path, model=model).model.digest is not None
    long = "word " * 9
    assert "x.yaml: prompts: " in message(tmp_path, model=model, prompts=[{"text": long, "split": "dev"}])
    assert "x.yaml: training.prompt: " in message(tmp_path, model=model, training={"prompt": long})
    assert "x.yaml: recipe: " in message(tmp_path, model=model, recipe__keywords=["word word"] * 5)
    arms = [{"name": "placebo", "negative": long}, {"name": "lora", "adapters": [{}]}]
    assert "x.yaml: arms.placebo.negative: " in message(tmp_path, model=model, arms=arms)
    axis = {"axes__training.prompt": ["wrong", long]}
    assert "x.yaml: training.prompt: " in message(tmp_path, model=model, **axis)


class TestOverrides:
    def test_value_is_yaml(self, tmp_path: Path) -> None:
        sweep = load(tmp_path, "training.learning_rate=1e-3", "seeds=[4, 5]", "sampler.refiner_start=null")
        assert sweep.training is not None and sweep.training.learning_rate == 0.001
        assert sweep.seeds == (4, 5)
        assert sweep.sampler.refiner_start is None

    def test_axis_by_its_dotted_name(self, tmp_path: Path) -> None:
        sweep = load(tmp_path, "axes.adapter.rank=[4,8,16]")
        assert sweep.axes == {"adapter.rank": (4, 8, 16), "training.steps": (100, 200)}

    def test_new_axis(self, tmp_path: Path) -> None:
        assert load(tmp_path, "axes.training.seed=[0, 1]").axes["training.seed"] == (0, 1)

    def test_unknown_key_is_refused(self, tmp_path: Path) -> None:
        assert "trainig is not known; did you mean training?" in message(tmp_path, "trainig.steps=3")
        assert "training.step is not known; did you mean training.steps?" in message(
            tmp_path, "training.step=3"
        )

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("training.steps", "x.yaml: --set training.steps: must be key=value"),
            (
                "arms.placebo=3",
                "x.yaml: --set arms.placebo: 'placebo' lies below a list or a plain value; set that whole",
            ),
            ("seeds=[1", "x.yaml: --set seeds:1: expected ',' or ']', but got '<stream end>'"),
        ],
    )
    def test_malformed(self, tmp_path: Path, override: str, expected: str) -> None:
        assert message(tmp_path, override) == expected


def test_quickstart_is_valid_and_small() -> None:
    plan = expand(load_sweep(QUICKSTART))
    assert len(plan.trials) == 8
    assert len(plan.datasets) == 4
    assert [arm.arm for arm in plan.control_arms] == ["baseline", "blurred", "placebo"]


def test_quickstart_never_trains_on_what_it_evaluates() -> None:
    sweep = load_sweep(QUICKSTART)
    recipes = [trial.config.trained.recipe for trial in expand(sweep).trials]
    recipes += [a.recipe for arm in sweep.arms for a in arm.adapters if a.recipe is not None]
    trained = {text for recipe in recipes for text in recipe.texts}
    assert trained
    assert not trained & {prompt.text for prompt in sweep.prompts}


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("seeds=[0, 18446744073709551615]", "seeds[1]: 18446744073709551615 is not allowed: must be ≤"),
        ("training.seed=18446744073709551616", "training.seed: 18446744073709551616 is not allowed"),
        ("adapter.rank=true", "adapter.rank: true is not allowed: must be a number"),
        ("axes.adapter.rank=[true]", "axes.adapter.rank[0]: true is not allowed: must be a number"),
        ("sampler.guidance=false", "sampler.guidance: false is not allowed: must be a number"),
        ("axes={adapter: [{rank: true}]}", "axes.adapter.rank: true is not allowed: must be a number"),
        ("adapter.rank=1000000000000", "adapter.rank: 1000000000000 is not allowed: must be"),
        ("sampler.steps=1001", "sampler.steps: 1001 is not allowed: must be ≤ 1000"),
        (
            "training.steps=10",
            "training.steps: 10 is used by no trial, since axes.training.steps replaces it",
        ),
        ("adapter={rank: 16}", "adapter.rank: 16 is used by no trial"),
        ("axes.training.learning_rate={low: 1, high: 2}", "a grid takes every value"),
        ("axes.trainnig.steps=[1]", "axes.trainnig.steps is not known; did you mean axes.training.steps, "),
        (
            "training.learning_rte=1",
            "training.learning_rte is not known; did you mean training.learning_rate",
        ),
        (f"question='{'x' * 30_000}'", "question: "),
    ],
)
def test_faults_are_told_at_once_and_in_one_short_line(override: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, override)
    (line,) = str(caught.value).split("\n")
    assert fault in line and len(line) < 300


def test_a_value_beside_its_axis_may_be_one_of_it(tmp_path: Path) -> None:
    training = load(tmp_path, "training.steps=200", "adapter.rank=8.0").training
    assert training is not None and training.steps == 200
    ranged: dict[str, Any] = {
        "search": {"kind": "random", "trials": 2},
        "axes": {"training.seed": {"low": 0, "high": 9}},
    }
    training = load(tmp_path, "training.seed=3", **ranged).training
    assert training is not None and training.seed == 3
    with pytest.raises(ConfigError, match=r"training\.seed: 10 is used by no trial"):
        load(tmp_path, "training.seed=10", **ranged)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"axes": {"training.seed": list(range(1000)), "adapter.rank": list(range(1, 1001))}},
            "axes: 1,000,000 points; allowed: at most",
        ),
        (
            {
                "search": {"kind": "random", "trials": 99_999},
                "axes": {"training.seed": {"low": 0, "high": 2**40}},
            },
            "axes: 99,999 points; allowed: at most",
        ),
        (
            {"axes": {"training.seed": list(range(4000))}, "seeds": list(range(5000))},
            "images; allowed: at most",
        ),
        ({"recipe__guidance": [8.0] * 2000}, "recipe.guidance: must be a list of at most 1000"),
    ],
)
def test_what_is_too_much_is_told_before_it_is_walked(
    changes: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    began = time.process_time()
    with pytest.raises(ConfigError, match=re.escape(fault)):
        load(tmp_path, **changes)
    assert time.process_time() - began < 8
