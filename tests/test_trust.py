"""Names, paths, folders and files that come from elsewhere: what is refused, and that nothing else is harmed."""

import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import snapshot
import torch
from safetensors.torch import save_file

import prle
from prle.core import (
    atomic_path,
    discard,
    file_digest,
    is_leftover,
    remove_leftovers,
    shortened,
    write_json,
)
from prle.training.checkpoint import Checkpoint, save_checkpoint
from prle.trust import (
    LONGEST_NAME,
    MARKER,
    MAX_YAML,
    Damaged,
    below,
    check_digest,
    check_replaceable,
    file_name,
    file_path,
    made_folder,
    mark_file,
    one_line,
    parse_json,
    parse_yaml,
    read_array,
    read_bytes,
    read_csv,
    read_json,
    read_table,
    read_tensors,
    read_yaml,
    write_table,
    write_tensors,
)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        list(range(10**6)),
        {str(i): "y" * 1000 for i in range(1000)},
        10**4000,
        [[[[[[[[[]]]]]]]]],
    ],
)
def test_messages_are_short(value):
    assert len(shortened(value)) <= 123


def test_what_libraries_say_becomes_one_short_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError" and len(one_line(ValueError("x" * 10**6))) < 210


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        ".hidden",
        "a/b",
        "/etc",
        "a\\b",
        "C:\\x",
        "a\0",
        "a\nb",
        "\x1b[2J",
        "\udc80",
        "end.",
        "end ",
        "NUL",
        "nul.png",
        "com1",
        "x" * (LONGEST_NAME + 1),
        "é" * (LONGEST_NAME // 2 + 1),
        None,
        3,
        float("nan"),
        b"x",
        ["x"],
    ],
)
def test_what_cannot_name_a_file_is_refused_briefly(name):
    with pytest.raises(ValueError, match="^the video .* cannot name a file") as e:
        file_name(name, "the video")
    assert len(str(e.value)) < 300 and str(e.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "DF-1.0",
        "071_054",
        "Müller",
        "視頻",
        "clip (2)",
        "a..b",
        "null",
        "common",
        "x" * LONGEST_NAME,
    ],
)
def test_what_can_name_a_file_does(name, tmp_path):
    assert file_name(name) == name
    (tmp_path / name).touch()


@pytest.mark.parametrize(
    "path", ["..", "../x", "a/../../x", "/etc/passwd", "out/x", "loop/x/../../..", "a\0b"]
)
def test_no_path_leads_out(tmp_path, path):
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/out").symlink_to(tmp_path)
    (tmp_path / "root/loop").symlink_to("loop")
    with pytest.raises(ValueError, match="leads out of|is no path"):
        below(tmp_path / "root", path)


def test_a_sibling_with_the_same_beginning_is_outside(tmp_path):
    for name in ("root", "root2"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="leads out"):
        below(tmp_path / "root", "../root2/x")


def test_links_that_stay_inside_are_followed_and_the_root_may_be_one(tmp_path):
    (tmp_path / "disk/real").mkdir(parents=True)
    (tmp_path / "disk/real/1.png").touch()
    (tmp_path / "disk/link").symlink_to("real")
    (tmp_path / "root").symlink_to("disk")
    assert below(tmp_path / "root", "link/1.png") == (tmp_path / "disk/real/1.png").resolve()
    assert below(tmp_path / "root", ".") == (tmp_path / "disk").resolve()
    assert below("/", "etc") == Path("/etc")


def made(folder, purpose="benchmark", content="x"):
    with made_folder(folder, purpose) as new:
        (new / "sub").mkdir()
        (new / "sub/file").write_text(content)


def test_only_what_was_made_here_for_the_same_purpose_is_replaced(tmp_path):
    made(tmp_path / "out", content="old")
    made(tmp_path / "out", content="new")
    assert (tmp_path / "out/sub/file").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def stranger(folder):
    (folder / "thesis").write_text("x")


def added(folder):
    made(folder)
    (folder / "sub/mine").touch()


