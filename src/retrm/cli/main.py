"""`retrm VERB ...`: one file per verb; modules of verbs import nothing heavy until they run."""

import os
import sys

from cyclopts import App, Parameter

from retrm import __version__
from retrm.cli.audit import audit
from retrm.cli.calibrate import calibrate
from retrm.cli.cascade import cascade
from retrm.cli.compare import compare
from retrm.cli.console import err
from retrm.cli.data import app as data_app
from retrm.cli.doctor import doctor
from retrm.cli.evaluate import evaluate
from retrm.cli.export import export
from retrm.cli.finetune import finetune
from retrm.cli.fit import fit
from retrm.cli.grade import grade
from retrm.cli.inspect import inspect
from retrm.cli.judge import app as judge_app
from retrm.cli.polar import app as polar_app
from retrm.cli.sample import sample
from retrm.cli.score import score
from retrm.cli.select import select
from retrm.cli.serve import serve
from retrm.errors import RetrmError

app = App(
    name="retrm",
    version=__version__,
    help=(
        "Reward models from the hidden states of a frozen LLM.\n\n"
        "A first run:\n\n"
        "    retrm sample smollm2-135m problems.jsonl -n 8 -o rollouts.jsonl\n"
        "    retrm grade  rollouts.jsonl\n"
        "    retrm fit    rollouts.jsonl --model smollm2-135m --method elhsr -o runs/elhsr\n"
        "    retrm select runs/elhsr rollouts.jsonl\n\n"
        "Every verb: --json prints one machine-readable object on stdout; progress and warnings go "
        "to stderr; a mistake exits with 2 and says what to do."
    ),
    help_format="markdown",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # `main` says what is kept
)

# In the order in which a newcomer meets them; modules of verbs import nothing heavy.
for verb in (
    *(sample, grade, fit, finetune, score, select, calibrate),
    *(serve, inspect, audit, doctor, export),
):
    app.command(verb)
app.command(evaluate, name="eval")
app.command(compare)
app.command(cascade)
app.command(data_app)
app.command(judge_app)
app.command(polar_app)


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


if __name__ == "__main__":
    main()
