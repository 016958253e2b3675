"""The explorer, operated in a real browser: what it shows is what the table holds."""

import re
from decimal import ROUND_HALF_UP, Decimal
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pandas as pd
import pytest

from book.build import build_chapter
from poq import explorer, simulate
from poq.plotting import rule_label
from poq.synthetic import synthetic_log

EVIL = '</script><img src=x onerror="document.title=\'broken\'"> & <!-- "q" $x$ = 1'
RULES = ["mean", "median", "paper", "audited"]
ATTACKS = {"boost": {"by": 4.0}, "noise": {}}
SHARES, COMMITTEES = [0.1, 0.4], [3, 5]  # with 0 unevenly spaced
START = {"task": "plain", "attack": "boost", "malicious_share": 0.4, "committee": 5, "rule": "median"}
CHAPTER = "11_explorer"
CONTROLS = ["Task", "Attack", "Committee size K", "Rule", "Malicious share", "Chart shows"]


def sweep(**changes):
    """Rows of a small sweep over two tasks, one of which has a name that tries to break out."""
    parts = []
    for task, seed in (("plain", 1), (EVIL, 2)):
        part = synthetic_log(np.random.default_rng(seed), n_items=12, n_models=3, evaluators=10)
        parts.append(part.assign(task=task))
    same = {"task": ["plain", EVIL], "committee": COMMITTEES, "rule": RULES, "n_rounds": 40}
    scenarios = simulate.grid(**same)
    for attack, options in ATTACKS.items():
        scenarios += simulate.grid(**same, attack=attack, attack_options=options, malicious_share=SHARES)
    return simulate.run(pd.concat(parts), scenarios, seed=3, progress=False, **{"trials": 3, **changes})


@pytest.fixture(scope="module")
def rows():
    return sweep()


@pytest.fixture(scope="module")
def saved(rows, tmp_path_factory):
    """A page of its own and the table beside it, as a reader would find them: (address, table read from the CSV)."""
    folder = tmp_path_factory.mktemp("explorer")
    table = explorer.tabulate(rows)
    table.to_csv(folder / "settings.csv", index=False)
    body = explorer.page(table, start=START, labels={"boost": "boost (by 4)"})
    page = folder / "page.html"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    page.write_text(f"{head}<title>fine</title><body><h1 id='top'>Explorer</h1>{body}</body></html>", encoding="utf-8")
    return page.as_uri(), pd.read_csv(folder / "settings.csv", dtype={"task": str}, keep_default_na=True)


def test_the_table_holds_means_errors_and_paired_differences(rows):
    table = explorer.tabulate(rows).set_index(explorer.SETTING)
    key = (EVIL, "noise", 0.4, 3, "median")
    chosen = rows[(rows[explorer.SETTING] == list(key)).all(axis=1)]
    mean = rows[(rows[explorer.SETTING] == [*key[:-1], "mean"]).all(axis=1)]
    difference = chosen["pearson"].to_numpy() - mean["pearson"].to_numpy()
    assert table.loc[key, "rmse"] == pytest.approx(chosen["rmse"].mean(), abs=6e-5)
    assert table.loc[key, "rmse_se"] == pytest.approx(chosen["rmse"].std(ddof=1) / np.sqrt(3), abs=6e-5)
    assert table.loc[key, "pearson_minus_mean"] == pytest.approx(difference.mean(), abs=6e-5)
    assert table.loc[key, "pearson_minus_mean_se"] == pytest.approx(difference.std(ddof=1) / np.sqrt(3), abs=6e-5)
    assert table.loc[key, ["n", "n_malicious"]].tolist() == [3, 4]
    assert np.isnan(table.loc[(*key[:-1], "mean"), "pearson_minus_mean"])
    assert len(table) == 2 * (1 + 2 * 2) * 2 * len(RULES)


def test_two_strengths_of_one_attack_are_not_averaged(rows):
    with pytest.raises(ValueError, match="several rows for one setting"):
        explorer.tabulate(pd.concat([rows, rows.head(1)]))


