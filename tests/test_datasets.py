"""prle.data.datasets: the manifest's checks and FaceDataset."""

import errno
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from prle.cli import main
from prle.core import file_digest, rng
from prle.data import manifest
from prle.data.crops import read_quantiles, read_rgb
from prle.data.datasets import BalancedSampler, FaceDataset
from prle.data.deepfakebench import write_json_dataset
from prle.data.manifest import (
    COLUMNS,
    check_crops,
    check_manifest,
    read_manifest,
    rebase,
    select,
    write_manifest,
)
from prle.lab.labdata import data_fingerprint
from prle.trust import Damaged, read_table, write_digests


def test_round_trip(toy, tmp_path):
    again = read_manifest(write_manifest(toy, tmp_path / "again.parquet"))
    pd.testing.assert_frame_equal(again.drop(columns="landmarks"), toy.drop(columns="landmarks"))
    assert np.array_equal(np.stack(again.landmarks), np.stack(toy.landmarks))
    assert again.attrs == toy.attrs, "the crops are where they were"


def test_the_hash_of_data_is_what_it_was(tmp_path):
    "Runs are named by it: this one was computed by the code of before roots moved."
    rows = []
    for i, subset in enumerate(["real", "DF", "real", "DF"]):
        (tmp_path / f"{i}.png").write_bytes(b"x" * (10 + i))
        row = dict(path=f"{i}.png", label=int(subset != "real"), dataset="toy", subset=subset)
        row |= dict(video=f"v{i}", identity=f"p{i // 2}", source_identity="", frame=3 * i)
        row |= dict(split=("train", "test")[i // 2], compression="none", transform=[], mask="")
        row |= dict(landmarks=np.linspace(0, 9, 136).astype(np.float32) + i)
        rows.append(row | dict(target="v0" if i == 1 else ""))
    rows[3]["landmarks"], rows[3]["mask"] = np.full(136, np.nan, np.float32), "0.png"
    rows[2]["transform"] = np.linspace(0, 1, 6)
    table = read_manifest(write_manifest(pd.DataFrame(rows), tmp_path / "manifest.parquet"))
    assert data_fingerprint(table) == "b72869c89a5d3107"
    grouped = table.assign(group=[0, 0, 1, 1])
    assert data_fingerprint(grouped) == "25620feb8b3f4eec"


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("label", 2, "row 4 .*label must be 0"),
        ("split", "dev", "row 4 .*split must be"),
        ("path", "real/0_0.png", "row 4 .*stands in an earlier row"),
        ("subset", "real", "row 4 .*must go together"),
        ("landmarks", np.zeros(10), "row 4 .*136 numbers"),
        ("identity", "p5", "more than one split"),
        ("path", "/etc/face.png", "row 4 .*must be relative"),
        ("path", "a/../../b.png", "row 4 .*stay below"),
        ("transform", [1.0, 2.0], "row 4 .*transform must be 6 numbers"),
        ("transform", [1.0, 2, 3, 4, 5, np.nan], "row 4 .*transform must be 6 numbers"),
        (
            "landmarks",
            [np.nan] + [1] * 135,
            "row 4 .*landmarks must be 136 numbers .*, all of them NaN",
        ),
        ("identity", "", "row 4 .*identity must be text of 1 to 1000"),
        ("video", "", "row 4 .*video must be text of 1 to 1000"),
        ("label", 1.5, "row 0 .*label must be a whole number"),
        ("frame", "7", "row 4 .*frame must be a whole number from 0, not '7'"),
    ],
)
def test_the_first_bad_row_is_named(toy, column, value, message):
    toy = toy.copy()
    toy[column] = [value if i == 4 else v for i, v in enumerate(toy[column])]
    with pytest.raises(ValueError, match=message):
        check_manifest(toy)


