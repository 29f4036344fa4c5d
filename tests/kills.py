"Runs of `prle` in processes of their own that are killed at work."

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def contents(folder):
    "Every file below a folder with its bytes."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def children(pid):
    "Processes that descend from `pid` (Linux)."
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        parents[int(name.split()[0])] = int(rest.split()[1])
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def pictures(folder):
    "How many pictures lie below a folder; passes over what vanishes meanwhile."
    return sum(name.endswith(".png") for _, _, names in os.walk(folder) for name in names)


def living(processes):
    "Those of some processes that are there (Linux)."
    return {p for p in processes if Path(f"/proc/{p}/exe").exists()}


def kill_at_work(process, out, moment, group):
    """SIGKILL a run, all of it (`group`) or only its main process, `moment` s after it has begun to write.

    Return whether that hit it at work. The workers must be gone soon."""
    before, deadline = pictures(out), time.monotonic() + 60
    while pictures(out) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(moment)
    workers = children(process.pid) if sys.platform == "linux" else set()
    hit = pictures(out) > before and process.poll() is None
    kill = os.killpg if group else os.kill
    with suppress(ProcessLookupError):  # a late moment finds it finished
        kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while living(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not living(workers), "workers outlive the process that started them"
    return hit
