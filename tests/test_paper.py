"""prle.paper and prle.cli: the paper's numbers, the writers, the notebooks through papermill."""
import json

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from prle import cli, paper
from prle.datasets import read_manifest
from prle.experiments import Lab, scores, detector_run
from prle.metrics import auc
from prle.paper import (NOTEBOOKS, SUBSETS, attended_share, cross_manipulation, cross_table, find_notebooks, paper_table, reproduce, run_notebook,
                        share_table, write_figure, write_table)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "Everything in the preset smoke, through papermill: (folder, results, lines)."
    outputs, lines = tmp_path_factory.mktemp("smoke"), []
    return outputs, reproduce(preset="smoke", outputs=outputs, say=lines.append), lines


def test_the_papers_tables():
    table1, table3 = paper_table(1), paper_table(3)
    assert table1.set_index("detector").loc["VGG", "NT"] == 10.64 and list(table1.columns[1:]) == list(SUBSETS)
    assert len(table3) == 5 * 2 * 5 and table3.groupby(["detector", "mask", "train"]).size().max() == 1
    assert table3.query("detector == 'ResNet-50' and mask == 'primary' and train == 'F2F'").AVG.item() == 73.49
    with pytest.raises(ValueError, match="no table 9"):
        paper_table(9)


def test_the_papers_averages_are_its_rows():
    table = paper_table(3).dropna()
    assert len(table) >= 36 and (table[list(SUBSETS)].mean(axis=1) - table.AVG).abs().max() < 0.0101


def test_every_notebook_runs(smoke):
    outputs, results, lines = smoke
    assert results == dict.fromkeys(NOTEBOOKS, "done"), results
    made = {str(p.relative_to(outputs / "smoke")) for p in (outputs / "smoke").rglob("*") if p.is_file()}
    names = {"tables/table1", "tables/table1_fusions", "tables/table3"}, {"figures/table3_change", "figures/figure3", "figures/figure7"}
    assert made == {n + s for n in names[0] for s in (".csv", ".md", ".provenance.json")} | {n + s for n in names[1] for s in (".png", ".pdf", ".provenance.json")} \
        | {f"notebooks/{n}.ipynb" for n in NOTEBOOKS}


def test_provenance_names_runs_data_and_code(smoke):
    note = json.loads((smoke[0] / "smoke/tables/table3.provenance.json").read_text())
    assert note["preset"] == "smoke" and note["seeds"] == 1 and note["other_code"] == [] and len(note["data"]) == 16
    assert sum(run.startswith("detectors/") for run in note["runs"]) == 30


def test_the_second_time_all_is_reused(smoke):
    outputs, _, lines = smoke
    before = {p: p.stat().st_mtime_ns for p in (outputs / "runs").rglob("*")}
    again = []
    assert reproduce(["figure7"], "smoke", outputs=outputs, say=again.append) == {"figure7_alpha": "done"}
    assert not any(line.startswith("MISS") for line in again) and any(" 0 made." in line for line in again)
    assert {p: p.stat().st_mtime_ns for p in (outputs / "runs").rglob("*")} == before


def test_table3_numbers_are_the_scores(smoke):
    lab = Lab("smoke", outputs=smoke[0])
    rows = pd.read_csv(smoke[0] / "smoke/tables/table3.csv").set_index(["backbone", "mask", "train", "test"])
    assert len(rows) == 3 * 3 * 5 * 7 and (rows.low <= rows.high).all()
    table = scores(detector_run(lab, "VGG", "FS", mask="primary"))
    part = table[table.subset.isin(["real", "NT"])]
    value = 100 * auc(part.label, part.p_fake)
    assert rows.loc[("VGG", "primary", "FS", "NT"), "auc"] == pytest.approx(value)
    assert rows.loc[("VGG", "difference", "FS", "NT"), "auc"] == pytest.approx(value - rows.loc[("VGG", "none", "FS", "NT"), "auc"])
    unseen = [rows.loc[("VGG", "none", "FS", t), "auc"] for t in SUBSETS if t != "FS"]
    assert rows.loc[("VGG", "none", "FS", "unseen"), "auc"] == pytest.approx(np.mean(unseen))


def test_tables_show_ours_and_the_papers(smoke):
    text = (smoke[0] / "smoke/tables/table3.md").read_text()
    assert "99.91" in text and "| paper |" in text and "Preset smoke" in text and "95% intervals" in text
    shown = cross_table(pd.read_csv(smoke[0] / "smoke/tables/table3.csv"), paper_table(3))
    assert shown.query("train == 'DF' and backbone == 'Xception' and arm == 'plain'").iloc[1]["NT"] == "83.74"
    assert shown.query("train == 'FS' and backbone == 'VGG' and arm == 'plain'").iloc[1]["NT"] == "", "illegible in our copy of the paper"


def test_several_seeds_are_averaged(smoke):
    lab = Lab("smoke", outputs=smoke[0], say=lambda line: None)
    one, two = (attended_share(lab, seeds).set_index(["name", "subset", "threshold"]).share for seeds in (1, 2))
    assert one.index.equals(two.index) and not np.allclose(one, two)
    assert set(share_table(one.reset_index().assign(low=0, high=1)).attention) == {"> 0", "> 0.3"}


def test_the_interval_of_a_paired_difference_is_paired(smoke, monkeypatch):
    "Two arms with the same scores differ by exactly nothing, in every resample."
    real = paper.detector_run
    monkeypatch.setattr(paper, "detector_run", lambda lab, backbone, train, arm, seed: real(lab, backbone, train, "none", seed))
    rows = cross_manipulation(Lab("smoke", outputs=smoke[0], say=lambda line: None)).query("mask == 'difference'")
    assert (rows[["auc", "low", "high"]] == 0).all(axis=None)


