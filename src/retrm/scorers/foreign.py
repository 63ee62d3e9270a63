"""Scores that come from somebody else's code or file.

    call:MODULE:NAME    a function (prompts, responses) -> scores, or an object with `score(answers)`
    scores:FILE         records of any format with a `score`, as retrm score writes them

A function is given `prompts`, a list of message lists, and `responses`, a list of texts; it returns a
number an answer, higher is better.

A function or object is known by the source of its module, so that scores of before a change are not
taken for its own. What else it depends on, such as the weights of a model that it loads, an object may
say itself in `identity`, a text.
"""

import contextlib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrm.data.load import iter_parsed
from retrm.errors import DataError, RecipeError, ScoreError, did_you_mean
from retrm.records import Answer
from retrm.scorers.base import Scorer, check_scores

Function = Callable[[list[list[dict[str, Any]]], list[str]], Sequence[float]]


class CallableScorer:
    """A Python function as a scorer."""

    def __init__(self, function: Function, *, name: str, identity: str = "") -> None:
        self.function = function
        self.name = name
        self.identity = identity or name

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """What the function says.

        Raises:
            ScoreError: another number of scores, or one that is no finite number.
        """
        prompts = [[m.as_dict() for m in answer.prompt.messages] for answer in answers]
        found = self.function(prompts, [answer.response for answer in answers])
        try:
            scores = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ScoreError(
                f"{self.name} gave {found!r:.80}; expected a list with a number for every answer"
            ) from error
        return check_scores(scores, answers, self.name)


def open_callable(spec: str) -> Scorer:
    """``MODULE:NAME``: a module of the current folder or an installed one, and what it holds.

    Runs the module's code, as importing does.

    Raises:
        RecipeError: no such module or name, or it is no function and has no `score`.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise RecipeError(
            f"got call:{spec}; expected call:MODULE:NAME, such as call:my_rewards:score"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a script of the entry point does not look here
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(
            f"cannot import {module_name!r} ({error}); expected a module of the current folder or an "
            "installed package"
        ) from error
    except Exception as error:  # whatever somebody's module does when it is run
        raise RecipeError(
            f"importing {module_name!r} failed with {type(error).__name__}: {error}. Expected a module "
            f"that imports; try: python -c 'import {module_name}'"
        ) from error
    if not hasattr(module, attribute):
        offered = [name for name in vars(module) if not name.startswith("_")]
        raise RecipeError(f"{module_name} has no {attribute!r}. {did_you_mean(attribute, offered)}")
    found = getattr(module, attribute)
    made = found() if inspect.isclass(found) else found
    name = f"call:{spec}"
    identity = f"{name} {_source_hash(module)}"
    if hasattr(made, "score"):
        own = str(getattr(made, "identity", ""))
        if not own.startswith(identity):  # an object of the module may have been opened before
            with contextlib.suppress(AttributeError):  # of one that takes none, its own word stands
                made.identity = f"{identity} {own}".strip()
        return made
    if not callable(made):
        raise RecipeError(
            f"{name} is a {type(made).__name__}; expected a function (prompts, responses) -> scores, "
            "or an object with score(answers)"
        )
    return CallableScorer(made, name=name, identity=identity)


def _source_hash(module: Any) -> str:
    """A change of the file makes another scorer, whose scores are not those on disk."""
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""


class FileScorer:
    """Scores that stand in a file, found by prompt and answer."""

    def __init__(self, path: str | Path) -> None:
        """Read the whole file.

        Raises:
            DataError: a record without a score, or one answer with two scores.
        """
        self.name = f"scores:{path}"
        self.identity = f"{self.name} {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"
        self._known: dict[tuple[str, str], tuple[float, str]] = {}
        for record, parsed in iter_parsed(path, ratings="unread"):
            for answer, score in zip(parsed.answers, _scores_of(record, parsed), strict=True):
                key = (answer.prompt.key, answer.response)
                before = self._known.setdefault(key, (score, record.where))
                if before[0] != score:
                    raise DataError(
                        f"{record.where}: the score {score:g} of an answer is {before[0]:g} at "
                        f"{before[1]}; expected one score an answer. Remove one of the two"
                    )

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """As they stand.

        Raises:
            ScoreError: an answer that the file does not have.
        """
        out = []
        for answer in answers:
            found = self._known.get((answer.prompt.key, answer.response))
            if found is None:
                raise ScoreError(
                    f"{self.name} has no score of {answer.where or 'an answer'} "
                    f"({answer.response[:60]!r}); expected one for every answer of the benchmark, with "
                    "the same prompt and text. Score the file that the benchmark is read from"
                )
            out.append(found[0])
        return np.array(out, dtype=np.float64)


def _scores_of(record: Any, parsed: Any) -> list[float]:
    """The `score` of a record in the order of its answers: a number, a list, or named numbers."""
    value = record.fields.get("score")
    if isinstance(value, dict):
        value = [value.get(name) for name in parsed.score_fields]
    values = value if isinstance(value, list) else [value]
    bad = next((v for v in values if isinstance(v, bool) or not isinstance(v, int | float)), ...)
    if bad is not ... or len(values) != len(parsed.answers):
        raise DataError(
            f"{record.where}: `score` is {value!r:.60}; expected a number for each of "
            f"{len(parsed.answers)} answers, as retrm score writes them"
        )
    return [float(v) for v in values]
