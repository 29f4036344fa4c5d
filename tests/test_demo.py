"""prle.lab.demo: the page's server, asked as its page asks and as others would."""

import base64
import json
import socket
import threading
from http.client import HTTPConnection

import cv2
import numpy as np
import pytest
from test_files import a_model

from prle import cli
from prle.core import rng
from prle.lab import demo
from prle.lab.demo import demo_server
from prle.lab.explain import explain
from prle.lab.files import predict_files

PLAIN = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def models():
    return dict(small=a_model(), plain=a_model(calibrated=False, seed=1))


@pytest.fixture
def port(models):
    "Of a server that takes pictures as face crops."
    server = demo_server(models, cropped=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), rng("photo").integers(0, 256, (64, 64, 3), np.uint8))
    return path


def ask(port, method, path, body=None, **headers):
    line = HTTPConnection("127.0.0.1", port, timeout=60)
    line.request(method, path, body, headers)
    reply = line.getresponse()
    return reply.status, dict(reply.headers), reply.read()


def picture(inline):
    data = base64.b64decode(inline.removeprefix("data:image/png;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_page_is_told_what_predict_says(port, models, photo):
    status, _, told = ask(port, "POST", "/score?name=me%20%26.png", photo.read_bytes(), **PLAIN)
    rows = json.loads(told)["rows"]
    table = predict_files(models, [photo], cropped=True)
    assert status == 200 and [row["detector"] for row in rows] == ["small", "plain"]
    assert [row["p_fake"] for row in rows] == table.p_fake.tolist()
    assert rows[0]["file"] == "me &.png" and rows[1]["threshold"] is None
    face = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
    found, ranks = explain(models["small"], face), picture(rows[0]["ranks"])
    assert (picture(rows[0]["face"])[..., ::-1] == face).all()
    for alpha in (0.1, 0.5, 1.0):
        there = (ranks > 0) & (ranks <= 255 * alpha)
        assert (there == found.region(alpha)).mean() > 0.998
    assert np.abs(picture(rows[0]["heat"]) / 255 - found.heat).max() < 0.01


def test_the_page_is_whole_and_asks_nobody_else(port):
    pages = {}
    for path in ("/", "/demo.css", "/demo.js"):
        status, headers, pages[path] = ask(port, "GET", path)
        assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Server"] == "prle" and "http" not in pages[path].decode().replace(
            "http://www.w3.org/2000/svg", ""
        )
    assert b"A score is no proof" in pages["/"]
    assert json.loads(ask(port, "GET", "/detectors")[2]) == ["small", "plain"]


@pytest.mark.parametrize(
    "method, path, headers, status, words",
    [
        ("GET", "/", dict(Host="evil.example"), 421, "by that name"),
        ("GET", "/", dict(Origin="http://evil.example"), 403, "another page"),
        ("GET", "/demo.py", {}, 404, "no such page"),
        ("GET", "/../demo.py", {}, 404, "no such page"),
        ("POST", "/other", PLAIN, 404, "no such page"),
        ("POST", "/score", {"Content-Type": "text/plain"}, 415, "octet-stream"),
        ("POST", "/score", PLAIN | {"Content-Length": str(2**40)}, 413, "at most 512 MiB"),
        ("POST", "/score", PLAIN | {"Content-Length": "-1"}, 411, "length"),
        ("POST", "/score?name=a.mp4", PLAIN, 422, "a.mp4"),
        ("POST", "/score?name=../../a.png", PLAIN, 422, ""),
    ],
)
def test_what_is_not_answered_says_why(port, method, path, headers, status, words):
    body = b"no picture" if method == "POST" else None
    found, _, told = ask(port, method, path, body, **headers)
    error = json.loads(told)["error"]
    assert found == status and words in error and "\n" not in error and "/tmp" not in error


def test_nothing_of_a_file_is_kept(port, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.tempfile, "tempdir", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    ask(port, "POST", "/score?name=a.png", photo.read_bytes(), **PLAIN)
    half = socket.create_connection(("127.0.0.1", port))
    half.sendall(
        f"POST /score HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/octet-stream\r\n"
        "Content-Length: 100\r\n\r\nhalf".encode()
    )
    half.shutdown(socket.SHUT_WR)
    assert b"cut off" in b"".join(iter(lambda: half.recv(4096), b""))
    half.close()
    assert not list((tmp_path / "here").iterdir())


def test_a_taken_port_is_one_line(port, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_open_model", lambda name, **options: a_model())
    assert cli.main(["demo", "small", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"the port {port} is taken" in said and "--port" in said and said.count("\n") == 1
