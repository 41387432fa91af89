"""From a recipe to the objects of a run.

Shapes: n samples of a batch.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sslgh import __version__
from sslgh.classify import OBJECTIVES
from sslgh.classify.network import Network
from sslgh.data import ImageSet, input_size, local_side
from sslgh.distributed import dist_info
from sslgh.engine.monitor.embeddings import CollapseAlarm
from sslgh.engine.monitor.harm import HarmAlarm
from sslgh.engine.monitor.labels import LabelMonitor
from sslgh.harmonize import GeometricHarmonizer, MomentumLoss, faiss_device
from sslgh.methods import METHODS, Method, MethodOutput
from sslgh.methods.queue import Queue
from sslgh.models import (
    CosineClassifier,
    checkpoint_activations,
    contrast_head,
    linear_classifier,
    use_global_batch_norm,
)
from sslgh.models.adapters import ADAPTFORMER, add_adapter
from sslgh.models.backbones import OWN, check_local_crops, drawn_backbone, resolve_patch
from sslgh.models.initial import initial_backbone, initial_card
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Finetune, Recipe, RecipeError, check_arguments
from sslgh.recipe.errors import unknown_key
from sslgh.recipe.schema import fewer_negatives

SHAPE = ("hidden", "out", "layers")
# The last torch whose bf16 convolutions were found wrong; a test compares those of later ones with float64.
LAST_WITH_WRONG_BF16 = (2, 15)


def build_method(recipe: Recipe, image_size: int, backbone: nn.Module | None = None) -> Method:
    """The method with its backbone, initialized from the recipe's seed.

    ``backbone``: The module to use instead of the recipe's.

    Raises:
        ValueError: If the method is unknown, its arguments do not fit, or the backbone cannot be built.
    """
    if recipe.method is None:
        raise RecipeError("pretraining needs method:; this recipe has finetune: (sslgh finetune)")
    name, settings = recipe.method.name, recipe.model
    if name not in METHODS:
        raise RecipeError(f"method.name: {unknown_key(name, METHODS)}")
    kind = METHODS[name]
    spec = kind.projector_spec
    _check_method(recipe, kind)
    configured = (kind, spec.head) if spec.options else (kind,)
    arguments = check_arguments(configured, recipe.method.arguments, given=SHAPE, prefix="method")
    shape = settings.projector.model_dump(exclude_none=True)
    shape |= {key: arguments.pop(key) for key in spec.options}
    torch.manual_seed(recipe.seed)
    if backbone is None:
        backbone = recipe_backbone(recipe, image_size)
    if recipe.data.augment.local_crops:
        local = local_side(recipe.data.augment, image_size)
        check_local_crops(backbone, settings.backbone, local)
    method = kind(backbone, spec.build(backbone, **shape), **arguments)
    if isinstance(queue := getattr(method, "queue", None), Queue):
        queue.check(recipe.train.batch_size)
    if settings.batch_norm == "global" and dist_info().size > 1:
        use_global_batch_norm(method)
    return method


def _check_method(recipe: Recipe, kind: type[Method]) -> None:
    """Refuse settings that a method cannot honor."""
    assert recipe.method is not None
    name, train = recipe.method.name, recipe.train
    if kind.contrasts_batch and train.accumulation > 1 and not train.allow_fewer_negatives:
        raise RecipeError(fewer_negatives(train))
    if (crops := recipe.data.augment.local_crops) and not kind.multi_crop:
        takers = " and ".join(key for key, value in METHODS.items() if value.multi_crop)
        raise RecipeError(
            f"data.augment.local_crops is {crops}, but {name} takes two views; local crops are for {takers}"
        )
    if recipe.boost is not None and not kind.has_sample_losses:
        raise RecipeError(f"boost needs a per-sample loss, which {name} does not have")


def input_side(recipe: Recipe, images: ImageSet) -> int:
    """Side of the network's input (pixels): as `input_size`, for the weights that training begins with."""
    of_weights = None if recipe.model.init is None else initial_card(recipe.model)["image_size"]
    return input_size(recipe.data, images, of_weights)


