"prle.data.layouts: small trees of real videos in each layout, through `prle check`, `prle faces` and FaceDataset."

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from clips import draw_frame, ffmpeg, photograph, write_clip
from kills import contents, kill_at_work, start
from torch.utils.data import DataLoader

from prle.cli import main
from prle.core import collected_messages
from prle.data.datasets import FaceDataset
from prle.data.manifest import read_manifest
from prle.data.faces import write_png
from prle.data.layouts import (
    Listing,
    Store,
    check,
    checks,
    crop_dataset,
    ffpp as ffpp_layout,
    list_dataset,
    probe,
    registry,
)
from prle.data.layouts.ffpp import METHODS
from prle.trust import read_json


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    "A real video of four frames, and its mask video."
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(
        folder / "clip.mp4", frames=4, size=(224, 180), mask=folder / "mask.mp4"
    ), folder / "mask.mp4"


def put(clip, *paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, path)


def ids(subset):
    "Videos of the toy split: one pair each."
    return (
        ["000", "001", "002", "003", "004", "005"]
        if subset == "real"
        else ["000_001", "001_000", "002_003", "003_002", "004_005", "005_004"]
    )


@pytest.fixture
def ffpp(tmp_path, clip):
    "FaceForensics++ with one pair in each split."
    root = tmp_path / "FaceForensics++"
    put(
        clip[0],
        *(
            root / "original_sequences" / "youtube" / "c23" / "videos" / f"{i}.mp4"
            for i in ids("real")
        ),
    )
    for subset, method in METHODS.items():
        put(
            clip[0],
            *(
                root / "manipulated_sequences" / method / "c23" / "videos" / f"{i}.mp4"
                for i in ids(subset)
            ),
        )
        if subset != "Fsh":
            put(
                clip[1],
                *(
                    root / "manipulated_sequences" / method / "masks" / "videos" / f"{i}.mp4"
                    for i in ids(subset)
                ),
            )
    for split, pair in dict(train=["000", "001"], val=["002", "003"], test=["004", "005"]).items():
        (root / f"{split}.json").write_text(json.dumps([pair]))
    return root


def counts(table):
    return table.groupby(["split", "subset"]).size().to_dict()


# FaceForensics++


def test_ffpp_listing(ffpp):
    listing = list_dataset("ff++", ffpp)
    videos = listing.videos
    assert not listing.problems and counts(videos) == {
        (split, subset): 2 for split in ("train", "val", "test") for subset in ("real", *METHODS)
    }
    assert videos.label.eq(videos.subset != "real").all() and (videos.compression == "c23").all()
    assert videos.target.tolist() == [
        v[:3] if f else "" for v, f in zip(videos.video, videos.label)
    ]
    row = videos[(videos.subset == "NT") & (videos.video == "004_005")].iloc[0]
    assert (row.split, row.identity, row.source_identity) == (
        "test",
        "004",
        "005",
    ) and row.mask_file.endswith("NeuralTextures/masks/videos/004_005.mp4")
    assert (videos[videos.subset.isin(["real", "Fsh"])].mask_file == "").all() and (
        videos[~videos.subset.isin(["real", "Fsh"])].mask_file != ""
    ).all()
    assert (videos.untouched_file != "").equals(videos.subset == "Fsh")
    assert (
        videos[(videos.subset == "Fsh") & (videos.video == "004_005")]
        .untouched_file.item()
        .endswith("youtube/c23/videos/004.mp4")
    )
    assert (
        not videos.duplicated(["dataset", "subset", "video"]).any()
        and (videos.video == "000_001").sum() == 5
    )  # same name, five videos


def test_ffpp_official_numbers(ffpp):
    listing = list_dataset("ff++", ffpp, subsets=("DF", "NT"))
    assert (
        listing.expected[("train", "real")] == 720
        and listing.expected[("val", "NT")] == 140
        and listing.expected[("test", "DF")] == 140
        and len(listing.expected) == 9
    )
    assert [(t["what"], t["expected"], t["found"]) for t in listing.totals][:2] == [
        ("original videos", 1000, 6),
        ("Deepfakes", 1000, 6),
    ]


@pytest.mark.parametrize("variant", ["lower case", "no videos folder", "frames", "c0"])
def test_ffpp_layout_variants(ffpp, variant):
    videos = ffpp / "original_sequences" / "youtube" / "c23" / "videos"
    options = dict(subsets=("DF",))
    if variant == "lower case":
        (ffpp / "manipulated_sequences" / "Deepfakes").rename(
            ffpp / "manipulated_sequences" / "deepfakes"
        )
    if variant == "no videos folder":
        for path in list(videos.iterdir()):
            path.rename(videos.parent / path.name)
        videos.rmdir()
    if variant == "frames":
        shutil.rmtree(videos)
        for i in ids("real"):
            (videos.parent / "frames" / i).mkdir(parents=True)
            write_png(videos.parent / "frames" / i / "000.png", np.zeros((8, 8, 3), np.uint8))
    if variant == "c0":
        for path in (
            ffpp / "original_sequences" / "youtube" / "c23",
            ffpp / "manipulated_sequences" / "Deepfakes" / "c23",
        ):
            path.rename(path.with_name("c0"))
        options["compression"] = "c0"
    report = check("ff++", ffpp, **options)
    assert report.counts.found.sum() == 12 and report.bad.empty
    if variant == "c0":
        assert set(list_dataset("ff++", ffpp, **options).videos.compression) == {
            "raw"
        }  # one name in all tables


def test_ffpp_split_files_that_are_wrong_cost_their_split(ffpp, capsys):
    (ffpp / "val.json").unlink()
    (ffpp / "train.json").write_text('[["000", "001"')
    listing = list_dataset("ff++", ffpp)
    assert set(listing.videos.split) == {"test"} and [
        p.rsplit("/", 1)[1] for p, _ in listing.problems
    ] == ["train.json", "val.json"]
    assert "not valid JSON" in listing.problems[0][1] and "no such file" in listing.problems[1][1]
    (ffpp / "train.json").write_text('{"a": 1}')
    assert "not a list of pairs" in list_dataset("ff++", ffpp).problems[0][1]
    assert main(["check", "ff++", str(ffpp)]) == 1
    assert "val.json: no such file; what it lists is left out" in capsys.readouterr().out


