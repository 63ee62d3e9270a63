"""What all adapters share: rewards of conversations, from a server or from a scorer in this process.

    RETRM_URL=http://127.0.0.1:8000    a server (`retrm serve`); RETRM_TOKEN and RETRM_MODEL go with it
    RETRM_SCORER=runs/elhsr            or a scorer here, by any name that `retrm score` takes

Arguments win over the environment, which is read at the first conversation, so that an instance made at
import serves whatever process it ends up in. Nothing opened travels in a pickle.
"""

import asyncio
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from retrm.data.messages import read_messages, read_text, split_answer
from retrm.errors import DataError, MissingExtraError, RecipeError, did_you_mean
from retrm.records import Answer, Message, Prompt
from retrm.service.client import AsyncRewardClient, Reward, RewardClient

SCORER_VARIABLE, URL_VARIABLE = "RETRM_SCORER", "RETRM_URL"
_SERVER = "retrm:"
_OVERLONG = {"error": "error", "truncate_prompt": "truncate_left"}
_LOCAL = ("torch", "transformers", "jaxtyping")  # of the extra local
POLICIES = ("error", "truncate_prompt", "truncate_response")
"""A trainer needs a reward for every answer, so none may be left out."""


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Say what is missing where only what a server needs is installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _LOCAL:
            raise
        raise MissingExtraError(
            f"judging in this process needs {error.name}; run pip install 'retrm[local]', or name a "
            "server: retrm:http://..."
        ) from error


class Judge:
    """Rewards answers; picklable, and shared by threads and event loops.

    Args:
        scorer: what judges in this process, by any name that `retrm score` takes; `retrm:URL` is a
            server.
        url: of a server, instead of `scorer`.
        model: name of the served model; None = RETRM_MODEL, else the server's first.
        backbone: where the backbone of a scorer's folder lies now.
        device: for the backbone of a scorer in this process.
        length_policy: what is done with answers beyond the context: `error`, `truncate_prompt`, or, by
            a server only, `truncate_response`.

    Raises:
        RecipeError: both a scorer and a server are named, or the policy is unknown.
    """

    def __init__(
        self,
        scorer: str | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        backbone: str | None = None,
        device: str = "cpu",
        length_policy: str = "error",
    ) -> None:
        if scorer is not None and scorer.startswith(_SERVER) and url is None:
            scorer, url = None, scorer.removeprefix(_SERVER)
        if scorer and url:
            raise RecipeError(
                f"got the scorer {scorer!r} and the server {url!r}; expected one of them"
            )
        if length_policy not in POLICIES:
            raise RecipeError(
                f"got length_policy={length_policy!r}, but every answer needs a reward. "
                f"{did_you_mean(length_policy, POLICIES)}"
            )
        self.scorer = scorer
        self.url = url
        self.model = model
        self.backbone = backbone
        self.device = device
        self.length_policy = length_policy
        self._make_transient()

    def _make_transient(self) -> None:
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._client: RewardClient | None = None
        self._async_client: AsyncRewardClient | None = None
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_transient()

    def rewards(self, answers: Sequence[Answer]) -> list[Reward]:
        """One reward an answer, in order.

        Raises:
            EndpointError: the server refused, did not answer, or answered nonsense.
            DataError, RenderError, ScoreError: an answer cannot be judged here.
            RecipeError: neither a scorer nor a server is named.
        """
        client = self._sync()
        if client is None:
            return self._here(answers)
        found: list[Reward | None] = [None] * len(answers)
        for rows, options in self._groups(answers):
            part = client.reward([answers[row].as_messages() for row in rows], **options)
            for row, reward in zip(rows, part, strict=True):
                found[row] = reward
        return _whole(found)

    async def arewards(self, answers: Sequence[Answer]) -> list[Reward]:
        """The same for an event loop, which is never blocked."""
        client = self._async()
        if client is None:
            return await asyncio.to_thread(self._here, answers)
        found: list[Reward | None] = [None] * len(answers)
        for rows, options in self._groups(answers):
            part = await client.reward([answers[row].as_messages() for row in rows], **options)
            for row, reward in zip(rows, part, strict=True):
                found[row] = reward
        return _whole(found)

    def rendered(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Reward]:
        """Rewards of texts in a model's own chat format, as some trainers send them.

        Args:
            texts: prompt and answer with all special tokens.
            prompts: of each, the beginning that is the prompt.

        Raises:
            RecipeError: the scorer in this process reads no token ids.
            EndpointError, DataError, RenderError, ScoreError: as `rewards`.
        """
        client = self._sync()
        if client is not None:
            policy = self.length_policy
            return client.rendered(list(texts), prompt_texts=list(prompts), length_policy=policy)
        return self._rendered_here(texts, prompts)

    def _groups(self, answers: Sequence[Answer]) -> list[tuple[list[int], dict[str, Any]]]:
        """Rows whose prompts offer the same tools, since a request has one list of them."""
        groups: dict[str, list[int]] = {}
        for row, answer in enumerate(answers):
            groups.setdefault(
                json.dumps(answer.prompt.tools, sort_keys=True, default=str), []
            ).append(row)
        policy = {"length_policy": self.length_policy}
        return [
            (rows, {"tools": answers[rows[0]].prompt.tools, **policy}) for rows in groups.values()
        ]

    def _server(self) -> str | None:
        """The server's address; None = a scorer in this process is named.

        Raises:
            RecipeError: neither is named, or both are by the environment.
        """
        if self.scorer or self.url:
            return self.url
        url, scorer = os.environ.get(URL_VARIABLE), os.environ.get(SCORER_VARIABLE)
        if bool(url) == bool(scorer):
            got = "both of" if url else "neither of"
            raise RecipeError(
                f"got {got} the environment variables {URL_VARIABLE} (a server) and {SCORER_VARIABLE} "
                "(a scorer in this process); expected one of them, or an argument url= or scorer="
            )
        if scorer and scorer.startswith(_SERVER):
            return scorer.removeprefix(_SERVER)
        return url or None

    def _sync(self) -> RewardClient | None:
        with self._lock:
            url = self._server()
            if url is not None and self._client is None:
                self._client = RewardClient(url, model=self.model)
            return self._client

    def _async(self) -> AsyncRewardClient | None:
        with self._lock:
            url = self._server()
            if url is not None and self._async_client is None:
                self._async_client = AsyncRewardClient(url, model=self.model)
            return self._async_client

    @_in_this_process()
    def _here(self, answers: Sequence[Answer]) -> list[Reward]:
        from retrm.metrics.kernels import sigmoid
        from retrm.scorers.together import judge_chunks

        if not answers:
            return []
        with self._reading:  # a model reads for one at a time
            scorer = self._open()
            overlong = self._overlong()
            (found,) = judge_chunks({scorer.name: scorer}, [answers], overlong=overlong)
        judged = found[scorer.name]
        counts = [0] * len(answers) if judged.n_tokens is None else judged.n_tokens
        rows = zip(judged.scores, sigmoid(judged.scores), counts, judged.is_cut, strict=True)
        return [
            Reward(
                score=float(score),
                value=float(score),
                calibrated=float(calibrated),
                num_tokens=int(n),
                truncated=bool(is_cut),
                model=scorer.name,
            )
            for score, calibrated, n, is_cut in rows
        ]

    @_in_this_process()
    def _rendered_here(self, texts: Sequence[str], prompts: Sequence[str]) -> list[Reward]:
        from retrm.backbone.foreign_text import read_text as read_foreign
        from retrm.metrics.kernels import sigmoid
        from retrm.scorers.base import check_scores

        with self._reading:
            scorer = self._open()
            if not hasattr(scorer, "score_rendered"):
                raise RecipeError(
                    f"the scorer {scorer.name!r} takes messages, and this trainer gives rendered text; "
                    "expected a folder made by retrm fit, or a server"
                )
            renderer = scorer.backbone.renderer
            pairs = zip(texts, prompts, strict=True)
            read = [read_foreign(renderer, text, prompt_text=prompt) for text, prompt in pairs]
            scores = scorer.score_rendered([one.rendered for one in read])
            rows = [Answer(Prompt(()), "", "", where=f"query {i}") for i in range(len(read))]
            check_scores(scores, rows, scorer.name)
        return [
            Reward(
                score=float(score),
                value=float(score),
                calibrated=float(calibrated),
                num_tokens=len(one.rendered.ids),
                unfinished=one.is_unfinished,
                model=scorer.name,
                warnings=one.warnings,
            )
            for one, score, calibrated in zip(read, scores, sigmoid(scores), strict=True)
        ]

    def _open(self) -> Any:
        if self._opened is None:
            from retrm.scorers.open import open_scorer

            spec = self.scorer or os.environ[SCORER_VARIABLE]
            self._opened = open_scorer(spec, model=self.backbone, device=self.device)
        return self._opened

    def _overlong(self) -> str:
        if self.length_policy not in _OVERLONG:
            raise RecipeError(
                f"length_policy={self.length_policy!r} is for servers; in this process expected one of "
                f"{', '.join(_OVERLONG)}"
            )
        return _OVERLONG[self.length_policy]


