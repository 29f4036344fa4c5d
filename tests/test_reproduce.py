"prle.paper.reproduce: every notebook in the preset smoke through papermill, the report, failures, and costs."

import base64
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from prle import cli
from prle.paper import reproduce as module
from prle.paper.comparisons import compare_arms, target_cells
from prle.core import write_json
from prle.data.manifest import SPLITS, read_manifest
from prle.data.crops import read_quantiles
from prle.lab.configs import PUBLISHED, Zoo
from prle.paper.exhibits import PAPER, exhibits, parameters_cell, read_cell
from prle.lab.experiments import Lab, Wanted, read_scores
from prle.paper.figures import Figure2, Figure3, Figure4, Figure7, Figure9
from prle.metrics import auc
from prle.paper.numbers import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    SUBSETS,
    changed_files,
    write_figure,
    write_table,
)
from prle.paper.reproduce import (
    announce,
    cost,
    find_exhibit,
    find_notebooks,
    headline,
    list_notebooks,
    notebook_folder,
    parameters_text,
    plan,
    reproduce,
    rtx3090_rate,
    run_notebook,
    write_report,
)
from prle.study.page import lab_study
from prle.paper.tables import Table6
from prle.trust import read_json
from prle.study.images import read_study
from rehearsal import run_here
from test_experiments import write_square
from test_figures import letters

TABLES = {
    *(f"table{n}" for n in range(1, 9)),
    "table1_fusions",
    "figure5",
    "figure6",
    "figure8",
    "figure8_masks",
    "figure10",
    "localization",
    "mechanism",
    "mechanism_parts",
    "augmentations",
    "controls",
    "sensitivity",
    "claims",
}
FIGURES = {*(f"figure{n}" for n in range(1, 11)), "table3_change", "mechanism", "userstudy_session"}


