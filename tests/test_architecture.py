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
    "config": ({"schema"}, {"plan"}, {"loading"}),
    "diffusion": ({"adapters"}, {"models"}, {"datasets", "training", "sampling"}),
    "engine": ({"stages"}, {""}, {"accounting", "executors"}),
}
DOORS = {
    "accelerate": {"diffusion"},
    "compel": {"diffusion"},
    "diffusers": {"diffusion"},
    "fsspec": {"store"},
    "jinja2": {"reporting"},
    "matplotlib": {"reporting"},
    "open_clip": {"metrics"},
    "optuna": {"engine"},
    "peft": {"diffusion"},
    "pydantic": {"config"},
    "ray": {"engine"},
    "rich": {"cli"},
    "scipy": {"results"},
    "tokenizers": {"config"},
    "torch": {"diffusion", "engine", "metrics"},
    "torchmetrics": {"metrics"},
    "transformers": {"diffusion"},
    "typer": {"cli"},
    "wandb": {"reporting"},
    "yaml": {"config"},
}
MOST_AT_THE_ROOT = 10


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(HOUSE.rglob("*.py"))}


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


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_its_doors(library: str) -> None:
    users = {
        room_of(name) for name, others in IMPORTS.items() if library in {o.split(".")[0] for o in others}
    }
    assert users == DOORS[library]


def test_the_root_has_few_entries() -> None:
    entries = [path.name for path in HOUSE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_AT_THE_ROOT, sorted(entries)


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "plan.json", "sweep.json", "training_state.json", "scores.parquet", "finished.json"],
)
def test_a_name_on_disk_is_a_literal_of_one_module(name: str) -> None:
    users = [
        module
        for module, path in MODULES.items()
        if any(
            isinstance(node, ast.Constant) and node.value == name
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert len(users) == 1, users


def test_every_file_has_a_docstring() -> None:
    assert not [name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))]


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
