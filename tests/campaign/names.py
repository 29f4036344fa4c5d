"Family `names`: what data are called, where output goes, and where links lead."

import json
import shutil

import pandas as pd

from .arena import TOKEN, Finding, attack, digest_of, exceeded, judge, refusal, snapshot
from .mutate import become_link

UP = "../../../../precious/box"
EVIL = (
    "",
    ".",
    "..",
    "../..",
    UP,
    "ABSOLUTE",
    "a/b",
    "a\\b",
    "/",
    "a\nb",
    "a\x00b",
    "\x1b[2J",
    "CON",
    "nul.png",
    "x" * 300,
    " ",
    "-rf",
    ".hidden",
    "a:b",
    "trailing.",
    "tab\tname",
    "\u202egnp.exe",
    "*",
    "~",
    "$HOME",
    "real/../../../..",
)
KIND = ("Größe", "video 1", "071_054", "a-b.c")
NAMED = ("dataset", "subset", "video", "identity", "source_identity", "target")
NAMED += ("compression", "path", "mask")
MANIFEST = "data/manifest.parquet"


def rewritten(box, column: str, value: str, rows):
    "Write a manifest without asking whether it is one."
    table = pd.read_parquet(box.work / MANIFEST)
    value = str(box.precious / "box") if value == "ABSOLUTE" else value
    if column in ("subset", "target"):
        rows = [r for r in rows if table.label[r]]
    if column in ("path", "mask"):
        rows = [r for r in rows if table.label[r]][:1]
    table[column] = [value if i in set(rows) else old for i, old in enumerate(table[column])]
    table.to_parquet(box.work / MANIFEST, index=False)
    return table


def whole(box, table) -> Finding:
    "Whether a converted data set has every crop once, below the folder, with its content."
    found, out = [], box.work / "db"
    for file in out.glob("*.json"):
        for labels in json.loads(file.read_text()).values():
            for splits in labels.values():
                for videos in splits.values():
                    for record in videos.values():
                        found += record["frames"]
    here = [out / p for p in found]
    if any(not p.resolve().is_relative_to(out.resolve()) for p in here):
        return Finding("damage", "a frame outside of the folder")
    deep = [
        len(p.resolve().relative_to(out.resolve()).parts) for p in here
    ]  # dataset/subset/frames/video/file
    if set(deep) != {5}:
        return Finding(
            "silent", f"a frame {min(deep)} to {max(deep)} folders deep where 5 are meant"
        )
    if sorted(map(digest_of, here)) != sorted(digest_of(box.work / "data" / p) for p in table.path):
        return Finding("silent", f"{len(set(here))} different frames for {len(table)} faces")
    return Finding("right")


def after_convert(box, reply, table, kept: dict, names) -> Finding:
    "The verdict on a conversion: other files as they were, and all crops there or an error."
    now = snapshot(box.work)
    lost = [name for name, was in kept.items() if now.get(name) != was]
    places = ("db", "elsewhere", "m.parquet")  # --out, and what it may be a link to
    new = [name for name in now if name not in kept and name.split("/")[0] not in places]
    if lost:
        return Finding("damage", f"{lost[0]} was changed or deleted")
    if new:
        return Finding("damage", f"{new[0]} was written outside of --out")
    if reply.code == 0 and exceeded(reply) is None:
        return whole(box, table)
    return judge(reply, None, names)


@attack("names", weight=6, column=NAMED, value=EVIL + KIND, many=(True, False))
def a_name_in_a_manifest(box, column, value, many):
    "`convert` of a manifest with an evil name in it."
    box.take("data")
    rows = range(36) if many else [int(box.draw.integers(36))]
    table = rewritten(box, column, value, rows)
    kept = snapshot(box.work)
    reply = box.prle("convert", MANIFEST, "--out", "db")
    return after_convert(
        box,
        reply,
        table,
        kept,
        ["manifest.parquet", *(["data/"] if column in ("path", "mask") else [])],
    )


PLACES = (
    "folder of a dataset",
    "folder of a dataset, link",
    "out is a link",
    "out is a file",
    "data as out",
    "json of a dataset",
    "made before",
    "empty",
    "the manifest's dataset is called as a neighbour",
    "read only name",
)


