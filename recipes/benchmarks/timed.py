"""Run a command and write what it took: seconds on the clock and on the processor, and what it printed.

    python recipes/benchmarks/timed.py -o runs/benchmarks/rmb/fit.json -- retrm fit ... --json

Seconds on the processor count every process that the command started; on a machine that others use too
they are the fairer figure. Where the command prints one JSON object, as `retrm fit --json` does, it stands
under `printed`. What had been read already when a killed command goes on is not in its seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from retrm.files import write_json


def timed(command: list[str]) -> tuple[int, dict[str, Any]]:
    """Exit status of a command, and what it took."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        printed = json.loads(done.stdout)
    except ValueError:
        printed = None
        sys.stdout.write(done.stdout)
    on_processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, {
        "command": command,
        "seconds": round(seconds, 1),
        "processor_seconds": round(on_processor, 1),
        "printed": printed,
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args()
    status, took = timed(args.command)
    if status == 0:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, took)
    sys.exit(status)


if __name__ == "__main__":
    main()
