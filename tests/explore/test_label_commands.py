"""``sslgh classify``, ``predict`` and ``select`` as a user types them."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sslgh
from sslgh.explore import default_model
from sslgh.explore.predict import UNSURE
from sslgh.models import build_backbone, pretrained

# Their quality is tested elsewhere.
pytestmark = pytest.mark.usefixtures("short_heads")
SIZES = {"red fox": 6, "sea": 5, "<i>moss": 4}
COLORS = {"red fox": (200, 60, 40), "sea": (30, 80, 200), "<i>moss": (60, 180, 60)}


def paint(folder, sizes, *, seed):
    """Photos of one color per kind, with patches; the kind of each by its name."""
    generator = np.random.default_rng(seed)
    kinds = {}
    for kind, size in sizes.items():
        for _ in range(size):
            name = f"{len(kinds):03d}, {kind[:3].strip('<')}.png"
            # Patches of one's own: photos of a plain color would be copies of each other.
            patches = generator.normal(0, 45, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
            noise = generator.normal(0, 8, (16, 16, 3)) + patches + COLORS[kind]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name)
            kinds[name] = kind
    return kinds


def write_labels(path, kinds, separator=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([("file", "kind"), *kinds.items()])
    return path


@pytest.fixture(scope="module")
def work(call, short_heads, run, tmp_path_factory):
    """A folder of photos of which half are labeled, and the classifier that was made from them."""
    folder = tmp_path_factory.mktemp("work")
    kinds = paint(folder / "photos", {"red fox": 14, "sea": 8, "<i>moss": 6}, seed=0)
    known = dict(list(kinds.items())[::2]) | {list(kinds)[1]: ""}
    write_labels(folder / "labels.csv", known)
    code = call(
        "classify",
        folder / "photos",
        folder / "labels.csv",
        "--out",
        folder / "kinds",
        "--model",
        run,
    )
    assert code == 0
    return folder, kinds, known


def test_classify_keeps_what_prediction_needs_and_names_the_next_step(
    read, work, run, capsys
) -> None:
    folder, _, known = work
    card = json.loads((folder / "kinds" / "photo_classifier.json").read_text())

    assert card["class_names"] == ["<i>moss", "red fox", "sea"]
    assert sum(card["labels"]) == len(known) - 1
    assert card["model"] == str(run)
    assert card["preprocessing"]["image_size"] == 16
    assert card["objective"] == "la"
    assert card["out_of_fold"]["photos"] == sum(card["labels"])
    assert set(card["out_of_fold"]["heads"]) == {"ce", "la", "elm"}
    assert card["out_of_fold"]["heads"]["la"]["average"] > 0.7
    rows = read(folder / "kinds" / "next_to_label.csv")
    assert len(rows) == 15 - 1
    assert all(row["kind"] == "" and row["reason"] for row in rows)
    assert {row["file"] for row in rows}.isdisjoint({f for f, kind in known.items() if kind})


def test_a_second_call_embeds_nothing_again_and_says_what_it_made(call, work, run, capsys) -> None:
    folder, _, _ = work

    assert (
        call(
            "classify",
            folder / "photos",
            folder / "labels.csv",
            "--out",
            folder / "kinds",
            "--model",
            run,
        )
        == 0
    )

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("embedding 0 of 28 photos")
    assert "rows without a kind, left out: 1" in lines
    assert any(re.match(r"  la +\d+\.\d ± \d", line) for line in lines)
    assert any(
        re.match(r".*kinds: photo_classifier\.json, photo_classifier\.safetensors, likely", line)
        for line in lines
    )
    assert lines[-2].startswith("mean accuracy over kinds ")
    assert lines[-1].startswith("next: sslgh predict ")


def test_what_is_filled_in_is_kept_and_joins_the_labels(
    call, read, work, run, tmp_path, capsys
) -> None:
    folder, kinds, known = work
    out, table = tmp_path / "kinds", folder / "labels.csv"
    words = ("classify", folder / "photos", table, "--out", out, "--model", run)
    assert call(*words) == 0
    assert f" {table} {out / 'next_to_label.csv'} --out {out}" in capsys.readouterr().out
    rows = read(out / "next_to_label.csv")
    filled = {row["file"]: kinds[row["file"]] for row in rows[:3]}
    write_labels(out / "next_to_label.csv", filled)
    kept = (out / "next_to_label.csv").read_bytes()

    both = ("classify", folder / "photos", table, out / "next_to_label.csv", *words[3:])
    assert call(*both) == 0
    assert (out / "next_to_label.csv").read_bytes() == kept
    card = json.loads((out / "photo_classifier.json").read_text())
    assert sum(card["labels"]) == len(known) - 1 + 3
    again = read(out / "next_to_label_2.csv")
    assert {row["file"] for row in again}.isdisjoint(filled)

    capsys.readouterr()
    other = write_labels(tmp_path / "other.csv", {next(iter(known)): "elk"})
    assert call("classify", folder / "photos", table, other, *words[3:]) == 2
    message = (
        f"gives a file another kind than a table before it: {next(iter(known))} (elk, in {table}"
    )
    assert message in capsys.readouterr().err


def test_a_call_that_was_stopped_is_gone_on_with(call, work, run, tmp_path, capsys) -> None:
    folder, _, _ = work
    words = ("classify", folder / "photos", folder / "labels.csv", "--out", tmp_path / "kinds")
    (tmp_path / "kinds" / "embeddings.npz.shards").mkdir(parents=True)
    shard = tmp_path / "kinds" / "embeddings.npz.shards" / "1.npz"
    shard.write_bytes((folder / "kinds" / "embeddings.npz").read_bytes())

    assert call(*words, "--model", run) == 0

    assert capsys.readouterr().out.startswith("embedding 0 of 28 photos")


def test_the_default_network_is_loaded_again_as_it_was(call, tmp_path, monkeypatch, capsys) -> None:
    def drawn(name, image_size, pretrained):
        torch.manual_seed(0)
        return build_backbone(name, image_size=image_size)

    # As with a network: weights of another side than their own, by a name alone.
    monkeypatch.setattr(pretrained, "build_backbone", drawn)
    monkeypatch.setattr(pretrained, "_hub_answers", lambda: True)
    monkeypatch.setattr(default_model, "DOWNLOADED", "timm:test_vit@96")
    monkeypatch.chdir(tmp_path)
    labels = write_labels(tmp_path / "labels.csv", paint(Path("photos"), dict(SIZES), seed=0))

    assert call("look", "photos") == 0
    assert call("classify", "photos", labels, "--out", "kinds") == 0
    assert call("predict", "kinds", "photos") == 0

    card = json.loads(Path("kinds/photo_classifier.json").read_text())
    assert (card["model"], card["preprocessing"]["image_size"]) == ("timm:test_vit@96", 96)


def test_embeddings_of_another_folder_or_network_are_refused(
    call, work, run, tmp_path, capsys
) -> None:
    folder, _, _ = work
    paint(tmp_path / "others", {"sea": 3}, seed=5)
    known = folder / "kinds" / "embeddings.npz"
    with np.load(known) as file:
        np.savez(tmp_path / "other.npz", **{**file, "features": file["features"][::-1]})
    words = ("classify", folder / "photos", folder / "labels.csv", "--out", tmp_path / "out")

    assert call(*words, "--embeddings", tmp_path / "other.npz") == 2
    assert "holds other features of" in capsys.readouterr().err
    write_labels(tmp_path / "l.csv", {"000, sea.png": "sea", "001, sea.png": "x"})
    assert (
        call(
            "classify",
            tmp_path / "others",
            tmp_path / "l.csv",
            "--out",
            tmp_path / "o",
            "--embeddings",
            known,
        )
        == 2
    )
    assert "holds none of the photos" in capsys.readouterr().err


def test_predict_writes_kinds_probabilities_and_a_gallery(
    call, read, work, tmp_path, capsys
) -> None:
    folder, _, _ = work
    kinds = paint(tmp_path / "new", {"red fox": 3, "sea": 2, "<i>moss": 2}, seed=9)

    assert (
        call("predict", folder / "kinds", tmp_path / "new", "-o", tmp_path / "found", "--top", 3)
        == 0
    )

    rows = read(tmp_path / "found" / "predictions.csv")
    assert {row["file"]: row["kind"] for row in rows} == kinds
    for row in rows:
        shares = [
            float(row[key]) for key in ("probability", "second_probability", "third_probability")
        ]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert shares == sorted(shares, reverse=True)
        assert (row["unsure"] == "yes") == (shares[0] < UNSURE)
        assert row["unlike_anything_seen"] in {"yes", "no"}
    page = (tmp_path / "found" / "predictions.html").read_text()
    assert "&lt;i&gt;moss" in page
    assert "<i>moss" not in page
    assert page.count('<img src="data:image/jpeg;base64,') == 7
    assert not re.search(r"https?://|<script", page)
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("next: look at predictions.html")


def test_load_gives_the_same_probabilities_as_predict(call, read, work, tmp_path) -> None:
    folder, _, _ = work
    kinds = paint(tmp_path / "new", {"red fox": 2, "sea": 2}, seed=11)
    assert call("predict", folder / "kinds", tmp_path / "new", "-o", tmp_path / "found") == 0

    found = sslgh.load(folder / "kinds", workers=0).predict(tmp_path / "new")

    rows = read(tmp_path / "found" / "predictions.csv")
    assert found.names == [row["kind"] for row in rows]
    # Random weights: one of the four may look like another kind.
    assert sum(a == b for a, b in zip(found.names, kinds.values(), strict=True)) >= 3
    assert found.probabilities.max(1) == pytest.approx(
        [float(row["probability"]) for row in rows], abs=2e-4
    )


def test_a_prior_from_a_file_moves_the_kinds(call, read, work, tmp_path) -> None:
    folder, _, _ = work
    paint(tmp_path / "new", {"red fox": 2, "sea": 2}, seed=12)
    prior = tmp_path / "prior.csv"
    prior.write_text("kind,share\nred fox,0\nsea,3\n<i>moss,1\n")

    assert (
        call("predict", folder / "kinds", tmp_path / "new", "-o", tmp_path / "a", "--prior", prior)
        == 0
    )

    rows = read(tmp_path / "a" / "predictions.csv")
    assert "red fox" not in {row["kind"] for row in rows}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("red fox,1\nsea,1\n", "lacks kinds: <i>moss; give each a share, 0 for"),
        (
            "red fox,1\nsea,1\n<i>moss,1\nelk,2\n",
            "names kinds that the classifier does not know: elk",
        ),
        ("red fox,1\nsea,much\n<i>moss,1\n", "has 'sea,much', expected every kind once"),
        ("red fox,0\nsea,0\n<i>moss,0\n", "gives every kind the share 0"),
    ],
)
def test_a_prior_that_cannot_be_is_one_sentence(
    call, work, tmp_path, capsys, content, message
) -> None:
    folder, _, _ = work
    (tmp_path / "prior.csv").write_text(content)

    assert (
        call(
            "predict",
            folder / "kinds",
            tmp_path,
            "-o",
            tmp_path / "a",
            "--prior",
            tmp_path / "prior.csv",
        )
        == 2
    )

    assert message in capsys.readouterr().err


def test_a_model_without_a_classifier_is_one_sentence_with_the_way_out(
    call, run, tmp_path, capsys
) -> None:
    paint(tmp_path / "new", {"sea": 1}, seed=1)

    assert call("predict", run, tmp_path / "new") == 2

    assert "has no classifier; make one with sslgh classify" in capsys.readouterr().err


def test_a_folder_of_photos_in_the_place_of_a_classifier_is_one_sentence(
    call, work, tmp_path, capsys
) -> None:
    folder, _, _ = work

    assert call("predict", folder / "photos", folder / "kinds", "-o", tmp_path / "a") == 2

    error = capsys.readouterr().err
    assert "photos" in error
    assert "is neither a folder of sslgh classify nor a finetuned run; make one with" in error
    assert not (tmp_path / "a").exists()


def test_weights_that_have_changed_are_refused(call, work, tmp_path, capsys) -> None:
    folder, _, _ = work
    copy = tmp_path / "kinds"
    copy.mkdir()
    for name in ("photo_classifier.json", "photo_classifier.safetensors"):
        (copy / name).write_bytes((folder / "kinds" / name).read_bytes())
    card = json.loads((copy / "photo_classifier.json").read_text())
    (copy / "photo_classifier.json").write_text(json.dumps(card | {"fingerprint": "0" * 32}))

    assert call("predict", copy, folder / "photos", "-o", tmp_path / "a") == 2

    assert "other weights or preprocessing" in capsys.readouterr().err


def test_a_network_that_is_lost_is_named_with_the_classifier_that_needs_it(
    call, work, tmp_path, capsys
) -> None:
    folder, _, _ = work
    copy = shutil.copytree(folder / "kinds", tmp_path / "kinds")
    card = json.loads((copy / "photo_classifier.json").read_text())
    (copy / "photo_classifier.json").write_text(json.dumps(card | {"model": "/gone/run"}))

    assert call("predict", copy, folder / "photos", "-o", tmp_path / "a") == 2

    error = capsys.readouterr().err
    assert f"the network of {copy / 'photo_classifier.json'} cannot be loaded: /gone/run" in error
    assert "run sslgh classify with --model" in error


def test_results_are_written_neither_over_other_files_nor_among_the_photos(
    call, work, tmp_path, capsys
) -> None:
    folder, _, _ = work
    (tmp_path / "mine.txt").write_text("mine")

    assert call("classify", folder / "photos", folder / "labels.csv", "--out", tmp_path) == 2
    assert "holds files that are not of sslgh classify" in capsys.readouterr().err
    assert call("predict", folder / "kinds", folder / "photos", "-o", folder / "kinds") == 2
    assert "holds files that are not of sslgh predict" in capsys.readouterr().err
    inside = folder / "photos" / "kinds"
    assert call("classify", folder / "photos", folder / "labels.csv", "--out", inside) == 2
    assert call("predict", folder / "kinds", folder / "photos", "-o", inside) == 2
    assert not inside.exists()


def test_select_lists_photos_goes_on_from_labels_and_says_when_all_are_listed(
    call, read, work, tmp_path, monkeypatch, capsys
) -> None:
    folder, _, known = work
    monkeypatch.chdir(tmp_path)
    source = folder / "kinds" / "embeddings.npz"

    assert call("select", source, "--budget", 5) == 0
    first = read(tmp_path / "label_first.csv")
    assert len(first) == 5
    assert all(row["kind"] == "" and row["reason"] for row in first)
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: fill its column kind")

    assert (
        call("select", source, "--budget", 500, "--labels", folder / "labels.csv", "-o", "more.csv")
        == 0
    )
    more = read(tmp_path / "more.csv")
    labeled = [row for row in more if row["kind"]]
    assert {row["file"]: row["kind"] for row in labeled} == {f: k for f, k in known.items() if k}
    assert len({row["file"] for row in more}) == len(more) <= 28
    assert "the budget is 500, but only" in capsys.readouterr().out

    assert call("select", source, "--budget", 5) == 2
    assert "label_first.csv (in" in capsys.readouterr().err


def test_select_gives_a_balanced_subset_as_list_and_links(
    call, read, work, tmp_path, capsys
) -> None:
    folder, kinds, _ = work
    words = (
        "select",
        folder / "kinds" / "embeddings.npz",
        "--balanced",
        9,
        "-o",
        tmp_path / "part.csv",
    )
    every = write_labels(tmp_path / "all.csv", kinds)
    links = ("--photos", folder / "photos", "--links", tmp_path / "part")

    assert call(*words, "--labels", every, *links) == 0

    rows = read(tmp_path / "part.csv")
    counts = np.unique([row["kind"] for row in rows], return_counts=True)[1]
    assert counts.max() - counts.min() <= 2
    assert {path.name for path in (tmp_path / "part").iterdir()} == {row["file"] for row in rows}
    assert all(kinds[row["file"]] == row["kind"] for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --budget N for photos to label, or --balanced N"),
        (("--budget", 3, "--balanced", 3), "give --budget N for photos to label, or --balanced N"),
        (("--budget", 3, "--links", "x"), "links need both --links DIR and --photos FOLDER"),
    ],
)
def test_select_without_a_clear_wish_is_one_sentence(
    call, work, tmp_path, monkeypatch, capsys, options, message
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("select", work[0] / "kinds" / "embeddings.npz", *options) == 2
    assert message in capsys.readouterr().err


def test_select_of_something_else_is_one_sentence(call, tmp_path, capsys) -> None:
    assert call("select", tmp_path / "none", "--budget", 3) == 2
    assert (
        "is no folder of sslgh look, no file of sslgh embed and no run" in capsys.readouterr().err
    )


def test_what_look_has_embedded_is_not_embedded_again(call, work, tmp_path, capsys) -> None:
    folder, _, _ = work
    photos = tmp_path / "photos"
    photos.symlink_to(folder / "photos")
    look = (folder / "photos").with_name("photos-look")
    look.mkdir()
    (look / "embeddings.npz").write_bytes((folder / "kinds" / "embeddings.npz").read_bytes())

    assert call("classify", photos, folder / "labels.csv", "--out", tmp_path / "kinds") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"from {look / 'embeddings.npz'}")
    assert not (tmp_path / "kinds" / "embeddings.npz").exists()
    assert call("predict", tmp_path / "kinds", photos, "-o", tmp_path / "found") == 0