def test_a_frame_stands_once(toy):
    with pytest.raises(ValueError, match=r"row 1 .*same dataset, subset, video and frame"):
        check_manifest(toy.iloc[[0, 3]].assign(video="x"))
    same_name = toy.iloc[:3].assign(video="x")  # of three subsets
    assert len(check_manifest(same_name)) == 3


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_value_is_named_with_its_row_and_column(toy, tmp_path, column):
    "Whatever stands for it: None, NaN (which makes fractions of whole numbers) or pandas' own NA."
    toy["group"] = 0
    for nothing in (None, np.nan, pd.NA):
        bad = toy.assign(**{column: [nothing if i == 4 else v for i, v in enumerate(toy[column])]})
        with pytest.raises(ValueError, match=rf"row 4 \(.*\): {column} must be .*; it is missing"):
            check_manifest(bad)
    table = toy.assign(**{column: [None if i == 4 else v for i, v in enumerate(toy[column])]})
    table.to_parquet(tmp_path / "bad.parquet", index=False)
    with pytest.raises(
        ValueError, match=rf"bad.parquet, row 4 \(.*\): {column} must be .*; it is missing"
    ):
        read_manifest(tmp_path / "bad.parquet")


@pytest.mark.parametrize("place", ["elsewhere", "toy", "toy/lists/of/mine", "."])
def test_the_manifest_may_lie_elsewhere(toy, tmp_path, place):
    "The table knows where its crops are, so they need not be named."
    file = write_manifest(toy, tmp_path / place / "m.parquet")
    again = read_manifest(file)
    assert again.attrs == toy.attrs and FaceDataset(again)[0]["image"].shape == (3, 24, 32)
    assert data_fingerprint(again) == data_fingerprint(toy)


def test_crops_beside_a_manifest_are_its_own(toy, tmp_path):
    "Faces that were made anew from a table's are those that its new file means."
    for path in toy.path:
        (tmp_path / "new" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "new" / path), np.full((16, 16, 3), 7, np.uint8))
    new = read_manifest(write_manifest(toy, tmp_path / "new/manifest.parquet"))
    assert new.attrs["root"] == str(tmp_path / "new") and FaceDataset(new)[0]["image"].max() == 7
    old = read_manifest(write_manifest(toy, tmp_path / "new/old.parquet", toy.attrs["root"]))
    assert FaceDataset(old)[0]["image"].equal(FaceDataset(toy)[0]["image"])


@pytest.mark.parametrize("place", ["", "lists/of/mine", ".."])
def test_a_folder_may_be_moved_together_with_its_manifest(toy, tmp_path, place, monkeypatch):
    here = tmp_path / "home/data"
    here.parent.mkdir()
    shutil.move(tmp_path / "toy", here)
    file = write_manifest(toy, here / place / "m.parquet", here)
    assert read_manifest(file).attrs["root"] == str(here)
    shutil.move(tmp_path / "home", tmp_path / "away")
    monkeypatch.chdir(tmp_path)
    moved = read_manifest(Path("away/data", place, "m.parquet"))
    monkeypatch.chdir("/")
    assert moved.attrs["root"] == str(tmp_path / "away/data") and len(FaceDataset(moved)[0]) == 4


