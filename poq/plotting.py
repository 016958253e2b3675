"""One look for every figure: a theme, one style per rule through the whole book, and a few plain helpers.

Colours are distinguishable by colour-blind readers; where many rules meet, marker and line style carry the difference
in greyscale too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

# One entry per rule: colour, marker, line style. Add a rule here and it keeps its look in every chapter.
RULE_STYLES = {
    "mean": ("#222222", "o", "-"),
    "median": ("#0072B2", "s", "--"),
    "trimmed_mean": ("#56B4E9", "^", "-."),
    "paper": ("#D55E00", "D", "-"),
    "winsorised_mean": ("#009E73", "v", ":"),
    "mad_inlier_mean": ("#CC79A7", "P", "--"),
    "huber": ("#A89A00", "X", "-."),
    "quantile_clip": ("#8C510A", "<", ":"),
    "recentred": ("#E69F00", ">", "--"),
    "ema": ("#882255", "h", "-."),
    "calibrated": ("#117733", "*", "-"),
    "audited": ("#332288", "p", "--"),
    "oracle": ("#888888", "d", ":"),
}
_SPARE = [
    (colour, marker, line)
    for line, (colour, marker) in itertools.product(
        ("-", "--", ":"), (("#661100", "1"), ("#6699CC", "2"), ("#AA4466", "3"), ("#44AA99", "4"), ("#999933", "8"))
    )
]
RULE_LABELS = {"paper": "trust-weighted (paper)", "mad_inlier_mean": "MAD inlier mean"}
# Roles: no colour of theirs is that of a rule of the papers.
HONEST, MALICIOUS, THEORY = "#228833", "#AA3377", "#222222"
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C510A"]
DIVERGING, SEQUENTIAL = "RdBu_r", "cividis"
WIDTH = 8.0  # inches: the width of the text column


def use_theme() -> None:
    """Set the book's look. Call it once, after the imports of a chapter."""
    sns.set_theme(context="notebook", style="whitegrid", palette=PALETTE)
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 4.5),
            "figure.dpi": 150,
            "figure.facecolor": "white",  # opaque, so that a figure is readable on a dark page
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "savefig.bbox": None,
            "svg.hashsalt": "poq",
            "font.family": ["DejaVu Sans"],  # shipped with matplotlib: the same figure on every machine
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#e2e2e2",
            "lines.linewidth": 2.0,
            "lines.markersize": 6,
            "legend.frameon": False,
            "errorbar.capsize": 3,
        }
    )


def rule_style(rule: str) -> dict[str, str]:
    """Colour, marker and line style of a rule, as keywords for ``ax.plot``. A reader's own rule gets a spare style.

    The spare style depends on the rule's name alone, so that a rule looks the same in every figure.
    """
    if rule in RULE_STYLES:
        colour, marker, line = RULE_STYLES[rule]
    else:
        colour, marker, line = _SPARE[sum(rule.encode()) % len(_SPARE)]
    return {"color": colour, "marker": marker, "linestyle": line}


def rule_label(rule: str) -> str:
    """The name of a rule as readers see it."""
    return RULE_LABELS.get(rule, rule.replace("_", " "))


def panel_grid(rows: int = 1, columns: int = 1, *, height: float = 3.2, sharex: bool = True, sharey: bool = True):
    """Figure of the book's width with rows x columns panels, each ``height`` inches high; axes as a 2-D array."""
    return plt.subplots(
        rows, columns, figsize=(WIDTH, height * rows), sharex=sharex, sharey=sharey, squeeze=False, layout="constrained"
    )


def line_band(ax, x, y, *, error=None, low=None, high=None, rule: str | None = None, label: str | None = None, **style):
    """Draw a line with its uncertainty as a band.

    Parameters
    ----------
    ax : Axes
    x, y : array_like, shape (P,)
    error : array_like, shape (P,), optional
        Half width of the band, such as two standard errors.
    low, high : array_like, shape (P,), optional
        Ends of the band, instead of ``error``.
    rule : str, optional
        Takes colour, marker, line style and label of this rule.
    """
    x, y = np.asarray(x), np.asarray(y, dtype=float)
    if (error is None) == (low is None and high is None) or (low is None) != (high is None):
        raise ValueError("line_band: give either error, or both low and high")
    if error is not None:
        low, high = y - np.asarray(error, dtype=float), y + np.asarray(error, dtype=float)
    if rule is not None:
        style = {**rule_style(rule), **style}
        label = rule_label(rule) if label is None else label
    (line,) = ax.plot(x, y, label=label, **style)
    ax.fill_between(x, np.asarray(low, float), np.asarray(high, float), color=line.get_color(), alpha=0.18, linewidth=0)
    return line


def forest(ax, labels: Sequence[str], value, low, high, *, filled=None, color: str = HONEST, reference=0.0) -> None:
    """Draw one row per label: a point with its interval, the first label on top.

    Parameters
    ----------
    ax : Axes
    labels : sequence of str, length P
    value, low, high : array_like, shape (P,)
        Estimate and ends of its interval; NaN draws nothing.
    filled : array_like of bool, shape (P,), optional
        False draws an open marker, such as for a reference-based evaluator.
    reference : float or None
        Where to draw a vertical line.
    """
    value, low, high = (np.asarray(part, dtype=float) for part in (value, low, high))
    filled = np.ones(len(labels), dtype=bool) if filled is None else np.asarray(filled, dtype=bool)
    rows = np.arange(len(labels))
    ax.hlines(rows, low, high, color=color, linewidth=2)
    ax.scatter(value, rows, s=46, zorder=3, edgecolors=color, facecolors=np.where(filled, color, "white"))
    if reference is not None:
        ax.axvline(reference, color="#666666", linewidth=1, zorder=0)
    ax.set_yticks(rows, labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def heatmap(ax, table, *, label: str, center: float | None = None, fmt: str = ".2f", annotate: bool = True, **options):
    """Draw a DataFrame as a map with its numbers in the cells; ``center`` chooses a diverging scale around it.

    A diverging scale is made symmetric, so that equal distances from the centre are equally strong.
    """
    if center is not None and not {"vmin", "vmax"} & set(options):
        reach = np.nanmax(np.abs(table.to_numpy(dtype=float) - center)) if table.size else 1.0
        reach = reach if reach > 0 else 1.0
        options |= {"vmin": center - reach, "vmax": center + reach}
    options = {"cmap": SEQUENTIAL if center is None else DIVERGING, "linewidths": 0.5, **options}
    sns.heatmap(table, ax=ax, annot=annotate, fmt=fmt, center=center, cbar_kws={"label": label}, **options)
    ax.tick_params(rotation=0)


def legend_below(figure, ax, *, columns: int = 4) -> None:
    """Put one legend, taken from ``ax``, under the whole figure, where it hides nothing on a narrow screen."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, max(1, len(labels))))
