"""Keep what the paper's notebooks show in the preset mini, for readers who run nothing: `make reference`.

The outputs go into nbs/paper/, the tables as CSV into outputs/reference/mini/, and beside them a record
(reference.json) of what they rest on. `misfits` says where they no longer fit what is declared."""

import argparse
import base64
import io
import json
import platform
import re
import shutil
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from pathlib import Path

import nbformat
import pandas as pd
from PIL import Image

from prle.core import digest, file_digest, write_json
from prle.data.manifest import SPLITS
from prle.lab.experiments import Lab
from prle.paper.exhibits import Exhibit, FigurePart, Gap, TablePart
from prle.paper.reproduce import find_exhibit, list_notebooks

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "nbs/paper"
REFERENCE = ROOT / "outputs/reference/mini"
RECORD = "reference.json"

LARGEST = 200_000  # bytes of a notebook, so that its diff can be read
PROGRESS = re.compile(r"^(\S+: )?(HIT|MISS|WAIT|NOTE)\b.*\n?", re.MULTILINE)
"Lines about what was found or made on the way."


class StandIn(Lab):
    """A lab without faces, as far as the names of runs and the rows of tables depend on them.

    Runs are named by the hash of the data, which the record has; so nothing needs to be forged."""

    def __init__(self, data: dict, outputs: Path):
        "Take the manipulations, the hashes and the preset from `data` of a record."
        self.kept = data
        super().__init__(data["preset"], outputs=outputs)

    def sibling(self, preset: str) -> "StandIn":
        "Return the stand-in of another preset that is asked for beside this one."
        beside = StandIn(self.kept["beside"][preset], self.outputs)
        beside.store = self.store
        return beside

    @property
    def fingerprint(self) -> str:
        return self.kept["hashes"]["test"]

    @property
    def targets(self) -> list[str]:
        return self.kept["targets"]

    @cached_property
    def manifest(self) -> pd.DataFrame:
        "Return a made-up face for each split and manipulation."
        rows = []
        for split, subset in product(SPLITS, ["real", *self.kept["subsets"]]):
            face = dict(path=f"{split}/{subset}.png", subset=subset, split=split, identity="p")
            mask = subset if subset in self.kept["masked"] else ""
            rows.append(face | dict(label=int(subset != "real"), mask=mask, landmarks=[0.0] * 136))
        faces = pd.DataFrame(rows).assign(dataset="stand-in", video="v", source_identity="")
        faces.attrs["root"] = str(self.outputs)
        return faces

    def fold(self, seed: int) -> int:
        "Return which of the splits in the record a seed has."
        return seed % max(map(len, self.kept["pairs"].values()), default=1)

    def pairs_digest(self, subset: str, seed: int = 0, split: str = "train") -> str:
        "Return the hash of the real pairs of a seed's split."
        known = self.kept["pairs"].get(subset)
        return known[self.fold(seed)] if known else "0" * 16

    def source(self, split: str) -> tuple[pd.DataFrame, str]:
        "Return the made-up faces with the hash of the real manifest."
        return self.manifest, self.kept["hashes"].get(split, self.fingerprint)


BESIDE = ("controls",)  # presets with data of their own that notebooks of another preset ask for


def describe_data(lab: Lab, beside: Sequence[str] = BESIDE) -> dict:
    "Record what `StandIn` needs to know of a lab's data."
    faces = lab.test_faces()
    masked = sorted(faces.subset[faces["mask"] != ""].unique())
    hashes = {split: lab.source(split)[1] for split in ("test", *lab.targets)}
    sets = dict(subsets=lab.subsets, masked=masked, targets=lab.targets)
    folds = sorted({lab.fold(seed) for seed in range(100)})
    pairs = {}
    for subset in (*lab.subsets, "all"):
        pairs[subset] = [lab.pairs_digest(subset, fold) for fold in folds]
    others = {preset: describe_data(lab.sibling(preset), ()) for preset in beside}
    return dict(preset=lab.name, **sets, hashes=hashes, pairs=pairs, beside=others)