def test_a_root_that_is_gone_is_named_and_may_be_told(toy, tmp_path):
    file = write_manifest(toy, tmp_path / "elsewhere/m.parquet")
    shutil.move(tmp_path / "toy", tmp_path / "new")
    with pytest.raises(
        FileNotFoundError,
        match=rf"m.parquet: the folder of its crops, {toy.attrs['root']}, is gone",
    ):
        read_manifest(file)
    assert len(FaceDataset(read_manifest(file, tmp_path / "new"))[0]) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: pd.concat([a, b]),
        lambda a, b: pd.concat([a, pd.DataFrame(b.to_dict("records"))]),
        lambda a, b: a.merge(b[["path", "video"]], on="path", how="outer"),
        lambda a, b: pd.DataFrame(a.to_dict("records")),
    ],
    ids=["concat", "concat-lost", "merge", "records"],
)
def test_a_table_without_its_root_stops_at_once(toy, tmp_path, change):
    shutil.copytree(tmp_path / "toy", tmp_path / "other")
    lost = change(toy, read_manifest(tmp_path / "other/manifest.parquet"))
    for use in (FaceDataset, data_fingerprint, lambda rows: write_json_dataset(rows, tmp_path)):
        with pytest.raises(ValueError, match="does not say which folder .*manifest.rebase"):
            use(lost.iloc[:3])
    table = toy if "video_x" in lost else lost.drop_duplicates("path")
    table = pd.DataFrame(table.to_dict("records"))
    with pytest.raises(ValueError, match="row 0 .*no such file in .*elsewhere; say what"):
        write_manifest(table, tmp_path / "elsewhere/m.parquet")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.query("split == 'train'"),
        lambda a: pd.concat([a.iloc[:4], a.iloc[8:]]),
        lambda a: a.merge(a[["path"]].assign(extra=1), on="path").drop(columns="extra"),
        lambda a: a.groupby("subset").sample(2, random_state=0).reset_index(drop=True),
    ],
    ids=["query", "concat", "merge", "sample"],
)
def test_what_pandas_makes_of_a_table_keeps_its_root(toy, tmp_path, change):
    changed = change(toy)
    again = read_manifest(write_manifest(changed, tmp_path / "elsewhere/m.parquet"))
    assert again.path.tolist() == changed.path.tolist() and again.attrs == toy.attrs
    assert FaceDataset(again)[1]["image"].equal(FaceDataset(changed)[1]["image"])


def test_tables_of_two_folders_are_put_together_below_one(toy, tmp_path):
    "Masks move with the paths, and each picture is the one it was."
    shutil.copytree(tmp_path / "toy", tmp_path / "more/toy")
    more = read_manifest(tmp_path / "more/toy/manifest.parquet")
    more["video"] += "x"
    more["landmarks"] = [points.astype(np.float64) for points in more.landmarks]
    more["transform"] = [[1, 0, 0, 0, 1, 0]] * len(more)
    more["mask"] = more.path.where(more.label == 1, "")
    both = pd.concat([rebase(toy, tmp_path), rebase(more, tmp_path)], ignore_index=True)
    both = read_manifest(write_manifest(both, tmp_path / "lists/both.parquet"))
    assert both.attrs["root"] == str(tmp_path) and both["mask"].iloc[-1] == both.path.iloc[-1]
    assert both.landmarks.iloc[0].tolist() == toy.landmarks.iloc[0].tolist()
    assert both.path.iloc[-1].startswith("more/toy/") and both["mask"].iloc[len(toy)] == ""
    for i, (one, rows) in enumerate([(toy, 0), (more, len(toy))]):
        assert FaceDataset(both)[rows + 5]["image"].equal(FaceDataset(one)[5]["image"])
    with pytest.raises(ValueError, match="does not lie below .*more; name a folder above it"):
        rebase(toy, tmp_path / "more")


def test_balanced_sampler():
    labels = np.array([0] * 4 + [1] * 20)
    sampler, epochs = BalancedSampler(labels, seed=3), []
    for epoch in range(40):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(len(set(e)) == len(e) == len(sampler) == 8 and labels[e].sum() == 4 for e in epochs)
    assert set(sum(epochs, [])) == set(range(24))  # everything is seen in time
    assert (
        epochs[0]
        == list(BalancedSampler(labels, seed=3))
        != epochs[1]
        != list(BalancedSampler(labels, seed=4))
    )
    with pytest.raises(ValueError, match="one has no face"):
        BalancedSampler([1, 1])


def test_a_transform_gets_the_whole_item(toy):
    item = FaceDataset(
        toy, transform=lambda item: {**item, "image": item["image"].flip(-1), "seen": sorted(item)}
    )[2]
    assert torch.equal(item["image"].flip(-1), FaceDataset(toy)[2]["image"]) and item["seen"] == [
        "image",
        "index",
        "label",
        "landmarks",
    ]


