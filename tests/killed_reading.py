"""Readings that are killed with SIGKILL, each in a fork of one process that has torch already.

Run as a script it prints one JSON object; `test_store_kills.py` says what it must hold. A script of
its own, because forks of a test process would share its threads' locks.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from retrm.backbone.fake import FakeBackbone
from retrm.features.read import read
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.store import shards
from retrm.store.index import read_index
from retrm.store.shards import ShardSink

RECIPES = {"last": Recipe(), "tokens": Recipe(pooling="tokens", layers="all", dtype="bfloat16")}
BACKBONE = FakeBackbone()
# What a kill may come in between. Writing has no event; kills by the clock fall into it.
EVENTS = ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "os.truncate", "fcntl.lockf")


def answers(n):
    return [Answer.of(f"question {i // 3}", "x" * (1 + i % 7) + str(i)) for i in range(n)]


def read_into(folder, rows):
    # One answer a batch and a shard a batch: no state depends on where a kill fell, to the last bit.
    shards.SHARD_BYTES = 1
    sink = ShardSink(folder, RECIPES, BACKBONE.fingerprint)
    return read(BACKBONE, rows, RECIPES, sink=sink, tokens_per_batch=1, share_prompts=False)


def forked(work):
    """The process id of a child that runs, does `work` and ends."""
    runs, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(begun, b".")
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.read(runs, 1)
    os.close(runs)
    os.close(begun)
    return child


def ended_by(child):
    """Signal number, or None where the child came to its end."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return None


def uninterrupted(rows):
    return read(BACKBONE, rows, RECIPES, tokens_per_batch=1, share_prompts=False)


def state_of(folder, rows, whole):
    """What the next run finds, then the finished store against a reading without a kill."""
    left = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    found = read_into(folder, rows)
    is_same = all(
        torch.equal(found.features[name].values, whole.features[name].values)
        and torch.equal(found.features[name].offsets, whole.features[name].offsets)
        for name in RECIPES
    )
    keys = read_index(folder)["key"].to_pylist()
    return {
        "left": left,
        "is_same": is_same,
        "n_keys": len(keys),
        "n_different_keys": len(set(keys)),
        "files": sorted(path.name for path in folder.iterdir()),
    }


def killed_by_the_clock(folder, n_kills, seed):
    """Kills after random delays until `n_kills` fell into a reading; then one goes to its end."""
    draw, rows = random.Random(seed), answers(80)
    started = time.monotonic()
    read_into(folder / "timing", rows)
    whole_s = time.monotonic() - started
    kills, shards_seen = 0, []
    while kills < n_kills:
        # The delay begins when the child runs; one that is done before it waits to be killed, too.
        child = forked(lambda: (read_into(folder / "s", rows), signal.pause()))
        time.sleep(draw.uniform(0, 1.4 * whole_s / n_kills))
        os.kill(child, signal.SIGKILL)
        kills += ended_by(child) == signal.SIGKILL
        manifest = folder / "s" / "manifest.json"
        found = json.loads(manifest.read_text()) if manifest.exists() else {"shards": []}
        shards_seen.append(len(found["shards"]))
    return {
        "n_kills": kills,
        "n_shards": shards_seen,
        **state_of(folder / "s", rows, uninterrupted(rows)),
    }


def killed_at_every_step(folder):
    """One run a step: the n-th run is killed just before the n-th thing it does to a file."""
    rows, runs, step = answers(2), [], 1
    whole = uninterrupted(rows)
    while True:
        target = folder / f"step-{step}"

        def work(target=target, step=step):
            count_down(target, step)
            read_into(target, rows)

        if ended_by(forked(work)) is None:
            return runs
        runs.append(state_of(target, rows, whole))
        step += 1


def count_down(folder, step):
    """Kill this process before the `step`-th operation on a file of `folder`."""
    left, fsync = [step], os.fsync

    def hit():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(event, arguments):
        is_ours = any(str(folder) in str(argument) for argument in arguments[:2])
        if event in EVENTS and (is_ours or event == "fcntl.lockf"):
            hit()

    sys.addaudithook(on_event)
    os.fsync = lambda handle: (hit(), fsync(handle))[1]


def main(folder):
    torch.set_num_threads(1)
    # A kill, unlike a power cut, loses nothing that the system was given: flushing only takes time.
    os.fsync = lambda handle: None
    clock = killed_by_the_clock(folder, 20, seed=7)
    print(json.dumps({"clock": clock, "steps": killed_at_every_step(folder)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
