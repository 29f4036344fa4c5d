"""What the paper's notebooks show, and the tables in outputs/reference/, are those of what is declared now."""

import base64
import io
import shutil

import nbformat
import pandas as pd
import pytest
import reference
from PIL import Image
from reference import (
    NOTEBOOKS,
    REFERENCE,
    StandIn,
    declared_parts,
    has_outputs,
    keep_all,
    misfits,
    read_record,
)

from prle.core import write_json
from prle.paper.exhibits import PAPER, SEEDS, Parameter, TablePart
from prle.paper.numbers import SUBSETS
from prle.paper.reproduce import find_exhibit, headline, list_notebooks
from prle.trust import read_json

SHOWING = [name for name in list_notebooks() if has_outputs(name)]
ADVICE = "run `make paper-all` and `make reference`, and commit what they change in nbs/paper/ and outputs/reference/"


def test_the_notebooks_of_make_paper_show_their_results():
    "Those of `make paper-all` besides show them where they were made."
    assert {*headline()} <= {*SHOWING}, (
        f"without outputs: { ({*headline()} - {*SHOWING}) }; {ADVICE}"
    )
    assert sorted(read_record()["notebooks"]) == sorted(SHOWING), ADVICE
    kept = {table for one in read_record()["notebooks"].values() for table in one["tables"]}
    assert {path.stem for path in REFERENCE.glob("*.csv")} == kept, ADVICE


@pytest.mark.parametrize("name", SHOWING)
def test_what_a_notebook_shows_fits_what_is_declared(name, tmp_path):
    found = misfits(name, read_record(), tmp_path)
    assert not found, f"{name} shows what is no longer made: {'; '.join(found[:5])}; {ADVICE}"


# The check itself, on notebooks that are made of gaps

NAMES = ["figure6_zoo_size", "table6_single_detectors"]
TARGETS = ["mini-DFDC", "mini-DF1", "mini-Celeb"]
KNOWN = dict(subsets=list(SUBSETS), masked=list(SUBSETS), pairs={})
DATA = KNOWN | dict(
    preset="mini",
    targets=TARGETS,
    hashes={split: digit * 16 for split, digit in zip(("test", *TARGETS), "0123")},
    beside=dict(controls=KNOWN | dict(preset="controls", targets=[], hashes=dict(test="4" * 16))),
)


