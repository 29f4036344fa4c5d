"""Small finished things to be damaged, each made when first wanted: data, runs, a study, a benchmark, crops.

And their uses: what a command makes of an undisturbed copy it has to make of a damaged one, or refuse."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from .arena import Box, Reply, digest_of, end, here, snapshot, start, wait

RUN = "meso4-A-none-s0"
TRAIN = ("train", "meso4", "A", "--preset", "smoke", "--data", "data", "--outputs", "out")
MASKED = (*TRAIN, "--mask", "primary", "--set", "zoo=[meso4]")
LONG = (*TRAIN, "--set", "epochs=5", "lr=1e-3")


class World:
    "The undisturbed things, below one folder."

    def __init__(self, folder: Path, say=print):
        self.folder, self.say, self.rights, self.states = folder, say, {}, {}
        self.inside = (
            False  # whether commands run in this process, which is quick, and dies with them
        )

    def part(self, name: str) -> Path:
        "The folder of a part: `parts/<name>/` holds what `Box.take` copies."
        place = self.folder / "parts" / name
        if name not in self.states and not place.exists():
            work = self.folder / "making" / name
            work.mkdir(parents=True)
            PARTS[name](self, work)
            place.parent.mkdir(parents=True, exist_ok=True)
            work.rename(place)
            self.states[name] = snapshot(place)
        return place

    def right(self, use: str) -> Reply:
        "What a use gives undisturbed."
        if use not in self.rights:
            box = Box(self, self.folder / "right" / use.replace(" ", "-"), "right", 0, 0)
            box.take(*USES[use].parts)
            self.rights[use] = reply = USES[use].run(box)
            if reply.code != 0:
                raise RuntimeError(f"{use} fails undisturbed: {reply.err}")
            shutil.rmtree(box.path)
        return self.rights[use]

    def broken(self) -> list[str]:
        "What cases have changed here, where they had no business."
        return [
            f"{name}/{p}"
            for name, state in self.states.items()
            for p in set(state.items()) ^ set(snapshot(self.folder / "parts" / name).items())
        ]


PARTS = {}


def part(make):
    "Register a maker: it fills a folder that is copied into `work` of a case."
    PARTS[make.__name__] = make
    return make


def forked(call, where: Path, wall: float = 120) -> Path:
    "Call something in a process of its own; the file with what it said."
    code, _ = wait(start(call, where, where.parent / f"{where.name}-said", 4000, 100), wall)
    said = where.parent / f"{where.name}-said.err"
    if code != 0:
        raise RuntimeError(f"exit code {code}: {said.read_text()[-2000:]}")
    return said


def made(call, where: Path):
    "Call something in this process, which is warm then."
    said = where.parent / f"{where.name}-said"
    code, _, _ = here(call, where, said, 100)
    if code != 0:
        raise RuntimeError(f"exit code {code}: {Path(f'{said}.err').read_text()[-2000:]}")


def prle(where: Path, *words):
    "The command, in this process."
    from prle.cli import main

    made(lambda: main([str(w) for w in words]), where)


@part
def data(world, work):
    "36 faces of 64 px: `data/`."

    def make():
        import cv2
        from conftest import write_toy
        from prle.data.crops import read_rgb
        from prle.data.manifest import read_manifest, write_manifest

        toy = read_manifest(write_toy(work / "toy"))
        for path in toy.path:
            (work / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(
                str(work / "data" / path), cv2.resize(read_rgb(work / "toy" / path), (64, 64))
            )
        write_manifest(toy, work / "data/manifest.parquet")
        shutil.rmtree(work / "toy")

    made(make, work)


def copied(world, work, *names):
    "Put copies of other parts there, to work with."
    for name in names:
        shutil.copytree(world.part(name), work, symlinks=True, dirs_exist_ok=True)


def without(world, work, *names):
    "Remove again what other parts have put there."
    for name in names:
        for entry in world.part(name).iterdir():
            shutil.rmtree(work / entry.name)


@part
def store(world, work):
    "`out/`: a detector, its maps, a second one with masks, its zoo's maps and quantile maps."
    copied(world, work, "data")
    prle(work, *TRAIN)
    prle(work, "localize", RUN, "--outputs", "out")
    prle(work, *MASKED)
    without(world, work, "data")


@part
def half(world, work):
    "`out/`: a training that was killed after its third epoch."
    copied(world, work, "data")
    from prle.cli import main

    def dies():
        replace = os.replace

        def stop(a, b, **options):
            if Path(b).name == "epoch-4":
                os._exit(0)
            return replace(a, b, **options)

        os.replace = stop
        return main(list(LONG)) + 1

    forked(dies, work)
    if not list((work / "out").rglob("epoch-3")):
        raise RuntimeError("there is no checkpoint to damage")
    without(world, work, "data")


@part
def study(world, work):
    "`study/`: pictures, key, page, and answers of two people, one of them sent as a file."

    def make():
        import studies
        from prle.study.images import read_study

        made = studies.study(work / "made")
        studies.simulate(made, lambda row: 0.8)
        shutil.move(work / "made/study", work / "study")
        shutil.rmtree(work / "made")
        code = read_study(work / "study").codes[0]
        file = work / "study/responses" / f"{code}.json"
        lines = [
            json.dumps(
                {k: v for k, v in a.items() if k != "simulated"}
                | dict(received="2026-01-01T00:00:00Z")
            )
            for a in json.loads(file.read_text())["answers"]
        ]
        file.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
        file.unlink()

    made(make, work)


@part
def bench(world, work):
    "`ff/`: a data set as DeepfakeBench publishes it, and its JSON."

    def make():
        from prle.data.faces import write_png

        methods, record = "F/manipulated_sequences", {}
        for name, label, home in (
            ("FF-real", "071", "F/original_sequences/youtube/c23/frames/071"),
            ("FF-DF", "071_054", f"{methods}/Deepfakes/c23/frames/071_054"),
        ):
            frames = [f"{home}/{f:03d}.png" for f in (3, 10)]
            for f, path in enumerate(frames):
                write_png(work / "ff" / path, np.full((32, 32, 3), 40 * f + len(label), np.uint8))
                points = (work / "ff" / path.replace("/frames/", "/landmarks/")).with_suffix(".npy")
                points.parent.mkdir(parents=True, exist_ok=True)
                np.save(points, np.arange(162).reshape(81, 2))
                if name != "FF-real":
                    write_png(
                        work / "ff" / path.replace("/frames/", "/masks/"),
                        np.full((32, 32), 255, np.uint8),
                    )
            record[name] = dict(
                train=dict(c23={label: dict(label=name, frames=frames)}),
                val=dict(c23={}),
                test=dict(c23={}),
            )
        (work / "ff/FaceForensics++.json").write_text(json.dumps({"FaceForensics++": record}))

    made(make, work)


@part
def photos(world, work):
    "`photos/`: a portrait, and a clip of frames."
    from prle.data.faces import orl_folder

    (work / "photos/clip").mkdir(parents=True)
    for k in (1, 2):
        shutil.copy(orl_folder() / f"s1/{k}.pgm", work / f"photos/clip/{k}.pgm")
    shutil.copy(orl_folder() / "s2/1.pgm", work / "photos/one.pgm")


@part
def movie(world, work):
    "`clips/`: two short videos, real and fake, as a plain folder."

    def make():
        from clips import write_clip

        write_clip(work / "clips/real/a.avi.mp4", frames=3)
        write_clip(work / "clips/fake/b.mp4", frames=3, person="s3")

    made(make, work)


@part
def extraction(world, work):
    "`crops/`: the faces of `clips/`."
    copied(world, work, "movie")
    prle(work, *USES["faces"].words)
    without(world, work, "movie")


@part
def mini(world, work):
    "`mini/`: a forged benchmark with its networks and target sets."
    prle(work, *FORGE)


@part
def prunable(world, work):
    "`out/`: runs of which one is noted, one is needed by it, and one is needed by nobody."

    def make():
        from prle.lab.administration import record_runs
        from prle.lab.store import RunStore

        runs = RunStore(work / "out/runs")

        def fill(folder):
            return (folder / "x.txt").write_text("42")

        source = runs.get("maps", "source", dict(n=1), fill)
        made = runs.get("detectors", "made", dict(n=2, source=source.key), fill)
        runs.get("detectors", "lost", dict(n=3), fill)
        record_runs(work / "out", "note", [f"detectors/{made.path.name}"])

    made(make, work)


FORGE = ("forge", "--out", "mini", "--people", "6", "--size", "64", "--steps", "1")


# ---- uses ----


class Use:
    "A command on parts of the world, what it is asked for again and again, and how its result is told."

    def __init__(self, words, *parts, result=None, before=None, run=None, cpu=5.0):
        self.words, self.parts, self.cpu, self._result, self._before, self._run = (
            words,
            parts,
            cpu,
            result,
            before,
            run,
        )

    def run(self, box: Box) -> Reply:
        "Have it done in a case's folder."
        if self._before:
            self._before(box)
        reply = self._run(box) if self._run else box.prle(*self.words, cpu=self.cpu)
        if self._result and reply.code in (0, 1):
            reply.result = self._result(box)
        return reply


def content(path: Path) -> str:
    "What a file holds; of a table its cells, since it also tells where it was made."
    try:
        return (
            pd.read_parquet(path).to_csv(float_format="%.9g")
            if path.suffix == ".parquet"
            else digest_of(path)
        )
    except Exception as e:
        return type(e).__name__


def files(*patterns):
    "A result: what lies in files."

    def tell(box):
        found = sorted(p for pattern in patterns for p in box.work.glob(pattern) if p.is_file())
        return "\n".join(f"{p.relative_to(box.work)} {content(p)}" for p in found)

    return tell


def text(*patterns):
    "A result: the text of files."
    return lambda box: "\n".join(
        p.read_text() for pattern in patterns for p in sorted(box.work.glob(pattern))
    )


def drop(*patterns):
    "What has to be made anew."

    def remove(box):
        for pattern in patterns:
            for path in box.work.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def manifest_text(path="data/manifest.parquet"):
    "Print every cell of a manifest."

    def call():
        from prle.data.manifest import read_manifest

        table = read_manifest(path)
        table["landmarks"] = [np.asarray(p, float).tolist() for p in table.landmarks]
        table["transform"] = [np.asarray(p, float).tolist() for p in table["transform"]]
        print(table.to_csv(index=False))
        print(os.path.relpath(table.attrs["root"]))

    return lambda box: box.call(call)


def config_text(path="a.yaml"):
    "Print a configuration."

    def call():
        from prle.lab.configs import RunConfig

        print(RunConfig.read(path))

    return lambda box: box.call(call)


TRAINED = (
    "out/runs/detectors/*-s0-*/model.safetensors",
    "out/runs/detectors/*-s0-*/scores.parquet",
)
MAPS = "out/runs/maps/*-test-*/maps.npy"
USES = {
    "evaluate": Use(("evaluate", RUN, "--outputs", "out"), "store"),
    "predict": Use(
        ("predict", RUN, "photos/one.pgm", "--csv", "p.csv", "--data", "data", "--outputs", "out"),
        "store",
        "data",
        "photos",
        result=text("p.csv"),
    ),
    "localize": Use(
        ("localize", RUN, "--data", "data", "--outputs", "out"), "store", "data", result=files(MAPS)
    ),
    "localize anew": Use(
        ("localize", RUN, "--data", "data", "--outputs", "out"),
        "store",
        "data",
        before=drop("out/runs/maps"),
        result=files(MAPS),
    ),
    "runs": Use(("runs", "--outputs", "out"), "store"),
    "check": Use(("runs", "check", "--outputs", "out"), "store"),
    "train": Use(TRAIN, "store", "data", result=files(*(p.replace("*-s0", RUN) for p in TRAINED))),
    "train masked": Use(
        MASKED,
        "store",
        "data",
        before=drop("out/runs/detectors/*-primary-*"),
        result=files(*TRAINED),
    ),
    "fuse anew": Use(
        MASKED,
        "store",
        "data",
        before=drop("out/runs/detectors/*-primary-*", "out/runs/fusions"),
        result=files(*TRAINED, "out/runs/fusions/*/quantiles/**/*.png"),
    ),
    "go on": Use(LONG, "half", "data", result=files(*TRAINED)),
    "analyse": Use(("userstudy", "analyse", "study"), "study"),
    "read manifest": Use((), "data", run=manifest_text()),
    "convert": Use(
        ("convert", "data/manifest.parquet", "--out", "db"), "data", result=files("db/**/*")
    ),
    "convert json": Use(
        ("convert", "ff/FaceForensics++.json", "--root", "ff", "--out", "m.parquet"),
        "bench",
        run=lambda box: converted(box),
    ),
    "faces": Use(
        ("faces", "clips", "--out", "crops", "--count", "2", "--workers", "0", "--size", "64"),
        "movie",
        result=files("crops/**/*.png"),
    ),
    "faces again": Use(
        ("faces", "clips", "--out", "crops", "--count", "2", "--workers", "0", "--size", "64"),
        "movie",
        "extraction",
        result=files("crops/**/*.png"),
    ),
    "check clips": Use(("check", "folder", "clips"), "movie"),
    "forge": Use(FORGE, cpu=60, result=files("mini/**/*.png")),
    "forge again": Use(FORGE, "mini", cpu=60, result=files("mini/**/*.png")),
    "forge anew": Use(
        FORGE, "mini", cpu=60, before=drop("mini/DF/*.png"), result=files("mini/**/*.png")
    ),
}


def converted(box) -> Reply:
    "Convert DeepfakeBench's JSON; the result is the manifest that it gives."
    reply = box.prle(*USES["convert json"].words)
    if reply.code in (0, 1) and (box.work / "m.parquet").exists():
        reply.result = manifest_text("m.parquet")(box).out
    return reply


def warm(world, parts):
    "Make parts, and pay for what the first call of anything costs, here and not in every case."
    import cv2
    import tornado.web  # noqa: F401

    import prle.lab.apply  # noqa: F401
    import prle.mini.benchmark  # noqa: F401
    import prle.cli
    import prle.data.deepfakebench  # noqa: F401
    import prle.data.layouts  # noqa: F401
    import prle.paper.reproduce  # noqa: F401
    import prle.study.analysis  # noqa: F401
    import prle.study.page  # noqa: F401
    import prle.study.server  # noqa: F401

    cv2.setNumThreads(1)
    for name in parts:
        world.part(name)
    world.inside = True
    for use in ("evaluate", "localize anew", "analyse"):
        world.right(use)
    world.inside = False


__all__ = ["World", "USES", "RUN", "TRAIN", "MASKED", "LONG", "FORGE", "warm", "end"]
