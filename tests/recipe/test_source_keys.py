"""Which keys a source of data reads, paths with variables, and messages of a bounded length."""

import shlex
from pathlib import Path

import pytest

from sslgh.recipe import RecipeError, make_recipe
from sslgh.recipe.data import READS, SOME_READ, TEST_IMAGES, Data
from sslgh.recipe.errors import located, some_of
from sslgh.recipe.loading import apply_overrides

OTHER = {
    "root": "photos",
    "list": "train.txt",
    "test_root": "tests",
    "test_list": "test.txt",
    "download": True,
    "test_per_class": 5,
    "split_seed": 1,
}


def recipe(data, *overrides):
    settings = {"name": "x", "data": data, "method": {"name": "simclr"}}
    return make_recipe(apply_overrides(settings, overrides), source="x.yaml")


def data_of(source, **more):
    return {"source": source} | ({"list": "l.txt"} if source == "list" else {}) | more


def test_every_source_and_key_of_the_table_is_one_of_the_schema() -> None:
    assert set(READS) == set(Data.model_fields["source"].annotation.__args__)
    assert set(SOME_READ) <= set(Data.model_fields)
    assert set(OTHER) <= set(SOME_READ)
    assert len(READS) >= 6


@pytest.mark.parametrize("source", READS)
@pytest.mark.parametrize("key", OTHER)
def test_a_key_is_read_or_refused_and_the_advice_makes_the_recipe_valid(source, key) -> None:
    data = data_of(source, **{key: OTHER[key]})
    if key in READS[source]:
        assert str(getattr(recipe(data).data, key)) == str(OTHER[key])
        return
    with pytest.raises(RecipeError) as caught:
        recipe(data)
    sentence = str(caught.value)
    start = f"x.yaml: data: {key} is not read by source {source}, which reads {', '.join(READS[source])}; "
    assert sentence.startswith(start)
    (unset,) = [word for word in shlex.split(sentence) if word.startswith("data.")][:1]
    assert recipe(data, unset.rstrip(";")).data == Data(**data_of(source))
    if key.startswith("test_") and key != "test_per_class" and source in TEST_IMAGES:
        assert TEST_IMAGES[source] in sentence


def test_all_keys_that_are_not_read_are_named_with_one_command_that_unsets_them() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(data_of("folder", list="a", test_list="b", download=True))
    sentence = str(caught.value)
    assert "download, list, test_list are not read by source folder" in sentence
    words = shlex.split(sentence.split("or set ")[1].split(";", maxsplit=1)[0])
    assert len(words) == 3
    assert recipe(data_of("folder", list="a", test_list="b", download=True), *words)


def test_a_full_config_with_absolute_paths_as_a_run_keeps_it_is_valid() -> None:
    for source in READS:
        kept = recipe(data_of(source)).model_dump(mode="json")
        kept["data"]["root"] = str(Path("data").absolute())
        assert make_recipe(kept).data.source == source


def test_source_list_needs_a_list() -> None:
    with pytest.raises(RecipeError, match=r"data: source list needs data\.list, a file of lines"):
        recipe({"source": "list"})


@pytest.mark.parametrize("text", ["$SSLGH_TEST/photos", "${SSLGH_TEST}/photos"])
def test_variables_are_read_in_every_path_of_a_recipe(monkeypatch, text) -> None:
    monkeypatch.setenv("SSLGH_TEST", "/some where")
    found = recipe(
        data_of("list", root=text, list=text, test_root=text, test_list=text, subset=text),
        f"model.init={text}",
        f"run_dir={text}",
    )
    paths = {getattr(found.data, key) for key in ("root", "list", "test_root", "test_list")}
    assert paths | {found.data.subset, found.directory} == {Path("/some where/photos")}
    assert found.model.init == "/some where/photos"


@pytest.mark.parametrize("key", ["data.root", "model.init", "run_dir"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named_and_nothing_is_read_or_written(
    monkeypatch, key, value
) -> None:
    monkeypatch.delenv("SSLGH_TEST", raising=False)
    if value is not None:
        monkeypatch.setenv("SSLGH_TEST", value)
    with pytest.raises(RecipeError) as caught:
        recipe(data_of("folder"), f"{key}=$SSLGH_TEST/photos")
    assert f"{key}: the environment variable SSLGH_TEST in the path" in str(caught.value)
    monkeypatch.setenv("SSLGH_TEST", "/x")  # the advice
    assert recipe(data_of("folder"), f"{key}=$SSLGH_TEST/photos")


def test_a_folder_whose_name_holds_a_dollar_sign_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("photos", "elsewhere")
    (tmp_path / "US$photos").mkdir()
    for name in ("US$photos", "5$", "$", "a$1"):
        assert recipe(data_of("folder", root=str(tmp_path / name))).data.root == tmp_path / name


def test_home_folders_are_expanded_and_names_of_models_stay(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert recipe(data_of("folder", root="~/photos")).data.root == Path("/home/me/photos")
    for word in ("pretrained", "hf-hub:a//b", "timm:x"):
        assert recipe(data_of("folder"), f"model.init={word}").model.init == word


def test_a_relative_path_is_shown_with_its_folder_and_an_absolute_one_alone(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("a/b") == f"a/b (in {tmp_path})"
    assert located(tmp_path / "a\n") == f"{tmp_path}/a\\n"


@pytest.mark.parametrize("count", [1, 2, 4, 5, 100_000])
def test_a_few_values_and_the_number_of_the_others(count) -> None:
    text = some_of(range(count))
    shown = text.split(" and ")[0].split(", ")
    others = int(text.split(" and ")[1].split()[0].replace(",", "")) if " and " in text else 0
    assert len(shown) + others == count
    assert len(text) < 40


@pytest.mark.parametrize("wrong", [[0.5] * 100_000, "x" * 100_000])
def test_a_huge_value_is_cut_in_the_message(wrong) -> None:
    for block in ({"augment": {"blur": wrong}}, {"root": wrong}, {"source": wrong}):
        with pytest.raises(RecipeError) as caught:
            recipe(data_of("folder") | block)
        assert len(str(caught.value)) < 500
