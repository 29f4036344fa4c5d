"Family `floods`: the study's server on loopback, under what strangers send, while people answer."

import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress

import numpy as np

from .arena import Finding, attack, end, last_line, start


def signed(answer: dict) -> dict:
    "The answer as the page sends it: with its seal, where the code that is tried has one."
    try:
        from prle.study.page import seal_answer
    except ImportError:
        return answer
    return answer | dict(seal=seal_answer(answer))


def honest(folder) -> list[dict]:
    "What everybody answers."
    from prle.study.images import read_study

    study = read_study(folder)
    answers = [
        dict(
            study=study.settings["study"],
            code=r.code,
            index=int(r.index_),
            item=r.picture or "check",
            answer=r.expected,
            rt=900 + 10 * int(r.index_),
            source="button",
            confidence=None,
        )
        for r in study.plan.rename(columns=dict(index="index_")).itertuples()
    ]
    return [signed(answer) for answer in answers]


POST = b"POST /answers HTTP/1.1\r\nHost: 127.0.0.1\r\n"


class Server:
    "`prle userstudy serve` in a process of its own."

    def __init__(self, box):
        self.box = box

    def __enter__(self):
        from prle.cli import main

        out = self.box.path / f"server-{time.monotonic_ns()}"
        self.said = out
        self.pid = start(
            lambda: main(["userstudy", "serve", "study", "--port", "0"]), self.box.work, out
        )
        deadline = time.monotonic() + 20
        while not (
            found := re.search(
                r":(\d+)/",
                out.with_name(out.name + ".out").read_text()
                if out.with_name(out.name + ".out").exists()
                else "",
            )
        ):
            if time.monotonic() > deadline:
                raise RuntimeError("the server does not start")
            time.sleep(0.005)
        self.port = int(found[1])
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            end(self.pid)

    def ask(self, method, path, body=None, seconds=10, **headers):
        "One request: status (0: hung up on), body, headers."
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.read(), dict(reply.headers)
        except (OSError, http.client.HTTPException, ValueError) as e:
            return (-1 if isinstance(e, TimeoutError) else 0), b"", {}
        finally:
            connection.close()

    def post(self, answer, **headers):
        "Send an answer."
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return self.ask(
            "POST", "/answers", body, **{"Content-Type": "application/json", **headers}
        )[:2]

    def raw(self, data: bytes, seconds: float = 2) -> bytes:
        "Send bytes, and what comes back."
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as s:
            with suppress(OSError):
                s.sendall(data)
                return s.recv(65536)
        return b""

    def errors(self) -> str:
        "What the server complained of."
        return self.said.with_name(self.said.name + ".err").read_text()


def in_peace(box, disturb, most: float = 20) -> Finding:
    "Everybody answers while something disturbs; then all is stored once, and the server still answers."
    box.take("study")
    folder = box.work / "study/responses"
    shutil.rmtree(folder)
    folder.mkdir()
    answers, trouble = honest(box.work / "study"), []
    begun = time.monotonic()
    with Server(box) as server:
        found = []
        thread = threading.Thread(target=lambda: found.append(disturb(server, answers)))
        thread.start()
        for a in answers:
            status, body = server.post(a)
            if status not in (201, 409):
                trouble.append(f"an honest answer got {status} {body[:80]!r}")
            time.sleep(0.002)
        thread.join(most)
        if thread.is_alive():
            return Finding("hang", "the server keeps a stranger waiting")
        for code in {a["code"] for a in answers}:
            status, body, _ = server.ask("GET", f"/answers?code={code}")
            if status != 200:
                return Finding(
                    "hang" if status == -1 else "silent", f"afterwards the server answers {status}"
                )
            want = sum(a["code"] == code for a in answers)
            if json.loads(body) != dict(stored=want):
                trouble.append(f"{body} stored of {want}")
        if "Traceback" in server.errors():
            trouble.append(f"traceback: {last_line(server.errors())}")
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGINT)
    if not found:
        return Finding("traceback", "the disturbance itself failed")
    if found[0] is not None:
        return found[0]
    if any(t.startswith("traceback") for t in trouble):
        return Finding("traceback", trouble[0])
    if trouble:
        return Finding("silent", trouble[0])
    stored = Counter()
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            record = json.loads(line)
            stored[record["code"], record["index"]] += 1
            want = next(
                a for a in answers if (a["code"], a["index"]) == (record["code"], record["index"])
            )
            if any(record[k] != want[k] for k in want if k not in ("rt", "answer")):
                return Finding("silent", "a stored answer is another one")
    if set(stored) != {(a["code"], a["index"]) for a in answers}:
        return Finding("silent", f"{len(stored)} of {len(answers)} answers are stored")
    if max(stored.values()) > 1:
        return Finding("silent", "an answer is stored twice")
    return Finding("clear", f"{time.monotonic() - begun:.1f} s")