def test_ffpp_through_the_command_line(ffpp, tmp_path, capsys):
    "Listing, crops, masks, manifest, FaceDataset; and a broken video costs itself."
    (ffpp / "manipulated_sequences" / "FaceSwap" / "c23" / "videos" / "000_001.mp4").write_bytes(
        b""
    )
    (ffpp / "manipulated_sequences" / "FaceSwap" / "c23" / "videos" / "001_000.mp4").unlink()
    out = tmp_path / "crops"
    assert (
        main(
            [
                "faces",
                "ff++",
                "--root",
                str(ffpp),
                "--out",
                str(out),
                "--count",
                "2",
                "--size",
                "64",
                "--workers",
                "0",
                "--subsets",
                "DF",
                "FS",
            ]
        )
        == 1
    )  # two fakes cannot be had
    said = capsys.readouterr().err
    assert "000_001.mp4" in said and "001_000.mp4" in said
    manifest = read_manifest(out / "manifest.parquet")
    assert counts(manifest) == {
        (split, subset): 4
        for split in ("train", "val", "test")
        for subset in ("real", "DF", "FS")
        if (split, subset) != ("train", "FS")
    }
    assert (manifest[manifest.label == 1]["mask"] != "").all() and (
        manifest[manifest.label == 0]["mask"] == ""
    ).all()
    assert all(len(t) == 6 for t in manifest["transform"])
    items = [
        item for batch in DataLoader(FaceDataset(manifest), 4) for item in batch["label"].tolist()
    ]
    assert items == manifest.label.tolist()
    report = check("ff++", ffpp, subsets=("DF", "FS"))
    assert set(report.bad.reason) == {"missing", "unreadable"} and not report.complete
    row = report.counts.set_index(["split", "subset"]).loc[("train", "FS")]
    assert (row.expected, row.listed, row.found, row.missing, row.unreadable) == (720, 2, 1, 1, 1)


SCRIPT = """
import sys
from prle.cli import main
if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
"""


def test_prle_faces_goes_on_where_it_was_killed(ffpp, tmp_path):
    "Crops, masks, manifest and reports of the whole data set, as if nothing had happened."
    (tmp_path / "command.py").write_text(SCRIPT)

    def argv(out, workers):
        return [
            "faces",
            "ff++",
            "--root",
            ffpp,
            "--out",
            out,
            "--count",
            "4",
            "--size",
            "64",
            "--subsets",
            "DF",
            "NT",
            "--workers",
            workers,
        ]

    out = tmp_path / "out"
    for group in (False, True):
        assert kill_at_work(start(tmp_path / "command.py", *argv(out, 2)), out, 0.05, group)
    assert len(list(out.rglob("video.json"))) < 18 and not (out / "manifest.parquet").exists()
    assert (
        start(tmp_path / "command.py", *argv(out, 2)).wait() == 0
        and main([str(a) for a in argv(tmp_path / "uninterrupted", 0)]) == 0
    )
    here, there = contents(out), contents(tmp_path / "uninterrupted")
    assert (
        here == there
        and {"manifest.parquet", "dropped.csv", "problems.csv"} <= set(here)
        and len(read_manifest(out / "manifest.parquet")) == 4 * 18
    )
    assert main(["check", "manifest", str(out)]) == 0
    first, second = read_manifest(out / "manifest.parquet").path[:2]
    (out / first).write_bytes((out / second).read_bytes())
    assert main(["check", "manifest", str(out)]) == 1


def test_a_complete_data_set(ffpp, monkeypatch, capsys):
    monkeypatch.setattr(ffpp_layout, "PAIRS", dict(train=1, val=1, test=1))
    assert main(["check", "ff++", str(ffpp)]) == 1  # six videos of each, and not a thousand
    monkeypatch.setattr(
        Store,
        "total",
        lambda self, what, expected, optional=False: dict(
            what=what, expected=6, found=len(self), optional=optional
        ),
    )
    assert main(["check", "ff++", str(ffpp)]) == 0
    out = capsys.readouterr().out
    assert out.rstrip().endswith("\ncomplete") and "no person in more than one split" in out


def test_persons_in_two_splits_are_named(df1):
    (df1 / "lists" / "splits" / "train.txt").write_text("000_M003\n")
    assert (
        "2 persons in more than one split: M003, W002"
        in check("df-1.0", df1, protocol="deepfakebench").notes[0]
    )


def test_an_id_in_two_splits_stays_in_the_first(ffpp, df1):
    "Of FaceForensics++ and of DF-1.0: what stands in a later list is left out, as no manifest has a person twice."
    (ffpp / "test.json").write_text('[["000", "005"], ["004", "005"]]')
    listing = list_dataset("ff++", ffpp, subsets=("DF",))
    assert counts(listing.videos) == {
        (split, subset): 2 for split in ("train", "val", "test") for subset in ("real", "DF")
    }
    assert [(path.rsplit("/", 1)[1], reason[:28]) for path, reason in listing.problems] == [
        ("test.json", "the pair ['000', '005'] name")
    ]
    with (df1 / "lists" / "splits" / "train.txt").open("a") as file:
        file.write("004_M001.mp4\n")
    listing = list_dataset("df-1.0", df1, reals=ffpp)
    assert counts(listing.videos) == {
        ("train", "real"): 2,
        ("train", "end_to_end"): 2,
        **{(s, c): 1 for s in ("val", "test") for c in ("real", "end_to_end")},
    }
    assert [(path.rsplit("/", 1)[1], reason) for path, reason in listing.problems] == [
        ("test.txt", "the target of 004_M003 stands in train.txt already; left out")
    ]


def test_ffpp_repeated_ids_and_missing_masks_cost_only_themselves(ffpp):
    (ffpp / "train.json").write_text('[["000", "001"], ["001", "000"], ["002", "002"]]')
    (
        ffpp / "manipulated_sequences" / "NeuralTextures" / "masks" / "videos" / "000_001.mp4"
    ).unlink()
    listing = list_dataset("ff++", ffpp, subsets=("NT",))
    assert (
        counts(listing.videos)[("train", "NT")] == 2
        and len(listing.problems) == 2
        and all("names an id that stands" in reason for _, reason in listing.problems)
    )
    assert listing.notes == ["1 fakes have no mask video; their crops get no mask"]


