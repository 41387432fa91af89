"""Recipes as a command line names them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sslgh.cli import main
from sslgh.recipe import RecipeError, load_recipe, named
from sslgh.recipe.named import find_recipe, load_recipes, recipe_files, recipe_name

REPOSITORY = Path(__file__).parents[2]
# What reading recipes must not wait for: each takes longer to import than all of `sslgh.recipe`.
SLOW = ("torch", "torchvision", "numpy", "scipy", "sklearn", "PIL", "accelerate", "timm", "faiss")


@pytest.mark.parametrize(
    "name",
    [
        "folder/simclr-gh",
        "folder/simclr-gh.yaml",
        "recipes/folder/simclr-gh",
        "recipes/folder/simclr-gh.yaml",
        "./recipes/folder/simclr-gh.yaml",
    ],
)
def test_a_bundled_recipe_is_found_from_any_directory(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(find_recipe(name)).name == "folder-simclr-gh"


def test_every_bundled_recipe_is_found_by_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = recipe_files()
    assert len(files) >= 58
    assert [find_recipe(recipe_name(file)) for file in files] == files


def test_a_file_of_the_user_hides_the_bundled_recipe_of_that_name_and_no_other(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("recipes/folder/simclr.yaml")
    mine.parent.mkdir(parents=True)
    shutil.copy(find_recipe("digits-lt/simclr"), mine)
    assert load_recipe(find_recipe(str(mine))).name == "digits-lt-simclr"
    assert load_recipe(find_recipe("recipes/folder/simclr-gh.yaml")).name == "folder-simclr-gh"
    assert load_recipe(find_recipe("folder/simclr")).name == "folder-simclr"


def test_an_installed_package_brings_its_recipes_whatever_lies_next_to_it(
    tmp_path, monkeypatch
) -> None:
    package = tmp_path / "site-packages" / "sslgh"
    shutil.copytree(REPOSITORY / "recipes", package / "recipes")
    (package.parent / "recipes").mkdir()  # of another package
    monkeypatch.setattr(named, "PACKAGE", package)
    assert find_recipe("folder/simclr").is_relative_to(package)
    shutil.rmtree(package / "recipes")
    shutil.rmtree(package.parent / "recipes")
    with pytest.raises(RecipeError, match="no recipes are installed; give the path of a recipe"):
        find_recipe("folder/simclr")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("folder/simclrgh", "did you mean folder/simclr-gh?"),
        ("recipes/folder/simclrgh.yaml", "did you mean folder/simclr-gh?"),
        ("digit-lt/byol", "did you mean digits-lt/byol?"),
        ("moco-v2", "did you mean digits-lt/moco-v2?"),
        ("simclr", "did you mean cifar10-lt/simclr, cifar100-lt/simclr, digits-lt/simclr, "),
        ("quux", "sslgh recipe list names those that exist"),
        ("x" * 100_000, "cannot be read (File name too long)"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(name, suggestion) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe(name)
    assert suggestion in str(caught.value)
    assert len(str(caught.value)) < 250


def test_the_suggested_name_is_a_recipe() -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("inaturalst/supervised-la")
    assert load_recipes([str(caught.value).split("did you mean ")[1].rstrip("?")])


@pytest.mark.parametrize(
    "name", ["photos", "my photos", "2024=summer", "2024", "a: b", "#1", 'say "cheese"', "Grüße"]
)
def test_a_folder_of_photos_gets_the_command_that_trains_on_it(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    with pytest.raises(RecipeError, match="is a folder, not a recipe") as caught:
        load_recipes([name])
    program, command, *words = shlex.split(str(caught.value).split("in it: ")[1])
    assert (program, command) == ("sslgh", "run")
    assert str(load_recipes(words)[0].data.root) == name


def test_a_run_directory_is_no_recipe_but_holds_one(tmp_path, capsys) -> None:
    shutil.copy(find_recipe("digits-lt/simclr"), tmp_path / "recipe.yaml")
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(tmp_path)])
    error = capsys.readouterr().err
    assert f"is a run directory, not a recipe; sslgh probe {tmp_path} evaluates it" in error
    assert find_recipe(error.strip().split("its recipe is ")[1]).is_file()


@pytest.mark.parametrize(
    "words", ["['recipe', 'list']", "['recipe', 'show', 'folder/simclr']", "['--help']"]
)
def test_commands_that_only_read_recipes_import_nothing_slow(tmp_path, words) -> None:
    code = (
        "import sys, contextlib, io, sslgh.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        f"    sslgh.cli.main({words})\n"
        f"print(len(out.getvalue()) > 500, [name for name in {SLOW} if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert ended.stdout.split(maxsplit=1) == ["True", "[]\n"]


@pytest.mark.parametrize("command", ["list", "show", "schema"])
def test_a_recipe_command_that_fails_says_so_in_one_sentence(monkeypatch, capsys, command) -> None:
    monkeypatch.setattr(named, "PACKAGE", Path("/nowhere/sslgh"))
    words = ["recipe", command] + (["folder/simclr"] if command == "show" else [])
    with pytest.raises(SystemExit) as ended:
        main(words)
    lines = capsys.readouterr().err.splitlines()
    assert (ended.value.code, len(lines)) == ((0, 0) if command == "schema" else (2, 1))
