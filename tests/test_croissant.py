"The description of the mini benchmark for machines, on a benchmark that looks like one and holds no picture."

import hashlib
import json

import mlcroissant
import numpy as np
import pandas as pd
import pytest
from mlcroissant._src.operation_graph.operations.filter import match_path

from prle.core import digest, write_json
from prle.data.manifest import COLUMNS, read_manifest, write_manifest
from prle.mini.benchmark import choose_photos, photos_digest
from prle.mini.croissant import describe_benchmark, write_croissant
from prle.trust import check_replaceable, mark_folder


@pytest.fixture
def benchmark(tmp_path):
    "A manifest of six people of ORL, and the record of their photographs."
    photos = [
        p for p in choose_photos() if p.parent.name in {"s1", "s2", "s3", "s10", "s11", "s40"}
    ]
    rows = []
    for photo in photos[::10]:
        for subset in ("real", "FS"):
            known = dict(
                subset=subset, label=int(subset != "real"), video=photo.parent.name, frame=0
            )
            known |= dict(path=f"{subset}/{photo.parent.name}.png", identity=photo.parent.name)
            known |= dict(dataset="mini", source_identity="", split="test", compression="jpeg90")
            mask = "" if subset == "real" else f"masks/{known['path']}"
            known |= dict(landmarks=np.zeros(136, np.float32), transform=[], mask=mask, target="")
            for name in filter(None, (known["path"], mask)):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).touch()
            rows.append(known)
    write_manifest(pd.DataFrame(rows), tmp_path / "manifest.parquet")
    record(tmp_path, photos)
    return tmp_path, photos


def record(folder, photos, **more):
    config = dict(photographs=photos_digest(photos), recipe=7, **more)
    write_json(folder / "forge.json", dict(config=config, digest=digest(config), pictures=0))


def walk(node):
    "All objects of a description."
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from walk(part)


def test_the_description_has_what_croissant_asks_for(benchmark):
    "Section by section of the specification 1.0; ids are unique, and what is referred to is there."
    folder, photos = benchmark
    made = json.loads(write_croissant(folder).read_text())
    needed = (
        "@context @type conformsTo name description license citeAs version distribution recordSet"
    )
    assert set(needed.split()) <= set(made)
    assert made["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert "credit to AT&T Laboratories Cambridge" in made["license"]
    ids = [node["@id"] for node in walk(made) if "@type" in node and "@id" in node]
    ids = [name for name in ids if not name.startswith("cr:")]
    assert len(ids) == len(set(ids))
    named = [node for node in walk(made) if set(node) == {"@id"}]
    assert {node["@id"] for node in named} <= set(ids)
    manifest, pictures = made["distribution"]
    text = (folder / "manifest.parquet").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(text).hexdigest() and pictures["includes"]
    faces, sources = made["recordSet"]
    assert [field["name"] for field in faces["field"]] == list(COLUMNS)
    assert all(field["dataType"].startswith("sc:") for field in faces["field"])
    assert len(sources["data"]) == len(photos) == 60
    last = sources["data"][-1]
    assert last["sources/photograph"] == "s40/9.pgm" or last["sources/photograph"] == "s40/10.pgm"
    where = {f"{p.parent.name}/{p.name}": p for p in photos}
    for row in sources["data"]:
        content = where[row["sources/photograph"]].read_bytes()
        assert row["sources/sha256"] == hashlib.sha256(content).hexdigest()


def test_mlcroissant_accepts_the_description(benchmark):
    path = write_croissant(benchmark[0])
    found = mlcroissant.Dataset(jsonld=path)
    assert found.metadata.name == "prle-mini" and not found.metadata.issues.errors


def test_all_pictures_of_the_manifest_and_no_others_belong_to_the_pictures(benchmark):
    folder, _ = benchmark
    (folder / "contact_sheet.png").touch()
    _, pictures = mlcroissant.Dataset(jsonld=write_croissant(folder)).metadata.distribution
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.png")
        if match_path(pictures.includes, path.relative_to(folder))
    }
    rows = read_manifest(folder / "manifest.parquet")
    assert found == {*rows.path, *rows["mask"]} - {""} and len(found) == 18


def test_the_description_goes_with_the_benchmark(benchmark):
    folder, _ = benchmark
    mark_folder(folder, "benchmark")
    write_croissant(folder)
    check_replaceable(folder, "benchmark")


def test_a_benchmark_of_few_photographs_names_these(benchmark):
    folder, photos = benchmark
    few = [photo for photo in photos if photo.stem in ("1", "2")]
    record(folder, few, most=2)
    assert len(describe_benchmark(folder)["recordSet"][1]["data"]) == len(few) == 12


def test_a_benchmark_of_other_photographs_is_not_described(benchmark):
    folder, photos = benchmark
    record(folder, photos[1:])
    with pytest.raises(ValueError, match="not made of the ORL faces"):
        describe_benchmark(folder)
