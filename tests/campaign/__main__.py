"`python -m tests.campaign --seed 0 --minutes 20 --out table.md`; `--cases 200` plays a sample of quick cases."
import argparse
import faulthandler
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", PRLE_QUIET="1", MPLBACKEND="Agg")

from . import bombs, damage, deletion, floods, interruptions, names  # noqa: E402, F401
from .arena import ATTACKS, BAD, KINDS, Finding, attack_of, play  # noqa: E402
from .world import World, warm  # noqa: E402

SHARES = dict(names=6, prune=5, damage=9, bombs=6, kills=1, disks=1, floods=1)
"How many cases of each family are played in a round."


def rounds(seed: int, quick: bool, start: int = 0):
    "Cases without end: (family, number)."
    number = {family: start for family in SHARES}
    while True:
        for family, share in SHARES.items():
            for _ in range(share):
                while quick and attack_of(family, number[family], seed).slow: number[family] += 1
                yield family, number[family]
                number[family] += 1


def table(results: list[dict]) -> str:
    "The summary as Markdown."
    count = defaultdict(Counter)
    for r in results: count[r["family"]][r["kind"]] += 1
    for kind in KINDS: count["all"][kind] = sum(c[kind] for family, c in count.items() if family != "all")
    lines = [f"| family | tries | {' | '.join(KINDS)} |", "|---|" + "---:|" * (1 + len(KINDS))]
    families = [f for f in SHARES if f in count]
    lines += [f"| {f} | {sum(count[f].values())} | {' | '.join(str(count[f][k]) for k in KINDS)} |" for f in (*families, "all")]
    return "\n".join(lines)


def bad_cases(results: list[dict], seed: int) -> str:
    "Every kind of bad case with how often it came, an example, and the command that plays that again."
    groups = defaultdict(list)
    for r in results:
        if r["kind"] in (*BAD, "void"): groups[r["family"], r["attack"], r["kind"], r["detail"].split(": ")[0][:60]].append(r)
    lines = []
    for (family, label, kind, _), cases in sorted(groups.items(), key=lambda g: ((*KINDS, "void").index(g[0][2]), -len(g[1]))):
        one = cases[0]
        lines.append(f"* **{kind}** x{len(cases)} {family}/{label}: {one['story']} -> {one['detail'][:220]} "
                     f"(`python -m tests.campaign --seed {seed} --only {family} --case {one['number']}`)")
    return "\n".join(lines)


def write(path: str, results: list[dict], seed: int, seconds: float, world: World):
    "The report: table, bad cases, and whether the world is as it was."
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
    options.add_argument("--case", type=int, help="this case of the family, and what was said in it")
    options.add_argument("--start", type=int, default=0, help="number of the first case of each family")
    options.add_argument("--out", help="file for the report")
    options.add_argument("--log", help="file for all results, a JSON a line")
    args = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prle-campaign-"))
    try: return campaign(args, folder)
    finally: shutil.rmtree(folder, ignore_errors=True)


def one(world: World, folder: Path, family: str, number: int, seed: int, keep: bool = False) -> tuple[dict, object]:
    "A case as a row of the results."
    begun, box = time.monotonic(), None
    try: found, box = play(world, folder, family, number, seed, keep)
    except Exception as e:
        if keep: raise
        where = traceback.extract_tb(e.__traceback__)[-1]
        found = Finding("void", f"{type(e).__name__}: {e} ({where.name}:{where.lineno})")
        shutil.rmtree(folder/f"{family}-{number}", ignore_errors=True)
    attack = attack_of(family, number, seed).run.__name__
    row = dict(family=family, number=number, attack=attack, kind=found.kind, detail=found.detail, story=box.story if box else attack,
               seconds=round(time.monotonic() - begun, 2))
    return row, box


def campaign(args, folder: Path) -> int:
    "Build the world, play, report."
    begun = time.monotonic()
    world = World(folder/"world")
    (folder/"world").mkdir()
    os.environ["PRLE_OUTPUTS"] = str(folder/"nowhere")
    warm(world)
    gc.collect()
    gc.freeze()
    if args.case is not None:
        row, box = one(world, folder, args.only, args.case, args.seed, keep=True)
        for reply in box.replies: print(f"exit code {reply.code}, {reply.cpu:.1f} s, {reply.memory:.0f} MB\n{reply.out[-3000:]}\n{reply.err[-6000:]}\n")
        print(json.dumps(row, indent=1))
        return int(row["kind"] in BAD)
    results, told = [], begun
    log = open(args.log, "w", encoding="utf-8") if args.log else None
    for family, number in rounds(args.seed, args.cases is not None, args.start):
        now = time.monotonic()
        if args.only and family != args.only: continue
        if len(results) >= args.cases if args.cases is not None else now - begun > 60 * args.minutes: break
        results.append(one(world, folder, family, number, args.seed)[0])
        if log: print(json.dumps(results[-1]), file=log, flush=True)
        if now - told > 20:
            told = now
            print(f"{(now - begun) / 60:.1f} min, {len(results)} cases, {Counter(r['kind'] for r in results)}", flush=True)
            if args.out: write(args.out, results, args.seed, now - begun, world)
    if broken := world.broken(): results.append(dict(family="damage", number=-1, attack="the world", kind="damage", detail=f"{broken[0]} was changed", story="", seconds=0))
    seconds = time.monotonic() - begun
    if args.out: write(args.out, results, args.seed, seconds, world)
    print(table(results))
    bad = [r for r in results if r["kind"] in (*BAD, "void")]  # void: the campaign itself stumbled
    if bad: print(f"\n{bad_cases(results, args.seed)}")
    print(f"{len(results)} cases in {seconds:.0f} s, {len(bad)} bad")
    return int(bool(bad))


assert ATTACKS
if __name__ == "__main__": sys.exit(main())
