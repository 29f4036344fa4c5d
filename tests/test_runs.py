"""Runs: one maker each, whoever asks and whoever dies; corrupt results, full and closed disks; plans, lists, pruning.

Of prle.lab: claims, integrity, store, planning, administration."""

import errno
import logging
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import snapshot
from safetensors.numpy import save_file

from prle.core import collected_messages, digest, show_messages, write_json
from prle.core import log as messages
from prle.lab import administration, claims, integrity
from prle.lab import store as stores
from prle.lab.administration import (
    RUN_COLUMNS,
    damaged_runs,
    list_runs,
    needed_inputs,
    prune,
    reachable,
    record_runs,
    recorded_runs,
    run_text,
    runs_text,
    spared,
)
from prle.lab.claims import UNKNOWN, Claim, claimed, this_process
from prle.lab.integrity import check_run, code_modules, run_file
from prle.lab.planning import DryStore, estimate, plan_text, planned, remake, task_inputs
from prle.lab.store import PastRun, Run, RunFailed, RunStore, forget_failure
from prle.trust import (
    Damaged,
    made_folder,
    read_digests,
    read_json,
    read_sealed,
    read_whole,
    write_digests,
    write_sealed,
)

QUICK = dict(heartbeat=0.1, missed=10)
KEY = digest(["kind", {}])  # of an empty configuration
ELSEWHERE = ".prle-tmp-01234567-{}-0123abcd"  # what a process on another machine writes
CHILD = """
import logging, sys, time
from pathlib import Path
from prle.lab import claims, store as stores
from prle.core import temporary_name
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("prle").handlers.clear()
logging.getLogger("prle").setLevel(logging.DEBUG)
stores.provenance = dict
root, machine = Path(sys.argv[1]), sys.argv[2]
if machine: claims.this_machine = lambda: machine
store = stores.RunStore(root / "runs", heartbeat=0.1, missed=10)
def log(text):
    with open(root / "log", "a") as f: f.write(text + "\\n")
def until(name):
    while not (root / name).exists(): time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    "The machine's description takes longer than the tests."
    monkeypatch.setattr(stores, "provenance", dict)


@pytest.fixture
def processes(tmp_path):
    "Start processes that run a body after `CHILD`; none outlives the test."
    started = []

    def start(body, machine=""):
        p = subprocess.Popen(
            [sys.executable, "-c", CHILD + body, tmp_path, machine],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(OMP_NUM_THREADS="1"),
        )
        started.append(p)
        return p

    yield start
    for p in started:
        p.kill()
        p.communicate()


def make_answer(folder):
    (folder / "x").write_text("42")


def quick(root, **kwargs):
    return RunStore(root, **{**QUICK, **kwargs})


def telling(root, lines):
    "A store; `lines` holds what is said from now on."
    lines.clear()
    return quick(root)


def elsewhere(**changes):
    "The owner of a claim on another machine, as JSON."
    return asdict(this_process()) | dict(machine="elsewhere", host="elsewhere") | changes


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def log(root):
    return (root / "log").read_text().split() if (root / "log").exists() else []


def beside(run_path):
    "List what lies beside a run, without its name: lock, partial-1, failed.json."
    hidden = [p.name for p in run_path.parent.iterdir() if p.name.startswith(".")]
    return sorted(name.removeprefix(f".{run_path.name}.") for name in hidden)


def test_processes_that_race_make_a_run_once(tmp_path, processes):
    body = """
def make(folder): log("made"); time.sleep(0.3); (folder / "x").write_text("1")
log("ready"); until("go"); print(store.get("kind", "a", {}, make).reused)
"""
    ps = [processes(body) for _ in range(3)]
    wait_for(lambda: log(tmp_path).count("ready") == 3)
    (tmp_path / "go").touch()
    said = [p.communicate(timeout=30)[0] for p in ps]
    assert log(tmp_path).count("made") == 1
    assert sum("MISS" in s for s in said) == 1
    assert sum("HIT " in s and s.endswith("True\n") for s in said) == 2
    (path,) = (p for p in (tmp_path / "runs/kind").iterdir())
    assert path.name == f"a-{KEY}", "no lock and no working folder is left"


HALF_WAY = """
def make(folder):
    log("began"); (folder / "checkpoint").write_text("epoch 3"); (folder / temporary_name()).write_text("half")
    log("waits"); until("go"); (folder / "x").write_text("1")
store.get("kind", "a", {}, make, resume=True); log("done")
"""


def resumed(folder):
    "Only fills a folder that the killed worker has begun."
    there = sorted(p.name for p in folder.iterdir())
    assert there == ["checkpoint", "config.json", "provenance.json"], (
        "what was being written is not believed"
    )
    (folder / "x").write_text((folder / "checkpoint").read_text())


def test_a_killed_worker_is_succeeded_at_once_and_its_folder_continued(tmp_path, processes, lines):
    worker = processes(HALF_WAY)
    wait_for(lambda: "waits" in log(tmp_path))
    worker.send_signal(signal.SIGKILL)  # and is not reaped: a zombie counts as dead
    start = time.monotonic()
    time.sleep(0.05)
    run = quick(tmp_path / "runs", heartbeat=1000).get("kind", "a", {}, resumed, resume=True)
    assert time.monotonic() - start < 5 and not run.reused
    assert (run.path / "x").read_text() == "epoch 3"
    assert read_json(run.path / "provenance.json")["resumed"]
    assert f"taken over from pid {worker.pid} on" in lines[0]
    assert lines[0].endswith("goes on from what is left")
    assert beside(run.path) == []


def test_what_cannot_resume_starts_in_an_empty_folder(tmp_path, processes):
    worker = processes(HALF_WAY)
    wait_for(lambda: "waits" in log(tmp_path))
    worker.kill()
    worker.wait()
    seen = []
    run = quick(tmp_path / "runs").get(
        "kind", "a", {}, lambda folder: seen.extend(p.name for p in folder.iterdir())
    )
    assert sorted(seen) == ["config.json", "provenance.json"]
    assert not (run.path / "checkpoint").exists()
    assert not read_json(run.path / "provenance.json")["resumed"]


def test_of_several_waiters_one_takes_over(tmp_path, processes):
    worker = processes(HALF_WAY)
    wait_for(lambda: "waits" in log(tmp_path))
    body = """