def quiet(outputs):
    return Lab("smoke", outputs=outputs)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    "Everything in the preset smoke, on the command line: (folder, lines)."
    outputs = tmp_path_factory.mktemp("smoke")
    script = Path(__file__).with_name("rehearsal.py")
    made = subprocess.run([sys.executable, script, outputs], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return outputs, (made.stdout + made.stderr).splitlines()


def test_every_notebook_runs(smoke):
    outputs, lines = smoke
    assert {f"{name}: done" for name in list_notebooks()} <= set(lines), lines
    made = {
        str(p.relative_to(outputs / "smoke")) for p in (outputs / "smoke").rglob("*") if p.is_file()
    }
    wanted = {f"tables/{n}{s}" for n in TABLES for s in (".csv", ".md", ".tex", ".provenance.json")}
    wanted |= {f"figures/{n}{s}" for n in FIGURES for s in (".png", ".pdf", ".provenance.json")}
    assert (
        wanted | {f"notebooks/{n}.ipynb" for n in list_notebooks()} <= made
        and changed_files(outputs / "smoke") == []
    )
    assert re.search(r"\d+ of \d+ runs are to be made", "\n".join(lines)) and set(
        exhibits()
    ) == set(list_notebooks())


def test_notebooks_find_all_their_runs_made(smoke):
    "What a notebook needs is in the plan, except the timing, which is measured where nothing else runs."
    for name in exhibits():
        text = "".join(
            o.get("text", "")
            for c in nbformat.read(smoke[0] / f"smoke/notebooks/{name}.ipynb", as_version=4).cells
            for o in c.get("outputs", [])
        )
        made = re.findall(r"MISS (\w+) ", text)
        assert set(made) <= {"timings"}, f"{name}: {made}"
        assert re.search(r"All \d+ runs are there", text), name


def test_provenance_names_runs_data_and_code(smoke):
    note = read_json(smoke[0] / "smoke/tables/table3.provenance.json")
    assert (
        note["preset"] == "smoke"
        and note["seeds"] == 1
        and note["other_code"] == []
        and len(note["data"]) == 16
        and note["notebook"] == "table3_cross_manipulation"
    )
    assert sum(run.startswith("detectors/") for run in note["runs"]) == 45


def state(folder, *suffixes):
    "The files below a folder: when each was written, and its bytes."
    files = [p for p in folder.rglob("*") if p.suffix in suffixes]
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_the_second_time_all_is_reused_and_the_tables_are_the_same_bytes(smoke, monkeypatch, lines):
    monkeypatch.setattr(module, "run_notebook", run_here)
    outputs = smoke[0]

    def texts():
        written = state(outputs / "smoke/tables", ".csv", ".md", ".tex")
        return {path: content for path, (_, content) in written.items()}

    runs, tables = state(outputs / "runs", ".json", ".parquet"), texts()
    results = reproduce(["table8", "figure8"], "smoke", outputs=outputs)
    assert set(results.values()) == {"done"}
    assert not any(line.startswith("MISS") for line in lines)
    assert any(" 0 made." in line for line in lines)
    assert state(outputs / "runs", ".json", ".parquet") == runs and texts() == tables


def test_plain_papermill_in_an_empty_folder_writes_the_same_bytes(smoke, tmp_path):
    "Benchmark and trainings are made anew."
    source, out = notebook_folder() / "figure4_exploitation.ipynb", tmp_path / "out.ipynb"
    parameters = ["-p", "preset", "smoke", "-p", "outputs", str(tmp_path)]
    words = [sys.executable, "-m", "papermill", source, out, *parameters, "--no-progress-bar"]
    subprocess.run(words, check=True, capture_output=True)

    first, second = (folder / "smoke/figures/figure4.png" for folder in (smoke[0], tmp_path))
    assert first.read_bytes() == second.read_bytes()
    first, second = (read_json(path.with_suffix(".provenance.json")) for path in (first, second))
    assert first["runs"] == second["runs"] and first["data"] == second["data"]
    weights = sorted(tmp_path.glob("runs/detectors/*/model.safetensors"))
    assert len(weights) == 3
    for path in weights:
        assert path.read_bytes() == (smoke[0] / path.relative_to(tmp_path)).read_bytes()


def test_tables_for_machines_have_the_papers_numbers_too(smoke):
    def read(file):
        return pd.read_csv(smoke[0] / f"smoke/tables/{file}.csv")

    def cell(file, **keys):
        return (
            read(file).query(" and ".join(f"{k} == {v!r}" for k, v in keys.items())).paper.iloc[0]
        )

    assert (
        cell("table1", name="VGG", subset="NT") == 10.64
        and read("table1_fusions").paper.isna().all()
    )
    assert (
        cell("table2", backbone="EfficientNet", arm="primary", test="mini-DF1", measure="AUC")
        == 74.72
        and cell("table2", backbone="recce", test="AVG", measure="ACC") == 61.27
    )
    assert cell(
        "table3", backbone="Xception", arm="primary - none", train="DF", test="NT"
    ) == pytest.approx(0.28)
    assert cell(
        "table4", backbone="F3-Net", arm="landmark - primary", test="mini-Celeb"
    ) == pytest.approx(-3.63)
    assert cell("table5", backbone="VGG", arm="low", test="mini-DF1") == 65.56
    assert (
        cell("table6", arm="E", test="mini-DFDC") == 63.69
        and cell("table7", backbone="ResNet-50", arm="static", test="mini-DF1") == 63.32
    )
    assert (
        cell("table8", backbone="Xception", arm="primary", quantity="train") == 262.42
        and cell("figure6", backbone="EfficientNet", arm="4", test="AVG", measure="AUC") == 71.94
    )
    assert (
        len(pd.read_csv(smoke[0] / "smoke/tables/figure6.csv").query("measure == 'ACC'"))
        and " ACC " in (smoke[0] / "smoke/tables/figure6.md").read_text()
    )


def test_table3_numbers_are_the_scores(smoke):
    rows = pd.read_csv(smoke[0] / "smoke/tables/table3.csv").set_index(
        ["backbone", "arm", "train", "test"]
    )
    assert len(rows) == 3 * 5 * 5 * 7 and (rows.low <= rows.high).all()
    table = read_scores(quiet(smoke[0]).detector("VGG", "FS", mask="primary", **PUBLISHED))
    part = table[table.subset.isin(["real", "NT"])]
    value = 100 * auc(part.label, part.p_fake)
    assert rows.loc[("VGG", "primary", "FS", "NT"), "value"] == pytest.approx(value)
    assert rows.loc[("VGG", "primary - none", "FS", "NT"), "value"] == pytest.approx(
        value - rows.loc[("VGG", "none", "FS", "NT"), "value"]
    )


def test_tables_show_ours_the_papers_and_the_difference(smoke):
    for n in (2, 3, 4, 5, 6, 7, 8):
        text = (smoke[0] / f"smoke/tables/table{n}.md").read_text()
        assert (
            re.search(r" \*[\d.]+\* ", text)
            and "mall beside" in text
            and "Preset smoke" in text
            and "1 seed" in text
        ), n
        assert ("the slowest and the fastest of 1 rounds" if n == 8 else "95% intervals") in text, n
        assert ("test faces of mini-Celeb" in text) == (n in (2, 4, 5, 6, 7)), (
            "the faces behind the numbers"
        )
    assert (
        "*99.91*" in (smoke[0] / "smoke/tables/table3.md").read_text()
        and "*74.72*" in (smoke[0] / "smoke/tables/table2.md").read_text()
    )
    rows = pd.read_csv(smoke[0] / "smoke/tables/table2.csv")
    assert set(rows.measure) == {"ACC", "AUC"} and len(rows) == 2 * 4 * (23 + 10)


def test_several_seeds_widen_the_intervals(smoke):
    lab = quiet(smoke[0])

    def measured(seeds):
        cells = target_cells(lab, Table6().arms(lab)[:1], seeds)
        return compare_arms({name: read_cell(lab, cell) for name, cell in cells.items()}).set_index(
            "test"
        )

    one, two = measured(1), measured(2)
    assert not np.allclose(one.value, two.value) and (two.high - two.low).loc["AVG"] > 0


class Page(HTMLParser):
    "What a page refers to."

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.ids, self.others = [], [], set(), []
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.tags.append(tag)
        if "id" in a:
            self.ids.add(a["id"])
        if tag == "img":
            self.images.append((a["alt"], a["src"]))
        elif tag == "a":
            self.links.append(a["href"])
        elif {"src", "href"} & set(a) and a.get("href") != "data:,":
            self.others.append((tag, a))

    def handle_data(self, data):
        self.text += data


def test_the_report_is_whole_and_needs_no_network(smoke):
    outputs = smoke[0]
    text = (outputs / "report.html").read_text()
    page = Page(text)
    assert (
        {alt for alt, _ in page.images} >= FIGURES
        and not page.others
        and "://" not in re.sub(r'src="data:[^"]+"', "", text)
    )
    for _, source in page.images:
        Image.open(
            io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))
        ).verify()
    for link in page.links:
        assert (link[1:] in page.ids) if link.startswith("#") else (outputs / link).exists(), link
    assert (
        set(exhibits()) <= page.ids
        and "Not what was written" not in text
        and "Failed:" not in text
        and "$" not in text
    )
    assert (
        text.count("<table>") + text.count("<table ") >= len(TABLES) + 2
        and "Table IV, EfficientNet random, DF-1.0" in text
    )


