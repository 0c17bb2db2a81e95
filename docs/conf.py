"""Sphinx, from the root of a checkout with the extra `docs` installed: `python -m sphinx -W -c docs . build/docs`.

The root is the source, so that links to notes and to other files hold in the built pages as they do in a checkout.
"""

from infoprune import __version__

project = "infoprune"
author = "The infoprune authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/results/**.md", "examples/**.md"]
include_patterns += ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".*", "build", "dist", "runs", "tests", "infoprune"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"infoprune {release}"
html_copy_source = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
default_role = "code"  # docstrings write `names` as Markdown does


def bars_are_bars(app, what, name, obj, options, lines):
    """|F| in a formula is no substitution of reStructuredText's."""
    lines[:] = [line if line.lstrip().startswith((">>>", "...")) else line.replace("|", r"\|") for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", bars_are_bars)