# DFDC


@pytest.fixture
def dfdc_test(tmp_path, clip):
    root = tmp_path / "DFDC"
    put(clip[0], *(root / "test" / f"{name}.mp4" for name in "abcd"))
    (root / "test" / "labels.csv").write_text(
        "filename,label\na.mp4,0\nb.mp4,1\nc.mp4,FAKE\nb.mp4,0\nz.mp4,1\n,1\n"
    )
    return root


@pytest.mark.parametrize("home", ["test", "videos", "root"])
def test_dfdc_test_part(dfdc_test, home):
    "DeepfakeBench's tree, SBI's (videos/ and labels.csv side by side), and the test folder itself."
    if home == "videos":
        (dfdc_test / "test").rename(dfdc_test / "videos")
        (dfdc_test / "videos" / "labels.csv").rename(dfdc_test / "labels.csv")
    listing = list_dataset("dfdc", dfdc_test / "test" if home == "root" else dfdc_test)
    assert listing.videos[["video", "label"]].values.tolist() == [["a", 0], ["b", 1], ["z", 1]]
    reasons = [reason for _, reason in listing.problems]
    assert (
        "line 4: c.mp4 has the unknown label 'FAKE'" in reasons[0]
        and "line 5: b.mp4 stands in an earlier line" in reasons[1]
    )
    assert reasons[2] == "line 7: '' is no video's name; left out"
    assert (
        len(reasons) == 4
        and reasons[3] == "no row in labels.csv; left out"
        and listing.problems[3][0].endswith("d.mp4")
    )
    report = check("dfdc", dfdc_test)
    assert report.counts[["expected", "listed", "found", "missing"]].values.tolist() == [
        [2500, 1, 1, 0],
        [2500, 2, 1, 1],
    ]


@pytest.fixture
def dfdc_train(tmp_path, clip):
    put(
        clip[0],
        *(
            tmp_path / f"dfdc_train_part_{part}" / f"{name}.mp4"
            for part, name in [(0, "a"), (0, "b"), (10, "c"), (2, "d"), (2, "extra")]
        ),
    )
    facts = {
        0: {
            "a.mp4": dict(label="REAL", split="train"),
            "b.mp4": dict(label="FAKE", split="train", original="a.mp4"),
        },
        2: {"d.mp4": dict(label="MAYBE")},
    }
    for part, metadata in facts.items():
        (tmp_path / f"dfdc_train_part_{part}" / "metadata.json").write_text(json.dumps(metadata))
    return tmp_path


def test_dfdc_training_parts(dfdc_train):
    listing = list_dataset("dfdc", dfdc_train, part="train")
    assert listing.videos[["video", "label", "identity", "target", "split"]].values.tolist() == [
        ["a", 0, "a", "", "train"],
        ["b", 1, "a", "a", "train"],
    ]  # a fake is of its original's person
    assert (
        listing.expected == {("train", "real"): 19154, ("train", "fake"): 100000}
        and listing.totals[0]["found"] == 3
    )
    reasons = {
        path.split("/", 3)[-1].rsplit("/", 1)[-1]: reason for path, reason in listing.problems
    }
    assert (
        "unknown label 'MAYBE'" in listing.problems[0][1]
        and reasons["extra.mp4"] == "no entry in metadata.json; left out"
    )
    assert any("dfdc_train_part_10" in path for path, _ in listing.problems)
    with pytest.raises(ValueError, match="unknown part 'val'"):
        list_dataset("dfdc", dfdc_train, part="val")
    (dfdc_train / "dfdc_train_part_2" / "metadata.json").write_text('{"": {"label": "REAL"}}')
    listing = list_dataset("dfdc", dfdc_train, part="train")
    assert set(listing.videos.video) == {
        "a",
        "b",
    } and "the video '' cannot name a file: it is empty; left out" in {
        reason for _, reason in listing.problems
    }


@pytest.mark.parametrize(
    "content, reason",
    [
        ("[]", "not an object with an object for each video"),
        ('{"a.mp4": "REAL"}', "not an object with"),
        ("{", "not valid JSON"),
        (None, "no such file"),
    ],
)
def test_wrong_metadata_costs_its_part(tmp_path, clip, content, reason):
    put(clip[0], *(tmp_path / f"dfdc_train_part_{part}" / "a.mp4" for part in ("0", "1", "x")))
    (tmp_path / "dfdc_train_part_1" / "metadata.json").write_text('{"a.mp4": {"label": "REAL"}}')
    if content is not None:
        (tmp_path / "dfdc_train_part_0" / "metadata.json").write_text(content)
    listing = list_dataset("dfdc", tmp_path, part="train")
    assert listing.videos.video.tolist() == ["a"] and listing.totals[0]["found"] == 2
    ((path, said),) = listing.problems
    assert path.endswith("dfdc_train_part_0/metadata.json") and said.startswith(reason)


@pytest.mark.parametrize(
    "tree, name, file, content, options",
    [
        ("dfdc_train", "dfdc", "dfdc_train_part_0/metadata.json", "{}", dict(part="train")),
        ("dfdc_test", "dfdc", "test/labels.csv", "", {}),
        ("dfdc_test", "dfdc", "test/labels.csv", "filename,label\n", {}),
        ("ffpp", "ff++", "val.json", "[]", {}),
        ("celeb", "celeb-df", "List_of_testing_videos.txt", "\n", {}),
    ],
)
def test_a_list_of_nothing_is_named(request, tree, name, file, content, options):
    root = request.getfixturevalue(tree)
    (root / file).write_text(content)
    report = check(name, root, **options)
    found = dict(report.bad.values.tolist())
    assert found[str(root / file)] == "it lists nothing" and not report.complete


