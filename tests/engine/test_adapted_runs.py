"""Adapters in both stages of training: what moves, what resumes, LIFT from end to end."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms import functional as tv

from sslgh.data import load_images, training_set
from sslgh.engine.class_means import start_from_class_means
from sslgh.engine.finetuning import Finetuning, finetune
from sslgh.engine.launch import init_accelerator
from sslgh.engine.memory import memory_need
from sslgh.engine.pretraining import Pretraining, pretrain
from sslgh.evaluation import evaluate_run
from sslgh.models import build_backbone, load_classifier
from sslgh.models.initial import initial_backbone
from sslgh.models.serialization import load_adapter
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import RecipeError, load_recipe
from sslgh.recipe.named import recipe_root
from sslgh.recipe.schema import Model

SIDE = 8
LIFT = "finetune={objective: la, classifier: cosine, cosine_scale: 25, classifier_start: class-means, five_crop: 2, policy: none}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Files of drawn weights by the name of their backbone."""
    folder, files = tmp_path_factory.mktemp("drawn"), {}
    for name, shape in (("vit_tiny", {"patch": 4}), ("resnet18", {"width": 0.125})):
        torch.manual_seed(7)
        backbone = build_backbone(name, image_size=SIDE, **shape)
        torch.save(backbone.state_dict(), folder / f"{name}.pt")
        files[name] = folder / f"{name}.pt"
    return files


@pytest.fixture
def adapted(tiny, drawn):
    """``adapted("lora", *overrides)``: a recipe of two epochs that starts from drawn weights."""

    def make(name, *words, backbone="vit_tiny", labels=False):
        shape = "patch: 4" if backbone == "vit_tiny" else "width: 0.125"
        model = f"backbone: {backbone}, {shape}, init: {drawn[backbone]}, adapter: {{name: {name}}}"
        stage = ("method=null", LIFT, "optim.warmup_epochs=0") if labels else ()
        head = "projector: {hidden: 16, out: 8}"
        return tiny(f"model={{{model}, {head}}}", "train.epochs=2", *stage, *words)

    return make


def weights(directory):
    return load_file(directory / "backbone.safetensors")


@pytest.mark.parametrize("name", ["lora", "adaptformer", "norm"])
@pytest.mark.parametrize("labels", [False, True])
def test_a_run_moves_its_adapter_alone_and_saves_it_both_ways(adapted, drawn, name, labels) -> None:
    recipe = adapted(name, labels=labels)
    directory = (finetune if labels else pretrain)(recipe, init_accelerator())
    found, before = weights(directory), torch.load(drawn["vit_tiny"])
    moved = {key for key in before if not torch.equal(found[key], before[key])}
    part = {"lora": "attn.qkv.weight", "adaptformer": "nothing", "norm": "norm"}[name]
    assert moved == {key for key in before if part in key}
    start = initial_backbone(Model(**recipe.model.model_dump() | {"adapter": None}), SIDE)
    alone = load_adapter(start, directory / "adapter.safetensors", image_size=SIDE)
    x = torch.randn(4, 3, SIDE, SIDE)
    again = initial_backbone(Model(init=str(directory)), SIDE)
    with torch.no_grad():
        torch.testing.assert_close(alone(x), again.eval()(x), atol=1e-5, rtol=1e-5)
    card = json.loads((directory / "backbone.json").read_text())
    assert card["adapter"]["name"] == [name]
    assert card.get("adaptformer") == {"adaptformer": 1 if labels else 8}.get(name)


@pytest.mark.parametrize(("name", "labels"), [("lora", False), ("adaptformer", True)])
def test_a_stopped_run_resumes_to_the_same_bits(
    adapted, tmp_path, stopped_at, name, labels
) -> None:
    stage = finetune if labels else pretrain
    whole = stage(adapted(name, f"run_dir={tmp_path}/a", labels=labels), init_accelerator())
    recipe = adapted(name, f"run_dir={tmp_path}/b", labels=labels)
    with stopped_at(3):
        stage(recipe, init_accelerator())
    stage(recipe, init_accelerator())
    for file in ("backbone.safetensors", "adapter.safetensors"):
        first, second = (load_file(folder / file) for folder in (whole, recipe.directory))
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["lora", "norm"])
def test_only_the_adapter_and_heads_are_optimized_and_counted_as_memory(adapted, name) -> None:
    recipe = adapted(name)
    stages = [
        Pretraining(each, init_accelerator(), training_set(recipe.data))
        for each in (
            recipe,
            recipe.model_copy(update={"model": recipe.model.model_copy(update={"adapter": None})}),
        )
    ]
    small, full = stages
    held = {id(p) for group in small.run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.method.parameters() if p.requires_grad}
    share = sum(p.numel() for p in small.method.backbone.parameters() if p.requires_grad)
    total = sum(p.numel() for p in full.method.backbone.parameters())
    assert share < 0.03 * total
    needs = [memory_need(stage, SIDE).fixed for stage in stages]
    # Gradients, momentum and its copy for a checkpoint of what is frozen are not needed.
    assert needs[1] - needs[0] > 2 * 4 * 0.9 * total


