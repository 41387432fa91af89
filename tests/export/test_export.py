"""Exports: reloaded by the other library's own code, in a process of its own, to the same outputs."""

import copy
import json
import re

import pytest
import torch

from sslgh.cli import main
from sslgh.export import exported as module
from sslgh.export import hugging_face_export
from sslgh.export.constructors import Constructor, held_by
from sslgh.export.exported import Loading, MismatchError, largest_difference
from sslgh.export.preprocessing_code import timm_config, torchvision_lines
from sslgh.export.source import read_source
from sslgh.models import CosineClassifier, build_backbone, save_backbone
from sslgh.models.serialization import save_classifier
from sslgh.preprocessing import Preprocessing

NAMES = ["ape", 'bee "x"', "cat\nand dog"]


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def make_run(folder, name, size, *, classifier=None, **shape):
    """A run directory with drawn weights whose preprocessing is neither timm's default nor torchvision's."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    shape = {"stem": "imagenet", "width": 1.0, "patch": None} | shape
    backbone = build_backbone(name, **shape, image_size=size)
    with torch.no_grad():  # as trained ones, norms are not ones and zeros
        for norm in backbone.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2)
    own = {
        "mean": [0.3, 0.4, 0.5],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "crop_of": [7, 8],
    }
    card = {"backbone": name, **shape, "image_size": size, "method": "drawn"}
    save_backbone(backbone, folder, card | Preprocessing().card() | own)
    if classifier is not None:
        save_classifier(classifier(backbone.num_features), folder, NAMES)
    return folder


def linear(features):
    return torch.nn.Linear(features, 3)


def differences(text):
    return [float(found) for found in re.findall(r"largest difference (\S+),", text)]


def test_a_resnet_with_classifier_goes_to_timm_and_torchvision(tmp_path, capsys) -> None:
    run = make_run(tmp_path / "run", "resnet18", 40, classifier=linear)
    assert call("export", run, "--to", "timm,torchvision") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"exporting {run} (resnet18, 40 x 40 pixels, 512 features, 3 classes)")
    assert len(differences(text)) == 2
    assert max(differences(text)) < 1e-4
    for target in ("timm", "torchvision"):
        scope = {}
        moved = (run / "export" / target).rename(tmp_path / f"{target} moved")
        scope["__file__"] = str(moved / "load.py")
        exec((moved / "load.py").read_text(), scope)
        assert scope["model"].fc.out_features == 3


def test_a_vit_of_another_patch_goes_to_the_hub_with_names_and_card(
    tmp_path, capsys, monkeypatch
) -> None:
    # Importing transformers takes long; a slow test does.
    monkeypatch.setattr(hugging_face_export, "_by_transformers", lambda *_: [])
    run = make_run(tmp_path / "run", "vit_tiny", 32, patch=8, stem="cifar", classifier=linear)
    assert call("export", run, "--to", "hf", "-o", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "timm, from the folder for the hub, in a process of its own" in text
    assert max(differences(text)) < 1e-4
    config = json.loads((tmp_path / "out" / "hf" / "config.json").read_text())
    assert config["label_names"] == NAMES
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["model_args"] == {"img_size": 32, "patch_size": 8, "dynamic_img_size": True}
    assert config["pretrained_cfg"]["mean"] == [0.3, 0.4, 0.5]
    card = (tmp_path / "out" / "hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\npipeline_tag: image-classification\n")
    assert all(f"## {part}" in card for part in ("Use", "Data", "Metrics", "Limits", "Recipe"))
    assert "timm.create_model('hf-hub:USER/NAME', pretrained=True)" in card
    assert "turned upright by their EXIF orientation" in card
    for name in ("README.md", "load.py", "config.json"):
        assert str(tmp_path) not in (tmp_path / "out" / "hf" / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("classifier", [None, linear])
def test_transformers_loads_the_folder_for_the_hub(tmp_path, capsys, classifier) -> None:
    pytest.importorskip("transformers")
    run = make_run(tmp_path / "run", "vit_tiny", 32, patch=8, stem="cifar", classifier=classifier)
    assert call("export", run, "--to", "hf") == 0
    text = capsys.readouterr().out
    assert "\ntransformers, in a process of its own" in text
    assert max(differences(text)) < 1e-4


def test_any_network_goes_to_onnx_with_its_cosine_classifier(tmp_path, capsys) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    run = make_run(
        *(tmp_path / "run", "resnet18", 16),
        stem="cifar",
        width=0.125,
        classifier=lambda f: CosineClassifier(f, 3),
    )
    assert call("export", run, "--to", "onnx") == 0
    assert max(differences(capsys.readouterr().out)) < 1e-4
    model = onnx.load(run / "export" / "onnx" / "model.onnx")
    held = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert held["class_names"] == NAMES
    assert held["preprocessing"]["mean"] == [0.3, 0.4, 0.5]
    (given,) = model.graph.input
    assert given.type.tensor_type.shape.dim[0].dim_param  # a name, not a number


@pytest.mark.parametrize(
    ("name", "size", "shape", "targets", "words"),
    [
        (
            "resnet18",
            16,
            {"stem": "cifar"},
            "timm,torchvision",
            "timm builds no resnet18 with the cifar stem",
        ),
        (
            "resnet18",
            32,
            {"width": 0.5},
            "torchvision",
            "0.5 times the channels for 32 pixels; export it to onnx",
        ),
        ("resnet20", 16, {"stem": "cifar"}, "hf", "timm builds no resnet20"),
        (
            "vit_tiny",
            32,
            {"patch": 8},
            "torchvision",
            "torchvision builds no vit_tiny with patches of 8",
        ),
        (
            "convnext_tiny",
            32,
            {"patch": 2},
            "timm",
            "timm builds no convnext_tiny with patches of 2",
        ),
    ],
)
def test_what_a_target_cannot_hold_is_refused_in_a_sentence(
    tmp_path, capsys, name, size, shape, targets, words
) -> None:
    run = make_run(tmp_path / "run", name, size, **shape)
    assert call("export", run, "--to", targets) == 2
    err = capsys.readouterr().err.strip()
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (run / "export").exists()


def test_a_classifier_of_cosines_is_refused_and_its_backbone_taken(tmp_path, capsys) -> None:
    run = make_run(tmp_path / "run", "resnet18", 32, classifier=lambda f: CosineClassifier(f, 3))
    assert call("export", run, "--to", "torchvision") == 2
    assert "or its backbone alone: --features" in capsys.readouterr().err
    assert call("export", run, "--to", "torchvision", "--features") == 0
    assert "512 features)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("{run}", "--to", "timm,coreml"),
            "--to: unknown key 'coreml'; known keys: hf, onnx, timm, torchvision",
        ),
        (("{run}/gone", "--to", "timm"), "is not a run directory with a trained backbone"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(
    tmp_path, capsys, words, message
) -> None:
    run = make_run(tmp_path / "run", "resnet18", 16, stem="cifar", width=0.125)
    assert call("export", *(word.format(run=run) for word in words)) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_classify_is_named_with_what_it_can_do(tmp_path, capsys) -> None:
    (tmp_path / "my kinds").mkdir()
    (tmp_path / "my kinds" / "photo_classifier.json").write_text("{}")

    assert call("export", tmp_path / "my kinds", "--to", "onnx") == 2

    error = capsys.readouterr().err
    assert f"{tmp_path / 'my kinds'} is a folder of sslgh classify" in error
    assert f"sslgh predict '{tmp_path / 'my kinds'}' NEW_PHOTOS" in error
    assert "give the run directory of sslgh pretrain or sslgh finetune" in error


def test_another_network_or_preprocessing_is_noticed(tmp_path, monkeypatch) -> None:
    source = read_source(make_run(tmp_path / "run", "resnet18", 16, stem="cifar", width=0.125))
    lines = ["import numpy", "def f(image): return numpy.zeros(64)"]
    with pytest.raises(
        MismatchError, match=r"library gives outputs that differ by .* from those of"
    ):
        largest_difference(Loading("library", lines, "numpy.stack([f(i) for i in images])"), source)
    with pytest.raises(MismatchError, match=r"gives outputs of \(2, 3\), expected \(3, 64\)"):
        largest_difference(Loading("library", lines, "numpy.zeros((2, 3))"), source)
    with pytest.raises(MismatchError, match=r"cannot load what was exported .*NameError"):
        largest_difference(Loading("library", [], "nothing"), source)
    with pytest.raises(MismatchError, match="AssertionError"):
        largest_difference(Loading("sslgh", ["import sslgh"], "0"), source)
    assert module.TOLERANCE <= 1e-3


def test_preprocessing_that_forgets_the_orientation_is_noticed(tmp_path) -> None:
    run = make_run(tmp_path / "run", "resnet18", 16, stem="cifar", width=0.125)
    source = read_source(run)
    source = source._replace(backbone=torch.nn.Flatten())
    lines = ["import torch", *torchvision_lines(source.preprocess)]
    outputs = "torch.stack([preprocess(image) for image in images]).flatten(1)"
    assert largest_difference(Loading("it", lines, outputs), source).largest < 1e-3
    lines = [line for line in lines if "exif_transpose" not in line]
    with pytest.raises(MismatchError, match="differ by"):
        largest_difference(Loading("it", lines, outputs), source)


def test_a_model_that_takes_the_weights_and_gives_other_outputs_is_not_taken(tmp_path) -> None:
    source = read_source(make_run(tmp_path / "run", "resnet18", 16, stem="cifar", width=0.125))
    double = copy.deepcopy(source.backbone)
    double.register_forward_hook(lambda _, inputs, output: 2 * output)
    right = copy.deepcopy(source.backbone)
    models = {"double": double, "right": right}
    constructors = [Constructor("double", {}), Constructor("right", {})]

    def build(constructor):
        return models[constructor.name], source.backbone.state_dict()

    assert held_by("it", source, constructors, build).model is right
    with pytest.raises(ValueError, match="it builds no resnet18 with the cifar stem"):
        held_by("it", source, constructors[:1], build)


@pytest.mark.parametrize("size", [32, 64, 96, 224, 336, 518])
@pytest.mark.parametrize("crop", [(224, 256), (7, 8), (224, 232), (95, 100), (1, 1), (10, 11)])
def test_timm_resizes_to_the_same_side(size, crop) -> None:
    preprocess = Preprocessing(size, crop)
    assert int(size / timm_config(preprocess)["crop_pct"]) == preprocess.resize