@attack("names", weight=3, place=PLACES)
def a_place_that_is_taken(box, place):
    "`convert --out` where something lies already."
    box.take("data")
    out, table, words = (
        box.work / "db",
        pd.read_parquet(box.work / MANIFEST),
        ("convert", MANIFEST, "--out", "db"),
    )
    mine = out / "toy"
    if place == "folder of a dataset":
        mine.mkdir(parents=True)
        (mine / "canary.txt").write_text("mine")
    if place == "folder of a dataset, link":
        out.mkdir()
        become_link(mine, box.precious)
    if place == "out is a link":
        (box.work / "elsewhere").mkdir()
        (box.work / "elsewhere/mine.txt").write_text("mine")
        become_link(out, box.work / "elsewhere")
    if place == "out is a file":
        out.write_text("mine")
    if place == "data as out":
        words = ("convert", MANIFEST, "--out", ".")
        table = rewritten(box, "dataset", "data", range(36))
    if place == "json of a dataset":
        out.mkdir()
        (out / "toy.json").write_text('{"mine": 1}')
    if place == "made before":
        box.prle(*words)
    if place == "empty":
        mine.mkdir(parents=True)
    if place == "the manifest's dataset is called as a neighbour":
        (out / "precious").mkdir(parents=True)
        (out / "precious/canary.txt").write_text("mine")
        table = rewritten(box, "dataset", "precious", range(36))
    if place == "read only name":
        out.mkdir()
        (out / "toy").write_text("a file")
    kept = {
        k: v
        for k, v in snapshot(box.work).items()
        if not (place == "made before" and k.startswith("db"))
    }
    reply = box.prle(*words)
    found = after_convert(box, reply, table, kept, ["db", "toy", "data", "manifest.parquet"])
    if place in ("made before", "empty") and reply.code != 0:
        return Finding("unclear", f"refused for no reason: {reply.err[:150]}")
    return found


@attack(
    "names",
    weight=3,
    kind=("crop", "mask", "folder of crops", "landmarks", "json frame", "json mask folder", "root"),
)
def a_link_that_leads_outside(box, kind):
    "Links among the data: what they lead to is nobody's business, except where the root itself is a link."
    if kind in ("json frame", "json mask folder", "landmarks"):
        box.take("bench")
        home = box.work / "ff/F/manipulated_sequences/Deepfakes/c23"
        if kind == "json frame":
            become_link(home / "frames/071_054/003.png", box.precious / "box/photo.png")
        if kind == "json mask folder":
            become_link(home / "masks", box.precious / "box")
            (box.precious / "box/071_054").mkdir()
            (box.precious / "box/071_054/003.png").write_text(TOKEN)
            box.before = snapshot(box.precious)
        if kind == "landmarks":
            become_link(home / "landmarks/071_054/003.npy", box.precious / "thesis.txt")
        reply = box.prle("convert", "ff/FaceForensics++.json", "--root", "ff", "--out", "m.parquet")
        said = reply.out + reply.err
        if reply.code == 0:
            return Finding("silent", "the link was followed")
        if (bad := exceeded(reply)) is not None:
            return bad
        return (
            Finding("clear")
            if any(n in said for n in ("003", "masks")) and len(said) < 1500
            else Finding("unclear", said[:150])
        )
    box.take("data")
    table = pd.read_parquet(box.work / MANIFEST)
    if kind == "crop":
        become_link(box.work / "data" / table.path[1], box.precious / "box/photo.png")
    if kind == "mask":
        become_link(box.work / "data/mask.png", box.precious / "box/photo.png")
        table = rewritten(box, "mask", "mask.png", range(36))
    if kind == "folder of crops":
        become_link(box.work / "data/real", box.precious / "real")
    if kind == "root":
        shutil.move(box.work / "data", box.work / "elsewhere")
        become_link(box.work / "data", box.work / "elsewhere")
    kept = snapshot(box.work)
    reply = box.prle("convert", MANIFEST, "--out", "db")
    return after_convert(box, reply, table, kept, ["manifest.parquet", ".png"])


JSON_PATHS = (
    UP + "/photo.png",
    "../precious/003.png",
    "ABSOLUTE/photo.png",
    "F/../../../../../precious/real/003.png",
    "",
    ".",
    "a\x00b/003.png",
    "x" * 5000 + "/003.png",
    "\\\\server\\share\\003.png",
    "C:\\003.png",
    "F\n/003.png",
)


@attack("names", weight=2, value=JSON_PATHS, where=("frame", "video", "dataset", "label"))
def a_name_in_a_json(box, value, where):
    "`convert` of DeepfakeBench's JSON with an evil name in it."
    box.take("bench")
    for name in ("photo.png", "003.png"):
        (box.precious / "real" / name).write_text(TOKEN)
    box.before = snapshot(box.precious)
    file = box.work / "ff/FaceForensics++.json"
    tree, value = json.loads(file.read_text()), value.replace("ABSOLUTE", str(box.precious / "box"))
    videos = tree["FaceForensics++"]["FF-DF"]["train"]["c23"]
    if where == "frame":
        videos["071_054"]["frames"][0] = value
    if where == "video":
        videos[value] = videos.pop("071_054")
    if where == "dataset":
        tree = {value: tree["FaceForensics++"]}
    if where == "label":
        tree["FaceForensics++"][value] = tree["FaceForensics++"].pop("FF-DF")
    file.write_text(json.dumps(tree))
    reply = box.prle(
        "convert", str(file.relative_to(box.work)), "--root", "ff", "--out", "m.parquet"
    )
    if (bad := exceeded(reply)) is not None:
        return bad
    if len(reply.out + reply.err) > 2500:
        return Finding("unclear", f"{len(reply.out + reply.err)} characters")
    if (box.work / "m.parquet").exists():
        table = pd.read_parquet(box.work / "m.parquet")
        root = (box.work / "ff").resolve()
        outside = [
            p
            for p in (*table.path, *table["mask"])
            if p and not (root / p).resolve().is_relative_to(root)
        ]
        if outside:
            return Finding("damage", f"a row with the path {outside[0][:60]}")
    if reply.code == 0:
        return Finding("right") if where in ("video", "dataset") else Finding("silent", "accepted")
    return refusal(reply, [file.name], reply.out + reply.err)


