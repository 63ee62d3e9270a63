"""Every benchmark, one process each, then the page: `make bench`.

python benchmarks/all.py [--only NAME...]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harness import say

HERE = Path(__file__).parent
# Sizes by which the whole stays under a quarter of an hour on two free cores.
RUNS = {
    "reading": ["--answers", "48"],
    "prefix_sharing": ["--most", "8192", "--repeats", "1"],
    "scoring_while_generating": ["--prompts", "2", "--tokens", "48"],
    "store": [],
    "fitting": [],
    "scale": [],
    "first_score": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    failed = []
    started = time.monotonic()
    for name in parser.parse_args().only:
        say(f"\n== {name}")
        done = subprocess.run(
            [sys.executable, HERE / f"{name}.py", *RUNS[name]],
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            failed.append(name)
    say(f"\n{time.monotonic() - started:.0f} s in all")
    subprocess.run([sys.executable, HERE.parent / "docs" / "make_speed.py"], check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
