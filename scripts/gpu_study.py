"""Check CUDA against the CPU, then run a study in pieces of a few minutes that survive in small files.

    .venv/bin/python scripts/gpu_study.py docs/studies/gpu-cifar100.yaml --state STATE data.root=DIR

A piece unpacks STATE/part-* (if there are any), runs `sslgh study` for --minutes, and packs what the next piece
needs: results, the warm-up's checkpoint, and the checkpoint of the arm that was stopped if there is room for it
(else the arm is begun again). Weights are packed without loss, momentum in bf16: a piece that resumes is
statistically equivalent to one that was not stopped, not the same to the bit. Exit codes are those of sslgh: 0
the study is complete, 75 run the same command again.
"""

import argparse
import io
import json
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslgh.engine.checkpoint import OPTIMIZER, write_manifest
from sslgh.engine.checkpoint_manager import list_checkpoints
from sslgh.functional import harmonization_loss, nt_xent, sinkhorn, uniform_frame
from sslgh.functional.neighbors import nearest_neighbor_votes
from sslgh.models import build_backbone
from sslgh.studies.command import StudyOptions, run_or_print
from sslgh.studies.plan import WARMUP

PART = 16 * 2**20  # bytes of a file of the state
MIB = 2**20
# What a resumed run reads, besides its checkpoint; the log has the metrics of what came before.
FILES = ("recipe.yaml", "images.json", "branched_from", "metrics.jsonl", "status.json")


