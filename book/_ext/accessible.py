"""Mend what the theme, the tables of pandas and Sphinx's signatures leave wrong for a screen reader."""

import re
from pathlib import Path

MENDED = (
    # The side bar is a landmark of its own, so that nothing of the page stands outside of all landmarks.
    (r'<div id="pst-primary-sidebar"', '<div id="pst-primary-sidebar" role="complementary" aria-label="Side bar"'),
    # A corner without a word is no heading of its column.
    (r"<th></th>", "<td></td>"),
    (r'<th class="head"><p></p></th>', '<td class="head"><p></p></td>'),
)
# The parameters of a long signature are a list, not a list of definitions without terms.
SIGNATURE = re.compile(r'<dl>((?:\s*<dd><em class="sig-param">.*?</dd>)+\s*)</dl>', flags=re.DOTALL)


def setup(app):
    """Register the last pass over the pages."""
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _mend(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" in path.relative_to(app.outdir).parts:
            continue
        text = mended = path.read_text(encoding="utf-8")
        for pattern, better in MENDED:
            mended = re.sub(pattern, better, mended)
        mended = SIGNATURE.sub(_listed, mended)
        if mended != text:
            path.write_text(mended, encoding="utf-8")


def _listed(block: re.Match) -> str:
    return f'<ul class="sig-params">{block[1].replace("<dd>", "<li>").replace("</dd>", "</li>")}</ul>'
