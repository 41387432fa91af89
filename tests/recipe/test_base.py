"""Paths as users write them."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from sslgh.recipe import RecipeError, make_recipe
from sslgh.recipe.base import PathOrWord

TINY = {"name": "x", "data": {"source": "digits"}, "method": {"name": "simclr"}}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (5, "expected a path, got 5; put it in quotes"),
        ("", "expected a path, got ''; leave the key out, or write . for this folder"),
        ("runs/" + "a" * 256, "expected names of at most 255 bytes, got aaaaaaaaaaaaaaaaaaaa..."),
        ("runs/" + "ä" * 128, "expected names of at most 255 bytes"),
        ("~nobody-of-this-name/x", "no home folder is known for ~nobody-of-this-name"),
    ],
)
def test_a_path_that_can_be_none_is_refused_by_its_key(path, sentence) -> None:
    for key in ("run_dir", "data"):
        block = (
            {"run_dir": path} if key == "run_dir" else {"data": {"source": "digits", "root": path}}
        )
        with pytest.raises(RecipeError) as refused:
            make_recipe(TINY | block)
        assert str(refused.value).startswith("run_dir: " if key == "run_dir" else "data.root: ")
        assert sentence in str(refused.value)


def test_a_word_that_may_be_a_path_is_held_to_the_same_and_stays_as_it_is() -> None:
    read = TypeAdapter(PathOrWord).validate_python
    assert [read(given) for given in ("pretrained", "~/runs/x/")] == ["pretrained", "~/runs/x/"]
    for given in ("", "~nobody-of-this-name/x", "a" * 256):
        with pytest.raises(ValidationError):
            read(given)


def test_home_folders_are_filled_in_and_the_working_folder_may_be_meant() -> None:
    assert make_recipe(TINY | {"run_dir": "~/x"}).directory == Path.home() / "x"
    assert make_recipe(TINY | {"run_dir": "~root/x"}).directory.is_absolute()
    assert make_recipe(TINY | {"run_dir": "."}).directory == Path()