def test_a_table_on_runs_of_other_code_says_so(smoke, tmp_path):
    lab = Lab("smoke", outputs=smoke[0], say=lambda line: None)
    lab.store.modules = {}
    detector_run(lab, "VGG", "DF")
    lab.outputs = tmp_path
    text = write_table(lab, "t", pd.DataFrame(dict(a=[1])), pd.DataFrame(dict(a=["1"])), "A caption.").read_text()
    assert "1 of the 1 runs were made by other code" in text


def test_figures_are_png_and_pdf_that_do_not_change(smoke, tmp_path):
    lab = Lab("smoke", outputs=smoke[0], say=lambda line: None)
    lab.outputs = tmp_path
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    first = write_figure(lab, "f", figure).with_suffix(".pdf").read_bytes()
    assert write_figure(lab, "f", figure).read_bytes().startswith(b"\x89PNG") and (tmp_path / "smoke/figures/f.pdf").read_bytes() == first


def test_figure7_masks_grow_with_alpha_and_stay_what_they_were(smoke):
    figure = paper.draw_figure7(Lab("smoke", outputs=smoke[0], say=lambda line: None), cases=3)
    rows = np.array_split(figure.axes, 3)
    for row in rows:
        face, *masked = [ax.images[0].get_array().astype(int) for ax in row]
        changed = [(m != face).any(-1) for m in masked]  # alpha 1.0, 0.9, ... 0.1
        assert all((small <= large).all() and small.sum() < large.sum() for large, small in zip(changed, changed[1:]))
        assert all((m[c] == 0).all() for m, c in zip(masked, changed))
    assert [ax.get_title() for ax in rows[0]][:2] == ["face", r"$\alpha$ = 1.0"]


def test_figure3_has_a_row_a_fusion_and_a_curve_each(smoke):
    figure = paper.draw_figure3(Lab("smoke", outputs=smoke[0], say=lambda line: None))
    *faces, curves = figure.axes
    assert len(faces) == 3 * 5 and len(curves.patches) == 3
    low, high, neighbour = (np.array([(ax.images[1].get_array() > 0).mean() for ax in row]) for row in np.array_split(faces, 3))
    assert (high <= low).all() and (neighbour >= high).all(), "a higher tau_1 keeps less, neighbouring adds to it"


@pytest.fixture
def notebook(tmp_path):
    def make(body, tagged=True):
        cell = nbformat.v4.new_code_cell("n = 1  # a number", metadata=dict(tags=["parameters"] if tagged else []))
        kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(body)], metadata=kernel), tmp_path / "a.ipynb")
        return tmp_path / "a.ipynb"
    return make


def test_unknown_parameters_raise(notebook, tmp_path):
    with pytest.raises(ValueError, match="unknown parameter of a.ipynb 'm'.*Known: n"):
        run_notebook(notebook("print(n)"), tmp_path / "out.ipynb", m=2)
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        run_notebook(notebook("print(n)", tagged=False), tmp_path / "out.ipynb")


def test_a_failed_notebook_is_kept_aside_and_the_source_untouched(notebook, tmp_path):
    source = notebook("1 / (n - 1)")
    before = source.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_notebook(source, tmp_path / "out.ipynb", n=1)
    assert not (tmp_path / "out.ipynb").exists() and (tmp_path / "out.failed.ipynb").exists()
    run_notebook(source, tmp_path / "out.ipynb", n=3)
    assert (tmp_path / "out.ipynb").exists() and not (tmp_path / "out.failed.ipynb").exists() and source.read_bytes() == before


def test_one_failure_does_not_stop_the_others(smoke, monkeypatch):
    def broken(source, out, **parameters):
        if "table1" in source.name: raise RuntimeError("first line\nthe reason")
    monkeypatch.setattr(paper, "run_notebook", broken)
    lines = []
    results = reproduce(["table1", "figure7"], "smoke", outputs=smoke[0], say=lines.append)
    assert results["figure7_alpha"] == "done" and results["table1_attended_share"].startswith("FAILED: the reason")
    monkeypatch.setattr(paper, "reproduce", lambda *a: results)
    assert cli.main(["reproduce"]) == 1


def test_wrong_words_on_the_command_line(capsys, tmp_path):
    assert cli.main(["reproduce", "tabel3", "--preset", "smoke", "--outputs", str(tmp_path)]) == 2
    assert "Did you mean 'table3'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reproduce", "--preset", "huge"])
    assert cli.main(["reproduce", "--preset", "paper", "--outputs", str(tmp_path)]) == 2
    assert "needs real data" in capsys.readouterr().err
    assert cli.main(["reproduce", "--preset", "smoke", "--seeds", "0", "--outputs", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_forge_on_the_command_line(capsys, tmp_path):
    assert cli.main(["forge", "--people", "3", "--out", str(tmp_path / "out")]) == 2
    assert "people" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main(["forge", "--people", "6", "--size", "64", "--steps", "1", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/targets/mini-Celeb/contact_sheet.png").exists()
    assert set(read_manifest(tmp_path / "out/manifest.parquet").split) == {"train", "val", "test"}


def test_find_notebooks():
    assert find_notebooks([]) == list(NOTEBOOKS) and find_notebooks(["figure"]) == ["figure3_static_maps", "figure7_alpha"]