def test_long_and_odd_names_in_lists_are_shortened_in_the_report(tmp_path, clip):
    put(clip[0], tmp_path / "dfdc_train_part_0" / "a.mp4")
    names = ["x" * 100_000 + ".mp4", "\x1b[2J.mp4", "a.mp4"]
    content = json.dumps({name: dict(label="REAL") for name in names})
    (tmp_path / "dfdc_train_part_0" / "metadata.json").write_text(content)
    text = str(check("dfdc", tmp_path, part="train"))
    assert "2 problems" in text and len(text) < 2000 and text.replace("\n", "").isprintable()


def test_labels_without_a_header_or_in_another_encoding(dfdc_test, capsys):
    (dfdc_test / "test" / "labels.csv").write_text("a.mp4,0\nb.mp4,1\nc.mp4,1\nd.mp4,0\n")
    listing = list_dataset("dfdc", dfdc_test)
    assert listing.videos.video.tolist() == list("abcd") and [
        "the first line should be 'filename,label', not 'a.mp4,0'" in reason
        for _, reason in listing.problems
    ] == [True]
    (dfdc_test / "test" / "labels.csv").write_bytes(
        "filename,label\n\u00e9.mp4,0\n".encode("latin-1")
    )
    assert (
        main(["faces", "dfdc", "--root", str(dfdc_test), "--out", str(dfdc_test.parent / "out")])
        == 2
    )
    assert "labels.csv: not UTF-8 text" in capsys.readouterr().err


def test_crops_beside_the_videos_do_not_take_their_place(dfdc_test):
    "DeepfakeBench writes its crops beside the videos."
    for name in "abcdz":
        put(dfdc_test / "test" / "a.mp4", dfdc_test / "test" / "frames" / name / "000.mp4")
    listing = list_dataset("dfdc", dfdc_test)
    assert [f.rsplit("/", 2)[1:] for f in listing.videos.file] == [
        ["test", "a.mp4"],
        ["test", "b.mp4"],
        ["test", "z.mp4"],
    ] and listing.totals[0]["found"] == 4
    assert [
        f.rsplit("/", 2)[1:] for f in list_dataset("dfdc", dfdc_test, frames=True).videos.file
    ] == [["frames", name] for name in "abz"]


# Celeb-DF


@pytest.fixture
def celeb(tmp_path, clip):
    put(
        clip[0],
        *(
            tmp_path / name
            for name in (
                "celeb-real/videos/id0_0001.mp4",
                "celeb-real/videos/id0_0002.mp4",
                "Youtube-real/00170.mp4",
                "Celeb-synthesis/id1_id0_0007.mp4",
            )
        ),
    )
    lines = (
        "1 Celeb-real/id0_0001.mp4",
        "1 YouTube-real/00170.mp4",
        "0 Celeb-synthesis/id1_id0_0007.mp4",
        "1 Celeb-synthesis/id1_id0_0009.mp4",
        "nonsense",
    )
    (tmp_path / "List_of_testing_videos.txt").write_text("\n".join(lines))
    return tmp_path


def test_celeb_df(celeb):
    listing = list_dataset("celeb-df", celeb)
    columns = ["video", "label", "subset", "identity", "source_identity", "target", "split"]
    assert listing.videos[columns].values.tolist() == [
        ["id0_0001", 0, "real", "id0", "", "", "test"],
        ["00170", 0, "real", "youtube-00170", "", "", "test"],
        ["id1_id0_0007", 1, "fake", "id1", "id0", "id1_0007", "test"],
    ]
    assert [reason.split(":")[0] for _, reason in listing.problems] == ["line 4", "line 5"]
    assert listing.expected == {("test", "real"): 178, ("test", "fake"): 340} and [
        t["expected"] for t in listing.totals
    ] == [590, 300, 5639]
    assert "1 of the 3 persons in the test list are in the other videos too" in listing.notes[0]
    assert check("celeb-df", celeb).counts.found.tolist() == [2, 1]


def test_a_video_that_is_listed_twice_counts_once(tmp_path):
    (tmp_path / "List_of_testing_videos.txt").write_text("1 Celeb-real/id0_0001.mp4\n" * 2)
    listing = list_dataset("celeb-df", tmp_path)
    assert (
        len(listing.videos) == 1
        and "line 2: Celeb-real/id0_0001.mp4 stands in an earlier line" in listing.problems[0][1]
    )


# DeeperForensics

MIXED = "end_to_end_mix_2_distortions"


@pytest.fixture
def df1(tmp_path, ffpp, clip):
    root = tmp_path / "DeeperForensics-1.0"
    names = ("000_M001", "002_W002", "004_M003", "005_M003")
    for variant in ("end_to_end", "end_to_end_mix_2_distortions"):
        put(clip[0], *(root / "manipulated_videos" / variant / f"{name}.mp4" for name in names))
    for split, listed in dict(
        train="000_M001.mp4", val="002_W002.mp4", test="004_M003.mp4\n005_M003.mp4"
    ).items():
        (root / "lists" / "splits").mkdir(parents=True, exist_ok=True)
        (root / "lists" / "splits" / f"{split}.txt").write_text(listed + "\n")
    meta = (
        root
        / "lists"
        / "manipulated_videos_distortions_meta"
        / "manipulated_videos_end_to_end_mix_2_distortions_meta.txt"
    )
    meta.parent.mkdir()
    meta.write_text(
        "".join(
            f"end_to_end_mix_2_distortions/{n}.mp4 {m}\n"
            for n, m in zip(names, ("CS:3 JPEG:2", "GB:1 CC:5", "CC:4 GB:2", "JPEG:1 CS:2"))
        )
    )
    put(
        clip[0],
        root / "source_videos" / "M003" / "light_down" / "happy" / "x.mp4",
        root / "source_videos" / "W002" / "x.mp4",
    )
    return root


def test_df1_official(df1, ffpp):
    videos = list_dataset("df-1.0", df1, reals=ffpp).videos
    assert counts(videos) == {
        (s, c): n
        for s, n in (("train", 1), ("val", 1), ("test", 2))
        for c in ("real", "end_to_end")
    }
    assert set(videos[videos.split == "test"].identity) == {"004", "005"} and set(
        videos.distortion
    ) == {""}
    assert videos[videos.label == 1].source_identity.tolist() == ["M001", "W002", "M003", "M003"]
    assert videos[videos.label == 1].target.tolist() == ["000", "002", "004", "005"]
    listing = list_dataset("df-1.0", df1, reals=ffpp)
    assert listing.expected[("test", "end_to_end")] == 201
    assert "mixed distortions" in listing.notes[0], "the paper tests on others"


