from dataclasses import replace

import pytest
import torch

from sslgh.classify import OBJECTIVES
from sslgh.classify.embedding_terms import TermInput, TermSettings, supervised_term
from sslgh.functional import embedding_margin, has_mate
from sslgh.functional.supervised_contrastive import supervised_contrastive

PRIOR = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
TERMS = {name: o.embedding for name, o in OBJECTIVES.items() if o.embedding is not None}


def problem(views=1, rows=7):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, views, 4, generator=generator, dtype=torch.float64)
    proxies = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return z, torch.tensor([0, 0, 0, 1, 1, 2, 2])[:rows], proxies


def test_there_is_a_term_for_every_objective_that_shapes_embeddings():
    assert set(TERMS) == {"elm", "elm-contrast", "elm-hinge", "elm-pull", "supcon", "bcl", "rcl"}
    assert len(set(TERMS.values())) == len(TERMS)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("name", list(TERMS))
def test_a_term_is_one_number_an_image_and_ignores_the_order_of_images_views_and_classes(
    name, views
):
    z, target, proxies = problem(views)
    settings = TermSettings(tau=0.7)
    loss = TERMS[name](TermInput(z, target, proxies, PRIOR, settings, None))
    assert loss.shape == target.shape
    assert loss.isfinite().all()
    assert (loss > 0).any()

    rows, classes = torch.tensor([3, 1, 6, 0, 5, 2, 4]), torch.tensor([2, 0, 1])
    permuted = TERMS[name](
        TermInput(
            z[rows].flip(1),
            classes.argsort()[target[rows]],
            proxies[classes],
            PRIOR[classes],
            settings,
            None,
        )
    )
    torch.testing.assert_close(permuted, loss[rows])


@pytest.mark.parametrize("name", list(TERMS))
def test_what_a_term_reads_changes_it_and_nothing_else_does(name):
    z, target, proxies = problem()
    read = {
        "elm": {"tau", "temperature"},
        "elm-contrast": {"temperature"},
        "elm-hinge": {"tau"},
        "elm-pull": {"tau"},
        "supcon": {"temperature"},
        "bcl": {"temperature"},
        "rcl": {"temperature", "gamma", "scale"},
    }[name]
    base = TERMS[name](TermInput(z, target, proxies, PRIOR, TermSettings(), None))
    for field in TermSettings._fields:
        settings = TermSettings()._replace(**{field: 0.3})
        other = TERMS[name](TermInput(z, target, proxies, PRIOR, settings, None))
        assert (not torch.equal(base, other)) == (field in read)


def test_the_margin_term_averages_its_views_and_the_contrast_has_no_margin():
    z, target, proxies = problem(views=2)
    for name, tau in (("elm", 0.7), ("elm-contrast", 0.0)):
        rows = embedding_margin(
            torch.cat([z[:, 0], z[:, 1]]),
            target.repeat(2),
            PRIOR,
            tau=tau,
            temperature=0.1,
            proxies=proxies,
        )
        term = TERMS[name](TermInput(z, target, proxies, PRIOR, TermSettings(tau=0.7), None))
        torch.testing.assert_close(term, rows.view(2, -1).mean(0))


def test_rcl_without_balance_and_scale_is_bcl():
    z, target, proxies = problem(views=2)
    plain = TermSettings(gamma=0.0)
    torch.testing.assert_close(
        TERMS["rcl"](TermInput(z, target, proxies, PRIOR, plain, None)),
        TERMS["bcl"](TermInput(z, target, proxies, PRIOR, TermSettings(), None)),
        atol=1e-14,
        rtol=0,
    )


def test_images_without_a_mate_are_left_out_of_the_mean_and_never_counted_as_zeros():
    z, _, proxies = problem()
    lonely = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    loss = supervised_contrastive(z, lonely, temperature=0.1)
    term = supervised_term(TermInput(z, lonely, proxies, PRIOR, TermSettings(), None))
    assert not has_mate(lonely)[-1]
    torch.testing.assert_close(term.mean(), loss[:-1].mean())


@pytest.mark.parametrize("name", list(TERMS))
def test_a_batch_of_one_image_a_class_is_finite_with_its_gradient(name):
    z, _, proxies = problem(rows=3)
    z.requires_grad_()
    loss = TERMS[name](TermInput(z, torch.arange(3), proxies, PRIOR, TermSettings(), None)).mean()
    assert loss.isfinite()
    if name == "supcon":
        assert loss == 0
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


def test_the_settings_of_a_term_belong_to_its_objective():
    assert {o.term for o in OBJECTIVES.values()} == {TermSettings()}
    assert replace(OBJECTIVES["rcl"], term=TermSettings(scale=2.0)).term.scale == 2.0