def other(folder):
    made(folder, "target set")


def forged(folder):
    (folder / MARKER).write_text('{"made_by": "prle", "purpose": "benchmark"}')
    (folder / "thesis").touch()


def listed(folder):
    (folder / MARKER).write_text("[]")


def inner(folder):
    made(folder)
    made(folder / "inner", "generators")
    (folder / "inner/mine").touch()


def link_added(folder):
    made(folder)
    (folder / "sub/mine").symlink_to("..")


def markless(folder):
    made(folder)
    (folder / MARKER).write_text('{"made_by": "prle", "purpose": "benchmark", "files": [1]}')


def linked(folder):
    (folder / MARKER).symlink_to(folder / "nowhere")
    (folder / "thesis").touch()


@pytest.mark.parametrize(
    "content",
    [stranger, added, link_added, other, forged, listed, markless, inner, linked],
    ids=lambda f: f.__name__,
)
def test_anything_else_is_left_alone_before_work(tmp_path, content):
    (tmp_path / "out").mkdir()
    content(tmp_path / "out")
    before = snapshot(tmp_path)
    with (
        pytest.raises((FileExistsError, ValueError), match="out"),
        made_folder(tmp_path / "out", "benchmark"),
    ):
        raise AssertionError("work has begun")
    assert snapshot(tmp_path) == before


def test_a_result_that_lost_files_is_made_again(tmp_path):
    made(tmp_path / "out")
    (tmp_path / "out/sub/file").unlink()
    made(tmp_path / "out", content="new")
    assert (tmp_path / "out/sub/file").read_text() == "new"


def test_what_was_made_inside_later_goes_with_it_if_nobody_added_to_it(tmp_path):
    made(tmp_path / "out")
    made(tmp_path / "out/targets/one", "target set")
    made(tmp_path / "out", content="new")
    assert not (tmp_path / "out/targets").exists()


def test_what_a_killed_process_left_inside_goes_with_it_and_what_a_living_one_writes_does_not(
    tmp_path,
):
    made(tmp_path / "out")
    made(tmp_path / "out/targets/one", "target set")
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out/targets")])
    assert died.returncode == -signal.SIGKILL
    assert sum(is_leftover(p.name) for p in (tmp_path / "out/targets").iterdir()) == 2
    check_replaceable(tmp_path / "out", "benchmark")
    with atomic_path(tmp_path / "out/living.png") as living:
        living.touch()
        with pytest.raises(FileExistsError, match="1 files that were not made by this"):
            check_replaceable(tmp_path / "out", "benchmark")
    (tmp_path / "out/living.png").unlink()
    (tmp_path / "out/targets/.prle-tmp-mine").mkdir()
    (tmp_path / "out/targets/.prle-tmp-mine/thesis").touch()
    with pytest.raises(FileExistsError, match="thesis"):
        check_replaceable(tmp_path / "out", "benchmark")
    shutil.rmtree(tmp_path / "out/targets/.prle-tmp-mine")
    made(tmp_path / "out", content="new")
    assert os.listdir(tmp_path / "out/sub") == ["file"] and not (tmp_path / "out/targets").exists()


def test_a_file_that_was_written_later_goes_with_its_folder(tmp_path):
    made(tmp_path / "out")
    mark_file(tmp_path / "out", "later")
    (tmp_path / "out/later").touch()
    check_replaceable(tmp_path / "out", "benchmark")
    (tmp_path / "out/mine").touch()
    with pytest.raises(FileExistsError, match="1 files .*mine"):
        check_replaceable(tmp_path / "out", "benchmark")
    mark_file(tmp_path, "later")
    assert not (tmp_path / MARKER).exists()


def test_what_is_put_there_meanwhile_is_left_alone(tmp_path):
    with pytest.raises(FileExistsError), made_folder(tmp_path / "out", "benchmark") as new:
        (new / "result").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["mine"]


