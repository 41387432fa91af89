"""Which heads a probe trains, chosen on training images where it gives several settings.

Shapes: N images, F features, C classes.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from sslgh.classify import OBJECTIVES, Head, select_heads
from sslgh.evaluation.protocols import Protocol, objectives
from sslgh.recipe.schema import Probe

Candidates = Mapping[str, Sequence[Head]]


def candidates(protocol: Protocol, probe: Probe) -> Candidates:
    """For each objective the heads to choose from: every combination of the settings that it reads.

    Examples:
        >>> from sslgh.evaluation.protocols import PROTOCOLS
        >>> probe = Probe(protocol="longtail", objectives=("ce", "la"), tau=(0.5, 1), lr=(0.1, 0.01))
        >>> {name: len(heads) for name, heads in candidates(PROTOCOLS["longtail"], probe).items()}
        {'ce': 2, 'la': 4}
    """
    return {name: _grid(name, probe) for name in objectives(protocol, probe)}


def _grid(name: str, probe: Probe) -> list[Head]:
    objective = OBJECTIVES[name]
    taus = probe.tau if objective.takes_tau else (1.0,)
    if objective.decision == "means":  # nothing is trained
        return [Head(name)]
    grid = product(taus, probe.lr or (None,), probe.weight_decay or (None,))
    return [Head(name, tau, lr, decay) for tau, lr, decay in dict.fromkeys(grid)]


def choose(
    found: Candidates,
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    probe: Probe,
    protocol: Protocol,
) -> dict[str, Head]:
    """One head for each objective: the only one, or the best on parts of the training images.

    Args:
        found: As `candidates` gives them.
        features: Training features, shape (N, F).
        labels: Their classes, shape (N,).
        num_classes: C.
        probe: Its ``folds`` count.
        protocol: How heads are trained.
    """
    assert protocol.heads is not None
    several = {name: heads for name, heads in found.items() if len(heads) > 1}
    best: Mapping[str, Head] = {}
    if several:
        best = select_heads(
            features,
            labels,
            num_classes=num_classes,
            candidates=several,
            training=protocol.heads,
            folds=probe.folds,
            progress=True,
        )
    return {name: best.get(name, heads[0]) for name, heads in found.items()}


def settings_of(head: Head, protocol: Protocol) -> dict[str, float | None]:
    """What a head is trained with, the protocol's values filled in; tau None where it is not read."""
    assert protocol.heads is not None
    return {
        "tau": head.tau if OBJECTIVES[head.objective].takes_tau else None,
        "lr": protocol.heads.lr if head.lr is None else head.lr,
        "weight_decay": (
            protocol.heads.weight_decay if head.weight_decay is None else head.weight_decay
        ),
    }


def expected_prior(probe: Probe, prior: Tensor) -> Tensor | None:
    """Class shares (C,) that predictions are made for; None: as each objective decides.

    Args:
        probe: Its ``test_prior`` counts.
        prior: Class shares of the training images, shape (C,).
    """
    if probe.test_prior == "objective":
        return None
    if probe.test_prior == "train":
        return prior
    if probe.test_prior == "balanced":
        return torch.full_like(prior, 1 / len(prior))
    return torch.tensor(probe.test_prior, dtype=prior.dtype, device=prior.device)