def test_a_hole_in_the_table_and_an_unknown_start_are_refused(rows):
    table = explorer.tabulate(rows)
    with pytest.raises(ValueError, match=r"1 setting\(s\) have no row"):
        explorer.page(table.drop(index=table.index[-1]), start=START)
    with pytest.raises(ValueError, match="rule 'huber' is not in the table"):
        explorer.page(table, start={**START, "rule": "huber"})


def test_one_trial_has_no_error_and_no_number_is_invented():
    table = explorer.tabulate(sweep(trials=1))
    assert table["pearson_se"].isna().all()
    assert "NaN" not in explorer.page(table, start=START)


def test_no_text_of_the_log_becomes_markup(saved, rows):
    text = explorer.page(explorer.tabulate(rows), start=START)
    assert text.count("</script>") == 2
    assert "<img" not in text
    assert "onerror=" in text  # the name is there, as data


# ------------------------------------------------------------------------------------------------ in the browser


def shown(value, signed: bool = False) -> str:
    """A number of the CSV as the page writes it."""
    if pd.isna(value):
        return "–"
    rounded = Decimal(repr(float(value))).quantize(Decimal("0.001"), ROUND_HALF_UP)
    sign = "−" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded)}"


def expected(table, setting) -> dict[str, list[str]]:
    """The numbers of all rules in a setting: cells of the page's table by label of the rule."""
    task, attack, share, committee, _ = (setting[name] for name in explorer.SETTING)
    if attack == "none" or share == 0:
        attack, share = "none", 0.0
    here = table[(table["task"] == task) & (table["attack"] == attack) & (table["committee"] == committee)]
    here = here[np.isclose(here["malicious_share"], share)]
    found = {}
    for row in here.to_dict("records"):
        cells = []
        for name, (*_, signed) in explorer.MEASURES.items():
            error = "" if pd.isna(row[name]) else f" ± {shown(row[f'{name}_se'])}"
            cells.append(shown(row[name], signed) + error)
        found[rule_label(row["rule"])] = cells
    return found


def cells(page) -> dict[str, list[str]]:
    lines = page.locator(".poq-explorer tbody tr").all()
    texts = [[cell.text_content() for cell in line.locator("th, td").all()] for line in lines]
    return {label: numbers for label, *numbers in texts}


def check(page, table, setting):
    """Table, status line, chart and controls show this setting, with the numbers of the CSV."""
    numbers = expected(table, setting)
    assert cells(page) == numbers
    label = rule_label(setting["rule"])
    assert page.locator(".poq-explorer tr[aria-current=true] th").text_content() == label
    status = page.get_by_role("status").text_content()
    task = re.sub(r"\s+", " ", setting["task"])[:60]
    assert status.startswith(task.rstrip())
    assert f"K = {setting['committee']}, {label}: " in status
    for (heading, *_), number in zip(explorer.MEASURES.values(), numbers[label]):
        assert (f"{heading} {number}" in status) == (number != "–")
    attacked = setting["attack"] != "none" and setting["malicious_share"] > 0
    assert ("no attack" in status) == (not attacked)
    chart = page.locator(".poq-explorer svg")
    assert label in chart.locator("text[font-weight='700']").text_content()
    assert f"K = {setting['committee']}" in chart.get_attribute("aria-label")


def press(page, label, keys):
    control = page.get_by_label(label, exact=False).first
    control.focus()
    for key in keys:
        page.keyboard.press(key)


def test_it_starts_where_it_is_told_to(visit, saved):
    address, table = saved
    page, complaints = visit(address)
    check(page, table, START)
    assert page.title() == "fine"
    assert "#" not in page.url
    assert not page.get_by_role("alert").is_visible()
    assert complaints == []


