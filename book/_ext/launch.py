"""Mend the theme's Binder link for a repository that is neither on GitHub nor on GitLab: Binder wants it quoted."""

import re
from urllib.parse import quote


def setup(app):
    """Run after the theme has made its buttons."""
    app.connect("html-page-context", _quote, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _quote(app, pagename, templatename, context, doctree):
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []) if group.get("label") == "launch-buttons" else []:
            # The theme leaves the slashes; "%3A" shows that it has quoted the rest.
            whole = r"(/v2/git/)(https?)%3A//(.+)(/[^/?]+\?)"
            button["url"] = re.sub(whole, lambda m: m[1] + quote(f"{m[2]}://{m[3]}", safe="") + m[4], button["url"])