def planned_runs(lab: Lab, exhibit: Exhibit, settings: dict) -> list[str]:
    "Name the runs that an exhibit asks for."
    dry = lab.dry()
    exhibit.plan(dry, **settings)
    return dry.store.names()


def declared_parts(lab: Lab, exhibit: Exhibit, settings: dict) -> list[TablePart | FigurePart]:
    "Make an exhibit of gaps alone: all that does not depend on a run. Empty where it needs runs to be drawn at all."
    dry = lab.dry()
    gap = Gap("a stand-in")
    values = dict.fromkeys(exhibit.cells(dry, **settings), gap)
    try:
        return list(exhibit.parts(dry, values, **settings))
    except ValueError:
        return []


MEASURED = ["note", "verdict"]  # columns of words that depend on the runs


def names_and_given(rows: pd.DataFrame) -> pd.DataFrame:
    "Return the columns of a table of gaps that are filled: the names of its rows and the paper's numbers."
    filled = rows.drop(columns=MEASURED, errors="ignore").replace("", None)
    return rows[list(filled.columns[filled.notna().any()])]


def same_rows(kept: pd.DataFrame, declared: pd.DataFrame) -> bool:
    """Tell whether a kept table has the declared rows, which were not written to a file.

    A cell that is empty there, among gaps alone, hangs on the runs: the paper's share of Table I, for instance."""
    declared = pd.read_csv(io.StringIO(declared.to_csv(index=False)))
    same = kept[list(declared.columns)]
    return len(kept) == len(declared) and same.where(declared.notna()).equals(declared)


# Keeping what a run of all notebooks has shown


def small_png(text: str, colours: int) -> str:
    "Return a PNG (base64) with at most so many colours, or the given one if it is smaller."
    picture = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
    out = io.BytesIO()
    reduced = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(out, "PNG", optimize=True)
    small = base64.b64encode(out.getvalue()).decode()
    return min(small, text.strip(), key=len)


def clean_output(output, outputs: Path, colours: int):
    "Return an output without counts, paths and progress; None if nothing is left."
    output = nbformat.from_dict(output)
    if "execution_count" in output:
        output.execution_count = None
    if output.output_type == "stream":
        output.text = PROGRESS.sub("", output.text).replace(str(outputs), "outputs")
        return output if output.name == "stdout" and output.text.strip() else None
    if any("widget" in kind for kind in output.data):
        return None
    for kind, content in output.data.items():
        if kind == "image/png":
            output.data[kind] = small_png(content, colours)
        elif isinstance(content, str):
            output.data[kind] = content.replace(str(outputs), "outputs")
    return output


def code_cells(notebook) -> list:
    "Return the code cells of a notebook, without those that papermill has put in."
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def shows(cell) -> bool:
    "Tell whether a cell shows results; what others print is about the machine and the day."
    return ".show(" in cell.source


def with_outputs(source: Path, executed: Path, outputs: Path, colours: int = 256):
    """Return the notebook `source` with the results that its executed copy shows.

    Raise `ValueError` if that was made of other cells."""
    notebook, done = (nbformat.read(path, as_version=4) for path in (source, executed))
    here, there = code_cells(notebook), code_cells(done)
    if [cell.source for cell in here] != [cell.source for cell in there]:
        raise ValueError(f"{executed} was made of other cells than {source}: run `make paper-all`.")
    for cell, made in zip(here, there):
        cleaned = [clean_output(output, outputs, colours) for output in made.outputs if shows(cell)]
        cell.outputs = [output for output in cleaned if output is not None]
        cell.execution_count = None
    return notebook