def test_every_control_answers_to_the_keyboard_and_shows_the_csv(visit, saved):
    address, table = saved
    page, complaints = visit(address)
    for label in CONTROLS[:1]:
        page.get_by_label(label).focus()
    reached = []
    for _ in CONTROLS:
        reached.append(page.evaluate("document.activeElement.labels[0].textContent"))
        page.keyboard.press("Tab")
    assert [text.split(":")[0] for text in reached] == CONTROLS

    setting = dict(START)
    for label, keys, change in [
        ("Rule", ["ArrowDown"], {"rule": "paper"}),
        ("Committee size K", ["ArrowUp"], {"committee": 3}),
        ("Malicious share", ["ArrowLeft"], {"malicious_share": 0.1}),  # the steps are uneven: 0, 0.1, 0.4
        ("Malicious share", ["ArrowLeft"], {"malicious_share": 0.0}),
        ("Malicious share", ["End"], {"malicious_share": 0.4}),
        ("Malicious share", ["Home", "ArrowRight"], {"malicious_share": 0.1}),
        ("Malicious share", ["ArrowRight"], {"malicious_share": 0.4}),
        ("Attack", ["ArrowDown"], {"attack": "noise"}),
        ("Task", ["ArrowDown"], {"task": EVIL}),
        ("Attack", ["Home"], {"attack": "none"}),
    ]:
        press(page, label, keys)
        setting |= change
        check(page, table, setting)
    before = page.locator(".poq-explorer svg").inner_html()
    press(page, "Chart shows", ["ArrowDown"])
    assert page.locator(".poq-explorer svg").inner_html() != before
    assert page.title() == "fine"
    assert complaints == []


def test_the_chart_puts_points_and_bars_where_the_numbers_are(visit, saved):
    address, table = saved
    page, _ = visit(address + "#measure=rmse")
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('.poq-explorer svg circle:not([fill=none])')].map(
            point => [Number(point.getAttribute('cx')), point.getAttribute('fill')])"""
    )
    bars = page.evaluate(
        """() => [...document.querySelectorAll('.poq-explorer svg line[stroke-width]')].map(
            line => Number(line.getAttribute('x2')) - Number(line.getAttribute('x1')))"""
    )
    here = table[(table["task"] == "plain") & (table["attack"] == "boost") & (table["malicious_share"] == 0.4)]
    here = here[here["committee"] == 5].set_index("rule").loc[RULES]
    slope, _ = np.polyfit(here["rmse"], [x for x, _ in drawn[: len(RULES)]], 1)
    fitted = np.corrcoef(here["rmse"], [x for x, _ in drawn[: len(RULES)]])[0, 1]
    assert fitted == pytest.approx(1, abs=1e-9)
    assert bars[: len(RULES)] == pytest.approx(4 * slope * here["rmse_se"].to_numpy(), rel=1e-3)
    assert len({colour for _, colour in drawn[: len(RULES)]}) == len(RULES)


def test_the_address_holds_the_setting_and_gives_it_back(visit, saved):
    address, table = saved
    page, _ = visit(address)
    press(page, "Task", ["ArrowDown"])
    press(page, "Malicious share", ["ArrowLeft"])
    held = parse_qs(urlsplit(page.url).fragment)
    assert held["task"] == [EVIL]
    assert held["share"] == ["0.1"]
    again, complaints = visit(page.url)
    check(again, table, {**START, "task": EVIL, "malicious_share": 0.1})
    assert not again.get_by_role("alert").is_visible()
    # A fragment that is typed over changes the page as well, and one that names a place does not.
    again.evaluate("location.hash = '#rule=mean&committee=03'")
    check(again, table, {**START, "rule": "mean", "committee": 3})
    again.evaluate("location.hash = '#top'")
    check(again, table, {**START, "rule": "mean", "committee": 3})
    assert complaints == []


@pytest.mark.parametrize(
    ("fragment", "wrong", "setting"),
    [
        ("rule=nonsense&committee=3", "rule=nonsense", {"committee": 3}),
        ("share=0.25", "share=0.25", {}),
        ("share=&toString=1", "toString=1", {}),
        ("task=%E0%A4%A&attack=noise", "task=", {"attack": "noise"}),
        (urlencode({"task": "<img src=x onerror=document.title='broken'>"}), "task=<img", {}),
    ],
)
def test_a_bad_address_falls_back_with_a_message(visit, saved, fragment, wrong, setting):
    address, table = saved
    page, complaints = visit(f"{address}#{fragment}")
    check(page, table, {**START, **setting})
    assert wrong in page.get_by_role("alert").text_content()
    assert page.title() == "fine"
    press(page, "Rule", ["ArrowDown"])
    assert not page.get_by_role("alert").is_visible()
    assert complaints == []


def test_every_control_has_a_name_and_a_state_that_is_told(visit, saved):
    page, _ = visit(saved[0])
    tree = page.locator(".poq-explorer").aria_snapshot()
    for label in CONTROLS:
        role = "slider" if label == "Malicious share" else "combobox"
        assert re.search(rf'- {role} "{label}', tree), label
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    slider = page.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == "0.4 (4 nodes)"
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0", "0.4")
    assert page.get_by_role("img", name=re.compile("^Chart: ")).count() == 1
    named = page.locator(".poq-explorer :is(select, input)")
    assert named.count() == len(CONTROLS)
    assert all(page.locator(f"label[for={each.get_attribute('id')}]").count() == 1 for each in named.all())
    assert page.locator(".poq-explorer th:not([scope])").count() == 0


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(visit, saved, dark):
    page, complaints = visit(saved[0], width=390, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".poq-explorer svg").bounding_box()["width"] <= 390
    assert complaints == []


def test_without_a_script_and_in_print_it_says_where_to_look(visit, saved):
    page, _ = visit(saved[0], script=False)
    assert page.locator(".poq-explorer .without").is_visible()
    assert not page.locator(".poq-explorer .app").is_visible()
    page, _ = visit(saved[0])
    assert not page.locator(".poq-explorer .without").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".poq-explorer .without").is_visible()
    assert not page.locator(".poq-explorer .app").is_visible()


# ------------------------------------------------------------------------------------------------ the chapter


@pytest.fixture(scope="module")
def chapter():
    """The chapter's page at fast sizes, opened as a file; an execution that the fast book made is used again."""
    return build_chapter(CHAPTER, profile="fast")


