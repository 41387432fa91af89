import errno
import json
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from sslgh.engine.checkpoint import (
    CheckpointError,
    Progress,
    RunEnvironment,
    load_checkpoint,
    read_progress,
)


def test_everything_comes_back(tmp_path, parts, save) -> None:
    saved, fresh = parts(), parts()
    path = save(tmp_path, **saved)
    assert load_checkpoint(path, **fresh) == Progress(2, 1, 7)
    assert read_progress(path) == (Progress(2, 1, 7), RunEnvironment(2, 1, "0" * 32))
    for name in ("module", "aux_state"):
        for key, value in saved[name].state_dict().items():
            assert torch.equal(fresh[name].state_dict()[key], value)
    buffers = [
        o.state_dict()["state"][0]["momentum_buffer"]
        for o in (saved["optimizer"], fresh["optimizer"])
    ]
    assert torch.equal(*buffers)


def test_a_snapshot_is_not_touched_by_training_that_goes_on(parts, snapshot) -> None:
    held = parts()
    taken = snapshot(**held)
    before = {name: value.clone() for name, value in held["module"].state_dict().items()}
    momentum = held["optimizer"].state_dict()["state"][0]["momentum_buffer"].clone()
    held["module"](torch.randn(8, 4)).square().sum().backward()
    held["optimizer"].step()
    held["aux_state"].observe(torch.randn(20, 4), torch.arange(20))
    assert all(torch.equal(taken.module[name], value) for name, value in before.items())
    assert not torch.equal(before["0.weight"], held["module"][0].weight)
    assert torch.equal(taken.optimizer["state"]["0.weight"]["momentum_buffer"], momentum)
    assert any(
        not torch.equal(taken.aux_state[name], value)
        for name, value in held["aux_state"].state_dict().items()
    )


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_checkpoint_before_the_first_update_changes_nothing_and_comes_back(
    tmp_path, parts, save, kind
) -> None:
    held, fresh = parts(), parts()
    for each in (held, fresh):  # the last layer gets no gradient, and has no state either
        each["module"].append(torch.nn.Linear(3, 2))
        each["optimizer"] = kind(each["module"].parameters(), lr=0.1, weight_decay=0.1)
    path = save(tmp_path, **held)
    assert not held["optimizer"].state
    load_checkpoint(path, **fresh)
    assert not fresh["optimizer"].state
    held["module"][0](torch.ones(2, 4)).sum().backward()
    held["optimizer"].step()
    load_checkpoint(save(tmp_path, **held), **fresh)
    assert len(fresh["optimizer"].state) == len(held["optimizer"].state)


def test_the_state_of_the_optimizer_goes_by_names_and_groups_keep_their_settings(
    tmp_path, parts, save
) -> None:
    def grouped(order: int) -> dict:
        held = parts()
        weight, *others = held["module"].parameters()
        groups = [{"params": [weight], "lr_scale": 0.5}, {"params": others}]
        held["optimizer"] = torch.optim.SGD(groups[::order], lr=0.1, momentum=0.9)
        held["module"](torch.randn(8, 4)).square().mean().backward()
        held["optimizer"].step()
        return held

    saved, fresh = grouped(1), grouped(1)
    path = save(tmp_path, **saved)
    state = torch.load(path / "optimizer.pt", weights_only=True)
    assert set(state["state"]) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert state["param_groups"][0]["params"] == ["0.weight"]
    fresh["optimizer"].param_groups[0]["lr_scale"] = 9.0
    load_checkpoint(path, **fresh)
    assert fresh["optimizer"].param_groups[0]["lr_scale"] == 0.5
    for one, other in zip(saved["module"].parameters(), fresh["module"].parameters(), strict=True):
        buffers = [
            held["optimizer"].state[p]["momentum_buffer"]
            for held, p in ((saved, one), (fresh, other))
        ]
        assert torch.equal(*buffers)
    with pytest.raises(CheckpointError, match="lists other parameters than the optimizer has"):
        load_checkpoint(path, **grouped(-1))


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path, parts, save, name) -> None:
    path = save(tmp_path)
    tensors = load_file(path / "module.safetensors")
    del tensors[name]
    save_file(tensors, path / "module.safetensors")
    with pytest.raises(CheckpointError, match=f"belongs to another model .*{name}"):
        load_checkpoint(path, **parts())


def test_saving_a_step_again_replaces_it(tmp_path, parts, save) -> None:
    save(tmp_path)
    held = parts()
    path = save(tmp_path, **held)
    fresh = parts()
    load_checkpoint(path, **fresh)
    assert torch.equal(fresh["module"][0].weight, held["module"][0].weight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000000007"]


def test_a_folder_that_has_gone_is_not_made_again(tmp_path, save) -> None:
    with pytest.raises(FileNotFoundError, match="its folder has gone"):
        save(tmp_path / "mount" / "checkpoints")
    assert not (tmp_path / "mount").exists()


FILES = ("module.safetensors", "aux_state.safetensors", "optimizer.pt", "progress.json")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_disk_that_fills_in_any_file_leaves_what_was_there_and_no_half(
    tmp_path, monkeypatch, save, name
) -> None:
    before = save(tmp_path, 0, 0, 1)
    held = {file: file.read_bytes() for file in before.iterdir()}
    import sslgh.engine.checkpoint as module  # noqa: PLC0415

    original = module._flush

    def flush(path) -> None:
        if path.name == name and path.parent.name.startswith(".step"):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path)

    monkeypatch.setattr(module, "_flush", flush)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path, 0, 1, 2)
    assert {file: file.read_bytes() for file in before.iterdir()} == held
    assert [entry.name for entry in tmp_path.iterdir()] == [before.name]


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_noticed_and_named(tmp_path, parts, save, file) -> None:
    path = save(tmp_path)
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path, **parts())


@pytest.mark.parametrize(
    "state",
    [[1, 2], 3, {"state": 3}, {"state": [], "param_groups": 3}, {"state": {}, "param_groups": []}],
)
def test_a_state_that_is_none_of_an_optimizer_is_damage(tmp_path, parts, save, state) -> None:
    path = save(tmp_path)
    torch.save(state, path / "optimizer.pt")
    with pytest.raises(
        CheckpointError, match=r"step-000000007 is damaged \(.*\); move it elsewhere"
    ):
        load_checkpoint(path, **parts())


def test_a_checkpoint_of_another_model_is_refused(tmp_path, parts, save) -> None:
    path = save(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another model") as caught:
        load_checkpoint(path, **parts(width=5))
    assert "damaged" not in str(caught.value)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, parts, save) -> None:
    path = save(tmp_path)
    (path / "progress.json").write_text(
        '{"format": 99, "epoch": 0, "step_in_epoch": 0, "global_step": 0}'
    )
    with pytest.raises(CheckpointError, match="checkpoint format 99, this sslgh resumes from 4"):
        load_checkpoint(path, **parts())


class Payload:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return threading.Thread.start, (threading.Thread(),)


def test_no_pickle_from_outside_is_executed(tmp_path, parts, save) -> None:
    path = save(tmp_path)
    torch.save({"state": {}, "param_groups": Payload}, path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer.pt"):
        load_checkpoint(path, **parts())


def test_the_manifest_names_every_file(tmp_path, save) -> None:
    path = save(tmp_path)
    listed = json.loads((path / "manifest.json").read_text())["files"]
    assert set(listed) == set(FILES)
    assert all(entry["bytes"] == (path / name).stat().st_size for name, entry in listed.items())
