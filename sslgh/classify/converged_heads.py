"""Heads trained until they have converged, however many samples there are.

Shapes: N samples, F features, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from sslgh.classify.ensemble import Classifier, Head, HeadEnsemble
from sslgh.classify.heads import class_means
from sslgh.classify.objectives import OBJECTIVES
from sslgh.classify.plateau_heads import Plateau, plateau_heads
from sslgh.classify.solver import Limits, head_loss, optimum, rescaled_optimum, with_ones
from sslgh.classify.train_heads import Problem, base_head, feature_scaler, trained_head
from sslgh.functional.margin_rules import Margins, balanced_margins


@dataclass(frozen=True)
class Convergence:
    """Linear heads on standardized features by L-BFGS, in float64 and on all samples at once.

    The optimum does not depend on a seed. What is drawn or scheduled in other trainings is taken at its limit:
    classes drawn equally often are weights 1 / (C pi_y), so that ``crt`` is ``balanced``; of a deferred rule
    (``ldam-drw``) the last stage remains; the factors of ``lws`` have the L2 of the weights that they scale.
    ``focal`` is not convex: it descends from weights 0 to a point without slope. Heads with an embedding layer
    are trained by `plateau_heads`.

    Attributes:
        weight_decay: L2, adds weight_decay / 2 |w|^2 to the mean loss; biases are not decayed.
        tolerance: Largest entry of the gradient at the end.
        max_iterations: Iterations of L-BFGS; a head that needs more raises a ``ConvergenceWarning``.
        embedding: Training of heads with an embedding layer.
    """

    weight_decay: float
    tolerance: float = 1e-6
    max_iterations: int = 5000
    embedding: Plateau = field(default_factory=Plateau)

    def fit(self, problem: Problem, heads: Sequence[Head]) -> HeadEnsemble:
        """Train heads; as `train_heads`, but that S is 1 for a head without an embedding layer."""
        features = problem.features.double()
        scaler = problem.scaler or feature_scaler(features)
        features = (features - scaler.mean) / scaler.scale
        problem = replace(problem, features=features, counts=problem.counts.double())
        keys = {head: trained_head(head, self)._replace(lr=None) for head in heads}
        wanted = list(dict.fromkeys(keys.values()))
        linear = [head for head in wanted if OBJECTIVES[head.objective].embedding is None]
        bases = [base_head(head) for head in linear if OBJECTIVES[head.objective].rescales]
        design = with_ones(features)
        trained: dict[Head, Classifier] = {}
        disable = None if problem.progress else True  # None: no bar in a log file
        # Each once, and before the heads that rescale it.
        order = dict.fromkeys([*bases, *linear])
        for head in tqdm(order, desc="heads", unit="head", disable=disable, leave=False):
            trained[head] = self._linear(problem, design, head, trained)
        if layered := [head for head in wanted if head not in trained]:
            trained |= plateau_heads(problem, layered, self.embedding)
        return HeadEnsemble(
            heads,
            {head: trained[key] for head, key in keys.items()},
            prior=problem.prior,
            num_samples=len(problem.labels),
            scaler=scaler,
        )

    def _linear(
        self, problem: Problem, design: Tensor, head: Head, trained: Mapping[Head, Classifier]
    ) -> Classifier:
        """The head without an embedding layer at its optimum; ``trained`` holds the one that it rescales, if any."""
        objective = OBJECTIVES[head.objective]
        if objective.decision == "means":
            return class_means(problem.features, problem.labels, len(problem.counts), 1)
        margins = _margins(problem, head)
        assert head.weight_decay is not None  # trained_head has set it
        decay, focus = head.weight_decay, objective.focus
        loss = head_loss(design, problem.labels, margins, decay=decay, focus=focus)
        limits = Limits(self.max_iterations, self.tolerance)
        if not objective.rescales:
            return _classifier(optimum(loss, limits))
        base = _parameters(trained[base_head(head)])
        return _classifier(rescaled_optimum(loss, limits, base))


def _margins(problem: Problem, head: Head) -> Margins:
    """Margins at the limit of a long training."""
    objective, prior = OBJECTIVES[head.objective], problem.prior
    if objective.sampling == "class-balanced":
        return balanced_margins(prior)
    size = len(problem.labels)
    return objective.margins_of(prior, tau=head.tau, num_samples=size, deferred=True)


def _parameters(classifier: Classifier) -> Tensor:
    return torch.cat([classifier.weight[0], classifier.bias[0, :, None]], 1)


def _classifier(parameters: Tensor) -> Classifier:
    """Parameters (C, F + 1) as a classifier of one seed."""
    return Classifier(parameters[None, :, :-1], parameters[None, :, -1])
