import inspect

import pytest
from torch import nn

from sslgh.engine.build import build_method
from sslgh.methods import METHODS
from sslgh.recipe import RecipeError, make_recipe


def recipe(method: dict, **projector) -> object:
    model = {"width": 0.125, "projector": projector}
    return make_recipe(
        {"name": "x", "data": {"source": "digits"}, "model": model, "method": method}
    )


def test_every_method_is_given_its_backbone_and_its_projector() -> None:
    assert len(METHODS) >= 15
    for kind in METHODS.values():
        parameters = list(inspect.signature(kind).parameters.values())
        assert [p.name for p in parameters[:2]] == ["backbone", "projector"]
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


def test_the_recipe_replaces_what_it_says_of_the_papers_projector() -> None:
    paper = build_method(recipe({"name": "simclr"}), 16)
    ours = build_method(recipe({"name": "simclr"}, out=8, layers=3), 16)
    widths = [
        [m.out_features for m in method.projector.modules() if isinstance(m, nn.Linear)]
        for method in (paper, ours)
    ]
    assert widths == [[64, 128], [64, 64, 8]]
    assert (paper.embedding_dim, ours.embedding_dim) == (128, 8)


def test_batch_norm_under_method_goes_into_the_projector_of_dino() -> None:
    for given, norms in (({}, 0), ({"batch_norm": True}, 2)):
        method = build_method(recipe({"name": "dino", "prototypes": 8, **given}, hidden=32), 16)
        assert sum("BatchNorm" in type(m).__name__ for m in method.projector.modules()) == norms


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"name": "dino", "batch_nrm": True}, "method: unknown key 'batch_nrm'; did you mean 'bat"),
        ({"name": "moco-v3", "last_norm": True}, "method: unknown key 'last_norm'; known keys: "),
        ({"name": "simclr", "hidden": 8}, "method: unknown key 'hidden'; known keys: temperature"),
    ],
)
def test_keys_that_are_not_the_methods_are_refused(method, sentence) -> None:
    with pytest.raises(RecipeError) as refused:
        build_method(recipe(method), 16)
    assert str(refused.value).startswith(sentence)