def recipe_backbone(recipe: Recipe, image_size: int, num_classes: int | None = None) -> nn.Module:
    """The backbone, drawn or as `model.init` says, with the recipe's adapter; it keeps fewer activations if asked to."""
    model, adapter = recipe.model, recipe.model.adapter
    if recipe.finetune is not None and recipe.finetune.freeze:
        model = model.model_copy(update={"init_least": 1.0})
    build = drawn_backbone if model.init is None else initial_backbone
    backbone = build(model, image_size)
    if adapter is not None:
        add_adapter(backbone, adapter, image_size=image_size, num_classes=num_classes)
    return checkpoint_activations(backbone) if model.checkpointing else backbone


def check_objective(recipe: Recipe) -> None:
    """Refuse a ``finetune`` section that does not fit its objective.

    Raises:
        RecipeError: If the objective is unknown or trains no network, a setting is not read by it, or accumulation
            would take negatives from its contrast.
    """
    settings, train = recipe.finetune, recipe.train
    assert settings is not None
    trainable = {name: value for name, value in OBJECTIVES.items() if value.trains_network}
    if settings.objective not in trainable:
        raise RecipeError(f"finetune.objective: {unknown_key(settings.objective, trainable)}")
    objective = trainable[settings.objective]
    for name in sorted(frozenset().union(*(value.reads for value in trainable.values()))):
        default = Finetune.model_fields[name].default
        if name not in objective.reads and getattr(settings, name) != default:
            raise RecipeError(
                f"finetune: {name} is not read by objective {settings.objective}; leave it out"
            )
    if objective.embedding and train.accumulation > 1 and not train.allow_fewer_negatives:
        raise RecipeError(fewer_negatives(train))


def build_network(recipe: Recipe, image_size: int, num_classes: int) -> Network:
    """The network of ``finetune``, initialized from the recipe's seed.

    Raises:
        RecipeError: As `check_objective`.
        ValueError: If the backbone cannot be built, or there are no such weights.
    """
    settings = recipe.finetune
    assert settings is not None
    check_objective(recipe)
    torch.manual_seed(recipe.seed)
    backbone = recipe_backbone(recipe, image_size, num_classes)
    features = backbone.num_features
    assert isinstance(features, int)
    if settings.classifier == "cosine":
        classifier: nn.Linear | CosineClassifier = CosineClassifier(
            features, num_classes, scale=settings.cosine_scale
        )
    else:
        classifier = linear_classifier(features, num_classes)
    heads = {}
    shape = recipe.model.projector
    for name in OBJECTIVES[settings.objective].contrast_heads:
        heads[name] = contrast_head(features, hidden=shape.hidden or 512, out=shape.out or 128)
    network = Network(backbone, classifier, **heads, freeze=settings.freeze)
    if recipe.model.batch_norm == "global" and dist_info().size > 1:
        use_global_batch_norm(network)
    return network


def build_harmonizer(recipe: Recipe, num_samples: int, dim: int) -> GeometricHarmonizer:
    """The harmonizer of a recipe with ``harmonize``.

    Raises:
        RecipeError: If there are more vertices than samples, more clusters than a fifth of them, or FAISS is
            needed and missing.
    """
    assert recipe.harmonize is not None
    if recipe.harmonize.population == "faiss":
        try:
            faiss_device()
        except ImportError as error:
            raise RecipeError(str(error)) from None
    settings = recipe.harmonize.model_dump(exclude={"vertices", "warmup_epochs"})
    if recipe.harmonize.vertices > num_samples:
        raise RecipeError(
            f"harmonize.vertices is {recipe.harmonize.vertices}, but there are only {num_samples} images; "
            f"set harmonize.vertices={num_samples // 2 or 1} or fewer"
        )
    return GeometricHarmonizer(
        num_samples,
        dim,
        num_vertices=recipe.harmonize.vertices,
        warmup_epochs=recipe.gh_start or 0,
        seed=recipe.seed,
        **settings,
    )


