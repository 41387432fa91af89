"""Epochs of the linear warm-up, by default and as stated."""

import pytest

from sslgh.recipe import RecipeError, load_recipe, make_recipe, recipe_text
from sslgh.recipe.loading import parse
from sslgh.recipe.named import recipe_files

SETTINGS = {"name": "r", "data": {"source": "digits"}, "method": {"name": "simclr"}}
PAPERS = ("cifar10-lt/simclr", "cifar100-lt/simclr", "imagenet-lt/", "inaturalist/")


def warmup(epochs: int, **optim: object) -> int:
    settings = SETTINGS | {"train": {"epochs": epochs}, "optim": optim}
    return make_recipe(settings).optim.warmup_epochs


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, 0), (4, 0), (5, 1), (20, 4), (49, 9), (50, 10), (1000, 10)]
)
def test_the_warmup_is_ten_epochs_and_at_most_a_fifth_of_the_run(epochs, expected) -> None:
    assert warmup(epochs) == expected
    assert warmup(epochs, lr=0.3) == expected


def test_a_stated_warmup_stays_as_stated() -> None:
    assert warmup(10, warmup_epochs=10) == 10
    assert warmup(1000, warmup_epochs=0) == 0
    with pytest.raises(RecipeError, match="warmup_epochs is 10, but the run has 1 epochs"):
        warmup(1, warmup_epochs=10)


def test_a_resolved_recipe_states_its_warmup() -> None:
    recipe = make_recipe(SETTINGS | {"train": {"epochs": 20}})
    settings = parse(recipe_text(recipe), "text")
    assert settings["optim"]["warmup_epochs"] == 4
    assert make_recipe(settings) == recipe


def test_recipes_of_papers_state_their_warmup_and_the_others_run_for_one_epoch() -> None:
    stated = ran = 0
    for path in recipe_files():
        settings = parse(path.read_text(), path)
        if any(name in path.as_posix() for name in PAPERS):
            stated += 1
            assert "warmup_epochs" in settings["optim"], path
        elif "warmup_epochs" not in settings.get("optim", {}):
            ran += 1
            assert load_recipe(path, ["train.epochs=1"]).optim.warmup_epochs == 0
            assert load_recipe(path).optim.warmup_epochs == 10
    assert stated >= 8
    assert ran >= 2
