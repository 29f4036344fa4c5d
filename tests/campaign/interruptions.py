"Families `kills` and `disks`: SIGKILL at a random moment, a full disk; then the same command again."

import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

from .arena import (
    LIBC,
    Finding,
    attack,
    changes,
    end,
    exceeded,
    judge,
    refusal,
    snapshot,
    start,
    wait,
)
from .world import USES

COMMANDS = {
    "train": (),
    "train masked": (),
    "localize anew": (),
    "convert": (),
    "convert json": (),
    "go on": (),
}
LONG = {"faces": ("movie",), "forge": ()}


def prepare(box, use: str):
    "What a command needs, and nothing that it makes."
    parts = USES[use].parts
    box.take(*[p for p in parts if not (use == "train" and p == "store")])
    if USES[use]._before:
        USES[use]._before(box)


def again(box, use: str, right) -> Finding:
    "The same command once more: the same result as if nothing had been, and nothing left over."
    reply = USES[use].run(box)
    found = judge(reply, right, [])
    if found.kind not in ("right",):
        return (
            found
            if found.kind in ("hang", "traceback", "silent")
            else Finding("unclear", f"cannot go on: {reply.err[:150]}")
        )
    left = [
        p
        for p in snapshot(box.work)
        if ".partial-" in p
        or p.split("/")[-1].startswith(".")
        and not p.split("/")[-1].startswith(".prle")
    ]
    left = [p for p in left if not p.endswith(".lock")]
    return Finding("right") if not left else Finding("silent", f"{left[0]} is left behind")


def killed(box, use: str) -> Finding:
    "Kill a command at a random moment, then ask again."
    right = box.world.right(use)
    prepare(box, use)
    moment = float(box.draw.uniform(0, max(0.05, 1.1 * right.cpu)))
    from prle.cli import main

    pid = start(lambda: main(list(USES[use].words)), box.work, box.path / "killed", cpu=60)
    time.sleep(moment)
    end(pid)
    box.tell(f"{use}: killed after {moment:.2f} s")
    return again(box, use, right)


@attack("kills", use=list(COMMANDS))
def a_kill(box, use):
    return killed(box, use)


@attack("kills", use=list(LONG), slow=True)
def a_kill_of_a_long_command(box, use):
    return killed(box, use)


@attack("kills", moments=(2, 3, 5))
def several_kills(box, moments):
    "A training that is killed again and again."
    right = box.world.right("go on")
    prepare(box, "go on")
    from prle.cli import main

    for k in range(moments):
        pid = start(lambda: main(list(USES["go on"].words)), box.work, box.path / f"killed-{k}")
        time.sleep(float(box.draw.uniform(0, right.cpu)))
        end(pid)
    return again(box, "go on", right)


@attack("kills")
def a_kill_of_a_deletion(box):
    "`prune --delete` is killed, then asked again: what is needed stays, what is not goes, nothing is left."
    box.take("prunable")
    from prle.cli import main

    words = ["runs", "prune", "--delete", "--outputs", "out"]
    pid = start(lambda: main(words), box.work, box.path / "killed")
    time.sleep(float(box.draw.uniform(0, 0.1)))
    end(pid)
    reply = box.prle(*words)
    if (bad := exceeded(reply)) is not None:
        return bad
    names = sorted(p.name.rsplit("-", 1)[0] for p in (box.work / "out/runs").glob("*/*"))
    return (
        Finding("right")
        if names == ["made", "source"]
        else Finding("damage" if len(names) < 2 else "silent", f"{names} are there")
    )


@attack("kills")
def a_kill_of_the_server(box):
    "The study's server is killed among answers: what it confirmed is stored."
    from .floods import Server, honest

    box.take("study")
    shutil.rmtree(box.work / "study/responses")
    (box.work / "study/responses").mkdir()
    answers, confirmed = honest(box.work / "study"), []
    stop = int(box.draw.integers(1, len(answers)))
    with Server(box) as server:
        for a in answers[:stop]:
            if server.post(a)[0] == 201:
                confirmed.append(a)
    with Server(box) as server:
        for a in answers:
            status, body = server.post(a)
            if a in confirmed and status != 409:
                return Finding("silent", f"a confirmed answer was lost ({status})")
            if a not in confirmed and status != 201:
                return Finding("silent", f"an answer was refused: {body[:80]}")
    return Finding("right")


