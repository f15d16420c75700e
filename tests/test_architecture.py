"""The shape of the house: imports point down, each heavy library has one door, reading is light."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "harness").rglob("*.py"))

LAYERS = (
    {"errors"},
    {"spec"},
    {"workspace"},
    {"models", "results"},
    {"recipes", "training", "generation", "metrics"},
    {"pipeline"},
    {"execution", "report", "tracking", "export"},
    {"cli"},
)
CHAPTERS = {  # files of their own that belong to a room without a folder
    "bench": "pipeline",
    "driver": "pipeline",
    "performing": "pipeline",
    "tasks": "pipeline",
    "encoded_stages": "pipeline",
    "training_stages": "pipeline",
    "stages": "pipeline",
    "dataset_stages": "pipeline",
    "image_stages": "pipeline",
    "asking": "pipeline",
    "collect": "pipeline",
    "decisions": "pipeline",
    "finished": "pipeline",
    "probe": "pipeline",
    "inventory": "pipeline",
    "interrupt": "pipeline",
    "events": "pipeline",
    "estimate": "pipeline",
    "timings": "pipeline",
    "store": "pipeline",
    "stage": "workspace",
    "places": "workspace",
    "storage": "workspace",
    "mirror": "tracking",
    "progress": "cli",
    "session": "cli",
    "terminal": "cli",
    "cli_finished": "cli",
    "cli_store": "cli",
}

# Reading a sweep needs two readers of files; `test_reading_a_sweep_is_light` holds that they stay light.
EXCEPTIONS = {
    ("harness.spec.load", "harness.models.prompts"),
    ("harness.spec.local_files", "harness.models.prompts"),
    ("harness.spec.local_files", "harness.recipes.folder"),
}

DOORS = {
    "torch": {"models", "training", "generation", "metrics", "execution"},  # execution: threads per worker
    "torchvision": {"models", "training", "metrics"},
    "diffusers": {"models"},
    "transformers": {"models"},
    "peft": {"models"},
    "compel": {"models"},
    "tokenizers": {"models"},
    "accelerate": {"training"},
    "open_clip": {"metrics"},
    "torchmetrics": {"metrics"},
    "ray": {"execution"},
    "fsspec": {"workspace"},
    "s3fs": set(),  # fsspec finds it
    "wandb": {"tracking"},
    "optuna": {"pipeline"},
    "scipy": {"results"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "pydantic": {"spec"},
    "pydantic_core": {"spec"},
    "yaml": {"spec"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """`harness.recipes.folder` is in recipes; every room's spec.py belongs to spec."""
    parts = module.split(".")[1:]
    if not parts or parts[-1] == "spec":
        return "spec"
    return CHAPTERS.get(parts[0], parts[0])


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            base = node.module or ""
            for alias in node.names:
                child = ROOT / Path(*base.split("."), alias.name)
                is_module = child.with_suffix(".py").exists() or (child / "__init__.py").exists()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


ALL_IMPORTS = [(path, line, name) for path in SOURCES for line, name in imports_of(path)]


def layer(room: str) -> int:
    found = [index for index, rooms in enumerate(LAYERS) if room in rooms]
    assert found, f"{room} is not in LAYERS: say where it stands"
    return found[0]


def test_every_file_has_a_layer() -> None:
    for path in SOURCES:
        layer(room_of(module_of(path)))


def test_imports_point_down() -> None:
    wrong = []
    for path, line, name in ALL_IMPORTS:
        if not name.startswith("harness."):
            continue
        here, there = room_of(module_of(path)), room_of(name)
        if here != there and layer(there) >= layer(here) and (module_of(path), name) not in EXCEPTIONS:
            wrong.append(f"{path.relative_to(ROOT)}:{line} {here} imports {name}")
    assert not wrong


def test_a_metric_never_sees_a_model() -> None:
    rooms = {
        room_of(name) for path, _, name in ALL_IMPORTS if path.parent.name == "metrics" and "harness." in name
    }
    assert not rooms & {"models", "training", "generation", "recipes"}


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_has_one_door(library: str) -> None:
    users = {
        (room_of(module_of(path)), f"{path.relative_to(ROOT)}:{line}")
        for path, line, name in ALL_IMPORTS
        if name.split(".")[0] == library
    }
    assert not [where for room, where in users if room not in DOORS[library]]


def test_a_rooms_init_is_a_docstring_and_at_most_one_function() -> None:
    """Importing a room must cost nothing, because spec imports every room's spec.py."""
    for path in sorted((ROOT / "harness").glob("*/__init__.py")):
        body = ast.parse(path.read_text()).body
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
        assert len(functions) <= 1, f"{path.relative_to(ROOT)}: {functions}"
        others = [node for node in body if isinstance(node, ast.ClassDef | ast.For | ast.While | ast.With)]
        assert not others, f"{path.relative_to(ROOT)}:{others[0].lineno}"


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