def test_df1_distorted_fakes_get_equally_distorted_reals(df1, ffpp):
    mixed = "end_to_end_mix_2_distortions"
    listing = list_dataset("df-1.0", df1, reals=ffpp, variants=("end_to_end", mixed))
    reals = listing.videos[listing.videos.label == 0].set_index("video")
    fakes = listing.videos[listing.videos.label == 1]
    assert set(fakes.target) == set(reals.index)
    assert (fakes.target.str.endswith(mixed) == (fakes.subset == mixed)).all()
    distorted = {
        f"000@{mixed}": "CS:3 JPEG:2",
        f"002@{mixed}": "GB:1 CC:5",
        f"004@{mixed}": "CC:4 GB:2",
        f"005@{mixed}": "JPEG:1 CS:2",
    }
    assert reals.distortion.to_dict() == dict.fromkeys(("000", "002", "004", "005"), "") | distorted
    assert (
        listing.videos[listing.videos.label == 1].distortion == ""
    ).all()  # they are distorted on disk
    assert listing.expected[("test", "real")] == 402 and listing.expected[("test", mixed)] == 201
    (
        df1
        / "lists"
        / "manipulated_videos_distortions_meta"
        / f"manipulated_videos_{mixed}_meta.txt"
    ).write_text("x/000_M001.mp4 CS:9\n")
    broken = list_dataset("df-1.0", df1, reals=ffpp, variants=(mixed,))
    assert (
        "line 1" in broken.problems[0][1]
        and "are left out" in broken.problems[0][1]
        and (broken.videos.label == 1).all()
    )


def test_df1_what_its_lists_lack_is_named_once(df1, ffpp):
    variant = "end_to_end_mix_2_distortions"
    meta = (
        df1
        / "lists"
        / "manipulated_videos_distortions_meta"
        / f"manipulated_videos_{variant}_meta.txt"
    )
    lines = meta.read_text().splitlines()
    meta.write_text("\n".join(lines[1:]))
    listing = list_dataset("df-1.0", df1, variants=(variant,), reals=ffpp)
    assert (
        listing.problems == [(str(meta), "no line for 000_M001; its real is left out")]
        and counts(listing.videos).get(("train", "real")) is None
    )
    meta.unlink()
    (df1 / "lists" / "splits" / "val.txt").unlink()
    (df1 / "lists").rename(df1 / "Lists")
    listing = list_dataset("df-1.0", df1, variants=("end_to_end", variant), reals=ffpp)
    assert [
        (path.rsplit("/", 1)[1], reason.split(";")[0]) for path, reason in listing.problems
    ] == [("val.txt", "no such file"), (meta.name, "no such file")]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder.*--reals"):
        list_dataset("df-1.0", df1, reals="/nowhere")


def test_df1_names_are_those_of_the_files_under_every_protocol(df1, ffpp):
    "So that the lists of distortions know them."
    mixed = "end_to_end_mix_2_distortions"
    official, ours = (
        list_dataset("df-1.0", df1, reals=ffpp, protocol=p, variants=(mixed,)).videos
        for p in ("official", "ff++")
    )
    both = official.merge(ours, on=["video", "label"])
    assert len(both) == len(ours) == 4 and (both.distortion_x == both.distortion_y).all()
    assert (both.source_identity_x == both.source_identity_y).all()


def test_df1_other_protocols(df1, ffpp):
    ours = list_dataset("df-1.0", df1, reals=ffpp, protocol="ff++")
    assert counts(ours.videos) == {
        ("test", "real"): 2,
        ("test", "end_to_end"): 2,
    } and ours.expected == {("test", "real"): 140, ("test", "end_to_end"): 140}
    bench = list_dataset("df-1.0", df1, protocol="deepfakebench")
    assert counts(bench.videos) == {
        ("train", "end_to_end"): 1,
        ("val", "end_to_end"): 1,
        ("test", "end_to_end"): 2,
        ("test", "real"): 2,
    }
    assert bench.videos[bench.videos.label == 0][["video", "identity"]].values.tolist() == [
        ["M003-light_down-happy-x", "M003"],
        ["W002-x", "W002"],
    ]
    for name in ("M003/light_down/frames/x", "M003/light_down/masks/x", "W002/y"):
        write_png(df1 / "source_videos" / name / "000.png", np.zeros((8, 8, 3), np.uint8))
    bench = list_dataset("df-1.0", df1, protocol="deepfakebench", frames=True)
    assert bench.videos[bench.videos.label == 0][["video", "identity"]].values.tolist() == [
        ["M003-light_down-x", "M003"],
        ["W002-y", "W002"],
    ]
    write_png(df1 / "source_videos/cover.png", np.zeros((8, 8, 3), np.uint8))
    covered = list_dataset("df-1.0", df1, protocol="deepfakebench", frames=True)
    assert covered.rows == bench.rows and covered.totals == bench.totals
    assert covered.problems == [
        (str(df1 / "source_videos"), "pictures or a video in no actor's folder; left out")
    ]
    with pytest.raises(ValueError, match="takes its reals from FaceForensics"):
        list_dataset("df-1.0", df1)
    with pytest.raises(ValueError, match="unknown protocol 'dfb'"):
        list_dataset("df-1.0", df1, protocol="dfb")
    with pytest.raises(ValueError, match="unknown variant 'mix'"):
        list_dataset("df-1.0", df1, reals=ffpp, variants=("mix",))


