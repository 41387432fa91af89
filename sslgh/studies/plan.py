"""The plan of a study, as its YAML file has it, and the recipes that follow from it.

A plan is read without building its recipes, so that results can be tabulated after a key of theirs has gone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sslgh.functional.groups import Convention
from sslgh.recipe import Recipe, RecipeError, make_recipe
from sslgh.recipe.base import ConfigModel, Count
from sslgh.recipe.loading import apply_overrides, check_block, parse, read_text

# Settings that a command line may give: they decide where and how fast a run is computed, not what.
OPEN = ("data.root", "data.download", "data.workers", "train.checkpoint_every", "train.log_every")
# What an arm may set: all other settings decide the warm-up that the arms share.
BRANCHES = "harmonize"
WARMUP = "warmup"
METRIC = r"^[a-z0-9-]+\.[a-z0-9-]+\.(many|medium|few|average|accuracy|worst)$"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
Metric = Annotated[str, Field(pattern=METRIC)]


class StudyBlock(ConfigModel):
    """Conditions that the arms of a block share: which classes are rare, and the random numbers."""

    class_order: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None, description="seed of data.long_tail.class_order; null: the order of the recipe"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="the recipe's seed")

    @property
    def name(self) -> str:
        """Name of its folder and its results."""
        order = "" if self.class_order is None else f"order{self.class_order}-"
        return f"{order}seed{self.seed}"


class Arm(ConfigModel):
    """One treatment, applied from the end of the warm-up on."""

    name: Name
    about: str = Field(description="one line for the tables")
    settings: dict[str, Any] = Field(
        {}, description="key path of the recipe: value; harmonize and keys below it"
    )
    oracle: Literal["balanced-sampling", "true-shares"] | None = Field(
        None,
        description="what uses the labels: epochs balanced over the classes; GH with the classes' true shares as prior",
    )


class Hypothesis(ConfigModel):
    """An expected difference, written down before the first block."""

    arms: tuple[Name, Name] = Field(description="the difference is first - second")
    metric: Metric = Field(description="protocol.objective.metric, such as knn.knn.average")

    @property
    def text(self) -> str:
        """Difference and metric in one phrase."""
        return f"{self.arms[0]} - {self.arms[1]}, {self.metric}"


class Study(ConfigModel):
    """A base recipe, blocks, arms, and what is compared."""

    name: Name
    question: str = Field(description="what the study decides, in a sentence")
    warmup_epochs: Count = Field(description="epochs that the arms of a block share")
    groups: Convention = Field(
        "thresholds",
        description="groups many, medium and few. thresholds: over 100, 20 to 100, under 20 training images; thirds: "
        "a third of the classes each, in order of size",
    )
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = Field(
        description="columns of the table"
    )
    hypotheses: tuple[Hypothesis, ...] = Field((), description="tested, with Holm's correction")
    blocks: Annotated[tuple[StudyBlock, ...], Field(min_length=1)]
    arms: Annotated[tuple[Arm, ...], Field(min_length=2)] = Field(
        description="in the order in which they are run; differences are to the first"
    )
    recipe: dict[str, Any] = Field(description="the recipe of all arms, without name and run_dir")

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        if any(arm.name == WARMUP for arm in self.arms):
            raise ValueError(f"{WARMUP} is the name of what the arms share; rename the arm")
        for kind, names in (
            ("block", [block.name for block in self.blocks]),
            ("arm", [arm.name for arm in self.arms]),
            ("hypothesis", [hypothesis.text for hypothesis in self.hypotheses]),
        ):
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"the {kind} {repeated[0]} is listed twice; leave one out")
        return self

    @model_validator(mode="after")
    def _arms_are_known(self) -> Self:
        known = [arm.name for arm in self.arms]
        for hypothesis in self.hypotheses:
            if unknown := [name for name in hypothesis.arms if name not in known]:
                raise ValueError(
                    f"a hypothesis compares arm {unknown[0]}, but the arms are {', '.join(known)}"
                )
            if hypothesis.arms[0] == hypothesis.arms[1]:
                raise ValueError(f"a hypothesis compares arm {hypothesis.arms[0]} with itself")
        return self

    @model_validator(mode="after")
    def _arms_set_what_may_differ(self) -> Self:
        for reserved in ("name", "run_dir"):
            if reserved in self.recipe:
                raise ValueError(f"recipe.{reserved} follows from the study; leave it out")
        for arm in self.arms:
            for key in arm.settings:
                if key.split(".")[0] != BRANCHES:
                    raise ValueError(
                        f"arm {arm.name} cannot branch from the warm-up: it sets {key}, which decides the warm-up too; "
                        f"arms may set {BRANCHES}, and the rest belongs into recipe"
                    )
        return self

    def arm(self, name: str) -> Arm:
        """The arm of a name, which exists."""
        return next(arm for arm in self.arms if arm.name == name)

    def cells(self) -> Iterator[tuple[Arm, StudyBlock]]:
        """Every arm of every block, arm by arm: a study that is cut short answers its first questions."""
        return ((arm, block) for arm in self.arms for block in self.blocks)

    def design_hash(self, arm: Arm, block: StudyBlock) -> str:
        """Hash of all that decides the numbers of an arm in a block, as written in the file."""
        parts = [self.name, self.warmup_epochs, self.recipe, arm.settings, arm.oracle]
        return _hash([*parts, block.model_dump()])

    def hypotheses_hash(self) -> str:
        """Hash of the hypotheses, which should not change once there are results."""
        return _hash([self.groups, [each.model_dump() for each in self.hypotheses]])


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_study(path: Path) -> Study:
    """Read the file of a study; its recipes are not built.

    Raises:
        RecipeError: One sentence with the file, the key path and the remedy.
    """
    settings = parse(read_text(path), path)
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: a study is a mapping of keys, got {type(settings).__name__}")
    return check_block(Study, settings, source=str(path))


def check_overrides(overrides: Iterable[str]) -> list[str]:
    """Overrides of a command line that leave the study what it is.

    Raises:
        RecipeError: If one changes what is compared.
    """
    overrides = list(overrides)
    for override in overrides:
        if (key := override.partition("=")[0]) not in OPEN:
            raise RecipeError(
                f"{key} decides what a study compares and cannot be set on the command line, only {', '.join(OPEN)}; "
                "change the file, and the name of the study in it"
            )
    return overrides


def block_recipes(
    study: Study, block: StudyBlock, folder: Path, overrides: Iterable[str] = ()
) -> dict[str, Recipe]:
    """The recipe of the warm-up, under "warmup", and of every arm of a block.

    Args:
        study: The plan.
        block: Conditions of the block.
        folder: Folder of the block's runs.
        overrides: Checked overrides of the command line.

    Raises:
        RecipeError: If a recipe is broken, or an arm cannot branch from the warm-up.
    """
    shared = apply_overrides(_of_block(study, block), overrides)
    # The checkpoint at which the arms branch stays, whatever is saved around it.
    kept = [f"train.keep_every={study.warmup_epochs}", "train.keep_last=1"]
    warmup = _recipe(study, WARMUP, apply_overrides(shared, kept), folder)
    recipes = {WARMUP: warmup}
    for arm in study.arms:
        recipes[arm.name] = _recipe(study, arm.name, _set(shared, arm.settings), folder)
    for name, recipe in recipes.items():
        _check_branch(study, name, recipe, warmup)
    _check_oracles(study, recipes)
    return recipes


def _of_block(study: Study, block: StudyBlock) -> dict[str, Any]:
    settings = study.recipe | {"seed": block.seed}
    if block.class_order is None:
        return settings
    if not (settings.get("data") or {}).get("long_tail"):
        raise RecipeError(
            f"study {study.name}: block {block.name} has a class_order, but recipe.data has no long_tail whose rare "
            "classes it could decide; leave class_order out"
        )
    return _set(settings, {"data.long_tail.class_order": {"shuffled": block.class_order}})


def _set(settings: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    # JSON is YAML: the values go through the same door as overrides of a command line.
    return apply_overrides(settings, [f"{key}={json.dumps(v)}" for key, v in values.items()])


def _recipe(study: Study, name: str, settings: dict[str, Any], folder: Path) -> Recipe:
    named = settings | {"name": f"{study.name}-{folder.name}-{name}", "run_dir": str(folder / name)}
    return make_recipe(named, source=f"study {study.name}, {name}")


def _check_oracles(study: Study, recipes: Mapping[str, Recipe]) -> None:
    for arm in study.arms:
        if arm.oracle == "true-shares" and recipes[arm.name].harmonize is None:
            raise RecipeError(
                f"study {study.name}: arm {arm.name} has oracle: true-shares, which are GH's prior, but no harmonize; "
                "add its settings"
            )


def _check_branch(study: Study, name: str, recipe: Recipe, warmup: Recipe) -> None:
    """Refuse an arm that would have trained otherwise before the branch."""
    where, end = f"study {study.name}: {name}", study.warmup_epochs
    if recipe.method is None:
        raise RecipeError(f"{where} has finetune:, but arms branch in pretraining with method:")
    if end >= recipe.train.epochs:
        raise RecipeError(
            f"study {study.name}: warmup_epochs is {end}, but the runs end after epoch {recipe.train.epochs - 1}; lower "
            "it"
        )
    if recipe.gh_start is not None and recipe.gh_start < end:
        raise RecipeError(
            f"{where} cannot branch from the warm-up: its harmonize begins in epoch {recipe.gh_start}, before the branch "
            f"in epoch {end}; set harmonize.warmup_epochs: {end} or more"
        )
    if recipe.optim.schedule == "gh-two-stage" and recipe.gh_start != warmup.gh_start:
        raise RecipeError(
            f"{where} cannot branch from the warm-up: the first stage of its learning rate ends in epoch "
            f"{recipe.gh_start}, that of the warm-up in epoch {warmup.gh_start}; set the same harmonize.warmup_epochs"
        )