def test_missing_columns_and_empty_tables(toy):
    with pytest.raises(ValueError, match="lacks the columns label, mask"):
        check_manifest(toy.drop(columns=["label", "mask"]))
    with pytest.raises(ValueError, match="no rows"):
        check_manifest(toy.iloc[:0])
    with pytest.raises(FileNotFoundError, match="prle forge"):
        read_manifest("nowhere.parquet")


def test_a_manifest_without_a_column_is_not_read_further(toy, tmp_path):
    toy.drop(columns=["label", "mask"]).to_parquet(tmp_path / "m.parquet", index=False)
    with pytest.raises(ValueError, match="m.parquet .*it lacks the column label, mask"):
        read_manifest(tmp_path / "m.parquet")
    toy.iloc[:0].to_parquet(tmp_path / "m.parquet", index=False)
    with pytest.raises(ValueError, match="m.parquet has no rows"):
        read_manifest(tmp_path / "m.parquet")


def test_a_face_written_many_times_is_found_by_its_path(toy, tmp_path, monkeypatch):
    "Before its landmarks are read, which take a thousand times the room of the file."
    path, face = tmp_path / "m.parquet", pa.Table.from_pandas(toy.iloc[:1], preserve_index=False)
    block = pa.concat_tables([face] * 10_000).combine_chunks()
    with pq.ParquetWriter(path, block.schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(block)
    read = []
    monkeypatch.setattr(manifest, "read_table", lambda *a: read.append(a[1]) or read_table(*a))
    with pytest.raises(ValueError, match=r"m.parquet, row 1 \(.*\): the path stands in an earlier"):
        read_manifest(path)
    assert read == [["path"]]


def test_a_wrong_value_far_down_is_named_by_its_row(toy):
    count = 25_000
    many = toy.iloc[[0] * count].reset_index(drop=True)
    many = many.assign(
        path=[f"{i}.png" for i in range(count)], video=[f"v{i}" for i in range(count)]
    )
    check_manifest(many)
    for column, value in dict(
        landmarks=[True] * 136, transform=[1.0], label=True, mask="/a"
    ).items():
        wrong = many[column].astype(object)
        wrong.iloc[20_001] = value
        with pytest.raises(ValueError, match=rf"row 20001 \(20001.png\): {column} must be"):
            check_manifest(many.assign(**{column: wrong}))


def test_a_bad_manifest_is_not_written(toy, tmp_path):
    with pytest.raises(ValueError):
        write_manifest(toy.assign(label=7), tmp_path / "bad.parquet")
    assert not (tmp_path / "bad.parquet").exists()


def test_select(toy):
    rows = select(toy, "train", "A")
    assert (
        set(rows.subset) == {"real", "A"}
        and set(rows.split) == {"train"}
        and rows.attrs["root"] == toy.attrs["root"]
    )
    with pytest.raises(ValueError, match="no rows of DF; the manifest has A, B, real"):
        select(toy, "train", "DF")
    with pytest.raises(ValueError, match="'val' has no fake face"):
        select(toy[(toy.label == 0) | (toy.split == "train")], "val")


def test_items(toy):
    item = FaceDataset(toy)[1]
    assert (
        item["image"].shape == (3, 24, 32)
        and item["image"].dtype == torch.uint8
        and item["label"] == 1
    )
    assert item["landmarks"].shape == (68, 2) and torch.equal(
        item["landmarks"].flatten(), torch.from_numpy(toy.landmarks[1])
    )
    bgr = cv2.imread(f"{toy.attrs['root']}/{toy.path[1]}")
    assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), bgr[..., ::-1])


def test_quantile_maps_come_along(toy, tmp_path):
    for path in toy.path:
        (tmp_path / "q" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "q" / path), np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    write_digests(tmp_path / "q")
    batch = next(iter(DataLoader(FaceDataset(toy, quantiles=tmp_path / "q"), 4)))
    assert batch["quantiles"].shape == (4, 1, 24, 32) and batch["quantiles"].dtype == torch.uint16


