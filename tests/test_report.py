"The report on tables made here: its first paragraph, its tables in a browser, and two reports side by side."

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from prle import cli
from prle.core import write_json
from prle.lab.configs import PRESETS
from prle.lab.experiments import Lab
from prle.lab.store import Task
from prle.metrics import Estimate
from prle.paper import reproduce
from prle.paper.comparisons import contrast_fact, needed_text, read_contrast
from prle.paper.numbers import write_table
from prle.paper.reports import changes_table, changes_text, compare_reports, report_tables
from prle.paper.reproduce import answer, contrasts, outcome, script_mark, write_report
from prle.trust import read_json

ROWS = pd.DataFrame(
    dict(
        train=["DF", "DF", "FS", "FS"],
        arm=["plain", "+ PRLE", "plain", "+ PRLE"],
        AUC=["60.0 [58.0, 62.0] *61.50*", "**64.5 [60.0, 66.0]**", "9.5 [9.0, 10.0]", "gap"],
    )
)


def estimate(value, half, seeds=3):
    "A difference with an interval of this half width, of some trainings and ten people."
    known = dict(seed_variance=1.0 if seeds > 1 else np.nan, person_variance=20.0)
    spread = dict(variance=(half / 2.2) ** 2, freedom=9, seeds=seeds, people=10, **known)
    ends = dict(inner_low=value - 0.8 * half, inner_high=value + 0.8 * half)
    return Estimate(value, value - half, value + half, **ends, **spread)


def written(folder, *found):
    "The lab of a table whose provenance has these differences."
    lab = Lab("smoke", outputs=folder)
    lab.fingerprint = "0" * 16
    facts = [contrast_fact(arm, "plain", e) for arm, e in found]
    names = dict(notebook="table3_cross_manipulation", contrasts=facts)
    note = write_table(lab, "table3", ROWS, ROWS, "A caption.", **names)
    note = note.with_suffix(".provenance.json")
    write_json(note, read_json(note) | dict(runs=["detectors/a-0", "detectors/b-1", "maps/c-2"]))
    return lab


def test_a_difference_is_read_as_it_was_written():
    for e in (estimate(1.0, 2.0), Estimate(1.0, 0.5, 1.5)):
        np.testing.assert_equal(read_contrast(contrast_fact("a", "b", e)), e)
    with pytest.raises(ValueError, match="holds no numbers"):
        read_contrast(dict(value="<b>"))


def test_the_first_paragraph_says_what_came_out_and_what_would_decide(tmp_path):
    open_ = estimate(1.5, 3.0)
    arms = dict(good=estimate(5.0, 2.0), bad=estimate(-5.0, 2.0), equal=estimate(0.1, 1.0))
    lab = written(tmp_path, *arms.items(), ("open", open_), ("once", estimate(4.0, 1.0, seeds=1)))
    found = outcome(lab.outputs / "smoke", lab.fingerprint)
    assert "2 detectors were trained" in found["tried"]
    lines = dict(zip([*arms, "open", "once"], found["came"]))
    assert lines["good"] == (
        "Table III: good against plain, +5.0 [+3.0, +7.0] points: better (10 people tested, 3 trainings of each)."
    )
    words = dict(bad="worse", equal="no difference that matters", open="undecided", once="better")
    assert all(f"points: {word} (" in lines[arm] for arm, word in words.items())
    needed = needed_text(open_, 10, difference=2.0)
    seeds, people = map(int, re.findall(r"\d+", needed))
    assert (seeds, people) > (3, 10) or people > 10
    assert (
        f"would decide it: open in Table III ({needed} for a difference of 2.0)." in found["open"]
    )
    assert "once in Table III; two seeds or more" in found["open"]
    page = write_report(lab).read_text()
    assert (
        page.index("2 detectors were trained") < page.index(">Table III") < page.index("A caption.")
    )


def test_without_comparisons_nothing_is_claimed(tmp_path):
    found = outcome(written(tmp_path).outputs / "smoke", "0" * 16)
    assert (
        found["came"] == [] and found["open"] == "" and "No trainings have been" in found["tried"]
    )
    assert (
        contrasts(tmp_path, "0" * 16) == []
        and answer(Estimate(np.nan, np.nan, np.nan)) == "undecided"
    )


