import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

import sslgh.functional.neighbors as module
from sslgh.functional.neighbors import nearest_neighbor_votes


def problem(seed=0, queries=40, rows=90, width=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    bank = torch.randn(rows, width, generator=generator) * torch.rand(rows, 1, generator=generator)
    return torch.randn(queries, width, generator=generator), bank, labels, classes


@pytest.mark.parametrize("neighbors", [1, 7, 90])
def test_equal_votes_are_those_of_scikit_learn(neighbors):
    queries, bank, labels, classes = problem()
    oracle = KNeighborsClassifier(neighbors).fit(normalize(bank).numpy(), labels.numpy())
    votes = nearest_neighbor_votes(queries, bank, labels, num_classes=classes, neighbors=neighbors)
    np.testing.assert_allclose(votes, oracle.predict_proba(normalize(queries).numpy()), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_weighted_votes_follow_the_formula_of_wu_et_al(temperature):
    queries, bank, labels, classes = problem(1)
    votes = nearest_neighbor_votes(
        queries, bank, labels, num_classes=classes, neighbors=9, temperature=temperature
    )
    for query, got in zip(queries.double(), votes, strict=True):
        cosines = sorted(
            (
                (float(query @ row / query.norm() / row.norm()), int(label))
                for row, label in zip(bank.double(), labels, strict=True)
            ),
            reverse=True,
        )[:9]
        expected = [0.0] * classes
        for cosine, label in cosines:
            expected[label] += np.exp(cosine / temperature)
        np.testing.assert_allclose(got, np.array(expected) / sum(expected), atol=1e-5)


def test_a_small_temperature_does_not_overflow():
    queries, bank, labels, classes = problem(2)
    votes = nearest_neighbor_votes(
        queries, bank, labels, num_classes=classes, neighbors=5, temperature=1e-4
    )
    torch.testing.assert_close(votes.sum(1), torch.ones(len(votes)))


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    queries, bank, labels, classes = problem(3)
    whole = nearest_neighbor_votes(queries, bank, labels, num_classes=classes, neighbors=5)
    monkeypatch.setattr(module, "CHUNK", 7 * len(bank))
    parts = nearest_neighbor_votes(queries, bank, labels, num_classes=classes, neighbors=5)
    torch.testing.assert_close(parts, whole)


def test_autocast_does_not_round_the_similarities():
    queries, bank, labels, classes = problem(4)
    exact = nearest_neighbor_votes(
        queries, bank, labels, num_classes=classes, neighbors=5, temperature=0.1
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nearest_neighbor_votes(
            queries, bank, labels, num_classes=classes, neighbors=5, temperature=0.1
        )
    assert torch.equal(exact, inside)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbors": 91}, r"neighbors must lie in 1\.\.90"),
        ({"neighbors": 0}, r"neighbors must lie in 1\.\.90"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"queries": torch.zeros(3, 5)}, r"got \(3, 5\) and \(90, 6\)"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"labels \(N,\)"),
    ],
)
def test_impossible_arguments_are_named(changes, message):
    queries, bank, labels, classes = problem()
    arguments = {"queries": queries, "bank": bank, "labels": labels, "neighbors": 3}
    with pytest.raises(ValueError, match=message):
        nearest_neighbor_votes(num_classes=classes, **(arguments | changes))


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_a_row_left_out_is_judged_by_the_others(monkeypatch, temperature):
    _, bank, labels, classes = problem(5)
    settings = {"num_classes": classes, "neighbors": 7, "temperature": temperature}
    monkeypatch.setattr(module, "CHUNK", 11 * len(bank))
    votes = nearest_neighbor_votes(bank, bank, labels, leave_one_out=True, **settings)
    for row, got in enumerate(votes):
        others = torch.arange(len(bank)) != row
        expected = nearest_neighbor_votes(bank[row, None], bank[others], labels[others], **settings)
        torch.testing.assert_close(got, expected[0])


def test_leaving_one_out_needs_one_to_leave():
    _, bank, labels, classes = problem()
    with pytest.raises(ValueError, match=r"neighbors must lie in 1\.\.89, .* got 90"):
        nearest_neighbor_votes(
            bank, bank, labels, num_classes=classes, neighbors=90, leave_one_out=True
        )
    with pytest.raises(ValueError, match=r"the bank as queries, got \(5, 6\) and \(90, 6\)"):
        nearest_neighbor_votes(
            bank[:5], bank, labels, num_classes=classes, neighbors=3, leave_one_out=True
        )
