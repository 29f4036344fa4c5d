"""prle.lab.engines: one graph, two engines, the same runs; failures cost what needs them, deaths cost an epoch."""

import errno
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import ray
from kills import contents
from ray.cluster_utils import Cluster

import prle.core
import prle.lab.engines
from prle.core import digest, rng, write_json
from prle.lab.engines import (
    CoreTime,
    Outcome,
    _share_text,
    cluster,
    core_time,
    do_task,
    execute,
    in_process,
)
from prle.lab.configs import IDENTITY, PRESETS, Zoo
from prle.lab.administration import list_runs
from prle.lab.planning import DryStore, planned
from prle.lab.store import RunFailed, RunStore
from prle.trust import read_json
from test_experiments import TINY, quiet_lab, write_square

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not see the tests


def note(root, *words):
    with open(Path(root) / "log", "a") as f:
        f.write(" ".join(map(str, words)) + "\n")


def notes(root):
    log = Path(root) / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def train(root, name, epochs=3, seconds=0.0, fault=None):
    "A training that can go on, tells where it runs, and writes a number that each epoch changes."

    def make(folder):
        if fault:
            raise fault
        state = dict(epoch=0, value=name)
        if (folder / "state.json").exists():
            state = read_json(folder / "state.json")
        for epoch in range(state["epoch"], epochs):
            node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
            note(root, name, epoch, node, os.getpid())
            time.sleep(seconds)
            state = dict(epoch=epoch + 1, value=digest([state["value"], epoch]))
            write_json(folder / "state.json", state)

    return make


def graph(root, store, seconds=0.0, faults=()):
    "Three trainings, their maps, a fusion of the first two, a training with it."

    def run(kind, name, config, epochs=1):
        make = train(root, name, epochs, seconds, dict(faults).get(name))
        return store.get(kind, name, config, make, resume=True)

    plain = [run("detectors", n, dict(name=n), 3) for n in "abc"]
    maps = [run("maps", f"map-{n}", dict(detector=p.key)) for n, p in zip("abc", plain)]
    fused = run("fusions", "fused", dict(maps=[m.key for m in maps[:2]]))
    return run("detectors", "masked", dict(quantiles=fused.key), 3)


def asked(root, **options):
    "A dry store that was asked for the graph."
    dry = DryStore(root / "runs")
    graph(root, dry, **options)
    return dry


def quiet(root, **options):
    return RunStore(root / "runs", heartbeat=0.1, missed=10, **options)


def done(root):
    runs = list_runs(root / "runs").query("state == 'finished'")
    return sorted(runs.kind + "/" + runs.label)


ALL = [
    "detectors/a",
    "detectors/b",
    "detectors/c",
    "detectors/masked",
    "fusions/fused",
    "maps/map-a",
    "maps/map-b",
    "maps/map-c",
]


