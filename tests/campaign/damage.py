"Family `damage`: files of runs, data, checkpoints, studies, benchmarks that are not as they were written."

import os
from dataclasses import replace

from .arena import Box, Finding, attack, exceeded, judge, refusal
from .mutate import BYTES, CELLS, ODD, damage, misform, respell
from .world import USES

DETECTOR = "out/runs/detectors/meso4-A-none-s0-*/"
OLD = {  # use -> files that it rests on
    "evaluate": [
        DETECTOR + n for n in ("scores.parquet", "config.json", "provenance.json", "run.yaml")
    ],
    "localize": ["out/runs/maps/*-test-*/*", "data/manifest.parquet", DETECTOR + "config.json"],
    "localize anew": [DETECTOR + "model.safetensors", "data/*/*.png", DETECTOR + "run.yaml"],
    "runs": ["out/runs/*/*/*.json"],
    "check": ["out/runs/*/*/*", "out/runs/fusions/*/quantiles/*/*.png"],
    "train": [DETECTOR + "*"],
    "go on": [
        "out/runs/detectors/.*partial-*/checkpoint-*/epoch-3/*",
        "out/runs/detectors/.*partial-*/*.json",
        "out/runs/detectors/.*.lock/*",
    ],
    "analyse": ["study/key/*", "study/responses/*"],
    "read manifest": ["data/manifest.parquet"],
}
MADE_FROM = {  # what takes longer
    "predict": [
        DETECTOR + n for n in ("model.safetensors", "config.json", "provenance.json", "run.yaml")
    ],
    "train masked": ["out/runs/fusions/*/quantiles/*/*.png", "out/runs/fusions/*/*.json"],
    "fuse anew": ["out/runs/maps/*-train-*/*"],
}
SLOW = {
    "faces again": [
        "crops/*.json",
        "crops/*/*/*.json",
        "crops/*/*/*.parquet",
        "crops/*.parquet",
        "crops/*/*/*.png",
    ],
    "forge anew": ["mini/generators/*"],
    "forge again": [
        "mini/*.json",
        "mini/manifest.parquet",
        "mini/dropped.csv",
        "mini/targets/*/*.json",
        "mini/DF/*.png",
    ],
}


def victims(box: Box, pattern: str) -> list:
    "The files that a pattern means."
    return sorted(p for p in box.work.glob(pattern) if p.is_file())


def age(target):
    "Let ten minutes pass, after which a claim whose owner cannot be read is nobody's."
    if target.is_file():
        past = target.stat().st_mtime - 600
        os.utime(target, (past, past))


def strike(box: Box, files: dict, how: str, makes: bool = False) -> Finding:
    "Damage a file of a finished thing, use the thing, and compare."
    use = box.pick(list(files))
    right = box.world.right(use)
    if makes:
        right = replace(right, cpu=box.world.right(use.split()[0]).cpu)
    box.take(*USES[use].parts)
    target = box.pick(victims(box, box.pick(files[use])))
    was = target.read_bytes()
    damage(target, how, box.draw)
    age(target)
    name = target.relative_to(box.work)
    box.tell(f"{use}: {how} of {name}")
    same = target.is_file() and target.read_bytes() == was
    reply = USES[use].run(box)
    # a crop has no digest: it may be read as it is
    crop = target.suffix == ".png" and "quantiles" not in target.parts
    return compared(use, reply, None if crop else right, target, same)


def compared(use: str, reply, right, target, same: bool = False) -> Finding:
    "The verdict: `check` finds what has changed, a list says what it sees, all else is as it was or refused."
    if use == "check":
        return judge(reply, None, [target.name], must_refuse=not same)
    return judge(reply, None if use == "runs" else right, [target.name])


@attack("damage", weight=6, how=BYTES)
def bytes_of_a_file(box, how):
    return strike(box, OLD, how)


@attack("damage", weight=2, slow=True, how=BYTES)
def bytes_of_what_is_made_from(box, how):
    return strike(box, MADE_FROM, how)