def check_fit_to_publish(text: str, name: str, outputs: Path):
    "Raise `ValueError` for a notebook that is too large or names this machine or its folders."
    for private in (str(outputs), str(ROOT), str(Path.home()), platform.node()):
        if len(private) > 3 and private in text:
            raise ValueError(f"{name} names {private}.")
    if len(text.encode()) >= LARGEST:
        raise ValueError(f"{name} would have {len(text.encode())} bytes, more than {LARGEST}.")


def provenance_of(lab: Lab, notebook: str) -> dict[Path, dict]:
    "Return the provenance of what a notebook has written, by file."
    paths = sorted((lab.outputs / lab.name).glob("*/*.provenance.json"))
    notes = {path: json.loads(path.read_text()) for path in paths}
    return {path: note for path, note in notes.items() if note.get("notebook") == notebook}


def keep(lab: Lab, data: dict, name: str, source: Path, reference: Path) -> dict:
    """Keep the outputs and tables of one notebook, and return what the record says of it.

    `data` is what `describe_data` says of the lab."""
    executed = lab.outputs / lab.name / "notebooks" / f"{name}.ipynb"
    notes = provenance_of(lab, name)
    if not executed.exists() or not notes:
        raise ValueError(f"{name} was not made in {lab.outputs}: run `make paper-all`.")
    exhibit, note = find_exhibit(name), next(iter(notes.values()))
    settings = exhibit.settings(**exhibit.known(**note))
    runs = planned_runs(StandIn(data, lab.outputs), exhibit, settings)
    strange = [run for run in note["runs"] if run not in runs and not run.startswith("timings/")]
    if strange:
        raise ValueError(f"{name} was made of runs that are no longer planned: {strange[:3]}.")
    for colours in (256, 64, 16):
        notebook = with_outputs(source / f"{name}.ipynb", executed, lab.outputs, colours)
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if len(text.encode()) < LARGEST:
            break
    check_fit_to_publish(text, name, lab.outputs)
    tables, figures = {}, []
    for path in notes:
        part = path.name.removesuffix(".provenance.json")
        if path.parent.name == "figures":
            figures.append(part)
            continue
        shutil.copy(path.with_name(f"{part}.csv"), reference)
        tables[part] = file_digest(reference / f"{part}.csv")
    (source / f"{name}.ipynb").write_text(text)
    kept = dict(settings=settings, runs=runs, tables=tables, figures=figures, code=note["code"])
    return kept | dict(data=digest(data))


def keep_all(lab: Lab, names: list[str], source: Path = NOTEBOOKS, reference: Path = REFERENCE):
    """Keep the outputs of notebooks, their tables, and the record; what is kept of others stays.

    The others may have been made of other data: the same recipe on another processor, for instance."""
    record, data = read_record(reference), describe_data(lab)
    reference.mkdir(parents=True, exist_ok=True)
    made = {name: keep(lab, data, name, source, reference) for name in names}
    notebooks = record["notebooks"] | made
    tables = {table for kept in notebooks.values() for table in kept["tables"]}
    for path in reference.glob("*.csv"):
        if path.stem not in tables:
            path.unlink()
    known = record["data"] | {digest(data): data}
    record = dict(data={kept["data"]: known[kept["data"]] for kept in notebooks.values()})
    write_json(reference / RECORD, record | dict(notebooks=notebooks))


# Checking that it still fits


def read_record(reference: Path = REFERENCE) -> dict:
    "Read the record; without one, nothing is kept."
    path = reference / RECORD
    return json.loads(path.read_text()) if path.exists() else dict(data={}, notebooks={})


def has_outputs(name: str, source: Path = NOTEBOOKS) -> bool:
    "Tell whether a notebook shows results."
    cells = code_cells(nbformat.read(source / f"{name}.ipynb", as_version=4))
    return any(cell.outputs for cell in cells)


