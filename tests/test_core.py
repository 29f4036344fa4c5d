"""prle.core: names, streams, whole files, keys."""

import errno
import io
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prle import core
from prle.core import (
    alternate,
    atomic_path,
    check_choice,
    digest,
    discard,
    file_digest,
    outputs_dir,
    progress,
    provenance,
    remove_leftovers,
    rng,
    torch_rng,
    write_json,
)
from prle.trust import read_json


def test_check_choice_proposes_the_nearest():
    assert check_choice("DF", ["DF", "FS"], "manipulation") == "DF"
    told = "unknown detector 'xcepton'.*Did you mean 'xception'.*Known: vgg16, xception"
    with pytest.raises(ValueError, match=told):
        check_choice("xcepton", ["vgg16", "xception"], "detector")


def test_check_choice_without_a_near_name_lists_all():
    with pytest.raises(ValueError, match=r"^unknown fill 'qqq'\. Known: zero, mean\.$"):
        check_choice("qqq", ["zero", "mean"], "fill")


def test_streams_depend_on_the_whole_key():
    keys = [(0,), (1,), (0, "a"), (0, "b"), ("0",), (0, 1), (1, 0), (1, 2), (0, 12)]
    assert len({rng(*k).random() for k in keys}) == len(set(keys))
    assert len({torch.rand((), generator=torch_rng(*k)).item() for k in keys}) == len(set(keys))
    one, again = (torch.rand(5, generator=torch_rng(3, "x")) for _ in range(2))
    assert torch.equal(one, again)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, dict(a=1))
    with pytest.raises(OSError), atomic_path(path) as tmp:
        tmp.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert read_json(path) == dict(a=1) and os.listdir(tmp_path) == ["result.json"]


def test_a_failed_folder_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "run") as tmp:
        tmp.mkdir()
        (tmp / "part").write_text("x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        read_json(tmp_path / "config.json")


def test_digests(tmp_path):
    assert digest(dict(a=1, b=[1, 2])) == digest(dict(b=[1, 2], a=1)) != digest(dict(a=1, b=[2, 1]))
    (tmp_path / "x").write_bytes(b"1")
    before = file_digest(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"2")
    assert before != file_digest(tmp_path / "x") and len(before) == 16


def test_provenance_names_the_versions():
    assert provenance()["packages"]["torch"] == torch.__version__.split("+")[0]


def test_provenance_names_the_hardware_that_was_used(monkeypatch):
    "Not the GPU that lies idle beside it."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    really = core.Path.read_text

    def read(path, *args, **kwargs):
        if str(path) == "/proc/cpuinfo":
            return "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n"
        return really(path, *args, **kwargs)

    monkeypatch.setattr(core.Path, "read_text", read)
    used = [provenance(device) for device in ("cpu", "cuda:1", None)]
    assert [note["device"] for note in used] == ["A CPU @ 2 GHz", "GPU 1", "GPU None"]
    assert {note["cpu"] for note in used} == {"A CPU @ 2 GHz"}
    assert {note["cores"] for note in used} == {os.cpu_count()}


def test_outputs_dir(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").touch()
    monkeypatch.delenv("PRLE_OUTPUTS", raising=False)
    monkeypatch.chdir(tmp_path / "nbs")
    assert outputs_dir() == tmp_path / "outputs"
    monkeypatch.setenv("PRLE_OUTPUTS", "/elsewhere")
    assert str(outputs_dir()) == "/elsewhere"


def test_bars_are_for_who_watches(monkeypatch):
    monkeypatch.delenv("PRLE_QUIET", raising=False)

    def shown(**kwargs):
        return not progress(range(3), **kwargs).disable

    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not shown()
    notebook = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: notebook))
    assert shown(file=io.StringIO()) and not shown(disable=True)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not shown()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert shown(file=io.StringIO())
    monkeypatch.setenv("PRLE_QUIET", "1")
    assert not shown()


def test_contenders_take_turns():
    called = []
    contenders = {name: lambda name=name: called.append(name) for name in "abc"}
    seconds = alternate(contenders, repeats=3)
    assert "".join(called) == "abccbaabccba", "the first round warms up"
    assert list(seconds) == ["a", "b", "c"]
    assert all(len(taken) == 3 and min(taken) >= 0 for taken in seconds.values())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_processes_may_discard_the_same_thing(tmp_path, monkeypatch, kind):
    "One of them sweeps leftovers between the other's renaming and deleting."
    path, rename = tmp_path / "a", os.rename
    path.mkdir() if kind == "folder" else path.touch()

    def swept(old, new):
        rename(old, new)
        monkeypatch.setattr(os, "rename", rename)
        remove_leftovers(tmp_path)

    monkeypatch.setattr(os, "rename", swept)
    discard(path)
    assert list(tmp_path.iterdir()) == []


def test_the_repository_around_an_environment_is_not_the_projects(tmp_path, monkeypatch):
    "The project is installed into an environment that lies in somebody's repository."
    there = tmp_path / ".venv/prle/core.py"
    there.parent.mkdir(parents=True)
    there.touch()
    (tmp_path / "thesis.tex").touch()
    author = ["-c", "user.name=A", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "thesis.tex"], [*author, "commit", "-qm", "thesis"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(core, "__file__", str(there))
    assert provenance()["commit"] is None and provenance()["clean"] is None


def test_equal_keys_are_equal_streams_whoever_counts():
    "NumPy writes its numbers and texts in other words than Python."
    keys = (3, "split"), (np.int64(3), "split"), (np.uint8(3), np.str_("split"))
    assert len({rng(*key).random() for key in keys}) == 1
    assert len({torch_rng(*key).initial_seed() for key in keys}) == 1
    assert rng(True).random() != rng(1).random()
