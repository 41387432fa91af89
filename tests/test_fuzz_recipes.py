"""A hundred random recipes are built or refused in one sentence; the script does a thousand."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, given, seed, settings

from sslgh.data import DataError
from sslgh.data.lists import read_list

SCRIPT = Path(__file__).parents[1] / "scripts" / "checks" / "fuzz_recipes.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[SCRIPT.stem]


def test_random_recipes_are_built_or_refused_in_one_sentence(script) -> None:
    outcomes, _, violations = script.fuzz(100)
    assert violations == []
    assert sum(outcomes.values()) >= 95
    assert outcomes["built"] >= 8
    assert outcomes["refused"] >= 40


def test_random_lists_are_read_or_refused_in_one_sentence(script, tmp_path) -> None:
    script.draw_photos(tmp_path)
    file, sentences, labeled = tmp_path / "list.txt", [], []

    @seed(0)
    @settings(max_examples=400, deadline=None, database=None, phases=[Phase.generate])
    @given(script.lists())
    def look(text: str) -> None:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            images = read_list(file, tmp_path, key="data.list")
        except DataError as error:
            sentences.append(str(error))
        else:
            assert all(path.is_file() for path in images.images)
            labeled.append(bool(images.class_names))

    look()
    assert [text for text in sentences if not text.isprintable() or len(text) > 1000] == []
    assert sum(labeled) >= 40
    assert len(sentences) >= 40


def test_the_fuzzer_reaches_every_setting(script) -> None:
    assert len(script.KEYS) >= 120
    assert len(script.RECIPES) >= 24


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (RuntimeError("a bug"), "traceback"),
        (OSError("no disk"), "exit 1"),
        (ValueError("bad"), "poor sentence"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(script, tmp_path, monkeypatch, fault, kind) -> None:
    def wrong(*_: object) -> None:
        raise fault

    monkeypatch.setattr(script, "build", wrong)
    assert script.outcome(script.Case("", []), tmp_path)[0] == kind


def test_the_fuzzer_sees_a_hang(script, tmp_path, monkeypatch) -> None:
    def endless(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr(script, "build", endless)
    monkeypatch.setattr(script, "SECONDS", 1)
    assert script.outcome(script.Case("", []), tmp_path)[0] == "hang"
