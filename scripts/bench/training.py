"""Speed of the parts that sslgh claims to be fast, each against its yardstick in the same run.

    python scripts/bench/training.py

NT-Xent against lightly's, the whole GH term, and a ResNet-18 step with and without GH. Medians of
interleaved repetitions, since machines are shared; quote the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from sslgh.functional import harmonization_loss, nt_xent, uniform_frame
from sslgh.harmonize import GeometricHarmonizer
from sslgh.methods import SimCLR
from sslgh.models import build_backbone


def interleaved(repeats: int, **jobs: Callable[[], None]) -> dict[str, float]:
    """Median seconds of each job, run in turn so that noise strikes all alike."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(repeats + 2):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_ >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def backward(loss: Callable[[Tensor, Tensor], Tensor], device: str) -> Callable[[], None]:
    """Forward and backward of a loss on two views of 512 x 128."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(512, 128, generator=generator).to(device).requires_grad_() for _ in "12"]

    def job() -> None:
        for view in views:
            view.grad = None
        loss(*views).backward()

    return job


def losses(device: str, repeats: int) -> None:
    """NT-Xent and the GH term at batch 512, D = 128, K = 100."""
    vertices, prior = uniform_frame(100, 128).to(device), torch.rand(100, device=device)
    lightly = NTXentLoss(temperature=0.2)
    found = interleaved(
        repeats,
        ours=backward(lambda a, b: nt_xent(a, b, temperature=0.2).mean(), device),
        lightly=backward(lightly, device),
        gh=backward(lambda a, b: harmonization_loss(a, b, vertices, prior), device),
        gh_stopped=backward(
            lambda a, b: harmonization_loss(a, b, vertices, prior, tolerance=1e-3), device
        ),
    )
    print(f"NT-Xent 512 x 128, forward and backward: {1e3 * found['ours']:.1f} ms")
    print(
        f"  lightly's NTXentLoss: {1e3 * found['lightly']:.1f} ms, ratio {found['lightly'] / found['ours']:.1f}"
    )
    print(f"GH term, K = 100, 300 Sinkhorn iterations on both views: {1e3 * found['gh']:.1f} ms")
    print(f"  stopped at tolerance 1e-3: {1e3 * found['gh_stopped']:.1f} ms")


def step(device: str, batch: int, precision: str, gh: bool) -> Callable[[], None]:
    """One SimCLR step of a full-width ResNet-18 on 32-pixel images, everything but the loading."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet18")
    method = SimCLR(backbone, SimCLR.projector_spec.build(backbone))
    method.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9)
    harmonizer = GeometricHarmonizer(10 * batch, 128, num_vertices=min(100, batch), ramp_epochs=1)
    harmonizer.started.fill_(0)
    harmonizer.to(device).begin_epoch(1)
    index = torch.arange(batch, device=device)
    views = [
        torch.randn(batch, 3, 32, 32).to(device, memory_format=torch.channels_last) for _ in "12"
    ]

    def job() -> None:
        optimizer.zero_grad()
        weights = harmonizer.weights(index) if gh else None
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            output = method(views, weights)
        loss = output.loss + harmonizer(*output.embeddings) if gh else output.loss
        loss.backward()
        optimizer.step()
        if gh:
            harmonizer.observe(output.embeddings[0], index)

    return job


def steps(device: str, batch: int, repeats: int) -> None:
    """Images/s with and without GH."""
    for precision in ("fp32", "bf16"):
        jobs = {name: step(device, batch, precision, gh=name == "gh") for name in ("plain", "gh")}
        found = interleaved(repeats, **jobs)
        plain, gh = (batch / found[name] for name in ("plain", "gh"))
        print(
            f"ResNet-18 at 32 px, batch {batch}, {precision}: {plain:.1f} images/s, "
            f"with GH {gh:.1f}: GH costs {100 * (found['gh'] / found['plain'] - 1):+.1f} %"
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="of each loss")
    parser.add_argument("--step-repeats", type=int, default=7, help="of each training step")
    parser.add_argument("--batch", type=int, default=128, help="images of a training step")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    losses(device, arguments.repeats)
    steps(device, arguments.batch, arguments.step_repeats)


if __name__ == "__main__":
    main()
