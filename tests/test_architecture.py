"""The house: floors, and that guards guard something."""

import ast
from pathlib import Path

import pytest
import yaml

from sslgh.engine.build import build_method, build_network
from sslgh.models.initial import initial_card
from sslgh.recipe import load_recipe
from sslgh.recipe.named import recipe_files

PACKAGE = Path(__file__).parents[1] / "sslgh"
FLOORS = [
    ["functional", "recipe", "distributed", "preprocessing"],
    ["models", "data"],
    ["methods", "harmonize", "classify"],
    ["engine", "evaluation"],
    ["explore", "export", "scan", "doctor", "studies"],
    ["report"],
    ["cli", "cli_photos", "commands", "last_lines", "own_backbone", "pretrain", "__main__"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}


def modules() -> list[Path]:
    found = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert len(found) >= 60
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, wherever in the file; nothing is imported relatively."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_stands_on_a_floor() -> None:
    assert {room(path) for path in modules()} == set(FLOOR)


def test_no_two_classes_have_one_name() -> None:
    names: dict[str, list[str]] = {}
    for path in modules():
        if room(path) != "recipe":  # its sections are named after what they configure
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    names.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert len(names) > 100
    assert {name: files for name, files in names.items() if len(files) > 1} == {}


def test_imports_only_go_down() -> None:
    offenders, looked_at = [], 0
    for path in modules():
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "sslgh" or len(parts) < 2 or parts[1] not in FLOOR:
                continue
            looked_at += 1
            here, there = room(path), parts[1]
            down = FLOOR[there] < FLOOR[here]
            if not (down or there == here or FLOOR[here] == len(FLOORS)):
                offenders.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert looked_at > 150
    assert offenders == []


def test_only_the_engine_and_above_know_accelerate() -> None:
    knowing = {
        room(p) for p in modules() if any(n.split(".")[0] == "accelerate" for n in imports(p))
    }
    assert knowing == {"engine", "evaluation"}


def test_faiss_is_known_to_one_module() -> None:
    knowing = [p.name for p in modules() if any(n.split(".")[0] == "faiss" for n in imports(p))]
    assert knowing == ["kmeans.py"]


@pytest.mark.parametrize("path", recipe_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_loads_builds_and_says_how_to_run_it(path, tmp_path) -> None:
    recipe = load_recipe(path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"recipes/{path.parent.name}/{path.name}" in line for line in head)
    assert recipe.name == f"{path.parent.name}-{path.stem}"
    assert len(path.read_text().splitlines()) <= 40
    size = 32 if recipe.data.size is None else recipe.data.size
    if recipe.model.init is not None:  # drawn in their place
        name = initial_card(recipe.model)["backbone"]
        model = recipe.model.model_copy(update={"init": None, "backbone": name})
        recipe = recipe.model_copy(update={"model": model})
    if recipe.finetune is None:
        build_method(recipe, size)
    else:
        build_network(recipe, size, num_classes=10)


def test_the_bundled_recipes_are_complete() -> None:
    names = {f"{path.parent.name}/{path.stem}" for path in recipe_files()}
    assert len(names) >= 58
    for data in ("cifar10-lt", "cifar100-lt"):
        assert {
            f"{data}/simclr",
            f"{data}/simclr-gh",
            f"{data}/small-simclr",
            f"{data}/small-simclr-gh",
        } <= names
    digits = ("simclr", "simclr-gh", "simclr-gh-prototypes", "simsiam")
    assert {f"digits-lt/{name}" for name in digits} <= names
    assert {"folder/simclr", "folder/simclr-gh"} <= names
    supervised = {name for name in names if "/supervised" in name}
    assert {
        f"cifar100-lt/supervised-{o}" for o in ("la", "la-code", "ldam-drw", "elm", "bcl", "rcl")
    } <= supervised
    assert {"imagenet-lt/supervised-bcl", "inaturalist/supervised-la"} <= supervised


def test_launch_settings_start_what_their_name_says() -> None:
    folder = PACKAGE.parent / "recipes" / "accelerate"
    processes = {
        path.stem: yaml.safe_load(path.read_text())["num_processes"]
        for path in folder.glob("*.yaml")
    }
    assert processes == {"cpu-2": 2, "fsdp": 8, "gpu-1": 1, "gpu-8": 8, "nodes-2": 16}
