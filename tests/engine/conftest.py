"""A small run's parts, and snapshots of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslgh.engine.checkpoint import (
    Progress,
    RunEnvironment,
    Snapshot,
    copy_to_cpu,
    write_checkpoint,
)
from sslgh.harmonize import GeometricHarmonizer


@pytest.fixture
def parts() -> Callable[..., dict[str, Any]]:
    """``parts(width=3)``: module, memory and optimizer after a step."""

    def make(width: int = 3) -> dict[str, Any]:
        module = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        module(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        harmonizer = GeometricHarmonizer(20, 4, num_vertices=3)
        harmonizer.observe(torch.randn(20, 4), torch.arange(20))
        return {"module": module, "aux_state": harmonizer, "optimizer": optimizer}

    return make


@pytest.fixture
def snapshot(parts: Callable[..., dict[str, Any]]) -> Callable[..., Snapshot]:
    """``snapshot(epoch, step, total, **parts)``."""

    def take(epoch: int = 2, step: int = 1, total: int = 7, **changed: Any) -> Snapshot:
        setting = RunEnvironment(processes=2, threads=1, images="0" * 32)
        return copy_to_cpu(Progress(epoch, step, total), setting, **(parts() | changed))

    return take


@pytest.fixture
def save(snapshot: Callable[..., Snapshot]) -> Callable[..., Path]:
    """``save(folder, epoch, step, total, **parts)``: the path of a checkpoint."""

    def write(folder: Path, *place: int, **changed: Any) -> Path:
        return write_checkpoint(folder, snapshot(*place, **changed))

    return write