def png():
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def executed(name, folder, parts):
    "Write a notebook as papermill leaves it, with the given parts shown and lines that are not to be kept."
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    new = nbformat.v4.new_output
    injected = nbformat.v4.new_code_cell("seeds = 1", metadata=dict(tags=["injected-parameters"]))
    notebook.cells.insert(2, injected)
    *_, announced, made, provenance = [c for c in notebook.cells if c.cell_type == "code"]
    announced.outputs = [new("stream", name="stdout", text="All 3 runs are there.\n")]
    provenance.outputs = [new("execute_result", {"text/plain": "a machine"}, execution_count=5)]
    text = f"mini-DFDC: HIT {folder}/data\nMISS timings a (none there yet)\nMean: 1.0 {folder}/x\n"
    made.outputs = [
        new("stream", name="stdout", text=text),
        new("stream", name="stderr", text="50%"),
    ]
    for part, path in parts:
        shown = {"image/png": png()}
        if isinstance(part, TablePart):
            shown = {"text/markdown": path.read_text()}
        made.outputs.append(new("display_data", shown | {"text/plain": "<object>"}))
    (folder / "mini/notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"mini/notebooks/{name}.ipynb")


def make(data, names, outputs):
    "Write notebooks as if they had been made of these data, with tables of gaps."
    outputs.mkdir()
    for name in names:
        lab, exhibit = StandIn(data, outputs).dry(), find_exhibit(name)
        facts = dict(exhibit.settings(), notebook=name)
        parts = declared_parts(lab, exhibit, exhibit.settings())
        for cell in exhibit.cells(lab, **exhibit.settings()).values():
            cell[0].ask(lab)
        executed(name, outputs, [(p, p.write(lab, **facts)) for p in parts])
    return StandIn(data, outputs)


@pytest.mark.parametrize(
    "name", ["table1", "table6", "figure8", "localization", "figure8_masks", "table1_fusions"]
)
def test_captions_name_all_networks_that_are_measured_or_localize(name, tmp_path):
    "Besides the preset's zoo the reduced Xception and VGG; of fusions the zoo alone."
    notebooks = [
        "table1_attended_share",
        "table6_single_detectors",
        "figure8_masked_accuracy",
        "localization_of_forgeries",
    ]
    [exhibit] = [find_exhibit(n) for n in notebooks if n.startswith(name.split("_")[0])]
    lab = StandIn(DATA, tmp_path)
    parts = declared_parts(lab, exhibit, exhibit.settings())
    captions = [part.caption for part in parts if part.name == name]
    assert captions and all("EfficientNet-Lite2 = " in caption for caption in captions)
    for caption in captions:
        assert ("Xception = xception at width 0.25" in caption) == (name != "table1_fusions")
        assert ("VGG = " in caption) == (name in ("table1", "table6", "localization"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "A folder with notebooks, reference and an empty folder, kept from tables of gaps."
    folder = tmp_path_factory.mktemp("kept")
    (folder / "empty").mkdir()
    shutil.copytree(NOTEBOOKS, folder / "nbs")
    lab = make(DATA, NAMES, folder / "outputs")
    keep_all(lab, NAMES, folder / "nbs", folder / "reference")
    return folder


def faults(folder, name):
    record = read_record(folder / "reference")
    return misfits(name, record, folder / "empty", folder / "nbs", folder / "reference")


@pytest.fixture
def copy(kept, tmp_path):
    "The same, to be changed."
    return shutil.copytree(kept, tmp_path / "copy")


@pytest.mark.parametrize("name", NAMES)
def test_what_was_just_kept_fits(kept, name):
    assert faults(kept, name) == []
    source, shown = (
        nbformat.read(folder / f"{name}.ipynb", as_version=4)
        for folder in (NOTEBOOKS, kept / "nbs")
    )
    for before, after in zip(source.cells, shown.cells, strict=True):
        assert (before.id, before.source, before.metadata) == (
            after.id,
            after.source,
            after.metadata,
        )
    outputs = [cell.outputs for cell in shown.cells if cell.cell_type == "code"]
    assert [bool(some) for some in outputs] == [False, False, False, True, False]
    assert outputs[3][0].text == "Mean: 1.0 outputs/x\n"
    assert str(kept) not in (kept / "nbs" / f"{name}.ipynb").read_text()
    other = "table1_attended_share.ipynb"
    assert (kept / "nbs" / other).read_bytes() == (NOTEBOOKS / other).read_bytes()


def doctor_record(folder, change):
    path = folder / "reference/reference.json"
    record = read_json(path)
    change(record, record["notebooks"]["table6_single_detectors"])
    write_json(path, record)


def new_run(record, notebook):
    notebook["runs"][0] = notebook["runs"][0][:-1] + "x"


def other_data(record, notebook):
    record["data"][notebook["data"]]["hashes"]["test"] = "f" * 16


def parameter_gone(record, notebook):
    notebook["settings"]["rounds"] = 1


@pytest.mark.parametrize(
    "change, says",
    [(new_run, "no longer: "), (other_data, "new: "), (parameter_gone, "parameters")],
)
def test_a_record_of_other_runs_is_noticed(copy, change, says):
    doctor_record(copy, change)
    assert any(says in fault for fault in faults(copy, "table6_single_detectors"))


def doctor_table(folder, change):
    "Change a kept table and its digest in the record, as if it had been made so."
    path = folder / "reference/table6.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    doctor_record(
        folder, lambda _, notebook: notebook["tables"].update(table6=reference.file_digest(path))
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda rows: rows.rename(columns=dict(low="lower")), "other columns"),
        (lambda rows: rows.replace("X+E+V", "XEV"), "other rows"),
        (lambda rows: rows.iloc[1:], "other rows"),
        (lambda rows: rows.assign(paper=rows.paper + 1), "other rows"),
    ],
)
def test_a_table_of_other_columns_or_rows_is_noticed(copy, change, says):
    doctor_table(copy, change)
    (fault,) = faults(copy, "table6_single_detectors")
    assert says in fault


