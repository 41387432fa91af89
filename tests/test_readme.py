"""The code of README and docs runs, the README is short and its commands exist."""

import re
import shlex
from pathlib import Path

import torch
from typer.testing import CliRunner

from sslgh.cli import app

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (REPOSITORY / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_gh_runs_in_the_plain_lightly_loop_of_the_docs() -> None:
    (loop,) = (b for b in blocks("python", "docs/methods.md") if "GeometricHarmonizer" in b)
    assert len(loop.splitlines()) < 30
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(loop, "methods.md", "exec"), names)
    harmonizer = names["harmonizer"]
    assert harmonizer.last_refresh.epoch == 1
    assert harmonizer.loss_weight == 0  # its images are noise, so no kinds are visible
    assert torch.isfinite(names["loss"])


def test_the_estimator_of_the_docs_fits() -> None:
    (code,) = (b for b in blocks("python", "docs/classification.md") if "LongTailProbe" in b)
    names: dict[str, object] = {}
    exec(compile(code, "classification.md", "exec"), names)
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
    lines = README.splitlines()
    assert len(lines) <= 110
    assert max(len(line) for line in lines) <= 120


def test_the_links_of_the_pages_lead_to_files() -> None:
    links = [
        (page, link)
        for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    ]
    assert len(links) >= 10
    assert [link for page, link in links if not (page.parent / link).exists()] == []
