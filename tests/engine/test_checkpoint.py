import pytest
import torch
from torch import nn

from sslgh.engine.checkpoint import (
    CheckpointError,
    Progress,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from sslgh.harmonize import GeometricHarmonizer


def parts(width: int = 3) -> dict[str, object]:
    method = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    method(torch.randn(8, 4)).square().mean().backward()
    optimiser.step()
    harmonizer = GeometricHarmonizer(20, 4, num_vertices=3)
    harmonizer.observe(torch.randn(20, 4), torch.arange(20))
    return {"module": method, "memory": harmonizer, "optimiser": optimiser}


def save(folder, progress=Progress(2, 1, 7), keep=2, **changed):  # noqa: B008
    return save_checkpoint(folder, progress, keep=keep, **(parts() | changed))


def test_everything_comes_back(tmp_path) -> None:
    saved, fresh = parts(), parts()
    path = save(tmp_path, **saved)
    assert load_checkpoint(path, **fresh) == Progress(2, 1, 7)
    for name in ("module", "memory"):
        for key, value in saved[name].state_dict().items():
            assert torch.equal(fresh[name].state_dict()[key], value)
    buffers = [
        o.state_dict()["state"][0]["momentum_buffer"]
        for o in (saved["optimiser"], fresh["optimiser"])
    ]
    assert torch.equal(*buffers)


def test_only_the_latest_are_kept_and_nothing_half_written_is_listed(tmp_path) -> None:
    for total in (10, 9, 100):
        save(tmp_path, Progress(0, 0, total))
    (tmp_path / ".step-000000101.tmp").mkdir()
    (tmp_path / "step-000000102").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-000000010",
        "step-000000100",
    ]


def test_saving_a_step_again_replaces_it(tmp_path) -> None:
    save(tmp_path)
    method = parts()["module"]
    path = save(tmp_path, module=method)
    fresh = parts()
    load_checkpoint(path, **fresh)
    assert torch.equal(fresh["module"][0].weight, method[0].weight)


@pytest.mark.parametrize(
    "file", ["module.safetensors", "memory.safetensors", "optimiser.pt", "progress.json"]
)
def test_a_truncated_file_is_noticed_and_named(tmp_path, file) -> None:
    path = save(tmp_path)
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path, **parts())


def test_a_checkpoint_of_another_model_is_refused(tmp_path) -> None:
    path = save(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_checkpoint(path, **parts(width=5))


def test_a_checkpoint_of_another_format_is_refused(tmp_path) -> None:
    path = save(tmp_path)
    (path / "progress.json").write_text('{"format": 99, "epoch": 0, "step": 0, "total": 0}')
    with pytest.raises(CheckpointError, match="checkpoint format 99, this sslgh goes on from 2"):
        load_checkpoint(path, **parts())
