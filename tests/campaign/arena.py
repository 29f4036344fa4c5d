"One case: a folder of its own, the command in a process of its own with limits, and a verdict."

import ctypes
import hashlib
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

KINDS = ("clear", "right", "unclear", "silent", "traceback", "hang", "damage")
"""What becomes of a case. clear: refused or reported with the file's name; right: the undisturbed result;
unclear: refused, but endlessly or without the file's name; silent: a wrong result, or something accepted,
without a word; traceback: an error that nobody foresaw, or a crash; hang: more time or memory than allowed; damage:
something changed, deleted or given away that may not be."""
BAD = KINDS[2:]
TOKEN = "CANARY-5d41402abc4b"
"Stands in every file that no command has any business with."
CPU, WALL, MEMORY = 5.0, 12.0, 1200
"Seconds of work, seconds of rest, MB beside the parent's that a command may take."


LIBC = ctypes.CDLL(None, use_errno=True)


class Finding(NamedTuple):
    "A verdict, and why."

    kind: str
    detail: str = ""


@dataclass
class Reply:
    "What a process said and took."

    code: int | None  # None: killed for its time
    out: str
    err: str
    cpu: float  # seconds
    memory: float  # MB beside the parent's
    result: str = (
        ""  # what is compared with the undisturbed result; stdout unless a use says otherwise
    )


class Attack(NamedTuple):
    "A way to disturb, with what is drawn for each case."

    family: str
    run: Callable
    choices: dict
    slow: bool


ATTACKS: dict[str, list[Attack]] = {}


def attack(family: str, weight: int = 1, slow: bool = False, **choices):
    "Register `run(box, **drawn)` -> Finding, `weight` times; slow ones are left out of samples."

    def add(run):
        ATTACKS.setdefault(family, []).extend([Attack(family, run, choices, slow)] * weight)
        return run

    return add


# ---- snapshots ----


def digest_of(path) -> str:
    "What a file or a link holds."
    path = Path(path)
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "folder"


def snapshot(folder) -> dict[str, str]:
    "Everything below a folder; links are not followed."
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = digest_of(path)
    return found


def changes(before: dict, after: dict) -> list[str]:
    "In words, what differs between two snapshots."
    gone = [f"{name} is gone" for name in before if name not in after]
    new = [f"{name} is new" for name in after if name not in before]
    other = [
        f"{name} has changed" for name in before if name in after and after[name] != before[name]
    ]
    return [*gone, *other, *new]


# ---- processes ----


def _resident() -> float:
    "Memory of this process in MB."
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def address_space() -> int:
    "Address space of this process in bytes."
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _answer(call: Callable) -> int:
    "Exit code of a call: as the command line does it."
    try:
        return int(call() or 0)
    except SystemExit as e:
        return int(e.code or 0)
    except (ValueError, OSError, ImportError) as e:
        print(f"prle: {e}", file=sys.stderr)
        return 2
    except BaseException:
        traceback.print_exc()
        return 70


def _child(call: Callable, where: Path, out: Path, memory: float, cpu: float):
    "The forked process; never returns."
    code = 71
    try:
        os.setsid()
        LIBC.prctl(1, signal.SIGKILL)  # die with who has started it
        limit = address_space() + int(3 * memory * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(3 * cpu), int(3 * cpu) + 5))
        with _elsewhere(where, out):
            code = _answer(call)
    finally:
        os._exit(code)


