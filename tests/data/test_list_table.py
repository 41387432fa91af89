"""Lists of paths and classes as people and spreadsheets write them."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from sslgh.cli import main
from sslgh.data import DataError, load_images, training_set
from sslgh.data.lists import read_list
from sslgh.recipe.data import Data

# What may stand in names of files and classes, most awkward for one separator or another.
ODD = ("a", "b,c", "d;e", "f g", "h 7", "Ü", 'say "i"', "j'k", "l  m", "0")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("listed")
    for i, stem in enumerate(ODD):
        for folder in ("train", "train/sub dir"):
            path = root / folder / f"{stem}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(path)
    return root


def read(root, text, test=None):
    for name, content in (("train.txt", text), ("test.txt", test)):
        if content is not None:
            data = content if isinstance(content, bytes) else content.encode()
            (root / name).write_bytes(data)
    train = read_list(root / "train.txt", root, key="data.list")
    if test is None:
        return train
    return read_list(root / "test.txt", root, key="data.test_list", classes=train.class_names)


def drawn_rows(root, generator, names):
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    generator.shuffle(files)
    return [(file, names[generator.integers(len(names))]) for file in files]


def table(rows, **dialect):
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("draw", range(8))
def test_any_table_reads_as_the_csv_module_wrote_it(root, delimiter, draw) -> None:
    generator = np.random.default_rng([draw, ord(delimiter)])
    named = draw % 2 == 0
    labels = [f"{stem} class" for stem in ODD] if named else [str(n) for n in range(7)]
    rows = drawn_rows(root, generator, labels)
    header = [[], [("Path", "Label")], [("image", "species")], [("filename", "class")]]
    text = table(
        [*header[draw % 4], *rows],
        delimiter=delimiter,
        quoting=[csv.QUOTE_MINIMAL, csv.QUOTE_ALL][draw // 2 % 2],
        lineterminator=["\n", "\r\n"][draw // 4],
    )
    images = read(root, ("\ufeff" if draw % 3 == 0 else "") + text)
    expected = sorted({label for _, label in rows}, key=None if named else int)
    assert images.names == tuple(path for path, _ in rows)
    assert [images.class_names[label] for label in images.labels] == [label for _, label in rows]
    assert [name for name in images.class_names if name in expected] == expected


@pytest.mark.parametrize("draw", range(4))
def test_plain_lines_are_read_as_they_always_were_whatever_their_paths_hold(root, draw) -> None:
    rows = drawn_rows(root, np.random.default_rng(draw), [str(n) for n in range(12)])
    images = read(root, "".join(f"{path} {label}\n" for path, label in rows))
    assert images.names == tuple(path for path, _ in rows)
    assert images.labels.tolist() == [int(label) for _, label in rows]
    assert images.class_names == tuple(map(str, range(max(images.labels) + 1)))
    images = read(root, "".join(f"{path}\n" for path, _ in rows))
    assert images.names == tuple(path for path, _ in rows)
    assert images.labels is None


def test_the_order_of_the_lines_does_not_change_the_classes(root) -> None:
    rows = drawn_rows(root, np.random.default_rng(1), ["owl", "ant", "Zebra", "émeu"])
    orders = [read(root, table(rows)), read(root, table(rows[::-1]))]
    assert [images.class_names for images in orders] == [("Zebra", "ant", "owl", "émeu")] * 2


@pytest.mark.parametrize(
    ("line", "labels"),
    [
        ("train/a0.png,0.0\ntrain/f g3.png,2.0", [0, 2]),
        ("train/a0.png 0.0\ntrain/f g3.png 2.", [0, 2]),
        ("train/a0.png,+1\ntrain/f g3.png,-0", [1, 0]),
        ("train/a0.png, 1\ntrain/f g3.png, 0", [1, 0]),
        ("1,train/a0.png\n0,train/f g3.png", [1, 0]),
        ('"train/a0.png" 1\n"train/f g3.png" 0', [1, 0]),
        ("train\\a0.png,1\ntrain\\f g3.png,0", [1, 0]),
        ("train\\a0.png 1\ntrain\\f g3.png 0", [1, 0]),
        ("path label\ntrain/a0.png 1\ntrain/f g3.png 0", [1, 0]),
        (",path,label\n0,train/a0.png,1\n1,train/f g3.png,0", [1, 0]),
        ("Unnamed: 0,label,width,file\n0,1,8,train/a0.png\n1,0,8,train/f g3.png", [1, 0]),
        ("path\ntrain/a0.png\ntrain/f g3.png", None),
        ('"path"\n"train/a0.png"\n"train/f g3.png"', None),
    ],
)
def test_forms_whose_meaning_is_clear_are_read(root, line, labels) -> None:
    images = read(root, line)
    assert images.names == ("train/a0.png", "train/f g3.png")
    assert (None if images.labels is None else images.labels.tolist()) == labels


@pytest.mark.parametrize("separator", [" ", ",", ", ", ";", "\t"])
def test_class_names_without_a_header(root, separator) -> None:
    images = read(root, f"train/f g3.png{separator}owl\ntrain/a0.png{separator}ant\n")
    assert (images.class_names, images.labels.tolist()) == (("ant", "owl"), [1, 0])


@pytest.mark.parametrize("form", ["train/{}{}", '"train/{}"{}'])
@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (",-1", "has the label -1, expected a whole number from 0, or the name of a class"),
        (",0.5", "has the label 0.5, expected a whole number from 0, or the name of a class"),
        (",", "has no label; give it one"),
        (",NaN", "has no label; give it one"),
        (",owl", "has the label 'owl', but line 1 has the label 3; number all classes, or name"),
        (",0,1", "has 3 columns, but line 1 has 2; give every line a path and one label"),
        ("", "has 1 column, but line 1 has 2; give every line a path and one label"),
    ],
)
def test_a_line_that_is_unlike_the_others_is_named_with_its_number_and_text(
    root, form, end, sentence
) -> None:
    wrong = form.format("f g3.png", end)
    with pytest.raises(DataError) as caught:
        read(root, f"train/a0.png,3\n\ntrain/Ü5.png,1\n{wrong}\n")
    message = str(caught.value)
    assert message.startswith(f"data.list {root / 'train.txt'} line 4 ({wrong!r}) {sentence}")
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train/a0.png 0 1", "line 1 ('train/a0.png 0 1') has 3 columns, expected a path and one"),
        ("train/a0.png -1", "line 1 ('train/a0.png -1') has the label -1"),
        ("train/a0.png,x,y", "has 3 columns, expected a path and one label"),
        ("label,file\ntrain/a0.png,x", "line 1 ('label,file') names no column of labels; call one"),
        ("path,split\ntrain/a0.png,x", "line 1 ('path,split') names no column of labels; call one"),
        ('"train/a0.png,0', "cannot be read as comma-separated values (unexpected end of data)"),
        ("Bild,Art\ntrain/a0.png,x", "if line 1 names the columns, call them 'path' and 'label'"),
        ("gone/a0.png,x", "gone/a0.png); check data.root"),
        ("gone/a0.png x", "a line is 'path', 'path label' or 'path,label'"),
        ("class 0\ntrain/a0.png 1", "names 1 files that are missing (line 1: "),
        ("größe.png 0".encode("latin-1"), "is not UTF-8 text (line 1); save it as UTF-8"),
    ],
)
def test_what_is_not_clear_is_refused_in_a_sentence_about_the_line(root, text, sentence) -> None:
    if text.__class__ is str and text.startswith('"'):
        text = f"train/f g3.png,1\n{text}"
    with pytest.raises(DataError) as caught:
        read(root, text)
    assert sentence in str(caught.value)


def test_the_advice_of_those_sentences_can_be_followed(root) -> None:
    assert read(root, "path,split,label\ntrain/a0.png,x,owl").class_names == ("owl",)
    assert read(root, 'train/a0.png "great owl"').class_names == ("great owl",)
    assert read(root, 'train/a0.png,"owl, great"').class_names == ("owl, great",)
    assert len(read(root, "path,label\ntrain/a0.png,x")) == 1


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (
            "owl",
            "ant",
            "line 1 ('train/Ü5.png,ant') has a class that the training set lacks (ant",
        ),
        ("owl", "0", "holds the label 0, but the training set has classes by name (owl)"),
        ("0", "owl", "has a class that the training set lacks (owl; its classes: 0)"),
        ("0", "1", "holds label 1, but the training set has labels 0..0"),
    ],
)
def test_a_test_list_of_other_classes_is_refused(root, train, test, sentence) -> None:
    with pytest.raises(DataError) as caught:
        read(root, f"train/a0.png,{train}", f"train/Ü5.png,{test}")
    assert sentence in str(caught.value)


def test_a_test_list_has_the_classes_of_the_training_list_in_whatever_form(root) -> None:
    images = read(root, "train/a0.png,owl\ntrain/f g3.png,ant", "label;path\nowl;train/Ü5.png")
    assert (images.class_names, images.labels.tolist()) == (("ant", "owl"), [1])


def test_a_hundred_thousand_unknown_classes_fill_no_screen(root) -> None:
    names = [f"class {n}" for n in range(100_000)]
    text = "".join(f"train/a0.png,{name}\n" for name in names)
    with pytest.raises(DataError, match=r"and 99,99\d more") as caught:
        read(root, "train/a0.png,owl\n", text)
    assert len(str(caught.value)) < 500


def test_a_relative_list_or_root_is_named_with_the_folder_it_was_looked_for_in(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.txt").write_text("a.png 0\n")
    settings = {"source": "list", "root": "photos", "list": "l.txt"}
    with pytest.raises(DataError) as caught:
        training_set(Data(**settings))
    assert f"check data.root photos (in {tmp_path}), where they start" in str(caught.value)
    with pytest.raises(DataError) as caught:
        training_set(Data(**settings | {"list": "gone.txt"}))
    assert f"data.list gone.txt (in {tmp_path}) cannot be read" in str(caught.value)


def test_finetuning_on_a_table_keeps_the_names_of_its_classes(root, tmp_path) -> None:
    rows = drawn_rows(root, np.random.default_rng(0), ["great owl", "ant"])
    (root / "train.csv").write_text(table([("path", "class"), *rows]), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "name": "listed",
        "run_dir": str(tmp_path / "run"),
        "data": {"source": "list", "root": str(root), "size": 8, "workers": 0}
        | {key: str(root / "train.csv") for key in ("list", "test_list")},
        "model": {"width": 0.125},
        "finetune": {"objective": "la"},
        "optim": {"lr": 0.01, "warmup_epochs": 0},
        "train": {"epochs": 1, "batch_size": 10},
    }
    recipe.write_text(json.dumps(settings))
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(recipe)])
    assert not ended.value.code
    for file in ("images.json", "classifier.json"):
        written = json.loads((tmp_path / "run" / file).read_text())
        assert written["class_names"] == ["ant", "great owl"]
    test = load_images(Data(**settings["data"]), "test")
    assert test.class_names == ("ant", "great owl")