def test_a_failure_leaves_the_earlier_result(tmp_path):
    made(tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises(KeyboardInterrupt), made_folder(tmp_path / "out", "benchmark") as new:
        (new / "half").touch()
        raise KeyboardInterrupt
    assert snapshot(tmp_path) == before


def test_empty_folders_and_nothing_can_be_taken_and_links_lead_to_the_place(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    made(tmp_path / "link")
    made(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty/sub/file").exists()
    check_replaceable(tmp_path / "nothing", "benchmark")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        check_replaceable(tmp_path / "file", "benchmark")


def test_a_folder_never_replaces_a_folder_unasked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(OSError), atomic_path(tmp_path / "out") as tmp:
        tmp.mkdir()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["mine"]


def test_discarding_a_link_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/face").touch()
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "data/up").symlink_to("..")
    discard(tmp_path / "link")
    discard(tmp_path / "nothing")
    assert os.listdir(tmp_path) == ["data"]
    discard(tmp_path / "data")
    assert os.listdir(tmp_path) == []


def test_leavings_of_killed_processes_have_names_of_their_own(tmp_path):
    with atomic_path(tmp_path / ("long" * 60 + ".parquet")) as tmp:
        assert is_leftover(tmp.name) and tmp.suffix == ".parquet" and len(tmp.name) < 50
        tmp.touch()
    for name in (
        ".backup-20240101",
        ".prle.json",
        ".x-0123abcd.png",
        ".0123abcd.deleted",
        "prle-tmp-01234567",
    ):
        assert not is_leftover(name)


KILLED = """
import os, signal, sys
from pathlib import Path
from prle.core import atomic_path
from prle.trust import made_folder
with made_folder(sys.argv[1] + "/a", "thing") as folder, atomic_path(folder.parent / "b.png") as tmp:
    (folder / "half").touch()
    tmp.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_process_takes_away_what_a_killed_one_left_and_nothing_else(tmp_path):
    "What a living process writes stays, and what one on another machine may be writing."
    elsewhere = tmp_path / ".prle-tmp-01234567-1-0123abcd"
    elsewhere.mkdir()
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert died.returncode == -signal.SIGKILL
    assert sum(is_leftover(p.name) for p in tmp_path.iterdir()) == 3
    with atomic_path(tmp_path / "living.png") as living:
        living.touch()
        write = f"from prle.core import write_json; write_json({str(tmp_path / 'c.json')!r}, 1)"
        subprocess.run([sys.executable, "-c", write], check=True)
        assert {p.name for p in tmp_path.iterdir()} == {elsewhere.name, living.name, "c.json"}
    remove_leftovers(tmp_path, of_living=True)
    assert {p.name for p in tmp_path.iterdir()} == {"living.png", "c.json"}


def test_devices_pipes_and_long_files_are_not_read(tmp_path):
    with pytest.raises(ValueError, match="/dev/zero is no ordinary file"):
        read_bytes("/dev/zero", 10)
    os.mkfifo(tmp_path / "pipe")
    for read in (
        lambda path: read_bytes(path, 10),
        read_json,
        read_yaml,
        read_array,
        read_tensors,
        read_table,
    ):
        with pytest.raises(ValueError, match="pipe is no ordinary file"):
            read(tmp_path / "pipe")
        with pytest.raises((ValueError, OSError), match=str(tmp_path)):
            read(tmp_path)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing")
    (tmp_path / "long").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="long has 11 bytes; at most 10"):
        read_bytes(tmp_path / "long", 10)
    assert read_bytes(tmp_path / "long", 11) == b"x" * 11


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"",
        b"\xff\xfe",
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"a": 1, "a": 2}',
        b"1" * 5000,
        b"[]",
        b"null",
    ],
)
def test_json_that_is_none_names_the_file(tmp_path, text):
    (tmp_path / "note.json").write_bytes(text)
    with pytest.raises(ValueError, match="note.json") as e:
        read_json(tmp_path / "note.json", dict)
    assert len(str(e.value)) < 500 + len(str(tmp_path)) and "\n" not in str(e.value)


def test_json_is_read():
    assert parse_json('{"a": [1, {"b": null}]}', "x", dict) == dict(a=[1, dict(b=None)])
    assert parse_json(b"[1]", "x", list) == [1]
    with pytest.raises(ValueError, match="x holds 1 where a list belongs"):
        parse_json("1", "x", list)


def laughs(depth=12):
    "Return a short YAML text whose last value, written out, has 4 * 9 ** depth words."
    lines = ["n0: &n0 [x, x, x, x]"]
    for k in range(depth):
        nine = ", ".join([f"*n{k}"] * 9)
        lines.append(f"n{k + 1}: &n{k + 1} [{nine}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        laughs(),
        "a: &a [*a]",
        "[" * MAX_YAML,
        "- " * (MAX_YAML // 2),
        "a: 1\na: 2",
        "a: {b: 1, b: 2}",
        "a: [",
        "? [1]\n: 2",
        "\x00",
        "2024-99-99: 1",
        "x" * (MAX_YAML + 1),
    ],
)
def test_yaml_that_asks_for_too_much_is_refused_in_little_memory(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    tracemalloc.start()
    with pytest.raises(ValueError, match="run.yaml") as e:
        read_yaml(tmp_path / "run.yaml")
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 2e8 and len(str(e.value)) < 500 + len(str(tmp_path)) and "\n" not in str(e.value)


def test_yaml_is_read():
    text = "zoo: [Xception, VGG]\noptions: {dropout: 0.1}\nlr: 1.0e-3"
    expected = dict(zoo=["Xception", "VGG"], options=dict(dropout=0.1), lr=1e-3)
    assert parse_yaml(text, "x") == expected


def header(shape, dtype="<f2"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (117 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\x93NUMPY",
        header((10**6, 10**6, 7)) + b"x" * 100,
        header((2, 2)),
        header((2,)) + b"xxxxx",
        header((-1, 4)),
        header((1,), "|O") + b"x" * 8,
        header((1,), "zz"),
        header("(1,"),
        header("[" * 60),
        b"\x93NUMPY\x09\x00" + b"x" * 99,
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_that_are_none_name_the_file(tmp_path, content, mapped):
    (tmp_path / "maps.npy").write_bytes(content)
    with pytest.raises(ValueError, match="maps.npy is no whole array"):
        read_array(tmp_path / "maps.npy", mapped)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.zeros((0, 8, 8), np.float16),
        np.float64(3),
        np.asfortranarray(np.eye(3)),
    ],
)
def test_arrays_are_read(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    for mapped in (False, True):
        assert np.array_equal(read_array(tmp_path / "x.npy", mapped), array)


def test_weights_that_are_none_name_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(dict(w=torch.ones(3)), path)
    assert read_tensors(path)["w"].tolist() == [1, 1, 1]
    whole = path.read_bytes()
    for content in (
        b"",
        b"x" * 64,
        whole[:-1],
        whole[:20],
        (2**62).to_bytes(8, "little") + whole[8:],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="model.safetensors holds no whole weights"):
            read_tensors(path)


def test_tensors_that_share_their_memory_are_written_under_each_name(tmp_path):
    "Tied, seen in part, turned, empty."
    whole = torch.arange(6.0).view(2, 3)
    given = dict(
        a=whole, b=whole, part=whole[1], turned=whole.T, empty=torch.ones(0), e=torch.ones(0)
    )
    found = read_tensors(write_tensors(tmp_path / "weights.safetensors", given))
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_what_is_written_may_be_read_by_whom_the_umask_says(tmp_path, umask):
    state = Checkpoint(1, dict(model=dict(w=torch.ones(2))), {}, {})
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "weights.safetensors", dict(w=torch.ones(3, 2).T))
        write_table(tmp_path / "table.parquet", pd.DataFrame(dict(a=[1])))
        write_json(tmp_path / "note.json", {})
        save_checkpoint(tmp_path / "checkpoint", state)
        with made_folder(tmp_path / "made", "test") as folder:
            (folder / "file").write_text("")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        mode = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == mode & ~umask, path
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 8


def test_nothing_writes_files_that_only_their_writer_can_read():
    "safetensors and tempfile make files of mode 0600; only what is private may be such."
    modules = Path(prle.__file__).parent.rglob("*.py")
    private = ("save_file(", "mkstemp(", "NamedTemporaryFile(")
    found = [p.name for p in modules if any(word in p.read_text() for word in private)]
    assert found == []


def test_damage_is_found_and_unchanged_files_are_read_once(tmp_path, monkeypatch):
    path, opened = tmp_path / "scores", []
    path.write_bytes(bytes(1000))
    time.sleep(0.05)  # what was written just now is read again
    fingerprint = file_digest(path)
    really = open

    def note(*args, **kwargs):
        opened.append(args)
        return really(*args, **kwargs)

    monkeypatch.setattr("builtins.open", note)
    assert check_digest(path, fingerprint) == path and not opened
    state = path.stat()
    path.write_bytes(bytes(999) + b"\1")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(Damaged, match="scores has changed"):
        check_digest(path, fingerprint)
    path.unlink()
    with pytest.raises(Damaged, match="scores is missing"):
        check_digest(path, fingerprint)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a//b",
        "a/",
        "a/../b",
        "./a",
        "a/./b",
        "a\\b",
        "C:\\a",
        "a/b\n",
        "a/.hidden",
        "nul/a",
        "x" * 300,
        None,
        3,
        ["a"],
    ],
)
def test_what_is_no_relative_path_is_refused_briefly(path):
    with pytest.raises(ValueError, match="^the crop ") as e:
        file_path(path, "the crop")
    assert len(str(e.value)) < 400 and str(e.value).isprintable()


def parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_tables_are_read_as_they_were_written(tmp_path):
    table = pd.DataFrame(
        dict(
            path=["a", "b", "a"],
            n=[1, 2, 3],
            p=[0.5, np.nan, 1],
            ok=[True, False, True],
            points=[[1.0, 2.0], [], [3.0]],
            none=[[], [], []],
        )
    )
    table.attrs = dict(root="/data")
    again = read_table(write_table(tmp_path / "t.parquet", table))
    assert again.attrs == dict(root="/data") and list(again.dtypes) == list(
        pd.read_parquet(tmp_path / "t.parquet").dtypes
    )
    pd.testing.assert_frame_equal(
        again[["path", "n", "p", "ok"]],
        pd.read_parquet(tmp_path / "t.parquet")[["path", "n", "p", "ok"]],
    )
    assert [list(p) for p in again.points] == [[1, 2], [], [3]] and len(
        read_table(write_table(tmp_path / "e.parquet", table.iloc[:0]))
    ) == 0


def test_tables_that_expand_are_not_expanded(tmp_path):
    word = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(10**6, np.int32)), pa.array(["x" * 10**5])
    )
    bombs = [
        parquet(tmp_path / "words.parquet", dict(path=word), store_schema=False),
        parquet(tmp_path / "numbers.parquet", dict(n=pa.array(np.zeros(2**25, np.int64)))),
    ]
    assert all(path.stat().st_size < 2e6 for path in bombs)
    before = pa.total_allocated_bytes()
    for path in bombs:
        with pytest.raises(
            ValueError, match=f"{path.name} is no whole table .*(more than|at most) 134,217,728"
        ):
            read_table(path, most=2**27)
    with pytest.raises(ValueError, match="more than 8,589,934,592 bytes"):
        read_table(bombs[0])
    assert pa.total_allocated_bytes() - before < 1e8


def test_a_table_of_many_words_takes_little_more_than_they_do(tmp_path):
    "Arrow hands out all words of earlier parts with every part."
    words = [f"FF++/manipulated_sequences/Deepfakes/c23/frames/{i:06d}.png" for i in range(200_000)]
    path = write_table(tmp_path / "t.parquet", pd.DataFrame(dict(path=words, n=range(200_000))))
    assert read_table(path, most=20 * 2**20).path.tolist() == words


def test_only_the_columns_that_are_asked_for_are_read(tmp_path):
    table = pd.DataFrame(dict(path=["a", "b"], n=[1, 2], p=[0.5, 1]))
    table.attrs = dict(root="/data")
    path = write_table(tmp_path / "t.parquet", table)
    found = read_table(path, ["p", "path"])
    assert found.to_dict("list") == dict(p=[0.5, 1], path=["a", "b"]) and found.attrs == table.attrs
    with pytest.raises(ValueError, match="t.parquet is no whole table .it lacks the column q, r"):
        read_table(path, ["p", "q", "r"])
    twice = pa.table([pa.array([1]), pa.array([2])], ["n", "n"])
    pq.write_table(twice, path)
    with pytest.raises(ValueError, match="t.parquet .*the column 'n' stands in it twice"):
        read_table(path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[[1.0]]]),
        pa.array([["x"]]),
        pa.array([dict(a=1)]),
        pa.array([b"x"]),
        pa.array([0], pa.timestamp("s")),
        pa.array([0], pa.decimal128(5)),
    ],
)
def test_tables_of_other_things_are_refused(tmp_path, column):
    told = "x.parquet is no whole table .the column 'landmarks' holds .*, not text"
    with pytest.raises(ValueError, match=told):
        read_table(parquet(tmp_path / "x.parquet", dict(landmarks=column)))


def test_damaged_tables_name_the_file_and_never_pass(tmp_path):
    path, draw = tmp_path / "x.parquet", np.random.default_rng(0)
    table = pd.DataFrame(
        dict(
            path=[f"{i}.png" for i in range(200)],
            p=draw.random(200),
            points=list(draw.random((200, 4))),
        )
    )
    whole = write_table(path, table).read_bytes()
    for i in range(400):
        content = bytearray(whole[: draw.integers(len(whole))]) if i % 4 == 0 else bytearray(whole)
        if i % 4:
            content[draw.integers(len(whole))] ^= 1 << draw.integers(8)
        path.write_bytes(content)
        try:
            again = read_table(path)
        except ValueError as e:
            assert str(path) in str(e) and "\n" not in str(e) and len(str(e)) < 500 + len(str(path))
        else:
            if list(again) != list(table):
                continue  # a column's name; whoever needs the column says that it is missing
            assert len(again) == 200 and all((again[c] == table[c]).all() for c in ("path", "p"))
            assert np.array_equal(np.stack(again.points), np.stack(table.points))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'path,reason\n"a',
        b"path,reason\na,b,c,d\ne,f,g,h,i",
        b"path\n",
        b"\0" * 50,
        b"path,reason,path\n\xff,1,2",
    ],
)
def test_csv_that_is_none_names_the_file(tmp_path, content):
    (tmp_path / "dropped.csv").write_bytes(content)
    with pytest.raises(ValueError, match="dropped.csv (is no table|lacks the column)") as e:
        read_csv(tmp_path / "dropped.csv", ["path", "reason"])
    assert "\n" not in str(e.value)


def test_csv_is_read_as_text(tmp_path):
    (tmp_path / "x.csv").write_text("path,reason\n007,NA\n")
    assert read_csv(tmp_path / "x.csv", ["path", "reason"]).values.tolist() == [["007", "NA"]]


def test_an_old_folder_is_deleted_when_the_new_one_stands(tmp_path, monkeypatch):
    "Deleting takes its time; a process that is killed meanwhile leaves the new result."
    folder, seen, rmtree = tmp_path / "a", [], shutil.rmtree

    def noted(path, **options):
        seen.append((folder / "x").read_text())
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", noted)
    for text in ("old", "new"):
        with made_folder(folder, "a test") as new:
            (new / "x").write_text(text)
    assert seen == ["new"] and [p.name for p in tmp_path.iterdir()] == ["a"]