def test_df1_distorted_reals_are_distorted(df1, ffpp, tmp_path):
    "The crop of a real that is distorted like its fake is not the crop of the clean one, and both are there."
    mixed = "end_to_end_mix_2_distortions"
    small = ["--count", "1", "--size", "64", "--workers", "0"]
    assert (
        main(
            [
                "faces",
                "df-1.0",
                "--root",
                str(df1),
                "--reals",
                str(ffpp),
                "--variants",
                "end_to_end",
                mixed,
                "--out",
                str(tmp_path / "o"),
                *small,
            ]
        )
        == 0
    )
    manifest = read_manifest(tmp_path / "o" / "manifest.parquet")
    faces = FaceDataset(manifest[manifest.label == 0])
    images = {
        video: faces[i]["image"].float()
        for i, video in enumerate(manifest[manifest.label == 0].video)
    }
    assert set(images) == {
        *(v for v in ("000", "002", "004", "005")),
        *(f"{v}@{mixed}" for v in ("000", "002", "004", "005")),
    }
    assert images[f"002@{mixed}"].mean() < 0.5 * images["002"].mean()  # CC:5 darkens to 0.35


# All of them


@pytest.mark.parametrize(
    "tree, name, options, expected, people, lost",
    [
        (
            "dfdc_test",
            "dfdc",
            [],
            {("test", "real"): "a", ("test", "fake"): "b"},
            {"a", "b"},
            {"labels.csv": 3, "d.mp4": 1},
        ),
        (
            "dfdc_train",
            "dfdc",
            ["--part", "train"],
            {("train", "real"): "a", ("train", "fake"): "b"},
            {"a"},
            {"metadata.json": 2, "extra.mp4": 1},
        ),
        (
            "celeb",
            "celeb-df",
            [],
            {("test", "real"): "id0_0001 00170", ("test", "fake"): "id1_id0_0007"},
            {"id0", "id1", "youtube-00170"},
            {"List_of_testing_videos.txt": 2},
        ),
        (
            "df1",
            "df-1.0",
            ["--reals", "ffpp"],
            {
                ("train", "real"): "000",
                ("train", "end_to_end"): "000_M001",
                ("test", "real"): "004 005",
                ("test", "end_to_end"): "004_M003 005_M003",
            },
            {"000", "004", "005"},
            {"val.txt": 1},
        ),
    ],
    ids=["dfdc", "dfdc train", "celeb-df", "df-1.0"],
)
def test_every_layout_through_check_faces_and_face_dataset(
    request, tmp_path, capsys, tree, name, options, expected, people, lost
):
    "What the lists get wrong (or a list that is missing) costs itself and is named; the rest becomes crops."
    root, out = request.getfixturevalue(tree), tmp_path / "out"
    options = [
        str(request.getfixturevalue(option)) if option == "ffpp" else option for option in options
    ]
    if tree == "df1":
        (root / "lists" / "splits" / "val.txt").unlink()
    assert main(["check", name, str(root), *options]) == 1
    said = capsys.readouterr().out
    assert all(file in said for file in lost) and "NOT complete" in said
    assert (
        main(
            [
                "faces",
                name,
                "--root",
                str(root),
                "--out",
                str(out),
                "--count",
                "2",
                "--size",
                "64",
                "--workers",
                "0",
                *options,
            ]
        )
        == (tree == "dfdc_test")  # where z.mp4 is listed and not there
    )
    manifest = read_manifest(out / "manifest.parquet")
    videos = {
        place: " ".join(dict.fromkeys(rows.video))
        for place, rows in manifest.groupby(["split", "subset"])
    }
    assert (
        videos == expected
        and (manifest.groupby(["subset", "video"]).frame.apply(list).map(len) == 2).all()
    )
    assert set(manifest.identity) == people and manifest.label.eq(manifest.subset != "real").all()
    assert (
        pd.read_csv(out / "problems.csv").file.str.rsplit("/", n=1).str[-1].value_counts().to_dict()
        == lost
    )
    faces = FaceDataset(manifest)
    assert [faces[i]["label"] for i in range(len(faces))] == manifest.label.tolist() and faces[0][
        "image"
    ].shape == (3, 64, 64)


DAMAGE = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "noise": lambda whole: np.random.default_rng(0).bytes(300),
    "zeros": lambda whole: bytes(len(whole)),
    "one long line": lambda whole: whole.replace(b"\n", b" ") * 1000,
    "quotes": lambda whole: whole.replace(b",", b'",').replace(b" ", b'" '),
    "twice": lambda whole: whole * 2,
    "UTF-16": lambda whole: whole.decode().encode("utf-16"),
    "too long": lambda whole: whole + b"\n" * 2**12,
}


@pytest.mark.parametrize("kind", [*DAMAGE, "folder", "gone"])
@pytest.mark.parametrize(
    "tree, name, file",
    [
        ("dfdc_test", "dfdc", "test/labels.csv"),
        ("dfdc_train", "dfdc", "dfdc_train_part_0/metadata.json"),
        ("celeb", "celeb-df", "List_of_testing_videos.txt"),
        ("df1", "df-1.0", "lists/splits/val.txt"),
        (
            "df1",
            "df-1.0",
            f"lists/manipulated_videos_distortions_meta/manipulated_videos_{MIXED}_meta.txt",
        ),
    ],
    ids=["labels.csv", "metadata.json", "celeb", "split", "meta"],
)
def test_a_damaged_list_costs_what_it_lists(request, monkeypatch, tree, name, file, kind):
    "No list raises an error, adds a video that is there, or loses one without a word."
    root = request.getfixturevalue(tree)
    options = {}
    if name == "df-1.0":
        options = dict(reals=request.getfixturevalue("ffpp"), variants=("end_to_end", MIXED))
    if tree == "dfdc_train":
        options = dict(part="train")
    before = list_dataset(name, root, **options)
    path, whole = root / file, (root / file).read_bytes()
    monkeypatch.setattr(registry, "MAX_LIST", len(whole) * 1001)
    monkeypatch.setattr("prle.data.distortions.MAX_META", len(whole) * 1001)
    if kind == "too long":
        monkeypatch.setattr(registry, "MAX_LIST", 2**12)
        monkeypatch.setattr("prle.data.distortions.MAX_META", 2**12)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(DAMAGE[kind](whole))
    listing = list_dataset(name, root, **options)
    columns = ["subset", "video", "split", "label"]
    there = set(map(tuple, listing.videos[columns].values))
    all_of_them = set(map(tuple, before.videos[columns].values))
    added = [row for row in listing.rows if tuple(row[c] for c in columns) not in all_of_them]
    assert not any(Path(row["file"]).exists() for row in added)  # a name that was cut short
    assert not added or kind == "cut"
    said = set(listing.problems) - set(before.problems)
    assert there == all_of_them or said or kind == "cut" or (kind, name) == ("empty", "df-1.0")


