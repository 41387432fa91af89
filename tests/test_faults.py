"""The faults that scripts/checks/plant_faults.py plants can still be planted."""

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts" / "checks" / "plant_faults.py"


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # the script imports its neighbors
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.FAULTS
    for neighbor in [
        name for name in sys.modules if name == "fault" or name.startswith("faults_of_")
    ]:
        sys.modules.pop(neighbor)


def test_every_text_is_in_its_file_once_and_is_changed(faults) -> None:
    places = {
        fault.name: (REPOSITORY / "sslgh" / fault.file).read_text().count(fault.old)
        for fault in faults
        if fault.old != fault.new
    }

    assert len(places) >= 320
    assert {name: count for name, count in places.items() if count != 1} == {}


def test_what_is_planted_is_python(faults) -> None:
    for fault in faults:
        text = (REPOSITORY / "sslgh" / fault.file).read_text()
        compile(text.replace(fault.old, fault.new), fault.name, "exec")


def test_names_are_unique(faults) -> None:
    assert len({fault.name for fault in faults}) == len(faults)


def test_tests_exist(faults) -> None:
    for fault in faults:
        file, *options = shlex.split(fault.tests)
        assert (REPOSITORY / "tests" / file).is_file(), fault.name
        assert options[:1] in ([], ["-k"]), fault.name
