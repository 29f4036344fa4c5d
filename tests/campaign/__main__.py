"`python -m tests.campaign --minutes 20 --out table.md`; `--cases 200` plays a sample of quick cases."

import argparse
import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", PRLE_QUIET="1", MPLBACKEND="Agg")

from . import bombs, damage, deletion, floods, interruptions, names  # noqa: E402, F401
from .arena import (  # noqa: E402
    ATTACKS,
    BAD,
    KINDS,
    MEMORY,
    WALL,
    Finding,
    Patience,
    address_space,
    attack_of,
    end,
    play,
)
from .world import PARTS, World, warm  # noqa: E402

SHARES = dict(names=6, prune=5, damage=9, bombs=6, kills=1, disks=1, floods=1)
"How many cases of each family are played in a round."
QUICK = ("data", "store", "half", "study", "bench", "photos", "prunable")
"The parts of the world that quick cases need."


FEW = dict(names=10, prune=14, damage=14, bombs=9, kills=1, disks=1, floods=1)
"The same for a sample, which has little time."


def rounds(seed: int, quick: bool, start: int = 0):
    "Cases without end: (family, number)."
    number = {family: start for family in SHARES}
    while True:
        for family, share in (FEW if quick else SHARES).items():
            for _ in range(share):
                while quick and attack_of(family, number[family], seed).slow:
                    number[family] += 1
                yield family, number[family]
                number[family] += 1


def table(results: list[dict]) -> str:
    "The summary as Markdown."
    count = defaultdict(Counter)
    for r in results:
        count[r["family"]][r["kind"]] += 1
    for kind in KINDS:
        count["all"][kind] = sum(c[kind] for family, c in count.items() if family != "all")
    lines = [f"| family | tries | {' | '.join(KINDS)} |", "|---|" + "---:|" * (1 + len(KINDS))]
    families = [f for f in SHARES if f in count]
    lines += [
        f"| {f} | {sum(count[f].values())} | {' | '.join(str(count[f][k]) for k in KINDS)} |"
        for f in (*families, "all")
    ]
    return "\n".join(lines)


def bad_cases(results: list[dict], seed: int) -> str:
    "Every kind of bad case with how often it came, an example, and the command that plays that again."
    groups = defaultdict(list)
    for r in results:
        if r["kind"] in (*BAD, "void"):
            groups[r["family"], r["attack"], r["kind"], r["detail"].split(": ")[0][:60]].append(r)
    lines = []
    for (family, label, kind, _), cases in sorted(
        groups.items(), key=lambda g: ((*KINDS, "void").index(g[0][2]), -len(g[1]))
    ):
        one = cases[0]
        lines.append(
            f"* **{kind}** x{len(cases)} {family}/{label}: {one['story']} -> {one['detail'][:220]} "
            f"(`python -m tests.campaign --seed {seed} --only {family} --case {one['number']}`)"
        )
    return "\n".join(lines)


def write(path: str, results: list[dict], seed: int, seconds: float):
    "The report: table and bad cases."
    head = f"Seed {seed}, {len(results)} cases in {seconds / 60:.1f} minutes.\n\n{table(results)}\n"
    text = f"{head}\n{bad_cases(results, seed)}\n"
    Path(path).write_text(text, encoding="utf-8")