@attack("damage", slow=True, how=BYTES)
def bytes_of_a_product(box, how):
    "What is damaged may be made again, which takes as long as it took."
    return strike(box, SLOW, how, makes=True)


NOTES = {
    "evaluate": [DETECTOR + "config.json", DETECTOR + "provenance.json"],
    "runs": ["out/runs/*/*/*.json"],
    "check": ["out/runs/*/*/*.json"],
    "train": [DETECTOR + "*.json"],
    "analyse": ["study/key/study.json", "study/responses/*.json"],
    "go on": [
        "out/runs/detectors/.*partial-*/checkpoint-*/epoch-3/*.json",
        "out/runs/detectors/.*partial-*/*.json",
        "out/runs/detectors/.*.lock/*",
    ],
}


@attack("damage", weight=3, how=list(ODD))
def a_word_in_a_json(box, how):
    "Something odd in a place of a JSON that was written here."
    use = box.pick(list(NOTES))
    right = box.world.right(use)
    box.take(*USES[use].parts)
    target = box.pick(victims(box, box.pick(NOTES[use])))
    if not target.read_text().strip().startswith("{"):
        return Finding("right", "no object")
    where = misform(target, how, box.draw)
    age(target)
    box.tell(f"{use}: {how} at {where[:60]} of {target.relative_to(box.work)}")
    return compared(use, USES[use].run(box), right, target)


@attack("damage", weight=2, how=list(ODD))
def a_word_in_a_foreign_json(box, how):
    "The same in DeepfakeBench's JSON, of which nobody knows what it said before."
    box.take("bench")
    target = box.work / "ff/FaceForensics++.json"
    where = misform(target, how, box.draw)
    box.tell(f"convert: {how} at {where[:60]} of {target.name}")
    reply = USES["convert json"].run(box)
    if reply.code == 0 and where != "all" and where.endswith(".label"):
        return Finding("right", "said twice")
    must = (
        how in ("null", "list", "minus", "nan", "huge", "true", "nested list", "deep", "zero")
        and ".val" not in where
        and ".test" not in where
    )
    return judge(reply, None, [target.name], must_refuse=must)


@attack("damage", weight=1, how=BYTES)
def bytes_of_a_foreign_file(box, how):
    "Files from elsewhere, which carry no digest: a wrong one may pass, an unreadable one is named."
    kind = box.pick(("yaml", "json", "landmarks", "crop"))
    if kind == "yaml":
        box.take("store")
        target = box.work / "a.yaml"
        target.write_bytes(next(box.work.glob(DETECTOR + "run.yaml")).read_bytes())
        from .world import config_text

        run = config_text()
    else:
        box.take("bench")
        pattern = dict(json="ff/*.json", landmarks="ff/**/*.npy", crop="ff/**/frames/*/*.png")[kind]
        target, run = box.pick(victims(box, pattern)), USES["convert json"].run
    damage(target, how, box.draw)
    box.tell(f"{kind}: {how} of {target.name}")
    reply = run(box)
    lost = (
        how in ("delete", "folder")
        and kind in ("yaml", "json", "crop")
        or how == "empty"
        and kind in ("json", "landmarks")
    )
    return judge(reply, None, [target.name], must_refuse=lost)


# ---- tables ----

NUMBERS, LISTS = ("label", "frame"), ("landmarks", "transform")
WORDS = (
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
)


def refused(column: str, how: str) -> bool:
    "Whether a value cannot stand in a column of a manifest."
    if column in NUMBERS:
        return how not in ("true",) and not (column == "frame" and how in ("large",))
    if column in LISTS:
        return how not in ("empty list", "nan") or column == "landmarks"
    return how in (
        "null",
        "nan",
        "number",
        "bytes",
        "list",
        "empty list",
        "words",
        "nulls",
        "true",
        "minus",
        "large",
    )


