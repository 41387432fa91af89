"""Recipe blocks around a method: Geometric Harmonization, boosted augmentation."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sslgh.recipe.base import ConfigModel, Count, Positive, Probability

EPSILON, TEMPERATURE = 0.05, 0.1  # the paper's, for its 100 vertices
# What `population: prototypes` means where a recipe says nothing else: the paper.
PAPER = {"prior": "estimate", "weight_power": 0.0, "gh_share": None, "clean": False, "align": False}


def _pair(given: Any) -> Any:
    """A list as a tuple: after the validators of the whole block, lists of JSON are lists of Python."""
    return tuple(given) if isinstance(given, list) else given


class Harmonize(ConfigModel):
    """Geometric Harmonization (arXiv:2310.17622)."""

    vertices: Annotated[int, Field(ge=2)] = Field(
        100, description="K, vertices of the geometric uniform structure"
    )
    structure: Literal["frame", "etf"] = Field(
        "frame",
        description="frame: a simplex for K up to D + 1, else the best frame found; etf: a simplex, an error if K > D + 1",
    )
    population: Literal["faiss", "prototypes"] = Field(
        "faiss",
        description="faiss: clusters of the embeddings, trusted as far as they recur; prototypes: the paper's "
        "vertex scores",
    )
    prior: Literal["flat", "power", "estimate"] = Field(
        "flat",
        description="shares that the GH term expects of the vertices: flat; power: k^-1/2; estimate: shares of the "
        "images nearest to each, with faiss half mixed with flat (prototypes: estimate)",
    )
    classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="faiss: number of clusters; null: found from the data"
    )
    clustering: Literal["groups", "kmeans"] = Field(
        "groups",
        description="faiss: groups of micro-clusters, or plain k-means (which splits the head)",
    )
    visibility: Probability | None = Field(
        None,
        description="faiss: trust in the clusters, 0 to 1; below 0.25 a refresh changes nothing; null: measured at "
        "each refresh, without labels",
    )
    clean: bool = Field(
        True,
        description="faiss: cluster one evaluation pass over the training set at each refresh; false: EMA of the "
        "augmented embeddings",
    )
    warmup_epochs: Annotated[int, Field(ge=0)] | None = Field(
        None, description="epochs of the plain method before GH; null: half of the run"
    )
    ramp_epochs: Count = Field(10, description="epochs over which the GH term grows to its weight")
    refresh_every: Count = Field(20, description="epochs between two estimates of the population")
    weight: Annotated[float, Field(ge=0)] = Field(1.0, description="final weight of the GH term")
    gh_share: Annotated[tuple[Probability, Probability] | None, BeforeValidator(_pair)] = Field(
        (0.4, 0.55),
        description="bounds of the GH term's share of the gradient on the embeddings, by which its weight is "
        "adapted once per epoch; null: fixed weight (prototypes: null)",
    )
    epsilon: Positive = Field(
        EPSILON,
        description="entropic regularization of Sinkhorn, 1/lambda of the paper; default: times sqrt(100 / K)",
    )
    temperature: Positive = Field(
        TEMPERATURE,
        description="gamma_GH, temperature of the geometric prediction; default: times sqrt(100 / K)",
    )
    iterations: Count = Field(300, description="Sinkhorn iterations")
    tolerance: Positive | None = Field(
        None, description="stop Sinkhorn at this L1 error of the marginal / N"
    )
    weight_power: Probability = Field(
        1.0,
        description="instance weight = share of the image's cluster^(-power x visibility); 0: no reweighting (the "
        "paper)",
    )
    max_weight: Annotated[float, Field(gt=1)] = Field(
        10.0,
        description="largest instance weight (the mean is 1); resample: most times that an epoch shows an "
        "image (rounded down)",
    )
    resample: Literal["clusters", "hierarchical"] | None = Field(
        None,
        description="faiss: instead of weights, epochs that show images as often as they would weigh (clusters), or "
        "balanced over hierarchical k-means (arXiv:2405.15613); as many steps as before; null: each image once",
    )
    bank_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5, description="faiss, clean: false: EMA of a bank row"
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
        True, description="faiss: turn the vertices onto the clusters before the first GH step"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_population(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("population") == "prototypes":
            if values.get("align"):
                raise ValueError(
                    "align: true turns the vertices and makes stored scores meaningless; use population: faiss"
                )
            values = PAPER | values
        vertices = values.get("vertices", 100)
        if not isinstance(vertices, int) or vertices < 1:
            return values  # refused by the field
        # Scores of unit length are 1/sqrt(K) each: unscaled, few vertices pull several times as strongly.
        scale = (100 / vertices) ** 0.5
        scaled = {
            "epsilon": round(EPSILON * scale, 6),
            "temperature": round(TEMPERATURE * scale, 6),
        }
        return scaled | values

    @model_validator(mode="before")
    @classmethod
    def _resampling_replaces_weights(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("resample") is None:
            return values
        if values.get("population", "faiss") != "faiss":
            raise ValueError(
                "resample samples by clusters of the embeddings; use population: faiss"
            )
        if values["resample"] != "hierarchical":
            return values
        if values.get("weight_power"):
            raise ValueError(
                f"resample: hierarchical replaces instance weights, but weight_power is {values['weight_power']}; "
                "leave one of the two out"
            )
        return values | {"weight_power": 0.0}

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.resample is not None and self.max_weight < 2:
            raise ValueError(
                f"resample would show no image twice, since max_weight is {self.max_weight:g}; set it to 2 "
                "or more"
            )
        if self.gh_share is not None and not 0 < self.gh_share[0] <= self.gh_share[1] < 1:
            low, high = self.gh_share
            raise ValueError(
                f"gh_share must be bounds between 0 and 1 in ascending order, got [{low:g}, {high:g}]; null leaves "
                "the weight alone"
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