@pytest.fixture(scope="module")
def here():
    "Ray on this machine."
    with cluster(num_cpus=2):
        yield


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_every_run_is_made_once_and_reused(engine, here, tmp_path, lines):
    store = RunStore(tmp_path / "runs")
    assert execute(store, asked(tmp_path), engine) == {} and done(tmp_path) == ALL
    assert set(Counter(name for name, epoch, *_ in notes(tmp_path) if epoch == "0").values()) == {1}
    assert store.summary() == "8 runs: 0 reused, 8 made."
    assert [line.split()[0] for line in lines] == ["MISS"] * 8
    before = notes(tmp_path)
    again = quiet(tmp_path)
    assert execute(again, asked(tmp_path), engine) == {}
    assert again.summary() == "8 runs: 8 reused, 0 made." and notes(tmp_path) == before
    assert again.names() == store.names()
    inputs = read_json(next((tmp_path / "runs/fusions").iterdir()) / "provenance.json")["inputs"]
    assert [i.split("-")[1] for i in inputs] == ["a", "b"]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_fault_costs_what_needs_it_and_nothing_else(engine, here, tmp_path, lines):
    diverged, stumbled = "the loss became nan in epoch 2", "ValueError: no such face"
    faults = dict(b=FloatingPointError(diverged), c=ValueError("no such face"))
    store = RunStore(tmp_path / "runs")
    found = execute(store, asked(tmp_path, faults=faults), engine)
    b = next(name for name in found if name.startswith("detectors/b"))
    why = {name.rsplit("-", 1)[0]: fault for name, fault in found.items()}
    chain = f"needs {b}, which failed: {diverged}"
    assert why.pop("maps/map-c").endswith(stumbled)
    assert why.pop("detectors/b") == diverged and why.pop("detectors/c") == stumbled
    assert why == {"maps/map-b": chain, "fusions/fused": chain, "detectors/masked": chain}
    assert done(tmp_path) == ["detectors/a", "maps/map-a"]
    assert sum(line.startswith("FAIL") for line in lines) == 6
    dry = asked(tmp_path)
    actions = "reuse failed make reuse blocked make blocked blocked"
    assert planned(dry).action.tolist() == actions.split()
    assert len(execute(quiet(tmp_path), dry, engine)) == 4
    assert "maps/map-c" in done(tmp_path), "what stumbled is tried again, what diverged is not"
    with pytest.raises(RunFailed, match="failed: the loss became nan in epoch 2"):
        graph(tmp_path, quiet(tmp_path))


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_full_disk_ends_it_all(engine, here, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="prle runs prune"):
        execute(quiet(tmp_path), asked(tmp_path, faults=dict(a=full)), engine)


def test_a_run_that_kills_its_worker_is_given_up(here, tmp_path):
    def die(folder):
        note(tmp_path, "dies")
        os.kill(os.getpid(), signal.SIGKILL)

    dry = DryStore(tmp_path / "runs")
    bad = dry.get("detectors", "bad", dict(n=1), die)
    good = dry.get("detectors", "good", dict(n=2), train(tmp_path, "good"))
    dry.get("maps", "bad", dict(detector=bad.key), train(tmp_path, "map"))
    first, second = execute(quiet(tmp_path), dry, "ray").values()
    assert first == "its worker died 3 times, and 0 epochs came of it"
    assert second == f"needs detectors/{bad.path.name}, which failed: {first}"
    assert good.path.exists() and sum(line == ["dies"] for line in notes(tmp_path)) == 3


def test_a_training_that_gets_on_may_lose_more_workers(here, tmp_path):
    def mortal(folder):
        epoch = len(list(folder.glob("checkpoint-cpu/epoch-*")))
        note(tmp_path, "mortal", epoch)
        if epoch == 4:
            return
        (folder / f"checkpoint-cpu/epoch-{epoch + 1}").mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGKILL)

    dry = DryStore(tmp_path / "runs")
    run = dry.get("detectors", "mortal", dict(n=1), mortal, resume=True)
    assert execute(quiet(tmp_path), dry, "ray") == {} and run.path.exists()
    assert notes(tmp_path) == [["mortal", str(epoch)] for epoch in range(5)]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_time_that_is_left_is_learned_on_the_way(engine, here, tmp_path, monkeypatch):
    said, real = [], prle.lab.engines.progress

    def watched(**options):
        bar = real(**options, file=io.StringIO())
        bar.set_postfix_str = said.append
        return bar

    monkeypatch.setattr(prle.core, "_watched", lambda: True)

    monkeypatch.setattr(prle.lab.engines, "progress", watched)
    execute(quiet(tmp_path), asked(tmp_path, seconds=0.4), engine)
    counts = [re.findall(r"(\d+) runs like none before", text) or ["0"] for text in said]
    unknown = [int(count) for [count] in counts]
    assert unknown[0] < 7 and unknown[-1] == 0
    assert unknown == sorted(unknown, reverse=True)
    assert not any("?" in text for text in said)
    assert re.match(r"about [1-9] s and \d runs like none before of work left", said[0])
    last = "about 0 s of work left, with a core ([0-9]+)% of the time"
    assert 0 < int(re.fullmatch(last, said[-1])[1]) <= 100


