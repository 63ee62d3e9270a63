"""The benchmarks that need no other code and no long reading, one process each, then the page: `make bench`.

What a benchmark wrote before is deleted when it begins, so nothing old is shown as measured now: one
that fails is "not measured yet" on the page. Commit first, or the figures are labelled `-dirty`.

python benchmarks/all.py [--only NAME...]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harness import RESULTS, commit, say

HERE = Path(__file__).parent
# Sizes by which the whole stays under a quarter of an hour on two free cores. `elhsr_fit` needs a
# checkout of the official code, and it, `armorm_fit`, `precision`, `prune` and `serving` take minutes: run
# them by hand.
RUNS = {
    "reading": ["--answers", "24"],
    "prefix_sharing": ["--repeats", "2"],
    "scoring_while_generating": ["--tokens", "64", "--short", "0"],
    "store": [],
    "fitting": [],
    "scale": [],
    "first_score": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    names = parser.parse_args().only
    began, started = commit(), time.monotonic()
    failed = [name for name in names if not run(name)]
    say(f"\n{time.monotonic() - started:.0f} s in all")
    subprocess.run([sys.executable, HERE.parent / "docs" / "make_speed.py"], check=True)
    trouble = [f"failed, and not on the page: {', '.join(failed)}"] if failed else []
    if commit() != began:
        trouble.append(f"the code was {began} at the beginning and is {commit()} now: run it again")
    if trouble:
        sys.exit(". ".join(trouble))


def run(name: str) -> bool:
    """Whether the benchmark `name` ended well; its result of an earlier run is gone in any case."""
    say(f"\n== {name}")
    started = time.monotonic()
    (RESULTS / f"{name}.json").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, HERE / f"{name}.py", *RUNS[name]], stdout=subprocess.DEVNULL, check=False
    )
    say(f"{name}: {time.monotonic() - started:.0f} s")
    return done.returncode == 0


if __name__ == "__main__":
    main()
