"""A run that is killed twice ends with the bits of the unbroken one; fifty such: scripts/checks/kill_resume.py."""

import importlib.util
import random
from pathlib import Path

import yaml

SCRIPT = Path(__file__).parents[1] / "scripts" / "checks" / "kill_resume.py"


def load_script():
    specification = importlib.util.spec_from_file_location("kill_resume", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_run_killed_in_training_and_while_it_writes_ends_with_the_same_bits(tmp_path) -> None:
    script = load_script()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(script.RECIPE))
    reference = script.unbroken(recipe, tmp_path, 1)
    plan = ["writing", "training"]
    fate = script.kill_and_resume(recipe, tmp_path / "run", reference, 1, plan, random.Random(0))
    assert fate.differing == []
    assert fate.kills == 2
