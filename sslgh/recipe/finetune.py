"""The recipe's supervised training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sslgh.recipe.base import ConfigModel, Positive

# Augmentation of the classifier's view.
Policy = Literal["crop-flip", "autoaugment", "randaugment", "none"]


class Finetune(ConfigModel):
    """Supervised training on the long-tailed labels, from scratch or from `model.init`."""

    objective: str = Field("la", description="a key of sslgh.classify.OBJECTIVES")
    tau: Annotated[float, Field(ge=0)] = Field(1.0, description="strength of the adjustment")
    logit_weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="factor of the classifier's loss (BCL on CIFAR: 2)"
    )
    embedding_weight: Annotated[float, Field(ge=0)] | None = Field(
        None, description="factor of the embedding term (BCL on CIFAR: 0.6); null: the objective's"
    )
    temperature: Positive = Field(
        0.1, description="temperature of the embedding term (BCL on ImageNet: 0.07)"
    )
    gamma: Annotated[float, Field(ge=0)] = Field(
        1.0, description="rcl: power of the class counts in the denominator; 0: bcl"
    )
    scale: Positive = Field(
        1.0, description="rcl: factor of the unit features; s is a temperature of T / s^2"
    )
    classifier: Literal["linear", "cosine"] = Field("linear", description="last layer")
    cosine_scale: Positive = Field(30.0, description="cosine: factor of the cosines")
    classifier_start: Literal["drawn", "class-means"] = Field(
        "drawn",
        description="cosine: drawn by the seed, or the normalized mean feature of each class (LIFT)",
    )
    five_crop: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="test images are enlarged by so many pixels, and the logits of their corners and center averaged "
        "(LIFT: 24 at 224); null: one central crop",
    )
    freeze: bool = Field(
        False, description="leave the backbone as it is (classifier re-training, cRT)"
    )
    sampling: Literal["instance", "class-balanced", "square-root", "progressive"] = Field(
        "instance", description="how often a class is drawn (arXiv:1910.09217)"
    )
    policy: Policy = Field(
        "crop-flip",
        description="view of the classifier: crop-flip (LA); autoaugment: with Cutout (BCL on CIFAR); "
        "randaugment (BCL on ImageNet)",
    )
    deferred_epoch: Annotated[int, Field(ge=0)] | None = Field(
        None, description="ldam-drw: first epoch of the reweighting; null: at 80 % of the run"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of a moving average of the weights, from the first step's on, which is then "
        "evaluated; null: none",
    )
    folds: Annotated[int, Field(ge=2)] | None = Field(
        5,
        description="without labeled test images so many further networks, each on the images of all folds but "
        "one, estimate the accuracy; null: no estimate",
    )

    @model_validator(mode="after")
    def _some_settings_need_cosine(self) -> Self:
        if self.classifier != "cosine" and self.cosine_scale != 30:
            raise ValueError("cosine_scale is read by classifier: cosine only")
        if self.classifier != "cosine" and self.classifier_start != "drawn":
            raise ValueError("classifier_start: class-means needs classifier: cosine")
        return self
