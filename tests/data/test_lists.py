import numpy as np
import pytest
from PIL import Image

from sslgh.data import DataError, input_size, load_images, training_set
from sslgh.recipe.data import Data


@pytest.fixture
def tree(tmp_path):
    for i, name in enumerate(["a.png", "b c.png", "sub/d 7.png"]):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8)).save(path)
    return tmp_path


def listed(tree, text, test=None, **more):
    (tree / "train.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    if test is not None:
        (tree / "test.txt").write_text(test)
        more["test_list"] = tree / "test.txt"
    return Data(source="list", root=tree / "images", list=tree / "train.txt", **more)


def test_paths_may_hold_spaces_and_order_is_that_of_the_list(tree):
    images = training_set(listed(tree, "sub/d 7.png 3\n\n  a.png\t0 \r\nb c.png 1"))
    assert images.names == ("sub/d 7.png", "a.png", "b c.png")
    assert images.labels.tolist() == [3, 0, 1]
    assert images.class_names == ("0", "1", "2", "3")
    assert images.class_counts.tolist() == [1, 1, 0, 1]
    assert images.image(0).getpixel((0, 0)) == (2, 2, 2)
    assert input_size(listed(tree, "a.png"), images) == 224


def test_a_list_without_labels(tree):
    images = training_set(listed(tree, "b c.png\nsub/d 7.png\n"))
    assert images.names == ("b c.png", "sub/d 7.png")
    assert images.labels is None


def test_a_byte_order_mark_is_not_part_of_a_name(tree):
    assert training_set(listed(tree, "\ufeffa.png")).names == ("a.png",)


def test_absolute_paths_are_taken_as_they_are(tree):
    path = tree / "images" / "a.png"
    assert training_set(listed(tree, f"{path} 0")).images == (path,)


def test_missing_files_are_counted_and_the_first_are_named(tree):
    with pytest.raises(DataError) as error:
        training_set(listed(tree, "a.png 0\n" + "".join(f"x{i}.png 1\n" for i in range(5))))
    message = str(error.value)
    assert "data.list" in message
    assert "names 5 files that are missing" in message
    assert "x0.png" in message
    assert "x2.png, ...); check data.root" in message
    assert "x3.png" not in message


def test_labels_on_some_lines_only_are_explained(tree):
    with pytest.raises(DataError, match="1 of its 2 lines end with a label: all must, or none"):
        training_set(listed(tree, "a.png 0\nb c.png"))


@pytest.mark.parametrize(
    ("text", "message"), [("\n \n", "is empty"), (b"\xff\xfe\xfa", "is not UTF-8 text")]
)
def test_a_list_of_nothing_is_an_error(tree, text, message):
    with pytest.raises(DataError, match=message):
        training_set(listed(tree, text))


def test_a_missing_list_is_named(tree):
    settings = Data(source="list", root=tree, list=tree / "gone.txt")
    with pytest.raises(DataError, match=r"data\.list .*gone\.txt cannot be read"):
        training_set(settings)


def test_the_test_list_has_the_classes_of_the_training_list(tree):
    settings = listed(tree, "a.png 0\nb c.png 2", "sub/d 7.png 1")
    test = load_images(settings, "test")
    assert test.labels.tolist() == [1]
    assert test.class_names == ("0", "1", "2")
    assert load_images(listed(tree, "a.png 0"), "test") is None


def test_the_test_list_starts_from_the_test_root(tree):
    settings = listed(tree, "a.png 0", "d 7.png 0", test_root=tree / "images" / "sub")
    assert load_images(settings, "test").image(0).getpixel((0, 0)) == (2, 2, 2)
    with pytest.raises(DataError, match=r"data\.test_root without data\.test_list"):
        load_images(listed(tree, "a.png 0", test_root=tree), "test")


def test_a_label_that_the_training_list_lacks_is_an_error(tree):
    with pytest.raises(DataError, match=r"data\.test_list .* holds label 1, .* labels 0\.\.0"):
        load_images(listed(tree, "a.png 0", "b c.png 1"), "test")


def test_labels_with_gaps_keep_their_numbers_and_the_test_list_may_fill_them(tree):
    settings = listed(tree, "a.png 0\nb c.png 7", "sub/d 7.png 4")
    images = training_set(settings)
    assert images.class_counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    assert load_images(settings, "test").labels.tolist() == [4]


def test_leading_zeros_do_not_change_a_label(tree):
    zeros = "0" * 30
    assert training_set(listed(tree, f"a.png {zeros}3\nb c.png {zeros}")).labels.tolist() == [3, 0]


@pytest.mark.parametrize("label", ["20261121", "1" * 30, "9" * 5000])
def test_a_column_that_does_not_count_classes_is_refused_before_it_fills_the_memory(tree, label):
    with pytest.raises(DataError, match=r"labels count classes from 0 and end below 1000000"):
        training_set(listed(tree, f"a.png 0\nb c.png {label}"))


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "gone\x1b[2J.png", "a\0.png", "a.png/b.png"])
def test_a_name_that_cannot_be_a_file_is_missing_and_shown_safely(tree, name):
    with pytest.raises(DataError, match="names 1 files that are missing") as caught:
        training_set(listed(tree, f"a.png 0\n{name} 1"))
    assert str(caught.value).isprintable()
