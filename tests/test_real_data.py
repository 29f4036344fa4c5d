"The preset paper on real videos in the official layouts: at full size, and through its notebooks with narrow networks."

import dataclasses
import json
import re

import nbformat
import pandas as pd
import pytest
from clips import write_clip

from prle import cli
from prle.lab import configs
from prle.paper import reproduce as module
from prle.paper.comparisons import compare_arms, target_cells
from prle.paper.exhibits import exhibits, read_cell
from prle.lab.experiments import Lab
from prle.paper.numbers import BACKBONES, TARGET_SETS
from prle.paper.reproduce import announce, plan, reproduce
from prle.paper.tables import Table6


PEOPLE = {f"{i:03}": f"s{i + 1}" for i in range(6)}
"The number of a video of FF++ -> its person among the ORL faces."


def put(path, who, mask=None):
    return write_clip(path, who, frames=2, size=(224, 180), mask=mask)


def write_ffpp(root):
    "FaceForensics++: six originals, Deepfakes of each pair in both directions with masks, a pair a split."
    pairs = [("000", "001"), ("002", "003"), ("004", "005")]
    base = root / "manipulated_sequences/Deepfakes"
    (base / "masks/videos").mkdir(parents=True)
    for video, who in PEOPLE.items():
        put(root / f"original_sequences/youtube/c23/videos/{video}.mp4", who)
    for a, b in [p for pair in pairs for p in (pair, pair[::-1])]:
        name = f"{a}_{b}.mp4"
        put(base / "c23/videos" / name, PEOPLE[b], base / "masks/videos" / name)
    for split, pair in zip(("train", "val", "test"), pairs):
        (root / f"{split}.json").write_text(json.dumps([list(pair)]))


def write_celeb(root):
    "Celeb-DF: two real videos and a fake, all of the test list, whose labels are the other way round."
    videos = {
        "Celeb-real/id0_0000.mp4": (1, "s7"),
        "YouTube-real/00000.mp4": (1, "s8"),
        "Celeb-synthesis/id0_id1_0000.mp4": (0, "s9"),
    }
    for name, (_, who) in videos.items():
        put(root / name, who)
    listed = [f"{label} {name}\n" for name, (label, _) in videos.items()]
    (root / "List_of_testing_videos.txt").write_text("".join(listed))


def write_dfdc(root):
    "DFDC's test videos with their labels."
    for name, who in (("a", "s10"), ("b", "s11")):
        put(root / f"test/{name}.mp4", who)
    (root / "test/labels.csv").write_text("filename,label\na.mp4,0\nb.mp4,1\n")


def write_df1(root):
    "DeeperForensics-1.0: a fake a split."
    lists = root / "lists/splits"
    lists.mkdir(parents=True)
    videos = dict(train=("000_M001", "s1"), val=("002_W002", "s3"), test=("004_M003", "s5"))
    for split, (name, who) in videos.items():
        put(root / f"manipulated_videos/end_to_end/{name}.mp4", who)
        (lists / f"{split}.txt").write_text(f"{name}.mp4\n")


def cut_faces(name, source, root, size, *options):
    "Run `prle faces` on a data set in its official layout."
    where = ["--root", str(source / name), "--out", str(root / name)]
    how = ["--count", "2", "--size", str(size), "--workers", "0"]
    assert cli.main(["faces", name, *where, *how, *options]) == 0


def small_paper(size):
    "The preset paper for one epoch, from random weights."
    full = configs.PRESETS["paper"]
    networks = {
        name: dataclasses.replace(b, pretrained=False) for name, b in full.backbones.items()
    }
    recipe = dict(epochs=1, batch_size=4, workers=0)
    return dataclasses.replace(full, size=size, backbones=networks, recipe=recipe)


@pytest.fixture
def real_data(tmp_path, monkeypatch, request):
    "Folders of `prle faces` from real mp4s, and the preset paper at full size or with smaller crops, for one epoch."
    source, root = tmp_path / "sources", tmp_path / "root"
    size = getattr(request, "param", configs.PRESETS["paper"].size)
    write_ffpp(source / "ff++")
    write_celeb(source / "celeb-df")
    write_dfdc(source / "dfdc")
    write_df1(source / "df-1.0")
    cut_faces("ff++", source, root, size, "--subsets", "DF")
    cut_faces("celeb-df", source, root, size)
    cut_faces("dfdc", source, root, size)
    cut_faces("df-1.0", source, root, size, "--reals", str(source / "ff++"))
    monkeypatch.setitem(configs.PRESETS, "paper", small_paper(size))
    return root