def main() -> int:
    "Play cases until time or number is over; exit code 1 if one went badly."
    faulthandler.enable()
    options = argparse.ArgumentParser("python -m tests.campaign", description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--minutes", type=float, default=20)
    options.add_argument("--cases", type=int, help="that many quick cases, whatever the time")
    options.add_argument("--only", choices=list(SHARES), help="this family")
    options.add_argument(
        "--case", type=int, help="this case of the family, and what was said in it"
    )
    options.add_argument(
        "--start", type=int, default=0, help="number of the first case of each family"
    )
    options.add_argument("--out", help="file for the report")
    options.add_argument("--log", help="file for all results, a JSON a line")
    args = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prle-campaign-"))
    try:
        return campaign(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def one(
    world: World, folder: Path, family: str, number: int, seed: int, keep: bool = False
) -> tuple[dict, object]:
    "A case as a row of the results."
    begun, box = sum(os.times()[:4]), None
    try:
        found, box = play(world, folder, family, number, seed, keep)
    except Exception as e:
        if keep:
            raise
        where = traceback.extract_tb(e.__traceback__)[-1]
        found = Finding("void", f"{type(e).__name__}: {e} ({where.name}:{where.lineno})")
        shutil.rmtree(folder / f"{family}-{number}", ignore_errors=True)
    attack = attack_of(family, number, seed).run.__name__
    row = dict(
        family=family,
        number=number,
        attack=attack,
        kind=found.kind,
        detail=found.detail,
        story=box.story if box else attack,
        seconds=round(sum(os.times()[:4]) - begun, 2),  # of work
    )
    return row, box


def players(world: World, folder: Path, cases: list, seed: int) -> list[dict]:
    """Results of cases that share a process, which spares a fork for each command.

    When it dies or hangs, that is the verdict on the case that was being played, and another goes on."""
    file, results = folder / "results.jsonl", []
    while len(results) < len(cases):
        file.write_text("")
        if not (pid := os.fork()):
            play_all(world, folder, cases[len(results) :], seed, file)
        patience, status = Patience(pid, 2 * WALL), None
        while status is None:
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                status = fate(code)
            elif patience.over(file.stat().st_size):
                end(pid)
                status = "hang"
            time.sleep(0.01)
        results += [json.loads(line) for line in file.read_text().splitlines()]
        if status and len(results) < len(cases):
            results.append(fallen(*cases[len(results)], seed, status))
    return results


def fate(status: int) -> str:
    'What a process died of; "" if it came to its end.'
    if not os.WIFSIGNALED(status):
        return ""
    return (
        "hang"
        if os.WTERMSIG(status) == signal.SIGPROF
        else f"killed by signal {os.WTERMSIG(status)}"
    )


def play_all(world: World, folder: Path, cases: list, seed: int, file: Path):
    "The process of `players`; never returns."
    try:
        os.setsid()
        world.inside = True
        limit = address_space() + 3 * MEMORY * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        with open(file, "a", encoding="utf-8") as told:
            for family, number in cases:
                print(
                    json.dumps(one(world, folder, family, number, seed)[0]), file=told, flush=True
                )
    finally:
        os._exit(0)


def fallen(family: str, number: int, seed: int, status: str) -> dict:
    "The verdict on a case that took its process with it."
    name = attack_of(family, number, seed).run.__name__
    return dict(
        family=family,
        number=number,
        attack=name,
        kind="hang" if status == "hang" else "traceback",
        detail=status,
        story=name,
        seconds=WALL,
    )


def timed(world: World, folder: Path, args, begun: float) -> list[dict]:
    "Cases until the time is over, slow ones too."
    wanted, results = (
        (case for case in rounds(args.seed, False, args.start) if args.only in (None, case[0])),
        [],
    )
    while (now := time.monotonic() - begun) < 60 * args.minutes:
        print(
            f"{now / 60:.1f} min, {len(results)} cases, {dict(Counter(r['kind'] for r in results))}",
            flush=True,
        )
        results += players(world, folder, list(islice(wanted, 58)), args.seed)
        if args.out:
            write(args.out, results, args.seed, now)
    return results


def sample(world: World, folder: Path, args) -> list[dict]:
    "A number of quick cases."
    wanted = (case for case in rounds(args.seed, True, args.start) if args.only in (None, case[0]))
    return players(world, folder, list(islice(wanted, args.cases)), args.seed)


def campaign(args, folder: Path) -> int:
    "Build the world, play, report."
    begun = time.monotonic()
    world = World(folder / "world")
    (folder / "world").mkdir()
    os.environ["PRLE_OUTPUTS"] = str(folder / "nowhere")
    warm(world, QUICK if args.cases is not None or args.case is not None else PARTS)
    gc.collect()
    gc.freeze()
    if args.case is not None:
        row, box = one(world, folder, args.only, args.case, args.seed, keep=True)
        for reply in box.replies:
            print(
                f"exit code {reply.code}, {reply.cpu:.1f} s, {reply.memory:.0f} MB\n"
                f"{reply.out[-3000:]}\n{reply.err[-6000:]}\n"
            )
        print(json.dumps(row, indent=1))
        return int(row["kind"] in BAD)
    results = (
        sample(world, folder, args) if args.cases is not None else timed(world, folder, args, begun)
    )
    if broken := world.broken():
        results.append(
            dict(
                family="damage",
                number=-1,
                attack="the world",
                kind="damage",
                detail=f"{broken[0]} was changed",
                story="",
                seconds=0,
            )
        )
    seconds = time.monotonic() - begun
    if args.log:
        Path(args.log).write_text("".join(json.dumps(r) + "\n" for r in results), encoding="utf-8")
    if args.out:
        write(args.out, results, args.seed, seconds)
    print(table(results))
    bad = [r for r in results if r["kind"] in (*BAD, "void")]  # void: the campaign itself stumbled
    if bad:
        print(f"\n{bad_cases(results, args.seed)}")
    print(f"{len(results)} cases in {seconds:.0f} s, {len(bad)} bad")
    return int(bool(bad))


assert ATTACKS
if __name__ == "__main__":
    sys.exit(main())