RIVALS = """
import os, time
from prle.lab.engines import core_time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
there, here = os.pipe()
os.read(there, 1) if os.fork() else os.write(here, b"x")  # both begin together, on one core
first, end = core_time(), time.monotonic() + 2
while time.monotonic() < end:
    pass
busy = core_time()
time.sleep(1)
print(*busy.since(first), *core_time().since(busy), flush=True)
"""


def test_a_thread_that_waits_for_a_core_is_told_from_one_that_sleeps():
    told = subprocess.run(
        [sys.executable, "-c", RIVALS], capture_output=True, text=True, check=True
    )
    both = [[float(word) for word in line.split()] for line in told.stdout.splitlines()]
    assert len(both) == 2
    for ran, waited, ran_asleep, _ in both:
        assert ran + waited == pytest.approx(2, abs=0.2) and ran_asleep < 0.1
    assert sum(waited for _, waited, *_ in both) > 0.5, both


def test_where_the_system_does_not_tell_nothing_is_said(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert core_time() == CoreTime() and _share_text([core_time()]) == ""


def test_the_work_left_is_not_estimated_anew_after_every_run(tmp_path, monkeypatch):
    "Or a store of a thousand runs would count more than it makes."
    calls, real = [], prle.lab.engines.estimate
    monkeypatch.setattr(prle.core, "_watched", lambda: True)
    monkeypatch.setattr(
        prle.lab.engines, "progress", partial(prle.lab.engines.progress, file=io.StringIO())
    )
    monkeypatch.setattr(
        prle.lab.engines, "estimate", lambda *args: calls.append(args) or real(*args)
    )
    dry = DryStore(tmp_path / "runs")
    for n in range(32):
        dry.get("kind", f"a-{n}", dict(n=n), lambda folder: (folder / "x").touch())
    assert execute(quiet(tmp_path), dry) == {}
    assert 31 <= len(calls) < 31 + 31 + 30 + 28 + 24 + 16 + 1


def test_wrong_engines_are_named():
    with pytest.raises(ValueError, match="unknown engine 'rya'. Did you mean 'ray'"):
        execute(None, None, "rya")


def test_inputs_that_failed_are_named_by_their_first_cause(tmp_path):
    dry, first = asked(tmp_path), "needs x/a, which failed: boom"
    for outcome in (Outcome("x/a", "boom"), Outcome("x/b", first)):
        assert do_task(quiet(tmp_path), dry.tasks[-1], [outcome]).fault == first
    assert [o.name for o in in_process(quiet(tmp_path), dry.tasks)] == [t.name for t in dry.tasks]


@pytest.mark.parametrize("late", [0, 2, 3])
def test_a_node_that_is_late_is_started_again(late):
    "Three times at most; what else goes wrong is not tried again."
    calls = []

    def init(**options):
        calls.append(options)
        if len(calls) <= late:
            raise Exception("The current node timed out during startup.")

    fake = SimpleNamespace(init=init, shutdown=lambda: None)
    if late < 3:
        prle.lab.engines._start(fake, address="local")
        assert calls == [dict(address="local")] * (late + 1)
    else:
        with pytest.raises(OSError, match="did not start in 3 attempts: the machine may be too"):
            prle.lab.engines._start(fake)
        assert len(calls) == 3


LONG = "/scratch/of-the-batch-system/users/somebody/jobs/4711"


def test_a_long_temporary_folder_is_no_place_for_sockets(tmp_path, monkeypatch):
    "Ray's own variable comes before the system's; where nothing short can be written, what to set is said."
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", LONG)
    with prle.lab.engines._short_folder() as options:
        (short,) = options.values()
        assert len(short) <= 39 and os.path.isdir(short)
    assert not os.path.exists(short)
    monkeypatch.setattr(prle.lab.engines, "_SHORT", [str(tmp_path / "none")])
    with pytest.raises(OSError, match=f"{LONG} is too long.*set RAY_TMPDIR .* at most 39 bytes"):
        with prle.lab.engines._short_folder():
            pass
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with prle.lab.engines._short_folder() as options:
        assert options == {}


def test_what_else_stops_ray_is_said_at_once():
    def init(**options):
        raise ConnectionError("no cluster at 10.0.0.1")

    with pytest.raises(ConnectionError, match="no cluster"):
        prle.lab.engines._start(SimpleNamespace(init=init))


def test_what_a_worker_says_is_said_here(tmp_path, monkeypatch, lines):
    "With its level; the worker itself prints nothing."
    worker = SimpleNamespace(get_current_task_attempt_number=lambda: 0)
    context = SimpleNamespace(worker=SimpleNamespace(core_worker=worker), get_node_id=str)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    dry = asked(tmp_path)
    settings = dict(root=tmp_path / "runs", heartbeat=0.1, missed=10, device=None)
    monkeypatch.setenv("PRLE_PLUGINS", "")
    for reused in (False, True):
        outcome = prle.lab.engines._do_there(settings, ["/mine.py"], dry.tasks[0])
        assert outcome.reused == reused and lines == [] and os.environ["PRLE_PLUGINS"] == "/mine.py"
        prle.lab.engines._report(RunStore(tmp_path / "runs"), outcome)
        [[level, text]], [line] = outcome.said, lines
        assert line == text and text.startswith("HIT " if reused else "MISS ")
        assert level == (logging.DEBUG if reused else logging.INFO)
        lines.clear()


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'prle\[cluster\]'"):
        execute(quiet(tmp_path), asked(tmp_path), "ray")


@pytest.fixture
def lab(toy, tmp_path, monkeypatch):
    "Labs by the names of their folders, on the same data."
    monkeypatch.setitem(PRESETS, "tiny", replace(TINY, recipe=dict(epochs=3, batch_size=4)))
    data = write_square(toy, tmp_path / "square")
    return lambda name: quiet_lab(data, tmp_path / name)


def whole(lab):
    "Plain and masked trainings of two backbones on two manipulations, and statistics of their maps."
    for subset in lab.subsets:
        lab.statistics(Zoo(subset, fusion=IDENTITY))
        for backbone in lab.preset.backbones:
            for mask in ("none", "primary", "random"):
                lab.detector(backbone, subset, mask)


def planned_by(lab):
    dry = lab.dry()
    whole(dry)
    return dry.store


def results(lab):
    "What the runs hold, by their folders' names."
    tables = sorted((lab.outputs / "runs").glob("*/[!.]*/*.parquet"))
    return {p.parent.name: pd.read_parquet(p) for p in tables if p.name != "history.parquet"}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].equals(b[k]) for k in a)


