"""Faults of what a user writes: names of recipes, keys, paths and lists."""

from fault import Fault

NAMED = "recipe/named.py"
LISTS, TABLE = "data/lists.py", "data/list_table.py"

FAULTS = [
    Fault(
        "recipes of another package",
        NAMED,
        '(PACKAGE / "recipes", PACKAGE.parent / "recipes")',
        '(PACKAGE.parent / "recipes", PACKAGE / "recipes")',
        "recipe/test_named.py -k installed",
    ),
    Fault(
        "folder of recipes not stripped",
        NAMED,
        '.removeprefix("recipes/")',
        "",
        "recipe/test_named.py -k bundled",
    ),
    Fault(
        "bundled before the user's file",
        NAMED,
        "        if path.is_file():\n            return path\n",
        "",
        "recipe/test_named.py -k hides",
    ),
    Fault(
        "year read as a number",
        NAMED,
        "return text if parse(text, text) == text else json.dumps(text)",
        "return text",
        "recipe/test_named.py -k photos",
    ),
    Fault(
        "recipe list waits for torch",
        "cli.py",
        "    _print(recipe_lines)\n",
        "    import torch  # noqa: F401\n\n    _print(recipe_lines)\n",
        "recipe/test_named.py -k slow",
    ),
]
