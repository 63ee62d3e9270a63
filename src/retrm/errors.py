"""Every error that retrm raises on purpose.

A message says what was got, what was expected and what to do. Each leaf also inherits the error of
the standard library that a caller would expect, so ``except ValueError`` keeps working.

    RetrmError
    ├── DataError            (ValueError)       a record, file or label is not what it should be
    │   ├── FormatError                         columns that fit no record format, or several
    │   ├── LabelError                          labels of the wrong kind, all the same, or missing
    │   └── OverlongError                       an answer is longer than the backbone's context
    ├── RenderError          (ValueError)       messages cannot become token ids and an answer span
    ├── BackboneError        (ValueError)       a language model is unknown, incomplete or unsupported
    ├── RecipeError          (ValueError)       method, layer, subspace, pooling, head or loss is impossible
    │   └── ShapeError                          an array has another width than the recipe says
    ├── FitError             (ValueError)       the data cannot determine a head
    ├── ArtifactError        (ValueError)       a reward-model folder is missing, damaged or of another version
    │   ├── FingerprintError                    the head belongs to another backbone or template
    │   └── SelfTestError                       the stored scores are not reproduced
    ├── StoreError           (ValueError)       a feature store is damaged or belongs to another reading
    ├── ExportError          (ValueError)       the export would not be exact
    ├── ScoreError           (ValueError)       scores are NaN, infinite, missing or of the wrong number
    ├── OutputError          (OSError)          a result could not be written; the old file is intact
    ├── EndpointError        (ConnectionError)  a remote engine failed, timed out or answered nonsense
    │   └── RefusedError                        it understood the request and will not serve it
    ├── EngineError          (RuntimeError)     a cluster cannot be reached, or its workers keep dying
    ├── ServiceError         (RuntimeError)     what the server answers instead of scores
    │   ├── UnknownModelError                   no model of that name is served
    │   ├── TooLargeError                       a request has more bytes, items or tokens than are taken
    │   ├── BusyError                           the queue is full; the same request may be sent again
    │   ├── NotReadyError                       the server is starting or ending
    │   ├── DeadlineError    (TimeoutError)     there was no time left for the request
    │   ├── JudgingError                        the model failed on an item that was accepted
    │   └── AccessError      (PermissionError)  the bearer token is missing or wrong
    └── MissingExtraError    (ImportError)      an optional dependency is not installed
"""

import difflib
from collections.abc import Iterable


class RetrmError(Exception):
    """Root of all errors raised on purpose."""


class DataError(RetrmError, ValueError):
    """A record, a file or a label is not what it should be."""


class FormatError(DataError):
    """The columns fit no record format, or more than one."""


class LabelError(DataError):
    """Labels are of the wrong kind, all the same, or missing."""


class OverlongError(DataError):
    """An answer with its prompt is longer than the backbone's context."""


class RenderError(RetrmError, ValueError):
    """Messages cannot be turned into token ids and an answer span."""


class BackboneError(RetrmError, ValueError):
    """A language model is unknown, incomplete or of an unsupported family."""


class RecipeError(RetrmError, ValueError):
    """A method, layer, state point, subspace, pooling, head or loss is impossible."""


class ShapeError(RecipeError):
    """An array has another width than the recipe or the head says."""


class FitError(RetrmError, ValueError):
    """The data cannot determine a head."""


class ArtifactError(RetrmError, ValueError):
    """A reward-model folder is missing, damaged or of another version."""


class FingerprintError(ArtifactError):
    """A head belongs to another backbone, tokenizer or template."""


class SelfTestError(ArtifactError):
    """A loaded reward model does not reproduce its stored scores."""


class StoreError(RetrmError, ValueError):
    """A feature store is damaged or belongs to another reading."""


class ExportError(RetrmError, ValueError):
    """An export would not give the same scores."""


class ScoreError(RetrmError, ValueError):
    """Scores are NaN, infinite, missing or of the wrong number."""


class OutputError(RetrmError, OSError):
    """A result could not be written; what was there before is intact."""


class EndpointError(RetrmError, ConnectionError):
    """A remote engine failed, timed out or answered something that is no answer."""


class RefusedError(EndpointError):
    """A remote engine understood the request and will not serve it.

    Attributes:
        status: of HTTP, 400 for example.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[str, int]]:
        # Trainers carry errors from process to process.
        return type(self), (str(self), self.status)


class EngineError(RetrmError, RuntimeError):
    """A cluster cannot be reached, has too little to offer, or its workers keep dying."""


class ServiceError(RetrmError, RuntimeError):
    """What the server answers instead of scores."""


class UnknownModelError(ServiceError):
    """No model of that name is served."""


class TooLargeError(ServiceError):
    """A request has more bytes, items or tokens than the server takes."""


class BusyError(ServiceError):
    """The queue is full; the same request may be sent again.

    Attributes:
        retry_after_s: when there may be room, as the speed of the last passes says.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(ServiceError):
    """The server is starting or ending."""


class DeadlineError(ServiceError, TimeoutError):
    """There was no time left for the request."""


class JudgingError(ServiceError):
    """The model failed on an item that was accepted."""


class AccessError(ServiceError, PermissionError):
    """The bearer token is missing or wrong."""


class PageError(ServiceError, PermissionError):
    """A web page of another origin sent the request."""


class MissingExtraError(RetrmError, ImportError):
    """An optional dependency is not installed."""


def did_you_mean(got: str, choices: Iterable[str]) -> str:
    """A closing sentence that offers the nearest of `choices`, or lists them all."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return "Choose from: " + ", ".join(names) + "." if names else ""