# ---- full disks ----

NEW_NAMESPACE, PRIVATE = 0x20000, (1 << 14) | (1 << 18)


def small_disk(place: Path, size: int, files: int) -> bool:
    "Give this process alone a disk of some bytes at a place; False where that is not allowed."
    if LIBC.unshare(NEW_NAMESPACE) or LIBC.mount(b"none", b"/", None, PRIVATE, None):
        return False
    return (
        LIBC.mount(
            b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={size},nr_inodes={files}".encode()
        )
        == 0
    )


def on_a_small_disk(call, place: Path, size: int, files: int, after: Path):
    """Call something while `place` lies on a small disk; `after` gets a copy of what is there then.

    Where such a disk cannot be had, files may not grow beyond a size."""

    def run():
        from .arena import _answer

        there = place.with_name(f"{place.name}-before")
        shutil.copytree(place, there, symlinks=True)
        if small_disk(place, size, files):
            try:
                shutil.copytree(there, place, symlinks=True, dirs_exist_ok=True)
            except (OSError, shutil.Error):
                os._exit(99)  # too small for what is there already
            code = _answer(call)
            shutil.copytree(place, after, symlinks=True)
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(1, size // 20),) * 2)
            code = _answer(call)
            sys.stderr.flush()
        shutil.rmtree(there)
        return code

    return run


@attack(
    "disks",
    weight=3,
    use=("train", "train masked", "localize anew", "convert", "convert json", "go on"),
    what=("bytes", "bytes", "files"),
)
def a_full_disk(box, use, what):
    "A command on a disk that has not enough room for what it makes."
    return full_disk(box, use, what)


@attack("disks", use=("faces", "forge"), what=("bytes", "bytes", "files"), slow=True)
def a_full_disk_under_a_long_command(box, use, what):
    "The same for what takes seconds."
    return full_disk(box, use, what)


def full_disk(box, use: str, what: str) -> Finding:
    "Run on a small disk, judge what is said, and go on where there is room."
    right = box.world.right(use)
    prepare(box, use)
    name = {"convert": "db", "convert json": "m", "faces": "crops", "forge": "mini"}.get(use, "out")
    place, after, words = box.work / name, box.path / "after", list(USES[use].words)
    if use == "convert json":
        words[words.index("m.parquet")] = "m/m.parquet"
    place.mkdir(exist_ok=True)
    there = sum(p.stat().st_size + 4096 for p in place.rglob("*"))
    most = dict(forge=3_000_000, convert=300_000, faces=200_000).get(use, 400_000)
    size = there + int(box.draw.integers(1, most)) if what == "bytes" else 2**28
    files = (
        0
        if what == "bytes"
        else 10 + sum(1 for _ in place.rglob("*")) + int(box.draw.integers(1, 60))
    )
    from prle.cli import main

    reply = box.call(
        on_a_small_disk(lambda: main(words), place, size, files, after),
        cpu=USES[use].cpu,
        apart=True,
    )
    box.tell(f"{use} with {f'{size - there} bytes' if what == 'bytes' else 'few files'} of room")
    if reply.code == 99:
        return Finding("right", "no room to begin with")
    if after.exists():
        shutil.rmtree(place)
        shutil.move(after, place)
    shutil.rmtree(box.work / f"{name}-before", ignore_errors=True)
    if reply.code == 0 and use == "convert json":
        return Finding("right")
    if reply.code == 0:
        if USES[use]._result(box) != right.result:
            return Finding("silent", "another result")
        return Finding("right")
    if (bad := exceeded(reply, 5 + 3 * right.cpu)) is not None:
        return bad
    told = refusal(reply, [f"/{name}", f"{name}/", "disk", "No space", "full"])
    if use == "convert json":
        return told
    then = again(box, use, right)
    return told if then.kind == "right" else then


__all__ = ["changes", "wait"]