@lru_cache(maxsize=64)
def shared_judge(
    scorer: str | None = None,
    url: str | None = None,
    model: str | None = None,
    backbone: str | None = None,
    length_policy: str = "error",
) -> Judge:
    """One judge a process for the same settings: hosts call functions once a sample."""
    return Judge(scorer, url=url, model=model, backbone=backbone, length_policy=length_policy)


def answer_of(prompt: Any, response: Any, where: str) -> Answer:
    """An answer from whatever a host has: text or messages, rows of parquet files included.

    Args:
        prompt: a text (one user turn) or a list of turns.
        response: a text, or a list of turns of which the last is the assistant's.
        where: for messages of errors.

    Raises:
        DataError: it is neither, or there is no answer at its end.
    """
    prompt, response = _plain(prompt), _plain(response)
    if isinstance(prompt, str):
        before = (Message("user", read_text(prompt, where, "prompt")),)
    else:
        before = read_messages(prompt, where, "prompt")
    if isinstance(response, str):
        between, text = (), read_text(response, where, "response")
    else:
        between, text = split_answer(read_messages(response, where, "response"), where, "response")
    asked = Prompt((*before, *between))
    return Answer(asked, text, asked.key, where=where)


def conversation_of(turns: Any, where: str) -> Answer:
    """The same for a whole conversation whose last turn is the assistant's.

    Raises:
        DataError: it is none, or the answer replies to nothing.
    """
    before, text = split_answer(read_messages(_plain(turns), where, "messages"), where, "messages")
    if not before:
        raise DataError(f"{where}: there is an answer only; expected what it replies to before it")
    asked = Prompt(before)
    return Answer(asked, text, asked.key, where=where)


def _plain(value: Any) -> Any:
    """Lists where parquet readers give arrays, also inside of messages."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def score_of(reward: Reward) -> float:
    """The raw score; there is one, since no policy of `POLICIES` leaves answers out."""
    assert reward.score is not None
    return reward.score


def _whole(found: Sequence[Reward | None]) -> list[Reward]:
    assert all(one is not None for one in found)
    return [one for one in found if one is not None]
