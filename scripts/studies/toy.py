"""A toy in which a long tail costs something: which mechanism of GH gains, in minutes instead of hours.

    python scripts/studies/toy.py
    python scripts/studies/toy.py --seeds 8 --arms plain flat clusters

Twenty classes of 800 down to 8 points: a semantic part that the views shake weakly, a part of nuisance that they
shake strongly, mixed by a fixed random network; SimCLR trains a small MLP with 24 features. The outcome is a
converged probe on 100 balanced points per class. Arms are paired over seeds: data, start and views are the
same. It is evidence on mechanisms, not on images. Every run is kept in the JSON file, which is continued, and the
table of the page next to it is written anew (docs/studies/toy.md).
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sslgh.engine.monitor.embeddings import gh_share
from sslgh.functional import effective_rank, nt_xent
from sslgh.harmonize import CleanRows, GeometricHarmonizer

FILE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "toy.json"
CLASSES, MOST, IMBALANCE, SEPARATION = 20, 800, 100, 1.6
SEMANTIC, NUISANCE, INPUT, FEATURES, EMBEDDING = 16, 24, 64, 24, 128
STEPS, BATCH, RATE = 800, 256, 0.1
PAPER = {"population": "prototypes"}
ALONE = {"weight": 0.0}  # clusters without the term
# Name -> settings of the harmonizer; what labels decide is in `run`.
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "labels: shown equally": None,
    "labels: shown by n^-1/2": None,
    "paper": PAPER,
    "flat": PAPER | {"prior": "flat"},
    "power": PAPER | {"prior": "power"},
    "clusters": {},
    "clusters, sampling": {"resample": "clusters"},
    "hierarchy, sampling": {"resample": "hierarchical"},
    "weights alone": ALONE,
    "sampling alone": ALONE | {"resample": "clusters"},
    "flat, own projector": PAPER | {"prior": "flat"},
    "clusters, sampling, own projector": {"resample": "clusters"},
    "k-means, no gate": {"resample": "clusters", "clustering": "kmeans", "visibility": 1.0},
    "control: flipping prior": PAPER,
    "control: unscaled, K = 20": PAPER | {"num_vertices": 20, "epsilon": 0.05, "temperature": 0.1},
}


class Points(NamedTuple):
    """Semantic part (N, 16), nuisance (N, 24) and class (N,) of some points."""

    semantic: Tensor
    nuisance: Tensor
    labels: Tensor


class World:
    """Classes and the map from their parts to what the network sees, a function of the seed.

    Args:
        seed: Seed of everything.
    """

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.draw = draw
        self.centers = torch.randn(CLASSES, SEMANTIC, generator=draw) / SEMANTIC**0.5 * SEPARATION
        parts = SEMANTIC + NUISANCE
        self.first = torch.randn(parts, 128, generator=draw) / parts**0.5
        self.second = torch.randn(128, INPUT, generator=draw) / 128**0.5
        order = torch.randperm(CLASSES, generator=draw).argsort().tolist()
        self.counts = [max(int(MOST * IMBALANCE ** (-r / (CLASSES - 1))), 5) for r in order]

    def points(self, counts: list[int]) -> Points:
        """So many new points of each class."""
        labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
        noise = torch.randn(len(labels), SEMANTIC, generator=self.draw) / SEMANTIC**0.5
        nuisance = torch.randn(len(labels), NUISANCE, generator=self.draw)
        return Points(self.centers[labels] + noise, nuisance, labels)

    def view(self, points: Points, index: Tensor, draw: torch.Generator) -> Tensor:
        """A random view (n, 64) of the points at ``index`` (n,)."""
        semantic, nuisance = points.semantic[index], points.nuisance[index]
        shaken = 0.75 * nuisance + 0.66 * torch.randn(nuisance.shape, generator=draw)
        semantic = semantic + 0.25 * torch.randn(semantic.shape, generator=draw)
        x = torch.tanh(torch.cat([semantic, shaken], 1) @ self.first) @ self.second
        return x + 0.05 * torch.randn(x.shape, generator=draw)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU; the last without ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Network(nn.Module):
    """Encoder, the projector that SimCLR contrasts, and the one that GH spreads: the same, or one of its own."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(mlp(INPUT, 128, 128, FEATURES), nn.ReLU())
        self.projector = mlp(FEATURES, 64, EMBEDDING)
        self.spread = mlp(FEATURES, 64, EMBEDDING) if own else self.projector


