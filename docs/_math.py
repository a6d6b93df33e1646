"""Formulas of pages and docstrings as MathML, which browsers draw without a script or a font from elsewhere."""

import html
import re
import textwrap

import griffe
from latex2mathml.converter import convert


def on_page_content(content, **_):
    """MkDocs hook: replace what arithmatex has marked as LaTeX."""
    inline = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
    block = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
    content = inline.sub(lambda m: convert(html.unescape(m[1])), content)
    return block.sub(lambda m: convert(html.unescape(m[1]), display="block"), content)


class DollarMath(griffe.Extension):
    """reStructuredText's math in docstrings as the Markdown of the pages; examples as a section of their own."""

    def on_object(self, *, obj, **_):
        """Rewrite an object's docstring before it is parsed."""
        if obj.docstring:
            text = re.sub(r":math:`(.+?)`", r"$\1$", obj.docstring.value)
            block = re.compile(r"^\.\. math::\n((?: +.*\n)+)", re.MULTILINE)
            text = block.sub(lambda m: f"$$\n{textwrap.dedent(m[1])}$$\n", text)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
