"""Text from outside does nothing on a page."""

from html.parser import HTMLParser

from poq.escape import label, quote, reveal


def test_markup_and_formulas_stay_text():
    nasty = '<script>alert(1)</script> <img src=x onerror="y"> $\\href{javascript:z}{x}$ &amp; **bold**'
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append((tag, dict(attributes)))

        def handle_data(self, data):
            seen.append(data)

    reader = Reader(convert_charrefs=True)
    reader.feed(quote(nasty))
    assert seen[0] == ("bdi", {"class": "mathjax_ignore tex2jax_ignore"})
    assert "".join(seen[1:]) == nasty


def test_what_cannot_be_seen_is_written_out():
    assert reveal("a\x00b\x1b[2Jc\u202edet\u200b") == "a\\u0000b\\u001b[2Jc\\u202edet\\u200b"
    assert reveal("two\n\n  lines\r\n") == "two lines"
    assert reveal("\ud800") == "\\ud800"


def test_other_scripts_stay_as_they_are():
    assert reveal("naïve 東京 שלום ½") == "naïve 東京 שלום ½"


def test_long_text_is_cut_and_says_so():
    assert reveal("x" * 500, limit=10) == "x" * 10 + " ..."
    assert reveal("y" * 10, limit=10) == "y" * 10
    assert len(reveal("\u202e" * 500, limit=10)) == 64


def test_a_label_is_never_a_formula():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().set_title(label("costs $\\undefined and $x^$ more\n"))
    figure.draw_without_rendering()  # a formula would be a parse error
    assert label("a $ b") == r"a \$ b"
