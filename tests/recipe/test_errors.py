"""Faults of a recipe are one sentence: where, what was expected, what came."""

import pickle

import pytest

from sslgh.engine.build import build_method
from sslgh.recipe import RecipeError, check_arguments, make_recipe
from sslgh.recipe.loading import apply_overrides

TINY = {"name": "x", "data": {"source": "digits"}, "method": {"name": "simclr"}}


def refusal(**changes: object) -> str:
    with pytest.raises(RecipeError) as refused:
        make_recipe(TINY | changes, source="f.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {"epochs": "x"}}, "train.epochs: expected a whole number, got 'x'"),
        ({"train": {"epochs": 1.5}}, "train.epochs: expected a whole number, got 1.5"),
        ({"train": {"epochs": 0}}, "train.epochs: expected at least 1, got 0"),
        ({"train": {"epochs": None}}, "train.epochs: expected a whole number, got None"),
        ({"train": {"epochs": 10**25}}, "train.epochs: expected at most 2147483647, got 1000000"),
        ({"optim": {"lr": "1:30"}}, "optim.lr: expected a number, got '1:30'"),
        ({"optim": {"momentum": 1}}, "optim.momentum: expected less than 1.0, got 1"),
        ({"optim": {"nesterov": "maybe"}}, "optim.nesterov: expected true or false, got 'maybe'"),
        ({"optim": {"name": "sgdd"}}, "optim.name: expected 'sgd', 'adamw' or 'lars', got 'sgdd'"),
        ({"name": 5}, "name: expected text, got 5; put it in quotes"),
        ({"name": "../x"}, "name: expected text of the pattern ^[A-Za-z0-9]"),
        ({"probe": 5}, "probe: expected a list, got 5"),
        ({"probe": [{"protocol": "knn", "tau": []}]}, "probe.0.tau: expected at least 1 entries"),
        ({"data": 5}, "data: expected a block of keys, got 5"),
        ({"data": {}}, "data: the key 'source' is missing"),
        ({"x[0]": 1}, "unknown key 'x[0]'; known keys: boost, data"),
        ({"Shuffled": 1}, "unknown key 'Shuffled'; known keys: boost, data"),
        ({"run_dir": 3}, "run_dir: expected a path, got 3"),
        ({"name": "a\n\x1b[31mb"}, r"got 'a\n\x1b[31mb'"),
    ],
)
def test_a_fault_says_where_what_was_expected_and_what_came(changes, sentence) -> None:
    told = refusal(**changes)
    assert told.startswith("f.yaml: ")
    assert sentence in told
    assert "input" not in told.lower()
    assert told.isprintable()


def test_entries_of_a_list_are_named_by_their_number() -> None:
    augment = {"augment": {"crop_scale": [0.5]}}
    assert "data.augment.crop_scale: the entry 1 is missing" in refusal(data=TINY["data"] | augment)


def test_of_a_choice_of_kinds_the_one_that_was_meant_is_named() -> None:
    told = refusal(probe=[{"protocol": "knn", "test_prior": [0.5, 2.0]}])
    assert told == "f.yaml: probe.0.test_prior.1: expected at most 1.0, got 2.0"
    told = refusal(probe=[{"protocol": "knn", "test_prior": 5}])
    assert told.endswith("expected 'objective', 'balanced' or 'train' or a list, got 5")


def test_further_faults_are_counted_and_the_next_one_placed() -> None:
    wrong = {"epochs": 0, "batch_size": 1}
    assert refusal(train=wrong).endswith("got 0; 1 more fault at train.batch_size")
    told = refusal(train=wrong, optim={"lr": 0})
    assert told.endswith("; 2 more faults, the next at train.epochs")


def test_an_unknown_key_comes_before_what_it_causes() -> None:
    told = refusal(data={"sorce": "digits"})
    assert told.startswith("f.yaml: data: unknown key 'sorce'; did you mean 'source'?")
    assert told.endswith("; 1 more fault at data")


