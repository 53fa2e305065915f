"""How Sphinx builds the documentation: ``sphinx-build -W --keep-going docs FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from clipcheck._version import __version__  # noqa: E402
from tools import reference  # noqa: E402

project = "clipcheck"
version = release = __version__
copyright = "the authors of clipcheck"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["evidence/tables/*"]
html_theme = "furo"
html_title = f"clipcheck {__version__}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # they would make one dash of the two that begin an option

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
nitpicky = True
highlight_language = "text"
# Names of other packages, whose documentation is not at hand where this is built, and what is
# private here.
nitpick_ignore_regex = [(r"py:(class|exc)", r"(?!clipcheck\.\w+$).*")]


def setup(app: Sphinx) -> None:
    """Have the reference pages written from the code."""
    app.connect("source-read", _fill)


def _fill(_app: Sphinx, _name: str, source: list[str]) -> None:
    source[0] = reference.fill(source[0])