def output_misfits(cells: list, kept: dict) -> list[str]:
    "Say which outputs of a notebook are not those of the tables and figures in the record."
    found = []
    if any(cell.outputs for cell in cells if not shows(cell)):
        found.append("a cell that shows no result has outputs")
    for what, kind in (("tables", "text/markdown"), ("figures", "image/png")):
        shown, parts = len(outputs_of(cells, kind)), len(kept[what])
        if shown != parts:
            found.append(f"it shows {shown} {what}, and the record has {parts}")
    return found


def outputs_of(cells: list, kind: str) -> list[str]:
    "Return what cells show of one kind."
    data = [output.get("data", {}) for cell in cells for output in cell.outputs]
    return [content[kind] for content in data if kind in content]


def run_misfits(lab: StandIn, exhibit: Exhibit, kept: dict) -> list[str]:
    "Say which runs are asked for now and were not, and the other way round."
    runs = planned_runs(lab, exhibit, kept["settings"])
    new = [f"new: {run}" for run in runs if run not in kept["runs"]]
    return new + [f"no longer: {run}" for run in kept["runs"] if run not in runs]


def file_misfits(kept: dict, reference: Path) -> list[str]:
    "Say which kept tables were changed by hand."
    found = []
    for table, known in kept["tables"].items():
        path = reference / f"{table}.csv"
        if not path.exists() or file_digest(path) != known:
            found.append(f"{path.name} is not as it was kept")
    return found


def table_misfits(part: TablePart, shown: list[str], reference: Path) -> list[str]:
    "Say where a kept table is not the declared one: its columns, row names, paper's numbers, and heads."
    path = reference / f"{part.name}.csv"
    rows, found = pd.read_csv(path), []
    if list(rows.columns) != list(part.rows.columns):
        return [f"{path.name} has other columns: {list(rows.columns)}"]
    if not same_rows(rows, names_and_given(part.rows)):
        found.append(f"{path.name} has other rows")
    head = "".join(f"{column}|" for column in part.shown.columns).replace(" ", "")
    heads = [re.sub(r"[ \\]", "", text.split("\n")[2]) for text in shown]
    if f"|{head}" not in heads:
        found.append(f"no table that is shown has the columns of {part.name}")
    return found


def misfits(
    name: str,  # of a notebook
    record: dict,  # from `read_record`
    outputs: Path,  # an empty folder
    source: Path = NOTEBOOKS,
    reference: Path = REFERENCE,
) -> list[str]:
    """Say where what is kept of a notebook no longer fits what is declared.

    A reference fits if its parameters and the names of its runs, which cover their configurations and data, are those
    of the declaration; if its tables have the declared columns and row names; and if the notebook shows these tables.
    Tables that need runs to be laid out at all are compared by their runs alone."""
    exhibit, kept = find_exhibit(name), record["notebooks"][name]
    parameters = [p.name for p in exhibit.parameters]
    if sorted(kept["settings"]) != sorted(parameters):
        return [f"it has other parameters now: {parameters}"]
    cells = code_cells(nbformat.read(source / f"{name}.ipynb", as_version=4))
    lab = StandIn(record["data"][kept["data"]], outputs)
    found = output_misfits(cells, kept) + run_misfits(lab, exhibit, kept)
    found += file_misfits(kept, reference)
    parts = declared_parts(lab, exhibit, kept["settings"])
    tables = [part for part in parts if isinstance(part, TablePart)]
    if parts and sorted(part.name for part in tables) != sorted(kept["tables"]):
        return [*found, f"it makes other tables now: {[part.name for part in tables]}"]
    for part in tables:
        found += table_misfits(part, outputs_of(cells, "text/markdown"), reference)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", help="where `make paper-all` has written; default: outputs/")
    lab = Lab("mini", outputs=parser.parse_args().outputs)
    made = {path.stem for path in (lab.outputs / lab.name / "notebooks").glob("*.ipynb")}
    keep_all(lab, [name for name in list_notebooks() if name in made])
    bare = [name for name in list_notebooks() if not has_outputs(name)]
    if bare:
        print(f"Without outputs yet: {', '.join(bare)}. `make paper-all` makes them.")
