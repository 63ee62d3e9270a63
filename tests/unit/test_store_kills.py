"""A reading that is killed with SIGKILL, at any moment, goes on and loses and doubles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import killed_reading
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of one process")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What `killed_reading.py` prints; it imports torch once for all kills."""
    script = str(Path(killed_reading.__file__))
    command = [sys.executable, script, str(tmp_path_factory.mktemp("kills"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shards(n):
    return [f"shard-{i:05d}.safetensors" for i in range(n)]


def test_twenty_kills_at_random_moments_lose_and_double_nothing(killed):
    found = killed["clock"]

    assert found["n_kills"] == 20
    assert found["n_shards"] == sorted(found["n_shards"])  # what was stored stays stored
    assert found["n_shards"][-1] > 0
    assert found["is_same"]
    assert (found["n_keys"], found["n_different_keys"]) == (80, 80)
    assert found["files"] == ["index.parquet", "manifest.json", *shards(80)]


def test_a_kill_before_any_single_operation_on_a_file_loses_and_doubles_nothing(killed):
    runs = killed["steps"]

    # Two shards, their manifests, the first and the last manifest, the index: seven files, each made,
    # flushed, permitted, renamed and its folder flushed; and the lock.
    assert len(runs) >= 7 * 5
    for run in runs:
        assert run["is_same"], run
        assert (run["n_keys"], run["n_different_keys"]) == (2, 2), run
        assert run["files"] == ["index.parquet", "manifest.json", *shards(2)], run


def test_the_kills_fell_where_it_hurts(killed):
    left = [set(run["left"]) for run in killed["steps"]]

    assert {"manifest.json", "shard-00000.safetensors", "writer.lock"} in left
    assert any(name.startswith(".shard-00001.") for names in left for name in names)
    assert any(name.startswith(".manifest.json.") for names in left for name in names)
    assert any("index.parquet" in names and "writer.lock" in names for names in left)
    assert set() in left
