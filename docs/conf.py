"""How Sphinx builds the documentation: `sphinx-build -W --keep-going -n docs docs/_build/html`."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

from docutils import nodes

project = "pytest-nanstab"
author = "The pytest-nanstab developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["page.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"
smartquotes = False  # options are typed with two hyphens

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

release = importlib.metadata.version("pytest-nanstab")
version = release
html_title = f"pytest-nanstab {release}"

autodoc_typehints = "none"  # the signatures stand in the code, and the words beside them in the docstrings
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False  # what is public is imported from the package, wherever it lives
maximum_signature_line_length = 90
autoclass_content = "class"
napoleon_use_ivar = True
napoleon_use_param = False
nitpicky = True
# Names of torch, numpy and Hypothesis would need their inventories, and so the network, to be looked up.
nitpick_ignore_regex = [("py:.*", r"(?!pytest_nanstab\.).*")]

copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

_TITLED = re.compile(r'^( *)```(\w+) title="([^"]+)".*$', re.MULTILINE)
_PLAIN = re.compile(r"^( *)```(console|text|python)(?: [^`\n]+)$", re.MULTILINE)

_CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)")
_ARGUMENTS = (".TrainingSetup", ".TensorSpec")
_NEVER_GIVEN = re.compile(r"^(:Parameters:) \* \*\*function\*\* -- .*$")  # it catches a decorator without parentheses
_DASH = "\N{EN DASH}"
_LISTED = re.compile(r"(\*\*\S+\*\*) -- ")


def _captions(app: Any, docname: str, source: list[str]) -> None:
    """Titles of fenced blocks become captions; what only the tests read is left out."""
    text = _TITLED.sub(r"\1```{code-block} \2\n\1:caption: \3\n", source[0])
    source[0] = _PLAIN.sub(r"\1```\2", text)


def _literals(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings mark code with single backticks, as Markdown does."""
    lines[:] = [_CODE.sub(r"``\1``\ ", line) for line in lines]
    lines[:] = [_LISTED.sub(rf"\1 {_DASH} ", _NEVER_GIVEN.sub(r"\1", line)) for line in lines]
    lines[:] = [re.sub(r"^(:vartype \w+:) .*Literal\[.*\]( \| None)?$", r"\1 str\2", line) for line in lines]
    if name.endswith(_ARGUMENTS):  # their attributes are what they are called with
        lines[:] = [line.replace(":ivar ", ":param ").replace(":vartype ", ":type ") for line in lines]


def _dashes(app: Any, tree: nodes.document, docname: str) -> None:
    """Between an attribute and what it is Sphinx sets two hyphens, which `smartquotes` would make a dash."""
    for text in list(tree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(f" {_DASH} "))


def setup(app: Any) -> None:
    """Register the above."""
    app.connect("doctree-resolved", _dashes)
    app.connect("source-read", _captions)
    app.connect("autodoc-process-docstring", _literals)