def test_a_map_of_another_size_is_refused(toy, tmp_path):
    (tmp_path / "q/real").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "q" / toy.path[0]), np.zeros((32, 24), np.uint16))
    write_digests(tmp_path / "q")
    with pytest.raises(
        ValueError, match=r"0_0.png is \(24, 32\), its face real/0_0.png is \(32, 24\)"
    ):
        FaceDataset(toy.iloc[[0]], quantiles=tmp_path / "q")[0]


def test_quantile_maps_are_compared_with_their_digests(toy, tmp_path):
    "A flipped bit, another face's map, one that is missing, and a folder without digests."
    for path in toy.path:
        (tmp_path / "q" / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(tmp_path / "q" / path),
            np.random.default_rng(0).integers(0, 2**16, (24, 32), np.uint16),
        )
    with pytest.raises(Damaged, match=r"q/digests.parquet is missing.*prle.trust.write_digests"):
        FaceDataset(toy, quantiles=tmp_path / "q")
    write_digests(tmp_path / "q")
    first, faces = tmp_path / "q" / toy.path[0], FaceDataset(toy, quantiles=tmp_path / "q")
    whole, found = first.read_bytes(), 0
    for at in range(0, len(whole), 41):
        first.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(Damaged, match=f"{toy.path[0]} has changed since it was written"):
            faces[0]
        found += 1
    assert found > 20
    for worker in (0, 1):
        with pytest.raises(Damaged, match=f"{toy.path[0]} has changed"):
            list(DataLoader(faces, 4, num_workers=worker))
    cv2.imwrite(str(first), np.zeros((24, 32), np.uint16))
    with pytest.raises(Damaged, match="has changed"):
        faces[0]
    first.unlink()
    with pytest.raises(Damaged, match="is missing"):
        faces[0]
    write_digests(tmp_path / "q")
    with pytest.raises(Damaged, match=f"q has no quantile map '{toy.path[0]}'"):
        FaceDataset(toy, quantiles=tmp_path / "q")


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "face.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(OSError, match="picture .*face.png: cannot be read"):
        read_rgb(tmp_path / "face.png")
    with pytest.raises(OSError, match="quantile map .*face.png: cannot be read"):
        read_quantiles(tmp_path / "face.png")
    with pytest.raises(ValueError, match="grey.png is no 16-bit"):
        read_quantiles(tmp_path / "grey.png")


def test_masks_of_another_size_or_missing_are_named(toy):
    root = Path(toy.attrs["root"])
    rows = toy.assign(mask=np.where(toy.label == 1, "m.png", ""))
    rows.attrs = toy.attrs
    faces = FaceDataset(rows, masks=True)
    assert (
        not faces[0]["mask"].any()
        and faces[0]["mask"].shape == (1, 24, 32)
        and faces[0]["mask_known"]
    )
    with pytest.raises(OSError, match="mask .*m.png: no such file"):
        faces[1]
    cv2.imwrite(str(root / "m.png"), np.full((10, 12), 255, np.uint8))
    with pytest.raises(ValueError, match=r"m.png is \(12, 10\), its face \(32, 24\)"):
        faces[1]


def test_fakes_without_a_mask_are_counted(toy):
    rows = toy.assign(mask=np.where(toy.subset == "A", "m.png", ""))
    rows.attrs = toy.attrs
    with pytest.warns(UserWarning, match="12 of 24 fakes have no mask.*B/0_0.png among them"):
        faces = FaceDataset(rows, masks=True)
    item = faces[rows.subset.tolist().index("B")]
    assert item["mask_known"] is False and not item["mask"].any()
    with pytest.raises(ValueError, match="24 of 24 fakes have no mask.*`prle faces`"):
        FaceDataset(toy, masks=True)
    assert not FaceDataset(toy[toy.label == 0], masks=True)[0]["mask"].any()


