"""Sphinx configuration of the site. ``build.py`` beside this file gathers the pages and runs Sphinx on them."""

import re

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

project = "manifold-lib"
author = "The manifold-lib authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]

nb_execution_mode = "off"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["colon_fence", "dollarmath", "html_image"]
myst_heading_anchors = 4

autosummary_generate = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"
nitpicky = True
nitpick_ignore_regex = [
    ("py:(class|obj|exc)", r"(?!manifold_lib\.).*"),  # types of Python and of torch, which have pages elsewhere
    ("py:.*", r"manifold_lib\.\w+\.\w+.*"),  # what is not public has no page
]

html_theme = "sphinx_book_theme"
html_title = "manifold-lib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "use_download_button": False,
    "home_page_in_toc": True,
    "toc_title": "On this page",
    "navbar_persistent": [],  # the sidebar has the field for searching
}
html_context = {"default_mode": "light"}  # figures are drawn on white
html_use_index = False
html_domain_indices = False
html_math_renderer = "mathml"

_CONVERTER = LatexToMathML(fancy_error=False)


def write_mathml(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw themselves: pages need no script and no network for it."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = _CONVERTER.convert_with_local_state(node.astext(), displaystyle=block)
    except LatexError as error:
        logging.getLogger(__name__).warning("formula %r: %s", node.astext(), error, location=node)
        formula = translator.encode(node.astext())
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def escape(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Keep the * of a shape such as (B, *shape) and the | of a norm such as |A| from being read as markup."""
    kept = r"``.*?``|`[^`]*`|\*\w[^*]*\w\*(?!\w)"  # code, roles and emphasis
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[number] = re.sub(rf"({kept})|([*|])", lambda found: found[1] or "\\" + found[2], line)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer of formulas, and the escape, which comes before numpydoc."""
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.connect("autodoc-process-docstring", escape, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
