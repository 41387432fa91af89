"""The model card of an exported network: its data, recipe, metrics and limits, as far as the run knows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslgh import __version__
from sslgh.evaluation import Result, read_results
from sslgh.evaluation.tables import percent
from sslgh.export.source import Source
from sslgh.recipe import Recipe, RecipeError
from sslgh.recipe.errors import printable, some_of
from sslgh.recipe.loading import to_yaml
from sslgh.recipe.run_recipe import LOCAL, PATHS, load_run

LIMITS = (
    "Features of kinds with few training images are the least certain; look at the few-shot column, not the average.",
    "A network trained on one camera, place or season may not hold for others: measure on images of your own.",
    "The accuracies are of the test images named here, not of other data.",
    "Nothing is known about fairness, and the network was not trained to tell people apart.",
)


TURNED = "Photos are turned upright by their EXIF orientation first, as they were in training."


def model_card(source: Source, loading_lines: Sequence[str]) -> str:
    """Markdown with the front matter of the Hugging Face hub; no path of this machine is in it."""
    recipe = _recipe(source)
    task = "image-classification" if source.class_names else "image-feature-extraction"
    front = [
        "---",
        "library_name: timm",
        f"pipeline_tag: {task}",
        "tags:",
        "- timm",
        "- transformers",
    ]
    parts = [
        [*front, "- sslgh", "---"],
        [f"# {printable(_name(source, recipe))}"],
        [_summary(source)],
        ["## Use", "", "```python", *loading_lines, "```", "", TURNED],
        ["## Data", "", *_data(source, recipe)],
        ["## Metrics", "", *_metrics(read_results(source.run))],
        ["## Limits", "", *(f"- {limit}" for limit in LIMITS)],
        ["## Recipe", "", *_recipe_lines(recipe)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _recipe(source: Source) -> Recipe | None:
    try:
        return load_run(source.run)
    except (RecipeError, OSError):  # a directory with nothing but weights and card
        return None


def _name(source: Source, recipe: Recipe | None) -> str:
    return source.run.name if recipe is None else recipe.name


def _summary(source: Source) -> str:
    kind = (
        f"A classifier of {len(source.class_names)} classes ({some_of(source.class_names)})"
        if source.class_names
        else "A backbone for features"
    )
    card = source.card
    method = printable(str(card.get("method", "unknown")))
    return (
        f"{kind}: {printable(card['backbone'])}, for images of {source.size} x {source.size} pixels, trained with "
        f"`{method}` by sslgh {card.get('sslgh', __version__)}."
    )


def _data(source: Source, recipe: Recipe | None) -> list[str]:
    if recipe is None:
        return ["Not known: the run directory holds no recipe."]
    lines = [f"Source: `{recipe.data.source}`."]
    results = read_results(source.run)
    if results and results[0].group_counts:
        counts = results[0].group_counts
        lines.append(
            f"{sum(counts)} training images in {len(counts)} classes, {max(counts)} to {min(counts)} per class."
        )
    return lines


def _metrics(results: Sequence[Result]) -> list[str]:
    if not results:
        return ["None was measured."]
    lines = [
        "| protocol | objective | many | medium | few | mean over classes |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for objective, scores in result.scores.items():
            groups = scores.metrics["thresholds"]
            shown = [_shown(groups[name]) for name in ("many", "medium", "few", "average")]
            lines.append(
                f"| {result.protocol} v{result.version} | {objective} | {' | '.join(shown)} |"
            )
    return [
        *lines,
        "",
        "Accuracy in percent; many over 100 training images, medium 20 to 100, few under 20.",
    ]


def _shown(value: Any) -> str:
    return "" if value is None else percent(value)


def _recipe_lines(recipe: Recipe | None) -> list[str]:
    if recipe is None:
        return ["Not known."]
    settings = recipe.model_dump(mode="json") | {"run_dir": None}
    for block, key in PATHS:  # names of folders stay on this machine
        path = settings.get(block, {}).get(key)
        if path is not None and (Path(path).is_absolute() or path.startswith(LOCAL)):
            settings[block][key] = None
    return ["```yaml", to_yaml(settings).rstrip("\n"), "```"]