def test_a_person_in_two_splits_is_found_before_anything_is_cropped(ffpp, tmp_path, monkeypatch):
    listing = list_dataset("ff++", ffpp, subsets=("DF",))
    listing.rows[-1] |= dict(identity="000")
    monkeypatch.setitem(registry._registry, "ff++", lambda root: listing)
    with pytest.raises(ValueError, match="ff.. in .*identity stands in more than one split"):
        crop_dataset("ff++", ffpp, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Crops that are made again


@pytest.fixture
def made_twice(tmp_path, monkeypatch):
    "A real and a fake photograph in two compressions, under the name ff++; and how to crop them."
    for name in ("c23/a", "c23/b", "c40/a", "c40/b"):
        write_png(tmp_path / "root" / f"{name}.png", photograph(width=64))

    def adapter(root, compression="c23"):
        listing = Listing("mine")
        for subset, name in (("real", "a"), ("DF", "b")):
            facts = dict(identity=name, compression=compression)
            listing.add(root / compression / f"{name}.png", name, subset, "test", **facts)
        return listing

    monkeypatch.setitem(registry._registry, "ff++", adapter)

    def crop(compression="c23", size=64):
        settings = dict(size=size, workers=0, cropped=True)
        root, options = tmp_path / "root", dict(compression=compression)
        return crop_dataset("ff++", root, tmp_path / "out", options, **settings)

    return crop


def test_crops_of_another_compression_are_refused(made_twice):
    with collected_messages() as said:
        manifest = made_twice()
    assert "note: no person in more than one split" in [text for _, text in said]
    out, before = manifest.parent, manifest.read_bytes()
    record = out / "extraction.json"
    settings = read_json(record)
    assert settings["compression"] == "c23"
    for old in (settings, {key: settings[key] for key in settings if key != "compression"}):
        record.write_text(json.dumps(old))
        with pytest.raises(ValueError, match="out was made with compression c23, not c40"):
            made_twice("c40")
        assert manifest.read_bytes() == before == made_twice().read_bytes()
    record.write_text(json.dumps(old))
    (out / "faces.parquet").unlink()  # nothing tells any more
    assert set(read_manifest(made_twice("c40")).compression) == {"c40"}
    assert read_json(record)["compression"] == "c40"
    with pytest.raises(ValueError, match="compression c40, not c23"):
        made_twice()


def test_no_manifest_describes_crops_that_are_being_replaced(made_twice, tmp_path, monkeypatch):
    manifest = made_twice()

    def interrupt(*job):
        raise KeyboardInterrupt

    monkeypatch.setattr("prle.data.videos._extract_video", interrupt)
    with pytest.raises(ValueError, match="size 64, not 32"):
        made_twice(size=32)
    assert made_twice().exists()  # nothing to do
    write_png(tmp_path / "root/c23/a.png", photograph("s2", width=64))
    with pytest.raises(KeyboardInterrupt):
        made_twice()
    assert not manifest.exists()


def test_everybodys_faces_make_no_manifest(tmp_path, ffpp):
    with pytest.raises(ValueError, match="one face of each frame.*faces='largest'"):
        crop_dataset("ff++", ffpp, tmp_path / "out", faces="all")
    assert not (tmp_path / "out").exists()


def test_a_split_by_person_is_as_good_as_what_is_known_of_the_fakes():
    listing = Listing("mine")
    listing.add("a.mp4", "a", "real", "train", identity="ann")
    listing.add("b.mp4", "b", "swap", "train", identity="bob")
    assert checks.overlap_note(listing) == "no person in more than one split"
    listing.add("c.mp4", "c", "swap", "test", identity="eve", source_identity="joe")
    said = "as far as can be told: whose face was put into 1 fakes is not known"
    assert checks.overlap_note(listing).endswith(said)
    listing.rows[1]["source_identity"] = "ann"
    assert checks.overlap_note(listing) == "no person in more than one split"
    listing.rows[2]["source_identity"] = "ann"
    assert checks.overlap_note(listing) == "1 persons in more than one split: ann"


# A plain folder


def test_plain_folder(tmp_path, clip):
    root = tmp_path / "mine"
    put(
        clip[0],
        root / "train" / "Real" / "a.mp4",
        root / "test" / "real" / "a.mp4",
        root / "test" / "fake" / "swap" / "a.mp4",
        root / "test" / "fake" / "b.mp4",
        root / "train" / "fake" / "a.mp4",
    )
    put(clip[0], root / "test" / "real" / ".hidden.mp4")
    videos = list_dataset("folder", root).videos
    assert counts(videos) == {
        ("train", "real"): 1,
        ("train", "fake"): 1,
        ("test", "real"): 1,
        ("test", "fake"): 1,
        ("test", "swap"): 1,
    }
    assert not videos.duplicated(["dataset", "subset", "video"]).any() and set(videos.dataset) == {
        "mine"
    }
    shutil.rmtree(root / "test" / "fake")
    assert list_dataset("folder", root).problems == [
        (str(root / "test" / "fake"), "no such folder")
    ]


def test_plain_folder_with_twins_and_a_folder_of_videos(tmp_path, clip):
    put(
        clip[0],
        *(
            tmp_path / "mine" / name
            for name in ("real/a.mp4", "real/a.avi", "fake/videos/a.mp4", "fake/swap/videos/b.mp4")
        ),
    )
    videos = list_dataset("folder", tmp_path / "mine").videos
    assert videos[["subset", "video"]].values.tolist() == [
        ["real", "real-a.avi"],
        ["real", "real-a.mp4"],
        ["swap", "fake-swap-videos-b"],
        ["fake", "fake-videos-a"],
    ]
    put(clip[0], tmp_path / "mine" / "real" / "b" / "c.mp4", tmp_path / "mine" / "real" / "b-c.mp4")
    videos = list_dataset("folder", tmp_path / "mine").videos
    assert (
        len(set(videos.video)) == len(set(videos.identity)) == 6
        and videos.video.str.fullmatch("real-b-c.mp4-[0-9a-f]{8}").sum() == 2
    )


def test_plain_folder_that_contradicts_itself(tmp_path, clip, monkeypatch):
    put(
        clip[0],
        *(
            tmp_path / "mine" / name
            for name in ("real/a.mp4", "fake/Real/x.mp4", "fake/b.mp4", "real/swap/fake/y.mp4")
        ),
    )
    (tmp_path / "mine" / "fake" / "loop").symlink_to(tmp_path / "mine" / "fake")
    monkeypatch.chdir(tmp_path / "mine" / "real")
    listing = list_dataset("folder", "..")
    assert listing.videos[["dataset", "subset", "video", "label"]].values.tolist() == [
        ["mine", "real", "real-a", 0],
        ["mine", "fake", "fake-b", 1],
    ]
    assert [(path.split("mine/")[1], reason) for path, reason in listing.problems] == [
        ("real/swap/fake/y.mp4", "in a folder 'fake' inside 'real'; left out"),
        ("fake/Real/x.mp4", "in a folder 'real' inside 'fake'; left out"),
    ]


def test_frames_in_a_plain_folder(tmp_path, clip):
    put(clip[0], tmp_path / "mine" / "real" / "a.mp4")
    for name in ("real/frames/a", "real/masks/a", "fake/frames/b"):
        write_png(tmp_path / "mine" / name / "000.png", np.zeros((8, 8, 3), np.uint8))
    assert list_dataset("folder", tmp_path / "mine", frames=True).videos.video.tolist() == [
        "real-frames-a",
        "fake-frames-b",
    ]


def test_photographs_in_a_plain_folder(tmp_path):
    for name in ("real/ann", "real/bea", "fake/eve"):
        write_png(tmp_path / "mine" / f"{name}.png", draw_frame((320, 240), [photograph()], 0)[0])
    assert (
        main(
            [
                "faces",
                "folder",
                "--root",
                str(tmp_path / "mine"),
                "--out",
                str(tmp_path / "o"),
                "--size",
                "64",
                "--workers",
                "0",
            ]
        )
        == 0
    )
    assert counts(read_manifest(tmp_path / "o" / "manifest.parquet")) == {
        ("test", "real"): 2,
        ("test", "fake"): 1,
    }


# Errors


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["faces", "a.mp4", "--out", "o", "--compression", "c99", "--protocol", "xx"],
            "without --root, the folder of a data set, the command takes no --compression, --protocol.",
        ),
        (
            ["convert", "x.json", "--root", ".", "--out", "o", "--subsets", "DF", "--frames"],
            "a JSON takes no --subsets, --frames.",
        ),
        (["convert", "x.parquet", "--out", "o", "--part", "test"], "a manifest takes no --part."),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path, clip, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    put(clip[0], tmp_path / "a.mp4")
    assert main(argv) == 2 and message in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_wrong_names_and_roots(tmp_path, capsys):
    for argv, message in (
        (["check", "ffpp", str(tmp_path)], "Did you mean 'ff++'"),
        (["check", "ff++", str(tmp_path / "none")], "no such folder"),
        (
            ["check", "celeb-df", str(tmp_path), "--compression", "c40"],
            "unknown option of celeb-df 'compression'",
        ),
        (
            ["faces", "dfdc", "--root", str(tmp_path), "--out", str(tmp_path / "o")],
            "no videos of dfdc found",
        ),
        (["check", "ff++", str(tmp_path), "--compression", "c22"], "unknown compression 'c22'"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    assert main(["check", "celeb-df", str(tmp_path)]) == 1
    assert "List_of_testing_videos.txt: no such file" in capsys.readouterr().out


def test_probe_finds_what_cannot_be_decoded(tmp_path, clip):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "frames").mkdir()
    whole = clip[0].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    picture = draw_frame((320, 240), [photograph()], 0)[0]
    assert cv2.imwrite(str(tmp_path / "whole.jpg"), picture) and probe(tmp_path / "whole.jpg") == ""
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    for folder, broken in (
        ("first", "000.png"),
        ("last", "002.png"),
        ("good", "001.png"),
    ):  # as with videos, what lies between is not looked at
        for i in range(3):
            write_png(tmp_path / folder / f"{i:03d}.png", picture)
        (tmp_path / folder / broken).write_bytes(b"x")
    assert probe(tmp_path / "good") == ""
    for name in ("empty.mp4", "text.mp4", "cut.mp4", "frames", "cut.jpg", "first", "last"):
        assert probe(tmp_path / name) == "unreadable", name
    assert probe(tmp_path / "none.mp4") == "missing" and probe(clip[0]) == ""


@pytest.mark.parametrize("share", [0.3, 0.5, 0.66, 0.9, 0.98])
@pytest.mark.parametrize(
    "codec", [("libx264",), ("libx264", "-preset", "ultrafast"), ("mpeg4",)], ids=" ".join
)
def test_probe_finds_a_cut_end_behind_a_whole_index(tmp_path, codec, share):
    "An index at the file's head promises frames that a truncated file does not have."
    ffmpeg(
        "-i",
        write_clip(tmp_path / "source.mp4", frames=30),
        "-c:v",
        *codec,
        "-pix_fmt",
        "yuv420p",
        "-movflags",
        "+faststart",
        tmp_path / "whole.mp4",
    )
    whole = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: round(share * len(whole))])
    assert (probe(tmp_path / "whole.mp4"), probe(tmp_path / "cut.mp4")) == ("", "unreadable")


def test_the_report_is_short_when_much_is_wrong(tmp_path, clip):
    put(clip[0], tmp_path / "mine" / "real" / "a.mp4")
    for i in range(30):
        path = tmp_path / "mine" / "fake" / f"{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    text = str(check("folder", tmp_path / "mine"))
    assert "30 problems" in text and "... and 10 more" in text and text.endswith("NOT complete")


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_face_dataset_in_workers(toy, context):
    loader = DataLoader(FaceDataset(toy), 5, num_workers=2, multiprocessing_context=context)
    images = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(images, torch.stack([FaceDataset(toy)[i]["image"] for i in range(len(toy))]))
    assert np.array_equal(pd.concat([pd.Series(batch["label"]) for batch in loader]), toy.label)
