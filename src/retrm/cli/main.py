"""`retrm VERB ...`: one file per verb; modules of verbs import nothing heavy until they run."""

import os
import sys

from cyclopts import App

from retrm import __version__
from retrm.cli.console import err
from retrm.errors import RetrmError

app = App(
    name="retrm",
    version=__version__,
    help=(
        "Reward models from the hidden states of a frozen LLM.\n\n"
        "A first run:  retrm sample smollm2-135m problems.jsonl -n 8 -o rollouts.jsonl;  "
        "retrm grade rollouts.jsonl;  retrm fit rollouts.jsonl --model smollm2-135m -o runs/rm;  "
        "retrm select runs/rm rollouts.jsonl\n\n"
        "Every verb: --json prints one machine-readable object on stdout; progress and warnings go "
        "to stderr; a mistake exits with 2 and says what to do."
    ),
    help_format="plaintext",
)

VERBS = {
    "sample": "retrm.cli.sample:sample",
    "grade": "retrm.cli.grade:grade",
    "fit": "retrm.cli.fit:fit",
    "score": "retrm.cli.score:score",
    "select": "retrm.cli.select:select",
    "inspect": "retrm.cli.inspect:inspect",
    "doctor": "retrm.cli.doctor:doctor",
    "export": "retrm.cli.export:export",
    "data": "retrm.cli.data:app",
}
for name, target in VERBS.items():
    app.command(target, name=name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    # Tokenizers warn about forks that retrm never makes; one process, one model.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(arguments)
    except RetrmError as error:
        err.print(f"[bold red]error:[/] {type(error).__name__}: ", end="", highlight=False)
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; what was finished is kept, run the same command to go on")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our stdout went away (retrm score ... | head); nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
