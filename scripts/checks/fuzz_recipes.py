"""Fuzz recipes and overrides: each is built, or refused in one sentence.

    python scripts/checks/fuzz_recipes.py [--count 1000] [--seed 0] [--steps]

Bundled recipes are changed at random, as values and as text, some with a list of images of a random form, and go
through what ``sslgh pretrain --dry-run`` does before its step: read, override, check, cut the data, build method,
auxiliary state and optimizer. With ``--steps`` those that were built then take the step too, each in a process of its
own. One that takes longer than a minute is counted and stopped: a recipe may ask for images and batches of any size.

A violation is a traceback, an exit code other than 0 and 2 (in the step, where numbers may overflow and memory may not
do, also 1), a refusal that is not one line or names no key, line or override, 20 seconds of computing without an end
(or 200 of waiting), or more memory than the bound. Exit code 1 if there is one.
"""

import argparse
import contextlib
import csv
import io
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import traceback
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from sslgh.data import input_size, training_set
from sslgh.engine.build import AuxiliaryState, build_method, build_network
from sslgh.engine.exit_codes import run_command
from sslgh.engine.finetuning import dry_run_finetuning
from sslgh.engine.launch import init_accelerator
from sslgh.engine.memory import memory_guard
from sslgh.engine.optim import build_optimizer
from sslgh.engine.pretraining import dry_run_pretraining
from sslgh.methods import METHODS
from sslgh.recipe import Recipe, load_recipe
from sslgh.recipe.errors import _model_in
from sslgh.recipe.named import recipe_files

SECONDS = 20
WAITING = 10
STEP_SECONDS = 60
# Address space beyond what Python and torch have mapped at the start.
ROOM = 4 * 2**30
RECIPES = [p for p in recipe_files() if p.parent.name in ("digits-lt", "folder", "imagenet-lt")]


def keys(
    model: Any = Recipe, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths of all settings of the schema, with their types."""
    for name, field in model.model_fields.items():
        yield (*before, name), field.annotation
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from keys(inner, (*before, name))


OF_METHODS = ("temperature", "momentum", "queue", "prototypes", "lambd", "gamma", "queue_start")
TYPES = dict(keys()) | {("method", name): float | int for name in OF_METHODS}
KEYS = list(TYPES)
NAMES = {name for path in KEYS for name in path}

numbers = st.one_of(
    st.sampled_from(
        [0, 1, 2, 3, 5, 8, -1, 0.5, 1e-3, 1e-30, 1e30, 1e300, 2**31, 2**32, 2**63, 10**25]
    ),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 10**6, 10**9, 64, 100, 200]),
    st.integers(-10, 1000),
    st.floats(0, 2),
)
words = st.one_of(
    st.sampled_from(
        ["1e-3", "1:30", "010", "0x1f", "1_000", "yes", "no", "on", "null", "~", "", "."]
    ),
    st.sampled_from(
        ["../../x", "/", "~", "~unknown/x", "a" * 300, "x\0y", "<script>", "=", "<<", "*a"]
    ),
    st.sampled_from(
        ["2024-01-01", "timm:../../x", "timm:resnet10t", "torchvision:resnet18", "vit_tiny"]
    ),
    st.sampled_from(
        ["resnet20", "vit_large", "swin_tiny", "convnext_tiny", "pretrained", "digits"]
    ),
    st.sampled_from(
        [*METHODS, "adamw", "lars", "faiss", "prototypes", "bf16", "supcon", "rcl", "step"]
    ),
    st.text(max_size=12),
)
scalars = st.one_of(numbers, words, st.booleans(), st.none())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(NAMES)) | st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
marks = st.sampled_from(
    [
        "\t",
        "&a ",
        "*a",
        "<<: ",
        "!!python/object:os.system ",
        "\0",
        "\x1b[31m",
        "\ufeff",
        "---\n",
        "{",
        "]",
        ": ",
        "'",
    ]
)


OF_TYPES: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, 40) | st.sampled_from([1, 2, 4, 8, 64, 10**6, 10**9]),
    float: st.floats(0, 1) | st.sampled_from([1e-3, 0.5, 1, 2, 1e4, 1e30]),
    type(None): st.none(),
    str: words,
    Path: words,
}


def plausible(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of about the type that a setting has."""
    if annotation in OF_TYPES:
        return OF_TYPES[annotation]
    parts, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is tuple and parts[1:] == (...,):
        return st.lists(plausible(parts[0]), min_size=1, max_size=3)
    if origin is tuple:
        return st.tuples(*map(plausible, parts)).map(list)
    return st.one_of([plausible(part) for part in parts] or [values])


# Three of four changes are of the right type, or hardly a recipe would be built.
CHANGES = {path: st.one_of(*[plausible(kind)] * 3, values) for path, kind in TYPES.items()}


class Case(NamedTuple):
    """A recipe as text, overrides, and the list that it trains on, if any."""

    text: str
    overrides: list[str]
    listed: str | None = None

    def write(self, folder: Path) -> tuple[Path, list[str]]:
        """Write the recipe and its list; returns the file and all overrides."""
        path = folder / "fuzzed.yaml"
        path.write_bytes(self.text.encode("utf-8", "surrogatepass"))
        if self.listed is None:
            return path, self.overrides
        file = folder / "list.txt"
        file.write_bytes(self.listed.encode("utf-8", "surrogatepass"))
        data = f"data={{source: list, root: {folder}, list: {file}, size: 16, workers: 0}}"
        return path, [data, *self.overrides]


# Images of lists; the third is missing.
PHOTOS = ("a.png", "sub/b, c.png", "gone.png", "d;e f 7.png")
labels = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "-1", "0.0", "0.5", "", "nan", "cat", "great owl", "d,e", "7" * 30]
    ),
    st.text(max_size=4),
)


