"""The site: reference pages made from comments, notebooks as readers see them, nothing from other hosts."""

import csv
import json
import re
import sys
from configparser import ConfigParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load(name, folder=ROOT / "docs"):
    "A Python file as a module."
    spec = spec_from_file_location(name, folder / f"{name}.py")
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


MODULE = '''
"""Things to measure."""
# %% ../nbs/90_things.ipynb #1
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["LIMIT", "Point", "Style", "Pen", "measure"]

LIMIT = 3
"The most that is measured."

class Point(NamedTuple):
    "A place."

    x: float  # from the left | in px
    y: float = 0.0  # from the top

@dataclass
class Style:
    "How a line looks."

    width: int = 2  # in px

class Pen:
    "What draws."

    def __init__(
        self,
        style: Style,  # of its lines
    ):
        self.style = style

    def draw(
        self,
        points: list[Point],  # in order
    ) -> int:  # how many lines
        "Draw lines."

    def _secret(self):
        "Say nothing."

    @property
    def width(self):
        "The width of its lines."

def measure(
    a: Point,  # where it begins
    b: "Point | None" = None,  # where it ends; None: at `a`
    *,
    out: Path = Path("/home/me"),  # a file
) -> float:  # in px
    "Measure a distance."
'''


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things")
    (folder / "things.py").write_text(MODULE)
    return load("api").page(load("things", folder))


@pytest.mark.parametrize(
    "line",
    [
        "# things",
        "Things to measure.",
        "Explained and tried out in [its notebook](../../nbs/90_things.ipynb).",
        "````{py:data} LIMIT\nThe most that is measured.\n````",
        "`````{py:class} Point(x, y=0.0)",
        r"| `x` | `float` |  | from the left \| in px |",
        "| `y` | `float` | `0.0` | from the top |",
        "| `width` | `int` | `2` | in px |",
        "`````{py:class} Pen(style)",
        "| `style` | `Style` |  | of its lines |",
        "````{py:method} draw(points)\nDraw lines.",
        "| *returns* | `int` |  | how many lines |",
        "````{py:property} width\nThe width of its lines.\n````",
        r"| `b` | `Point \| None` | `None` | where it ends; None: at `a` |",
    ],
)
def test_a_page_of_reference_says_what_the_comments_say(reference, line):
    assert line in reference


def test_a_page_of_reference_hides_what_is_private(reference):
    assert "_secret" not in reference