HOSTILE = (
    "<script>alert(1)</script> ![p](http://a.example/p.png) [l](javascript:x) <http://a.example> "
    "&lt; `c` a|b {{ 7 * 7 }} \\ '\""
)


def report_of(lab, words):
    "The report of a table and a figure in which `words` stand wherever data or files can bring them in."
    frame, fig = pd.DataFrame({"subset": [words], words: ["**64.0**"]}), Figure(figsize=(1, 1))
    path = write_table(
        lab,
        "table4",
        frame,
        frame,
        f"About {words}",
        notebook="table4_masks",
        seeds=words,
        seed=words,
    )
    write_figure(lab, "figure1", fig, f"About {words}", notebook="figure1_attention")
    note = read_json(path.with_suffix(".provenance.json"))
    note["files"][words.replace("/", ":")] = "0"
    note["runs"], note["commit"], note["time"] = [f"detectors/{words}"], words, words
    write_json(path.with_suffix(".provenance.json"), note)
    lab.store.code, lab.fingerprint = words, words
    (lab.outputs / "smoke/notebooks").mkdir()
    (lab.outputs / "smoke/notebooks/table4_masks.ipynb").write_text("{}")
    return write_report(lab, {"table2": f"FAILED: {words}", words: "why"}).read_text()


def test_markup_in_names_notes_and_captions_is_text_in_the_report(tmp_path):
    lab, plain = (Lab("smoke", outputs=tmp_path / name) for name in "ab")
    for one in (lab, plain):
        one.fingerprint = "0" * 16
    text = report_of(lab, HOSTILE)
    page, same = Page(text), Page(report_of(plain, "harmless"))
    assert (
        page.tags == same.tags
        and page.links == same.links
        and page.ids == same.ids
        and page.others == []
    )
    assert [alt for alt, _ in page.images] == ["figure1"]
    assert (
        page.text.replace(HOSTILE.replace("/", ":"), HOSTILE).count(HOSTILE)
        == same.text.count("harmless")
        > 12
    )


def test_a_table_rewritten_by_hand_brings_no_script_into_the_report(tmp_path):
    lab, frame = (
        Lab("smoke", outputs=tmp_path),
        pd.DataFrame(dict(auc=["64.0"])),
    )
    lab.fingerprint = "0" * 16
    path = write_table(lab, "table4", frame, frame, "A caption.", notebook="table4_masks")
    before = Page(write_report(lab).read_text())
    path.write_text(
        path.read_text()
        + "\n<script>alert(1)</script>\n\n<b onclick='x'>b</b> [l](javascript:alert)\n"
    )
    page = Page(write_report(lab).read_text())
    assert not {"script", "b", "iframe"} & (set(page.tags) - set(before.tags)) and not any(
        "script" in link for link in page.links
    )
    assert (
        page.tags.count("b") == before.tags.count("b") and "<script>alert(1)</script>" in page.text
    )


def test_files_with_odd_names_are_linked_in_the_report(tmp_path):
    lab = Lab("smoke", outputs=tmp_path)
    lab.fingerprint = "0" * 16
    name, frame = 'a"b<i>#1 100%?', pd.DataFrame(dict(auc=["64.0"]))
    write_table(lab, name, frame, frame, "A caption.", notebook="table4_masks")
    write_figure(lab, name, Figure(figsize=(1, 1)), "A caption.", notebook="table4_masks")
    page = Page(write_report(lab).read_text())
    files = [link for link in page.links if not link.startswith("#")]
    assert len(files) == 4 and all((tmp_path / unquote(link)).is_file() for link in files)
    assert "i" not in page.tags and [alt for alt, _ in page.images] == [name]


