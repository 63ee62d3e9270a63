"""Write docs/reference/cli.md from the help of every verb; --check only says if it is old.

Run it as `python docs/make_cli_reference.py`.
"""

import argparse
import io
import sys
from pathlib import Path

from cyclopts import App
from rich.console import Console

from retrm.cli.main import app

PAGE = Path(__file__).resolve().parent / "reference" / "cli.md"
WIDTH = 100
INTRODUCTION = """\
# The command line

<!-- Made by docs/make_cli_reference.py from the program's own help. Do not edit by hand. -->

What `retrm VERB --help` prints. Results go to stdout; progress, warnings and tables about a run go to
stderr. `--json` prints one machine-readable object on stdout. Exit codes: 0 = done, 1 = a check of
`retrm doctor` failed, 2 = a mistake that the message explains, 130 = stopped by hand.
"""


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION, _section("retrm", [])]
    sections += [_section(f"retrm {' '.join(verb)}", verb) for verb in verbs(app)]
    return "\n".join(sections)


def verbs(of: App, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every verb and sub-verb, in the order in which they were registered."""
    found: list[tuple[str, ...]] = []
    for name in of:
        if not name.startswith("-"):
            found += [(*prefix, name), *verbs(of[name], (*prefix, name))]
    return found


def _section(title: str, verb: list[str] | tuple[str, ...]) -> str:
    # Not the terminal's width, colours or encoding: the page must not depend on who makes it.
    file = io.StringIO()
    console = Console(
        file=file, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False
    )
    app.help_print(list(verb), console=console)
    lines = [line.rstrip() for line in file.getvalue().strip().splitlines()]
    return "\n".join([f"## `{title}`", "", "```text", *lines, "```", ""])


def main() -> None:
    """Write the page, or with --check leave it and exit with 1 if it is old."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if old")
    made = page()
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text("utf-8") != made:
            sys.exit(f"{PAGE} is old; run python docs/make_cli_reference.py")
        return
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