def test_lift_runs_from_end_to_end_and_judges_five_crops(adapted) -> None:
    recipe = adapted("adaptformer", labels=True)
    lift = load_recipe(recipe_root() / "folder" / "lift.yaml")
    for key in ("objective", "classifier", "cosine_scale", "classifier_start"):
        assert getattr(lift.finetune, key) == getattr(recipe.finetune, key)
    assert (lift.finetune.five_crop, lift.train.epochs, lift.train.batch_size) == (24, 10, 128)
    assert (lift.optim.lr, lift.optim.momentum, lift.optim.weight_decay) == (0.01, 0.9, 5e-4)
    directory = finetune(recipe, init_accelerator())
    (result,) = evaluate_run(recipe, init_accelerator())
    assert "five crops averaged" in result.summary
    # Independently: torchvision's crops through the saved network, one by one.
    network, _ = load_classifier(directory)
    test, right, seen = load_images(recipe.data, "test"), torch.zeros(10), torch.zeros(10)
    for position, label in enumerate(test.labels.tolist()):
        crops = tv.five_crop(tv.resize(test.image(position), SIDE + 2), SIDE)
        batch = torch.stack([Preprocessing().normalize(tv.pil_to_tensor(crop)) for crop in crops])
        with torch.no_grad():
            right[label] += int(network(batch).mean(0).argmax()) == label
        seen[label] += 1
    average = result.scores["la"].metrics["thresholds"]["average"].mean
    assert abs(float((right / seen).mean()) - average) < 0.01


def test_the_classifier_starts_at_the_normalized_class_means_of_the_frozen_features(
    adapted,
) -> None:
    recipe = adapted("lora", labels=True)
    images = training_set(recipe.data)
    stage = Finetuning(recipe, init_accelerator(), images)
    start_from_class_means(stage.network, images, recipe, size=SIDE, accelerator=init_accelerator())
    plain = initial_backbone(Model(**recipe.model.model_dump() | {"adapter": None}), SIDE).eval()
    preprocess = Preprocessing.of(plain)
    for label in range(10):
        own = [i for i, y in enumerate(images.labels) if y == label]
        with torch.no_grad():
            rows = [plain(preprocess(images.image(i))[None])[0].double() for i in own]
        mean = torch.stack(rows).mean(0)
        expected = (mean / mean.norm()).float()
        torch.testing.assert_close(
            stage.network.classifier.weight[label], expected, atol=1e-5, rtol=1e-4
        )


def test_norms_and_the_last_stage_are_lifts_form_for_convolutions(adapted, drawn) -> None:
    recipe = adapted("[norm, blocks]", backbone="resnet18", labels=True)
    found, before = weights(finetune(recipe, init_accelerator())), torch.load(drawn["resnet18"])
    moved = {key for key in before if not torch.equal(found[key], before[key])}
    assert {"bn1.weight", "bn1.running_mean", "layer4.0.conv1.weight"} <= moved
    assert "layer3.0.conv1.weight" not in moved


def test_a_teacher_follows_an_adapted_student(adapted) -> None:
    pretrain(adapted("norm", "method={name: byol}", "train.epochs=1"), init_accelerator())


def test_a_run_goes_on_from_one_with_an_adaptformer(adapted, tmp_path) -> None:
    first = pretrain(adapted("adaptformer", "train.epochs=1"), init_accelerator())
    second = adapted("norm", f"run_dir={tmp_path}/second", "train.epochs=1").model_copy()
    model = Model(init=str(first), projector={"hidden": 16, "out": 8})
    second = second.model_copy(update={"model": model})
    directory = pretrain(second, init_accelerator())
    card = json.loads((directory / "backbone.json").read_text())
    assert card["adaptformer"] == 8
    assert initial_backbone(Model(init=str(directory)), SIDE).blocks[0].adaptformer is not None
    shutil.rmtree(first)


def test_settings_that_train_nothing_are_refused(tiny, adapted) -> None:
    with pytest.raises(RecipeError, match=r"model\.adapter needs model\.init"):
        tiny("model={adapter: {name: lora}}")
    with pytest.raises(RecipeError, match="leave one out"):
        adapted("lora", "finetune.freeze=true", labels=True)
    with pytest.raises(RecipeError, match="needs classifier: cosine"):
        tiny("method=null", "finetune={classifier_start: class-means}")
