"""A sample of the campaign (`make campaign`): accidents and attacks, from damaged files to floods.

None of them may end badly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CASES = 200


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "The sample, played by processes of its own."
    log = tmp_path_factory.mktemp("campaign") / "log.jsonl"
    words = ["-m", "tests.campaign", "--seed", "0", "--cases", str(CASES), "--log", str(log)]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert log.exists(), done.stderr[-3000:]
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_sample_covers_every_family(results):
    families = "names prune damage bombs kills disks floods"
    assert len(results) == CASES and {r["family"] for r in results} == {*families.split()}


@pytest.mark.parametrize("kind", ["silent", "traceback", "hang", "damage", "unclear", "void"])
@pytest.mark.skipif(sys.platform != "linux", reason="the campaign forks, and reads /proc")
def test_nothing_ends_badly(results, kind):
    bad = [r for r in results if r["kind"] == kind]
    told = [f"{r['family']} {r['number']}: {r['story']} -> {r['detail']}" for r in bad]
    how = "python -m tests.campaign --seed 0 --only FAMILY --case N"
    assert not bad, "\n".join([f"{len(bad)} of {len(results)}; replay with: {how}", *told[:20]])