def source(*cells):
    return json.dumps({"cells": [*cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def code(text):
    return dict(cell_type="code", metadata={}, outputs=[], execution_count=None, source=text)


def markdown(text):
    return dict(cell_type="markdown", metadata={}, source=text)


def shown(*cells):
    "What `readable` makes of the cells of a notebook."
    return json.loads(load("pages").readable(source(*cells)))["cells"]


def test_readers_see_no_directives_and_nothing_hidden():
    cells = shown(
        code("#| default_exp x"),
        code("#| hide\nsecret()"),
        code("#| export\n#| slow\ndef f():\n    pass  #| not one"),
        code("#| eval: false\n1 + 1"),
    )
    sources = [cell["source"] for cell in cells]
    assert sources == ["def f():\n    pass  #| not one", "1 + 1"]


def test_every_picture_has_an_alternative_text():
    "The one that its cell states, or the words before it."
    said = markdown("## Faces\n\nTwo of [them](x.ipynb), `left` and **right**.")
    cells = shown(said, code("draw()"), code("#| fig-alt: A cat: black.\ndraw()"))
    alts = [cell["metadata"]["mystnb"]["image"]["alt"] for cell in cells[1:]]
    assert alts == ["Output of the code above. Two of them, left and right.", "A cat: black."]


def test_alternative_texts_are_words_and_end():
    last_paragraph = load("pages").last_paragraph
    assert last_paragraph("One.\n\n| a | table |") == "One."
    assert last_paragraph("$$x$$") == ""
    assert len(last_paragraph("word " * 100)) <= 204


def test_links_of_the_readme_hold_in_docs():
    from_docs = load("pages").from_docs
    text = "[a](nbs/a.ipynb) ![b](nbs/images/b.png) [c](docs/c.md) [d](https://d) [e](#e)"
    expected = (
        "[a](../nbs/a.ipynb) ![b](../nbs/images/b.png) [c](../docs/c.md) [d](https://d) [e](#e)"
    )
    assert from_docs(text) == expected


def test_the_readme_is_one_screen():
    "Six hundred words, code and the tables among them, addresses of links not."
    words = re.sub(r"\]\([^)]*\)", "]", (ROOT / "README.md").read_text())
    words = re.sub(r"^[|-]+$|[|]", " ", words, flags=re.M).split()
    assert len(words) <= 620
    assert "![png]" not in (ROOT / "README.md").read_text(), "a picture without alternative text"


def long_description(home, monkeypatch):
    "What setup.py tells a package index, with another `git_url`."
    told, read = {}, ConfigParser.read

    def with_home(self, *args):
        read(self, *args)
        self["DEFAULT"]["git_url"] = home

    monkeypatch.setattr(ConfigParser, "read", with_home)
    monkeypatch.setattr("setuptools.setup", lambda **words: told.update(words))
    load("setup", ROOT)
    return told["long_description"]


def targets(text):
    return re.findall(r"\]\(([^)]*)\)", re.sub(r"```.*?```", "", text, flags=re.S))


def test_links_lead_somewhere_outside_the_repository(monkeypatch):
    text = long_description("https://example.org/prle", monkeypatch)
    assert len(targets(text)) > 10
    assert all(target.startswith("https://") for target in targets(text))
    picture = "(https://example.org/prle/raw/main/nbs/images/index_1_0.png)"
    assert picture in text and "https://example.org/prle/blob/main/docs/claims.md" in text


def test_without_an_address_links_are_plain_words(monkeypatch):
    text = long_description("", monkeypatch)
    assert all(target.startswith("https://") for target in targets(text))
    assert "claims and what they rest on" in text and "![" not in text


def test_the_site_takes_nothing_from_other_hosts():
    "Neither configuration nor styles nor templates name one."
    files = [p for p in (ROOT / "docs").rglob("*") if p.suffix in {".py", ".css", ".html"}]
    assert len(files) >= 4
    assert [str(p) for p in files if "//" in p.read_text()] == []


def test_every_page_written_by_hand_has_a_title():
    for path in (ROOT / "docs").glob("*.md"):
        if path.name != "index.md":
            assert path.read_text().startswith("# "), path


def test_every_chapter_is_listed():
    "But for the notebooks that only gather a wing, or a benchmark."
    listed = (ROOT / "docs/chapters.md").read_text() + (ROOT / "docs/index.md").read_text()
    chapters = {p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("[0-9]*.ipynb")}
    assert [str(p) for p in sorted(chapters) if f"../{p})" not in listed] == []


def test_every_benchmark_is_measured_but_the_gpus():
    (names,) = re.findall(r"for name in (.+); do", (ROOT / "Makefile").read_text())
    there = {path.stem for path in (ROOT / "nbs/bench").glob("*.ipynb")}
    assert set(names.split()) == there - {"gpu"}
    chapters = (ROOT / "docs/chapters.md").read_text()
    measured, rest = chapters.partition("`make bench`")[2].split("[GPU](", 1)
    assert all(f"bench/{name}.ipynb" in measured for name in names.split())
    assert "not been measured" in rest.splitlines()[0]


def test_the_questions_name_the_number_that_the_claim_has():
    with open(ROOT / "outputs/reference/mini/claims.csv") as f:
        (row,) = [row for row in csv.DictReader(f) if row["name"] == "cross_ours"]
    value, low, high = (f"{float(row[name]):+.1f}" for name in ("value", "low", "high"))
    assert f"{value} points [{low}, {high}]" in (ROOT / "docs/faq.md").read_text()