def main(arguments: list[str] | None = None) -> int:
    """One piece; returns an exit code of sslgh."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-study"), help="scratch folder")
    parser.add_argument("--most", type=float, default=60.0, help="MiB of all parts together")
    options = parser.parse_intermixed_args(arguments)
    work, state = options.work, options.state
    unpack(state, work)
    checks = work / "checks.json"
    if torch.cuda.is_available() and not checks.is_file():
        found = compare(torch.device("cuda"))
        print(json.dumps(found, indent=1))
        if not all(each["right"] for each in found.values()):
            return 1
        work.mkdir(parents=True, exist_ok=True)
        checks.write_text(json.dumps(found))
    places = {"out": work / "results", "runs": work / "runs"}
    settings = StudyOptions(table=False, plot=None, block=None, minutes=options.minutes, **places)
    code = run_or_print([str(options.study), *options.overrides], settings)
    print(pack(work, state, most=int(options.most * MIB)))
    if (work / "results").is_dir():  # also as they stay in the tree
        shutil.copytree(work / "results", state / "results", dirs_exist_ok=True)
    return code


def compare(device: torch.device) -> dict[str, dict[str, Any]]:
    """Largest difference between a device and the CPU for each kernel that GH depends on, and whether it is small."""
    draws = torch.Generator().manual_seed(0)
    found = {}
    for name, work, tolerance in _kernels(draws):
        expected, got = work(torch.device("cpu")), work(device)
        error = max(
            float((a - b.cpu()).abs().max() / a.abs().max().clamp(min=1e-12))
            for a, b in zip(expected, got, strict=True)
        )
        found[name] = {"error": error, "right": error <= tolerance}
    return found


Kernel = Callable[[torch.device], list[Tensor]]


def _kernels(draws: torch.Generator) -> Iterator[tuple[str, Kernel, float]]:
    """Name, function of the device, and largest relative difference."""
    z1, z2 = torch.randn(2, 256, 128, generator=draws).unbind()
    vertices = uniform_frame(100, 128, generator=draws)
    prior = torch.rand(100, generator=draws).softmax(0)
    labels = torch.randint(10, (256,), generator=draws)
    images = torch.randn(16, 3, 32, 32, generator=draws)

    def with_gradient(
        loss: Callable[[Tensor, Tensor], Tensor], device: torch.device
    ) -> list[Tensor]:
        views = [z.to(device, copy=True).requires_grad_() for z in (z1, z2)]
        value = loss(*views)
        value.backward()
        return [value.detach(), *(view.grad for view in views if view.grad is not None)]

    def ssl(device: torch.device) -> list[Tensor]:
        return with_gradient(lambda a, b: nt_xent(a, b, temperature=0.2).mean(), device)

    def gh(device: torch.device) -> list[Tensor]:
        own = vertices.to(device), prior.to(device)
        return with_gradient(lambda a, b: harmonization_loss(a, b, *own), device)

    def transport(device: torch.device) -> list[Tensor]:
        scores = torch.nn.functional.normalize(z1 @ vertices.T).to(device)
        return [sinkhorn(scores, prior.to(device))]

    def votes(device: torch.device) -> list[Tensor]:
        rows = (z2.to(device), z1.to(device), labels.to(device))
        return [nearest_neighbor_votes(*rows, num_classes=10, neighbors=20, temperature=0.1)]

    def network(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        backbone = build_backbone("resnet18", width=0.25, image_size=32).to(device)
        features = backbone(images.to(device))
        features.square().mean().backward()
        first = next(backbone.parameters()).grad
        assert first is not None
        return [features.detach(), first]

    # Convolutions may use TF32 on a GPU: ten bits of mantissa.
    yield from (
        ("nt_xent", ssl, 1e-4),
        ("harmonization_loss", gh, 1e-3),
        ("sinkhorn", transport, 1e-3),
        ("nearest_neighbor_votes", votes, 1e-4),
        ("resnet18", network, 5e-2),
    )


def pack(work: Path, state: Path, *, most: int) -> str:
    """Write the parts of a piece's state; returns a line on what they hold.

    Args:
        work: Folder of results and runs.
        state: Folder of the parts, whose old ones are replaced.
        most: Bytes of all parts together. Results always go in; then warm-ups, then arms, while there is room.
    """
    small = [path for path in (work / "results").glob("*.json") if path.is_file()]
    small += [path for path in (work / "checks.json",) if path.is_file()]
    chosen, left_out = small, []
    data = _compressed(work, chosen)
    for run in _runs(work):
        grown = _compressed(work, [*chosen, *_needed(run)])
        if len(grown) > most:
            left_out.append(run.name)
            continue
        chosen, data = [*chosen, *_needed(run)], grown
    state.mkdir(parents=True, exist_ok=True)
    for old in state.glob("part-*"):
        old.unlink()
    count = -(-len(data) // PART)
    for number in range(count):
        (state / f"part-{number:02d}").write_bytes(data[number * PART : (number + 1) * PART])
    without = f"; no room for {', '.join(left_out)}" if left_out else ""
    return f"{len(small)} results and checks, {len(data) / MIB:.1f} MiB in {count} parts{without}"


def _runs(work: Path) -> list[Path]:
    """Run directories with a checkpoint, warm-ups first."""
    runs = [path.parent for path in (work / "runs").glob("*/*/checkpoints")]
    runs = [run for run in runs if list_checkpoints(run / "checkpoints")]
    return sorted(runs, key=lambda run: (run.name != WARMUP, run))


def _needed(run: Path) -> list[Path]:
    """Files of a run directory that a resumed run reads."""
    last = list_checkpoints(run / "checkpoints")[-1]
    files = [run.parent / "warmup.json", *(run / name for name in FILES), *sorted(last.iterdir())]
    return [path for path in files if path.is_file()]


def _compressed(work: Path, files: list[Path]) -> bytes:
    """A tar of files below ``work``: momentum in bf16, and bytes of equal significance together."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in dict.fromkeys(files):
            content = _halved(path) if path.name == OPTIMIZER else path.read_bytes()
            entry = tarfile.TarInfo(str(path.relative_to(work)))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    planes = np.frombuffer(buffer.getvalue(), dtype=np.uint8).reshape(-1, 4).T
    return zlib.compress(planes.tobytes(), level=1)


def _cast(state: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Nested dictionaries with tensors of one type turned into another; scalars such as steps stay."""
    if isinstance(state, dict):
        return {key: _cast(value, old, new) for key, value in state.items()}
    fits = isinstance(state, Tensor) and state.dtype == old and state.ndim > 0
    return state.to(new) if fits else state


def _halved(path: Path) -> bytes:
    content = io.BytesIO()
    state = torch.load(path, map_location="cpu", weights_only=True)
    torch.save(_cast(state, torch.float32, torch.bfloat16), content)
    return content.getvalue()


def unpack(state: Path, work: Path) -> None:
    """Put back what `pack` wrote; without parts nothing happens. Files that are there already stay."""
    parts = sorted(state.glob("part-*"))
    if not parts or (work / "runs").exists():
        return
    planes = zlib.decompress(b"".join(part.read_bytes() for part in parts))
    content = np.frombuffer(planes, dtype=np.uint8).reshape(4, -1).T.tobytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.extractall(work, filter="data")
    for optimizer in (work / "runs").glob(f"*/*/checkpoints/*/{OPTIMIZER}"):
        held = torch.load(optimizer, map_location="cpu", weights_only=True)
        torch.save(_cast(held, torch.bfloat16, torch.float32), optimizer)
        (optimizer.parent / "manifest.json").unlink()
        write_manifest(optimizer.parent)


if __name__ == "__main__":
    sys.exit(main())