def make(folder): log("again"); time.sleep(0.3)
print(store.get("kind", "a", {}, make, resume=True).reused)
"""
    waiters = [processes(body) for _ in range(2)]
    assert all(f"WAIT kind a-{KEY}: pid {worker.pid} on" in w.stdout.readline() for w in waiters)
    worker.kill()
    worker.wait()
    said = [w.communicate(timeout=30)[0] for w in waiters]
    assert log(tmp_path).count("again") == 1
    assert sorted(s.split()[-1] for s in said) == ["False", "True"]


def test_a_living_worker_is_not_robbed_however_slow(tmp_path, processes):
    worker = processes(HALF_WAY)
    wait_for(lambda: "waits" in log(tmp_path))
    worker.send_signal(signal.SIGSTOP)  # no heartbeat either
    waiter = processes("\nprint(store.get('kind', 'a', {}, lambda folder: log('robbed')).reused)")
    assert "WAIT" in waiter.stdout.readline()
    time.sleep(1.3)  # more than a worker on another machine is given
    worker.send_signal(signal.SIGCONT)
    (tmp_path / "go").touch()
    assert waiter.communicate(timeout=30)[0].endswith("True\n")
    assert log(tmp_path) == ["began", "waits", "done"]


def test_another_machine_is_judged_by_its_heartbeat(tmp_path, processes, lines):
    "A foreign worker that beats is left alone; one that stops is succeeded, and when it wakes up it harms nothing."
    worker = processes(HALF_WAY, "elsewhere")
    wait_for(lambda: "waits" in log(tmp_path))
    claim = Claim(tmp_path / f"runs/kind/.a-{KEY}.lock", **QUICK)
    end = time.monotonic() + 1.3
    while time.monotonic() < end:
        assert not claim.take() and claim.holder.pid == worker.pid
        time.sleep(0.05)
    worker.send_signal(signal.SIGSTOP)
    run = quick(tmp_path / "runs").get("kind", "a", {}, resumed, resume=True)
    assert "WAIT" in lines[0] and "taken over" in lines[1]
    worker.send_signal(signal.SIGCONT)
    (tmp_path / "go").touch()
    said = worker.communicate(timeout=30)[0]
    assert "LOST kind" in said and "HIT  kind" in said and log(tmp_path)[-1] == "done"
    assert (run.path / "x").read_text() == "epoch 3"
    assert beside(run.path) == []
    assert check_run(run.path, deep=True) is None


@pytest.mark.parametrize("clock", [-1e7, 1e7])
def test_other_machines_clocks_do_not_matter(tmp_path, monkeypatch, clock):
    lock = tmp_path / "lock"
    now = 0.0
    ours = SimpleNamespace(**vars(time) | dict(monotonic=lambda: now))
    monkeypatch.setattr("prle.lab.claims.time", ours)
    write_json(lock / "1", elsewhere(heartbeat=10))
    os.utime(lock / "1", (time.time() + clock,) * 2)
    claim = Claim(lock, heartbeat=10, missed=4)
    assert not claim.take() and claim.holder.machine == "elsewhere"
    dead = claim.holder
    now = 30.0
    os.utime(lock / "1", (time.time() + clock + 1,) * 2)
    assert not claim.take()
    now = 69.0
    assert not claim.take(), "it has given a sign of life"
    now = 71.0
    assert claim.take() and claim.number == 2 and claim.previous == dead
    claim.free()


def test_the_slower_heartbeat_counts(tmp_path):
    write_json(tmp_path / "lock/1", elsewhere(heartbeat=100))
    claim = Claim(tmp_path / "lock", heartbeat=0.01, missed=1)
    assert not claim.take()
    time.sleep(0.1)
    assert not claim.take()


def test_a_number_that_another_process_got_again_is_not_its_owner(tmp_path):
    write_json(tmp_path / "lock/1", asdict(this_process()) | dict(started="0"))
    claim = Claim(tmp_path / "lock", heartbeat=100)
    assert claim.take()
    claim.free()


def test_a_claim_without_a_name_is_respected_until_it_is_stale(tmp_path):
    (tmp_path / "1").touch()
    claim = Claim(tmp_path, heartbeat=0.05, missed=2)
    assert not claim.take() and claim.holder == UNKNOWN == claim.owner()
    time.sleep(0.2)
    assert claim.take()
    claim.free()


def test_a_machine_that_is_gone_does_not_work_for_ever(tmp_path):
    "One look believes an hour's silence; taking over needs watching. What nothing needs can be deleted."

    def stop(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path).get("kind", "a", {}, stop, resume=True)
    last = max((tmp_path / f"kind/.a-{KEY}.lock").iterdir(), key=lambda p: int(p.name))
    write_json(last, elsewhere(heartbeat=10))
    dry = DryStore(tmp_path)
    dry.get("kind", "a", {}, make_answer)
    for silence, state, action, note in (
        (600, "in progress", "wait", "since .*Z, last sign of life 10 min"),
        (7260, "interrupted", "make", "^last sign of life 2 h 01 min ago"),
    ):
        os.utime(last, (time.time() - silence,) * 2)
        (row,) = list_runs(tmp_path).to_dict("records")
        assert row["state"] == state
        assert re.search(note, row["note"])
        assert planned(dry).action.tolist() == [action]
        watched = Claim(last.parent, heartbeat=10)
        assert not watched.take()
        assert watched.holder.machine == "elsewhere", (
            "by the clock of another machine, which may be wrong"
        )
        gone = prune(tmp_path, [], delete=True)
        assert len(gone) == (state == "interrupted")
    assert not list(tmp_path.glob("kind/*")) and not list(tmp_path.glob("kind/.*"))


def test_silence_is_not_told_where_nothing_can_be_written(tmp_path, monkeypatch):
    write_json(tmp_path / "lock/1", elsewhere(heartbeat=10))
    os.utime(tmp_path / "lock/1", (0, 0))

    def closed(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    assert Claim(tmp_path / "lock").owner() is None
    monkeypatch.setattr(Path, "touch", closed)
    assert Claim(tmp_path / "lock").owner().machine == "elsewhere"


def test_one_process_at_a_time_works_on_what_is_claimed(tmp_path, monkeypatch, lines):
    def work(number):
        with claimed(tmp_path / "data/mini", heartbeat=0.1):
            lines.append(f"{number} begins")
            time.sleep(0.2)
            lines.append(f"{number} ends")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    said = [line for line in lines if not line.startswith("WAIT data mini: pid")]
    assert len(lines) > len(said) == 6
    assert all(said[i][0] == said[i + 1][0] for i in (0, 2, 4))
    assert not list((tmp_path / "data").iterdir())

    def closed(path, **kwargs):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(Path, "mkdir", closed)
    error = errno.EROFS
    with claimed(tmp_path / "data/mini"):
        lines.append("read")
    error = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"), claimed(tmp_path / "data/mini"):
        lines.append("not read")
    assert lines[-1] == "read"


def test_a_row_that_was_removed_meanwhile_gives_no_claim(tmp_path, monkeypatch):
    "Of a process that slept between looking and taking."
    live = Claim(tmp_path / "lock")
    assert live.take()
    late = Claim(tmp_path / "lock")
    monkeypatch.setattr(late, "_last", lambda: (3, None))
    assert not late.take() and late.holder == UNKNOWN
    assert os.listdir(tmp_path / "lock") == ["1"] and not live.lost
    monkeypatch.setattr(late, "_write", lambda *args: False)
    assert not late.take() and late.holder == UNKNOWN
    live.free()


def test_a_row_that_is_removed_while_it_is_opened_is_looked_at_again(tmp_path, monkeypatch):
    def vanishes(self, **kwargs):
        raise FileExistsError(errno.EEXIST, "File exists", str(self))

    claim = Claim(tmp_path / "lock")
    with monkeypatch.context() as m:
        m.setattr(Path, "mkdir", vanishes)
        assert not claim.take() and claim.holder == UNKNOWN
        (tmp_path / "lock").touch()
        with pytest.raises(FileExistsError):
            claim.take()


def test_a_full_disk_does_not_keep_a_claim(tmp_path, monkeypatch):
    claim = Claim(tmp_path / "lock")
    claim.take()

    def full(number, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(claim, "_write", full)
    claim.free()
    assert os.listdir(tmp_path / "lock") == []
    monkeypatch.setattr(claims.json, "dump", full)
    with pytest.raises(OSError, match="No space"):
        Claim(tmp_path / "lock").take()
    assert os.listdir(tmp_path / "lock") == [], "no nameless claim stays"


def test_the_store_says_what_it_does_and_why(tmp_path, lines):
    made = []

    def make(folder):
        return (made.append(1), make_answer(folder))

    store = telling(tmp_path, lines)
    first = store.get("kind", "a", dict(lr=1, p=2), make)
    assert store.get("kind", "a", dict(p=2, lr=1), make) == Run(first.path, first.key, True)
    assert len(made) == 1
    store.get("kind", "a", dict(lr=1, p=3), make)
    assert lines[0].endswith("not made yet")
    assert lines[1].endswith("differs from the nearest in p")
    assert store.summary() == "2 runs: 0 reused, 2 made."
    store.get("masked", "a", dict(data="1", detector="d1", quantiles="q1", p=1), make_answer)
    store.get("masked", "a", dict(data="2", detector="d2", quantiles="q2", p=1), make_answer)
    store.get("masked", "a", dict(data="3", detector="d2", quantiles="q2", p=3), make_answer)
    assert lines[-2].endswith("the data have changed")
    assert lines[-1].endswith("differs from the nearest in data, p")
    again = telling(tmp_path, lines)
    again.get("kind", "a", dict(lr=1, p=2), make)
    assert lines[-1] == f"HIT  kind {first.path.name}"
    assert again.summary() == "1 runs: 1 reused, 0 made."
    assert again.names() == [f"kind/{first.path.name}"]


def test_provenance_tells_when_how_long_and_from_what(tmp_path):
    store = quick(tmp_path)
    source = store.get("maps", "a", dict(n=1), lambda folder: time.sleep(0.02))
    origin = read_json(
        store.get("fusions", "a", dict(zoo=dict(maps=[source.key])), make_answer).path
        / "provenance.json"
    )
    assert origin["inputs"] == [f"maps/{source.path.name}"]
    assert origin["start"] <= origin["end"]
    assert origin["modules"] == code_modules()
    assert set(origin["files"]) == {"config.json", "x"}
    assert read_json(source.path / "provenance.json")["seconds"] >= 0.02


def test_other_code_is_named(tmp_path, lines):
    store = quick(tmp_path)
    run = store.get("kind", "a", {}, make_answer)
    origin = read_sealed(run.path / "provenance.json")
    older = {m: d for m, d in origin["modules"].items() if m != "masking"} | dict(trainer="0")
    for changes, text in (
        (dict(modules=older), "other code: masking, trainer differ"),
        (dict(modules={}), "other code"),
    ):
        write_sealed(run.path / "provenance.json", origin | dict(code="0") | changes)
        store = telling(tmp_path, lines)
        store.get("kind", "a", {}, make_answer)
        assert lines[-1].endswith(f"(made by {text})")
        assert store.names(other_code=True) == [f"kind/{run.path.name}"]
        assert len(list_runs(tmp_path, stale=True)) == 1
        assert len(list_runs(tmp_path, stale=False)) == 0
    assert quick(tmp_path).names(other_code=True) == []


def test_many_modules_that_differ_are_counted_and_named_where_a_run_is_shown():
    now = {f"m{i}": "new" for i in range(9)}
    made = dict(code="x", modules=dict.fromkeys(now, "old"))
    assert integrity.code_difference(made, now) == "other code: 9 modules differ"
    assert integrity.code_difference(made, now, most=9).endswith("m7, m8 differ")


def test_a_run_that_other_code_has_begun_is_marked(tmp_path):
    "Begun by one code, gone on with by a second, finished by the present one."

    def stop(folder):
        (folder / "checkpoint").write_text("epoch 3")
        raise KeyboardInterrupt

    for module in ("trainer", "masking", None):
        store = quick(tmp_path)
        if module:
            store.modules = {**store.modules, module: "0"}
            store.code = digest(store.modules)
            with pytest.raises(KeyboardInterrupt):
                store.get("kind", "a", {}, stop, resume=True)
    run = store.get("kind", "a", {}, resumed, resume=True)
    origin = read_json(run.path / "provenance.json")
    assert origin["code"] == store.code
    assert len(origin["earlier"]) == 2
    assert store.other_code(run.path) == "other code: masking, trainer differ"
    assert quick(tmp_path).get("kind", "a", {}, resumed).reused
    assert len(list_runs(tmp_path, stale=True)) == 1
    with pytest.raises(KeyboardInterrupt):
        store.get("kind", "b", {}, stop, resume=True)
    assert store.other_code(quick(tmp_path).get("kind", "b", {}, resumed, resume=True).path) == ""


def test_the_fingerprint_changes_with_the_code(tmp_path, monkeypatch):
    before = code_modules()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(integrity.prle, "__file__", str(tmp_path / "__init__.py"))
    assert digest(code_modules()) != digest(before) and list(code_modules()) == ["__init__"]


def test_a_failure_is_noted_and_tried_again(tmp_path, lines):
    store = quick(tmp_path)

    def stumble(folder):
        (folder / "half").touch()
        raise MemoryError("it was too much")

    with pytest.raises(MemoryError):
        store.get("kind", "a", {}, stumble)
    path = tmp_path / "kind" / f"a-{KEY}"
    assert beside(path) == ["failed.json", "lock"]
    assert not path.exists()
    assert store.summary() == "0 runs: 0 reused, 0 made."
    note = read_json(path.with_name(f".{path.name}.failed.json"))
    assert note["error"] == "MemoryError: it was too much" and "in stumble" in note["traceback"]
    (row,) = list_runs(tmp_path).to_dict("records")
    assert (row["state"], row["note"], row["made"]) == ("failed", note["error"], note["when"])
    telling(tmp_path, lines).get("kind", "a", {}, make_answer)
    assert f"tried again after MemoryError: it was too much ({note['when']})" in lines[0]
    assert beside(path) == []


def diverge(folder):
    (folder / "checkpoint").touch()
    raise FloatingPointError("the loss became nan")


def test_a_run_that_diverged_is_not_tried_again_by_the_same_code(tmp_path):
    store, made = quick(tmp_path), []
    with pytest.raises(RunFailed, match="kind/a-[0-9a-f]{16} failed: the loss became nan"):
        store.get("kind", "a", {}, diverge, resume=True)
    path = tmp_path / "kind" / f"a-{KEY}"
    assert beside(path) == ["failed.json", "lock"], "no checkpoint of a diverged training stays"
    with pytest.raises(RunFailed) as caught:
        quick(tmp_path).get("kind", "a", {}, made.append)
    assert (caught.value.run, caught.value.reason, made) == (
        f"kind/{path.name}",
        "the loss became nan",
        [],
    )
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.run, again.reason, str(again)) == (
        caught.value.run,
        caught.value.reason,
        str(caught.value),
    )
    other = quick(tmp_path)
    other.code = "other"
    assert other.get("kind", "a", {}, make_answer).path == path
    with pytest.raises(RunFailed):
        store.get("kind", "b", {}, diverge)
    forget_failure(tmp_path / "kind" / f"b-{KEY}")
    assert not quick(tmp_path).get("kind", "b", {}, make_answer).reused


def test_who_waits_for_a_run_that_diverges_does_not_train_it_again(tmp_path, processes):
    body = """
