"""A long-tailed linear probe as a scikit-learn classifier.

Shapes: N samples, F features, C classes.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from sslgh.classify.adam_heads import HeadTraining
from sslgh.classify.ensemble import Classifier, FeatureScaler, Head, HeadEnsemble
from sslgh.classify.objectives import OBJECTIVES, Objective
from sslgh.classify.solver import solve_heads
from sslgh.classify.train_heads import train_heads

Floats = NDArray[np.float64]

SOLVERS = ("auto", "lbfgs", "adam")
# The learning rate falls to this part of itself.
LR_FALL = 1e-2


class LongTailProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear classifier on features of a long-tailed training set, by any of `OBJECTIVES`.

    Args:
        objective: A key of `OBJECTIVES`; the default is the logit-adjusted loss (arXiv:2007.07314, eq. 10).
        tau: Strength of the adjustment, margin or normalization; read where the objective takes one.
        solver: ``lbfgs`` finds the optimum and is for convex objectives; ``adam`` is for all
            (nearest class mean: no training); ``auto`` is ``lbfgs`` where it can be.
        weight_decay: L2, adds weight_decay / 2 |w|^2 to the mean loss; scikit-learn's C is 1 / (N weight_decay).
        epochs: Passes of ``adam`` over the samples.
        lr: Learning rate of the first epoch of ``adam``; it falls exponentially to a hundredth.
        batch_size: Samples of one step of ``adam``.
        standardize: Bring every feature to mean 0 and variance 1 over the training samples.
        random_state: Draws the order of the samples for ``adam``; the start is always the same.
        test_prior: Class shares to decide for: ``balanced``, ``train``, or one for each of ``classes_``, which
            sum to 1; None: as the objective decides. It is read when predicting, so it may be changed after
            ``fit``; not for objectives whose logits estimate something unknown (`Objective.shifts`).

    Attributes:
        classes_: The C labels, sorted.
        n_features_in_: F.
        prior_: Class shares of the training samples, shape (C,).
        solver_: The solver that was used.

    Examples:
        The digits with 150 zeros and ever fewer of the others, down to 5 nines:

        >>> from sklearn.datasets import load_digits
        >>> from sklearn.metrics import balanced_accuracy_score
        >>> x, y = load_digits(return_X_y=True)
        >>> keep = [150, 102, 70, 48, 33, 22, 15, 10, 7, 5]
        >>> train = np.concatenate([np.flatnonzero(y == c)[:n] for c, n in enumerate(keep)])
        >>> test = np.setdiff1d(np.arange(len(y)), train)
        >>> for objective in ("ce", "la"):
        ...     probe = LongTailProbe(objective).fit(x[train], y[train])
        ...     print(f"{objective} {balanced_accuracy_score(y[test], probe.predict(x[test])):.2f}")
        ce 0.78
        la 0.83
    """

    def __init__(
        self,
        objective: str = "la",
        *,
        tau: float = 1.0,
        solver: Literal["auto", "lbfgs", "adam"] = "auto",
        weight_decay: float = 1e-3,
        epochs: int = 100,
        lr: float = 1e-2,
        batch_size: int = 64,
        standardize: bool = True,
        random_state: int | np.random.RandomState | None = 0,
        test_prior: Literal["balanced", "train"] | ArrayLike | None = None,
    ) -> None:
        self.objective = objective
        self.tau = tau
        self.solver = solver
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.standardize = standardize
        self.random_state = random_state
        self.test_prior = test_prior

    def fit(self, X: ArrayLike, y: ArrayLike) -> "LongTailProbe":  # noqa: N803  scikit-learn's name
        """Train on features (N, F) and N labels of any kind.

        Raises:
            ValueError: If features are not finite, there is a single class, or a parameter is not valid.
        """
        objective = self._checked_objective()
        rows, labels = validate_data(
            self, X, y, dtype=np.float64, ensure_min_samples=2, force_writeable=True
        )
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs samples of at least 2 classes, all {len(labels)} are of class {labels[0]}"
            )
        counts = torch.from_numpy(np.bincount(targets))
        prior = counts.double() / len(targets)
        self.prior_ = prior.numpy()
        self.solver_ = _chosen_solver(self.solver, self.objective)
        scaler = _feature_scaler(rows, standardize=self.standardize)
        features = (torch.from_numpy(rows) - scaler.mean) / scaler.scale
        train = self._solve if self.solver_ == "lbfgs" else self._descend
        self._head = Head(self.objective, tau=self.tau)
        self._trained = HeadEnsemble(
            [self._head],
            {self._head: train(features, torch.from_numpy(targets), prior)},
            prior=prior,
            num_samples=len(targets),
            scaler=scaler,
        )
        # A test prior that cannot be is better refused before hours of predictions.
        objective.adjustment(
            prior, tau=self.tau, num_samples=len(targets), test_prior=self._shares()
        )
        return self

    def decision_function(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Scores (N, C), or (N,) for two classes: positive for the second.

        With a ``test_prior`` they are the log posterior up to a constant.
        """
        return _binary(self._scores(X))

    def predict_proba(self, X: ArrayLike) -> Floats:  # noqa: N803
        """Softmax of the scores, (N, C).

        A posterior under ``test_prior``, or under the shares the objective decides for; of
        objectives that estimate none (`Objective.shifts`), no more than numbers in that order.
        """
        return torch.from_numpy(self._scores(X)).softmax(1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Labels (N,)."""
        best = self._scores(X).argmax(1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    @property
    def coef_(self) -> Floats:
        """Weights on the features as given, (C, F), or (1, F) for two classes.

        Raises:
            AttributeError: Before ``fit``, and for nearest class means, which decide by the cosine.
        """
        origin, units = self._affine()
        return _binary(units - origin).reshape(self.n_features_in_, -1).T

    @property
    def intercept_(self) -> Floats:
        """What is added to them, (C,), or (1,) for two classes."""
        self._affine()
        origin = torch.zeros(1, self.n_features_in_, dtype=torch.float64)
        shifted = self._trained.scores(self._head, origin, self._shares())[0].numpy()
        return _binary(shifted).reshape(-1)

    def _affine(self) -> tuple[Floats, Floats]:
        """Scores at the origin and at the unit vectors, as the objective decides."""
        check_is_fitted(self)
        if OBJECTIVES[self._head.objective].decision == "means":
            raise AttributeError(f"'{self._head.objective}' decides by the cosine and has no coef_")
        units = torch.eye(self.n_features_in_, dtype=torch.float64)
        points = torch.cat([torch.zeros_like(units[:1]), units])
        scores = self._trained.scores(self._head, points)[0].numpy()
        return scores[:1], scores[1:]

    def _scores(self, X: ArrayLike) -> Floats:  # noqa: N803
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False, force_writeable=True)
        return self._trained.scores(self._head, torch.from_numpy(rows), self._shares())[0].numpy()

    def _shares(self) -> Tensor | None:
        """The test prior (C,), or None."""
        if self.test_prior is None:
            return None
        classes = len(self.classes_)
        if isinstance(self.test_prior, str):
            named = {"balanced": np.full(classes, 1 / classes), "train": self.prior_}
            if self.test_prior not in named:
                raise ValueError(
                    "test_prior must be 'balanced', 'train', None or one share for each class, "
                    f"got '{self.test_prior}'"
                )
            return torch.from_numpy(named[self.test_prior])
        shares = np.asarray(self.test_prior, dtype=np.float64)
        if shares.shape != (classes,):
            raise ValueError(
                f"test_prior must have one share for each of the {classes} classes, got shape {shares.shape}"
            )
        return torch.from_numpy(shares)

    def _solve(self, features: Tensor, targets: Tensor, prior: Tensor) -> Classifier:
        base = _base(self.objective)
        margins = base.margins_of(prior, tau=self.tau, num_samples=len(targets))
        weight, bias = solve_heads(
            features,
            targets,
            num_classes=len(prior),
            margins=[margins],
            weight_decay=[self.weight_decay],
        )
        return Classifier(weight, bias)

    def _descend(self, features: Tensor, targets: Tensor, prior: Tensor) -> Classifier:
        order = check_random_state(self.random_state).permutation(len(targets))
        training = HeadTraining(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            lr_end=self.lr * LR_FALL,
            weight_decay=self.weight_decay,
            standardize=False,
        )
        trained = train_heads(
            features[order],
            targets[order],
            num_classes=len(prior),
            heads=[self._head],
            training=training,
        )
        weight, bias, embedding = trained.classifier(self._head)
        # Scores in float64: those of a row must not depend on the other rows.
        return Classifier(
            weight.double(), bias.double(), None if embedding is None else embedding.double()
        )

    def _checked_objective(self) -> Objective:
        """The objective, after a check of every parameter that does not need the data."""
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"unknown objective '{self.objective}'; known are {', '.join(OBJECTIVES)}"
            )
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got '{self.solver}'")
        for name in ("tau", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("epochs", "lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        return OBJECTIVES[self.objective]


def is_convex(objective: str) -> bool:
    """Whether a linear head of the objective has one optimum, which :func:`solve_heads` finds.

    Examples:
        >>> [name for name in OBJECTIVES if is_convex(name)]
        ['ce', 'balanced', 'effective', 'la', 'la-posthoc', 'la-weighted', 'balanced-softmax', 'ldam', 'equalized', 'tau-norm']
    """
    base = _base(objective)
    whole = base.deferred is None and base.embedding is None and base.sampling == "instance"
    return whole and base.focus == 0 and base.decision != "means"


def _base(objective: str) -> Objective:
    """The objective that trains the head: another one where only the decision differs."""
    own = OBJECTIVES[objective]
    return own if own.head is None or own.rescales else OBJECTIVES[own.head]


def _chosen_solver(solver: str, objective: str) -> str:
    if solver == "lbfgs" and not is_convex(objective):
        convex = ", ".join(name for name in OBJECTIVES if is_convex(name))
        raise ValueError(
            f"solver 'lbfgs' is for convex objectives ({convex}); '{objective}' needs 'adam' or 'auto'"
        )
    if solver == "auto":
        return "lbfgs" if is_convex(objective) else "adam"
    return solver


def _feature_scaler(rows: Floats, *, standardize: bool) -> FeatureScaler:
    if not standardize:
        zeros = torch.zeros(rows.shape[1], dtype=torch.float64)
        return FeatureScaler(zeros, zeros + 1)
    scaler = StandardScaler().fit(rows)
    return FeatureScaler(torch.from_numpy(scaler.mean_), torch.from_numpy(scaler.scale_))


def _binary(scores: Floats) -> Floats:
    """For two classes the score of the second minus that of the first; otherwise unchanged."""
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores
