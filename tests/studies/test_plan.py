"""The file of a study: what it may say, and the sentence for what it may not."""

import pytest

from sslgh.recipe import RecipeError
from sslgh.studies.plan import block_recipes, check_overrides, load_study


def recipes_of(study, tmp_path, number=0):
    return block_recipes(study, study.blocks[number], tmp_path / study.blocks[number].name)


def test_arms_of_a_block_differ_in_what_they_set_and_in_nothing_else(study_file, tmp_path) -> None:
    study = load_study(study_file())
    for number, block in enumerate(study.blocks):
        recipes = recipes_of(study, tmp_path, number)
        same = {"name", "run_dir", "harmonize"}
        plain, gh, warmup = (
            recipes[name].model_dump(exclude=same) for name in ("plain", "gh", "warmup")
        )
        assert plain == gh
        assert warmup | {"train": plain["train"]} == plain
        assert plain["seed"] == block.seed
        assert plain["data"]["long_tail"]["class_order"] == {"shuffled": block.class_order}
    assert recipes["plain"].harmonize is None
    assert recipes["gh"].harmonize.vertices == 10


def test_cells_are_filled_arm_by_arm(study_file) -> None:
    cells = [(arm.name, block.name) for arm, block in load_study(study_file()).cells()]
    assert cells == [
        ("plain", "order0-seed0"),
        ("plain", "order1-seed3"),
        ("gh", "order0-seed0"),
        ("gh", "order1-seed3"),
    ]


def test_a_design_hash_changes_with_what_decides_the_numbers(study_settings, study_file) -> None:
    study = load_study(study_file())
    arm, block = study.arms[1], study.blocks[0]
    own = study.design_hash(arm, block)
    assert study.design_hash(arm, study.blocks[1]) != own
    assert study.design_hash(study.arms[0], block) != own

    study_settings["recipe"]["train"]["epochs"] = 5
    assert load_study(study_file(study_settings)).design_hash(arm, block) != own

    # A further arm or block leaves the results that there are; hypotheses have a hash of their own.
    grown = study.model_copy(update={"arms": study.arms[:2], "blocks": study.blocks[:1]})
    assert grown.design_hash(arm, block) == own
    assert study.model_copy(update={"hypotheses": ()}).design_hash(arm, block) == own
    assert study.model_copy(update={"hypotheses": ()}).hypotheses_hash() != study.hypotheses_hash()