def order(arm: str, points: Points, counts: list[int], seed: int) -> Callable[[int], NDArray[Any]]:
    """Positions that an epoch shows, for an arm without resampling."""
    power = {"labels: shown equally": 1.0, "labels: shown by n^-1/2": 0.5}.get(arm)

    def shown(epoch: int) -> NDArray[Any]:
        rng = np.random.default_rng([seed, epoch])
        if power is None:
            return rng.permutation(len(points.labels))
        rates = np.array(counts, dtype=float)[points.labels.numpy()] ** -power
        return rng.choice(len(rates), len(rates), p=rates / rates.sum())

    return shown


def run(arm: str, seed: int) -> dict[str, float]:
    """Train one arm; accuracies in percent, rank of the test embeddings, and the last visibility."""
    world = World(seed)
    points = world.points(world.counts)
    torch.manual_seed(1000 + seed)
    network = Network(own="own projector" in arm)
    steps = max(1, len(points.labels) // BATCH)
    epochs = STEPS // steps
    settings = ARMS[arm]
    gh = None if settings is None else harmonizer(settings, len(points.labels), epochs, seed)
    train(arm, seed, world, points, network, gh, epochs, steps)
    network.eval()
    with torch.no_grad():
        probe, test = (world.points([count] * CLASSES) for count in (100, 200))
        draw = torch.Generator().manual_seed(9000 + seed)
        h, h_test = (
            network.encoder(world.view(p, torch.arange(len(p.labels)), draw)) for p in (probe, test)
        )
        rank = float(effective_rank(F.normalize(network.projector(h_test))))
    accuracy = probed(h, probe.labels, h_test, test.labels)
    ranked = accuracy[torch.tensor(world.counts).argsort(descending=True)]
    third = CLASSES // 3
    found = {"many": ranked[: CLASSES - 2 * third], "few": ranked[-third:], "average": ranked}
    refresh = None if gh is None else gh.last_refresh
    visibility = None if refresh is None else refresh.visibility
    return {k: 100 * float(v.mean()) for k, v in found.items()} | {
        "rank": rank,
        "visibility": visibility,
    }


def harmonizer(settings: dict[str, Any], count: int, epochs: int, seed: int) -> GeometricHarmonizer:
    """GH from a tenth of the run on."""
    every = max(1, epochs // 10)
    times = {"warmup_epochs": every, "ramp_epochs": max(1, epochs // 20), "refresh_every": every}
    clean = settings.get("population") != "prototypes"
    iterations = {"iterations": 100, "seed": seed, "clean": clean}
    return GeometricHarmonizer(count, EMBEDDING, **(times | iterations | settings))


def train(
    arm: str,
    seed: int,
    world: World,
    points: Points,
    network: Network,
    gh: GeometricHarmonizer | None,
    epochs: int,
    steps: int,
) -> None:
    """SimCLR, with what the arm adds."""
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    draw = torch.Generator().manual_seed(2000 + seed)
    plain = order(arm, points, world.counts, seed)
    for epoch in range(epochs):
        if gh is not None:
            begin(arm, gh, epoch, world, points, network)
        sampled = gh is not None and gh.resample
        shown = gh.epoch_indices(epoch) if sampled and gh is not None else plain(epoch)
        for step in range(steps):
            set_rate(optimizer, epoch * steps + step, epochs * steps)
            index = torch.from_numpy(shown[step * BATCH : (step + 1) * BATCH])
            views = [world.view(points, index, draw) for _ in range(2)]
            h1, h2 = network.encoder(torch.cat(views)).chunk(2)
            z1, z2 = network.projector(torch.cat([h1, h2])).chunk(2)
            weights = torch.ones(len(index)) if gh is None else gh.weights(index)
            loss = (weights * nt_xent(z1, z2, temperature=0.2)).sum() / weights.sum()
            if gh is not None:
                spread = common = z1, z2
                if network.spread is not network.projector:
                    spread, common = network.spread(torch.cat([h1, h2])).chunk(2), (h1, h2)
                term = gh(*spread)
                if step == 0 and gh.loss_weight > 0:
                    gh.adapt(gh_share(loss, term, *common))
                loss = loss + term
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if gh is not None:
                gh.observe(spread[0], index)


def begin(
    arm: str,
    gh: GeometricHarmonizer,
    epoch: int,
    world: World,
    points: Points,
    network: Network,
) -> None:
    """Begin an epoch of GH; when a refresh is due, embed one random view of all points in evaluation mode."""
    clean = None
    if gh.settings.clean and gh.refresh_due(epoch):
        everything = torch.arange(len(points.labels))
        network.eval()
        with torch.no_grad():
            h = network.encoder(
                world.view(points, everything, torch.Generator().manual_seed(epoch))
            )
            clean = CleanRows(h, network.spread(h))
        network.train()
    gh.begin_epoch(epoch, clean)
    if arm == "control: flipping prior" and epoch // gh.settings.refresh_every % 2:
        two = torch.zeros_like(gh.prior)
        two[:2] = torch.tensor([0.75, 0.25])
        gh.target_marginal.copy_(two)


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Warm-up over 50 steps, then a cosine."""
    factor = min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
    for group in optimizer.param_groups:
        group["lr"] = RATE * factor


def probed(h: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> Tensor:
    """Accuracy of each class (C,) of a logistic regression on standardized features."""
    mean, deviation = h.mean(0), h.std(0) + 1e-4
    x, x_test = (F.pad((part - mean) / deviation, (0, 1), value=1.0) for part in (h, test))
    weight = torch.zeros(x.shape[1], CLASSES, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight, labels) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    right = ((x_test @ weight).argmax(1) == truth).float()
    return torch.stack([right[truth == c].mean() for c in range(CLASSES)]).detach()


def table(results: dict[str, dict[str, float]], seeds: int) -> Iterator[str]:
    """Lines of the table: means, and differences to plain on the same seeds with their standard error."""
    yield "| arm | seeds | average | few | average, paired | few, paired | rank | visibility |"
    yield "|---|---|---|---|---|---|---|---|"
    for arm in ARMS:
        runs = [s for s in range(seeds) if f"{arm}/{s}" in results and f"plain/{s}" in results]
        if not runs:
            continue
        own = [results[f"{arm}/{s}"] for s in runs]
        base = [results[f"plain/{s}"] for s in runs]
        cells = [f"{statistics.mean(r[k] for r in own):.1f}" for k in ("average", "few")]
        for key in ("average", "few"):
            gains = [r[key] - b[key] for r, b in zip(own, base, strict=True)]
            cells.append(paired(gains) if arm != "plain" else "")
        rank = statistics.mean(r["rank"] for r in own)
        seen = [r["visibility"] for r in own if r["visibility"] is not None]
        cells += [f"{rank:.0f}", f"{statistics.mean(seen):.2f}" if seen else ""]
        yield f"| {arm} | {len(runs)} | " + " | ".join(cells) + " |"


def paired(gains: list[float]) -> str:
    """Mean and standard error of differences."""
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
    return f"{statistics.mean(gains):+.1f}±{error:.1f}"


def main() -> None:
    """Run what the JSON file lacks, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in range(options.seeds):
        for arm in options.arms:
            if (key := f"{arm}/{seed}") not in results:
                results[key] = {k: v and round(v, 3) for k, v in run(arm, seed).items()}
                options.out.write_text(json.dumps(results, indent=1) + "\n")
    text = "\n".join(table(results, options.seeds)) + "\n"
    print(text, end="")
    page = options.out.with_suffix(".md")
    if page.exists():
        before, _, rest = page.read_text(encoding="utf-8").partition("| arm |")
        page.write_text(f"{before}{text}\n{rest.partition(chr(10) * 2)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