def test_a_table_changed_by_hand_is_noticed(copy):
    path = copy / "reference/table6.csv"
    path.write_text(path.read_text().replace("AUC,,", "AUC,1.0,", 1))
    assert "table6.csv is not as it was kept" in faults(copy, "table6_single_detectors")


def test_outputs_of_another_table_are_noticed(copy):
    path = copy / "nbs/table6_single_detectors.ipynb"
    text = path.read_text()
    path.write_text(text.replace("| backbone ", "| network ", 1))
    assert faults(copy, "table6_single_detectors") == [
        "no table that is shown has the columns of table6"
    ]
    path.write_text(text.replace("text/markdown", "text/latex"))
    assert "it shows 0 tables, and the record has 1" in faults(copy, "table6_single_detectors")


def test_a_changed_declaration_is_noticed(kept, monkeypatch):
    exhibit = PAPER["table6_single_detectors"]
    monkeypatch.setattr(exhibit, "variants", exhibit.variants[:3], raising=False)
    found = faults(kept, "table6_single_detectors")
    assert any(fault.startswith("no longer: detectors/") for fault in found)
    assert "table6.csv has other rows" in found
    monkeypatch.setattr(exhibit, "parameters", (SEEDS, Parameter("x", 1, "new")), raising=False)
    assert faults(kept, "table6_single_detectors") == [
        "it has other parameters now: ['seeds', 'x']"
    ]


def test_what_is_kept_must_be_of_the_present_cells_and_runs(copy):
    lab = StandIn(DATA, copy / "outputs")
    note = copy / "outputs/mini/tables/table6.provenance.json"
    write_json(note, read_json(note) | dict(runs=["detectors/other-0123456789abcdef"]))
    with pytest.raises(ValueError, match="runs that are no longer planned"):
        keep_all(lab, NAMES, copy / "nbs", copy / "reference")
    path = copy / "nbs/figure6_zoo_size.ipynb"
    path.write_text(path.read_text().replace("made.show()", "made.show( )"))
    with pytest.raises(ValueError, match="other cells"):
        keep_all(lab, NAMES, copy / "nbs", copy / "reference")
    with pytest.raises(ValueError, match="was not made in .*make paper-all"):
        keep_all(lab, ["table5_fusion"], copy / "nbs", copy / "reference")


def test_what_is_kept_of_other_notebooks_stays(copy):
    "Also where it was made of other data."
    first, second = NAMES
    target = copy / "nbs", copy / "reference"
    before = {path.name: path.read_bytes() for path in target[1].iterdir()}
    keep_all(StandIn(DATA, copy / "outputs"), [second], *target)
    assert {path.name: path.read_bytes() for path in target[1].iterdir()} == before
    lab = make(DATA | dict(hashes=dict.fromkeys(DATA["hashes"], "f" * 16)), [second], copy / "new")
    keep_all(lab, [second], *target)
    runs = {name: note["runs"] for name, note in read_record(target[1])["notebooks"].items()}
    assert {*runs[first]}.isdisjoint(runs[second]) and len(read_record(target[1])["data"]) == 2
    assert [faults(copy, name) for name in NAMES] == [[], []]
    keep_all(StandIn(DATA, copy / "outputs"), NAMES, *target)
    assert {path.name: path.read_bytes() for path in target[1].iterdir()} == before
