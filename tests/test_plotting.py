"""Figures: the same bytes every time, and rules that can be told apart by everyone."""

import io
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from poq import plotting
from poq.aggregators import AGGREGATORS
from poq.trust import TRUST_RULES

# Machado, Oliveira and Fernandes 2009, severity 1: how a colour looks without long- or middle-wave cones.
BLIND = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
FIRST_FOUR = ("mean", "median", "trimmed_mean", "paper")


@pytest.fixture(autouse=True)
def _theme():
    with mpl.rc_context():
        mpl.use("Agg")
        plotting.use_theme()
        yield
        plt.close("all")


def _lightness(colour: str, blindness: str | None = None) -> np.ndarray:
    """CIE Lab of a colour, as seen."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if blindness:
        linear = np.clip(np.array(BLIND[blindness]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_rule_of_the_engine_has_a_style_of_its_own():
    assert set(AGGREGATORS) | set(TRUST_RULES) <= set(plotting.RULE_STYLES)
    styles = list(plotting.RULE_STYLES.values())
    assert len({colour for colour, _, _ in styles}) == len(styles)
    assert len({marker for _, marker, _ in styles}) == len(styles)


@pytest.mark.parametrize("blindness", [None, *BLIND])
def test_the_main_rules_differ_for_colour_blind_readers(blindness):
    for first, second in itertools.combinations(FIRST_FOUR, 2):
        colours = [plotting.RULE_STYLES[rule][0] for rule in (first, second)]
        distance = np.linalg.norm(_lightness(colours[0], blindness) - _lightness(colours[1], blindness))
        assert distance > 20, (first, second, distance)


def test_in_greyscale_the_main_rules_differ_in_lightness_or_line():
    for first, second in itertools.combinations(FIRST_FOUR, 2):
        one, two = plotting.RULE_STYLES[first], plotting.RULE_STYLES[second]
        grey = abs(_lightness(one[0])[0] - _lightness(two[0])[0])
        assert grey > 10 or one[2] != two[2], (first, second, grey)


def test_a_readers_own_rule_keeps_one_look():
    assert plotting.rule_style("my_rule") == plotting.rule_style("my_rule")
    assert plotting.rule_style("my_rule")["color"] not in {style[0] for style in plotting.RULE_STYLES.values()}
    assert plotting.rule_label("my_rule") == "my rule"


def _figure(kind: str):
    table = pd.DataFrame([[0.1, -0.4], [np.nan, 0.2]], index=["a", "b"], columns=[1, 2])
    figure, axes = plotting.panel_grid(1, 2)
    for ax in axes.flat:
        if kind == "lines":
            plotting.line_band(ax, [0, 1, 2], [1, 2, 3], error=[0.1, 0.2, 0.3], rule="paper")
            plotting.line_band(ax, [0, 1, 2], [2, 2, 2], low=[1, 1, 1], high=[3, 3, 3], label="other")
        elif kind == "forest":
            plotting.forest(ax, ["x", "y"], [0.5, np.nan], [0.2, np.nan], [0.7, np.nan], filled=[True, False])
        else:
            plotting.heatmap(ax, table, label="difference", center=0.0)
    if kind == "lines":
        plotting.legend_below(figure, axes[0, 0])
    return figure


@pytest.mark.parametrize("kind", ["lines", "forest", "heatmap"])
@pytest.mark.parametrize("form", ["png", "svg"])
def test_a_figure_is_the_same_bytes_every_time(kind, form):
    drawn = []
    for _ in range(2):
        buffer = io.BytesIO()
        _figure(kind).savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
        drawn.append(buffer.getvalue())
    assert drawn[0] == drawn[1]


def test_the_ground_is_opaque_and_the_width_that_of_the_page():
    figure = _figure("lines")
    figure.canvas.draw()
    assert np.asarray(figure.canvas.buffer_rgba())[..., 3].min() == 255
    assert figure.get_figwidth() == plotting.WIDTH


def test_a_diverging_map_is_symmetric():
    ax = _figure("heatmap").axes[0]
    low, high = ax.collections[0].get_clim()
    assert (low, high) == (-0.4, 0.4)


def test_the_top_row_of_a_forest_is_the_first_label():
    ax = _figure("forest").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


@pytest.mark.parametrize("given", [{}, {"low": [0]}, {"error": [1], "low": [0], "high": [2]}])
def test_a_band_needs_either_an_error_or_both_ends(given):
    _, axes = plotting.panel_grid()
    with pytest.raises(ValueError, match="either error, or both"):
        plotting.line_band(axes[0, 0], [0], [1], **given)