TARGETS = ("somebody's folder", "a file", "a link to somebody's folder", "a link to nothing")


@attack("names", slow=True, target=TARGETS, command=("forge", "faces", "predict"))
def an_output_of_a_long_command(box, target, command):
    "The same for what takes seconds."
    return an_output_that_is_somebodys(box, target, command)


@attack("names", target=TARGETS, command=("convert json", "analyse"))
def an_output_that_is_somebodys(box, target, command):
    "Commands that are to write where others' things lie."
    box.take("bench", "photos", "store", "data", "study")
    there = box.work / "there"
    if target == "somebody's folder":
        shutil.copytree(box.precious, there)
    if target == "a file":
        there.write_text("mine")
    if target == "a link to somebody's folder":
        (box.work / "elsewhere").mkdir()
        (box.work / "elsewhere/mine.txt").write_text("mine")
        become_link(there, box.work / "elsewhere")
    if target == "a link to nothing":
        become_link(there, box.work / "nothing")
    for file in there.rglob("*") if there.is_dir() and not there.is_symlink() else ():
        if file.is_file():
            file.write_text("mine")
    kept = snapshot(there) if there.is_dir() else {}
    words = {
        "forge": ("forge", "--out", "there", "--people", "6", "--size", "64", "--steps", "1"),
        "faces": (
            "faces",
            "photos/one.pgm",
            "--out",
            "there",
            "--count",
            "1",
            "--workers",
            "0",
            "--size",
            "64",
        ),
        "convert json": ("convert", "ff/FaceForensics++.json", "--root", "ff", "--out", "there"),
        "predict": (
            "predict",
            "meso4-A-none-s0",
            "photos/one.pgm",
            "--data",
            "data",
            "--outputs",
            "out",
            "--csv",
            "there",
        ),
        "analyse": ("userstudy", "analyse", "study", "--figure", "there/figure.png"),
    }[command]
    if command == "forge" and target == "a link to nothing":
        return Finding("right", "not tried: it takes seconds")
    reply = box.prle(*words)
    now = snapshot(there) if there.is_dir() else {}
    if lost := [name for name, was in kept.items() if now.get(name) != was]:
        return Finding("damage", f"{lost[0]} was changed")
    return judge(reply, None, ["there"])


@attack(
    "names",
    slow=True,
    name=(".notes-20240101", ".old-deadbeef.txt", ".x-0123abcd", "canary.txt"),
    where=("crops", "crops/clips"),
)
def a_users_file_in_a_folder_of_ours(box, name, where):
    "A file that a person has put into an extraction, which is then gone on with."
    from .world import USES

    box.take(*USES["faces again"].parts)
    right = box.world.right("faces again")
    folder = box.work / where if (box.work / where).is_dir() else box.work / "crops"
    (folder / name).write_text("mine")
    reply = USES["faces again"].run(box)
    if not (folder / name).exists():
        return Finding("damage", f"{name} was deleted")
    return judge(reply, right, [name])


@attack(
    "names",
    value=("..", "a/b", UP, "x" * 300, "a\x00b", "", "-", "None", "[]"),
    option=("--subset", "--split", "--on", "name", "--match", "--kind"),
)
def a_name_on_the_command_line(box, value, option):
    "Names that are given by hand."
    box.take("store", "data")
    words = {
        "--subset": (
            "localize",
            "meso4-A-none-s0",
            "--split",
            "train",
            "--subset",
            value,
            "--data",
            "data",
        ),
        "--split": ("localize", "meso4-A-none-s0", "--split", value, "--data", "data"),
        "--on": ("evaluate", "meso4-A-none-s0", "--on", value, "--data", "data"),
        "name": ("evaluate", value),
        "--match": ("runs", "--match", value),
        "--kind": ("runs", "--kind", value),
    }[option]
    reply = box.prle(*words, "--outputs", "out")
    return judge(reply, None, [])
