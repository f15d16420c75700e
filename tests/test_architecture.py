"""The shape of the house: imports point down, each library has its doors, reading a sweep is light."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "harness"

LAYERS = (
    {"errors"},
    {"config"},
    {"store"},
    {"diffusion", "metrics", "results"},
    {"engine", "reporting"},
    {"cli"},
)
INNER = {  # layers of the sub-rooms; "" is the files of the room itself
    "config": ({"schema"}, {"plan", "weights"}, {"loading"}),
    "diffusion": ({""}, {"adapters"}, {"models"}, {"datasets", "training", "sampling"}),
    "engine": ({"stages"}, {""}, {"accounting", "executors"}),
}
DOORS = {  # library: the rooms or modules that import it, annotations and function-level imports included
    "accelerate": {"diffusion.training"},
    "bitsandbytes": {"diffusion.training.optimizer"},
    "compel": {"diffusion.models.text_encoding"},
    "diffusers": {"diffusion.models"},
    "fsspec": {"store.objects"},
    "huggingface_hub": {"config.loading.tokens", "reporting.export.export"},
    "jinja2": {"reporting.report.page"},
    "matplotlib": {"reporting.report", "results.notebook.results", "results.plot"},  # notebook: annotations
    "open_clip": {"metrics.encoder"},
    "optuna": {"engine.search"},
    "peft": {"diffusion.adapters"},
    "prodigyopt": {"diffusion.training.optimizer"},
    "pydantic": {"config"},
    "rapidocr": {"metrics.legibility"},
    "pydantic_core": {"config.loading.messages"},
    "ray": {"engine.executors"},
    "rich": {"cli"},
    "scipy": {"results"},
    "timm": {"metrics.encoder"},
    "tokenizers": {"config.loading.tokens"},
    "torch": {"diffusion", "engine.executors", "metrics"},  # executors: threads per worker
    "torchmetrics": {"metrics.clip_score"},
    "transformers": {"diffusion.models"},
    "typer": {"cli"},
    "wandb": {"reporting.wandb_report", "reporting.wandb_tracker"},
    "wandb_workspaces": {"reporting.wandb_report"},
    "yaml": {"config.loading.files"},
}
BROAD_EXCEPTS = {  # function: why no narrower class will do
    "config.loading.image_folder._orientation": "metadata does not decide whether pixels can be read",
    "config.loading.image_folder.decoded": "a damaged file leads Pillow's decoders to any error",
    "config.loading.tokens._tokenizer": "tokenizers raises bare Exception for whatever it cannot read",
    "engine.queue.Queue._begin_with": "kept, and raised when the executor's own loop has ended",
    "engine.executors.local._outcome": "a trial that fails is a row with its reason",
    "reporting.wandb_live.LiveMirror._finish_all": "as for its `_tick`; the rest is sent at the end",
    "reporting.wandb_live.LiveMirror._tick": "wandb's exceptions have no common base",
    "reporting.wandb_tracker.WandbTracker.publish": "wandb's exceptions have no common base",
    "store.artifact.explaining_lack_of_room": "safetensors reports a full disk as an error of its own class",
    "store.objects.Bucket._call": "each file system of fsspec has errors of its own",
}
PRIVATE_APIS = {  # module and name: why there is no public way
    "diffusion.training.distributed._shared_state": "global, and two runs must not share it",
    "diffusion.training.optimizer._foreach_mul_": "one kernel for all gradients",
    "diffusion.training.run_state._foreach_add_": "one kernel for all weights of an average",
    "diffusion.training.run_state._foreach_copy_": "as above",
    "diffusion.training.run_state._foreach_mul_": "as above",
    "diffusion.training.run_state._foreach_sub": "as above",
    "reporting.wandb_report._to_model": "no public way to a report's JSON without a server",
    "engine.executors.ray_cluster._raylet": "Ray reads RAY_AUTH_MODE once; this reads it again",
    "engine.executors.ray_tune.ENV_VARS_TO_PROPAGATE": "no setting keeps AWS's keys out of command lines",
    "engine.executors.ray_tune.run_metadata": "its running means keep 20 KiB a trial in the driver",
}
PRIVATE_WITHOUT_UNDERSCORE = {"ENV_VARS_TO_PROPAGATE", "run_metadata"}  # of Tune: not documented

# Budgets: signs to think at. What exceeds one is listed with its reason, and the lists only get shorter.
MOST_MODULES = 10  # in a room, its __init__ aside
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_POSITIONAL_PARAMETERS = 5  # a keyword-only parameter is named where it is given
FEWEST_LINES = 60  # of a module that a single other imports
MANY_MODULES = {"results": "statistics, tables and words: one import for page, card and notebook"}
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS = {
    "diffusion.training.batches.plan_steps": "checks, then builds five objects, their arguments written out"
}
MANY_PARAMETERS = {
    "cli.outputs.export": "typer makes an option of each",
    "diffusion.adapters.grouped._added": "the tensors of one sum, none of which belong together elsewhere",
    "diffusion.adapters.packed._place": "called in one place, by a loop over all that it is given",
    "engine.collect._trial_row": "called in one place",
    "engine.collect._trials": "called in one place",
    "reporting.report.figures.effects._heat_cell": "called in one place",
    "results.summary._no_pairs": "called in one place",
}
SMALL_MODULES = {
    "diffusion.models.vae": "encode and decode, a face of its own that the design names",
}
MOST_AT_THE_ROOT = 10


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(HOUSE.rglob("*.py"))}

TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports_of(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in MODULES else node.module


IMPORTS = {name: sorted(set(imports_of(path))) for name, path in MODULES.items()}
OWN = [
    (name, other)
    for name, others in IMPORTS.items()
    for other in others
    if other in MODULES and other != name
]


def room_of(name: str) -> str:
    """The room of a module; "" for the package itself, which has nothing but the version."""
    return [*name.split("."), ""][1]


def layer(where: str, layers: tuple[set[str], ...]) -> int:
    found = [index for index, rooms in enumerate(layers) if where in rooms]
    assert found, f"{where} has no layer: say where it stands"
    return found[0]


def inner_of(name: str) -> str:
    parts = name.split(".")
    inner = parts[2] if len(parts) > 2 else ""
    return inner if any(inner in rooms for rooms in INNER[parts[1]]) else ""


def test_every_room_has_a_layer() -> None:
    for name in MODULES:
        if room_of(name):
            layer(room_of(name), LAYERS)


def test_imports_between_rooms_point_down() -> None:
    wrong = {
        (name, other)
        for name, other in OWN
        if room_of(other)
        and room_of(name) != room_of(other)
        and layer(room_of(other), LAYERS) >= layer(room_of(name), LAYERS)
    }
    assert not wrong


def test_imports_inside_a_room_point_down() -> None:
    wrong = []
    for name, other in OWN:
        room = room_of(name)
        if room != room_of(other) or room not in INNER or len(other.split(".")) == 2:
            continue
        here, there = inner_of(name), inner_of(other)
        is_init = len(name.split(".")) == 2
        if not is_init and here != there and layer(there, INNER[room]) >= layer(here, INNER[room]):
            wrong.append((name, other))
    assert not wrong


def test_no_circle_between_files() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for name, other in OWN:
        graph[name].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"imports go in a circle: {error.args[1]}") from None


def inside(name: str, places: set[str]) -> set[str]:
    """The places, rooms or modules without `harness.`, that a module is in."""
    return {place for place in places if f"{name}.".startswith(f"harness.{place}.")}


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_its_doors(library: str) -> None:
    users = [name for name, others in IMPORTS.items() if library in {o.split(".")[0] for o in others}]
    assert not [name for name in users if not inside(name, DOORS[library])]
    used = {door for name in users for door in inside(name, DOORS[library])}
    assert used == DOORS[library], "a door that is not used"


def test_the_root_has_few_entries() -> None:
    entries = [path.name for path in HOUSE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_AT_THE_ROOT, sorted(entries)


def test_a_name_on_disk_is_a_literal_of_one_module() -> None:
    """A reader and a writer that each spell a name can differ, and a test of either sees nothing."""
    file_name = re.compile(r"(?:.*/)?([\w-]+\.(?:jsonl?|parquet|html|safetensors))")
    users: dict[str, set[str]] = defaultdict(set)
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and (found := file_name.fullmatch(text)):
                users[found[1]].add(module)
    known = {"manifest.json", "plan.json", "sweep.json", "training_state.json", "images.parquet"}
    known |= {"scores.parquet", "report.html", "events.json", "finished.json"}
    assert known <= users.keys()
    assert not {name: modules for name, modules in users.items() if len(modules) > 1}


def functions(
    tree: ast.AST, prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its dotted name inside the module, methods and inner functions included."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}" if prefix else node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)


FUNCTIONS = [
    (f"{module.removeprefix('harness.')}.{name}", node)
    for module, tree in TREES.items()
    for name, node in functions(tree)
]


def is_broad(node: ast.AST) -> bool:
    """`except:`, `except Exception`, `except (..., BaseException)` or `suppress(Exception)`."""
    if isinstance(node, ast.ExceptHandler):
        kinds: list[ast.expr] = [node.type] if node.type else []
        if not kinds:
            return True
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
        kinds = list(node.args)
    else:
        return False
    names = {part.id for kind in kinds for part in ast.walk(kind) if isinstance(part, ast.Name)}
    return bool(names & {"Exception", "BaseException"})


def test_broad_excepts_are_a_named_list() -> None:
    total = sum(is_broad(node) for tree in TREES.values() for node in ast.walk(tree))
    found = [name for name, function in FUNCTIONS for node in ast.walk(function) if is_broad(node)]
    assert set(found) == BROAD_EXCEPTS.keys()
    assert total == len(found) == len(BROAD_EXCEPTS), "one to an entry, none outside a function"


def own_names() -> set[str]:
    """What the house itself defines: functions, classes, variables and attributes of its objects."""
    names = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) in {"self", "cls"} else set()
    return names


def is_private(name: str) -> bool:
    return (name.startswith("_") and not name.startswith("__")) or name in PRIVATE_WITHOUT_UNDERSCORE


def test_private_apis_are_a_named_list() -> None:
    own, found = own_names(), set()
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Attribute) and node.attr not in own:
                names = [node.attr]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            elif isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {f"{module.removeprefix('harness.')}.{name}" for name in names if is_private(name)}
    assert found == PRIVATE_APIS.keys()


def test_a_room_has_about_ten_modules() -> None:
    rooms: dict[str, int] = defaultdict(int)
    for path in MODULES.values():
        if path.name != "__init__.py":
            rooms[".".join(path.parent.relative_to(HOUSE).parts)] += 1
    assert {room for room, count in rooms.items() if count > MOST_MODULES} == MANY_MODULES.keys()


def test_a_module_is_not_too_long() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    long = {name.removeprefix("harness.") for name, count in lines.items() if count > MOST_LINES}
    assert long == LONG_MODULES.keys()


def test_a_function_is_not_too_long() -> None:
    long = {
        name
        for name, node in FUNCTIONS
        if (node.end_lineno or 0) - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    }
    assert long == LONG_FUNCTIONS.keys()


def test_a_function_has_few_positional_parameters() -> None:
    many = set()
    for name, node in FUNCTIONS:
        given = {arg.arg for arg in (*node.args.posonlyargs, *node.args.args)} - {"self", "cls"}
        if len(given) > MOST_POSITIONAL_PARAMETERS:
            many.add(name)
    assert many == MANY_PARAMETERS.keys()


def test_a_small_module_has_more_than_one_importer() -> None:
    """Else it belongs into its importer. A room's `__init__` is its door, which must stay light to import."""
    importers: dict[str, set[str]] = defaultdict(set)
    for name, other in OWN:
        importers[other].add(name)
    small = {
        name.removeprefix("harness.")
        for name, path in MODULES.items()
        if path.name != "__init__.py"
        and len(path.read_text().splitlines()) < FEWEST_LINES
        and len(importers[name]) <= 1
        and not any(MODULES[importer].name == "__init__.py" for importer in importers[name])
    }
    assert small == SMALL_MODULES.keys()


