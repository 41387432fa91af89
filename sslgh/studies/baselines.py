"""What a user would take instead of pretraining, in one table: weights as given, own runs, adapters.

Every row is evaluated by the same probes on the same images.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sslgh.data import input_size, training_set
from sslgh.engine.build import recipe_backbone
from sslgh.engine.exit_codes import STOPPED, is_main, run_command
from sslgh.engine.finetuning import finetune
from sslgh.engine.launch import init_accelerator, shutdown_distributed
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import read_status
from sslgh.evaluation import Result, check_probes, comparison_table, evaluate_run, probe_backbone
from sslgh.evaluation.tables import aligned
from sslgh.models import load_backbone
from sslgh.models.adapters import has_mlp_blocks
from sslgh.models.initial import initial_backbone, initial_card
from sslgh.models.last_two import LastTwo
from sslgh.models.pretrained import is_library
from sslgh.models.serialization import run_of
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Recipe, RecipeError, load_recipe
from sslgh.recipe.adapter import Adapter
from sslgh.recipe.named import find_recipe, load_recipes
from sslgh.recipe.schema import Model, Probe

WEIGHTS = "package:efficientnet-lite0"
USUAL = Probe(protocol="longtail", objectives=("ce", "la", "elm"))
# Of the recipe's model, what does not depend on its backbone.
KEPT = {"checkpointing", "projector", "batch_norm"}
log = logging.getLogger(__name__)


class Baseline(NamedTuple):
    """A row of the table.

    Attributes:
        name: Name in the table.
        recipe: What is trained and probed; of frozen weights data, model and probes are used.
        trains: Whether it trains a network.
    """

    name: str
    recipe: Recipe
    trains: bool = False


class Cost(NamedTuple):
    """What a row took: trained parameters of the backbone, and seconds of training and of evaluation."""

    parameters: int
    training: float
    evaluation: float


def run_baselines(words: Sequence[str], weights: str | None, *, frozen: bool) -> int:
    """Train what is missing, probe every row and print one table; returns the first exit code that is not 0.

    A row that fails is left out of the table, with its sentence on stderr; a run that is stopped ends all.

    Args:
        words: A pretraining recipe and overrides.
        weights: What ``model.init`` may be; None: that of the recipe, else EfficientNet-Lite0's from a package.
        frozen: Leave out the rows that train a network.
    """
    rows: list[Baseline] = []
    found: list[tuple[str, list[Result], Cost]] = []

    def plan() -> None:
        recipes = load_recipes(words)
        if len(recipes) != 1 or recipes[0].method is None:
            raise RecipeError("expected one recipe with method:, whose data and run are compared")
        rows.extend(baselines(recipes[0], weights))
        check_probes(rows[0].recipe.data, rows[0].recipe.probe)

    if code := run_command(plan):
        rows.clear()
    for row in rows:
        if row.trains and frozen:
            continue
        ended = run_command(
            lambda row=row: found.append((row.name, *_measured(row))),  # type: ignore[misc]
            row.recipe if row.trains else None,
        )
        code = code or ended
        if ended == STOPPED:
            break
        if ended:
            log.error("%s: left out of the table", row.name)
    if is_main() and found:
        print("\n" + comparison_table([(name, results) for name, results, _ in found]))
        print("\n" + "\n".join(_cost_lines([(name, cost) for name, _, cost in found])))
    shutdown_distributed()
    return code


def baselines(recipe: Recipe, weights: str | None = None) -> Iterator[Baseline]:
    """The rows for a recipe, in the order of the table.

    Raises:
        ValueError: If there are no such weights.
    """
    probes = recipe.probe or (USUAL,)
    weights = weights or recipe.model.init or WEIGHTS
    given, drawn = _begun_from(weights, recipe.model), recipe.model
    folder = Path(f"{recipe.directory}-baselines")
    # A run that began with weights is one of the rows below, and its twin from scratch is this one.
    own = {"run_dir": recipe.directory}
    if drawn.init is not None:
        card, own = initial_card(drawn), {}
        shape = {key: card.get(key) for key in ("backbone", "stem", "width", "patch")}
        drawn = Model(**shape, **drawn.model_dump(include=KEPT))

    def row(name: str, model: Model, *, trains: bool, **changes: Any) -> Baseline:
        place = folder / name.replace(", ", "-").replace(" ", "-")
        update = {"model": model, "probe": probes, "run_dir": place, **changes}
        return Baseline(name, recipe.model_copy(update=update), trains)

    yield row("random weights", drawn, trains=False)
    yield row("given weights", given, trains=False, probe=_of_both_layers(probes))
    yield row("own run", drawn, trains=True, **own)
    yield row("own run from weights", given, trains=True)
    adapter = adapter_for(given)
    adapted, name = given.model_copy(update={"adapter": adapter}), "+".join(adapter.name)
    yield row(f"own run, {name}", adapted, trains=True)
    yield row(f"labels, {name}", adapted, trains=True, **_lift(recipe))


def _begun_from(weights: str, model: Model) -> Model:
    """The recipe's model from other weights: a file, or the word pretrained, is of the recipe's own backbone."""
    if run_of(weights) is None and not is_library(weights) and not Path(weights).is_dir():
        return model.model_copy(update={"init": weights, "adapter": None})
    return Model(init=weights, **model.model_dump(include=KEPT))


def _of_both_layers(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Every probe on the features, and on those of the last two layers."""
    return tuple(
        probe.model_copy(update={"features": kind})
        for kind in ("last", "last-two")
        for probe in probes
    )