@pytest.mark.skipif(
    not shutil.which("chromium") and os.environ.get("CI") != "true",
    reason="no browser: install the package chromium to have the report looked at",
)
def test_the_report_in_a_browser(smoke, tmp_path):
    "No console error, all pictures load, and no sideways scrolling of the page at phone width."
    page = tmp_path / "page.html"
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify({
      broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length,
      wide: document.documentElement.scrollWidth, width: innerWidth}); })</script></body>"""
    text = (smoke[0] / "report.html").read_text()
    assert "default-src 'none'" in text
    page.write_text(
        re.sub("script-src '.*?'", "script-src 'unsafe-inline'", text).replace("</body>", probe)
    )
    frame = tmp_path / "phone.html"  # a headless window cannot be as narrow as a phone
    frame.write_text(f"""<iframe id="f" src="{page.name}" width="390" height="800"></iframe>
      <script>onload = () => setTimeout(() => {{ document.title = f.contentDocument.title }}, 500)</script>""")
    options = (
        "headless no-sandbox disable-gpu allow-file-access-from-files enable-logging=stderr".split()
    )
    options += ["virtual-time-budget=20000", "dump-dom"]
    done = subprocess.run(
        [
            "chromium",
            *[f"--{o}" for o in options],
            f"--user-data-dir={tmp_path / 'profile'}",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert (
        found["broken"] == 0
        and found["images"] >= len(FIGURES)
        and found["wide"] <= found["width"] == 390
    )
    assert "CONSOLE" not in done.stderr, done.stderr


def test_a_cell_changed_by_hand_stands_in_the_report(smoke, monkeypatch, lines):
    monkeypatch.setattr(module, "run_notebook", lambda *a, **k: None)
    outputs, lab = smoke[0], quiet(smoke[0])
    path = outputs / "smoke/tables/table6.csv"
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(b"AUC", b"AUc", 1))
        assert "tables/table6.csv: changed since it was written" in write_report(lab).read_text()
        reproduce(["figure7"], "smoke", outputs=outputs)
        assert any(line.startswith("CHANGED tables/table6.csv") for line in lines)
    finally:
        path.write_bytes(before)
    assert "Not what was written" not in write_report(lab).read_text()


def test_a_table_of_other_data_is_marked_and_links_to_no_notebook_that_is_not_there(toy, tmp_path):
    lab = Lab("smoke", write_square(toy, tmp_path / "square"), tmp_path)
    frame = pd.DataFrame(dict(auc=["64.0"]))
    write_table(lab, "table4", frame, frame, "A caption.", notebook="table4_masks")
    page = write_report(lab).read_text()
    assert (
        "Made from other data" not in page
        and f"data {lab.fingerprint}" in page
        and "The executed notebook" not in page
    )
    lab.fingerprint = "0123456789abcdef"
    (notebooks := tmp_path / "smoke/notebooks").mkdir()
    (notebooks / "table4_masks.ipynb").write_text("{}")
    page = write_report(lab).read_text()
    assert (
        "Made from other data than this page's: table4." in page
        and 'href="smoke/notebooks/table4_masks.ipynb"' in page
    )


def drawn(smoke, exhibit, **settings):
    "The figure of an exhibit, from runs that are there."
    (part,) = exhibit.compute(quiet(smoke[0]), **settings)
    return part.figure


def test_figure7_masks_grow_with_alpha_and_stay_what_they_were(smoke):
    figure = drawn(smoke, Figure7())
    assert min(letters(figure)) >= 6
    rows = np.array_split(figure.axes, 6)
    for row in rows:
        face, *masked = [ax.images[0].get_array().astype(int) for ax in row]
        changed = [(m != face).any(-1) for m in masked]  # alpha 1.0, 0.9, ... 0.1
        assert all(
            (small <= large).all() and small.sum() < large.sum()
            for large, small in zip(changed, changed[1:])
        )
        assert all((m[c] == 0).all() for m, c in zip(masked, changed))
    assert [ax.get_title() for ax in rows[0]][:3] == ["face", r"$\alpha$ = 1.0", "0.9"]


def test_the_size_of_a_mask_is_counted_in_its_quantile_map(smoke):
    lab, found = (
        quiet(smoke[0]),
        pd.read_csv(smoke[0] / "smoke/tables/figure8_masks.csv").set_index(["what", "subset"]),
    )
    for s in ("DF", "NT"):
        rows, zoo = lab.train_faces(s), Zoo(s, **PUBLISHED)
        maps = lab.quantiles(zoo).path / "quantiles"
        sizes = [(read_quantiles(maps / path) > 0).mean() for path in rows.path]
        assert (
            found.value["size of the mask, in training", s]
            == pytest.approx(100 * auc(rows.label, sizes))
            and len(set(sizes)) > 10
        )


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_figures_have_the_width_at_which_they_are_printed(smoke, name):
    width, height = Image.open(smoke[0] / f"smoke/figures/{name}.png").size
    assert width in (round(200 * COLUMN_WIDTH), round(200 * PAGE_WIDTH)) and height < 200 * 9.5, (
        "a page's height"
    )


def test_figure3_has_a_row_a_fusion_and_a_curve_each(smoke):
    figure = drawn(smoke, Figure3())
    *faces, curves = figure.axes
    assert min(letters(figure)) >= 6
    assert len(faces) == 3 * 5 and len(curves.patches) == 3
    low, high, neighbour = (
        np.array([(ax.images[1].get_array() > 0).mean() for ax in row])
        for row in np.array_split(faces, 3)
    )
    assert (high <= low).all() and (neighbour >= high).all(), (
        "a higher tau_1 keeps less, neighbouring adds to it"
    )


def test_figures_2_and_4_are_intermediate_results(smoke):
    figure2, figure4 = drawn(smoke, Figure2()), drawn(smoke, Figure4())
    assert min(letters(figure2) + letters(figure4)) >= 6
    panels = {ax.get_title(): ax.images for ax in figure2.axes}
    binary, kept = (panels[t][0].get_array() for t in ("mask $M_b$\nEq. 4", "highest 50%\nEq. 10"))
    face, masked = panels["face (DF)"][0].get_array(), panels["masked face\nEq. 11"][0].get_array()
    assert (
        (kept <= binary).all()
        and abs(kept.sum() / binary.sum() - 0.5) < 0.01
        and (masked == np.where(kept[..., None], 0, face)).all()
    )
    assert (panels["fused map"][1].get_array() > 0).sum() == binary.sum(), (
        "the mask is where the fused map is above 0"
    )
    panels = [(ax.get_title(), ax.images[0].get_array()) for ax in figure4.axes]
    sizes = [image.sum() for title, image in panels if "odot" in title]
    assert (
        len(sizes) == 3
        and sizes == sorted(sizes)
        and sizes[2] == dict(panels)["1) mask conversion,\n$M_b$"].sum()
    )


def test_figure9_draws_what_it_is_told_to(smoke):
    one, two, other = (drawn(smoke, Figure9(), seed=seed, faces=1) for seed in (0, 0, 3))
    assert min(letters(one)) >= 6
    titles = [[part.get_suptitle() for part in figure.subfigs] for figure in (one, two, other)]
    assert titles[0] == titles[1] == titles[2] and "found by all:" in titles[0][0]
    for first, same in zip(one.axes, two.axes, strict=True):
        assert (first.images[0].get_array() == same.images[0].get_array()).all()


def test_a_study_is_built_on_the_command_line(smoke, tmp_path, capsys, monkeypatch):
    lab, names = quiet(smoke[0]), []
    subsets = list(lab_study(lab).settings["subsets"])

    def build(*more):
        return cli.main(
            ["userstudy", "build", "--preset", "smoke", "--outputs", str(smoke[0]), *more]
        )

    for name, post in (("served", []), ("file", ["--post", ""])):
        size = [
            "--participants",
            "3",
            "--images",
            str(2 * len(subsets)),
            "--subsets",
            *subsets,
            "--splits",
            *SPLITS,
            "--practice",
            "2",
            "--seed",
            "0",
            "--confidence",
        ]
        assert (
            build(*size, *post, "--out", str(tmp_path / name)) == 0
            and "3 participants in" in capsys.readouterr().err
        )
        study = read_study(tmp_path / name)
        s, page = study.settings, (tmp_path / name / "page/settings.js").read_text()
        assert (s["participants"], s["images"], s["subsets"], s["practice"], s["seed"]) == (
            3,
            2 * len(subsets),
            subsets,
            2,
            0,
        ) and s["provenance"]["splits"] == list(SPLITS)
        assert ('"post": null' in page) == bool(post) and '"confidence": true' in page
        names.append(s["study"])
    assert names[0] != names[1], "each has a secret of its own"
    assert (
        build(*size, "--secret-of", str(tmp_path / "served"), "--out", str(tmp_path / "again")) == 0
    )
    again, served = (read_study(tmp_path / name) for name in ("again", "served"))
    assert again.plan.equals(served.plan) and again.settings["study"] == served.settings["study"]
    capsys.readouterr()
    monkeypatch.setattr(
        "prle.study.page.study_faces",
        lambda *a: pytest.fail("the zoo is made before what cannot work is refused"),
    )
    for wrong, why in (
        (["--post", "htp://x"], "no address"),
        (["--out", str(tmp_path / "file")], "may hold responses"),
        (["--images", "7"], "a multiple of that, not 7"),
        (["--images", "500"], "largest balanced design"),
        (["--subsets", "FF"], "manipulation"),
    ):
        assert (
            build(*["--out", str(tmp_path / "new")] * ("--out" not in wrong), *wrong) == 2
            and why in capsys.readouterr().err
            and not (tmp_path / "new").exists()
        ), wrong
    lab.fingerprint = "other faces"
    with pytest.raises(ValueError, match="made of other faces"):
        lab_study(lab, tmp_path / "file")


DECLARATION = """
import pandas as pd
from prle.paper.exhibits import SEEDS, Exhibit, Parameter, TablePart, declare, seed_range
from prle.lab.experiments import Wanted, read_scores