def damaged(toy, column, value):
    rows = toy.astype({column: object})
    rows[column] = pd.Series(
        [value if i == 4 else v for i, v in enumerate(rows[column])], dtype=object
    )
    return rows


TEXTS = [
    "path",
    "dataset",
    "subset",
    "video",
    "identity",
    "source_identity",
    "target",
    "split",
    "compression",
    "mask",
]


@pytest.mark.parametrize(
    "column, values",
    [
        *((column, [None, np.nan, 3, b"x", ["x"], "x" * 10**6]) for column in TEXTS),
        ("label", [None, np.nan, 1.0, "1", True, [1], 2**70, -1]),
        ("frame", [None, np.nan, 0.5, "0", -1, 2**63]),
        ("transform", [None, np.nan, "text", ["a"] * 6, [[1.0]] * 6, [np.inf] * 6, [None] * 6]),
        (
            "landmarks",
            [
                None,
                1.5,
                "x" * 136,
                ["a"] * 136,
                [[0.0]] * 136,
                [np.inf] * 136,
                [None] * 136,
                np.zeros((136, 2)),
            ],
        ),
    ],
)
def test_wrong_types_and_nulls_are_named_by_row_and_column(toy, column, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^m.parquet, row 4 \(.*\): {column} must be") as e:
            check_manifest(damaged(toy, column, value), "m.parquet")
        assert len(str(e.value)) < 600


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/face.png",
        "a/../../b.png",
        "./a.png",
        "a\\b.png",
        "a//b.png",
        "a\nb.png",
        "nul.png",
    ],
)
def test_no_path_leaves_the_root(toy, path):
    with pytest.raises(ValueError, match="row 4 .*path must be"):
        check_manifest(damaged(toy, "path", path))
    if path:
        with pytest.raises(ValueError, match="row 4 .*mask must be"):
            check_manifest(damaged(toy, "mask", path))


@pytest.mark.parametrize("root", [None, 3, ["x"], {"a": 1}, "a\0b", "x" * 10**6])
def test_a_root_that_is_no_path_is_named(toy, tmp_path, root):
    path = tmp_path / "toy/manifest.parquet"
    toy.attrs = dict(root=root)
    toy.to_parquet(path, index=False)
    with pytest.raises(ValueError, match="manifest.parquet: its root .* is no folder's path") as e:
        read_manifest(path)
    assert len(str(e.value)) < 500