@attack("damage", weight=3, column=(*NUMBERS, *WORDS, *LISTS), how=list(CELLS))
def a_cell_of_a_manifest(box, column, how):
    "A manifest in which something stands that may not stand there."
    use = box.pick(("read manifest", "convert", "train", "localize"))
    box.take("data", *(["store"] if use == "localize" else []))
    target = box.work / "data/manifest.parquet"
    n = 36
    rows = box.pick(([int(box.draw.integers(n))], range(n)))
    respell(target, column, how, rows)
    box.tell(f"{use}: {how} in {len(rows)} rows of {column} in {target.name}")
    reply = USES[use].run(box)
    return judge(reply, None, [target.name, "WORK/data"], must_refuse=refused(column, how))


@attack(
    "damage", column=("path", "label", "p_fake", "subset", "identity", "video"), how=list(CELLS)
)
def a_cell_of_the_scores(box, column, how):
    "Scores that were written again by other hands."
    box.take("store")
    target = box.pick(victims(box, DETECTOR + "scores.parquet"))
    respell(target, column, how, [3])
    box.tell(f"evaluate: {how} in {column} of {target.name}")
    return judge(USES["evaluate"].run(box), box.world.right("evaluate"), [target.name])


CSV = ("", "x", "nan", "-1", "1e400", '"', "a\x00b", "../../x.png", "9" * 5000, "real", "=1+1")


@attack("damage", file=("pictures.csv", "plan.csv", "codes.txt"), value=CSV)
def a_cell_of_the_key(box, file, value):
    "A study's key with another word in it."
    box.take("study")
    target = box.work / "study/key" / file
    lines = target.read_text().splitlines()
    row = int(box.draw.integers(len(lines)))
    cells = lines[row].split(",")
    column = int(box.draw.integers(len(cells)))
    before, cells[column] = cells[column], value
    if before == value:
        return Finding("right", "the same word")
    lines[row] = ",".join(cells)
    target.write_text("\n".join(lines) + "\n")
    box.tell(f"analyse: {value[:20]!r} for {before!r} in row {row} of {file}")
    return judge(USES["analyse"].run(box), box.world.right("analyse"), [file])


LINES = (
    '{"a"',
    "[]",
    "null",
    "7",
    "\x00\x01",
    '{"study": []}',
    "[" * 60_000,
    '"' + "x" * 200_000 + '"',
    '{"index": 1e999}',
    '{"code": {"a": 1}}',
    "nonsense",
    '{"answers": 3}',
)


@attack("damage", weight=2, line=LINES, kind=(".jsonl", ".json", "alien"))
def a_line_of_the_responses(box, line, kind):
    "An alien line among the answers: reported by its file, the others counted."
    box.take("study")
    folder = box.work / "study/responses"
    if kind == "alien":
        target = folder / box.pick(("alien.json", "alien.jsonl"))
        target.write_text(line + "\n")
    else:
        target = next(p for p in folder.iterdir() if p.suffix == kind)
        lines = target.read_text().splitlines()
        if kind == ".jsonl":
            lines.insert(int(box.draw.integers(len(lines) + 1)), line)
        else:
            lines = [
                target.read_text()[:-1] + ', "more": ' + (line if len(line) < 9 else "[]") + "}"
            ]
        target.write_text("\n".join(lines) + "\n")
    box.tell(f"analyse: {line[:20]!r} in {target.suffix} ({kind})")
    reply = USES["analyse"].run(box)
    right = box.world.right("analyse")
    if (bad := exceeded(reply, 5 + 3 * right.cpu)) is not None:
        return bad
    if reply.code != 0:
        return (
            refusal(reply, [target.name])
            if kind == ".json"
            else Finding("silent", f"all answers are lost: {reply.err[:90]}")
        )
    if kind == ".json":
        return Finding("right")
    if any(line not in reply.out for line in right.out.splitlines()):
        return Finding("silent", "other answers are lost")
    return (
        Finding("clear")
        if target.name in reply.out + reply.err
        else Finding("silent", "the line is not reported")
    )
