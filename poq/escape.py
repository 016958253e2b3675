"""Text from outside, made safe to show on a page: what a system or a reader's file says is data, never markup."""

from __future__ import annotations

import html
import unicodedata

# Control, format (such as marks that turn the direction of writing), surrogate, private-use and unassigned characters.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn"}


def reveal(text: str, *, limit: int = 400) -> str:
    r"""The text in one line, with every character that cannot be seen written out, cut after `limit` characters.

    >>> reveal("ten\x1b[31m points")
    'ten\\u001b[31m points'
    """
    text = " ".join(str(text).split())
    cut = text if len(text) <= limit else text[:limit].rstrip() + " ..."
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _UNSEEN else c for c in cut)


def quote(text: str, *, limit: int = 400) -> str:
    """The text as a piece of HTML that shows it and does nothing: no markup, no formula, no link, its own direction."""
    safe = html.escape(reveal(text, limit=limit))
    return f'<bdi class="mathjax_ignore tex2jax_ignore">{safe}</bdi>'


def label(text: str, *, limit: int = 60) -> str:
    r"""The text as a label in a figure, where a dollar sign must not begin a formula.

    >>> label("$5 and $6")
    '\\$5 and \\$6'
    """
    return reveal(text, limit=limit).replace("$", r"\$")
