"""HTML pages of one file: template, style and script are written into it, and nothing is loaded.

Whatever comes from a folder or a recipe is text: Jinja escapes it, and data for the script stand in a JSON block
in which no character can end the block.
"""

from functools import cache
from pathlib import Path
from typing import Any

from sslgh.explore.extra import optional
from sslgh.recipe.errors import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, script: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: File name of the template.
        script: File name of the page's own script.
        values: Values of the template.

    Raises:
        ValueError: If jinja2 is missing.
    """
    page = _environment().get_template(template)
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    code = (TEMPLATES / script).read_text(encoding="utf-8")
    return str(page.render(style=style, script=code, **values))


def write_page(path: Path, text: str) -> None:
    """Write a page; what was there stays if that fails."""
    temporary = path.with_name(path.name + ".tmp")
    # A name that is no text: its bytes cannot be shown.
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(path)


def percent(share: float) -> str:
    """A share in percent, with one digit where it is small.

    Examples:
        >>> [percent(share) for share in (0.316, 0.0312, 0.00004)]
        ['32 %', '3.1 %', 'under 0.1 %']
    """
    value = 100 * share
    if 0 < value < 0.1:
        return "under 0.1 %"
    return f"{value:.1f} %" if value < 10 else f"{value:.0f} %"


@cache
def _environment() -> Any:
    jinja2 = optional("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["printable"] = printable
    environment.filters["number"] = "{:,}".format
    return environment
