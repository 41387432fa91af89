"""GH in pretraining: the clean pass, and what a run logs of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslgh.data import EvalDataset, training_set
from sslgh.engine.fsdp import FSDPError
from sslgh.engine.harmonizing import HarmonizedTraining
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import Pretraining, pretrain
from sslgh.harmonize import GeometricHarmonizer
from sslgh.preprocessing import Preprocessing


def test_a_clean_pass_embeds_every_image_without_augmentation_and_leaves_no_trace(tiny) -> None:
    recipe = tiny(gh=True)
    images = training_set(recipe.data)
    stage = Pretraining(recipe, init_accelerator(), images)
    before = {name: value.clone() for name, value in stage.method.state_dict().items()}
    stage.method.train()
    random = torch.get_rng_state()
    rows = stage.harmonizing.clean_rows()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in stage.method.modules())
    for name, value in stage.method.state_dict().items():
        assert torch.equal(value, before[name]), name
    stage.method.eval()
    preprocessing = Preprocessing.of(stage.method.backbone).at(stage.image_size)
    dataset = EvalDataset(images, preprocessing)
    pixels = torch.stack([dataset[i][0] for i in range(len(images))])
    with torch.no_grad():
        features = stage.method.backbone(preprocessing.normalize(pixels))
        torch.testing.assert_close(rows.features, features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            rows.embeddings, stage.method.projector(features), rtol=1e-3, atol=1e-4
        )


def test_an_image_that_cannot_be_read_has_no_row(tiny, tmp_path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    data = f"data={{source: folder, root: {folder}, size: 16}}"
    recipe = tiny(data, gh=True)
    images = training_set(recipe.data)
    (folder / "07.png").write_bytes(b"no image")
    rows = Pretraining(recipe, init_accelerator(), images).harmonizing.clean_rows()
    broken = ~rows.features.isfinite().all(1)
    assert broken.nonzero().flatten().tolist() == [images.names.index("07.png")]


def rows_of_a_part(recipe) -> list | None:
    from sslgh.distributed import dist_info  # noqa: PLC0415 - runs in a worker

    stage = Pretraining(recipe, init_accelerator(), training_set(recipe.data))
    rows = stage.harmonizing.clean_rows()
    return None if dist_info().rank else [part.tolist() for part in rows]


def test_two_processes_see_the_rows_of_one(tiny, two_processes) -> None:
    recipe = tiny(gh=True)
    stage = Pretraining(recipe, init_accelerator(), training_set(recipe.data))
    alone = stage.harmonizing.clean_rows()
    features, embeddings = two_processes(rows_of_a_part, recipe)[0]
    torch.testing.assert_close(torch.tensor(features), alone.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(embeddings), alone.embeddings, rtol=1e-3, atol=1e-4)


def lines(directory: Path, kind: str) -> list[dict]:
    text = (directory / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["kind"] == kind]


def test_a_run_on_which_kinds_are_not_visible_trains_as_the_plain_one_and_says_so(
    tiny, tmp_path, capsys
) -> None:
    """The clean pass and the refreshes draw no random numbers."""
    gh = pretrain(
        tiny(f"run_dir={tmp_path}/gh", "harmonize.visibility=0", gh=True), init_accelerator()
    )
    assert "not visible in the embeddings" in capsys.readouterr().err
    plain = pretrain(tiny(f"run_dir={tmp_path}/plain"), init_accelerator())
    losses = [[line["loss"] for line in lines(run, "train")] for run in (gh, plain)]
    assert losses[0] == losses[1]
    assert {line["gh"] for line in lines(gh, "train")} == {0}
    assert [line["accepted"] for line in lines(gh, "refresh")] == [False] * 3


def test_a_run_on_which_they_are_assumed_visible_weighs_and_pulls(tiny, tmp_path) -> None:
    run = pretrain(
        tiny(f"run_dir={tmp_path}/gh", "harmonize.visibility=1", "train.epochs=6", gh=True),
        init_accelerator(),
    )
    refreshes = lines(run, "refresh")
    assert [line["epoch"] for line in refreshes] == [1, 2, 3, 4, 5]
    assert all(line["accepted"] for line in refreshes)
    shares = [line["gh_share"] for line in lines(run, "train") if line["epoch"] >= 1]
    assert min(shares) > 0.2
    assert refreshes[-1]["weight_std"] > 0


def test_a_clean_pass_with_sharded_weights_is_refused(tiny) -> None:
    stage = Pretraining(tiny(gh=True), init_accelerator(), training_set(tiny().data))

    class Sharded:
        is_fsdp2 = True

    stage.run.accelerator = Sharded()
    with pytest.raises(FSDPError, match=r"set harmonize\.clean: false"):
        HarmonizedTraining(stage.run, stage.method, stage.aux, 8)


def test_the_weight_is_adapted_once_per_epoch_however_many_micro_batches(tiny, monkeypatch) -> None:
    adapt, epochs = GeometricHarmonizer.adapt, []

    def counted(self, share):
        epochs.append(int(self.epoch))
        adapt(self, share)

    monkeypatch.setattr(GeometricHarmonizer, "adapt", counted)
    parts = "train.accumulation=2", "train.allow_fewer_negatives=true"
    pretrain(tiny(*parts, gh=True), init_accelerator())
    assert epochs == sorted(set(epochs))
    assert len(epochs) >= 3