@st.composite
def lists(draw: st.DrawFn) -> str:
    """Lists of images: plain or tables, with a first line of names or not, whole or damaged."""
    rows = draw(st.lists(st.tuples(st.sampled_from(PHOTOS), labels), min_size=1, max_size=12))
    header = draw(st.sampled_from([[], [("path", "label")], [("label", "file")], [("x", "y")]]))
    if sound := draw(st.integers(0, 3)) > 0:  # or hardly a recipe would be built
        kinds = draw(st.sampled_from([["0", "1"], ["cat", "dog"], ["3.0", "0.0"]]))
        rows = [(PHOTOS[i % 2], kinds[i % 2]) for i in range(draw(st.integers(20, 40)))]
        header = header if header == [("path", "label")] else []
    if draw(st.integers(0, 3)):
        content = io.StringIO()
        csv.writer(
            content, delimiter=draw(st.sampled_from(",;\t")), quoting=draw(st.sampled_from([0, 1]))
        ).writerows([*header, *rows])
        text = content.getvalue()
    else:
        text = "".join(f"{path} {label}\n" for path, label in rows)
    if not sound and draw(st.booleans()):
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(marks | st.text(max_size=3)) + text[place:]
    return draw(st.sampled_from(["", "\ufeff"])) + text.replace("/", draw(st.sampled_from("/\\")))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Bundled recipes with one to three changes, and up to two overrides."""
    recipe = yaml.safe_load(draw(st.sampled_from(RECIPES)).read_text())
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(KEYS))
        value = draw(CHANGES[path])
        replace(recipe, path, value, gone=draw(st.integers(0, 9)) == 0)
    # allow_unicode leaves a text as the user's editor writes it.
    text = yaml.safe_dump(recipe, allow_unicode=draw(st.booleans()))
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(marks | st.text(max_size=3)) + text[place:]
    changed = draw(st.lists(st.sampled_from(KEYS), max_size=2))
    overrides = [f"{'.'.join(path)}={draw(CHANGES[path])}" for path in changed]
    if draw(st.integers(0, 9)) == 0:
        overrides.append(draw(st.text(max_size=20)))
    return Case(text, overrides, draw(st.none() | lists()) if draw(st.booleans()) else None)


def replace(settings: Any, path: tuple[str, ...], value: Any, *, gone: bool) -> None:
    """Set, or take away, what stands at a path, as far as blocks lead there."""
    *blocks, last = path
    for name in blocks:
        inner = settings.setdefault(name, {})
        settings = inner[0] if isinstance(inner, list) and inner else inner
        if not isinstance(settings, dict):
            return
    settings[last] = value
    if gone:
        del settings[last]


def build(path: Path, overrides: list[str]) -> None:
    """What a dry run does before its step."""
    recipe = load_recipe(path, overrides)
    images = training_set(recipe.data)
    size = input_size(recipe.data, images)
    with memory_guard(recipe):
        if recipe.finetune is not None:
            network = build_network(recipe, size, max(len(images.class_names or ()), 2))
        else:
            network = build_method(recipe, size)
            AuxiliaryState(recipe, images, network)
    build_optimizer(network, recipe.optim)


def take_step(path: Path, overrides: list[str], output: Path) -> None:
    """What a dry run does, in a process that is there for it; what it says goes to a file."""
    os.setsid()  # so that its workers can be ended with it
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def attempt() -> None:
        recipe = load_recipe(path, overrides)
        try_ = dry_run_pretraining if recipe.finetune is None else dry_run_finetuning
        try_(recipe, init_accelerator(recipe.train.processes))

    sys.exit(run_command(attempt))


def draw_photos(folder: Path) -> None:
    """The images of the lists, all but the missing one."""
    for name in PHOTOS:
        if name != "gone.png":
            (folder / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (20, 20)).save(folder / name)


def step_outcome(case: Case, folder: Path) -> tuple[str, str]:
    """How the first step of a recipe that can be built ends, and its output."""
    (path, overrides), output = case.write(folder), folder / "output"
    # A fork, which has torch imported already.
    process = multiprocessing.get_context("fork").Process(
        target=take_step, args=(path, overrides, output)
    )
    process.start()
    process.join(STEP_SECONDS)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return "unfinished", ""
    text = output.read_text(errors="replace")
    if process.exitcode not in (0, 1, 2) or "Traceback" in text:
        return f"exit {process.exitcode}", text
    return ("stepped", "failed in one sentence", "refused")[process.exitcode], text


class HangError(BaseException):
    """More seconds than a recipe may take; no `run_command` may catch it."""


def _hang(*_: Any) -> None:
    raise HangError


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """How a case ended: "built", "refused", or what is wrong, and its output."""
    path, overrides = case.write(folder)
    output = io.StringIO()
    # Other programs may keep the cores busy: seconds of this process count, and the clock where it only waits.
    signal.signal(signal.SIGPROF, _hang)
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING * SECONDS)
    try:
        with contextlib.redirect_stderr(output):
            code = run_command(lambda: build(path, overrides))
    except HangError:
        return "hang", ""
    except BaseException:  # whatever it is, it is what is looked for
        return "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    if code == 0:
        return "built", ""
    lines = output.getvalue().splitlines()
    if code != 2:
        return f"exit {code}", output.getvalue()
    if len(lines) != 1 or not lines[0].isprintable() or not _names_a_place(lines[0]):
        return "poor sentence", output.getvalue()
    return "refused", lines[0]


def _names_a_place(sentence: str) -> bool:
    # The file's own name is no place: every sentence about a recipe has it.
    text = sentence.replace("fuzzed.yaml", "")
    return bool(NAMES & set(re.findall(r"\w+", text))) or "line " in text or "override " in text


class Fuzzed(NamedTuple):
    """Outcomes counted, cases that could be built, and those that are violations."""

    outcomes: Counter[str]
    built: list[Case]
    violations: list[tuple[Case, str, str]]


def fuzz(count: int, start: int = 0) -> Fuzzed:
    """Look at so many cases."""
    outcomes: Counter[str] = Counter()
    built: list[Case] = []
    violations: list[tuple[Case, str, str]] = []

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def look(case: Case) -> None:
        kind, output = outcome(case, folder)
        outcomes[kind] += 1
        if kind == "built":
            built.append(case)
        elif kind != "refused":
            violations.append((case, kind, output))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_photos(folder)
        look()
    return Fuzzed(outcomes, built, violations)


def fuzz_steps(cases_: list[Case]) -> Fuzzed:
    """Have recipes that can be built take their first step."""
    outcomes: Counter[str] = Counter()
    violations: list[tuple[Case, str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        draw_photos(Path(name))
        for case in cases_:
            kind, output = step_outcome(case, Path(name))
            outcomes[kind] += 1
            if kind.startswith("exit"):
                violations.append((case, kind, output))
            print(f"{sum(outcomes.values())} of {len(cases_)}", end="\r", file=sys.stderr)
    return Fuzzed(outcomes, cases_, violations)


def bound_memory(room: int = ROOM) -> None:
    """Let this process map no more than so many bytes beyond what it has now."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_AS, (mapped + room, resource.getrlimit(resource.RLIMIT_AS)[1])
    )


def main() -> int:
    """Fuzz, print violations and one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", action="store_true")
    asked = parser.parse_args()
    bound_memory()
    found = fuzz(asked.count, asked.seed)
    sound = report("recipes", found)
    if asked.steps:
        sound = report("steps", fuzz_steps(found.built)) and sound
    return 0 if sound else 1


def report(what: str, found: Fuzzed) -> bool:
    """Print violations and one line of figures; whether there are none."""
    for case, kind, output in found.violations[:20]:
        print(f"--- {kind}\n{case.overrides!r}\n{case.text!r}\n{case.listed!r}\n{output[-3000:]}")
    usage_of = resource.RUSAGE_CHILDREN if what == "steps" else resource.RUSAGE_SELF
    peak = resource.getrusage(usage_of).ru_maxrss / 1e6
    counts = ", ".join(f"{number} {kind}" for kind, number in found.outcomes.most_common())
    print(
        f"{found.outcomes.total()} {what}: {counts}; {len(found.violations)} violations; peak {peak:.2f} GB resident, "
        f"{ROOM / 2**30:.0f} GiB of address space allowed beyond the start",
        flush=True,
    )
    return not found.violations


if __name__ == "__main__":
    sys.exit(main())
