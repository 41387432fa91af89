"""What is written in a recipe means what it looks like, or is refused with its line."""

import math
import os
import time
from pathlib import Path

import pytest
import yaml

from sslgh.recipe import RecipeError, load_recipe, make_recipe, recipe_text
from sslgh.recipe.loading import MOST_BYTES, apply_overrides, parse, to_yaml

TINY = {"name": "x", "data": {"source": "digits"}, "method": {"name": "simclr"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+3", 1500.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("0", 0),
        ("-.INF", -math.inf),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("0o17", "0o17"),
        ("=", "="),
        ("010", "010"),
        ("0.5", 0.5),
        ("00.5", "00.5"),
        ("1.", 1.0),
        ("1e999", math.inf),
        ("9" * 31, "9" * 31),
        ("1.5.2", "1.5.2"),
        ("e3", "e3"),
        (".", "."),
        (".e1", ".e1"),
        ("off", False),
        ("Yes", True),
        ("~", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ('"010"', "010"),
        ("nanny", "nanny"),
    ],
)
def test_a_number_is_what_looks_like_one_and_nothing_else_is(text, value) -> None:
    found = parse(f"a: {text}", "f")["a"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_and_refused_by_every_setting() -> None:
    assert math.isnan(parse("a: .nan", "f")["a"])
    for key in ("optim.lr", "data.augment.flip", "model.width", "harmonize.weight"):
        for value in (".nan", ".inf", "nan", "inf"):
            with pytest.raises(RecipeError, match=f"{key}: expected"):
                make_recipe(apply_overrides(TINY, [f"{key}={value}"]))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        (BOMB, 2, "an alias (*) is not read in a recipe; write the value out"),
        ("a: &x 1\n<<: *x", 2, "an alias"),
        ("a: &x [*x]", 1, "an alias"),
        ("a:\n\tb: 1", 2, "it holds a tab; write spaces"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' is written twice"),
        ("[" * 5000, 1, "nested deeper than 20 levels"),
        ("- " * 5000, 1, "nested deeper than 20 levels"),
        ("{a: " * 5000, 1, "nested deeper than 20 levels"),
        ("? " * 5000, 1, "nested deeper than 20 levels"),
        ("a: !!python/object/apply:os.system [x]", 1, "the tag 'tag:yaml.org,2002:python/object"),
        ("a: 1\nb: !!float 1e-3", 2, "the tag"),
        ("a: 1\n---\nb: 2", 2, "expected a single document in the stream, but found another"),
        ("a: 1\nb: \0", 2, "the control character U+0000; delete it"),
        ("a: \x1b[31mred", 1, "the control character U+001B; delete it"),
        ("a: 1\n? [1]\n: 2", 2, "keys must be words, got [1]"),
        ("yes: 1", 1, "keys must be words, got True"),
        ("a: 'x", 1, "unexpected end of stream"),
    ],
)
def test_what_could_grow_or_be_read_in_two_ways_is_refused_with_its_line(
    text, line, sentence
) -> None:
    began = time.process_time()
    with pytest.raises(RecipeError) as refused:
        parse(text, Path("f.yaml"))
    assert str(refused.value).startswith(f"f.yaml: not valid YAML in line {line}: ")
    assert sentence in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: 1\nb: \xff\xfe", "line 2 cannot be read as text in UTF-8; save the file as UTF-8"),
        ("name: x".encode("utf-16"), "line 1 cannot be read as text in UTF-8"),
        (b"#" * (MOST_BYTES + 1), "longer than the 256 kB that a recipe may have"),
        (b"- 1\n", "a recipe is a mapping of keys, got list"),
        (b"", "a recipe is a mapping of keys, got NoneType"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_its_name(tmp_path, content, sentence) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"f\.yaml: ") as refused:
        load_recipe(path)
    assert sentence in str(refused.value)


def test_pipes_folders_and_files_without_rights_are_refused_without_waiting(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(RecipeError, match=f"{name}.yaml: is not a regular file"):
            load_recipe(tmp_path / f"{name}.yaml")
    with pytest.raises(RecipeError, match="cannot be read: File name too long"):
        load_recipe(tmp_path / ("a" * 300 + ".yaml"))


def test_a_byte_order_mark_is_passed_over(tmp_path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(TINY).encode())
    assert load_recipe(path).name == "x"


def test_a_power_of_ten_is_a_number_in_recipes_overrides_and_method_arguments(tmp_path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(
        "{name: x, data: {source: digits}, method: {name: simclr, temperature: 2e-1}, "
        "optim: {lr: 1e-3}}"
    )
    recipe = load_recipe(path, ["optim.weight_decay=1e-6", "probe=[{protocol: knn, tau: 1e-1}]"])
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (0.001, 1e-6)
    assert recipe.method.arguments == {"temperature": 0.2}
    assert recipe.probe[0].tau == (0.1,)


@pytest.mark.parametrize("name", ["1e-3", "on", "no", "null", "007", "1", "1.5", "x"])
def test_a_resolved_recipe_is_read_back_as_it_was_whatever_its_name_looks_like(name) -> None:
    recipe = make_recipe(TINY | {"name": name})
    text = recipe_text(recipe)
    assert make_recipe(parse(text, "f")) == recipe
    assert yaml.safe_load(text) == parse(text, "f")


def test_a_merge_key_is_no_key_of_a_recipe() -> None:
    settings = parse("<<: {seed: 1}", "f")
    with pytest.raises(RecipeError, match="unknown key '<<'"):
        make_recipe(TINY | settings)


def test_equal_lists_are_written_out_instead_of_by_alias() -> None:
    twice = [1, 2]
    assert parse(to_yaml({"a": twice, "b": twice}), "f") == {"a": [1, 2], "b": [1, 2]}
