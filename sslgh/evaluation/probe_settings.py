"""Plans of probes: checked settings, the heads to choose from, and the settings that results record.

Shapes: N images, F features, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import torch
from torch import Tensor

from sslgh.classify import OBJECTIVES, Head, HeadTraining, select_heads
from sslgh.classify.objectives import check_shares
from sslgh.data import DataError
from sslgh.evaluation.protocols import NEIGHBOR_TEMPERATURE, PROTOCOLS, Protocol
from sslgh.recipe import RecipeError
from sslgh.recipe.errors import unknown_key
from sslgh.recipe.schema import Probe

# Settings of which a probe may give several values.
CHOICES = ("tau", "lr", "weight_decay")


@dataclass(frozen=True)
class ProbePlan:
    """A probe whose settings fit together.

    Attributes:
        protocol: The protocol that the probe names.
        probe: Settings of the recipe.
        heads: For each objective the heads to choose from; empty if the nearest neighbors vote.
    """

    protocol: Protocol
    probe: Probe
    heads: Mapping[str, Sequence[Head]]

    def check_data(self, *, num_classes: int, num_images: int) -> None:
        """Refuse training data that do not fit the plan.

        Raises:
            RecipeError: If ``test_prior`` is no distribution over the classes.
            DataError: If there are too few images.
        """
        probe, name = self.probe, self.protocol.name
        if isinstance(probe.test_prior, tuple):
            _check_test_prior(probe.test_prior, num_classes)
        several = max(map(len, (probe.tau, probe.lr, probe.weight_decay))) > 1
        if several and probe.folds > num_images:
            raise DataError(
                f"probe {name} asks for {probe.folds} folds of {num_images} training images; lower folds"
            )
        if not self.heads and probe.neighbors > num_images:
            raise DataError(
                f"probe knn asks {probe.neighbors} neighbors to vote, but there are {num_images} training images; lower "
                "neighbors"
            )

    def settings(self) -> dict[str, object]:
        """``settings`` of a result: all that the protocol reads; of several values all."""
        probe, settings = self.probe, asdict(self.protocol)
        if probe.features != "last":
            settings["features"] = probe.features
        if not self.heads:
            return settings | {"neighbors": probe.neighbors, "temperature": NEIGHBOR_TEMPERATURE}
        settings["objectives"] = list(self.heads)
        if self.protocol.train == "longtail":
            settings["test_prior"] = _plain(probe.test_prior)
            settings |= {name: _plain(v) for name in CHOICES if (v := getattr(probe, name))}
        if any(len(heads) > 1 for heads in self.heads.values()):
            settings["folds"] = probe.folds
        with_term = [name for name in self.heads if OBJECTIVES[name].embedding]
        if with_term:
            settings["embedding"] = {name: _term_settings(name) for name in with_term}
        if with_term or isinstance(self.protocol.heads, HeadTraining):
            settings["seeds"] = probe.seeds  # an optimum has none
        return settings

    def select(self, features: Tensor, labels: Tensor, num_classes: int) -> dict[str, Head]:
        """One head per objective: the only one, or the best in cross-validation on training features (N, F)."""
        assert self.protocol.heads is not None
        best: Mapping[str, Head] = {}
        if several := {name: heads for name, heads in self.heads.items() if len(heads) > 1}:
            best = select_heads(
                features,
                labels,
                num_classes=num_classes,
                candidates=several,
                training=self.protocol.heads,
                folds=self.probe.folds,
                progress=True,
            )
        return {name: best.get(name, heads[0]) for name, heads in self.heads.items()}

    def chosen(self, selected: Mapping[str, Head]) -> dict[str, dict[str, float | None]]:
        """``chosen`` of a result: settings of the selected heads of objectives that had a choice."""
        assert self.protocol.heads is not None
        training = self.protocol.heads
        rate = training.lr if isinstance(training, HeadTraining) else None
        decay = training.weight_decay
        return {
            name: {
                "tau": head.tau if OBJECTIVES[name].takes_tau else None,
                "lr": rate if head.lr is None else head.lr,
                "weight_decay": decay if head.weight_decay is None else head.weight_decay,
            }
            for name, head in selected.items()
            if len(self.heads[name]) > 1
        }

    def expected_prior(self, prior: Tensor) -> Tensor | None:
        """Class shares (C,) that predictions are made for, given the training prior; None: the objective's."""
        shares = self.probe.test_prior
        if shares == "objective":
            return None
        if shares == "train":
            return prior
        if shares == "balanced":
            return torch.full_like(prior, 1 / len(prior))
        return torch.tensor(shares, dtype=prior.dtype, device=prior.device)


