"""Faults of what a user writes: names of recipes, keys, paths and lists."""

from fault import Fault

NAMED = "recipe/named.py"
LISTS, TABLE = "data/lists.py", "data/list_table.py"

FAULTS = [
    Fault("recipes of another package", NAMED, '(PACKAGE / "recipes", PACKAGE.parent / "recipes")', '(PACKAGE.parent / "recipes", PACKAGE / "recipes")', "recipe/test_named.py -k installed"),
    Fault("folder of recipes not stripped", NAMED, '.removeprefix("recipes/")', "", "recipe/test_named.py -k bundled"),
    Fault("bundled before the user's file", NAMED, "        if path.is_file():\n            return path\n", "", "recipe/test_named.py -k hides"),
    Fault("year read as a number", NAMED, "return text if parse(text, text) == text else json.dumps(text)", "return text", "recipe/test_named.py -k photos"),
    Fault("recipe list waits for torch", "cli.py", "    _print(recipe_lines)\n", "    import torch  # noqa: F401\n\n    _print(recipe_lines)\n", "recipe/test_named.py -k slow"),
    Fault("keys of other sources ignored", "recipe/data.py", "if key not in READS[self.source] and self._gives(key)", "if False", "recipe/test_source_keys.py -k refused"),
    Fault("absolute root of digits refused", "recipe/data.py", "not (given == default or same_root)", "given != default", "recipe/test_source_keys.py -k absolute"),
    Fault("variable taken for nothing", "recipe/base.py", "if unset := [name for name in names if not os.environ.get(name)]:", "if unset := [name for name in names if name not in os.environ]:", "recipe/test_source_keys.py -k not_set"),
    Fault("dollar sign never meant", "recipe/base.py", "    if os.path.lexists(text):\n        return text\n", "", "recipe/test_source_keys.py -k dollar"),
    Fault("message grows with the data", "recipe/errors.py", "first = values if len(values) <= most + 1 else values[:most]", "first = values", "recipe/test_source_keys.py -k few"),
    Fault("backslashes never separate", TABLE, "for slashes in (False, True) if backslashes else (False,):", "for slashes in (False,):", "data/test_list_table.py -k clear"),
    Fault("table preferred to plain lines", TABLE, "if found > best.found:", "if found >= best.found:", "data/test_lists.py -k some_lines"),
    Fault("names of columns read as an image", TABLE, "named = len(lines) > 1 and _is_header", "named = False and _is_header", "data/test_list_table.py -k clear"),
    Fault("half a class", LISTS, '(match["fraction"] or "").strip("0") or', "", "data/test_list_table.py -k unlike"),
    Fault("minus one is one", LISTS, '(match["sign"] == "-" and number)', "False", "data/test_list_table.py -k unlike"),
    Fault("classes in order of the lines", LISTS, "known or tuple(sorted(first))", "known or tuple(first)", "data/test_list_table.py -k order"),
    Fault("numbers taken for other names", LISTS, "if classes and classes != tuple(map(str, range(len(classes)))):", "if False:", "data/test_list_table.py -k other_classes"),
]  # fmt: skip