def test_the_first_paragraph_is_about_the_data_of_the_page(tmp_path):
    lab = written(tmp_path, ("good", estimate(5.0, 2.0)))
    folder = lab.outputs / "smoke"
    here, other = (outcome(folder, mark * 16) for mark in "01")
    assert len(here["came"]) == 1 and "2 detectors were trained" in here["tried"]
    assert other["came"] == [] and "0 detectors were trained" in other["tried"]
    lab.fingerprint = "1" * 16
    page = write_report(lab).read_text()
    assert "good against plain" not in page and "Made from other data" in page


BROWSER = pytest.mark.skipif(
    not shutil.which("chromium") and os.environ.get("CI") != "true",
    reason="no browser: install the package chromium to have the report looked at",
)
SHOWN = """const rows = [...document.querySelectorAll("tbody tr")].slice(0, 4);
return rows.filter(row => !row.hidden).map(row => row.cells[2].firstChild.textContent.trim());"""


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@BROWSER
def test_rows_are_sorted_filtered_and_grouped_without_network(tmp_path, browser):
    "By the keyboard alone, under the page's own policy."
    from selenium.webdriver.common.keys import Keys

    browser.get(write_report(written(tmp_path)).as_uri())
    same = 'return [...document.querySelector(".wide").querySelectorAll("td.same")].map(cell => cell.textContent)'
    assert browser.execute_script(same) == ["DF", "FS"]
    body = browser.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    for _ in range(30):
        field = browser.switch_to.active_element
        if field.get_attribute("type") == "search":
            break
        field.send_keys(Keys.TAB)
    field.send_keys("prle fs")
    assert browser.execute_script(SHOWN) == ["gap"]
    field.clear()
    field.send_keys(" ", Keys.TAB, Keys.TAB, Keys.TAB)
    head = browser.switch_to.active_element
    assert head.text.startswith("AUC")
    shown = [cell.split(" ")[0].replace("*", "") for cell in ROWS.AUC]
    head.send_keys(Keys.ENTER)
    found = browser.execute_script(SHOWN)
    assert [cell.split(" ")[0] for cell in found] == ["64.5", "60.0", "9.5", "gap"], "as numbers"
    head.send_keys(Keys.ENTER)
    assert browser.execute_script(SHOWN)[0].startswith("9.5")
    head.send_keys(Keys.ENTER)
    assert [cell.split(" ")[0] for cell in browser.execute_script(SHOWN)] == shown, "as written"
    assert browser.get_log("browser") == []


@BROWSER
def test_no_other_script_runs_in_the_report(tmp_path, browser):
    page = write_report(written(tmp_path))
    assert script_mark() in page.read_text()
    page.write_text(page.read_text().replace("</h1>", "</h1><script>document.title = 1</script>"))
    browser.get(page.as_uri())
    assert browser.title == "PRLE, preset smoke"


def numbers(folder, **values):
    "A folder with a table of these numbers, each with an interval of two points to either side."
    folder.mkdir(parents=True)
    rows = [
        dict(arm=n, note="", value=v, low=v - 2, high=v + 2, paper=1) for n, v in values.items()
    ]
    pd.DataFrame(rows).to_csv(folder / "table3.csv", index=False)
    pd.DataFrame(dict(a=["x"])).to_csv(folder / "words.csv", index=False)
    return folder


