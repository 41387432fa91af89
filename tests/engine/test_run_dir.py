import json

import pytest
import yaml

from sslgh.engine.run_dir import check_directory, open_directory, read_status, write_status
from sslgh.recipe import RecipeError


def test_an_empty_or_missing_directory_is_a_new_run(tiny) -> None:
    recipe = tiny()
    assert not check_directory(recipe)
    recipe.directory.mkdir()
    assert not check_directory(recipe)


def test_the_directory_of_the_same_recipe_is_gone_on_with(tiny) -> None:
    open_directory(tiny(), {"world": "1 process"})
    assert check_directory(tiny())
    assert check_directory(tiny("probe=[{protocol: knn}]", "train.log_every=7", "data.workers=2"))


@pytest.mark.parametrize(
    ("override", "named"),
    [("optim.lr=0.2", "optim.lr is 0.1 there and 0.2 here"), ("train.epochs=9", r"train\.epochs"),
     ("harmonize={vertices: 5}", "harmonize"), ("data.long_tail.imbalance=5", r"data\.long_tail\.imbalance")],
)  # fmt: skip
def test_the_directory_of_another_recipe_is_refused_with_the_key(tiny, override, named) -> None:
    open_directory(tiny(), {})
    with pytest.raises(RecipeError, match=named):
        check_directory(tiny(override))


def test_a_directory_with_foreign_files_is_refused_and_left_alone(tiny) -> None:
    recipe = tiny()
    recipe.directory.mkdir()
    (recipe.directory / "thesis.tex").write_text("precious")
    with pytest.raises(RecipeError, match=r"holds thesis\.tex but no run"):
        check_directory(recipe)
    assert [path.name for path in recipe.directory.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(tiny) -> None:
    recipe = tiny()
    recipe.directory.write_text("")
    with pytest.raises(RecipeError, match="is a file"):
        check_directory(recipe)


def test_the_directory_holds_the_resolved_recipe_and_the_versions(tiny) -> None:
    recipe = tiny()
    open_directory(recipe, {"world": "1 process"})
    resolved = yaml.safe_load((recipe.directory / "recipe.yaml").read_text())
    assert resolved["optim"]["momentum"] == 0.9
    environment = json.loads((recipe.directory / "environment.json").read_text())
    assert environment["world"] == "1 process"
    assert environment["versions"]["torch"]


def test_the_status_is_written_over_and_read_back(tiny) -> None:
    directory = tiny().directory
    assert read_status(directory) == {}
    write_status(directory, "running", epoch=3)
    write_status(directory, "stopped", "by a signal")
    assert read_status(directory)["state"] == "stopped"
    assert read_status(directory)["message"] == "by a signal"
