"""Recipes of run directories that moved, and of those that did not."""

import shutil

import pytest

from sslgh.recipe import RecipeError, make_recipe
from sslgh.recipe.run_recipe import load_run, run_text


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with photos, a list, a base run and a run, made from within."""
    root = tmp_path / "project"
    for folder in ("photos/train", "runs/base", "runs/mine"):
        (root / folder).mkdir(parents=True)
    (root / "list.txt").touch()
    monkeypatch.chdir(root)
    settings = {
        "name": "r",
        "run_dir": "runs/mine",
        "data": {"source": "list", "root": "photos/train", "list": "list.txt"},
        "model": {"init": "runs/base"},
        "method": {"name": "simclr"},
    }
    recipe = make_recipe(settings)
    (recipe.directory / "recipe.yaml").write_text(run_text(recipe))
    monkeypatch.chdir(tmp_path)
    return root


def test_a_run_finds_its_data_from_any_working_folder(project) -> None:
    recipe = load_run(project / "runs/mine")
    assert recipe.data.root == project / "photos/train"
    assert recipe.data.list == project / "list.txt"
    assert recipe.model.init == str(project / "runs/base")
    assert recipe.directory == project / "runs/mine"


def test_a_project_that_moved_as_a_whole_keeps_its_data(project, tmp_path) -> None:
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    shutil.move(project, moved)
    recipe = load_run(moved / "runs/mine")
    assert recipe.data.root == moved / "photos/train"
    assert recipe.data.list == moved / "list.txt"
    assert recipe.model.init == str(moved / "runs/base")


def test_a_run_that_moved_alone_keeps_the_place_of_its_data(project, tmp_path) -> None:
    shutil.move(project / "runs/mine", tmp_path / "mine")
    recipe = load_run(tmp_path / "mine")
    assert recipe.data.root == project / "photos/train"
    shutil.move(project / "photos", tmp_path / "gone")
    assert load_run(tmp_path / "mine").data.root == project / "photos/train"


def test_overrides_win_over_what_is_found_again(project, tmp_path) -> None:
    recipe = load_run(project / "runs/mine", ["data.root=here", "seed=3"])
    assert str(recipe.data.root) == "here"
    assert recipe.seed == 3


def test_a_folder_without_a_recipe_is_named(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml: no such recipe"):
        load_run(tmp_path)
