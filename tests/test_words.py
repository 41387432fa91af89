"""Plain American English and the field's words in names, docstrings, comments, messages and pages.

The rules are those of CONTRIBUTING.md. Text between quotation marks in a page is an example of what not to
write and is not looked at.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

ONE = (
    r"one|two|three|loss|losses|(?:one|a) share|line|value|(?:one|a) number|pass|proxy|prototype|expert|labels?|rows?"
    r"|weights?|index|minutes?|seconds?|entry|masks?|scale|shift|factor|(?:one|a) group|heads?|threads?|worker|folder"
    r"|seeds?|bytes|images?"
)
THING = (
    r"sample|class|row|image|step|epoch|process|gpu|head|key|line|channel|vertex|run|item|view|cluster|core|batch"
    r"|anchor|worker|file|query|prediction|objective|dimension|block|layer"
)
RULES = {
    "British spelling": r"colour|grey|behaviour|neighbour|favour|centre|licence|artefact|catalogue|judgement|whilst"
    r"|towards\b|labell|modell(?!o)|travell|fulfil\b|defence|analys(?:e[ds]?\b|ing)|(?:normal|optim|standard|initial"
    r"|solar|random|regular|serial|equal|general|recogn|summar|minim|maxim|real|harmon|organ|special|categor|visual"
    r"|quant|priorit|synchron|penal|custom)is(?:e|ing|ation)",
    "a person's word for code or data": r"\b(?:who|whoever|whom|everyone|everybody|nobody|somebody)\b",
    "logged, reported, printed": r"\b(?:told|tells? of|telling|said|says? so)\b",
    "next to, auxiliary": r"\bbeside\b",
    "step, time": r"(?<!second )\bmoment\b|\b(?:any|random|these|which) moments\b",
    "per, not a": rf"\b(?:{ONE}) an? (?:{THING})\b(?! (?:of|is|was|has))",
    "an entry that starts with a noun": r"^\s+\w+(?:, \w+)*: (?:Of|That|Its|Where it|As it)\b",
    "evaluate": r"\bjudg(?:e[ds]?|ing)\b",
    "dialect": r"\b(?:companions|shelf|verdict|whereabouts)\b",
}
NAME = r"(?:^|_)(?:everyone|whoever|who|told|tell|said|beside|moment|shelf)(?:_|$)"
NAME_IN_CODE = r"(?:^|_)(?:say|moments|taken|news)(?:_|$)"
EXEMPT = {
    "scripts/checks/identity_comparison.py": "maps names of dd31d59 to those of today",
    "tests/test_words.py": "the list itself",
}
NOT_YET: set[str] = set()
"""Files that are still to be repaired."""


def pages() -> list[Path]:
    found = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
    found += [*REPOSITORY.glob("recipes/**/*.md"), *REPOSITORY.glob("recipes/**/*.yaml")]
    return [*found, *REPOSITORY.glob("scripts/*.sh"), *REPOSITORY.glob("docs/**/*.sh")]


def code() -> list[Path]:
    folders = ("sslgh", "scripts", "docs")
    return [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a page, or of a module's strings and comments, with their numbers."""
    if path.suffix != ".py":
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield number, re.sub(r'"[^"]*"', "", line)
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield from enumerate(token.string.splitlines(), token.start[0])


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Names that a module gives to something, with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def faults_of_prose(text: str) -> list[str]:
    """Rules that a line breaks, each with the words."""
    found = ((rule, re.search(words, text, re.IGNORECASE)) for rule, words in RULES.items())
    return [f"'{match[0].strip()}' ({rule})" for rule, match in found if match]


def faults_of_name(name: str) -> list[str]:
    """Words in a name that break a rule."""
    found = (re.search(w, name, re.IGNORECASE) for w in (NAME, RULES["British spelling"]))
    return [f"name {name}" for match in found if match]


def place(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def offenses(path: Path) -> list[str]:
    """Broken rules of a file, with their lines."""
    found = [(n, fault) for n, text in prose(path) for fault in faults_of_prose(text)]
    if path.suffix == ".py":
        found += [
            (n, f"name {name}")
            for n, name in names(path)
            if faults_of_name(name) or re.search(NAME_IN_CODE, name, re.IGNORECASE)
        ]
    return [f"{place(path)}:{n}: {fault}" for n, fault in sorted(found)]


def test_code_and_pages_keep_to_the_words() -> None:
    files = [path for path in (*code(), *pages()) if place(path) not in EXEMPT]
    assert len(files) >= 200
    assert sum(1 for path in files for _ in prose(path)) >= 12_000
    found = [line for path in files if place(path) not in NOT_YET for line in offenses(path)]
    assert found == [], "\n".join(found)


def test_no_message_advises_to_delete_work() -> None:
    texts = [
        (place(path), node.value)
        for path in (REPOSITORY / "sslgh").rglob("*.py")
        if path.name != "loading.py"  # which means a control character
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(texts) >= 3000
    advice = re.compile(r"\b(?:delete|remove|erase|rm) (?:it|that|the |this|old)\b", re.IGNORECASE)
    assert [text for text in texts if advice.search(text[1])] == []


def test_a_file_that_is_repaired_leaves_the_list() -> None:
    assert {file for file in NOT_YET if not offenses(REPOSITORY / file)} == set()
    assert all((REPOSITORY / file).is_file() for file in (*EXEMPT, *NOT_YET))


def test_names_of_tests_keep_to_the_words() -> None:
    found, looked_at = [], 0
    for path in REPOSITORY.glob("tests/**/*.py"):
        tests = [path.stem, *(name for _, name in names(path) if name.startswith("test_"))]
        looked_at += len(tests)
        found += [f"{place(path)}: {name}" for name in tests if faults_of_name(name)]
    assert looked_at >= 1200
    assert found == [], "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "A colour that is normalised.",
        "Raised for whoever called.",
        "It is said once.",
        "State beside the module.",
        "One row a sample, in order.",
        "    seed: Of the run.",
        "    first, second: Of the two views.",
        "The moment of a step.",
    ],
)
def test_the_dialect_is_noticed(text) -> None:
    assert faults_of_prose(text)


def test_plain_english_passes() -> None:
    for text in (
        "One row per sample, normalized by weighted moments.",
        "    seed: Random seed of the run.",
        "Realistic images of a class; the loss of a sample is one image of a batch.",
    ):
        assert faults_of_prose(text) == []
    assert faults_of_name("take_step") == []
    assert faults_of_name("whose") == []