def test_every_file_has_a_docstring() -> None:
    assert not [name for name in MODULES if not ast.get_docstring(TREES[name])]


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that runs this."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\n{code}\nprint('MODULES', *{{m.split('.')[0] for m in sys.modules}})",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_reading_a_sweep_is_light() -> None:
    code = (
        "from pathlib import Path\n"
        "from harness.config.loading.load import load_sweep\n"
        "from harness.config.plan.plan import expand\n"
        "expand(load_sweep(Path('sweeps/quickstart.yaml')))"
    )
    assert not modules_after(code) & {"torch", "ray", "pandas", "diffusers", "transformers", "scipy", "wandb"}


def test_check_loads_neither_torch_nor_ray() -> None:
    code = (
        "from harness.cli.main import main\n"
        "sys.argv = ['harness', 'check', 'sweeps/quickstart.yaml']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    assert not modules_after(code) & {"torch", "ray", "diffusers", "transformers", "wandb"}


def test_results_load_neither_torch_nor_ray() -> None:
    assert not modules_after("import harness.results") & {
        "torch",
        "ray",
        "diffusers",
        "transformers",
        "wandb",
    }


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    hosts = ("py" + "pi.org", "python" + "hosted.org", "registry." + "npmjs", "deb." + "debian.org")
    homes = re.compile(r"(?<![\w.~}])/(?:home|root|Users|work|tmp)/\w")
    wrong = []
    for path in tracked_files():
        if path.suffix in {".png", ".webp", ".safetensors", ".parquet"} or not path.is_file():
            continue
        text = path.read_text(errors="ignore")
        wrong += [f"{path.relative_to(ROOT)}: {host}" for host in hosts if host in text]
        if path != Path(__file__):
            wrong += [f"{path.relative_to(ROOT)}: {found}" for found in homes.findall(text)]
    assert not wrong
