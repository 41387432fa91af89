"""The README's code runs and its commands exist."""

import re
import shlex
from pathlib import Path

import torch
from typer.testing import CliRunner

from sslgh.cli import app

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_gh_runs_in_the_plain_lightly_loop_of_the_readme() -> None:
    (loop,) = (block for block in blocks("python") if "GeometricHarmonizer" in block)
    assert len(loop.splitlines()) < 30
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(loop, "README.md", "exec"), names)
    harmonizer = names["harmonizer"]
    assert harmonizer.last_refresh.epoch == 1
    assert harmonizer.loss_weight == 1
    assert torch.isfinite(names["loss"])


def test_the_estimator_of_the_readme_fits() -> None:
    (code,) = (block for block in blocks("python") if "LongTailProbe" in block)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["probe"].score(names["X"], names["y"]) > 0.95


def test_the_commands_of_the_readme_exist() -> None:
    lines = [
        line.removeprefix("$ ").split("#")[0].strip()
        for b in blocks("console")
        for line in b.splitlines()
    ]
    assert len(lines) >= 3
    for line in lines:
        program, *words = shlex.split(line)
        if program.startswith("scripts/"):
            assert (REPOSITORY / program).stat().st_mode & 0o111
        else:
            assert program == "sslgh"
            assert CliRunner().invoke(app, [words[0], "--help"]).exit_code == 0
            assert all(
                (REPOSITORY / word).is_file() for word in words if word.startswith("recipes/")
            )


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180
