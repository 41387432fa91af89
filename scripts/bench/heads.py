"""Time many heads trained at once against the same heads trained one by one, and one against scikit-learn.

    python scripts/bench/heads.py            # 5,000 samples, 128 features, 10 classes, batches of 128
    python scripts/bench/heads.py --quick    # a fifth of the samples, once, and no larger problem

All times are of this run, in this process, one after another; compare the ratios, not the seconds.
"""

import argparse
import importlib.util
import itertools
import resource
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from sslgh.classify import Head, HeadTraining, train_heads
from sslgh.classify.heads import HeadwiseAdam
from sslgh.functional.groups import class_accuracy
from sslgh.functional.margin_rules import plain_margins

OBJECTIVES = ("la", "la-weighted", "ldam", "equalized")
TAUS, RATES, DECAYS = (0.5, 1.0), (1e-3, 3e-3, 1e-2), (1e-4, 1e-3)
SWEEP = [
    Head(objective, tau=tau, lr=lr, weight_decay=decay)
    for objective, tau, lr, decay in itertools.product(OBJECTIVES, TAUS, RATES, DECAYS)
]
SETTINGS = {"batch_size": 128, "lr": 1e-2, "lr_end": 1e-4, "weight_decay": 1e-3}


class Data(NamedTuple):
    """Long-tailed blobs: features (N, F) and labels (N,)."""

    features: Tensor
    labels: Tensor


def blobs(samples: int, features: int, classes: int, *, imbalance: float, seed: int) -> Data:
    """Gaussian classes whose sizes fall exponentially; the same centers for every seed."""
    shares = imbalance ** (-torch.arange(classes) / (classes - 1))
    counts = (samples * shares / shares.sum()).round().long().clamp(min=1)
    labels = torch.arange(classes).repeat_interleave(counts)
    centers = torch.randn(classes, features, generator=torch.Generator().manual_seed(99)) / 5
    noise = torch.randn(len(labels), features, generator=torch.Generator().manual_seed(seed))
    return Data(centers[labels] + noise, labels)