def refused(replies, what) -> Finding | None:
    "Whether a server refused all of that, without stumbling."
    for label, status in zip(what, replies):
        if status == -1:
            return Finding("hang", f"{label}: no reply")
        if status >= 500:
            return Finding("traceback", f"{label}: status {status}")
        if 200 <= status < 400:
            return Finding("silent", f"{label}: accepted ({status})")
    return None


def bodies(a: dict) -> dict:
    "What is no answer."
    text = json.dumps(a)
    return {
        "nothing": b"",
        "half": text[:-9].encode(),
        "list": b"[]",
        "null": b"null",
        "nan": text.replace("900", "NaN").encode() if "900" in text else b"NaN",
        "deep": b"[" * 4000,
        "deep object": b'{"a":' * 700,
        "latin": b"\xff\xfe",
        "NUL": text.replace("fake", "fa\\u0000ke").replace('"real"', '"re\\u0000al"').encode(),
        "surrogate": b'{"code": "\\ud800"}',
        "long integer": ('{"index": ' + "9" * 4000 + "}").encode(),
        "infinity": (b'{"rt": 1e999}'),
        "negative": json.dumps(a | dict(rt=-1)).encode(),
        "too long": b" " * 5000 + text.encode(),
        "huge": b"x" * 100_000,
        "field": json.dumps(a | dict(admin=True)).encode(),
        "path": json.dumps(a | dict(code="../../key/plan")).encode(),
        "float index": json.dumps(a | dict(index=0.0)).encode(),
        "true index": json.dumps(a | dict(index=True)).encode(),
        "list code": json.dumps(a | dict(code=["a"])).encode(),
        "object code": json.dumps(a | dict(code={})).encode(),
        "two texts": (text + text).encode(),
        "UTF-16": text.encode("utf-16"),
        "BOM": b"\xef\xbb\xbf" + text.encode(),
    }


@attack("floods", what=list(bodies(dict(a=1))))
def bodies_that_are_no_answers(box, what):
    "Malformed bodies; none is stored."

    def disturb(server, answers):
        found = [server.post(bodies(answers[-1] | dict(answer="fake"))[what])[0] for _ in range(5)]
        return (
            None
            if what in ("BOM", "UTF-16") and set(found) <= {201, 409}
            else refused(found, [what] * 5)
        )

    return in_peace(box, disturb)


def twice(a: dict, name: str, value) -> bytes:
    "The answer with one field said twice, the last time as it should be."
    return (
        json.dumps(a)[:-1]
        .replace("{", "{" + f"{json.dumps(name)}: {json.dumps(value)}, ", 1)
        .encode()
        + b"}"
    )


@attack("floods", field=("code", "index", "answer", "rt", "study"))
def a_key_said_twice(box, field):
    "A JSON body that says a field twice."
    value = dict(code="x", index=99, answer="real", rt=1, study="y")[field]

    def disturb(server, answers):
        status = server.post(twice(answers[-1], field, value))[0]
        return refused([status], [f"{field} twice"])

    return in_peace(box, disturb)


@attack(
    "floods",
    host=(
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "",
        "localhost.evil",
        "[::1",
        "a" * 3000,
        "127.0.0.1, evil",
    ),
    how=("page", "plan", "answer", "stored"),
)
def a_wrong_host(box, host, how):
    "A page of another name that resolves to this machine (DNS rebinding)."

    def disturb(server, answers):
        path, method, body = "/", "GET", None
        if how == "plan":
            path = f"/plans/{answers[0]['code']}.js"
        if how == "stored":
            path = f"/answers?code={answers[0]['code']}"
        if how == "answer":
            path, method, body = "/answers", "POST", json.dumps(answers[-1]).encode()
        status = server.ask(method, path, body, Host=host, **{"Content-Type": "application/json"})[
            0
        ]
        return refused([status], [f"Host {host[:30]!r}"])

    return in_peace(box, disturb)


PATHS = (
    "/../key/plan.csv",
    "/%2e%2e/key/plan.csv",
    "/..%2fkey%2fplan.csv",
    "//etc/passwd",
    "/images/../../key/plan.csv",
    "/key/plan.csv",
    "/responses/",
    "/static/..%5c..%5ckey/plan.csv",
    "/plans/%00",
    "/plans/",
    "/images/",
    "/link",
    "/folder/thesis.txt",
    "/answers/",
    "/answers?code=../key",
    "/answers?code=%00",
    "/answers?code=" + "a" * 3000,
    "/%ff%fe",
    "/" + "a/" * 1500,
    "/index.html/..",
    "/.git/config",
)


@attack("floods", weight=2, path=PATHS)
def a_path_out_of_the_page(box, path):
    "Paths that lead out of the page."
    box.take("study")
    (box.work / "study/page/link").symlink_to(box.precious / "thesis.txt")
    (box.work / "study/page/folder").symlink_to(box.precious)

    def disturb(server, answers):
        status, body, _ = server.ask("GET", path)
        if b"CANARY" in body or b"expected" in body or b"root:" in body:
            return Finding("damage", f"{path} gives away a file")
        return refused([status], [path])

    return in_peace(box, disturb)