def make(folder): log("trains"); until("go"); raise FloatingPointError("the loss became nan")
try: store.get("kind", "a", {}, make, resume=True)
except stores.RunFailed as e: print(e)
"""
    worker = processes(body)
    wait_for(lambda: log(tmp_path) == ["trains"])
    waiters = [processes(body) for _ in range(2)]
    assert all("WAIT" in w.stdout.readline() for w in waiters)
    (tmp_path / "go").touch()
    assert all(
        "failed: the loss became nan" in p.communicate(timeout=30)[0] for p in (worker, *waiters)
    )
    assert log(tmp_path) == ["trains"]


def test_what_needs_a_diverged_run_is_blocked_and_the_rest_is_planned(tmp_path):
    with pytest.raises(RunFailed):
        quick(tmp_path).get("detectors", "X-DF-none", dict(name="X", lr=1), diverge)
    dry = DryStore(tmp_path)
    graph(dry)
    plan = planned(dry)
    assert plan.action.tolist() == [
        "failed",
        "make",
        "make",
        "blocked",
        "make",
        "make",
        "blocked",
        "blocked",
        "blocked",
    ]
    assert plan.reason[0] == "the loss became nan"
    assert (
        plan.reason[8]
        == f"needs {plan.kind[0]}/{plan.label[0]}-{plan.key[0]}, which failed: the loss became nan"
    )
    assert "9 runs: 0 reused, 1 failed, 4 blocked, 4 to make" in plan_text(plan)


def test_an_interruption_by_hand_is_no_failure_and_frees_the_run(tmp_path, lines):
    store = quick(tmp_path)

    def interrupted(folder):
        (folder / "checkpoint").write_text("epoch 3")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("kind", "a", {}, interrupted, resume=True)
    assert list_runs(tmp_path).state.tolist() == ["interrupted"]
    assert list_runs(tmp_path)["bytes"][0] > 0
    run = telling(tmp_path, lines).get("kind", "a", {}, resumed, resume=True)
    assert lines[0].endswith("was interrupted; goes on from what is left")
    assert beside(run.path) == []
    with pytest.raises(KeyboardInterrupt):
        store.get("kind", "b", {}, interrupted)
    assert not list(tmp_path.glob("kind/.*.partial-*"))


def test_a_run_that_needs_itself_stops(tmp_path):
    store = quick(tmp_path)
    with pytest.raises(RuntimeError, match="needs itself"):
        store.get("kind", "a", {}, lambda folder: store.get("kind", "a", {}, make_answer))
    assert not store.get("kind", "a", {}, make_answer).reused


@pytest.mark.parametrize("label", ["a/b", "../a", ".a", ""])
def test_labels_are_names(tmp_path, label):
    with pytest.raises(ValueError, match="the run's label .* cannot name a file"):
        quick(tmp_path).get("kind", label, {}, make_answer)


def fill(folder):
    "One file of each kind."
    pd.DataFrame(dict(a=range(1000))).to_parquet(folder / "scores.parquet")
    save_file(dict(w=np.ones(100)), folder / "model.safetensors")
    np.save(folder / "maps.npy", np.ones(100))
    (folder / "quantiles/A").mkdir(parents=True)
    for n in range(3):
        (folder / f"quantiles/A/{n}.png").write_bytes(b"a map")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    path.write_bytes(b"\x00" * path.stat().st_size)


@pytest.mark.parametrize("damage", [halve, garble, Path.unlink])
@pytest.mark.parametrize(
    "name", ["scores.parquet", "model.safetensors", "maps.npy", "config.json", "provenance.json"]
)
def test_corrupt_results_are_set_aside_and_made_again(tmp_path, name, damage, lines):
    run = quick(tmp_path).get("kind", "a", {}, fill)
    damage(run.path / name)
    again = telling(tmp_path, lines).get("kind", "a", {}, fill)
    assert not again.reused and again.path == run.path and check_run(run.path, deep=True) is None
    assert f"cannot be read: {name} " in lines[0]
    assert lines[0].endswith(f"set aside as {run.path.name}.corrupt-1")
    damage(run.path / name)
    quick(tmp_path).get("kind", "a", {}, fill)
    assert sorted(list_runs(tmp_path).state) == ["corrupt", "corrupt", "finished"]
    assert (tmp_path / f"kind/{run.path.name}.corrupt-2").exists()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), Path.unlink])
def test_a_map_that_is_no_more_is_missed(tmp_path, damage, lines):
    run = quick(tmp_path).get("kind", "a", {}, fill)
    damage(run.path / "quantiles/A/1.png")
    assert not telling(tmp_path, lines).get("kind", "a", {}, fill).reused
    assert re.search(
        r"cannot be read: quantiles/A/1.png (is missing|has changed since it was written); set aside",
        lines[0],
    )
    assert check_run(run.path, deep=True) is None


def test_a_file_system_that_fails_is_not_a_corrupt_run(tmp_path, monkeypatch):
    run = quick(tmp_path).get("kind", "a", {}, fill)

    def fail(path, *_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("prle.core._content_digest", fail)
    with pytest.raises(OSError, match="Input/output"):
        quick(tmp_path).get("kind", "a", {}, fill)
    assert [p.name for p in run.path.parent.iterdir()] == [run.path.name]


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("I/O error: No space left on device"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda e: type(e).__name__ + str(e)[:9])
def test_a_full_disk_names_the_folder_and_leaves_no_half_run(tmp_path, error):
    store = quick(tmp_path)

    def full(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    with pytest.raises(
        OSError,
        match=f"No space left on device: {tmp_path}/kind cannot take the run a-.*prle runs prune.*PRLE_OUTPUTS",
    ) as e:
        store.get("kind", "a", {}, full)
    assert e.value.errno == errno.ENOSPC
    assert not list(tmp_path.rglob("model*"))
    assert list_runs(tmp_path).state.tolist() == ["failed"]
    assert not store.get("kind", "a", {}, make_answer).reused


def test_a_full_disk_does_not_cost_the_checkpoint(tmp_path):
    def full(folder):
        (folder / "checkpoint").write_text("epoch 3")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="cannot take the run"):
        quick(tmp_path).get("kind", "a", {}, full, resume=True)
    assert (
        quick(tmp_path).get("kind", "a", {}, resumed, resume=True).path / "x"
    ).read_text() == "epoch 3"


def test_other_errors_of_the_work_are_its_own(tmp_path):
    def missing(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "face.png")

    with pytest.raises(PermissionError, match="face.png"):
        quick(tmp_path).get("kind", "a", {}, missing)


def test_what_may_not_be_read_is_not_called_corrupt():
    "Root may read everything, so a process that gives root up looks; one file is closed, and one whole run."
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "runs"
        os.chmod(place, 0o755)
        for label in "abc":
            quick(root).get("kind", label, dict(label=label), make_answer)
        (file,) = root.glob("kind/a-*/x")
        (run,) = root.glob("kind/b-*")
        os.chmod(file, 0), os.chmod(run, 0)
        code = f"""
