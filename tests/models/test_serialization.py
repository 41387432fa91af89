"""Files of a network that come from outside, and what becomes of broken ones."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sslgh.models import (
    CosineClassifier,
    build_backbone,
    load_backbone,
    load_classifier,
    save_backbone,
)
from sslgh.models.serialization import load_head, read_card, save_classifier

CARD = {"backbone": "resnet20", "stem": "cifar", "width": 0.5, "patch": None, "image_size": 32}
WEIGHTS, CLASSIFIER = "backbone.safetensors", "classifier.safetensors"


@pytest.fixture
def run(tmp_path):
    save_backbone(build_backbone("resnet20", width=0.5), tmp_path, CARD)
    return tmp_path


def describe(run, **changes) -> None:
    (run / "backbone.json").write_text(json.dumps(CARD | changes))


def broken(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut in the head": content[:100],
        "cut": content[:-10],
        "pickle": pickle.dumps({"weight": [1.0]}),
        "endless head": (2**62).to_bytes(8, "little") + b"{}",
    }


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_weights_have_the_permissions_of_any_new_file(tmp_path, mask) -> None:
    before = os.umask(mask)
    try:
        save_backbone(build_backbone("resnet20", width=0.5), tmp_path, CARD)
        save_classifier(nn.Linear(5, 3), tmp_path, "abc")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.keys() >= {WEIGHTS, "backbone.json", CLASSIFIER}
    assert set(modes.values()) == {0o666 & ~mask}


def test_weights_are_written_where_permissions_cannot_be_set(tmp_path, monkeypatch) -> None:
    def refuse(path, mode):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    save_classifier(nn.Linear(5, 3), tmp_path, "abc")
    assert load_head(tmp_path).out_features == 3


@pytest.mark.parametrize("kind", broken(b""))
def test_weights_that_cannot_be_read_are_named_with_the_way_out(run, kind) -> None:
    path = run / WEIGHTS
    path.write_bytes(broken(path.read_bytes())[kind])
    with pytest.raises(ValueError, match=r"backbone\.safetensors cannot be read .*; copy it from"):
        load_backbone(run)


def test_weights_of_a_library_s_model_that_cannot_be_read_are_named(run) -> None:
    describe(run, backbone="timm:resnet10t", width=1)
    (run / WEIGHTS).write_bytes(b"")
    with pytest.raises(ValueError, match=r"backbone\.safetensors cannot be read"):
        load_backbone(run)


def test_weights_that_have_gone_are_named(run) -> None:
    (run / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"backbone\.safetensors cannot be read .*No such file"):
        load_backbone(run)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no mapping"),
        ("3", "no mapping"),
        ("null", "no mapping"),
        ('{"backbone": "res', "Unterminated string"),
        ("\udcff\udcfe", "decode"),
        ("[" * 200_000, "recursion"),
        ('{"backbone": "resnet20"}', "stem is missing"),
        ("{}", "backbone is missing"),
    ],
)
def test_a_card_that_is_none_is_refused_in_one_sentence(run, text, words) -> None:
    (run / "backbone.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        ValueError, match=rf"backbone\.json describes no backbone \(.*{words}.*\); "
    ):
        read_card(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("backbone", value) for value in (3, None, ["resnet20"])),
        *(("stem", value) for value in ("../../x", [], None)),
        *(
            ("width", value)
            for value in ("x", 0, -1, 1e5, float("nan"), float("inf"), True, 10**400)
        ),
        *(("image_size", value) for value in (-5, 0, 32.0, "32", 10**9)),
        *(("patch", value) for value in (0, -1, 0.5, "4", 10**9)),
    ],
)
def test_a_card_that_nothing_can_be_built_from_names_the_key(run, key, value) -> None:
    describe(run, **{key: value})
    with pytest.raises(
        ValueError, match=rf"describes no backbone \({key} is .*; copy it from its run"
    ):
        load_backbone(run)


@pytest.mark.parametrize(
    "changes", [{"width": 900}, {"backbone": "resnet56"}, {"backbone": "resnet18"}]
)
def test_a_card_that_does_not_fit_its_weights_is_refused_before_memory_is_asked_for(
    run, monkeypatch, changes
) -> None:
    def build(*args, **options):
        assert torch.empty(0).is_meta, "the backbone was built"
        return build_backbone(*args, **options)

    monkeypatch.setattr("sslgh.models.serialization.build_backbone", build)
    describe(run, **changes)
    message = r"is not a resnet\d+ as backbone\.json describes it: .*; take both files from one run"
    with pytest.raises(ValueError, match=message):
        load_backbone(run)


def test_weights_that_hold_more_than_the_backbone_are_refused(run) -> None:
    save_file(load_file(run / WEIGHTS) | {"other": torch.zeros(2)}, run / WEIGHTS)
    with pytest.raises(ValueError, match=r"other is \(2,\), expected nothing"):
        load_backbone(run)


def test_looking_at_the_shapes_first_draws_nothing(run) -> None:
    torch.manual_seed(0)
    build_backbone("resnet20", width=0.5)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_backbone(run)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("classifier", [nn.Linear(5, 3), CosineClassifier(5, 3, scale=7)])
def test_a_classifier_comes_back(tmp_path, classifier) -> None:
    save_classifier(classifier, tmp_path, "abc")
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_head(tmp_path)(x), classifier(x))


@pytest.mark.parametrize("kind", broken(b""))
def test_a_classifier_that_cannot_be_read_is_named(tmp_path, kind) -> None:
    save_classifier(nn.Linear(5, 3), tmp_path, "abc")
    path = tmp_path / CLASSIFIER
    path.write_bytes(broken(path.read_bytes())[kind])
    with pytest.raises(
        ValueError, match=r"classifier\.safetensors cannot be read .*; copy it from"
    ):
        load_head(tmp_path)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"weight": (3, 5)},
        {"bias": (3,)},
        {"weight": (3,), "bias": (3,)},
        {"weight": (3, 5, 1), "bias": (3,)},
        {"weight": (3, 5), "bias": (5,)},
        {"weight": (8, 0), "bias": (3,)},
        {"weight": (3, 0), "bias": (3,)},
        {"weight": (3, 5), "scale": (2,)},
        {"weight": (3, 5), "scale": (1,), "bias": (3,)},
    ],
)
def test_tensors_that_make_no_classifier_are_named(tmp_path, shapes) -> None:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / CLASSIFIER)
    with pytest.raises(ValueError, match=r"is no classifier, but holds \{.*; copy it from its run"):
        load_head(tmp_path)


@pytest.fixture
def finetuned(run):
    """A run whose classifier has three classes."""
    torch.manual_seed(0)
    head = nn.Linear(load_backbone(run)[0].num_features, 3)
    save_classifier(head, run, ("caf\u00e9", "dog", "eel"))
    return run, head


def test_a_classifier_is_its_backbone_and_its_head_with_the_names_of_its_classes(finetuned) -> None:
    run, head = finetuned
    images = torch.randn(2, 3, 32, 32)
    network, card = load_classifier(run)
    assert not network.training
    assert torch.equal(network(images), head(load_backbone(run)[0](images)))
    assert {key: card[key] for key in [*CARD, "class_names"]} == CARD | {
        "class_names": ["caf\u00e9", "dog", "eel"]
    }


def test_class_names_of_older_runs_come_from_the_record_of_their_images(finetuned) -> None:
    run, _ = finetuned
    (run / "classifier.json").unlink()
    assert load_classifier(run)[1]["class_names"] == ["0", "1", "2"]
    (run / "images.json").write_text(json.dumps({"class_names": []}))
    assert load_classifier(run)[1]["class_names"] == ["0", "1", "2"]
    (run / "images.json").write_text(json.dumps({"class_names": ["x", "y", "z"]}))
    assert load_classifier(run)[1]["class_names"] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"class_names": ["x"]}', r"names 1 classes and classifier\.safetensors has 3; take both"),
        ("{", r"classifier\.json cannot be read; copy it from its run again"),
        ("[]", r"classifier\.json cannot be read; copy it from its run again"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(finetuned, text, sentence) -> None:
    run, _ = finetuned
    (run / "classifier.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_classifier(run)


def test_a_head_of_another_backbone_is_refused(run) -> None:
    save_classifier(nn.Linear(5, 3), run, "abc")
    with pytest.raises(ValueError, match=r"takes 5 features and .* gives 32; take both files from"):
        load_classifier(run)