def test_both_engines_come_to_the_same_numbers(lab, here):
    one, other = lab("local"), lab("ray")
    assert execute(one.store, planned_by(one)) == {}
    assert execute(other.store, planned_by(other), "ray") == {}
    assert len(results(one)) == 14 and same(results(one), results(other))


def killed_after(seconds, work):
    "Whether a forked process that does `work` was killed before it was through."
    if not (pid := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    os.waitpid(pid, 0)
    return True


def test_a_graph_that_is_killed_again_and_again_comes_to_the_same_numbers(lab):
    one, other = lab("whole"), lab("killed")
    start = time.monotonic()
    assert execute(one.store, planned_by(one)) == {}
    seconds = time.monotonic() - start
    assert other.fingerprint == one.fingerprint
    draw, kills = rng("kills"), 0

    def work():
        execute(other.store, planned_by(other))

    while killed_after(draw.uniform(0.05, 0.3) * seconds, work):
        kills += 1
        assert kills < 100
    assert kills >= 3 and same(results(one), results(other)), kills
    left = [p.name for p in (other.outputs / "runs").glob("*/.*")]
    assert left == [], "no leavings of the dead"


@pytest.fixture
def nodes(monkeypatch):
    "A cluster of a head that works on nothing and two nodes with a processor each."
    ray.shutdown()
    health = dict(initial_delay_ms=0, period_ms=1000, failure_threshold=5)
    quick = {f"health_check_{name}": value for name, value in health.items()}
    head = dict(num_cpus=0, include_dashboard=False, _system_config=quick)
    machines = Cluster(initialize_head=True, head_node_args=head)
    workers = [machines.add_node(num_cpus=1) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", machines.address)
    with cluster():
        yield machines, workers
    machines.shutdown()


def test_a_node_that_dies_costs_an_epoch(nodes, tmp_path):
    "Its run goes on elsewhere from the last epoch; what was finished is not made again."
    machines, workers = nodes
    dry, killed = asked(tmp_path, seconds=0.6), []

    def kill():
        while not (late := [n for n in notes(tmp_path) if n[0] in "abc" and n[1] == "1"]):
            time.sleep(0.02)
        killed.append(late[0])
        _, _, node, pid = late[0]
        os.kill(int(pid), signal.SIGSTOP)  # a machine stops at once; a worker may outlive its node
        victim = next(worker for worker in workers if worker.node_id == node)
        machines.remove_node(victim, allow_graceful=False)
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert execute(quiet(tmp_path), dry, "ray") == {}
    thread.join()
    (name, epoch, node, _), log = killed[0], notes(tmp_path)
    assert done(tmp_path) == ALL
    where = Counter((n, e) for n, e, *_ in log)
    repeated = [k for k, times in where.items() if times > 1]
    assert len(repeated) <= 1, "at most the epoch in progress"
    assert all(n == name and e >= epoch for n, e in repeated)
    afterwards = {n for n, *_ in log[log.index(killed[0]) + 1 :]}
    assert afterwards >= {name, "fused", "masked"}
    assert {node} < {where for _, _, where, _ in log}
    [run] = (tmp_path / "runs/detectors").glob(f"{name}-*")
    assert read_json(run / "provenance.json")["resumed"]
    (tmp_path / "one").mkdir()
    assert execute(quiet(tmp_path / "one"), asked(tmp_path / "one")) == {}

    def results(root):
        files = contents(root / "runs")
        return {name: files[name] for name in files if not name.endswith("provenance.json")}

    assert len(results(tmp_path)) == 16
    assert results(tmp_path) == results(tmp_path / "one"), "the same as in this process"


@pytest.fixture
def gpu(monkeypatch):
    "A cluster that believes to have a GPU, where the path of the temporary folder is too long for sockets."
    ray.shutdown()
    monkeypatch.setenv("TMPDIR", LONG)
    with cluster(num_cpus=1, num_gpus=1):
        yield


def test_runs_with_a_detector_get_their_share_of_a_gpu(gpu, tmp_path):
    def make(folder):
        given = ray.get_runtime_context().get_assigned_resources()
        kind = folder.parent.name
        note(tmp_path, kind, given.get("GPU", 0))

    for share in (1.0, 0.5):
        dry = DryStore(tmp_path / "runs")
        kinds = ("detectors", "maps", "fusions")
        runs = [dry.get(kind, kind, dict(share=share), make) for kind in kinds]
        assert execute(quiet(tmp_path, device="meta"), dry, "ray", share) == {}
        noted = {read_json(run.path / "provenance.json")["device"] for run in runs}
        assert noted == {"meta"}, "a worker notes the device that was asked for"
    shares = dict(detectors=[0.5, 1], fusions=[0, 0], maps=[0.5, 1])
    given = sorted((kind, float(part)) for kind, part in notes(tmp_path))
    assert given == [(kind, share) for kind in shares for share in shares[kind]]