@declare
class Table0(Exhibit):
    "How many test faces are scored as fake."
    notebook = "table0_verdicts"
    parameters = (SEEDS, Parameter("subset", "DF", "manipulation"))

    def cells(self, lab, seeds, subset):
        return {("VGG", subset): [self.one(subset, seed) for seed in seed_range(seeds)]}

    def one(self, subset, seed):
        return Wanted(lambda lab: lab.detector("VGG", subset, seed=seed), read_scores)

    def parts(self, lab, values, seeds, subset):
        tables = values["VGG", subset]
        rows = pd.DataFrame(dict(seed=range(seeds), fakes=[int((t.p_fake > 0.5).sum()) for t in tables]))
        yield TablePart("table0", rows, rows, f"Table 0: faces that VGG, trained on {subset}, calls fake.")
"""


@pytest.fixture
def table0(tmp_path, monkeypatch):
    "A table added to the paper: a declaration, and a notebook of the form of all others."
    (tmp_path / "code").mkdir()
    (tmp_path / "code/declares_table0.py").write_text(DECLARATION)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join([str(tmp_path / "code"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    monkeypatch.setattr(sys.modules["prle.paper.exhibits"], "PAPER", dict(PAPER))
    sys.modules.pop("declares_table0", None)
    importlib.import_module("declares_table0")
    like = nbformat.read(notebook_folder() / "table6_single_detectors.ipynb", as_version=4)
    for cell in like.cells:
        cell.source = cell.source.replace("table6_single_detectors", "table0_verdicts").replace(
            "seeds=seeds", "seeds=seeds, subset=subset"
        )
    like.cells[0].source = "# Table 0: verdicts\n\n**Claim.** Some."
    like.cells[1].source = parameters_cell(find_exhibit("table0_verdicts"))
    like.cells[2].source = "import declares_table0\n" + like.cells[2].source
    (tmp_path / "paper").mkdir()
    nbformat.write(like, tmp_path / "paper/table0_verdicts.ipynb")
    monkeypatch.setattr(module, "notebook_folder", lambda: tmp_path / "paper")
    return find_exhibit("table0_verdicts")


def test_a_table_is_added_by_one_notebook_and_one_declaration(smoke, table0, tmp_path, lines):
    "Planned, computed, shown, written, told by --help, and in the report, by nothing else."
    lab, outputs = quiet(smoke[0]), tmp_path / "out"
    shutil.copytree(smoke[0] / "data", outputs / "data")
    assert (
        find_notebooks(["table0"]) == ["table0_verdicts"]
        and '  table0_verdicts:\n    subset = "DF"  # manipulation' in parameters_text()
    )
    names = plan(lab, ["table0_verdicts"], seeds=2).store.names()
    assert [n.rsplit("-", 1)[0] for n in names] == [
        "detectors/VGG-DF-none-s0",
        "detectors/VGG-DF-none-s1",
    ] and announce(lab, table0, seeds=1) == "All 1 runs are there."
    assert reproduce(["table0"], "smoke", outputs=outputs) == {"table0_verdicts": "done"}, lines
    assert "1 of 1 runs are to be made: 1 of them like none before." in lines
    rows = pd.read_csv(outputs / "smoke/tables/table0.csv")
    assert rows.fakes.tolist() == [(read_scores(lab.detector("VGG", "DF")).p_fake > 0.5).sum()]
    note = read_json(outputs / "smoke/tables/table0.provenance.json")
    assert (
        note["seeds"] == 1
        and note["subset"] == "DF"
        and note["notebook"] == "table0_verdicts"
        and len(note["runs"]) == 1
    )
    executed = nbformat.read(outputs / "smoke/notebooks/table0_verdicts.ipynb", as_version=4)
    shown = json.dumps([cell.get("outputs") for cell in executed.cells])
    assert (
        "Table 0: faces that VGG, trained on DF, calls fake." in shown
        and "All 1 runs are there." in shown
    )
    page = Page((outputs / "report.html").read_text())
    assert (
        "table0_verdicts" in page.ids
        and "Table 0: verdicts" in page.text
        and "smoke/tables/table0.csv" in page.links
    )


@pytest.fixture
def notebook(tmp_path):
    def make(body, tagged=True):
        cell = nbformat.v4.new_code_cell(
            "n = 1  # a number", metadata=dict(tags=["parameters"] if tagged else [])
        )
        kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
        nbformat.write(
            nbformat.v4.new_notebook(
                cells=[cell, nbformat.v4.new_code_cell(body)], metadata=kernel
            ),
            tmp_path / "a.ipynb",
        )
        return tmp_path / "a.ipynb"

    return make


WORK, SHOW = (
    "prle.lab.experiments, prle.lab.audits",
    "prle.paper.claims, prle.paper.figures, prle.paper.reproduce, prle.study.page",
)
UNUSED = {"timm", "torchvision", "sklearn", "seaborn", "dlib", "scipy.interpolate", "scipy.spatial"}


@pytest.mark.parametrize(
    "modules, unused",
    [(SHOW, UNUSED), (WORK, UNUSED | {"matplotlib", "scipy.stats", "torch.utils.flop_counter"})],
)
def test_nothing_waits_for_libraries_that_it_does_not_use(modules, unused):
    code = f"import sys, {modules}; print({unused} & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def test_unknown_parameters_raise(notebook, tmp_path):
    with pytest.raises(ValueError, match="unknown parameter of a.ipynb 'm'.*Known: n"):
        run_notebook(notebook("print(n)"), tmp_path / "out.ipynb", m=2)
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        run_notebook(notebook("print(n)", tagged=False), tmp_path / "out.ipynb", n=2)


def test_a_failed_notebook_is_kept_aside_and_the_source_untouched(notebook, tmp_path):
    source = notebook("1 / (n - 1)")
    before = source.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_notebook(source, tmp_path / "out.ipynb", n=1)
    assert not (tmp_path / "out.ipynb").exists() and (tmp_path / "out.failed.ipynb").exists()
    run_notebook(source, tmp_path / "out.ipynb", n=3)
    assert (
        (tmp_path / "out.ipynb").exists()
        and not (tmp_path / "out.failed.ipynb").exists()
        and source.read_bytes() == before
    )


def test_a_kernel_that_dies_leaves_a_log_that_exists(notebook, tmp_path):
    "And what an earlier failure left is not taken for it."
    out, failed = tmp_path / "out.ipynb", tmp_path / "out.failed.ipynb"
    said = module._executed(notebook("import os\nos._exit(1)"), out, dict(n=1))
    assert said == f"FAILED: its kernel died, perhaps for want of memory (see {failed})"
    assert nbformat.read(failed, as_version=4).cells[-1].source.endswith("os._exit(1)")
    assert not out.exists()


def test_a_python3_of_another_environment_is_not_used(notebook, tmp_path, monkeypatch):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = dict(argv=["false", "{connection_file}"], display_name="theirs", language="python")
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    out = run_notebook(notebook("import sys\nprint(sys.executable)"), tmp_path / "out.ipynb")
    printed = nbformat.read(out, as_version=4).cells[-1].outputs[0].text
    assert printed.strip() == sys.executable


def test_one_failure_does_not_stop_the_others(smoke, monkeypatch, lines):
    def broken(source, out, **parameters):
        if "table1" in source.name:
            raise RuntimeError("first line\nthe <reason>")

    monkeypatch.setattr(module, "run_notebook", broken)
    results = reproduce(["table1", "figure7"], "smoke", outputs=smoke[0])
    assert results["figure7_alpha"] == "done" and results["table1_attended_share"].startswith(
        "FAILED: the <reason>"
    )
    assert (
        "1 of 2 notebooks done" in lines[-1]
        and "the &lt;reason&gt;" in (smoke[0] / "report.html").read_text()
    )
    monkeypatch.setattr(module, "reproduce", lambda *a, **k: results)
    assert cli.main(["reproduce"]) == 1


def test_a_kind_is_made_again_on_purpose(toy, tmp_path, monkeypatch, lines):
    "The fusion behind a detector's masks, and not the detector that rests on it."

    def wanted(lab):
        return lab.detector("VGG", "A", mask="primary", zoo=("VGG",), **PUBLISHED)

    def cells(lab, seed, subset):
        return {"one": [Wanted(wanted, str)]}

    def missed():
        return [line.split() for line in lines if line.startswith("MISS")]

    monkeypatch.setattr(module, "run_notebook", lambda *a, **k: None)
    monkeypatch.setattr(PAPER["figure4_exploitation"], "cells", cells, raising=False)
    data = str(write_square(toy, tmp_path / "square"))
    told = dict(preset="smoke", data=data, outputs=str(tmp_path))
    done = {"figure4_exploitation": "done"}
    assert reproduce(["figure4"], **told) == done
    assert [kind for _, kind, *_ in missed()] == ["detectors", "maps", "fusions", "detectors"]
    lines.clear()
    assert reproduce(["figure4"], **told, remade=["fusions"]) == done
    assert [kind for _, kind, *_ in missed()] == ["fusions"]
    assert any("asked for; the earlier result is set aside as" in line for line in lines)
    [run] = (p for p in (tmp_path / "runs/fusions").iterdir() if "." not in p.name)
    assert [why["cause"] for why in read_json(run / "provenance.json")["why"]] == ["asked for"]
    lines.clear()
    assert reproduce(["figure4"], **told) == done and missed() == []
    words = [part for name, value in told.items() for part in (f"--{name}", value)]
    assert cli.main(["reproduce", "figure4", *words, "--remake", "fusion"]) == 2
    assert cli.main(["reproduce", "figure4", *words, "--remake", "maps"]) == 0
    assert cli.main(["runs", run.name, "--outputs", str(tmp_path)]) == 0


def test_what_could_not_be_made_is_not_trained_in_a_notebook(toy, tmp_path, monkeypatch):
    "A notebook whose runs have a fault is skipped with the reason, one whose runs diverged is not."

    def faults(store, dry, *options):
        return {t.name: "its worker died" for t in dry.tasks}

    monkeypatch.setattr(module, "execute", faults)
    monkeypatch.setattr(module, "run_notebook", lambda *a, **k: ran.append(a[0].stem))
    monkeypatch.setattr(PAPER["figure7_alpha"], "cells", lambda lab, seed: {}, raising=False)
    one = Wanted(lambda lab: lab.detector("VGG", "A"), str)
    monkeypatch.setattr(
        PAPER["figure4_exploitation"],
        "cells",
        lambda lab, seed, subset: {"one": [one]},
        raising=False,
    )
    ran, data = [], write_square(toy, tmp_path / "square")
    told = dict(preset="smoke", data=str(data), outputs=str(tmp_path))
    results = reproduce(["figure4", "figure7"], **told)
    assert ran == ["figure7_alpha"] and results["figure7_alpha"] == "done"
    assert re.fullmatch(
        "SKIPPED: detectors/VGG-A-none-s0-.* could not be made: its worker died",
        results["figure4_exploitation"],
    )
    assert "could not be made: its worker died" in (tmp_path / "report.html").read_text()
    lab = Lab("smoke", data=data, outputs=tmp_path)
    task = plan(lab, ["figure4_exploitation"]).store.tasks[0]
    write_json(
        task.path.with_name(f".{task.path.name}.failed.json"),
        dict(diverged=True, error="FloatingPointError: nan", code=lab.store.code, when=""),
    )
    assert reproduce(["figure4"], **told) == {"figure4_exploitation": "done"}


def test_wrong_words_on_the_command_line(capsys, tmp_path):
    assert cli.main(["reproduce", "tabel3", "--preset", "smoke", "--outputs", str(tmp_path)]) == 2
    assert "Did you mean 'table3'" in capsys.readouterr().err
    assert cli.main(["reproduce", "--preset", "huge"]) == 2
    assert "unknown preset 'huge'" in capsys.readouterr().err
    assert cli.main(["reproduce", "--preset", "paper", "--outputs", str(tmp_path)]) == 2
    assert "needs real data" in capsys.readouterr().err
    assert (
        cli.main(["reproduce", "--preset", "smoke", "--seeds", "0", "--outputs", str(tmp_path)])
        == 2
    )
    assert list(tmp_path.iterdir()) == []


def test_forge_on_the_command_line(capsys, tmp_path):
    assert cli.main(["forge", "--people", "3", "--out", str(tmp_path / "out")]) == 2
    assert "people" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert (
        cli.main(
            [
                "forge",
                "--people",
                "6",
                "--size",
                "64",
                "--steps",
                "1",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    assert (tmp_path / "out/targets/mini-Celeb/contact_sheet.png").exists()
    assert set(read_manifest(tmp_path / "out/manifest.parquet").split) == {"train", "val", "test"}


def test_find_notebooks():
    assert (
        find_notebooks([]) == find_notebooks(["headline"]) == headline()
        and find_notebooks(["all"]) == list_notebooks()
    )
    assert {n.split("_")[0] for n in headline()} == {
        "table1",
        "table3",
        "table8",
        *(f"figure{n}" for n in (1, 2, 3, 4, 7, 8)),
        "controls",
    }, "the headline"
    assert (
        find_notebooks(["figure7", "table3"]) == ["table3_cross_manipulation", "figure7_alpha"]
        and len(find_notebooks(["figure1"])) == 1
    ), "not figure10"
    assert (
        {p.stem for p in notebook_folder().glob("[!0-9]*.ipynb")}
        == set(list_notebooks())
        == set(exhibits())
    )
    assert [n.split("_")[0] for n in list_notebooks()[10:19]] == [
        "table2",
        "table4",
        "table5",
        "table6",
        "table7",
        "figure5",
        "figure6",
        "figure9",
        "figure10",
    ]
    assert find_exhibit("table5_fusion").number == 5
    with pytest.raises(ValueError, match="Did you mean 'table5_fusion'"):
        find_exhibit("table5_fusions")


@pytest.mark.parametrize("name", list_notebooks())
def test_a_notebook_has_the_parameters_that_are_declared_and_hands_them_on(name):
    cells = nbformat.read(notebook_folder() / f"{name}.ipynb", as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    own = ", ".join(f"{p.name}={p.name}" for p in find_exhibit(name).parameters)
    assert code[0] == parameters_cell(find_exhibit(name)) and code[2].startswith(
        f'{code[2].split(" = ")[0]} = find_exhibit("{name}")'
    )
    assert (
        code[2].count(own) == code[3].count(own) == 1
        and len(code) == 5
        and sum(len(c.splitlines()) for c in code[1:]) == 10
    )


def test_the_parameters_are_told(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["reproduce", "--help"])
    text = parameters_text()
    assert text in (shown := capsys.readouterr().out) and "--engine" in shown
    assert (
        text.count("preset = ") == 1
        and 'table2_generalization:\n    backbones = "all"' in text
        and "figure9_heat_maps:" in text
    )
    assert all("#" in line for line in text.splitlines() if " = " in line)


def test_everything_adds_the_further_backbones(smoke):
    tasks = [
        plan(quiet(smoke[0]), ["table3_cross_manipulation"], 1, full).store.tasks
        for full in (False, True)
    ]
    labels = [
        {
            t.path.name.split("-DF")[0]
            for t in some
            if t.path.parent.name == "detectors" and "-DF-" in t.path.name
        }
        for some in tasks
    ]
    assert labels[0] == {"Xception", "EfficientNet", "VGG"} and labels[1] - labels[0] == {
        "F3-Net",
        "ResNet-50",
    }
    assert {name for name, exhibit in exhibits().items() if exhibit.full} == {
        "table3_cross_manipulation",
        "figure5_single_training",
        "mechanism",
        "claims",
    }


@pytest.mark.parametrize("full", [False, True])
def test_claims_rest_on_the_rows_of_the_tables(smoke, full):
    "But for p and gamma, they train nothing that tables and figures do not."
    figures = ("figure5", "figure6", "figure8")
    tables = find_notebooks([*(f"table{n}" for n in range(1, 8)), *figures])
    claims, shown = (
        {
            run
            for run in plan(quiet(smoke[0]), names, 1, full).store.names()
            if run.startswith("detectors/")
        }
        for names in (["claims"], tables)
    )
    besides = {name for name in claims - shown if not re.search("-(p|gamma)=", name)}
    assert claims and not besides


def test_what_it_costs(smoke, tmp_path):
    lab = quiet(smoke[0])
    assert announce(lab, Table6(), seeds=1).startswith("All ")
    assert re.fullmatch(
        r"\d+ of \d+ runs are to be made: about .+\.", announce(lab, Table6(), seeds=3)
    )
    assert 6e12 / 2 < rtx3090_rate() < 8e12 / 2, (
        "an RTX 3090's practical speed, in multiply-accumulates"
    )
    empty = Lab("smoke", smoke[0] / "data/smoke", tmp_path)
    one, three = (cost(plan(empty, ["table7_exploitation"], seeds)) for seeds in (1, 3))
    assert (
        one.trainings == 11
        and three.trainings == 3 * 11
        and three.hours == pytest.approx(3 * one.hours)
        and three.disk == pytest.approx(3 * one.disk)
    )


def test_the_preset_paper_is_estimated_without_its_data(capsys, tmp_path):
    words = ["reproduce", "table6", "--preset", "paper", "--outputs", str(tmp_path), "--estimate"]
    assert cli.main(words) == 0 and not any(tmp_path.iterdir())
    said = capsys.readouterr().out
    assert "8 of them trainings" in said and "hours of one RTX 3090" in said


def test_the_manipulations_have_the_papers_names(smoke):
    assert quiet(smoke[0]).subsets == list(SUBSETS)