def test_what_changed_between_two_reports(tmp_path, capsys):
    one = numbers(tmp_path / "one/mini/tables", same=50, near=60, far=70, up=80, gone=1, gap=np.nan)
    other = numbers(tmp_path / "other", same=50, near=61.9, far=75, up=90, new=2, gap=np.nan)
    for name in (tmp_path / "one", tmp_path / "one/mini", one):
        assert list(report_tables(name)) == ["table3", "words"]
    both = compare_reports(tmp_path / "one", other)
    shown = changes_table(both)
    assert shown.number.tolist() == ["up", "far"] and shown["B - A"].tolist() == ["+10.0", "+5.0"]
    assert shown.A.tolist() == ["80.0 [78.0, 82.0]", "70.0 [68.0, 72.0]"]
    assert changes_text(both) == (
        "2 of 4 numbers changed beyond their intervals; 1 are in A alone, 1 in B alone."
    )
    page = tmp_path / "page.html"
    assert cli.main(["report", "--compare", str(one), str(other), "--out", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "up" in out and "near" not in out and "2 of 4 numbers" in err
    assert "+10.0" in page.read_text() and "://" not in page.read_text()
    assert cli.main(["report", "--compare", str(one), str(one)]) == 0
    assert capsys.readouterr().out == ""


def test_the_kept_tables_are_like_themselves():
    "Also those with measured numbers left of the value, with a name right of it, and without intervals."
    kept = Path(__file__).parents[1] / "outputs/reference/mini"
    both = compare_reports(kept, kept)
    assert len(both) > 2500 and (both["where"] == "both").all() and not both.changed.any()


def test_a_number_is_named_by_words_and_settings(tmp_path):
    "And not by what is measured anew, such as the decisions behind it."
    head = "mask,alpha,decisions,accuracy,low,high,who"
    for name, rows in (
        ("one", ["none,,0,,,,people", "x,0.1,9,70,60,80,people", "x,0.1,,70,,,VGG"]),
        ("other", ["none,,8,50,40,60,people", "x,0.1,7,95,90,99,people", "x,0.1,,71,,,VGG"]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "figure10.csv").write_text("\n".join([head, *rows]))
    both = compare_reports(tmp_path / "one", tmp_path / "other")
    assert changes_text(both) == (
        "2 of 2 numbers changed beyond their intervals; 0 are in A alone, 1 in B alone."
    )
    shown = changes_table(both)
    assert shown.number.tolist() == ["x, 0.1, people", "x, 0.1, VGG"]
    assert shown.A.tolist() == ["70.0 [60.0, 80.0]", "70.0"]


def test_a_number_with_an_interval_in_one_report_alone_is_not_said_to_have_changed(tmp_path):
    for name, ends in (("one", "1,3"), ("other", ",")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text(
            f"arm,value,low,high\n{name[:1]},2,1,3\nb,9,{ends}\n"
        )
    assert not compare_reports(tmp_path / "one", tmp_path / "other").changed.any()


def test_rows_of_one_name_are_refused(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("arm,value,low,high\na,1,0,2\nb,1,0,2\na,5,4,6\n")
    assert cli.main(["report", "--compare", str(tmp_path), str(tmp_path)]) == 2
    assert "several rows of one name (a)" in capsys.readouterr().err


def test_reports_that_cannot_be_compared(tmp_path, capsys):
    one, other = numbers(tmp_path / "a/mini/tables", x=1), numbers(tmp_path / "a/smoke/tables", x=1)
    with pytest.raises(ValueError, match="several presets"):
        report_tables(tmp_path / "a")
    (other / "table3.csv").rename(other / "table4.csv")
    (other / "words.csv").unlink()
    for words, said in (
        (["--compare", str(one)], "takes two reports"),
        (["--compare", str(one), str(tmp_path / "b")], "holds no tables"),
        (["--compare", str(one), str(other)], "no table in common"),
        (["--out", "x.html"], "takes no --out"),
    ):
        assert cli.main(["report", *words]) == 2
        assert said in capsys.readouterr().err


def test_the_controls_cost_what_faces_of_their_own_size_cost(monkeypatch):
    "Beside faces of 256 pixels, for which their Meso-4 could not be built."
    rows = pd.DataFrame(dict(label=[0, 1] * 5))
    small = dict(fingerprint="controls", preset=PRESETS["controls"])
    faces = dict(train_faces=lambda *a: rows, test_faces=lambda: rows)
    monkeypatch.setattr(reproduce, "controls_lab", lambda lab: SimpleNamespace(**small, **faces))
    recipe = dict(balance=False, epochs=1)
    config = dict(detector="meso4", width=1.0, options=dict(size=64), subset="nose", recipe=recipe)
    task = Task(
        Path("runs/detectors/Meso-4-nose-none-s0-0123456789abcdef"),
        config | dict(data="controls"),
        None,
    )
    store = SimpleNamespace(tasks=[task], is_there=lambda task: False)
    dry = SimpleNamespace(fingerprint="d", targets=[], preset=PRESETS["paper"], store=store)
    found = reproduce.cost(dry)
    per_face = reproduce.measure_network(config, 64).macs
    assert (found.runs, found.trainings) == (1, 1)
    assert found.hours * 3600 * reproduce.rtx3090_rate() == pytest.approx(50 * per_face)


@pytest.mark.parametrize("subset", ["all", "face", "face-swap"])
def test_what_maps_of_a_zoo_take_is_counted_whatever_a_manipulation_is_called(subset):
    asked = []

    def faces(*which):
        asked.append(which)
        return []

    lab = SimpleNamespace(preset=SimpleNamespace(size=8), faces=faces)
    maps = dict(split="train", subset=subset)
    assert reproduce._fusion_work(lab, maps) == (0.0, 0.0) and asked == [("train", subset)]
