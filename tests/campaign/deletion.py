"Family `prune`: `prle runs prune --delete` among things that are no runs, links, and notes that say nothing."

import json
import re
import shutil

from .arena import Finding, attack, exceeded, refusal, snapshot
from .mutate import BYTES, damage

WORDS = ("runs", "prune", "--delete", "--outputs", "out")
KEY = "0123456789abcdef"


def runs_of(box) -> dict:
    "The three runs of the store by their labels."
    return {
        p.name.rsplit("-", 1)[0]: p
        for p in (box.work / "out/runs").glob("*/*")
        if not p.name.startswith(".")
    }


def claims_deletion(text: str) -> bool:
    "Whether a report says that something was deleted."
    return re.search(r"\bDeleted(?! 0 runs)", text) is not None


def verdict(box, stay, alien=(), may_refuse=True, names=()) -> Finding:
    "Prune: what has to stay is there, the lost run is gone with all that lies beside it, the talk is true."
    lost = runs_of(box).get("lost")
    contents = {
        p: sorted(q.name for q in p.rglob("*")) if p.is_dir() else p.read_text()
        for p in (*stay, *alien)
        if p.exists()
    }
    reply = box.prle(*WORDS)
    for p, was in contents.items():
        now = (
            (sorted(q.name for q in p.rglob("*")) if p.is_dir() else p.read_text())
            if p.exists()
            else None
        )
        if now != was:
            return Finding("damage", f"{p.relative_to(box.work)} was deleted")
    if (bad := exceeded(reply)) is not None:
        return bad
    if reply.code != 0:
        found = refusal(reply, names)
        return (
            found
            if may_refuse or found.kind != "clear"
            else Finding("unclear", f"refused for no reason: {found.detail}")
        )
    if lost is not None:
        if (
            lost.exists()
            and claims_deletion(reply.out)
            and f"detectors/{lost.name[:11]}" in reply.out.split("Left alone")[0]
        ):
            return Finding("silent", "says that it deleted what is there")
        left = [
            p.name
            for p in lost.parent.iterdir()
            if lost.name in p.name or p.name.endswith(".deleted")
        ]
        left = [
            n
            for n in left
            if lost.parent / n not in alien and n not in reply.out.partition("Left alone")[2]
        ]
        if not lost.exists() and left:
            return Finding("silent", f"{left[0]} is left behind")
        if lost.exists() and not may_refuse:
            return Finding("silent", "what nothing needs is still there")
    elif claims_deletion(reply.out):
        return Finding("silent", "says that it deleted what was not there")
    return Finding("right")


def kept(box) -> list:
    "The runs that are needed."
    return [p for label, p in runs_of(box).items() if label != "lost"]


@attack("prune")
def nothing_special(box):
    "The control: one run goes, two stay."
    box.take("prunable")
    found = verdict(box, kept(box), may_refuse=False)
    return (
        Finding("silent", "the lost run was not deleted")
        if "lost" in runs_of(box) and found.kind == "right"
        else found
    )


ALIEN = (
    "no configuration",
    "no provenance",
    "empty",
    "a file",
    "alien configuration",
    "alien key",
    "other kind",
    "half of a name",
)


@attack("prune", weight=3, what=ALIEN, kind=("detectors", "mine"))
def a_folder_called_as_a_run(box, what, kind):
    "Somebody's folder with a run's name."
    box.take("prunable")
    folder = (
        box.work
        / "out/runs"
        / kind
        / (f"notes-{KEY}" if what != "half of a name" else "notes-0123")
    )
    source = runs_of(box)["lost"]
    folder.parent.mkdir(exist_ok=True)
    if what == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine") if what != "empty" else None
        if what in ("no provenance", "alien key", "other kind"):
            shutil.copy(source / "config.json", folder)
        if what in ("no configuration", "alien key", "other kind"):
            shutil.copy(source / "provenance.json", folder)
        if what == "alien configuration":
            (folder / "config.json").write_text('{"theme": "dark"}')
            (folder / "provenance.json").write_text("{}")
    return verdict(box, kept(box), [folder], names=[folder.name])


BESIDE = ("lock folder", "lock file", "partial", "deleted", "failed", "corrupt", "aside")


@attack("prune", weight=3, what=BESIDE, link=(True, False), of=("lost", "nobody", "made"))
def something_beside_a_run(box, what, link, of):
    "Somebody's files, or links to them, under the names of what lies beside a run."
    box.take("prunable")
    name = runs_of(box)[of].name if of != "nobody" else f"notes-{KEY}"
    kind = box.work / "out/runs" / ("detectors" if of != "source" else "maps")
    place = (
        kind
        / {
            "lock folder": f".{name}.lock",
            "lock file": f".{name}.lock",
            "partial": f".{name}.partial-7",
            "deleted": ".thesis.deleted",
            "failed": f".{name}.failed.json",
            "corrupt": f"{name}.corrupt-1",
            "aside": f".{name}.partial-mine",
        }[what]
    )
    if link:
        place.symlink_to(box.precious / "box" if what != "failed" else box.precious / "thesis.txt")
    elif what in ("lock file", "failed"):
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("mine")
    ours = (
        link or what == "failed" and of == "lost"
    )  # which is what the note of a failure is called
    return verdict(box, kept(box), [] if ours else [place], names=[place.name, name])


