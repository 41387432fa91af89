"""Code that a page quotes from a file stands in that file, word for word; functions it names exist."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = [*REPOSITORY.glob("*.md"), *sorted((REPOSITORY / "docs").rglob("*.md"))]
QUOTE = re.compile(r"<!-- source: (\S+) -->\n```(?:python|yaml)\n(.*?)```", re.DOTALL)
FEWEST = 20
"""Quotes over all pages; raise it when a page is added."""


def quotes() -> list[tuple[str, str, str]]:
    """Page, file and code of every quote."""
    return [
        (page.name, file, code) for page in PAGES for file, code in QUOTE.findall(page.read_text())
    ]


def stands_in(code: str, text: str) -> bool:
    """Whether the lines of ``code`` follow each other in ``text``, a common indentation aside."""
    wanted = textwrap.dedent(code).strip("\n").split("\n")
    lines = text.split("\n")
    starts = range(len(lines) - len(wanted) + 1)
    windows = ("\n".join(lines[start : start + len(wanted)]) for start in starts)
    return any(textwrap.dedent(window).split("\n") == wanted for window in windows)


def test_the_pages_quote_code_and_every_source_comment_is_a_quote() -> None:
    marks = sum(page.read_text().count("<!-- source:") for page in PAGES)
    assert len(quotes()) == marks
    assert marks >= FEWEST


@pytest.mark.parametrize(("page", "file", "code"), quotes())
def test_quoted_code_is_in_its_file(page, file, code) -> None:
    assert len(code.strip().splitlines()) >= 2
    assert stands_in(code, (REPOSITORY / file).read_text()), f"{page} quotes {file} wrongly"


def test_a_quote_that_leaves_out_or_changes_a_line_is_noticed() -> None:
    text = "class A:\n    def f(self):\n        a = 1\n\n        return a\n"
    assert stands_in("def f(self):\n    a = 1\n\n    return a\n", text)
    assert not stands_in("def f(self):\n    a = 1\n    return a\n", text)
    assert not stands_in("def f(self):\n    a = 2\n\n    return a\n", text)
    assert not stands_in("def f(self):\n        a = 1\n\n        return a\n", text)


NAMED = re.compile(r"`(sslgh/[\w/]+\.py): ([\w.]+)`")


def defined(file: Path) -> set[str]:
    """Functions and classes of a file, and methods as ``Class.method``."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def test_functions_that_the_pages_name_are_in_their_files() -> None:
    named = [
        (page.name, file, name) for page in PAGES for file, name in NAMED.findall(page.read_text())
    ]
    assert len({file for _, file, _ in named}) >= 10
    missing = [entry for entry in named if entry[2] not in defined(REPOSITORY / entry[1])]
    assert missing == []
