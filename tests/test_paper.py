"prle.paper.numbers: the paper's numbers and their consistency, the writers, and what they notice."

import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from prle.paper import numbers as paper
from prle.trust import read_json
from prle.lab.experiments import Lab
from prle.paper.numbers import (
    BACKBONES,
    CELL_COLUMNS,
    FIGURE6,
    SUBSETS,
    TARGET_SETS,
    changed_files,
    consistency,
    damaged_rows,
    interval,
    latex_table,
    latex_text,
    markdown_text,
    legible_text,
    paper_cells,
    paper_table,
    unverified_averages,
    side_by_side,
    write_figure,
    write_table,
)


@pytest.fixture
def lab(tmp_path):
    "A lab that never looks at data."
    lab = Lab("smoke", outputs=tmp_path)
    lab.fingerprint = "0" * 16
    return lab


@pytest.mark.parametrize(
    "number, shape",
    [
        (1, (3, 6)),
        (2, (18, 11)),
        (3, (50, 9)),
        (4, (15, 8)),
        (5, (15, 8)),
        (6, (4, 8)),
        (7, (4, 8)),
        (8, (4, 6)),
    ],
)
def test_the_papers_tables(number, shape):
    table = paper_table(number)
    assert (
        table.shape == shape
        and not table.duplicated([c for c in ("backbone", "arm", "train") if c in table]).any()
    )


def test_cells_of_the_paper():
    "One from each table, read in the paper again."

    def cell(n, column, **keys):
        return paper_table(n).set_index(list(keys)).loc[tuple(keys.values()), column]

    assert cell(1, "NT", backbone="VGG") == 10.64
    assert (
        cell(2, "DF-1.0:AUC", backbone="EfficientNet", arm="primary") == 74.72
        and cell(2, "AVG:ACC", backbone="RECCE", arm="none") == 61.27
    )
    assert cell(3, "AVG", backbone="ResNet-50", arm="primary", train="F2F") == 73.49
    assert cell(4, "Celeb-DF:d", backbone="F3-Net", arm="landmark") == -3.63
    assert cell(5, "DF-1.0", backbone="VGG", arm="low") == 65.56
    assert cell(6, "DFDC", backbone="EfficientNet", arm="E") == 63.69
    assert cell(7, "DF-1.0", backbone="ResNet-50", arm="static") == 63.32
    assert cell(8, "train", backbone="Xception", arm="primary") == 262.42
    assert FIGURE6 == {1: 68.71, 2: 70.06, 3: 71.68, 4: 71.94, 5: 72.25}
    with pytest.raises(ValueError, match="no table 9"):
        paper_table(9)


def test_averages_and_differences_of_the_paper():
    table = paper_table(3).dropna()
    assert len(table) == 36 and (table[list(SUBSETS)].mean(axis=1) - table.AVG).abs().max() < 0.0101
    found = consistency()
    assert len(found) == 210 and set(found.verdict) == {"agrees", "last digit", "contradicts"}
    assert set(found["where"][found.verdict == "contradicts"]) == {
        "Table II, VGG none",
        "Table II, Xception primary",
        "Table IV, EfficientNet random, DF-1.0",
        "Table IV, ResNet-50 landmark, DF-1.0",
        "Table V, EfficientNet high, DFDC",
        "Figure 1a",
        "Section III-A2",
        "Section IV-C1",
        "Section IV-D1",
    }
    assert (found.verdict == "last digit").sum() == 12


def test_a_mistyped_cell_would_contradict(monkeypatch):
    before = set(consistency().query("verdict == 'contradicts'").index)
    monkeypatch.setitem(
        paper._TABLES, 5, paper._TABLES[5].replace("Xception low 67.07", "Xception low 67.97")
    )
    found = consistency()
    new = found.loc[list(set(found.query("verdict == 'contradicts'").index) - before)]
    assert list(new["where"]) == ["Table V, Xception low, DFDC"]


def test_cells_are_left_out_only_where_the_copy_is_damaged():
    damaged, table = damaged_rows(), paper_table(3)
    empty = table[table.DF.isna()]
    assert (
        len(empty) == 14
        and len(damaged) == 16
        and set(empty.train) == set(damaged.train) == {"FS", "Fsh"}
    )
    assert not (damaged.off.abs() <= 0.011).any(), (
        "a row that averages to its AVG can be read, and belongs into the table"
    )
    assert damaged.groupby("train").size().to_dict() == dict(FS=7, Fsh=9) and empty.groupby(
        "train"
    ).size().to_dict() == dict(FS=6, Fsh=8), "each block has a line too many"


def test_averages_beside_damaged_rows_are_told_and_not_compared_with():
    found = unverified_averages()
    assert found.AVG.tolist() == [64.53, 65.96, 61.27, 66.49, 62.62, 64.25, 61.55]
    cells = paper_cells(3).merge(found, on=["backbone", "arm", "train"])
    assert len(cells) == 7 * 6 and cells.paper.isna().all()
    given = paper_table(3).dropna()
    assert paper_cells(3).paper.notna().sum() == 6 * len(given)
    assert " 15 pairs of trainings in Table III 12 can be read" in legible_text(BACKBONES[:3])
    assert " 25 pairs of trainings in Table III 18 can be read" in legible_text(BACKBONES)
    assert legible_text(BACKBONES, ["DF", "NT"]) == ""


