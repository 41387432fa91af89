"""Every command that the pages, recipe heads and script heads give can be run.

Here what is quick: files, options, recipes and overrides exist. The commands themselves run in
.venv/bin/python -m pytest -m slow tests/test_documented_commands.py
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslgh.cli import app
from sslgh.recipe import load_recipe

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts" / "checks" / "documented_commands.py"


def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module  # its NamedTuples look themselves up there
    spec.loader.exec_module(module)
    return module


check = script()
COMMANDS = check.documented_commands()


def test_all_places_are_found_and_no_rule_is_stale() -> None:
    assert len(COMMANDS) >= check.FEWEST
    assert check.stale_rules(COMMANDS) == []
    places = {command.place.split("/")[0] for command in COMMANDS}
    assert places == {"README.md", "docs", "recipes", "scripts"}


def test_every_recipe_has_a_command_in_its_head() -> None:
    recipes = {
        str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "recipes").rglob("*.yaml")
    }
    texts = " ".join(command.text for command in COMMANDS)
    assert len(recipes) >= 40
    assert {recipe for recipe in recipes if recipe not in texts} == set()


def test_recipes_and_overrides_of_the_commands_are_valid() -> None:
    looked_at = 0
    for command in COMMANDS:
        for text in (command.text, check.shortened(command.text)[0]):
            words = shlex.split(text)
            recipes = [
                word for word in words if re.fullmatch(r"recipes/(?!accelerate).*\.yaml", word)
            ]
            overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
            if "sslgh" not in text or any(word.startswith("probe=") for word in overrides):
                continue
            for recipe in recipes:
                load_recipe(REPOSITORY / recipe, overrides)
                looked_at += 1
    assert looked_at >= 80


def test_verbs_scripts_and_options_of_the_commands_exist() -> None:
    looked_at = 0
    for command in COMMANDS:
        for word in shlex.split(command.text):
            if word.startswith(("scripts/", "recipes/accelerate/", "docs/")):
                assert (REPOSITORY / word).is_file(), command
        file = re.search(r"scripts/\S+\.py", command.text)
        verb = re.search(r"\bsslgh[ .](\w+)", command.text)
        if file:
            known = (REPOSITORY / file[0]).read_text()
        elif verb:
            shown = CliRunner().invoke(app, [verb[1], "--help"])
            assert shown.exit_code == 0, command
            known = shown.output
        else:
            continue
        options = re.findall(r"(?<!\S)--[a-z-]+", command.text.split("sslgh", 1)[-1])
        assert [option for option in options if option not in known] == [], command
        looked_at += 1
    assert looked_at >= 80


def test_a_command_that_fails_is_noticed(tmp_path, capsys) -> None:
    copy = tmp_path / "copy"
    (copy / "runs").mkdir(parents=True)
    assert not check.run_alone(check.Command("page", "scripts/missing.sh"), copy, tmp_path / "1")
    assert check.run_alone(check.Command("page", "true"), copy, tmp_path / "2")
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.slow
def test_every_command_runs() -> None:
    subprocess.run([sys.executable, SCRIPT], check=True, cwd=REPOSITORY)