@attack(
    "prune",
    weight=2,
    what=("kind", "runs", "run", "kind elsewhere", "needed run", "files of a run"),
)
def a_link_in_the_store(box, what):
    "Kinds and runs that are links to another store."
    box.take("prunable")
    out, other = box.work / "out", box.precious / "store"
    shutil.copytree(out / "runs", other)
    box.before = snapshot(box.precious)
    runs = runs_of(box)
    place, target = dict(
        [
            ("kind", (out / "runs/detectors", other / "detectors")),
            ("runs", (out / "runs", other)),
            ("run", (runs["lost"], other / "detectors" / runs["lost"].name)),
            ("kind elsewhere", (out / "runs/mine", other / "detectors")),
            ("needed run", (runs["made"], other / "detectors" / runs["made"].name)),
            (
                "files of a run",
                (runs["lost"] / "x.txt", other / "detectors" / runs["lost"].name / "x.txt"),
            ),
        ]
    )[what]
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    elif place.exists():
        place.unlink()
    place.symlink_to(target)
    reply = box.prle(*WORDS)
    if (bad := exceeded(reply)) is not None:
        return bad
    if (
        reply.code == 0
        and what == "kind"
        and "detectors/lost" in reply.out
        and claims_deletion(reply.out)
    ):
        return Finding("silent", "says that it deleted what is there")
    return Finding("right") if reply.code == 0 else refusal(reply, [place.name, "runs"])


NOTES = {
    "list": "[]",
    "empty object": "{}",
    "null": "null",
    "number": "7",
    "empty": "",
    "half": '{"runs": ["detect',
    "runs null": '{"runs": null}',
    "runs word": '{"runs": "WORD"}',
    "runs of numbers": '{"runs": [1, 2]}',
    "runs an object": '{"runs": {"a": 1}}',
    "runs nested": '{"runs": [["WORD"]]}',
    "deep": "[" * 100_000,
    "binary": "\x00\x01\x02",
    "backslash": '{"runs": ["BACK"]}',
    "spaces": '{"runs": [" WORD "]}',
    "absolute": '{"runs": ["/x/WORD"]}',
    "upper case": '{"runs": ["UPPER"]}',
    "half a name": '{"runs": ["HALF"]}',
    "runs missing": '{"when": "2026"}',
    "other spelling": '{"Runs": ["WORD"]}',
    "long integer": '{"runs": ' + "9" * 6000 + "}",
    "nan": '{"runs": [NaN]}',
}


@attack(
    "prune",
    weight=4,
    what=list(NOTES),
    where=("plans/note.provenance.json", "smoke/table1.provenance.json"),
)
def a_note_that_says_nothing(box, what, where):
    "A damaged or alien note in place of, or beside, the one that says what is needed."
    box.take("prunable")
    made = "detectors/" + runs_of(box)["made"].name
    text = (
        NOTES[what]
        .replace("WORD", made)
        .replace("BACK", made.replace("/", "\\\\"))
        .replace("UPPER", made.upper())
        .replace("HALF", made[:-4])
    )
    note = box.work / "out" / where
    note.parent.mkdir(exist_ok=True)
    note.write_text(text)
    return verdict(box, kept(box), names=[note.name], may_refuse=True)


@attack("prune", weight=2, how=[h for h in BYTES if h != "append"])
def bytes_of_a_note(box, how):
    "The note that says what is needed, damaged."
    box.take("prunable")
    note = box.work / "out/plans/note.provenance.json"
    before = note.read_bytes()
    damage(note, how, box.draw)
    if how == "delete":
        return Finding("right", "no note at all")
    names = [note.name]
    if note.is_file() and note.read_bytes() == before:
        return Finding("right")
    try:
        mentioned = json.loads(note.read_text())["runs"] if note.is_file() else None
    except (ValueError, KeyError, TypeError):
        mentioned = None
    box.tell(f"{how}: {'unreadable' if mentioned is None else 'readable'}")
    return verdict(box, kept(box), names=names)


@attack(
    "prune",
    weight=2,
    file=("config.json", "provenance.json"),
    label=("made", "source", "lost"),
    how=[h for h in BYTES if h != "append"],
)
def bytes_of_a_run(box, file, label, how):
    "A run's own papers, damaged: what is needed by it must not go because it cannot be read."
    box.take("prunable")
    damage(runs_of(box)[label] / file, how, box.draw)
    stay = [p for p in kept(box)]
    return verdict(box, stay, names=[file, runs_of(box)[label].name])


@attack("prune", what=("link to itself", "folder called as a note", "link to a secret", "pipe"))
def a_note_that_is_none(box, what):
    "What bears a note's name without being one."
    import os

    box.take("prunable")
    note = box.work / "out/plans/x.provenance.json"
    if what == "link to itself":
        note.symlink_to(note)
    if what == "folder called as a note":
        note.mkdir()
    if what == "link to a secret":
        note.symlink_to(box.precious / "thesis.txt")
    if what == "pipe":
        os.mkfifo(note)
    return verdict(box, kept(box), names=[note.name])