@pytest.mark.parametrize("number", range(2, 8))
def test_cells_a_row_each_are_the_table(number):
    wide, long = paper_table(number), paper_cells(number)
    assert not long.duplicated(CELL_COLUMNS).any() and not long.test.str.contains(":").any()
    r = long.dropna().iloc[-1]
    row = wide[
        (wide.backbone == r.backbone)
        & (wide.arm == r.arm)
        & (wide.train == r.train if "train" in wide else True)
    ].iloc[0]
    assert row[f"{r.test}:{r.measure}" if number == 2 else r.test] == r.paper
    assert set(long.test) == (set(SUBSETS) if number == 3 else set(TARGET_SETS)) | (
        {"AVG"} if number < 4 else set()
    ) and set(long.backbone) & set(BACKBONES)


def rows(*values):
    ours = pd.DataFrame(
        [("VGG", arm, "all", "DFDC", "AUC", v, v - 1, v + 1) for arm, v in values],
        columns=[*CELL_COLUMNS, "value", "low", "high"],
    )
    return ours.merge(paper_cells(2), on=CELL_COLUMNS, how="left")


def test_ours_beside_the_papers():
    shown = side_by_side(rows(("none", 60.0), ("primary", 64.04), ("primary - none", 99.0)))
    assert list(shown.columns) == ["backbone", "arm", "DFDC", "change, DFDC"]
    cells = shown.set_index("arm")
    assert list(cells.DFDC) == ["60.0 [59.0, 61.0] *61.60*", "**64.0 [63.0, 65.0]** *62.54*"], (
        "a difference never is the best"
    )
    assert list(cells["change, DFDC"]) == ["", "+99.0 [+98.0, +100.0]"]
    assert "change, DFDC" not in side_by_side(rows(("none", 60.0), ("primary", 64.04)))


def test_the_papers_change_stands_beside_ours():
    ours = rows(("none", 60.0), ("primary", 64.0), ("primary - none", 4.0))
    shown = side_by_side(ours.assign(paper=[61.6, 62.54, 0.94]))
    assert list(shown["change, DFDC"]) == ["", "+4.0 [+3.0, +5.0] *+0.94*"]


def test_a_gap_is_shown_as_one():
    shown = side_by_side(rows(("none", np.nan), ("primary", 64.0)))
    assert (
        shown.DFDC.tolist() == ["gap *61.60*", "**64.0 [63.0, 65.0]** *62.54*"]
        and interval(np.nan, 1, 2) == "gap"
    )


def test_latex():
    assert (
        latex_text("50% of a_b & **c** #1 $x^2$")
        == r"50\% of a\_b \& \textbf{c} \#1 \$x\textasciicircum{}2\$"
    )
    text = latex_table(
        pd.DataFrame({"tau_1": ["**1.0 [0, 2]**", "gap"], "": ["a & b", "c"]}), "100%", "t"
    )
    assert (
        [rule for rule in re.findall(r"\\(\w+rule)", text)] == ["toprule", "midrule", "bottomrule"]
        and r"\label{tab:t}" in text
        and r"\caption{100\%}" in text
    )
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in body) and len(body) == 3
    assert (
        latex_text("> 0.3 {a|b} <c>")
        == r"\textgreater{} 0.3 \{a\textbar{}b\} \textless{}c\textgreater{}"
    )
    long = latex_table(pd.DataFrame({"a": ["1"] * 46, "b": ["many words " * 9] * 46}), "c", "t")
    assert r"\begin{longtable}{lp{4cm}}" in long and r"\begin{table}" in text and "{ll}" in text
    assert latex_text("**64.0** *62.54* a * b") == r"\textbf{64.0} {\scriptsize 62.54} a * b"


@pytest.mark.parametrize("copies", [1, 12])  # a table, and a longtable
def test_rows_that_belong_together_are_grouped_in_latex(copies):
    names = dict(train=["DF", "DF", "DF", "FS"], arm=["a", "b", "b", "b"], AUC=["1", "1", "2", "2"])
    shown = pd.concat([pd.DataFrame(names)] * copies, ignore_index=True)
    lines = [re.sub(r" +", " ", line).strip() for line in latex_table(shown, "c", "t").splitlines()]
    body = lines[lines.index(r"DF & a & 1 \\") :]
    rows = [r"DF & a & 1 \\", r"& b & 1 \\", r"& & 2 \\", r"\midrule", r"FS & b & 2 \\"]
    assert body[:5] == rows, "a name is left out only where all names before it are"
    assert body.count(r"\midrule") == 2 * copies - 1