def test_the_page_of_the_book_shows_its_own_csv(visit, chapter):
    saved = chapter.parent.parent / "results" / CHAPTER / "settings.csv"
    table = pd.read_csv(saved)
    page, complaints = visit(chapter.as_uri())
    link = page.get_by_role("link", name="settings.csv").first.get_attribute("href")
    assert (chapter.parent / link).resolve().read_bytes() == saved.read_bytes()
    attacked = table[table["attack"] != "none"]
    for number in (0, len(attacked) // 2, len(attacked) - 1):
        setting = attacked.iloc[number][explorer.SETTING].to_dict()
        names = {
            "task": "task",
            "attack": "attack",
            "share": "malicious_share",
            "committee": "committee",
            "rule": "rule",
        }
        fragment = urlencode({key: setting[name] for key, name in names.items()})
        page.evaluate("fragment => { location.hash = fragment }", fragment)
        check(page, table, setting)
    press(page, "Rule", ["Home"])
    check(page, table, {**setting, "rule": "mean"})
    assert complaints == []


def test_the_book_holds_a_twin_for_print_and_no_script(visit, chapter):
    page, _ = visit(chapter.as_uri(), script=False)
    assert page.locator(".poq-explorer .without").is_visible()
    assert page.locator("figure img[alt*='start setting']").is_visible()
    assert not page.locator(".poq-explorer .app").is_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_its_texts_can_be_read_on_the_ground_of_the_book(visit, chapter, dark):
    page, _ = visit(chapter.as_uri(), dark=dark, width=390)
    contrast = """element => {
        const light = colour => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(
                v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const solid = colour => !colour.startsWith('rgba') || Number(colour.match(/[\\d.]+/g)[3]) > 0;
        let ground = element;
        while (!solid(getComputedStyle(ground).backgroundColor) && ground.parentElement) ground = ground.parentElement;
        const [a, b] = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(light);
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    for part in (".status", ".note", "label", "select", "thead th", "tbody td", "tr.chosen td", "tfoot th"):
        found = page.locator(f".poq-explorer {part}").first
        assert found.evaluate(contrast) >= 4.5, part
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
