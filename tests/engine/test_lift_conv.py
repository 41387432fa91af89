"""The recipe lift-conv on the real weights of EfficientNet-Lite0 and real images, from end to end.

.venv/bin/python -m pytest -m slow tests/engine/test_lift_conv.py

Images: a folder with train/ and test/ per class, by SSLGH_STEEL (the surface defects of docs/which_start.md, 486 and 360).
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslgh.engine.finetuning import finetune
from sslgh.engine.launch import init_accelerator
from sslgh.evaluation import evaluate_run
from sslgh.models.initial import initial_backbone
from sslgh.recipe.named import load_recipes, recipe_root
from sslgh.recipe.schema import Model

IMAGES = Path(os.environ.get("SSLGH_STEEL", "steel-lt"))


@pytest.mark.slow
@pytest.mark.skipif(not IMAGES.is_dir(), reason=f"no images at {IMAGES}; set SSLGH_STEEL")
def test_norms_and_the_last_stage_of_lite0_learn_and_the_rest_stays(tmp_path) -> None:
    words = [f"data.root={IMAGES}/train", f"data.test_root={IMAGES}/test", f"run_dir={tmp_path}"]
    recipe = load_recipes([str(recipe_root() / "folder" / "lift-conv.yaml"), *words])[0]
    directory = finetune(recipe, init_accelerator())
    plain = initial_backbone(Model(init="package:efficientnet-lite0"), 224).state_dict()
    found = load_file(directory / "backbone.safetensors")
    moved = {name for name, value in plain.items() if not torch.equal(found[name], value)}
    last = {name for name in plain if name.startswith(("blocks.6.", "conv_head.", "bn2."))}
    norms = {name.rpartition(".")[0] for name in plain if name.endswith("running_mean")}
    assert moved <= last | {name for name in plain if name.rpartition(".")[0] in norms}
    assert {"bn1.weight", "blocks.3.1.bn2.bias", "blocks.6.0.conv_pw.weight"} <= moved
    assert json.loads((directory / "backbone.json").read_text())["interpolation"] == "bicubic"
    (result,) = evaluate_run(recipe, init_accelerator())
    assert result.scores["la"].metrics["thresholds"]["average"].mean > 0.95