class AuxiliaryState(nn.Module):
    """Everything that is updated with the method but not trained by DDP; saved in every checkpoint.

    Args:
        recipe: The experiment.
        images: Training set.
        method: Method whose outputs are stored and monitored.

    Attributes:
        harmonizer: Geometric Harmonization, or None.
        boost: EMA of the per-sample losses, for boosted augmentation, or None.
        labeled: Monitor with labels; None for an unlabeled training set.
        alarm: Alarm for collapsed embeddings.
        harm: Alarm for a GH that harms; only with GH.

    Raises:
        RecipeError: If the harmonizer's settings do not fit.
    """

    def __init__(self, recipe: Recipe, images: ImageSet, method: Method) -> None:
        super().__init__()
        n, width, boost, labels = len(images), method.embedding_dim, recipe.boost, images.labels
        self.harmonizer = None if recipe.harmonize is None else build_harmonizer(recipe, n, width)
        self.boost = None if boost is None else MomentumLoss(n, momentum=boost.momentum)
        self.labeled = None if labels is None else LabelMonitor(labels, images.class_counts, method)
        self.alarm = CollapseAlarm(width)
        if self.harmonizer is not None:
            self.harm = HarmAlarm()

    def update(self, output: MethodOutput, index: Tensor, *, logged: bool) -> dict[str, Tensor]:
        """Store detached outputs for the samples at ``index`` (n,); metrics for the log. Collective: call it on every rank."""
        if self.harmonizer is not None:
            self.harmonizer.observe(output.embeddings[0], index)
        if self.boost is not None:
            assert output.per_sample is not None
            self.boost.observe(output.per_sample, index)
        return {} if self.labeled is None else self.labeled.update(output, index, logged=logged)


def backbone_metadata(recipe: Recipe, *, image_size: int, method: str) -> dict[str, Any]:
    """Metadata saved with a backbone: how to rebuild it, its input, its training.

    Call it before training, while ``model.init`` is still there.

    Raises:
        ValueError: If ``model.init`` holds no backbone.
    """
    model = recipe.model
    drawn = model.model_dump(include={"backbone", "stem", "width", "patch"})
    card = drawn if model.init is None else initial_card(model)
    rebuild = {key: card[key] for key in ("backbone", "stem", "width")}
    patch = resolve_patch(card["backbone"], patch=card.get("patch"), image_size=image_size)
    preprocessing = {key: card.get(key, usual) for key, usual in Preprocessing().card().items()}
    rebuild |= {"patch": patch, "image_size": image_size, **preprocessing}
    rebuild |= {key: card[key] for key in (ADAPTFORMER,) if key in card}
    if card["backbone"].startswith(OWN):
        rebuild["load"] = "sslgh.models.load_backbone(Path(RUN), module=YOURS)"
    training: dict[str, Any] = {"method": method, "run": recipe.name}
    training["precision"] = recipe.train.precision
    if (adapter := recipe.model.adapter) is not None:
        training["adapter"] = {"init": recipe.model.init, **adapter.model_dump(mode="json")}
    return {"format": 1, **rebuild, **training, "sslgh": __version__}


def refuse_small_maps(module: nn.Module) -> None:
    """Have a module refuse the convolutions of which torch takes a wrong weight gradient in bf16 on the CPU.

    With stride 2 and more than one pixel per kernel, on maps of one pixel, the gradient holds memory that was
    never written. Found by comparing with float64; float32, stride 1 and depthwise kernels are right.
    """

    def refuse(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training and min(inputs[0].shape[-2:]) == 1:
            raise RecipeError(
                "train.precision: bf16 on the CPU takes wrong gradients where the maps of a layer are down to one "
                "pixel; set train.precision: fp32, or raise data.size (data.augment.local_size for local crops)"
            )

    if tuple(map(int, torch.__version__.split(".")[:2])) <= LAST_WITH_WRONG_BF16:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1 < max(layer.kernel_size):
                layer.register_forward_pre_hook(refuse)
