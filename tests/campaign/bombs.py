"Family `bombs`: small files that ask for much time, much memory, or a deep stack."

import json
import struct
import zlib

import numpy as np
import pandas as pd

from .arena import Finding, attack, judge
from .mutate import ODD, become_link
from .world import RUN, USES, config_text

BASE = "detector: xception\nsubset: DF\npreset: smoke\n"


def laughs(levels=9, width=9):
    "YAML whose aliases expand to width**levels words."
    rows = [f"a0: &a0 [{', '.join(['lol'] * width)}]"]
    return (
        "\n".join(
            rows + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * width)}]" for k in range(1, levels)]
        )
        + "\n"
    )


YAMLS = {
    "laughs as names": laughs(),
    "laughs as zoo": BASE + laughs().replace("a8: &a8", "zoo: &a8"),
    "laughs as options": BASE
    + "options:\n"
    + "".join(f"  {line}\n" for line in laughs().splitlines()),
    "laughs as preset": BASE.replace("preset: smoke\n", "")
    + laughs().replace("a8: &a8", "preset: &a8"),
    "laughs as recipe": BASE + laughs().replace("a8: &a8", "recipe: &a8"),
    "contains itself": BASE + "zoo: &a [*a]\n",
    "contains itself, options": BASE + "options: &a {b: *a}\n",
    "all of it": "&a [*a]\n",
    "merges": "\n".join(
        ["a0: &a0 {x: 1}"]
        + [f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}" for k in range(1, 9)]
    )
    + "\n"
    + BASE,
    "deep list": BASE + "zoo: " + "[" * 5000 + "]" * 5000 + "\n",
    "deep object": BASE + "options: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "deep list unclosed": "[" * 100_000,
    "deep blocks": "\n".join(" " * k + "a:" for k in range(1500)),
    "dashes": "- " * 20_000 + "x\n",
    "python object": "!!python/object/apply:os.system [echo]\n",
    "long word": BASE + "fill: " + "x" * 3_000_000 + "\n",
    "long detector": "detector: " + "y" * 500_000 + "\nsubset: DF\n",
    "long key": BASE + "z" * 500_000 + ": 1\n",
    "long subset": "detector: xception\nsubset: " + "s" * 200_000 + "\n",
    "long integer": BASE + "width: " + "9" * 60_000 + "\n",
    "sexagesimal": BASE + "width: " + ":".join(["59"] * 20_000) + "\n",
    "huge number": BASE + "width: 1e999\n",
    "not a number": BASE + "width: .nan\n",
    "date": BASE + "subset: 2026-01-01\n",
    "null": "",
    "a word": "x\n",
    "many keys": "".join(f"k{i}: 1\n" for i in range(30_000)),
    "nothing": "null\n",
    "width null": BASE + "width: null\n",
    "recipe list": BASE + "recipe: [1]\n",
    "recipe null": BASE + "recipe: null\n",
    "epochs word": BASE + "recipe: {epochs: many}\n",
    "epochs huge": BASE + "recipe: {epochs: 1" + "0" * 30 + "}\n",
    "batch null": BASE + "recipe: {batch_size: null}\n",
    "lr list": BASE + "recipe: {lr: [1]}\n",
    "alpha nan": BASE + "alpha: [.nan, 1]\n",
    "alpha words": BASE + "alpha: [a, b]\n",
    "zoo of lists": BASE + "zoo: [[a]]\n",
    "zoo null": BASE + "zoo: null\n",
    "options with an odd key": BASE + "options: {1: 2}\n",
    "fusion word": BASE + "fusion: x\n",
    "fusion list": BASE + "fusion: {method: [a]}\n",
    "key list": "? [a]\n: b\n",
    "two documents": BASE + "---\n" + BASE,
    "binary": BASE + "fill: !!binary aGk=\n",
    "set": BASE + "zoo: !!set {a, b}\n",
    "seed word": BASE + "recipe: {seed: x}\n",
    "seed huge": BASE + "recipe: {seed: " + "9" * 40 + "}\n",
    "data number": BASE + "data: 7\n",
    "data NUL": BASE + 'data: "a\\0b"\n',
    "data list": BASE + "data: [a]\n",
    "unhashable": BASE + "{a: 1}: 2\n",
    "not UTF-8": None,
    "UTF-16": None,
    "duplicate keys": BASE + BASE,
}
JSON_TOO = {
    "deep JSON": '{"detector": ' * 3000 + "1" + "}" * 3000,
    "deep JSON list": '{"zoo": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "JSON long integer": '{"width": ' + "9" * 10_000 + "}",
    "JSON duplicate": '{"detector": "xception", "detector": "vgg16", "subset": "DF"}',
}
FINE = ("duplicate keys", "JSON duplicate", "zoo null", "null")


@attack("bombs", weight=5, what=[*YAMLS, *JSON_TOO], how=("read", "train", "read"))
def a_configuration(box, what, how):
    "A configuration to train by."
    content = {**YAMLS, **JSON_TOO}[what]
    name = "a.json" if what in JSON_TOO else "a.yaml"
    data = (
        content.encode()
        if content is not None
        else b"detector: \xff\xfe\n"
        if what == "not UTF-8"
        else BASE.encode("utf-16")[:-1]
    )
    (box.work / name).write_bytes(data)
    if what == "seed huge" or what == "epochs huge" or what in FINE:
        how = "read"
    reply = config_text(name)(box) if how == "read" else box.prle("train", name, "--outputs", "out")
    fine = what in (*FINE, "seed huge", "epochs huge", "data NUL") or (what, how) == (
        "long subset",
        "read",
    )
    return judge(reply, None, [name], must_refuse=not fine)


@attack(
    "bombs",
    value=(
        "zoo=[" + "[" * 3000,
        "options=" + "{a: " * 3000,
        "zoo=&a [*a]",
        "width=" + "9" * 50_000,
        "fill=" + "x" * 100_000,
        "alpha=.nan",
        "lr=null",
        "a" * 100_000 + "=1",
        "zoo=&a [&b [*a, *b]]",
        "options=" + "{a: &x [" + "1," * 5000 + "], b: [" + "*x," * 5000 + "]}",
    ),
)
def a_setting(box, value):
    "The same on the command line."
    box.take("data")
    reply = box.prle(
        "train",
        "meso4",
        "A",
        "--preset",
        "smoke",
        "--data",
        "data",
        "--outputs",
        "out",
        "--set",
        value,
    )
    return judge(reply, None, [], must_refuse=True)


# ---- pictures ----


def png_bomb(width: int, height: int, depth: int = 8, colour: int = 2, rows: int = 0) -> bytes:
    "A PNG that promises a size; `rows` of them are there."

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = {0: 1, 2: 3}[colour] * depth // 8
    body = zlib.compress(bytes(rows * (1 + width * size)), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def bmp_bomb(width, height):
    return (
        b"BM"
        + struct.pack("<IHHI", 200, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        + bytes(146)
    )


COMPRESSED = "20,000 px, compressed"
PICTURES = {
    "30,000 px": png_bomb(30_000, 30_000),
    "2^31 px": png_bomb(2**31 - 1, 2**31 - 1),
    "no pixel": png_bomb(0, 0),
    "a line": png_bomb(2**30, 1),
    COMPRESSED: None,
    "pgm": b"P5\n30000 30000\n255\nxxxx",
    "pgm 16 bit": b"P5 2147483647 2147483647 65535\n",
    "bmp": bmp_bomb(30_000, 30_000),
    "bmp, negative": bmp_bomb(-5, -7),
    "words": b"no picture",
    "empty": b"",
    "a head": b"\x89PNG\r\n\x1a\n",
    "ppm of lies": b"P6\n30000 30000\n255\n" + bytes(100),
}
BIG = {}


def picture(what: str) -> bytes:
    "The bytes of a picture; those that are long in the making are made once."
    if what == COMPRESSED:
        return BIG.setdefault(what, png_bomb(20_000, 20_000, rows=20_000))
    return PICTURES[what]


QUICK = ("crop", "mask", "check")
PLACES = (*QUICK, "predict", "predict frames", "quantiles", "faces")


@attack("bombs", slow=True, where=PLACES)
def a_picture_of_many_pixels(box, where):
    "400 million black pixels in a small file."
    return a_picture(box, COMPRESSED, where)


@attack(
    "bombs",
    weight=2,
    slow=True,
    what=[what for what in PICTURES if what != COMPRESSED],
    where=PLACES,
)
def a_picture_to_look_at(box, what, where):
    "The same wherever pictures are read."
    return a_picture(box, what, where)


@attack("bombs", weight=2, what=[what for what in PICTURES if what != COMPRESSED], where=QUICK)
def a_picture(box, what, where):
    "A picture that promises what nobody can hold."
    data = picture(what)
    if where in ("predict", "predict frames"):
        box.take("store", "data", "photos")
        target = box.work / "photos" / ("clip/1.pgm" if where == "predict frames" else "bomb.png")
        target.write_bytes(data)
        given = (
            ("photos/clip",) if where == "predict frames" else ("photos/one.pgm", "photos/bomb.png")
        )
        reply = box.prle(
            "predict", RUN, *given, "--data", "data", "--outputs", "out", "--csv", "p.csv"
        )
        if (
            where == "predict"
            and reply.code == 1
            and not pd.read_csv(box.work / "p.csv").p_fake.notna().any()
        ):
            return Finding("silent", "the good picture is lost too")
        return judge(
            reply, None, [target.name, target.stem, "clip"], must_refuse=where == "predict"
        )
    if where in ("crop", "quantiles"):
        use = "localize anew" if where == "crop" else "train masked"
        box.take(*USES[use].parts)
        pattern = "data/*/5_0.png" if where == "crop" else "out/runs/fusions/*/quantiles/*/*.png"
        target = box.pick(sorted(box.work.glob(pattern)))
        target.write_bytes(data)
        return judge(USES[use].run(box), box.world.right(use), [target.name, "WORK/data"])
    if where == "mask":
        box.take("data")
        table = pd.read_parquet(box.work / "data/manifest.parquet")
        table["mask"] = ["bomb.png" if label else "" for label in table.label]
        table.to_parquet(box.work / "data/manifest.parquet", index=False)
        (box.work / "data/bomb.png").write_bytes(data)
        reply = box.prle(
            "train", "ffd", "A", "--preset", "smoke", "--data", "data", "--outputs", "out"
        )
        return judge(reply, None, ["bomb.png"], must_refuse=True)
    (box.work / "photos/real/a").mkdir(parents=True)
    (box.work / "photos/fake").mkdir(parents=True)
    (box.work / "photos/real/a/1.png").write_bytes(data)
    words = (
        ("check", "folder", "photos")
        if where == "check"
        else (
            "faces",
            "photos/real/a",
            "--out",
            "crops",
            "--count",
            "1",
            "--workers",
            "0",
            "--size",
            "64",
        )
    )
    reply = box.prle(*words)
    said = where == "faces" and reply.code == 1 and "a" in reply.err and "dropped" in reply.err
    return judge(reply, None, ["1.png", "a"], must_refuse=not said)


# ---- videos ----


def lying_movie(box, what: str):
    "A video whose header promises another number of frames, or another size."
    if "movie" not in BIG:
        import cv2

        path = box.path / "small.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
        for k in range(5):
            writer.write(np.full((48, 64, 3), 40 * k, np.uint8))
        writer.release()
        BIG["movie"] = path.read_bytes()
    data = bytearray(BIG["movie"])
    main, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
    frames = {
        "2^31 frames": 2**31 - 1,
        "2^32 frames": 2**32 - 1,
        "no frames": 0,
        "a million": 10**6,
    }.get(what)
    if frames is not None:
        struct.pack_into("<I", data, main + 16, frames)
        struct.pack_into("<I", data, stream + 32, frames)
    if what == "65,000 px":
        struct.pack_into("<II", data, main + 32, 65_000, 65_000)
        at = data.index(b"strf") + 8
        struct.pack_into("<ii", data, at + 4, 65_000, 65_000)
    if what == "no rate":
        struct.pack_into("<II", data, stream + 20, 0, 0)
    if what == "half":
        data = data[: len(data) // 2]
    if what == "head":
        data = data[:300]
    if what == "no index" and b"idx1" in data:
        data = data[: data.index(b"idx1")]
    return bytes(data)


MOVIES = (
    "2^31 frames",
    "2^32 frames",
    "no frames",
    "a million",
    "65,000 px",
    "no rate",
    "half",
    "head",
    "no index",
)


@attack("bombs", weight=2, slow=True, what=MOVIES, where=("predict", "faces", "predict --count"))
def a_video_to_look_at(box, what, where):
    "The same where its frames are read."
    return a_video(box, what, where)


@attack("bombs", what=MOVIES, where=("check",))
def a_video(box, what, where):
    "A video that promises what is not there."
    for kind in ("real", "fake"):
        (box.work / "clips" / kind).mkdir(parents=True)
    target = box.work / "clips/real/bomb.avi"
    target.write_bytes(lying_movie(box, what))
    if where.startswith("predict"):
        box.take("store", "data")
    many = ("--count", "1000000000") if where == "predict --count" else ()
    words = {
        "faces": (
            "faces",
            "clips",
            "--out",
            "crops",
            "--workers",
            "0",
            "--size",
            "64",
            "--every",
            "1",
        ),
        "check": ("check", "folder", "clips"),
    }
    reply = box.prle(
        *words.get(
            where,
            (
                "predict",
                RUN,
                str(target.relative_to(box.work)),
                "--data",
                "data",
                "--outputs",
                "out",
                *many,
            ),
        )
    )
    return judge(reply, None, ["bomb"])


# ---- arrays, tensors, tables ----


def npy(shape: str, descr: str = "<f4", data: bytes = b"") -> bytes:
    "A .npy file with a header of one's own."
    head = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


ARRAYS = {
    "7 TiB": npy("(2147483647, 30, 30)"),
    "2^62": npy(f"({2**62},)"),
    "2^70": npy(f"({2**70},)"),
    "negative": npy("(-1, 8, 8)"),
    "words": npy("('a',)"),
    "objects": npy("(3,)", "|O", b"cos\nsystem\n"),
    "no rows": npy("(0, 8, 8)"),
    "zero by many": npy(f"({2**40}, 0, 8)"),
    "strings": npy("(12, 8, 8)", "<U9", bytes(36 * 768)),
    "nan": npy("(12, 8, 8)", "<f4", struct.pack("<f", float("nan")) * 768),
    "header of code": b"\x93NUMPY\x01\x00"
    + struct.pack("<H", 40)
    + b"__import__('os').system('echo hi')      \n",
    "deep header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 60_000) + b"(" * 60_000,
    "long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{",
    "pickle": b"\x80\x04\x95cos\nsystem\n.",
    "zip": b"PK\x03\x04" + bytes(60),
    "flat": npy("(768,)", "<f4", bytes(3072)),
    "wrong dtype": npy("(12, 8, 8)", "<i8", bytes(8 * 768)),
    "complex": npy("(12, 8, 8)", "<c8", bytes(8 * 768)),
    "empty": b"",
}


@attack("bombs", weight=3, what=list(ARRAYS), where=("maps", "zoo maps", "landmarks", "check"))
def an_array(box, what, where):
    "Maps and landmark files with headers of a stranger."
    if where == "landmarks":
        box.take("bench")
        target = next(box.work.glob("ff/**/landmarks/071_054/003.npy"))
        target.write_bytes(ARRAYS[what])
        return judge(USES["convert json"].run(box), None, [target.name], must_refuse=True)
    use = {"maps": "localize", "zoo maps": "fuse anew", "check": "check"}[where]
    box.take(*USES[use].parts)
    target = next(
        box.work.glob(f"out/runs/maps/*-{'train' if where == 'zoo maps' else 'test'}-*/maps.npy")
    )
    target.write_bytes(ARRAYS[what])
    if use == "check":
        return judge(USES[use].run(box), None, [target.name], must_refuse=True)
    return judge(USES[use].run(box), box.world.right(use), [target.name])


def tensors(head: bytes, promised: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(head) if promised is None else promised) + head + body


WEIGHTS = {
    "header of 2^40": tensors(b"{", 2**40),
    "header of 2^63": tensors(b"{", 2**63),
    "deep header": tensors(b"[" * 100_000),
    "shape of 2^62": tensors(
        b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}', None, bytes(4)
    ),
    "offsets": tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000000]}}'),
    "no tensor": tensors(b"{}"),
    "null": tensors(b"null"),
    "empty": b"",
    "words": b"no weights at all",
    "pickle": b"\x80\x02cos\nsystem\nq\x00.",
    "other": tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', None, bytes(4)),
    "zip": b"PK\x03\x04" + bytes(60),
}


@attack("bombs", slow=True, what=list(WEIGHTS), where=("predict",))
def weights_to_predict_with(box, what, where):
    "The same in `predict`."
    return weights(box, what, where)


@attack("bombs", weight=2, what=list(WEIGHTS), where=("localize anew", "go on", "check"))
def weights(box, what, where):
    "Weights with headers of a stranger."
    box.take(*USES[where].parts)
    pattern = (
        "out/runs/detectors/.*/checkpoint-*/epoch-3/model.safetensors"
        if where == "go on"
        else f"out/runs/detectors/{RUN}-*/model.safetensors"
    )
    target = next(box.work.glob(pattern))
    target.write_bytes(WEIGHTS[what])
    if where == "check":
        return judge(USES[where].run(box), None, [target.name], must_refuse=True)
    return judge(USES[where].run(box), box.world.right(where), [target.name])


@attack(
    "bombs",
    what=(
        "10 million rows",
        "one column of 10 million",
        "a word of 20 MB",
        "20,000 columns",
        "landmarks of a million",
    ),
    where=("read manifest", "evaluate", "train"),
    slow=True,
)
def a_table(box, what, where):
    "Parquet files of some kB that become much."
    import pyarrow as pa
    import pyarrow.parquet as pq

    box.take("data", "store")
    target = (
        box.work / "data/manifest.parquet"
        if where != "evaluate"
        else next(box.work.glob(f"out/runs/detectors/{RUN}-*/scores.parquet"))
    )
    table = pq.read_table(target)
    if "million" in what and "rows" in what or "column of" in what:
        some = table.slice(0, 1).select(["path"]) if "column" in what else table.slice(0, 1)
        block = pa.concat_tables([some] * 100_000).combine_chunks()
        with pq.ParquetWriter(target, block.schema, compression="zstd") as writer:
            for _ in range(100):
                writer.write_table(block)
    if what == "a word of 20 MB":
        pq.write_table(
            table.set_column(0, "path", pa.array(["x" * 20_000_000] * len(table))), target
        )
    if what == "20,000 columns":
        pq.write_table(pa.table({f"c{k}": [1] for k in range(20_000)}), target)
    if what == "landmarks of a million" and "landmarks" in table.column_names:
        many = pa.array([[0.0] * 1_000_000] * len(table), pa.list_(pa.float32()))
        pq.write_table(
            table.set_column(table.column_names.index("landmarks"), "landmarks", many), target
        )
    right = box.world.right(where) if where != "read manifest" else None
    return judge(USES[where].run(box), right, [target.name, "WORK/data"])


LABELS = ("train.json", "labels.csv", "metadata.json")


@attack("bombs", slow=True, what=list(ODD), file=("extraction.json", "forge.json"))
def settings_beside_the_data(box, what, file):
    "How the faces of a data set were cropped."
    return a_list_of_a_data_set(box, what, file)


@attack(
    "bombs",
    weight=2,
    what=list(ODD),
    file=("ff++ train.json", "dfdc labels.csv", "dfdc metadata.json", "json"),
)
def a_list_of_a_data_set(box, what, file):
    "Lists that come with data sets, and settings that lie beside data."
    text = ODD[what]
    for kind in ("test", "dfdc_train_part_0"):
        (box.work / "set" / kind).mkdir(parents=True)
    if file == "json":
        box.take("bench")
        (box.work / "ff/FaceForensics++.json").write_text(text)
        return judge(
            box.prle("convert", "ff/FaceForensics++.json", "--root", "ff", "--out", "m.parquet"),
            None,
            ["FaceForensics++.json", "m.parquet"],
            must_refuse=True,
        )
    if file in ("extraction.json", "forge.json"):
        box.take("store", "data", "photos")
        (box.work / "data" / file).write_text(text)
        reply = USES["predict"].run(box)
        return judge(reply, None, [file], must_refuse=True)
    place = {
        "ff++ train.json": "set/train.json",
        "dfdc labels.csv": "set/test/labels.csv",
        "dfdc metadata.json": "set/dfdc_train_part_0/metadata.json",
    }[file]
    (box.work / place).write_text(text)
    words = ("check", file.split()[0], "set", *(("--part", "train") if "metadata" in file else ()))
    return judge(box.prle(*words), None, [place.split("/")[-1]], must_refuse=True)


@attack(
    "bombs",
    what=("pipe", "device", "link to itself", "folder", "socket"),
    where=("train", "read manifest", "convert json"),
)
def a_thing_that_is_no_file(box, what, where):
    "A pipe, a device or a link to itself where a file belongs: nobody waits for it."
    import os
    import socket

    box.take("store", "data", "photos", "bench")
    name = {
        "train": "a.yaml",
        "read manifest": "data/manifest.parquet",
        "predict": "photos/one.pgm",
        "convert json": "ff/FaceForensics++.json",
    }[where]
    target = box.work / name
    target.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(target)
    if what == "device":
        become_link(target, "/dev/zero")
    if what == "link to itself":
        become_link(target, target)
    if what == "folder":
        target.mkdir()
    if what == "socket":
        here = os.getcwd()
        os.chdir(target.parent)
        socket.socket(socket.AF_UNIX).bind(target.name)
        os.chdir(here)
    run = (
        (lambda: box.prle("train", "a.yaml", "--outputs", "out"))
        if where == "train"
        else (lambda: box.prle(*USES[where].words))
        if USES[where].words
        else (lambda: box.call(_read))
    )
    return judge(run(), None, [target.name], must_refuse=True)


def _read():
    from prle.data.manifest import read_manifest

    print(len(read_manifest("data/manifest.parquet")))


@attack(
    "bombs",
    what=("deep", "long integer", "nan", "duplicate", "long word", "null"),
    where=("failed", "lock"),
)
def a_note_beside_a_run(box, what, where):
    "What workers leave beside runs, written by another hand."
    box.take("prunable")
    run = next((box.work / "out/runs/detectors").glob("lost-*"))
    text = {"duplicate": '{"pid": 1, "pid": 2}'}.get(what) or ODD[what]
    if where == "failed":
        (run.parent / f".{run.name}.failed.json").write_text(text)
    else:
        (run.parent / f".{run.name}.lock").mkdir()
        (run.parent / f".{run.name}.lock/1").write_text(text)
    __import__("shutil").rmtree(run)
    reply = box.prle("runs", "--outputs", "out")
    return judge(reply, None, [run.name])


__all__ = ["json"]