def seconds(work: Callable[[], object]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def train(data: Data, classes: int, heads: list[Head], training: HeadTraining) -> object:
    """Train heads together."""
    return train_heads(*data, num_classes=classes, heads=heads, training=training)


def torch_loop(data: Data, classes: int, head: Head, training: HeadTraining) -> None:
    """The single run that one would write without this package: `nn.Linear`, `torch.optim.Adam`."""
    linear = torch.nn.Linear(data.features.shape[1], classes)
    column = torch.bincount(data.labels, minlength=classes).log()
    optimizer = torch.optim.Adam(linear.parameters(), lr=head.lr, weight_decay=head.weight_decay)
    for _ in range(training.epochs):
        for rows in torch.randperm(len(data.labels)).split(training.batch_size):
            optimizer.zero_grad()
            logits = linear(data.features[rows]) + head.tau * column
            torch.nn.functional.cross_entropy(logits, data.labels[rows]).backward()
            optimizer.step()


def sweep(data: Data, classes: int, training: HeadTraining, repeats: int) -> None:
    """48 heads together and one after another, in turns; medians."""
    train(data, classes, SWEEP[:2], training)
    rows = []
    for _ in range(repeats):
        together = seconds(lambda: train(data, classes, SWEEP, training))
        singly = seconds(lambda: [train(data, classes, [head], training) for head in SWEEP])
        loops = seconds(lambda: [torch_loop(data, classes, head, training) for head in SWEEP])
        rows.append((together, singly, loops, singly / together, loops / together))
    together, singly, loops, faster, than_loops = torch.tensor(rows).median(0).values.tolist()
    print(f"  48 heads together               {together:8.2f} s")
    print(f"  48 heads one by one             {singly:8.2f} s   {faster:.1f} times as long")
    print(f"  48 nn.Linear + Adam loops       {loops:8.2f} s   {than_loops:.1f} times as long")
    print(
        f"  one head                        {singly / 48:8.2f} s   {together / singly * 48:.1f} make 48"
    )


def optimizers(features: int, classes: int, steps: int) -> None:
    """A step of the stacked Adam against `torch.optim.Adam` with one parameter group per head."""
    shape = classes, features + 1
    heads = torch.zeros(1, len(SWEEP), *shape)
    rates, decays = torch.tensor([[head.lr, head.weight_decay] for head in SWEEP]).T
    ours = HeadwiseAdam([heads], lr=rates, weight_decay=[decays])
    groups = []
    for head in SWEEP:
        weight = torch.zeros(shape, requires_grad=True)
        weight.grad = torch.randn(shape)
        groups.append({"params": [weight], "lr": head.lr, "weight_decay": head.weight_decay})
    theirs, gradient = torch.optim.Adam(groups), torch.randn(heads.shape)
    stacked = seconds(lambda: [ours.step([gradient]) for _ in range(steps)]) / steps
    grouped = seconds(lambda: [theirs.step() for _ in range(steps)]) / steps
    print(f"  a step of the stacked Adam      {stacked * 1e3:8.2f} ms")
    print(
        f"  torch.optim.Adam with 48 groups {grouped * 1e3:8.2f} ms  {grouped / stacked:.1f} times as long"
    )


def against_scikit_learn(data: Data, test: Data, classes: int) -> None:
    """One head of cross-entropy, its test accuracy by Adam, by scikit-learn and by our solver."""
    decay = SETTINGS["weight_decay"]
    # With the protocol's rate 30 epochs end short of the optimum that the others compute, on the long tail above all.
    for lr in (SETTINGS["lr"], 0.1):
        training = HeadTraining(epochs=30, **SETTINGS | {"lr": lr})
        start = time.perf_counter()
        trained = train_heads(*data, num_classes=classes, heads=[Head("ce")], training=training)
        answers = trained.predict(Head("ce"), test.features)[0]
        report(f"one head, Adam from {lr}, 30 epochs", start, answers, test)

    scale, mean = torch.std_mean(data.features, dim=0, correction=0)
    train_x, test_x = ((part.features - mean) / scale for part in (data, test))
    start = time.perf_counter()
    oracle = LogisticRegression(C=1 / (len(data.labels) * decay), tol=1e-6, max_iter=1000)
    oracle.fit(train_x.numpy(), data.labels.numpy())
    report("scikit-learn", start, torch.from_numpy(oracle.predict(test_x.numpy())), test)

    if importlib.util.find_spec("sslgh.classify.solver") is None:
        return
    from sslgh.classify.solver import solve_heads  # noqa: PLC0415

    start = time.perf_counter()
    plain = plain_margins(torch.bincount(data.labels, minlength=classes) / len(data.labels))
    weight, bias = solve_heads(
        train_x, data.labels, num_classes=classes, margins=[plain], weight_decay=[decay]
    )
    answers = (test_x.double() @ weight[0].double().T + bias[0].double()).argmax(1)
    report("our solver", start, answers, test)


def report(name: str, start: float, answers: Tensor, test: Data) -> None:
    """One line: time since ``start``, accuracy and balanced accuracy."""
    took = time.perf_counter() - start
    right = (answers == test.labels).double().mean()
    balanced = class_accuracy(answers, test.labels, int(test.labels.max()) + 1).mean()
    print(f"  {name:<33} {took:6.2f} s   accuracy {right:.4f}, balanced {balanced:.4f}")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the samples, one repeat")
    # One: on a shared machine threads wait for each other in small products, and the ratios are of the machine.
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"threads: {options.threads}")
    for samples, features, classes, epochs in ((5000, 128, 10, 5), (10_847, 512, 100, 1)):
        if options.quick and classes == 100:
            continue
        data = blobs(
            samples // 5 if options.quick else samples, features, classes, imbalance=100, seed=0
        )
        training = HeadTraining(epochs=epochs, **SETTINGS)
        print(
            f"{len(data.labels)} samples, {features} features, {classes} classes, {epochs} epochs"
        )
        memory(data, classes)
        sweep(data, classes, training, 1 if options.quick or classes == 100 else 3)
        optimizers(features, classes, 100)
        if classes == 10:
            test = blobs(20_000, features, classes, imbalance=1, seed=1)
            against_scikit_learn(data, test, classes)


def memory(data: Data, classes: int) -> None:
    """How far 48 heads raise the highest memory of the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(data, classes, SWEEP, HeadTraining(epochs=1, **SETTINGS))
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"  peak memory of 48 heads         {more / 1024:8.0f} MiB on top of {before / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    main()