def test_a_truth_value_is_no_number() -> None:
    for key, kind in (
        ("train.epochs", "a whole number, got True"),
        ("optim.lr", "a number, got True"),
        ("probe=[{protocol: knn, tau", "a number, got True"),
        ("name", "text, got True; put it in quotes"),
    ):
        text = f"{key}: yes}}]" if "[" in key else f"{key}=yes"
        with pytest.raises(RecipeError, match=f"expected {kind}"):
            make_recipe(apply_overrides(TINY, [text]))
    assert make_recipe(apply_overrides(TINY, ["train.drop_last=yes"])).train.drop_last is True


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epochs=2.0", "train.epochs: expected a whole number, got 2.0; write 2"),
        ("train.epochs=1e2", "train.epochs: expected a whole number, got 100.0; write 100"),
        ("train.epochs='7'", "train.epochs: expected a whole number, got '7'; write 7"),
        ("train.epochs=010", "train.epochs: expected a whole number, got '010'; write 10"),
        ("train.epochs=1:30", "train.epochs: expected a whole number, got '1:30'"),
        ("train.epochs=" + "9" * 5000, "train.epochs: expected a whole number, got '9999"),
        ("optim.lr='1e-3'", "optim.lr: expected a number, got '1e-3'; write 0.001"),
        ("optim.lr=1e999", "optim.lr: expected a finite number, got inf"),
        ("train.drop_last=1", "train.drop_last: expected true or false, got 1; write true"),
        ("train.drop_last='no'", "train.drop_last: expected true or false, got 'no'"),
        ("method.temperature='0.5'", "method.temperature: expected a number, got '0.5'; write 0.5"),
        ("harmonize.vertices=8.0", "harmonize.vertices: expected a whole number, got 8.0; write 8"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_way_out(override, sentence) -> None:
    with pytest.raises(RecipeError) as refused:
        build_method(make_recipe(apply_overrides(TINY, [override])), 16)
    assert str(refused.value).startswith(sentence)


def test_whole_numbers_lists_and_paths_pass_where_they_belong() -> None:
    words = ["optim.lr=1", "probe=[{protocol: longtail, tau: 1, objectives: [la]}]", "run_dir=a/b"]
    words += ["data.augment={crop_scale: [0, 1], blur: [0, 0.5], solarize: 1}"]
    recipe = make_recipe(apply_overrides(TINY, words))
    assert (recipe.optim.lr, recipe.probe[0].tau, str(recipe.directory)) == (1.0, (1.0,), "a/b")
    assert (recipe.data.augment.crop_scale, recipe.data.augment.blur) == ((0.0, 1.0), (0.0, 0.5))


def test_long_values_and_keys_are_shown_in_part() -> None:
    assert len(refusal(train={"epochs": "9" * 100_000 + "x"})) < 200
    assert len(refusal(**{"k" * 100_000: 1})) < 300


def test_arguments_of_a_method_are_held_to_the_same_rules() -> None:
    def method(*, temperature: float = 0.1, queue: int = 0) -> None: ...

    for given, sentence in (
        ({"temperature": "x"}, "method.temperature: expected a number, got 'x'"),
        ({"temperature": float("nan")}, "method.temperature: expected a finite number, got nan"),
        ({"queue": True}, "method.queue: expected a whole number, got True"),
        ({"queu": 1}, "method: unknown key 'queu'; did you mean 'queue'?"),
    ):
        with pytest.raises(RecipeError) as refused:
            check_arguments([method], given, prefix="method")
        assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train", "override 'train': expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("a..b=3", "expected key.path=value"),
        (".".join("a" * 5000) + "=1", "nested deeper than 20 levels"),
        ("name.x=1", "the key before 'x' holds 'x', not a block"),
        ("train.epochs=[", "not valid YAML in line 1"),
        ("train.epochs=" + "9" * 300_000, "longer than the 256 kB"),
        ("name=\udcff", "the control character U+DCFF"),
    ],
)
def test_overrides_go_through_the_same_door(override, sentence) -> None:
    with pytest.raises(RecipeError) as refused:
        make_recipe(apply_overrides(TINY, [override]))
    assert sentence in str(refused.value)
    assert str(refused.value).startswith("override ")
    assert len(str(refused.value)) < 300


def test_a_sentence_survives_the_way_between_processes() -> None:
    error = RecipeError("a\nb")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == r"a\nb"
