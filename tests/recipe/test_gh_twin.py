"""``--gh``: the GH twin of a recipe."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from sslgh.recipe import RecipeError, load_recipe
from sslgh.recipe.named import recipe_files

RECIPES = Path(__file__).parents[2] / "recipes"
# Full configs that commit dd31d59 printed for its 30 files X-gh.yaml that are X --gh now, by dotted key; its
# `neighbours` is `neighbors`, its `train.precision: bf16` of the small recipes `auto`, and the settings of
# `harmonize` are those of the GH that was rebuilt since. A folder's recipes share its `common`, and all share the one
# on top.
RECORD = json.loads(Path(__file__).with_name("gh_twins.json").read_text())
TWINS = [(folder, name) for folder, part in RECORD["folders"].items() for name in part["recipes"]]
# Where a folder's GH settings stand: these alone may differ from another recipe in `harmonize` only.
OWN_SETTINGS = {
    "cifar10-lt/small-simclr-gh",
    "cifar100-lt/small-simclr-gh",
    "digits-lt/simclr-gh",
    "digits-lt/simclr-gh-prototypes",
    "digits-lt/simclr-gh-resample",
    "folder/simclr-gh",
}


def flat(block: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in block.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


@pytest.mark.parametrize(("folder", "name"), TWINS)
def test_the_gh_twin_has_the_full_config_of_the_file_that_it_replaces(folder, name) -> None:
    part = RECORD["folders"][folder]
    expected = RECORD["common"] | part["common"] | part["recipes"][name]
    recipe = load_recipe(RECIPES / folder / f"{name}.yaml", gh=True)
    found = flat(recipe.model_dump(mode="json"))
    # Keys that came since the files went are not compared.
    found["probe"] = [
        {key: probe.get(key, "missing") for key in before}
        for probe, before in zip(found["probe"], expected.get("probe", ()), strict=True)
    ]
    assert {key: found.get(key, "missing") for key in expected} == expected
    assert not (RECIPES / folder / f"{name}-gh.yaml").exists()


def test_all_twins_are_compared() -> None:
    assert len(TWINS) == 30


def test_no_recipe_differs_from_another_in_harmonize_alone() -> None:
    settings, compared = {}, 0
    for path in recipe_files():
        content = yaml.safe_load(path.read_text())
        content = {k: v for k, v in content.items() if k not in ("name", "run_dir", "harmonize")}
        settings[f"{path.parent.name}/{path.stem}"] = content
    assert len(settings) >= 55
    for one, other in itertools.combinations(settings, 2):
        if not {one, other} & OWN_SETTINGS:
            compared += 1
            assert settings[one] != settings[other], (one, other)
    assert compared > 1000
    assert settings.keys() >= OWN_SETTINGS


def write(tmp_path: Path, stem: str, **changes) -> Path:
    settings = {"name": "mine", "data": {"source": "digits"}, "method": {"name": "simclr"}}
    path = tmp_path / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def test_name_and_run_directory_of_the_twin_get_a_suffix_and_overrides_come_last(tmp_path) -> None:
    twin = load_recipe(write(tmp_path, "byol"), gh=True)
    assert (twin.name, str(twin.directory)) == ("mine-gh", "runs/mine-gh")
    placed = load_recipe(write(tmp_path, "byol", run_dir="/there/mine"), gh=True)
    assert str(placed.directory) == "/there/mine-gh"
    words = ("run_dir=/here", "harmonize.vertices=7", "name=other")
    changed = load_recipe(write(tmp_path, "byol"), words, gh=True)
    assert (changed.name, str(changed.directory)) == ("other", "/here")
    assert changed.harmonize.vertices == 7


def test_the_twin_has_the_settings_of_its_folder_or_the_defaults(tmp_path) -> None:
    byol, small = write(tmp_path, "byol"), write(tmp_path, "small-byol")
    assert load_recipe(byol, gh=True).harmonize.vertices == 100
    write(tmp_path, "simclr-gh", harmonize={"vertices": 11})
    assert load_recipe(byol, gh=True).harmonize.vertices == 11
    assert load_recipe(small, gh=True).harmonize.vertices == 100
    write(tmp_path, "small-simclr-gh", harmonize={"vertices": 12})
    assert load_recipe(small, gh=True).harmonize.vertices == 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"harmonize": {}}, "x.yaml: has harmonize: already; leave --gh out"),
        (
            {"finetune": {}, "method": None},
            "--gh is for pretraining, and this recipe has finetune:",
        ),
        ({"name": 5}, "name: expected text, got 5"),
        ({"harmonize": {"vertices": 1}}, "has harmonize: already"),
    ],
)
def test_a_recipe_that_has_no_twin_is_refused_in_one_sentence(tmp_path, changes, sentence) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(write(tmp_path, "x", **changes), gh=True)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
