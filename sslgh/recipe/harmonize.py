"""Recipe blocks around a method: Geometric Harmonization, boosted augmentation."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sslgh.recipe.base import ConfigModel, Count, Positive, Probability


class Harmonize(ConfigModel):
    """Geometric Harmonization (arXiv:2310.17622)."""

    vertices: Annotated[int, Field(ge=2)] = Field(
        100, description="K, vertices of the geometric uniform structure"
    )
    structure: Literal["frame", "etf"] = Field(
        "frame",
        description="frame: a simplex for K up to D + 1, else the best frame found; etf: a simplex or nothing",
    )
    population: Literal["faiss", "prototypes"] = Field(
        "faiss",
        description="faiss: clusters of a bank of embeddings; prototypes: the paper's vertex scores",
    )
    classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="faiss: number of surrogate classes; null: found from the data"
    )
    clustering: Literal["groups", "kmeans"] = Field(
        "groups",
        description="faiss: groups of micro-clusters, or plain k-means (which splits the head)",
    )
    warmup_epochs: Annotated[int, Field(ge=0)] | None = Field(
        None, description="epochs of the plain method before GH; null: half of the run"
    )
    ramp_epochs: Count = Field(10, description="epochs over which the GH term grows to its weight")
    refresh_every: Count = Field(20, description="epochs between two estimates of the prior")
    weight: Annotated[float, Field(ge=0)] = Field(1.0, description="final weight of the GH term")
    epsilon: Positive = Field(
        0.05, description="entropic regularization of Sinkhorn, 1/lambda of the paper"
    )
    temperature: Positive = Field(
        0.1, description="gamma_GH, temperature of the geometric prediction"
    )
    iterations: Count = Field(300, description="Sinkhorn iterations")
    tolerance: Positive | None = Field(
        None, description="stop Sinkhorn at this L1 error of the marginal / N"
    )
    uniform_prior: bool = Field(
        False,
        description="ablation: the GH term expects equal shares, as SwAV's equal partition does",
    )
    weight_power: Probability = Field(
        0.5,
        description="instance weight = prior^-power; 0: no reweighting (the paper, and resample)",
    )
    max_weight: Annotated[float, Field(gt=1)] = Field(
        10.0,
        description="largest instance weight (the mean is 1); resample: most times that an epoch shows an "
        "image (rounded down)",
    )
    resample: Literal["hierarchical"] | None = Field(
        None,
        description="faiss: instead of weights, epochs balanced over hierarchical k-means of the bank "
        "(arXiv:2405.15613), as many steps as before; null: each image once an epoch",
    )
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="faiss: EMA of a bank row"
    )
    warmup_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="prototypes: beta of the vertex scores during warm-up"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="prototypes: beta of the vertex scores after warm-up"
    )
    prior_floor: Annotated[int, Field(ge=0)] = Field(
        0,
        description="prototypes: samples added to every vertex (100 in the paper's ImageNet-LT code)",
    )
    align: bool = Field(
        True, description="faiss: turn the vertices onto the groups before the first GH step"
    )

    @model_validator(mode="before")
    @classmethod
    def _align_belongs_to_faiss(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("population") == "prototypes":
            if values.get("align"):
                raise ValueError(
                    "align: true turns the vertices and makes stored scores meaningless; use population: faiss"
                )
            return values | {"align": False}
        return values

    @model_validator(mode="before")
    @classmethod
    def _resampling_replaces_weights(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("resample") is None:
            return values
        if values.get("population", "faiss") != "faiss":
            raise ValueError("resample clusters a bank of embeddings; use population: faiss")
        if values.get("weight_power"):
            raise ValueError(
                f"resample replaces instance weights, but weight_power is {values['weight_power']}; leave "
                "one of the two out"
            )
        return values | {"weight_power": 0.0}

    @model_validator(mode="after")
    def _resampling_has_room(self) -> Self:
        if self.resample is not None and self.max_weight < 2:
            raise ValueError(
                f"resample would show no image twice, since max_weight is {self.max_weight:g}; set it to 2 "
                "or more"
            )
        return self


class Boost(ConfigModel):
    """Boosted Contrastive Learning (ICML 2022): samples of high loss are augmented more."""

    ops: Annotated[int, Field(ge=1, le=2)] = Field(
        1,
        description="RandAugment operations after the augmentation, each with the sample's strength as its "
        "probability: 1 on SimCLR, 2 on SDCLR in the paper",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.97, description="momentum of the moving average of the per-sample loss"
    )