FAULTS = {
    "block twice": (
        lambda s: s["blocks"].append(s["blocks"][0]),
        "the block order0-seed0 is listed twice; leave one out",
    ),
    "arm twice": (
        lambda s: s["arms"].append(s["arms"][1]),
        "the arm gh is listed twice; leave one out",
    ),
    "hypothesis twice": (
        lambda s: s["hypotheses"].append(s["hypotheses"][0]),
        "the hypothesis gh - plain, knn.knn.average is listed twice",
    ),
    "one arm": (lambda s: s.update(arms=s["arms"][:1], hypotheses=[]), "arms: expected at least 2"),
    "no block": (lambda s: s.update(blocks=[]), "blocks: expected at least 1 entries"),
    "another width": (
        lambda s: s["arms"][1]["settings"].update({"model.width": 1.0}),
        "arm gh cannot branch from the warm-up: it sets model.width, which decides the warm-up too; arms may set harmonize",
    ),
    "another data set": (
        lambda s: s["arms"][1]["settings"].update({"data": {"source": "cifar10"}}),
        "arm gh cannot branch from the warm-up: it sets data",
    ),
    "unknown arm": (
        lambda s: s["hypotheses"][0].update(arms=["A9", "plain"]),
        "a hypothesis compares arm A9, but the arms are plain, gh",
    ),
    "itself": (
        lambda s: s["hypotheses"][0].update(arms=["gh", "gh"]),
        "a hypothesis compares arm gh with itself",
    ),
    "unknown key": (
        lambda s: s["arms"][1].update(setings={}),
        "arms.1: unknown key 'setings'; did you mean 'settings'?",
    ),
    "metric": (lambda s: s.update(metrics=["few"]), "metrics.0: expected text of the pattern"),
    "named": (lambda s: s["recipe"].update(name="x"), "recipe.name follows from the study"),
    "warmup": (
        lambda s: s["arms"][1].update(name="warmup"),
        "warmup is the name of what the arms share; rename the arm",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plan_that_cannot_be_is_refused_in_a_sentence(fault, study_settings, study_file) -> None:
    change, sentence = FAULTS[fault]
    change(study_settings)
    with pytest.raises(RecipeError) as refused:
        load_study(study_file(study_settings))
    assert sentence in str(refused.value)
    assert str(refused.value).count("\n") == 0


BRANCHES = {
    "too early": (
        lambda s: s["arms"][1]["settings"]["harmonize"].update(warmup_epochs=1),
        "gh cannot branch from the warm-up: its harmonize begins in epoch 1, before the branch in epoch 2; set",
    ),
    "nothing left": (
        lambda s: s.update(warmup_epochs=4),
        "study tiny: warmup_epochs is 4, but the runs end after epoch 3; lower it",
    ),
    "two stages": (
        lambda s: (
            s["recipe"].update(
                harmonize={"warmup_epochs": 2, "weight": 0},
                optim={"lr": 0.1, "warmup_epochs": 1, "schedule": "gh-two-stage"},
            ),
            s["arms"][1]["settings"]["harmonize"].update(warmup_epochs=3),
        ),
        "gh cannot branch from the warm-up: the first stage of its learning rate ends in epoch 3, that of",
    ),
    "no tail": (
        lambda s: s["recipe"]["data"].update(long_tail=None),
        "block order0-seed0 has a class_order, but recipe.data has no long_tail",
    ),
    "no GH": (
        lambda s: s["arms"][0].update(oracle="true-shares"),
        "arm plain has oracle: true-shares, which are GH's prior, but no harmonize; add its settings",
    ),
    "supervised": (
        lambda s: (
            s["recipe"].update(method=None, finetune={"objective": "ce"}),
            s["arms"][1].update(settings={}),
        ),
        "has finetune:, but arms branch in pretraining with method:",
    ),
    "recipe": (
        lambda s: s["recipe"]["train"].update(epoch=3),
        "study tiny, warmup: train: unknown key 'epoch'; did you mean 'epochs'?",
    ),
}


@pytest.mark.parametrize("fault", BRANCHES)
def test_an_arm_that_cannot_branch_is_refused_in_a_sentence(
    fault, study_settings, study_file, tmp_path
) -> None:
    change, sentence = BRANCHES[fault]
    change(study_settings)
    study = load_study(study_file(study_settings))  # results can be tabulated all the same
    with pytest.raises(RecipeError) as refused:
        recipes_of(study, tmp_path)
    assert sentence in str(refused.value)


def test_a_command_line_gives_places_and_nothing_that_is_compared(study_file, tmp_path) -> None:
    study = load_study(study_file())
    check_overrides(["data.root=/elsewhere"])
    overrides = check_overrides(["data.workers=3"])
    recipes = block_recipes(study, study.blocks[0], tmp_path, overrides)
    assert {recipe.data.workers for recipe in recipes.values()} == {3}
    with pytest.raises(RecipeError, match=r"train\.epochs decides what a study compares"):
        check_overrides(["train.epochs=2"])


def test_a_block_without_class_order_keeps_that_of_the_recipe(
    study_settings, study_file, tmp_path
) -> None:
    study_settings["blocks"] = [{"seed": 1}, {"seed": 2}]
    study = load_study(study_file(study_settings))
    assert [block.name for block in study.blocks] == ["seed1", "seed2"]
    assert recipes_of(study, tmp_path)["plain"].data.long_tail.class_order == "label"
