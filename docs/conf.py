"""How Sphinx makes the site (`make docs`). Its source folder is the whole project, so that links hold in both."""

import re
import sys
from html import escape
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.logging import getLogger

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from pages import from_docs, readable  # noqa: E402 (it lies beside this file)

project = "prle"
language = "en"
root_doc = "docs/index"
extensions = ["myst_nb"]
include_patterns = ["docs/**", "nbs/**", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["nbs/index.ipynb", "**.ipynb_checkpoints"]

nb_execution_mode = "off"  # the stored outputs serve
nb_ipywidgets_js = {}  # nothing from another host
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "prle"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
templates_path = ["templates"]
html_additional_pages = {"index": "first.html"}  # leads to docs/index.html
html_copy_source = False
html_show_sphinx = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
toc_object_entries = (
    False  # thousands, in the navigation of every page: half of the time that a build takes
)
add_module_names = False


def edit_source(app, name, source):
    "Make a page's source what readers want, before it is parsed."
    if str(app.env.doc2path(name)).endswith(".ipynb"):
        source[0] = readable(source[0])
    elif name == root_doc:
        readme = (HERE.parent / "README.md").read_text()
        source[0] = source[0].replace("{README}", from_docs(readme))


MEANT = {r"\\[bB]ig\b": "", r"\\textbf\b": r"\\mathbf", r"\\dots\b": r"\\ldots"}
"What docutils cannot read, and what says the same: MathML's brackets grow by themselves."


def mathml(node, **how):
    "Return a formula as MathML, which browsers show by themselves; what cannot be read is warned of."
    tex = node.astext()
    for pattern, same in MEANT.items():
        tex = re.sub(pattern, same, tex)
    try:
        return tex2mathml(tex, **how)
    except MathError as error:
        getLogger(__name__).warning("formula: %s", error, location=node)
        return escape(node.astext())


def inline_formula(writer, node):
    "Write a formula in a line."
    writer.body.append(mathml(node))
    raise SkipNode


def formula(writer, node):
    "Write a formula of its own; it can be scrolled with the keyboard where it is too wide."
    made = mathml(node, as_block=True)
    writer.body.append(f'<div class="formula" tabindex="0">{made}</div>')
    raise SkipNode


def short_navigation(app, name, template, context, doctree):
    "Let the contents of a page be open where it stands and closed elsewhere; the theme opens all."
    whole = context.get("toctree")

    def toctree(**how):
        return whole(**how | dict(collapse=True))

    context["toctree"] = toctree


def setup(app):
    "Tell Sphinx."
    app.connect("html-page-context", short_navigation, priority=400)  # before the theme, at 500
    app.connect("source-read", edit_source)
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