def test_damaged_manifests_name_the_file_and_never_pass(toy, tmp_path):
    path, draw, seen = tmp_path / "toy/manifest.parquet", rng("damage"), 0
    whole = path.read_bytes()
    for i in range(200):
        content = bytearray(whole[: draw.integers(len(whole))]) if i % 4 == 0 else bytearray(whole)
        if i % 4:
            content[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        path.write_bytes(content)
        try:
            again = read_manifest(path)
        except ValueError as e:
            seen += 1
            assert str(path) in str(e) and "\n" not in str(e) and len(str(e)) < 1000
        else:
            pd.testing.assert_frame_equal(
                again.drop(columns="landmarks"), toy.drop(columns="landmarks")
            )
    assert seen > 100


def test_faces_and_masks_outside_are_not_read(toy, tmp_path):
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((24, 32, 3), np.uint8))
    crop = tmp_path / "toy" / toy.path[1]
    crop.unlink()
    crop.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="leads out of"):
        FaceDataset(toy)[1]
    rows = toy.assign(mask=np.where(toy.label == 1, "m.png", ""))
    rows.attrs = toy.attrs
    (tmp_path / "toy/m.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="m.png.* leads out of"):
        FaceDataset(rows, masks=True)[2]
    (tmp_path / "q/real").mkdir(parents=True)
    (tmp_path / "q" / toy.path[0]).symlink_to(tmp_path / "secret.png")
    write_digests(tmp_path / "q", dict.fromkeys(toy.path, "0"))
    with pytest.raises(ValueError, match="leads out of"):
        FaceDataset(toy, quantiles=tmp_path / "q")[0]


@pytest.fixture
def known(toy):
    write_digests(
        toy.attrs["root"], {path: file_digest(Path(toy.attrs["root"]) / path) for path in toy.path}
    )
    return toy


def test_crops_that_are_what_they_were_pass(known, tmp_path, capsys):
    for given in (tmp_path / "toy", tmp_path / "toy/manifest.parquet"):
        assert main(["check", "manifest", str(given)]) == 0
    assert "36 crops and masks compared with their digests: 0 problems" in capsys.readouterr().err


def test_damaged_missing_and_unlisted_crops_are_named(known, tmp_path, capsys):
    root = tmp_path / "toy"
    flipped = bytearray((root / known.path[0]).read_bytes())
    flipped[-20] ^= 1
    (root / known.path[0]).write_bytes(flipped)
    (root / known.path[1]).unlink()
    (root / known.path[2]).unlink()
    (root / known.path[2]).symlink_to("/etc/passwd")
    (root / "A/new.png").touch()
    bad, said = check_crops(root)
    assert bad.path.tolist() == [*known.path[:3], "A/new.png"] and "4 problems" in said
    assert all(
        part in reason
        for part, reason in zip(
            ("has changed since", "missing", "leads out", "not in the manifest"), bad.reason
        )
    )
    assert (
        main(["check", "manifest", str(root)]) == 1
        and f"{known.path[0]}: damaged" in capsys.readouterr().out
    )


def test_without_digests_crops_are_decoded(toy, tmp_path):
    assert (
        check_crops(tmp_path / "toy")[0].empty
        and "there is no digests.parquet" in check_crops(tmp_path / "toy")[1]
    )
    (tmp_path / "toy" / toy.path[0]).write_bytes(
        (tmp_path / "toy" / toy.path[0]).read_bytes()[:300]
    )
    assert check_crops(tmp_path / "toy")[0].path.tolist() == [toy.path[0]]


def test_a_crop_that_may_not_be_read_is_not_called_damaged(known, tmp_path, monkeypatch):
    def closed(file, fingerprint):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(manifest, "check_digest", closed)
    bad, _ = check_crops(tmp_path / "toy")
    assert len(bad) and set(bad.reason) == {"may not be read (Permission denied)"}


def test_a_damaged_manifest_or_table_of_digests_is_one_line(known, tmp_path, capsys):
    for name in ("digests.parquet", "manifest.parquet"):
        (tmp_path / "toy" / name).write_bytes(b"garbage")
        assert main(["check", "manifest", str(tmp_path / "toy")]) == 2
        said = capsys.readouterr().err
        assert name in said and said.count("\n") == 1
    assert main(["check", "manifest", str(tmp_path / "nothing")]) == 2


def older(toy):
    "The toy manifest as it was written before there were targets."
    path = Path(toy.attrs["root"]) / "manifest.parquet"
    table = pd.read_parquet(path).drop(columns="target")
    table.to_parquet(path, index=False)
    return path


def test_a_manifest_of_before_there_were_targets_is_read_and_keeps_its_hash(toy):
    new, old = toy.copy(), read_manifest(older(toy))
    assert old.target.tolist() == [""] * len(old)
    new.attrs["root"] = old.attrs["root"]
    assert data_fingerprint(new) == data_fingerprint(old)
    known = old.assign(target=old.video.where(old.label == 1, ""))
    assert data_fingerprint(known) == data_fingerprint(old), "runs of blind maps are named by them"
    again = read_manifest(write_manifest(known, Path(old.attrs["root"]) / "known.parquet"))
    assert again.target.tolist() == known.target.tolist()


def test_a_real_face_has_no_target(toy):
    with pytest.raises(ValueError, match="row 0 .*a real face has no target"):
        check_manifest(toy.assign(target=toy.video))
