"prle.data.deepfakebench: JSON and folders, as DeepfakeBench publishes them, to a manifest and back."

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import snapshot

from prle.cli import main, _check_target
from prle.data.datasets import FaceDataset
from prle.data.manifest import read_manifest, write_manifest
from prle.data.deepfakebench import read_folders, read_json_dataset, write_json_dataset
from prle.data.faces import write_png
from prle.data.layouts import list_dataset


def put_crop(root, path, value=100, landmarks=True, mask=False):
    write_png(root / path, np.full((32, 32, 3), value, np.uint8))

    def other(kind, suffix):
        return (root / path.replace("/frames/", f"/{kind}/")).with_suffix(suffix)

    if landmarks:
        other("landmarks", ".npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(other("landmarks", ".npy"), np.arange(162).reshape(81, 2))
    if mask:
        write_png(other("masks", ".png"), np.full((32, 32), 255, np.uint8))


@pytest.fixture
def tree(tmp_path):
    "Two JSONs as published, with backslashes: FaceForensics++ without FaceShifter, FaceShifter with the reals again."
    root, ffpp, shifter = tmp_path / "datasets", {}, {}
    real, methods = (
        "FaceForensics++/original_sequences/youtube/c23/frames/071",
        "FaceForensics++/manipulated_sequences",
    )
    for frame in (3, 10):
        put_crop(root, f"{real}/{frame:03d}.png", frame)
        put_crop(root, f"{methods}/Deepfakes/c23/frames/071_054/{frame:03d}.png", frame, mask=True)
        put_crop(
            root,
            f"{methods}/FaceShifter/c23/frames/071_054/{frame:03d}.png",
            frame,
            landmarks=False,
        )

    def frames(home):
        return [f"{home}/{f:03d}.png".replace("/", "\\") for f in (3, 10)]

    def record(label, home):
        return {
            label: dict(
                train=dict(c23={home.rsplit("/", 1)[1]: dict(label=label, frames=frames(home))}),
                val=dict(c23={}),
                test=dict(c23={}),
            )
        }

    ffpp |= record("FF-real", real) | record("FF-DF", f"{methods}/Deepfakes/c23/frames/071_054")
    shifter |= record("FF-real", real) | record(
        "FF-FH", f"{methods}/FaceShifter/c23/frames/071_054"
    )
    for name, content in (("FaceForensics++", ffpp), ("FaceShifter", shifter)):
        (tmp_path / f"{name}.json").write_text(json.dumps({name: content}))
    return tmp_path


def test_published_json(tree):
    rows, missing = read_json_dataset(
        [tree / "FaceForensics++.json", tree / "FaceShifter.json"], tree / "datasets"
    )
    assert missing.empty and rows.groupby("subset").size().to_dict() == {
        "real": 2,
        "DF": 2,
        "Fsh": 2,
    }  # the reals once
    manifest = read_manifest(
        write_manifest(rows, tree / "elsewhere" / "m.parquet", tree / "datasets")
    )
    assert (
        set(manifest.dataset) == {"FF++"}
        and set(manifest.compression) == {"c23"}
        and set(manifest.split) == {"train"}
        and manifest.frame.tolist() == [3, 10] * 3
    )
    facts = manifest.groupby("subset")[["identity", "source_identity", "target"]].first()
    people = {"real": ["071", "", ""], "DF": ["071", "054", "071"], "Fsh": ["071", "054", "071"]}
    assert facts.T.to_dict("list") == people
    assert (manifest[manifest.subset == "DF"]["mask"] != "").all() and (
        manifest[manifest.subset != "DF"]["mask"] == ""
    ).all()
    points = dict(zip(manifest.subset, manifest.landmarks))
    assert np.array_equal(points["DF"], np.arange(136)) and np.isnan(points["Fsh"]).all()
    assert [int(FaceDataset(manifest)[i]["image"].max()) for i in range(6)] == [
        3,
        10,
    ] * 3  # the root is not the manifest's folder


def test_labels_of_ones_own_are_told(tree, capsys):
    "As DF40's, whose JSONs have other names: what a name stands for is said, and never guessed."
    content = (tree / "FaceForensics++.json").read_text()
    content = content.replace("FF-real", "my=Real").replace("FF-DF", "SimSwap_Fake")
    (tree / "mine.json").write_text(content)
    command = ["convert", f"{tree}/mine.json", "--root", f"{tree}/datasets"]
    command += ["--out", f"{tree}/m.parquet"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "unknown label name" in said and "'my=Real'" in said and "--label NAME=real or" in said
    with pytest.raises(ValueError, match="'SimSwap_Fake'.*labels"):
        read_json_dataset([tree / "mine.json"], tree / "datasets", labels={"my=Real": "real"})
    told = {"my=Real": "real", "SimSwap_Fake": "simswap"}
    rows, missing = read_json_dataset([tree / "mine.json"], tree / "datasets", labels=told)
    assert missing.empty and rows.label.tolist() == [0, 0, 1, 1]
    assert rows.subset.tolist() == ["real", "real", "simswap", "simswap"]
    with pytest.raises(ValueError, match="the label SimSwap_Fake '../up' cannot name a file"):
        read_json_dataset([tree / "mine.json"], tree, labels={"SimSwap_Fake": "../up"})
    command += ["--label", "my=Real=real", "--label", "SimSwap_Fake=simswap"]
    assert main(command) == 0
    pd.testing.assert_series_equal(read_manifest(tree / "m.parquet").subset, rows.subset)


@pytest.mark.parametrize("word", ["SimSwap_Fake", "=swap", "SimSwap_Fake="])
def test_a_label_without_a_subset_is_a_wrong_word(tree, capsys, word):
    command = ["convert", f"{tree}/FaceForensics++.json", "--root", str(tree), "--label", word]
    assert main([*command, "--out", f"{tree}/m.parquet"]) == 2
    assert "--label takes NAME=real or NAME=MANIPULATION" in capsys.readouterr().err


def test_missing_crops_and_wrong_choices(tree):
    (tree / "datasets/FaceForensics++/original_sequences/youtube/c23/frames/071/003.png").unlink()
    rows, missing = read_json_dataset([tree / "FaceForensics++.json"], tree / "datasets")
    assert (
        len(rows) == 3
        and missing.path.tolist()
        == ["FaceForensics++/original_sequences/youtube/c23/frames/071/003.png"]
        and "FaceForensics++.json" in missing.reason[0]
    )
    with pytest.raises(ValueError, match="unknown compression in .*FaceForensics.*Known: c23"):
        read_json_dataset([tree / "FaceForensics++.json"], tree / "datasets", compression="c40")
    (tree / "x.json").write_text('{"mine": {"FF-reel": {}}}')
    with pytest.raises(
        ValueError, match="unknown label name in .*x.json 'FF-reel'.*Did you mean 'FF-real'"
    ):
        read_json_dataset([tree / "x.json"], tree)


def test_videos_under_several_splits(tmp_path):
    "Celeb-DF's JSON lists the test videos under val and test both: one of them has to be chosen."
    real, fake = (
        "Celeb-DF-v2/Celeb-real/frames/id0_0001/000.png",
        "Celeb-DF-v2/Celeb-synthesis/frames/id0_id1_0001/000.png",
    )
    for path in (real, fake):
        put_crop(tmp_path, path)

    def record(label, path):
        return dict.fromkeys(
            ("train", "val", "test"), {path.split("/")[-2]: dict(label=label, frames=["./" + path])}
        )

    tree = {
        label: record(label, path)
        for label, path in (("CelebDFv2_real", real), ("CelebDFv2_fake", fake))
    }
    (tmp_path / "c.json").write_text(json.dumps({"Celeb-DF-v2": tree}))
    with pytest.raises(ValueError, match="c.json.* stands under train and under val.*--splits"):
        read_json_dataset([tmp_path / "c.json"], tmp_path)
    rows, _ = read_json_dataset([tmp_path / "c.json"], tmp_path, splits=("test",))
    assert rows[
        ["subset", "label", "identity", "source_identity", "compression"]
    ].values.tolist() == [["real", 0, "id0", "", ""], ["fake", 1, "id0", "id1", ""]]


@pytest.mark.parametrize(
    "dataset, label, video, people",
    [
        ("DeeperForensics-1.0", "DF_fake", "000_M101", ("000", "M101")),
        ("DeeperForensics-1.0", "DF_fake", "end_to_end_000_M101", ("000", "M101")),
        ("DeeperForensics-1.0", "DF_real", "M101_BlendShape_camera_front", ("M101", "")),
        ("DeeperForensics-1.0", "DF_real", "M101-light_down-happy-x", ("M101", "")),
        ("DeeperForensics-1.0", "DF_real", "000@end_to_end_level_1", ("000", "")),
        ("DeepFakeDetection", "DFD_fake", "01_02__walking__YVGY8LOK", ("01", "02")),
        ("DeepFakeDetection", "DFD_real", "01__walking", ("01", "")),
        ("DFDC", "DFDC_Fake", "abcdefghij", ("abcdefghij", "")),
    ],
)
def test_who_is_in_a_video_as_far_as_its_name_says(tmp_path, dataset, label, video, people):
    path = f"{dataset}/frames/{video}/000.png"
    put_crop(tmp_path, path)
    tree = {label: dict(train={video: dict(label=label, frames=[path])})}
    (tmp_path / "x.json").write_text(json.dumps({dataset: tree}))
    rows, _ = read_json_dataset([tmp_path / "x.json"], tmp_path)
    assert (rows.identity.item(), rows.source_identity.item()) == people


def test_folders_without_a_json(tree, capsys):
    root = tree / "datasets" / "FaceForensics++"
    (root / "train.json").write_text('[["071", "054"]]')
    rows, missing = read_folders(
        list_dataset("ff++", root, frames=True, subsets=("DF", "Fsh")).videos, root
    )
    assert (
        rows.groupby("subset").size().to_dict() == {"real": 2, "DF": 2, "Fsh": 2}
        and len(missing) == 3
    )  # 054 and the two 054_071
    assert (
        main(
            [
                "convert",
                "ff++",
                "--root",
                str(root),
                "--subsets",
                "DF",
                "--frames",
                "--out",
                str(tree / "m.parquet"),
            ]
        )
        == 1
    )  # its default anyway
    out = capsys.readouterr()
    assert (
        "4 crops, 2 missing" in out.err
        and out.out == f"{tree / 'm.parquet'}\n"
        and "054_071" in out.err
        and "val.json: no such file" in out.err
    )
    assert len(read_manifest(tree / "m.parquet")) == 4


def test_folders_of_df1_with_reals_elsewhere(tree, tmp_path, capsys):
    "The reals lie below another folder, and those that would have to be distorted cannot be had."
    root, ffpp, mixed = (
        tmp_path / "DF",
        tree / "datasets" / "FaceForensics++",
        "end_to_end_mix_2_distortions",
    )
    for variant in ("end_to_end", mixed):
        put_crop(root, f"manipulated_videos/{variant}/frames/071_M001/003.png")
    for name, line in (
        ("splits/test.txt", "071_M001.mp4"),
        (
            f"manipulated_videos_distortions_meta/manipulated_videos_{mixed}_meta.txt",
            f"{mixed}/071_M001.mp4 CS:3 GB:1",
        ),
    ):
        (root / "lists" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "lists" / name).write_text(line)
    for split in ("train", "val"):
        (root / "lists" / "splits" / f"{split}.txt").touch()

    def convert(*variants):
        return main(
            [
                "convert",
                "df-1.0",
                "--root",
                str(root),
                "--reals",
                str(ffpp),
                "--variants",
                *variants,
                "--out",
                str(tmp_path / "m.parquet"),
            ]
        )

    assert convert("end_to_end") == 0
    manifest = read_manifest(tmp_path / "m.parquet")
    assert (
        manifest.groupby("subset").video.first().to_dict()
        == dict(real="071", end_to_end="071_M001")
        and FaceDataset(manifest)[0]["label"] == 1
    )
    assert convert("end_to_end", mixed) == 1
    assert "to be distorted (CS:3 GB:1) before its crops are made" in capsys.readouterr().err
    assert read_manifest(tmp_path / "m.parquet").groupby("subset").size().to_dict() == {
        "real": 2,
        "end_to_end": 1,
        mixed: 1,
    }


def test_a_plain_folder_of_crops(tmp_path):
    for kind in ("real", "fake"):
        put_crop(tmp_path / "mine", f"{kind}/frames/a/003.png", mask=kind == "fake")
    assert (
        main(
            [
                "convert",
                "folder",
                "--root",
                str(tmp_path / "mine"),
                "--out",
                str(tmp_path / "m.parquet"),
            ]
        )
        == 0
    )
    manifest = read_manifest(tmp_path / "m.parquet")
    assert manifest[["subset", "label", "frame"]].values.tolist() == [
        ["real", 0, 3],
        ["fake", 1, 3],
    ] and manifest["mask"].tolist() == ["", "fake/masks/a/003.png"]


def test_there_and_back(tree, capsys):
    argv = [
        "convert",
        str(tree / "FaceForensics++.json"),
        str(tree / "FaceShifter.json"),
        "--root",
        str(tree / "datasets"),
        "--out",
        str(tree / "m.parquet"),
    ]
    assert (
        main(argv) == 0
        and main(["convert", str(tree / "m.parquet"), "--out", str(tree / "out")]) == 0
    )
    again, missing = read_json_dataset(
        [tree / "out" / "FaceForensics++.json", tree / "out" / "FaceShifter.json"], tree / "out"
    )
    before = read_manifest(tree / "m.parquet")
    key = ["subset", "frame"]
    same = [
        "label",
        "dataset",
        "subset",
        "video",
        "identity",
        "source_identity",
        "frame",
        "split",
        "compression",
    ]
    pd.testing.assert_frame_equal(
        *(rows[same].sort_values(key, ignore_index=True) for rows in (before, again))
    )
    assert missing.empty and (again[again.subset == "DF"]["mask"] != "").all()
    points = dict(zip(again.subset, again.landmarks))
    assert np.array_equal(points["DF"], np.arange(136)) and np.isnan(points["Fsh"]).all()
    ffpp, shifter = (
        json.loads((tree / "out" / f"{name}.json").read_text())[name]
        for name in ("FaceForensics++", "FaceShifter")
    )
    assert (
        set(ffpp) == {"FF-real", "FF-DF"}
        and set(shifter) == {"FF-real", "FF-FH"}
        and "masks" not in ffpp["FF-real"]["train"]["c23"]["071"]
    )
    record = ffpp["FF-DF"]["train"]["c23"]["071_054"]
    assert (
        record["label"] == "FF-DF"
        and record["frames"] == [f"FaceForensics++/DF/frames/071_054/{f:03d}.png" for f in (3, 10)]
        and len(record["masks"]) == 2
    )


def test_one_json_holds_one_data_set(toy, tmp_path):
    with pytest.raises(ValueError, match="holds one data set.*toy, other"):
        write_json_dataset(toy.assign(dataset=["toy"] * (len(toy) - 1) + ["other"]), tmp_path)
    assert main(["convert", "x.json", "--out", "y"]) == 2


def test_videos_of_the_same_name_do_not_merge(toy, tmp_path):
    "Two manipulations of the same videos share one of DeepfakeBench's labels."
    written = write_json_dataset(toy, tmp_path / "out")
    rows, missing = read_json_dataset(written, tmp_path / "out")
    assert missing.empty and len(rows) == len(toy) and rows.label.sum() == toy.label.sum()
    assert rows.groupby(["subset", "video"]).ngroups == toy.groupby(
        ["subset", "video"]
    ).ngroups and {"A_0_0", "B_0_0", "0_0"} <= set(rows.video)
    assert len(
        read_manifest(write_manifest(rows, tmp_path / "again" / "m.parquet", tmp_path / "out"))
    ) == len(toy)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "x.json is not valid JSON"),
        (
            '{"mine": {"FF-DF": {"test": {"v": {"label": "FF-DF"}}}}}',
            "the record of v .FF-DF, test. has no frames",
        ),
    ],
)
def test_a_broken_json_is_named(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_json_dataset([tmp_path / "x.json"], tmp_path)


def test_a_name_in_a_json_that_is_no_number_costs_its_crop(tree):
    path = tree / "FaceForensics++.json"
    path.write_text(path.read_text().replace("071\\\\003.png", "071\\\\frame_003.png"))
    rows, missing = read_json_dataset([path], tree / "datasets")
    assert rows.groupby("subset").size().to_dict() == {"real": 1, "DF": 2}
    assert missing.path.tolist() == [
        "FaceForensics++/original_sequences/youtube/c23/frames/071/frame_003.png"
    ]
    assert "not a frame's number, in FaceForensics++.json" in missing.reason[0]


def test_the_command_shortens_paths_that_no_file_has(tree, capsys):
    file = tree / "FaceForensics++.json"
    content = json.loads(file.read_text())
    videos = content["FaceForensics++"]["FF-DF"]["train"]["c23"]
    videos["071_054"]["frames"] = ["x" * 5000 + "/003.png", "F\n/003.png"]
    file.write_text(json.dumps(content))
    words = (
        "convert",
        str(file),
        "--root",
        str(tree / "datasets"),
        "--out",
        str(tree / "m.parquet"),
    )
    assert main([*words]) == 1
    *said, summary = capsys.readouterr().err.splitlines()
    assert (
        "2 missing" in summary
        and len(said) == 2
        and all("/003.png: " in line and len(line) < 700 for line in said)
    )


def test_pictures_that_are_no_crops_are_left_out(tree):
    root = tree / "datasets" / "FaceForensics++"
    (root / "train.json").write_text('[["071", "054"]]')
    put_crop(root, "original_sequences/youtube/c23/frames/071/junk.png", landmarks=False)
    rows, missing = read_folders(
        list_dataset("ff++", root, frames=True, subsets=("DF",)).videos, root
    )
    assert rows.groupby("subset").size().to_dict() == {"real": 2, "DF": 2}
    assert missing[missing.path.str.endswith("junk.png")].reason.tolist() == [
        "its name is not a frame's number; left out"
    ]


def canary(tmp_path):
    "A folder of somebody's work."
    (tmp_path / "out" / "mini").mkdir(parents=True)
    (tmp_path / "out" / "mini" / "forge.json").write_text("{}")
    (tmp_path / "out" / "thesis.tex").write_text("three years")
    write_png(tmp_path / "secret.png", np.full((32, 32, 3), 7, np.uint8))
    (tmp_path / "passwd").write_text("root:x:0:0")


def rewritten(toy, tmp_path, **columns):
    "A manifest that `write_manifest` would not write."
    path = Path(toy.attrs["root"]) / "bad.parquet"
    rows = toy.assign(**columns)
    rows.attrs = toy.attrs
    rows.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        dict(dataset="mini"),
        dict(dataset="."),
        dict(dataset=".."),
        dict(dataset=""),
        dict(dataset="../out/mini"),
        dict(dataset="/tmp"),
        dict(dataset="a\0b"),
        dict(dataset="NUL"),
        dict(video="../../../passwd"),
        dict(video="/x"),
        dict(mask="../passwd"),
        dict(mask="link.png"),
        dict(mask="real"),
        dict(mask="text.png"),
        dict(path="../secret.png"),
        dict(mask="folder/secret.png"),
        dict(dataset=None),
        dict(subset=3.5),
        dict(dataset="x" * 10**6),
    ],
    ids=str,
)
def test_no_manifest_deletes_or_copies_what_is_not_its_own(toy, tmp_path, columns, capsys):
    canary(tmp_path)
    (tmp_path / "toy/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "toy/folder").symlink_to(tmp_path)
    (tmp_path / "toy/text.png").write_text("root:x:0:0")
    path = rewritten(toy, tmp_path, **columns)
    before = snapshot(tmp_path)
    assert main(["convert", str(path), "--out", str(tmp_path / "out")]) == 2
    assert snapshot(tmp_path) == before
    said = capsys.readouterr().err
    assert said.startswith("prle: ") and said.count("\n") == 1 and len(said) < 1000


def test_crops_that_lead_out_are_not_copied(toy, tmp_path, capsys):
    canary(tmp_path)
    crop = tmp_path / "toy" / toy.path[0]
    crop.unlink()
    crop.symlink_to(tmp_path / "secret.png")
    before = snapshot(tmp_path)
    assert (
        main(["convert", str(tmp_path / "toy/manifest.parquet"), "--out", str(tmp_path / "out")])
        == 2
    )
    assert snapshot(tmp_path) == before and "leads out of" in capsys.readouterr().err


def test_only_an_earlier_conversion_is_replaced(toy, tmp_path, capsys):
    canary(tmp_path)
    convert = ["convert", str(tmp_path / "toy/manifest.parquet"), "--out", str(tmp_path / "out")]
    assert main(convert) == 0
    first = snapshot(tmp_path / "out")
    assert main(convert) == 0 and snapshot(tmp_path / "out").keys() == first.keys()
    for change in (
        lambda: (tmp_path / "out/toy.json").write_text("{}"),
        lambda: (tmp_path / "out/toy/notes.txt").touch(),
    ):
        change()
        before = snapshot(tmp_path)
        assert main(convert) == 2 and snapshot(tmp_path) == before
        (tmp_path / "out/toy.json").unlink(missing_ok=True)
    (tmp_path / "out/toy/notes.txt").unlink()
    assert main(convert) == 0


def test_a_json_that_stood_there_before_is_left_alone(toy, tmp_path, capsys):
    canary(tmp_path)
    (tmp_path / "out/toy.json").write_text("mine")
    before = snapshot(tmp_path)
    assert (
        main(["convert", str(tmp_path / "toy/manifest.parquet"), "--out", str(tmp_path / "out")])
        == 2
    )
    assert (
        snapshot(tmp_path) == before
        and "toy.json was not written by this command" in capsys.readouterr().err
    )


def test_no_manifest_is_written_over_another_file(tree, capsys):
    (tree / "thesis.tex").write_text("three years")
    assert (
        main(
            [
                "convert",
                str(tree / "FaceForensics++.json"),
                "--root",
                str(tree / "datasets"),
                "--out",
                str(tree / "thesis.tex"),
            ]
        )
        == 2
    )
    assert (
        (tree / "thesis.tex").read_text() == "three years"
        and "thesis.tex is there and no manifest" in capsys.readouterr().err
    )


PLACES = [
    "$",
    "$.mine",
    "$.mine.FF-DF",
    "$.mine.FF-DF.test",
    "$.mine.FF-DF.test.c23",
    "$.mine.FF-DF.test.c23.v",
    "$.mine.FF-DF.test.c23.v.frames",
    "$.mine.FF-DF.test.c23.v.frames.0",
]


@pytest.mark.parametrize(
    "wrong",
    [None, 3, 1.5, "text", [], [[]], {"a": 1}, True, "x" * 10**6],
    ids=lambda value: str(value)[:9],
)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_wrong_at_any_level_of_a_json_is_named(tmp_path, place, wrong):
    "A list where a dictionary belongs, and everything else."
    tree = {
        "mine": {
            "FF-DF": {"test": {"c23": {"v": {"label": "FF-DF", "frames": ["frames/v/000.png"]}}}}
        }
    }
    keys = [int(key) if key.isdigit() else key for key in place.split(".")[1:]]
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    if keys:
        inner[keys[-1]] = wrong
    (tmp_path / "x.json").write_text(json.dumps(tree if keys else wrong))
    try:
        rows, missing = read_json_dataset([tmp_path / "x.json"], tmp_path)
    except ValueError as e:
        assert "x.json" in str(e) and len(str(e)) < 1000 and "\n" not in str(e)
    else:
        assert rows.empty and (
            wrong in ([], {}) or isinstance(wrong, str) and place.endswith("frames.0")
        )


@pytest.mark.parametrize(
    "points",
    [
        np.zeros(10),
        np.zeros((67, 2)),
        np.zeros((68, 3)),
        np.full((81, 2), np.nan),
        np.full((68, 2), np.inf),
        np.full((68, 2), "x"),
        "garbage",
    ],
    ids=["flat", "few", "deep", "nan", "infinite", "text", "garbage"],
)
def test_damaged_landmarks_cost_their_crop(tree, points):
    file = tree / "datasets/FaceForensics++/original_sequences/youtube/c23/landmarks/071/003.npy"
    if isinstance(points, str):
        file.write_text(points)
    else:
        np.save(file, points)
    rows, missing = read_json_dataset([tree / "FaceForensics++.json"], tree / "datasets")
    assert len(rows) == 3 and len(missing) == 1 and "003.npy" in missing.reason[0]


def test_paths_that_lead_out_cost_themselves(tree):
    "Relative ones, absolute ones, links, of the crop, its mask or its landmarks."
    write_png(tree / "secret/1.png", np.zeros((8, 8, 3), np.uint8))
    root = tree / "datasets/x/frames/v"
    root.mkdir(parents=True)
    (root / "1.png").symlink_to(tree / "secret/1.png")
    (root / "l").symlink_to(tree / "secret")
    write_png(root / "2.png", np.zeros((8, 8, 3), np.uint8))
    (tree / "datasets/x/masks").symlink_to(tree / "secret")
    frames = [
        "../secret/1.png",
        str(tree / "secret/1.png"),
        "x/frames/v/1.png",
        "x/frames/v/l/1.png",
        "x/frames/v/2.png",
        "x\0y/1.png",
        "1" * 5000 + ".png",
        "x/" + "9" * 30 + ".png",
    ]
    (tree / "x.json").write_text(
        json.dumps({"mine": {"FF-DF": {"test": {"v": {"frames": frames}}}}})
    )
    rows, missing = read_json_dataset([tree / "x.json"], tree / "datasets")
    assert missing.path.tolist() == frames and rows.empty
    assert missing.reason.str.contains("leads out of").sum() >= 4


@pytest.mark.parametrize("column", ["dataset", "subset", "video"])
def test_the_command_names_the_manifest_whose_words_name_no_files(toy, tmp_path, capsys, column):
    table = toy.assign(**{column: toy[column].replace({toy[column].iloc[-1]: ".."})})
    file = write_manifest(table, tmp_path / "mine.parquet", toy.attrs["root"])
    assert main(["convert", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "mine.parquet" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_root_may_be_named_from_elsewhere(tree, monkeypatch):
    root = tree / "datasets" / "FaceForensics++"
    (root / "train.json").write_text('[["071", "054"]]')
    videos = list_dataset("ff++", root, frames=True, subsets=("DF",)).videos
    (tree / "work").mkdir()
    monkeypatch.chdir(tree / "work")
    rows, _ = read_folders(videos, "../datasets/FaceForensics++")
    assert rows.path.tolist() == read_folders(videos, root)[0].path.tolist() != []


def test_a_manipulation_that_deepfakebench_does_not_know_is_named(toy, tmp_path):
    rows = toy.assign(dataset="FF++")
    rows.attrs = toy.attrs
    with pytest.raises(ValueError, match="no label for A of FF\\+\\+"):
        write_json_dataset(rows, tmp_path)


def test_a_manifest_whose_crops_have_moved_may_be_written_again_and_nothing_else(toy, tmp_path):
    written = write_manifest(toy, tmp_path / "made/manifest.parquet", toy.attrs["root"])
    Path(toy.attrs["root"]).rename(tmp_path / "elsewhere")
    _check_target(written)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no manifest"):
        _check_target(tmp_path / "notes.txt")