@pytest.mark.long
@pytest.mark.parametrize("real_data", [128], indirect=True)
def test_real_data_in_official_layouts_with_full_size_networks(real_data, tmp_path, lines):
    """Table VI's first row, from crops of videos to a target set, with what it will cost said first.

    The networks have their full size, the faces half of theirs; `test_detectors.py` counts at 256 pixels."""
    lab = Lab("paper", real_data, tmp_path / "outputs")
    assert (
        lab.targets == ["DFDC", "DF-1.0", "Celeb-DF"]
        and lab.subsets == ["DF"]
        and len(lab.train_faces("all")) == 8
    )
    text = announce(lab, Table6(), seeds=1)
    assert re.fullmatch(
        r"\d+ of \d+ runs are to be made, 8 of them trainings: about [\d.e-]+ hours of one RTX 3090 "
        r"at the paper's throughput, reading not included, "
        r"and [\d.]+ [MG]B on disk.",
        text,
    ), text
    cells = target_cells(lab, Table6().arms(lab)[:1], 1)
    rows = compare_arms({name: read_cell(lab, cell) for name, cell in cells.items()}).set_index(
        "test"
    )
    assert (
        set(rows.index) == {*lab.targets, "AVG"}
        and rows.value.between(0, 100).all()
        and (rows.note == "").all()
    )
    lines.clear()
    asked = plan(lab, list(exhibits())).store.names()
    notes = [line for line in lines if line.startswith("NOTE")]
    assert [note.split()[1] for note in notes] == [
        "figure1_attention",
        "figure4_exploitation",
        "figure5_single_training",
    ] and len(asked) > 50, "FS and NT are not there; the rest is planned"
    weights = sum(
        p.stat().st_size for p in (tmp_path / "outputs/runs/detectors").glob("*/model.safetensors")
    )
    assert weights > 500e6, "VGG-16 alone has 134 million weights"


def run_here(source, out, **parameters):
    "Execute a notebook's cells in this process, whose presets a test has changed."
    book, space = nbformat.read(source, as_version=4), {}
    for cell in book.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, source.name, "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space.update(parameters)
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, out)


def check_claims(tables):
    "What can be said with one manipulation is said, and the rest is undecided."
    claims = pd.read_csv(tables / "claims.csv").set_index("name")
    assert (
        len(claims) == 41
        and claims.value[
            ["prle", "landmark", "fusion", "zoo", "dynamic", "share", "train", "inside"]
        ]
        .notna()
        .all()
    )
    assert claims.verdict[["cross", "people"]].tolist() == ["undecided"] * 2 and claims.paper[
        "zoo"
    ] == pytest.approx(3.777, abs=0.001)


@pytest.mark.parametrize("with_claims", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("real_data", [64], indirect=True)
def test_the_preset_paper_on_official_layouts_through_its_notebooks(
    real_data, tmp_path, monkeypatch, capsys, lines, with_claims
):
    """With small faces and narrow networks; of FF++ only DF is there.

    The claims, which rest on all tables, take twice as long as the rest."""
    full = configs.PRESETS["paper"]
    monkeypatch.setitem(
        configs.PRESETS,
        "paper",
        dataclasses.replace(
            full,
            backbones=configs.PRESETS["smoke"].backbones,
            width=1 / 8,
            options=configs.PRESETS["mini"].options,
            audit=configs.PRESETS["smoke"].audit,
        ),
    )
    monkeypatch.setattr(module, "run_notebook", run_here)
    wanted = ["table3", "table6", "table7", "table8", "localization"]
    wanted += ["figure3", "figure5", "figure9", *["claims"] * with_claims]
    outputs = str(tmp_path / "outputs")
    results = reproduce(wanted, "paper", data=str(real_data), outputs=outputs)
    missing = results.pop("figure5_single_training")
    assert missing.startswith("FAILED") and "FS" in missing and set(results.values()) == {"done"}, (
        results
    )
    said, tables = "\n".join(lines), tmp_path / "outputs/paper/tables"
    assert (
        "hours of one RTX 3090" in said
        and "NOTE figure5_single_training cannot be made of this data" in said
    )
    if with_claims:
        check_claims(tables)
    table7 = pd.read_csv(tables / "table7.csv").set_index(["backbone", "arm", "test"])
    assert set(table7.index.unique("test")) == {*TARGET_SETS, "AVG"} and table7.paper[
        "EfficientNet", "dynamic", "AVG"
    ] == pytest.approx(71.677, abs=0.001)
    assert "No manipulation of this data is unseen." in capsys.readouterr().out, (
        "Table III's picture of changes"
    )
    assert (
        set(pd.read_csv(tables / "table3.csv").backbone) == set(BACKBONES)
        and "Failed:" in (tmp_path / "outputs/report.html").read_text()
    )