def _peak(reset: bool = False) -> float:
    "The most memory that this process has had since the last reset, in MB (Linux)."
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return next(
        int(line.split()[1]) / 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


@contextmanager
def _elsewhere(where: Path, out: Path):
    "Inside, this process works in a folder, and what it prints goes to files."
    here, streams, kept = os.getcwd(), (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
    try:
        os.chdir(where)
        for number, suffix in ((1, "out"), (2, "err")):
            handle = os.open(f"{out}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout, sys.stderr = (
            open(n, "w", encoding="utf-8", errors="backslashreplace", closefd=False) for n in (1, 2)
        )
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
        for number, handle in zip((1, 2), kept):
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(here)


def here(call: Callable, where: Path, out: Path, cpu: float) -> tuple[int, float, float]:
    "Call something in this process: exit code, seconds of work, MB more than before."
    before, begun = _peak(reset=True), sum(os.times()[:4])
    signal.setitimer(signal.ITIMER_PROF, 3 * cpu)  # and then SIGPROF, which ends this process
    with _elsewhere(where, out), warnings.catch_warnings():
        warnings.simplefilter("always")
        code = _answer(call)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return code, sum(os.times()[:4]) - begun, max(0.0, _peak() - before)


def start(call: Callable, where: Path, out: Path, memory: float = MEMORY, cpu: float = CPU) -> int:
    "Fork a process that makes a call; its number."
    sys.stdout.flush()
    sys.stderr.flush()
    if not (pid := os.fork()):
        _child(call, where, out, memory, cpu)
    return pid


def end(pid: int):
    "Kill a process and all that it started, and wait for it."
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def worked(pid: int) -> float:
    "Seconds of work that a process and its finished children have done."
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Patience:
    "Whether a process has neither worked nor told anything for some seconds: a busy machine is no hang."

    def __init__(self, pid: int, seconds: float):
        self.pid, self.seconds, self.seen, self.since = pid, seconds, None, time.monotonic()

    def over(self, told=None) -> bool:
        "Look again; `told` is what it has told so far."
        now = told, round(worked(self.pid), 1)
        if now != self.seen:
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since > self.seconds


def wait(pid: int, seconds: float):
    "Exit code (negative: a signal's number) and resources of a process; None if it rests, and is killed."
    patience, pause = Patience(pid, seconds), 0.001
    while not patience.over():
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used
        time.sleep(pause)
        pause = min(0.02, pause * 1.3)
    end(pid)
    return None, None


class Box:
    "The folder of a case: `work`, where commands run, and `precious`, which is nobody's business."

    def __init__(self, world, path: Path, family: str, number: int, seed: int):
        self.world, self.path, self.work, self.precious = (
            world,
            path,
            path / "a/b/work",
            path / "precious",
        )
        self.draw = np.random.default_rng(zlib.crc32(f"{seed} {family} {number}".encode()))
        self.replies, self.story, self._count = [], "", 0
        self.work.mkdir(parents=True)
        for name in ("thesis.txt", "box/photo.png", "box/deep/notes.json", "real/0_0.png"):
            (self.precious / name).parent.mkdir(parents=True, exist_ok=True)
            (self.precious / name).write_text(f"{TOKEN} {name}\n" * 20)
        self.before = snapshot(self.precious)

    def tell(self, text: str):
        "What is done in this case, for people."
        self.story = " ".join(text.split())[:300]

    def pick(self, options):
        "One of several, drawn."
        options = list(options)
        return options[int(self.draw.integers(len(options)))]

    def take(self, *parts: str):
        "Copy parts of the world into `work`."
        for part in parts:
            shutil.copytree(self.world.part(part), self.work, symlinks=True, dirs_exist_ok=True)

    def call(
        self,
        function: Callable,
        wall: float = WALL,
        memory: float = MEMORY,
        cpu: float = CPU,
        apart: bool = False,
    ) -> Reply:
        "Have a process call something; with `apart` one of its own in any case."
        self._count += 1
        out, before = self.path / f"said-{self._count}", _resident()
        if self.world.inside and not apart:
            code, took, most = here(function, self.work, out, cpu)
        else:
            code, used = wait(start(function, self.work, out, memory, cpu), wall)
            took, most = (
                (used.ru_utime + used.ru_stime, max(0.0, used.ru_maxrss / 1024 - before))
                if used
                else (wall, 0.0)
            )
        texts = [Path(f"{out}.{s}").read_text(errors="replace") for s in ("out", "err")]
        texts = [text.replace(str(self.work), "WORK") for text in texts]
        self.replies.append(reply := Reply(code, *texts, took, most, texts[0]))
        return reply

    def prle(self, *words, **limits) -> Reply:
        "The command `prle`."
        from prle.cli import main

        return self.call(lambda: main([str(word) for word in words]), **limits)

    def leak(self) -> str:
        "Where the token stands that should stand nowhere: in what was said, or in a file below `work`."
        for reply in self.replies:
            if TOKEN in reply.out + reply.err:
                return "what was printed"
        for path in self.work.rglob("*"):
            if (
                path.is_file()
                and not path.is_symlink()
                and path.stat().st_size < 2**22
                and TOKEN.encode() in path.read_bytes()
            ):
                if not path.name.startswith("canary"):
                    return str(path.relative_to(self.work))
        return ""


# ---- verdicts ----


def one_message(reply: Reply) -> str:
    "The error that was printed, without warnings and progress before it."
    start = reply.err.rfind("prle: ")
    usage = reply.err.rfind(": error: ")
    return reply.err[max(start, usage) :] if max(start, usage) >= 0 else ""


def exceeded(reply: Reply, cpu: float = CPU, memory: float = MEMORY) -> Finding | None:
    "Whether a process died or took too much."
    if reply.code is None:
        return Finding("hang", "killed by the clock")
    if reply.cpu > cpu:
        return Finding("hang", f"{reply.cpu:.1f} s of work")
    if reply.memory > memory:
        return Finding("hang", f"{reply.memory:.0f} MB")
    if reply.code == -24:
        return Finding("hang", "more work than allowed")  # SIGXCPU
    if reply.code < 0:
        return Finding("traceback", f"killed by signal {-reply.code}")
    if reply.code in (70, 71) or "Traceback (most recent call last)" in reply.err:
        return Finding("traceback", last_line(reply.err))
    return None


def last_line(text: str) -> str:
    "The line of a traceback that says what happened, and the last place in the project."
    lines = text.strip().splitlines() or [""]
    places = [
        line.strip() for line in lines if "/prle/" in line and line.strip().startswith("File")
    ]
    place = (
        places[-1].rsplit("/prle/", 1)[1].replace('", line ', ":").split(",")[0] if places else "?"
    )
    errors = [
        line
        for line in lines
        if line and not line.startswith((" ", "Traceback", "The above", "During")) and ": " in line
    ]
    return f"{place}: {(errors or lines)[-1][:150]}"


def refusal(reply: Reply, names, said: str | None = None) -> Finding:
    "Whether an error is clear: short, and with the name of what is wrong."
    text = one_message(reply) if said is None else said
    most, lines = (1000, 8) if said is None else (4000, 60)  # of one message, of a report
    if not text.strip():
        return Finding("unclear", f"exit code {reply.code} without a message")
    if len(text) > most or text.count("\n") > lines:
        return Finding("unclear", f"a message of {len(text)} characters: {text[:100]}")
    if names and not any(str(name) in text for name in names):
        return Finding("unclear", f"does not name {next(iter(names))}: {text[:200].strip()}")
    return Finding("clear", text[:150].strip())


def news(reply: Reply, right: Reply) -> str:
    "The lines that the undisturbed command does not print."
    known = {*right.out.splitlines(), *right.err.splitlines()}
    return "\n".join(
        line for line in (*reply.out.splitlines(), *reply.err.splitlines()) if line not in known
    )


def judge(reply: Reply, right: Reply | None, names, must_refuse: bool = False) -> Finding:
    "The verdict on a command after an accident; `right` is what it does undisturbed (None: unknown)."
    cpu = CPU + 3 * (right.cpu if right else 0)
    if (bad := exceeded(reply, cpu)) is not None:
        return bad
    same = right is None or (reply.code, reply.result) == (right.code, right.result)
    if reply.code == 0 or right is not None and reply.code == right.code and same:
        if same and not must_refuse:
            return Finding("right")
        if right is not None and any(str(name) in news(reply, right) for name in names):
            return Finding("clear", "reported")
        return Finding("silent", difference(reply, right) if right and not same else "accepted")
    if one_message(reply):
        return refusal(reply, names)
    return refusal(reply, names, news(reply, right) if right else reply.out + reply.err)


def difference(reply: Reply, right: Reply) -> str:
    "Where two results part."
    for a, b in zip(right.result.splitlines(), reply.result.splitlines()):
        if a != b:
            return f"{' '.join(a.split())[:60]!r} became {' '.join(b.split())[:60]!r}"
    return f"{len(right.result)} characters of result became {len(reply.result)}"


# ---- running ----


def attack_of(family: str, number: int, seed: int) -> Attack:
    "The attack of a case: all of a family's once in a shuffled order, then again in another one."
    attacks = ATTACKS[family]
    lap = zlib.crc32(f"{seed} {family} {number // len(attacks)}".encode())
    return attacks[int(np.random.default_rng(lap).permutation(len(attacks))[number % len(attacks)])]


def play(
    world, folder: Path, family: str, number: int, seed: int, keep: bool = False
) -> tuple[Finding, Box]:
    "Play a case, and look whether it touched or told what it may not."
    path = folder / f"{family}-{number}"
    shutil.rmtree(path, ignore_errors=True)
    box, chosen = Box(world, path, family, number, seed), attack_of(family, number, seed)
    drawn = {name: box.pick(options) for name, options in chosen.choices.items()}
    box.tell(
        f"{chosen.run.__name__}: " + ", ".join(f"{k}={str(v)[:40]!r}" for k, v in drawn.items())
    )
    found = chosen.run(box, **drawn)
    if broken := changes(box.before, snapshot(box.precious)):
        found = Finding("damage", f"outside: {broken[0]}")
    elif where := box.leak():
        found = Finding("damage", f"the content of an alien file stands in {where}")
    if not keep:
        shutil.rmtree(path, ignore_errors=True)
    return found, box
