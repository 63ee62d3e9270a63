"""What judges wrote, on disk: paid for once, whatever happens to the run.

One file of JSON Lines a judge model, a line a reply, appended the moment it is there:

    {"key": "...", "template": "rm_r1_instruct", "text": "...", "finished": true, "n_prompt": 812, ...}

The key is a hash of everything that the reply hangs on: template (its texts and rule), model, sampling,
seed, number of the sample, and the messages with the contents of their pictures. So a change of any of
them asks anew, and replies to another template are never taken for these. Kept is what the judge wrote and
not what was read from it, so that a better parser costs no call.

A line that a kill cut short is asked for again, and counted. Two processes may append to one file.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrm.errors import EndpointError, OutputError
from retrm.records import Message

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """One output of a judge.

    Attributes:
        text: what it wrote, special tokens left out.
        finished: whether it came to its own end; None = the engine does not tell.
        n_prompt_tokens: of the messages; None = not told.
        n_new_tokens: written; None = not told.
        served_by: the model that an endpoint says it used.
        problem: why there is no text to be read ("content_filter", "longer than the context").
    """

    text: str
    finished: bool | None = True
    n_prompt_tokens: int | None = None
    n_new_tokens: int | None = None
    served_by: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How a judge's outputs are drawn; part of every key.

    Attributes:
        temperature: 0 = always the likeliest token.
        top_p: share of probability to draw from.
        max_new_tokens: an output is cut there.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 0


def reply_key(
    model: str, mark: str, sampling: Sampling, number: int, messages: Sequence[Message]
) -> str:
    """By which a reply is known: 32 hex digits.

    Args:
        model: identity of the judge model.
        mark: of the template (`template_mark`).
        sampling: how it is drawn.
        number: of the sample among those of the same messages.
        messages: that are sent.
    """
    body = {
        "model": model,
        "template": mark,
        "sampling": asdict(sampling),
        "number": number,
        "messages": [message.as_dict() for message in messages],
        "pictures": [_picture_mark(image) for message in messages for image in message.images],
    }
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _picture_mark(image: str) -> str:
    """A file is known by its bytes: another picture may take the same name."""
    path = Path(image)
    if image.startswith(("http://", "https://", "data:")) or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


class ReplyCache:
    """Replies by key, in memory and, where a path is given, on disk; shared by threads.

    Attributes:
        n_damaged: lines of the file that could not be read; their replies are asked for again.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read what is there.

        Raises:
            OutputError: the file cannot be read or made.
        """
        self.path = path
        self.n_damaged = 0
        self._known: dict[str, Reply] = {}
        self._served: dict[str, str] = {}  # model -> who served it first
        self._lock = threading.Lock()
        if path is not None:
            with _told(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._load(path.read_bytes() if path.exists() else b"")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Reply | None:
        """The reply, if there is one."""
        return self._known.get(key)

    def put(self, key: str, reply: Reply, *, model: str, template: str) -> None:
        """Keep a reply; it is on its way to the disk when this returns.

        Raises:
            EndpointError: the endpoint serves another model than the one whose replies are here.
            OutputError: the disk is full; what was kept before is intact.
        """
        with self._lock:
            self._check_served(model, reply.served_by)
            self._known[key] = reply
            if self.path is None:
                return
            line = {"key": key, "model": model, "template": template, **asdict(reply)}
            with _told(self.path), self.path.open("ab", buffering=0) as file:
                # Behind a line that a kill cut short this begins a new one, and costs an empty one else.
                start = b"\n" if self._is_torn else b""
                self._is_torn = False
                left = start + json.dumps(line, ensure_ascii=True).encode() + b"\n"
                while left:
                    left = left[file.write(left) :]

    def _check_served(self, model: str, served_by: str | None) -> None:
        if served_by is None:
            return
        before = self._served.setdefault(model, served_by)
        if before != served_by:
            raise EndpointError(
                f"the endpoint of {model} now answers as {served_by!r}; the verdicts so far are of "
                f"{before!r}. Verdicts of two models do not mix: give another cache folder, or ask the "
                "endpoint for the model that it served before"
            )

    _is_torn = False

    def _load(self, content: bytes) -> None:
        self._is_torn = bool(content) and not content.endswith(b"\n")
        for line in content.split(b"\n"):
            if line.strip() and not self._add(line):
                self.n_damaged += 1
        if self.n_damaged:
            _LOG.warning(
                "%s: %d line(s) cannot be read; those replies are asked for again",
                self.path,
                self.n_damaged,
            )

    def _add(self, line: bytes) -> bool:
        try:
            row = json.loads(line)
        except ValueError:
            return False
        match row:
            case {"key": str(key), "model": str(model), "text": str()}:
                reply = _reply_of(row)
                self._known[key] = reply
                if reply.served_by is not None:
                    self._served.setdefault(model, reply.served_by)
                return True
        return False


def _reply_of(row: Mapping[str, Any]) -> Reply:
    names = Reply.__dataclass_fields__
    return Reply(**{name: row[name] for name in names if name in row})


class _told:
    """Around reading and writing: what the system says, in our words."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, EndpointError | OutputError):
            raise OutputError(
                f"the judge's cache {self.path} cannot be used: {error.strerror or error}. What is in it "
                "is kept; make room or give another cache folder, then run the same command again"
            ) from error