@pytest.mark.parametrize(
    "text",
    [
        "a|b",
        r"a\|b",
        "<b>x</b>",
        "![p](http://a.example/p.png)",
        "[l](javascript:x)",
        "[l][r]",
        "[r]: http://a.example",
        "<http://a.example>",
        "&lt;",
        "`c`",
        "$x$",
        "# h",
        "a\\",
        "64.0 [62.0, 66.0]",
        "> 0.3",
    ],
)
def test_text_of_the_data_stays_text_in_a_markdown_table(lab, text):
    import mistune

    frame = pd.DataFrame({"name": [text], text: ["x"]})
    page = mistune.create_markdown(plugins=["table"])(
        write_table(lab, "t", frame, frame, f"About {text}").read_text()
    )
    shown = ElementTree.fromstring(f"<page>{page}</page>")
    assert [e.tag for e in shown.iter()] == [
        "page",
        "p",
        "table",
        "thead",
        "tr",
        "th",
        "th",
        "tbody",
        "tr",
        "td",
        "td",
    ]
    assert [e.text for e in shown.iter() if e.tag in ("p", "th", "td")] == [
        f"About {text}",
        "name",
        text,
        text,
        "x",
    ]


def test_lines_of_a_name_are_one_line():
    assert markdown_text("a\n\n# b\t|") == r"a # b \|" and latex_text("a\n\nb") == "a b"


def test_no_cell_of_latex_reads_as_options_of_the_row_above():
    assert (
        latex_text("[2cm] a") == "{}[2cm] a"
        and latex_text("* b") == "{}* b"
        and latex_text("**[1]**") == r"\textbf{[1]}"
    )


def test_a_table_is_four_files_with_the_same_bytes_each_time(lab):
    frame = pd.DataFrame(dict(auc=[64.04]))
    path = write_table(
        lab, "t", frame, pd.DataFrame(dict(AUC=["**64.0**"])), "A caption.", notebook="n", seeds=1
    )

    def read():
        return {p.name: p.read_bytes() for p in path.parent.iterdir() if p.suffix != ".json"}

    first = read()
    assert set(first) == {"t.md", "t.csv", "t.tex"} and first["t.md"].startswith(b"A caption.\n\n|")
    write_table(
        lab, "t", frame, pd.DataFrame(dict(AUC=["**64.0**"])), "A caption.", notebook="n", seeds=1
    )
    assert read() == first
    note = read_json(path.with_suffix(".provenance.json"))
    assert (
        note["preset"] == "smoke"
        and note["notebook"] == "n"
        and set(note["files"]) == set(first)
        and note["caption"] == "A caption."
    )


@pytest.mark.parametrize("name", ["t.csv", "t.md", "t.tex"])
def test_a_cell_changed_by_hand_is_noticed(lab, tmp_path, name):
    write_table(
        lab, "t", pd.DataFrame(dict(auc=[64.04])), pd.DataFrame(dict(AUC=["64.0"])), "A caption."
    )
    assert changed_files(tmp_path / "smoke") == []
    path = tmp_path / "smoke/tables" / name
    path.write_text(path.read_text().replace("64.0", "65.0"))
    assert changed_files(tmp_path / "smoke") == [f"tables/{name}: changed since it was written"]
    path.unlink()
    assert changed_files(tmp_path / "smoke") == [f"tables/{name}: missing"]


@pytest.mark.parametrize(
    "note",
    [
        "[]",
        "{",
        "null",
        '{"files": []}',
        '{"files": {"../../secret": "0"}}',
        '{"files": {"/etc/passwd": "0"}}',
    ],
)
def test_a_damaged_note_is_reported_like_a_damaged_table(lab, tmp_path, note):
    write_table(
        lab, "t", pd.DataFrame(dict(auc=[64.04])), pd.DataFrame(dict(AUC=["64.0"])), "A caption."
    )
    (tmp_path / "smoke/tables/t.provenance.json").write_text(note)
    (line,) = changed_files(tmp_path / "smoke")
    assert line.startswith("tables/t.provenance.json: damaged (") and len(line) < 300 + len(
        str(tmp_path)
    )


def test_a_table_on_runs_of_other_code_says_so(lab):
    def fill(tmp):
        return (tmp / "a.json").write_text("1")

    lab.store.get("detectors", "a", dict(a=1), fill)
    lab.store.modules = {}
    text = write_table(
        lab, "t", pd.DataFrame(dict(a=[1])), pd.DataFrame(dict(a=["1"])), "A caption."
    ).read_text()
    assert "Some runs were made by another version of the code" in text


def test_figures_are_png_and_pdf_that_do_not_change(lab, tmp_path):
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    first = write_figure(lab, "f", figure, "A caption.").with_suffix(".pdf").read_bytes()
    assert (
        write_figure(lab, "f", figure).read_bytes().startswith(b"\x89PNG")
        and (tmp_path / "smoke/figures/f.pdf").read_bytes() == first
    )
    (tmp_path / "smoke/figures/f.png").write_bytes(b"painted over")
    assert changed_files(tmp_path / "smoke") == ["figures/f.png: changed since it was written"]