def _fitting(probes: Sequence[Probe], backbone: nn.Module) -> tuple[Probe, ...]:
    """The probes without those on the last two layers, where the order of the layers is not known."""
    try:
        LastTwo(backbone)
    except ValueError as error:
        log.warning("%s", error)
        return tuple(probe for probe in probes if probe.features == "last")
    return tuple(probes)


def _lift(recipe: Recipe) -> dict[str, Any]:
    """Settings of LIFT, which trains an adapter on labels, in place of pretraining."""
    lift = load_recipe(find_recipe("folder/lift"))
    train = recipe.train.model_copy(update={"epochs": lift.train.epochs})
    assert lift.finetune is not None
    settings = lift.finetune.model_copy(update={"folds": None})
    no = {"method": None, "harmonize": None, "boost": None, "probe": ()}
    return {"finetune": settings, "optim": lift.optim, "train": train, **no}


def adapter_for(model: Model) -> Adapter:
    """AdaptFormer where a model's weights have blocks with an MLP, else norms and the last stage."""
    side = initial_card(model)["image_size"] or Preprocessing().size
    backbone = initial_backbone(model, side)
    return Adapter(name="adaptformer" if has_mlp_blocks(backbone) else ("norm", "blocks"))


def _measured(row: Baseline) -> tuple[list[Result], Cost]:
    """Results of a row, trained first where it has to be, and what it took."""
    recipe = row.recipe
    images = training_set(recipe.data)
    size = input_size(recipe.data, images, initial_card(recipe.model)["image_size"])
    accelerator = init_accelerator(recipe.train.processes)
    parameters, training = 0, 0.0
    if row.trains:
        # Without labels an AdaptFormer has another width.
        classes = None if recipe.finetune is None else len(images.class_names)
        network = recipe_backbone(recipe, size, classes)
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        train: Callable[..., Path] = pretrain if recipe.finetune is None else finetune
        train(recipe, accelerator)
        training = float(read_status(recipe.directory).get("seconds", 0))
        backbone, _ = load_backbone(recipe.directory)
    else:
        torch.manual_seed(recipe.seed)  # of what is drawn
        backbone = initial_backbone(recipe.model, size)
        recipe = recipe.model_copy(update={"probe": _fitting(recipe.probe, backbone)})
    started = time.perf_counter()
    results = [] if recipe.finetune is None else evaluate_run(recipe, accelerator)
    results += probe_backbone(backbone, recipe, directory=recipe.directory, accelerator=accelerator)
    return results, Cost(parameters, training, time.perf_counter() - started)


def _cost_lines(costs: Sequence[tuple[str, Cost]]) -> Iterator[str]:
    heads = ["run", "trained parameters", "training s", "evaluation s"]
    lines = [
        [name, f"{cost.parameters:,}", f"{cost.training:.0f}", f"{cost.evaluation:.0f}"]
        for name, cost in costs
    ]
    yield from aligned(heads, lines, left=1)
