"""The recipe's adapter: few weights of a pretrained backbone that are trained."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sslgh.recipe.base import ConfigModel, Count

AdapterName = Literal["lora", "adaptformer", "bias", "norm", "blocks"]
# The names that a setting belongs to.
READ_BY = {"rank": "lora", "layers": "lora", "width": "adaptformer", "blocks": "blocks"}


def _several(value: Any) -> Any:
    if isinstance(value, list):  # strict validation takes no list for a tuple after a validator
        return tuple(value)
    return (value,) if isinstance(value, str) else value


class Adapter(ConfigModel):
    """Few weights of a pretrained backbone are trained, the others stay as they are."""

    name: Annotated[tuple[AdapterName, ...], BeforeValidator(_several)] = Field(
        min_length=1,
        description="lora: low-rank terms of layers (arXiv:2106.09685, extra lora); adaptformer: a bottleneck "
        "parallel to every MLP (arXiv:2205.13535, as in LIFT); bias: all biases; norm: scales and shifts of all norms; "
        "blocks: the last blocks and what follows them; or a list of several",
    )
    rank: Count = Field(8, description="lora: rank of the added terms, which count with factor 1")
    layers: tuple[str, ...] = Field(
        ("qkv", "q_proj", "v_proj", "query", "value"),
        min_length=1,
        description="lora: names of layers, as they end; those that a backbone has",
    )
    width: Count | None = Field(
        None,
        description="adaptformer: width of the bottleneck (features); null: LIFT's 2^floor(log2(classes / (2 "
        "blocks))), at least 1, and 8 without labels",
    )
    blocks: Count = Field(
        1, description="blocks: number of layers (ResNet: stages) that are trained"
    )

    @model_validator(mode="after")
    def _every_setting_is_read(self) -> Self:
        for key, name in READ_BY.items():
            if name not in self.name and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is read by {name} only, and name is {', '.join(self.name)}"
                )
        return self