def plan_probes(probes: Sequence[Probe]) -> list[ProbePlan]:
    """Plans of all probes of a recipe; raises as `plan_probe`."""
    return [plan_probe(probe, f"probe.{position}") for position, probe in enumerate(probes)]


def plan_probe(probe: Probe, key: str = "probe") -> ProbePlan:
    """Check the settings of a probe and list its heads: every combination of what an objective reads.

    Raises as `check_settings`.

    Examples:
        >>> probe = Probe(protocol="longtail", objectives=("ce", "la"), tau=(0.5, 1))
        >>> {name: len(heads) for name, heads in plan_probe(probe).heads.items()}
        {'ce': 1, 'la': 2}
    """
    names = check_settings(probe, key)
    heads = {name: _heads(name, probe) for name in names}
    return ProbePlan(PROTOCOLS[probe.protocol], probe, heads)


def check_settings(probe: Probe, key: str) -> Sequence[str]:
    """The objectives of a probe, at the key path of its recipe, if its settings go together.

    Raises:
        RecipeError: If they do not, or a name is unknown.
    """
    if probe.protocol not in PROTOCOLS:
        raise RecipeError(f"{key}.protocol: {unknown_key(probe.protocol, PROTOCOLS)}")
    for position, objective in enumerate(probe.objectives):
        if objective not in OBJECTIVES:
            raise RecipeError(f"{key}.objectives.{position}: {unknown_key(objective, OBJECTIVES)}")
    names, read = _names_and_settings(probe, PROTOCOLS[probe.protocol])
    for name, field in Probe.model_fields.items():
        # By value: a full config, as a run keeps it, sets every key.
        given = getattr(probe, name)
        trained = name == "objectives" and given == names
        if name not in {"protocol", "features", *read} and given != field.default and not trained:
            only = f", but only {', '.join(read)}" if read else ""
            raise RecipeError(
                f"probe {probe.protocol} does not read {name}{only}; leave {name} out"
            )
    if probe.test_prior != "objective":
        _check_shiftable(names)
    return names


def _names_and_settings(probe: Probe, protocol: Protocol) -> tuple[Sequence[str], Sequence[str]]:
    """Objectives of a probe, and its settings that make a difference under the protocol."""
    drawn = isinstance(protocol.heads, HeadTraining)  # from a start, and in an order: by a seed
    if protocol.heads is None:
        return (), ["neighbors"]
    if protocol.train != "longtail":  # all else is fixed
        return ("ce",), ["seeds"] if drawn else []
    unread = {"protocol", "features", "neighbors", *(() if drawn else ("lr",))}
    return probe.objectives, [name for name in Probe.model_fields if name not in unread]


def _check_test_prior(shares: tuple[float, ...], num_classes: int) -> None:
    if len(shares) != num_classes:
        raise RecipeError(
            f"test_prior has {len(shares)} class shares, but there are {num_classes} classes; give one per class"
        )
    try:
        check_shares(torch.tensor(shares))
    except ValueError as error:
        raise RecipeError(f"test_prior: {error}") from error


def _check_shiftable(names: Sequence[str]) -> None:
    if fixed := [name for name in names if not OBJECTIVES[name].shifts]:
        able = [name for name, objective in OBJECTIVES.items() if objective.shifts]
        raise RecipeError(
            f"test_prior cannot be reached by {', '.join(fixed)}, whose scores are no posterior of known class "
            f"shares; leave test_prior out or use {', '.join(able)}"
        )


def _heads(name: str, probe: Probe) -> list[Head]:
    objective = OBJECTIVES[name]
    if objective.decision == "means":  # nothing is trained
        return [Head(name)]
    taus = probe.tau if objective.takes_tau else (1.0,)
    grid = product(taus, probe.lr or (None,), probe.weight_decay or (None,))
    return [Head(name, tau, lr, decay) for tau, lr, decay in dict.fromkeys(grid)]


def _term_settings(name: str) -> dict[str, float]:
    """Weight and settings of the embedding term of an objective."""
    objective = OBJECTIVES[name]
    term = {key: v for key, v in objective.term._asdict().items() if key != "tau"}
    return {"weight": objective.embedding_weight} | term


def _plain(value: object) -> object:
    """A value as JSON returns it: a list, or a single value."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(value) == 1 else list(value)