import os
from prle.lab.administration import damaged_runs, list_runs, runs_text
if os.geteuid() == 0: os.setgid(65534), os.setuid(65534)
print(runs_text(damaged_runs({place + "/runs"!r}, list_runs({place + "/runs"!r}))))"""
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        os.chmod(run, 0o755)
    assert re.search(rf"kind/a-.* unreadable .*Permission denied: {file}", said.stdout), said
    assert re.search(rf"kind/b-.* unreadable .*Permission denied: {run}", said.stdout)
    assert "2 runs (2 unreadable)" in said.stdout and "corrupt" not in said.stdout


@pytest.mark.parametrize("place", ["runs", "runs/kind"])
def test_a_file_in_the_folders_place_is_named(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    with pytest.raises(
        OSError, match=f"{tmp_path}/runs/kind cannot take the run.*another folder with PRLE_OUTPUTS"
    ):
        quick(tmp_path / "runs").get("kind", "a", {}, make_answer)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_closed_store_can_be_read(tmp_path, monkeypatch, code):
    run = quick(tmp_path).get("kind", "a", {}, make_answer)
    mkdir = os.mkdir

    def closed(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path)):
            raise OSError(code, os.strerror(code), str(path))
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", closed)
    before = sorted(tmp_path.rglob("*"))
    store = quick(tmp_path)
    assert store.get("kind", "a", {}, make_answer) == (run.path, run.key, True)
    with pytest.raises(
        OSError, match=f"{os.strerror(code)}: {tmp_path}/kind cannot take the run b-"
    ):
        store.get("kind", "b", {}, make_answer)
    assert sorted(tmp_path.rglob("*")) == before


def graph(store, lr=1, fail=False):
    "Three detectors, their maps, a fusion, a masked detector, and one that nothing is made from."
    plain = [
        store.get("detectors", f"{b}-DF-none", dict(name=b, lr=lr), make_answer) for b in "XYZ"
    ]
    maps = [
        store.get("maps", f"{b}-DF", dict(detector=d.key), make_answer)
        for b, d in zip("XYZ", plain)
    ]
    fused = store.get("fusions", "DF", dict(maps=[m.key for m in maps]), make_answer)
    store.get("detectors", "X-DF-primary", dict(name="X", lr=lr, quantiles=fused.key), make_answer)
    return store.get("statistics", "DF-X", dict(maps=maps[0].key), make_answer)


def test_the_plan_is_what_then_happens(tmp_path, lines):
    real = quick(tmp_path)
    real.get("detectors", "Y-DF-none", dict(name="Y", lr=1), make_answer)
    garble(
        real.get("detectors", "Z-DF-none", dict(name="Z", lr=1), make_answer).path / "config.json"
    )
    dry = DryStore(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    last = graph(dry)
    assert sorted(tmp_path.rglob("*")) == before and not last.path.exists() and not last.reused
    assert lines[2:] == [], "a dry store says nothing"
    store = telling(tmp_path, lines)
    graph(store)
    plan = planned(dry)
    said = [s.replace(":", "").split()[:3] for s in lines]
    assert said == [
        [dict(reuse="HIT", make="MISS")[p.action], p.kind, f"{p.label}-{p.key}"]
        for p in plan.itertuples()
    ]
    assert plan.action.value_counts().to_dict() == dict(make=8, reuse=1)
    assert dry.names() == store.names()
    assert "8 to make" in dry.summary()
    assert plan.reason[2].startswith("cannot be read: config.json")
    dry = DryStore(tmp_path)
    graph(dry), graph(dry)
    assert planned(dry).action.tolist() == ["reuse"] * 9
    assert plan_text(planned(dry)).endswith("9 runs: 9 reused, 0 to make in about 0 s.")


def test_what_a_run_waits_for_is_of_the_right_kind(tmp_path):
    "Two kinds of runs may have the same configuration."
    dry = DryStore(tmp_path)
    same = [dry.get(kind, "a", dict(n=1), make_answer) for kind in ("fusions", "statistics")]
    last = dry.get("detectors", "b", dict(quantiles=same[0].key), make_answer)
    assert task_inputs(dry.tasks)[f"detectors/{last.path.name}"] == [f"fusions/{same[0].path.name}"]


def test_a_plan_estimates_from_the_nearest_runs(tmp_path):
    for label, seconds in (("X-DF", 100), ("X-FS", 300), ("Y-DF", 7000)):
        run = quick(tmp_path).get("detectors", label, dict(label=label), make_answer)
        write_sealed(
            run.path / "provenance.json",
            read_sealed(run.path / "provenance.json") | dict(seconds=seconds),
        )
    dry = DryStore(tmp_path)
    dry.get("detectors", "X-NT", dict(label="X-NT"), make_answer)
    dry.get("detectors", "Z-NT", dict(label="Z-NT"), make_answer)
    dry.get("maps", "X-NT", dict(label="X-NT"), make_answer)
    plan = planned(dry)
    assert plan.seconds[:2].tolist() == [200, 300] and np.isnan(plan.seconds[2])
    assert plan_text(plan).endswith("3 to make in about 8 min, 1 of them like none before.")


def test_resumed_runs_do_not_count_as_quick():
    past = [
        PastRun("a-0", {}, dict(seconds=1, resumed=True)),
        PastRun("a-1", {}, dict(seconds=9)),
        PastRun("a-2", {}, {}),
    ]
    assert estimate("a-3", {}, past) == 9


@pytest.mark.parametrize(
    "change, seconds",
    [
        ({}, 10),
        ({"recipe.epochs": 3}, 30),
        ({"recipe.seed": 1}, 10),
        ({"data": "b"}, None),
        ({"width": 0.5}, None),
        ({"recipe.batch": 8}, None),
        ({"size": 64}, None),
    ],
)
def test_a_run_of_another_size_tells_no_time(change, seconds):
    "A smoke run, or a trial of one epoch, must not make a long training look short."
    here = {
        "data": "a",
        "width": 1.0,
        "size": 128,
        "recipe.epochs": 1,
        "recipe.batch": 32,
        "recipe.seed": 0,
    }
    found = estimate("X-DF", {**here, **change}, [PastRun("X-DF", here, dict(seconds=10.0))])
    assert found == seconds if seconds else np.isnan(found)


def test_a_plan_knows_what_others_are_making(tmp_path, processes):
    worker = processes(HALF_WAY)
    wait_for(lambda: "waits" in log(tmp_path))
    dry = DryStore(tmp_path / "runs")
    dry.get("kind", "a", {}, make_answer)
    (row,) = planned(dry).to_dict("records")
    assert row["action"] == "wait" and row["reason"].startswith(f"pid {worker.pid} on")
    (row,) = list_runs(tmp_path / "runs").to_dict("records")
    assert row["state"] == "in progress"
    assert row["note"].startswith(f"pid {worker.pid} on")
    assert row["bytes"] > 0


def test_runs_are_listed_and_filtered(tmp_path):
    assert len(list_runs(tmp_path / "none")) == 0
    assert runs_text(list_runs(tmp_path / "none")).startswith("0 runs (none), 0 B")
    graph(quick(tmp_path))
    table = list_runs(tmp_path)
    assert len(table) == 9
    assert set(table.state) == {"finished"}
    assert (table["bytes"] > 0).all()
    assert table.made.str.match(r"\d{4}-\d\d-\d\dT").all()
    assert list_runs(tmp_path, kind="detectors", pattern="^[XY]-").label.tolist() == [
        "X-DF-none",
        "X-DF-primary",
        "Y-DF-none",
    ]
    with pytest.raises(ValueError, match="unknown kind of run 'map'.*'maps'"):
        list_runs(tmp_path, kind="map")
    text = runs_text(table)
    assert "fusions/DF-" in text and text.endswith("0 made by other code.")


def test_prune_keeps_what_is_needed(tmp_path):
    graph(quick(tmp_path)), graph(quick(tmp_path), lr=2)
    keep = DryStore(tmp_path)
    keep.get(
        "fusions",
        "DF",
        read_json(next((tmp_path / "fusions").iterdir()) / "config.json"),
        make_answer,
    )
    every = set(tmp_path.rglob("*"))
    gone = prune(tmp_path, keep.names())
    assert set(tmp_path.rglob("*")) == every, "nothing is deleted unasked"
    assert gone.kind.value_counts().to_dict() == dict(detectors=5, maps=3, statistics=2, fusions=1)
    assert list(gone.columns) == RUN_COLUMNS
    assert len(prune(tmp_path, keep.names(), delete=True)) == 11 and len(list_runs(tmp_path)) == 7
    again = quick(tmp_path)
    lr = read_json(next((tmp_path / "detectors").iterdir()) / "config.json")["lr"]
    graph(again, lr)
    assert again.summary() == "9 runs: 7 reused, 2 made."
    assert len(prune(tmp_path, [], delete=True)) == 9
    assert not any(any(p.iterdir()) for p in tmp_path.iterdir())


def test_prune_takes_leavings_along_but_not_of_needed_runs(tmp_path):
    store = quick(tmp_path)
    run = store.get("kind", "a", {}, make_answer)
    halve(run.path / "config.json")
    quick(tmp_path).get("kind", "a", {}, make_answer)

    def fail(folder):
        raise KeyboardInterrupt

    for label in "bc":
        with pytest.raises(KeyboardInterrupt):
            store.get("kind", label, {}, fail, resume=True)
    gone = prune(tmp_path, {f"kind/{run.path.name}", f"kind/b-{KEY}"}, delete=True)
    assert sorted(zip(gone.label, gone.state)) == [("a", "corrupt"), ("c", "interrupted")]
    assert run.path.exists() and list_runs(tmp_path).label.tolist() == ["b", "a"]


def test_prune_spares_what_others_hold_and_what_that_needs(tmp_path, processes):
    source, other = (
        quick(tmp_path / "runs").get("maps", label, dict(n=label), make_answer)
        for label in ("used", "unused")
    )
    worker = processes(HALF_WAY.replace('"a", {}', f'"a", dict(maps=["{source.key}"])'))
    wait_for(lambda: "waits" in log(tmp_path))
    assert prune(tmp_path / "runs", [], delete=True).label.tolist() == ["unused"]
    assert source.path.exists() and not other.path.exists()
    (tmp_path / "go").touch()
    worker.communicate(timeout=30)
    assert log(tmp_path)[-1] == "done"
    held = Claim(tmp_path / f"runs/maps/.{source.path.name}.lock")
    held.take()
    assert prune(tmp_path / "runs", []).kind.tolist() == ["kind"]
    assert not administration._delete(source.path)
    held.free()
    (tmp_path / "runs/kind/.prle-del-12345678").mkdir()
    assert len(prune(tmp_path / "runs", [], delete=True)) == 2
    assert not list((tmp_path / "runs").glob("*/*"))


def test_recorded_runs_are_read_from_the_tables(tmp_path):
    a, b, c = (f"{kind}-{KEY}" for kind in ("maps/a", "maps/b", "fusions/c"))
    write_json(tmp_path / "mini/tables/table1.provenance.json", dict(runs=[a, b]))
    write_json(tmp_path / "elsewhere/figures/figure3.provenance.json", dict(runs=[a, c]))
    (tmp_path / "outputs").mkdir()
    for name in ("mini", "elsewhere"):
        (tmp_path / "outputs" / name).symlink_to(tmp_path / name)
    (tmp_path / "mini/loop").symlink_to(tmp_path)
    assert recorded_runs(tmp_path / "outputs") == {a, b, c}
    assert recorded_runs(tmp_path / "nowhere") == set()
    assert reachable({"c": ["b"], "b": ["a"], "d": ["a"]}, ["c", "unknown"]) == {
        "a",
        "b",
        "c",
        "unknown",
    }


def filled(folder):
    "As `fill`, the quantile maps with their digests."
    fill(folder)
    with made_folder(folder / "many", "quantile maps") as new:
        for n in range(3):
            (new / f"{n}.png").write_bytes(bytes([n] * 40))
        write_digests(new)


def says_the_same(text, other):
    "Whether two JSON texts are one: the seventeenth digit of a number may be another of the same number."
    try:
        return json.loads(text) == json.loads(other)
    except ValueError:
        return False


def test_every_flipped_bit_is_found(tmp_path):
    "In each file of a run; those that a table of digests covers when they are read, or all are."
    run, tried = quick(tmp_path).get("kind", "a", {}, filled), 0
    for path in sorted(p for p in run.path.rglob("*") if p.is_file()):
        whole, name = path.read_bytes(), path.relative_to(run.path).as_posix()
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            if name.endswith(".json") and says_the_same(flipped, whole):
                continue
            path.write_bytes(flipped)
            with pytest.raises(Damaged, match=name) as e:
                check_run(run.path, deep=True)
            assert len(str(e.value)) < 500
            if not name.endswith(".png") or "quantiles" in name:
                with pytest.raises(Damaged, match=name):
                    check_run(run.path)
            tried += 1
        path.write_bytes(whole)
    check_run(run.path, deep=True)
    assert tried > 300


def test_a_file_is_compared_when_it_is_read(tmp_path):
    run = quick(tmp_path).get("kind", "a", {}, fill)
    assert run_file(run.path, "maps.npy") == run.path / "maps.npy"
    for name in ("thesis", "provenance.json"):
        with pytest.raises(Damaged, match=f"has no {name}"):
            run_file(run.path, name)
    garble(run.path / "maps.npy")
    with pytest.raises(Damaged, match="maps.npy has changed"):
        run_file(run.path, "maps.npy")
    assert run_file(run.path, "scores.parquet").exists()


def test_an_unchanged_file_is_read_once_a_process(tmp_path, monkeypatch):
    quick(tmp_path).get("kind", "a", {}, fill)
    time.sleep(0.05)  # what was written just now is read again
    quick(tmp_path).get("kind", "a", {}, fill)
    monkeypatch.setattr("prle.core.hashlib.file_digest", lambda *a: pytest.fail("read again"))
    assert quick(tmp_path).get("kind", "a", {}, fill).reused


def test_a_run_is_read_again_only_after_it_has_changed(tmp_path, monkeypatch):
    run, opened = quick(tmp_path).get("kind", "a", {}, fill), []
    real = integrity.read_config
    monkeypatch.setattr(
        "prle.lab.integrity.read_config", lambda path: opened.append(path) or real(path)
    )
    time.sleep(0.05)  # what was written just now is read again
    one = integrity.read_run(run.path)
    one[0]["lr"] = "spoilt"
    assert integrity.read_run(run.path)[0] == {} and len(opened) == 1
    (run.path / "config.json").write_text('{"n": 1}')
    with pytest.raises(Damaged, match="config.json has changed"):
        integrity.read_run(run.path)


def test_a_run_under_another_name_is_not_believed(tmp_path, lines):
    run = quick(tmp_path).get("kind", "a", dict(n=1), make_answer)
    key = digest(["kind", dict(n=2)])
    os.rename(run.path, tmp_path / f"kind/a-{key}")
    assert not telling(tmp_path, lines).get("kind", "a", dict(n=2), make_answer).reused
    assert "provenance.json is of another run" in lines[0]


def test_keys_are_the_same_when_they_are_read_back(tmp_path):
    "Numbers as names sort otherwise than words."
    config = dict(sizes={10: 1, 9: 2}, pair=(1, 2))
    assert not quick(tmp_path).get("kind", "a", config, make_answer).reused
    assert quick(tmp_path).get("kind", "a", config, make_answer).reused


def test_an_input_that_is_found_damaged_by_a_reader_is_set_aside_and_made_again(tmp_path):
    "One map among many is only compared when it is read."
    store = quick(tmp_path)

    def source(store):
        return store.get("fusions", "f", {}, filled)

    def train(folder):
        for n in range(3):
            read_whole(path / f"many/{n}.png", read_digests(path / "many")[f"{n}.png"])
        make_answer(folder)

    path = source(store).path
    garble(path / "many/1.png")
    assert source(quick(tmp_path)).reused, "which does not read all maps"
    store = quick(tmp_path)
    aside = f"fusions/{path.name} is set aside as {path.name}.corrupt-1. Start again"
    fault = f"many/1.png has changed since it was written; {aside}"
    with pytest.raises(Damaged, match=fault) as e:
        store.get("detectors", "d", dict(quantiles=source(store).key), train)
    assert len(str(e.value)) < 400 and not path.exists() and beside(path) == []
    again = quick(tmp_path)
    made = source(again)
    assert not made.reused
    assert not again.get("detectors", "d", dict(quantiles=made.key), train).reused


def causes(run):
    "Why a run was made, attempt by attempt."
    return [why["cause"] for why in read_json(run.path / "provenance.json")["why"]]


def test_the_reason_is_kept_with_the_run(tmp_path):
    store = quick(tmp_path)
    run = store.get("kind", "a", {}, make_answer)
    [why] = read_json(run.path / "provenance.json")["why"]
    assert why == dict(cause="new", text="not made yet", when=why["when"])
    garble(run.path / "x")
    again = quick(tmp_path).get("kind", "a", {}, make_answer)
    [why] = read_json(again.path / "provenance.json")["why"]
    assert why["cause"] == "damaged"
    assert why["text"].startswith("cannot be read: x has changed since it was written; set aside")


def test_a_run_made_in_several_attempts_keeps_the_reason_of_each(tmp_path):
    def stop(folder):
        (folder / "checkpoint").write_text("epoch 3")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path).get("kind", "a", {}, stop, resume=True)
    assert causes(quick(tmp_path).get("kind", "a", {}, resumed, resume=True)) == [
        "new",
        "interrupted",
    ]


def test_other_code_is_the_reason_for_another_try_of_what_diverged(tmp_path, lines):
    with pytest.raises(RunFailed):
        quick(tmp_path).get("kind", "a", {}, diverge)
    other = telling(tmp_path, lines)
    other.code = "other"
    assert causes(other.get("kind", "a", {}, make_answer)) == ["other code"]
    assert "tried again by other code after FloatingPointError: the loss became nan" in lines[0]


def test_runs_without_a_reason_are_read(tmp_path):
    "Those of older stores."
    run = quick(tmp_path).get("kind", "a", {}, make_answer)
    origin = read_sealed(run.path / "provenance.json")
    del origin["why"]
    write_sealed(run.path / "provenance.json", origin)
    assert quick(tmp_path).get("kind", "a", {}, make_answer).reused
    assert list_runs(tmp_path).state.tolist() == ["finished"]
    assert "why:\n  not noted" in run_text(tmp_path, "kind/a")


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_kind_is_made_again_on_purpose_and_nothing_else(tmp_path, lines):
    graph(quick(tmp_path))
    before = {p.name: files(p) for p in tmp_path.iterdir()}
    dry = DryStore(tmp_path)
    graph(dry)
    [fused] = remake(dry, ["fusions"])
    dry = DryStore(tmp_path)
    graph(dry)
    plan = planned(dry)
    assert plan.action.value_counts().to_dict() == dict(reuse=8, make=1)
    [row] = plan[plan.action == "make"].itertuples()
    assert f"{row.kind}/{row.label}-{row.key}" == fused
    assert row.reason.startswith("asked for; the earlier result is set aside as DF-")
    store = telling(tmp_path, lines)
    graph(store)
    assert store.summary() == "9 runs: 8 reused, 1 made."
    assert [line for line in lines if line.startswith("MISS")] == [
        f"MISS {fused.replace('/', ' ')}: {row.reason}"
    ]
    after = {p.name: files(p) for p in tmp_path.iterdir()}
    assert {kind for kind in before if before[kind] != after[kind]} == {"fusions"}, (
        "what rests on it has the same configuration, and stays"
    )
    graph(again := quick(tmp_path))
    assert again.summary() == "9 runs: 9 reused, 0 made."
    assert not damaged_runs(tmp_path, list_runs(tmp_path)).size, "what was replaced is no damage"
    text = run_text(tmp_path, fused)
    assert "why:" in text and "asked for" in text and "replaced-1, with the same files" in text


def test_that_a_run_was_asked_for_survives_a_death(tmp_path):
    def stop(folder):
        raise KeyboardInterrupt

    def ask(make):
        return quick(tmp_path).get("kind", "a", {}, make)

    ask(make_answer)
    dry = DryStore(tmp_path)
    dry.get("kind", "a", {}, make_answer)
    assert len(remake(dry, ["kind"])) == 1
    with pytest.raises(KeyboardInterrupt):
        ask(stop)
    assert causes(ask(make_answer)) == ["asked for"]
    assert sorted(list_runs(tmp_path).state) == ["finished", "replaced"]
    assert prune(tmp_path, [f"kind/a-{KEY}"], delete=True).state.tolist() == ["replaced"]
    assert list_runs(tmp_path).state.tolist() == ["finished"]


def test_what_others_work_on_and_what_is_not_there_is_not_replaced(tmp_path):
    run = quick(tmp_path).get("kind", "a", {}, make_answer)
    dry = DryStore(tmp_path)
    dry.get("kind", "a", {}, make_answer)
    dry.get("kind", "b", dict(n=1), make_answer)
    with pytest.raises(ValueError, match="unknown kind of run 'kinds'. Did you mean 'kind'"):
        remake(dry, ["kinds"])
    held = Claim(tmp_path / f"kind/.{run.path.name}.lock")
    assert held.take() and remake(dry, ["kind"]) == [] and run.path.exists()
    held.free()
    assert remake(dry, ["kind"]) == [f"kind/{run.path.name}"]


def test_a_run_is_shown_in_full(tmp_path):
    graph(quick(tmp_path))
    text = run_text(tmp_path, "detectors/X-DF-primary")
    for part in ("state:  finished", "code:   the present code", "not made yet", "lr = 1"):
        assert part in text
    assert re.search(r"inputs:\n  fusions/DF-[0-9a-f]{16}\n", text)
    assert re.search(r"files:\n.*\n  x  2 B  [0-9a-f]{16}\n", text)
    [fused] = (tmp_path / "fusions").iterdir()
    os.rename(fused, tmp_path / "away")
    text = run_text(tmp_path, "detectors/X-DF-primary")
    assert f"fusions/{fused.name}, which is not there any more" in text
    with pytest.raises(ValueError, match="may be detectors/X-.*say more of the name"):
        run_text(tmp_path, "detectors/X")
    with pytest.raises(ValueError, match="unknown run 'detektors'"):
        run_text(tmp_path, "detektors")


def test_a_run_that_is_not_finished_is_shown_too(tmp_path):
    def stumble(folder):
        raise MemoryError("it was too much")

    with pytest.raises(MemoryError):
        quick(tmp_path).get("kind", "a", dict(lr=1), stumble, resume=True)
    text = run_text(tmp_path, "kind/a")
    assert "state:  failed, MemoryError: it was too much" in text
    assert "in stumble" in text and "lr = 1" in text


ALIEN = [
    "[]",
    "null",
    "3",
    '"x"',
    "{",
    "",
    "\x00\xff",
    "[" * 10**5,
    '{"a": 1, "a": 2}',
    '{"error": 3, "when": [], "seconds": "x", "files": 3, "run": null, "pid": "x"}',
]


@pytest.mark.parametrize("content", ALIEN, ids=range(len(ALIEN)))
@pytest.mark.parametrize("name", ["config.json", "provenance.json"])
def test_alien_records_of_runs_are_no_traceback(tmp_path, name, content):
    run = quick(tmp_path).get("kind", "a", {}, make_answer)
    (run.path / name).write_text(content)
    (row,) = list_runs(tmp_path).to_dict("records")
    assert row["state"] == "corrupt"
    assert name in row["note"]
    assert len(row["note"]) < 300
    assert len(damaged_runs(tmp_path, list_runs(tmp_path))) == 1
    dry = DryStore(tmp_path)
    dry.get("kind", "a", {}, make_answer), dry.get("kind", "b", dict(n=1), make_answer)
    assert planned(dry).action.tolist() == ["make", "make"] and dry.names(other_code=True) == []
    assert len(spared(tmp_path)) == 1 and runs_text(spared(tmp_path))
    if name == "config.json":
        with pytest.raises(
            ValueError, match=f"What kind/{run.path.name} is made from is not known"
        ):
            prune(tmp_path, [], delete=True)
    else:
        assert len(prune(tmp_path, [], delete=True)) == 0
    assert run.path.exists() and not quick(tmp_path).get("kind", "a", {}, make_answer).reused


def test_records_with_wrong_types_inside_are_refused_even_if_sealed(tmp_path):
    run = quick(tmp_path).get("kind", "a", {}, make_answer)
    origin = read_sealed(run.path / "provenance.json")
    for wrong in (
        dict(seconds="x"),
        dict(files=3),
        dict(run=None),
        dict(modules=[]),
        dict(earlier={}),
        dict(end=7),
    ):
        write_sealed(run.path / "provenance.json", origin | wrong)
        with pytest.raises(Damaged, match=f"provenance.json: {next(iter(wrong))} is"):
            check_run(run.path)


@pytest.mark.parametrize("content", ALIEN, ids=range(len(ALIEN)))
def test_alien_notes_beside_runs_are_no_traceback(tmp_path, content):
    path = tmp_path / f"kind/a-{KEY}"
    for what in ("failed.json", "lock/1", "partial-1/config.json", "partial-2/provenance.json"):
        (file := path.parent / f".{path.name}.{what}").parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    before = snapshot(tmp_path)
    assert len(list_runs(tmp_path)) == 1 and runs_text(list_runs(tmp_path))
    assert Claim(path.with_name(f".{path.name}.lock")).owner() in (UNKNOWN, None)
    dry = DryStore(tmp_path)
    dry.get("kind", "a", {}, make_answer)
    assert planned(dry).action[0] in ("make", "wait") and len(spared(tmp_path)) == 1
    with pytest.raises(ValueError, match="is made from is not known"):
        prune(tmp_path, [], delete=True)
    assert snapshot(tmp_path) == before
    for n in (1, 2):
        (path.with_name(f".{path.name}.partial-{n}") / "thesis").touch()
    run = RunStore(tmp_path, heartbeat=0.02, missed=2).get("kind", "a", {}, make_answer)
    assert check_run(run.path) is None
    assert len(list(tmp_path.rglob("thesis"))) == 2, "what others have put there stays"


@pytest.mark.parametrize(
    "claim",
    [
        dict(pid="x"),
        dict(host=3),
        dict(machine=None),
        dict(heartbeat="x"),
        dict(heartbeat=1e300),
        dict(pid=-1),
        dict(pid=10**30),
        dict(since=[]),
    ],
)
def test_claims_with_wrong_types_inside_are_no_traceback(tmp_path, claim):
    (tmp_path / "kind").mkdir()
    write_json(
        tmp_path / f"kind/.a-{KEY}.lock/1",
        elsewhere(heartbeat=1) | claim,
    )
    assert len(list_runs(tmp_path)) == 1 and len(prune(tmp_path, [], delete=True)) == 0
    Claim(tmp_path / f"kind/.a-{KEY}.lock", heartbeat=0.1).take()


def test_pipes_do_not_stop_anything(tmp_path):
    "In place of any file of a run, its notes and its claims."
    run = quick(tmp_path).get("kind", "a", {}, fill)
    for path in sorted(p for p in run.path.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(Damaged, match=f"{path.name} is no ordinary file"):
            check_run(run.path, deep=True)
        list_runs(tmp_path)
        path.unlink()
        path.write_bytes(whole)
    for what in ("failed.json", "lock/1"):
        (file := run.path.parent / f".{run.path.name}.{what}").parent.mkdir(exist_ok=True)
        os.mkfifo(file)
    assert len(list_runs(tmp_path)) == 1 and len(prune(tmp_path, [], delete=True)) == 0
    os.mkfifo(tmp_path / "note.provenance.json")
    with pytest.raises(ValueError, match="note.provenance.json is no ordinary file"):
        recorded_runs(tmp_path)


def whole_store(root):
    "A store in which a needed and a needless run lie, beside nothing else."
    needed, lost = (
        quick(root).get("kind", label, dict(n=label), filled) for label in ("needed", "lost")
    )
    return needed.path, lost.path


def a_folder_named_like_a_run(root, lost):
    (root / f"kind/thesis-{KEY}").mkdir()
    (root / f"kind/thesis-{KEY}/chapter").touch()


def a_run_without_provenance(root, lost):
    (lost / "provenance.json").unlink()


def a_file_in_a_run(root, lost):
    (lost / "thesis").touch()


def a_file_among_its_maps(root, lost):
    (lost / "many/thesis").touch()


def a_link_in_a_run(root, lost):
    (lost / "data").symlink_to(root.parent / "outside")


def a_copy_under_another_name(root, lost):
    os.rename(lost, lost.with_name(f"other-{lost.name[-16:]}"))
    (root / "kind" / f"other-{lost.name[-16:]}" / "config.json").unlink()


def a_file_named_like_a_run(root, lost):
    (root / f"kind/b-{KEY}").touch()


def a_kind_that_is_a_link(root, lost):
    os.rename(root / "kind", root.parent / "outside/kind")
    (root / "kind").symlink_to(root.parent / "outside/kind")


def a_run_that_is_a_link(root, lost):
    os.rename(lost, root.parent / "outside/run")
    lost.symlink_to(root.parent / "outside/run")


def a_lock_that_is_a_link(root, lost):
    lost.with_name(f".{lost.name}.lock").symlink_to(root.parent / "outside")


def a_file_in_a_lock(root, lost):
    lost.with_name(f".{lost.name}.lock").mkdir()
    (lost.with_name(f".{lost.name}.lock") / "thesis").touch()


def a_partial_that_is_a_link(root, lost):
    lost.with_name(f".{lost.name}.partial-1").symlink_to(root.parent / "outside")


def a_partial_of_others(root, lost):
    lost.with_name(f".{lost.name}.partial-1").mkdir()
    (lost.with_name(f".{lost.name}.partial-1") / "thesis").touch()


def a_note_of_others(root, lost):
    lost.with_name(f".{lost.name}.failed.json").write_text("my thesis")


def files_of_others(root, lost):
    (root / "thesis").touch()
    (root / "kind/.thesis.deleted").mkdir()
    (root / "kind/thesis").mkdir()
    (root / "kind/.x.partial-1").touch()


@pytest.mark.parametrize(
    "change",
    [
        a_folder_named_like_a_run,
        a_run_without_provenance,
        a_file_in_a_run,
        a_file_among_its_maps,
        a_link_in_a_run,
        a_copy_under_another_name,
        a_file_named_like_a_run,
        a_kind_that_is_a_link,
        a_run_that_is_a_link,
        a_lock_that_is_a_link,
        a_file_in_a_lock,
        a_partial_that_is_a_link,
        a_partial_of_others,
        a_note_of_others,
        files_of_others,
    ],
    ids=lambda f: f.__name__,
)
def test_prune_touches_nothing_that_was_not_made_here(tmp_path, change):
    root = tmp_path / "runs"
    (tmp_path / "outside/2").mkdir(parents=True)
    (tmp_path / "outside/1").write_text("mine")
    needed, lost = whole_store(root)
    intact = change in (
        a_folder_named_like_a_run,
        a_file_named_like_a_run,
        files_of_others,
    )  # the lost run itself
    change(root, lost)
    before = snapshot(tmp_path)
    gone = prune(root, {f"kind/{needed.name}"}, delete=True)
    assert len(spared(root)) and (spared(root).note != "").all() and runs_text(spared(root))
    assert gone.label.tolist() == ["lost"] * intact and needed.exists()
    assert snapshot(tmp_path) == {
        p: c for p, c in before.items() if not (intact and p.is_relative_to(lost))
    }


def test_prune_follows_no_link_to_the_store(tmp_path):
    whole_store(tmp_path / "runs")
    (tmp_path / "link").symlink_to("runs")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="link is a link; name the folder"):
        prune(tmp_path / "link", [], delete=True)
    assert snapshot(tmp_path) == before


def test_prune_leaves_nothing_of_what_it_deletes_and_tells_exactly_that(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise MemoryError

    store, (needed, lost) = quick(tmp_path), whole_store(tmp_path)
    for label in ("failed", "partial"):
        with pytest.raises(MemoryError):
            store.get("kind", label, {}, fail, resume=label == "partial")
    garble(lost / "maps.npy")
    quick(tmp_path).get("kind", "lost", dict(n="lost"), filled)
    for name, age in (
        (".prle-del-01234567", 0),
        (ELSEWHERE.format(1), 7200),
        (ELSEWHERE.format(2), 0),
    ):
        (tmp_path / "kind" / name).mkdir()
        os.utime(tmp_path / "kind" / name, times=(time.time() - age,) * 2)
    gone = prune(tmp_path, {f"kind/{needed.name}"}, delete=True)
    assert sorted(zip(gone.label, gone.state)) == [
        ("failed", "failed"),
        ("lost", "corrupt"),
        ("lost", "finished"),
        ("partial", "failed"),
    ]
    assert sorted(os.listdir(tmp_path / "kind")) == [ELSEWHERE.format(2), needed.name], (
        "what may still be written is left"
    )
    assert len(prune(tmp_path, {f"kind/{needed.name}"}, delete=True)) == 0
    assert len(spared(tmp_path)) == 0


@pytest.mark.parametrize(
    "note",
    [
        *ALIEN,
        '{"runs": "all"}',
        '{"runs": [1]}',
        '{"runs": [["kind/a"]]}',
        '{"runs": ["a"]}',
        '{"runs": ["../kind/a-0123456789abcdef"]}',
        "{}",
    ],
)
def test_nothing_is_pruned_if_a_note_does_not_tell_what_it_needs(tmp_path, note):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans/mine.provenance.json").write_text(note)
    with pytest.raises(
        ValueError, match="plans/mine.provenance.json.*not known: write it again, or move it away"
    ) as e:
        recorded_runs(tmp_path)
    assert len(str(e.value)) < 600 and "\n" not in str(e.value)


def test_a_note_that_has_changed_does_not_tell_what_is_needed(tmp_path):
    "One bit, after which it still names a run, but another one."
    note = record_runs(tmp_path, "mine", ["detectors/a-0123456789abcdef"])
    note.write_text(note.read_text().replace("detectors", "detecvors"))
    with pytest.raises(ValueError, match="mine.provenance.json has changed since.*not known"):
        recorded_runs(tmp_path)


def test_nothing_is_pruned_if_a_note_is_a_folder(tmp_path):
    graph(quick(tmp_path))
    (tmp_path / "plans/mine.provenance.json").mkdir(parents=True)
    before = snapshot(tmp_path)
    with pytest.raises((ValueError, OSError), match="mine.provenance.json"):
        prune(tmp_path, recorded_runs(tmp_path), delete=True)
    assert snapshot(tmp_path) == before


def test_nothing_is_pruned_if_it_is_not_known_what_a_run_needs(tmp_path):
    graph(quick(tmp_path))
    fused = next((tmp_path / "fusions").iterdir())
    garble(fused / "config.json")
    before = snapshot(tmp_path)
    for keep in ([], [f"fusions/{fused.name}"]):
        with pytest.raises(
            ValueError, match=f"What fusions/{fused.name} is made from is not known"
        ):
            prune(tmp_path, keep, delete=True)
    assert snapshot(tmp_path) == before and needed_inputs(tmp_path)[f"fusions/{fused.name}"] is None


def test_a_damaged_claim_is_taken_over_once_it_has_been_quick(tmp_path):
    "At one look, by the times of files: nobody watches for a minute what a killed process has left."
    lock = tmp_path / "lock"
    lock.mkdir()
    (lock / "1").write_text('{"mach')
    assert not Claim(lock).take(), "its owner may be writing its name"
    os.utime(lock / "1", times=(time.time() - 600,) * 2)
    claim = Claim(lock)
    assert claim.take() and claim.number == 2
    claim.free()


def test_links_are_no_claims(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs/kind").mkdir(parents=True)
    for target in ("outside", "nowhere"):
        lock = tmp_path / f"runs/kind/.a-{KEY}.lock"
        lock.symlink_to(tmp_path / target)
        with pytest.raises(OSError, match=f"{tmp_path}/runs/kind cannot take the run a-{KEY}"):
            quick(tmp_path / "runs").get("kind", "a", {}, make_answer)
        lock.unlink()
    assert os.listdir(tmp_path / "outside") == []


def test_what_others_put_among_claims_stays(tmp_path):
    with claimed(tmp_path / "data"):
        (tmp_path / ".data.lock/thesis").touch()
    assert (tmp_path / ".data.lock/thesis").exists()
    with claimed(tmp_path / "data"):
        pass


def test_messages_are_printed_where_a_command_wants_them(capsys, monkeypatch):
    show_messages(logging.DEBUG, "stderr")
    messages.debug("HIT  kind a")
    assert capsys.readouterr() == ("", "HIT  kind a\n")
    show_messages()
    messages.debug("HIT  kind a")
    messages.info("MISS kind a")
    assert capsys.readouterr() == ("MISS kind a\n", "")
    with collected_messages() as said:
        messages.debug("HIT  kind a")
    assert said == [(logging.DEBUG, "HIT  kind a")] and capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stdout", None)
    messages.info("nobody listens, as with `redirect_stdout(None)`")
    assert capsys.readouterr().err == ""


def test_it_imports_without_torch():
    code = "import sys, prle.lab.administration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_interrupted_worker_that_has_lost_its_claim_spares_its_successor(tmp_path):
    "Ctrl-C after another process has taken over deletes what was written here, and nothing else."

    def make(folder):
        assert folder.name.endswith("partial-1")
        successor = folder.with_name(folder.name.replace("partial-1", "partial-2"))
        successor.mkdir()
        write_json(folder.parent / f".a-{KEY}.lock/2", elsewhere())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path).get("kind", "a", {}, make)
    left = [p.name for p in (tmp_path / "kind").iterdir() if "partial" in p.name]
    assert left == [f".a-{KEY}.partial-2"]


@pytest.mark.parametrize("length", [150, 190, 400])
def test_a_run_with_a_long_label_goes_on(tmp_path, length):
    store, seen = quick(tmp_path), []

    def make(folder):
        seen.append((folder / "epoch").exists())
        (folder / "epoch").touch()
        if len(seen) < 3:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.get("kind", "x" * length, {}, make, resume=True)
    run = store.get("kind", "x" * length, {}, make, resume=True)
    assert seen == [False, True, True] and beside(run.path) == []
    assert store.get("kind", "x" * length, {}, make).reused


def test_what_is_no_regular_expression_is_named(tmp_path):
    with pytest.raises(ValueError, match="'Xception\\[' is no regular expression"):
        list_runs(tmp_path, pattern="Xception[")