@attack(
    "floods",
    count=(50, 150, 300),
    what=("idle", "half a request", "slow body", "noise", "pipeline", "hang up"),
)
def many_connections(box, count, what):
    "Many connections at once that say little, or nonsense."
    data = {
        "idle": b"",
        "half a request": b"GET / HTTP/1.1\r\nHost: ",
        "slow body": POST + b"Content-Type: application/json\r\nContent-Length: 400\r\n\r\n{",
        "noise": np.random.default_rng(0).bytes(2000),
        "pipeline": b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20,
        "hang up": b"POST /answers HTTP/1.1\r\nContent-Length: 10\r\n\r\n",
    }[what]

    def disturb(server, answers):
        held = []
        for _ in range(count):
            with suppress(OSError):
                s = socket.create_connection(("127.0.0.1", server.port), timeout=2)
                s.sendall(data)
                held.append(s)
                if what == "hang up":
                    s.close()
        time.sleep(0.1)
        for s in held:
            s.close()

    return in_peace(box, disturb)


REQUESTS = {
    "length lies": POST
    + b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -5\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
    "no version": b"GET /\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n"
    + b"".join(b"X-%d: 1\r\n" % k for k in range(5000))
    + b"\r\n",
    "NUL": b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "gzip": POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    "put": b"PUT /answers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
    "delete": b"DELETE /index.html HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "trace": b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n",
}


@attack("floods", what=list(REQUESTS))
def a_request_of_bytes(box, what):
    "HTTP that a browser would not send."

    def disturb(server, answers):
        head = server.raw(REQUESTS[what]).split(b"\r\n")[0].split(b" ")
        status = int(head[1]) if len(head) > 1 and head[1].isdigit() else 0
        return refused([status], [what])

    return in_peace(box, disturb)


@attack("floods", threads=(5, 20))
def the_same_answer_from_many(box, threads):
    "One answer, sent many times at once: one is stored, the others are told so."

    def disturb(server, answers):
        found = []

        def send():
            found.append(server.post(answers[-1])[0])

        all_ = [threading.Thread(target=send) for _ in range(threads)]
        for t in all_:
            t.start()
        for t in all_:
            t.join()
        return (
            None
            if set(found) <= {201, 409} and found.count(201) <= 1
            else Finding(
                "silent", f"statuses {sorted(set(found))}, {found.count(201)} times stored"
            )
        )

    return in_peace(box, disturb)


@attack("floods")
def two_answers_to_one_picture(box):
    "The same picture answered both ways at once: the first counts."

    def disturb(server, answers):
        found = [server.post(answers[-1] | dict(answer=word))[0] for word in ("fake", "real")]
        return None if found.count(201) <= 1 else Finding("silent", "both were stored")

    return in_peace(box, disturb)


@attack("floods", what=("banner", "policy", "frame", "resource", "sniff"))
def the_headers(box, what):
    "What the page's headers give away, and what they forbid."

    def disturb(server, answers):
        _, _, headers = server.ask("GET", "/")
        named = {k.lower(): v for k, v in headers.items()}
        if what == "banner":
            return (
                Finding("damage", f"Server: {named['server']}")
                if re.search(r"tornado|\d", named.get("server", ""), re.I)
                else None
            )
        name, wanted = dict(
            policy=("content-security-policy", "'self'"),
            frame=("x-frame-options", ""),
            resource=("cross-origin-resource-policy", "same"),
            sniff=("x-content-type-options", "nosniff"),
        )[what]
        if what == "frame" and "frame-ancestors" in named.get("content-security-policy", ""):
            return None
        return None if wanted in named.get(name, "\x00") else Finding("silent", f"no {name}")

    return in_peace(box, disturb)


@attack("floods", what=("codes", "names", "folder", "page"))
def what_a_stranger_can_compute(box, what):
    "Two studies of the same faces and seed share no code and no picture's name; the key is its owner's."

    def make():
        import studies

        for name in ("one", "two"):
            studies.study(box.work / name, secret=None)  # each draws its own
        from prle.study.images import read_study

        one, two = (read_study(box.work / name / "study") for name in ("one", "two"))
        if what == "codes":
            print(len({*one.codes} & {*two.codes}), "codes")
        if what == "names":
            print(len({*one.pictures.picture} & {*two.pictures.picture}), "names of pictures")
        if what == "folder":
            print(
                oct((box.work / "one/study/key").stat().st_mode & 0o077)[2:].lstrip("0") or 0,
                "mode of key/ for others",
            )
        if what == "page":
            page = "".join(
                p.read_text(errors="replace")
                for p in (box.work / "one/study/page").rglob("*")
                if p.suffix in (".js", ".html") and "jspsych" not in p.parts
            )
            print(
                sum(path in page for path in one.pictures.path)
                + (str(one.settings["seed"]) == "x"),
                "paths of faces in the page",
            )

    reply = box.call(make)
    if reply.code != 0:
        return Finding("traceback", last_line(reply.err))
    return (
        Finding("right")
        if reply.out.startswith("0 ")
        else Finding("damage", f"in common: {reply.out.strip()}")
    )
