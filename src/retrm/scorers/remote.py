"""Reward models behind HTTP: what 2026's engines and trainers serve, as scorers.

    spec            request                                       the score
    vllm:URL        POST /classify {messages, use_activation: false}      data[0].probs[-1]
    vllm-pooling:URL POST /pooling {messages, task, use_activation: false} data[0].data, last number
    sglang:URL      POST /classify {input_ids}                            embedding[0]
    openrlhf:URL    POST URL {query, prompts, labels}                     rewards[0]
    retrm:URL       POST /v1/reward {messages}                            results[0].score
    polar-vllm:URL  POST /pooling {input, use_activation: false}          data[0].data, last number
    polar-sglang:URL POST /classify {text}                                embedding[0]

One answer a request, a bounded number at a time, tried again where the fault may pass
(`backbone.patient`). vLLM and retrm apply the template of the model that they serve; SGLang and OpenRLHF
take token ids and text, so that they need the tokenizer here (`model`). The two of POLAR send what its
client sends, a comparison with the answer's reference, cut with the tokenizer of the discriminator.

Two traps: a /classify that ignores `use_activation` answers between 0 and 1 for everything, which cannot be
told from a model whose scores lie there, so its table says so; SGLang's /v1/classify turns one label into
1.0 always, so the native /classify is used.

A server is known by its address, the name of its model and, where text is rendered here, the tokenizer:
another model behind the same address and name cannot be told apart.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from retrm.backbone.fingerprint import hash_text, hash_tokenizer
from retrm.backbone.patient import KEY_VARIABLE, PatientClient
from retrm.backbone.render import ChatRenderer
from retrm.errors import EndpointError, RecipeError, did_you_mean
from retrm.patience import checked_url, without_password
from retrm.records import Answer
from retrm.scorers.base import check_scores
from retrm.scorers.polar import PolarText

CONCURRENCY = 8


@dataclass(frozen=True)
class Dialect:
    """How one kind of server is asked.

    Attributes:
        path: put behind the URL unless it ends in it; "" = the URL is the whole address.
        needs_tokenizer: whether the server takes ids or rendered text.
        request: body of one answer.
        score: the score in a reply; raises LookupError, TypeError or ValueError where there is none.
        key_variable: environment variable with the bearer key, unless another one is named.
    """

    path: str
    needs_tokenizer: bool
    request: Callable[[Answer, Any], dict[str, Any]]
    score: Callable[[Any], float]
    key_variable: str = KEY_VARIABLE


def _vllm(answer: Answer, _: ChatRenderer | None) -> dict[str, Any]:
    return {"messages": answer.as_messages(), "use_activation": False}


def _vllm_pooling(answer: Answer, renderer: ChatRenderer | None) -> dict[str, Any]:
    return {**_vllm(answer, renderer), "task": "classify"}


def _sglang(answer: Answer, renderer: ChatRenderer | None) -> dict[str, Any]:
    assert renderer is not None
    return {"input_ids": list(renderer.render_finished(answer).ids)}


def _openrlhf(answer: Answer, renderer: ChatRenderer | None) -> dict[str, Any]:
    assert renderer is not None
    rendered = renderer.render_finished(answer)
    return {
        "query": [renderer.text(rendered.ids)],
        "prompts": [renderer.text(rendered.ids[: rendered.start])],
        "labels": [None],
    }


def _retrm(answer: Answer, _: ChatRenderer | None) -> dict[str, Any]:
    tools = [dict(tool) for tool in answer.prompt.tools]
    return {"messages": [answer.as_messages()], **({"tools": tools} if tools else {})}


def _polar_vllm(answer: Answer, text: Any) -> dict[str, Any]:
    return {"input": [text.text(answer)], "use_activation": False}


def _polar_sglang(answer: Answer, text: Any) -> dict[str, Any]:
    return {"text": [text.text(answer)]}


def _last_number(value: Any) -> float:
    while isinstance(value, list):
        value = value[-1]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _embedding(reply: Any) -> float:
    found = reply[0] if isinstance(reply, list) else reply
    return _last_number(found["embedding"][0])


DIALECTS: Mapping[str, Dialect] = {
    "vllm": Dialect("/classify", False, _vllm, lambda r: _last_number(r["data"][0]["probs"])),
    "vllm-pooling": Dialect(
        "/pooling", False, _vllm_pooling, lambda r: _last_number(r["data"][0]["data"])
    ),
    "sglang": Dialect("/classify", True, _sglang, _embedding),
    "polar-vllm": Dialect(
        "/pooling", True, _polar_vllm, lambda r: _last_number(r["data"][0]["data"])
    ),
    "polar-sglang": Dialect("/classify", True, _polar_sglang, _embedding),
    "openrlhf": Dialect("", True, _openrlhf, lambda r: _last_number(r["rewards"])),
    # The variable that `retrm serve` itself reads: one machine, one name.
    "retrm": Dialect(
        "/v1/reward",
        False,
        _retrm,
        lambda r: _last_number(r["results"][0]["score"]),
        key_variable="RETRM_TOKEN",
    ),
}


class RemoteScorer:
    """Scores of a server; implements `Scorer`."""

    def __init__(
        self,
        dialect: str,
        url: str,
        *,
        renderer: ChatRenderer | PolarText | None = None,
        served_model: str | None = None,
        concurrency: int = CONCURRENCY,
        timeout_s: float = 180.0,
        retries: int = 5,
        pause_s: float = 0.5,
        key_variable: str | None = None,
    ) -> None:
        """Prepare to ask; nothing is sent yet.

        Args:
            dialect: a name of `DIALECTS`.
            url: of the server, with or without the path of the dialect.
            renderer: messages to ids, or comparisons to text, for dialects that take ids or text.
            served_model: name by which the server knows the model; sent where it is given.
            concurrency: requests at a time.
            timeout_s: seconds of silence after which a request counts as failed.
            retries: further attempts for what may pass.
            pause_s: seconds before the second attempt; doubled for each further one.
            key_variable: environment variable with the bearer key; None = RETRM_TOKEN for `retrm`,
                RETRM_API_KEY for the others.

        Raises:
            RecipeError: unknown dialect, or one that needs a renderer and got none.
            EndpointError: the URL is none.
        """
        if dialect not in DIALECTS:
            raise RecipeError(f"unknown dialect {dialect!r}. {did_you_mean(dialect, DIALECTS)}")
        self.dialect = DIALECTS[dialect]
        if self.dialect.needs_tokenizer and renderer is None:
            raise RecipeError(
                f"{dialect} takes rendered text, so the served model's tokenizer is needed here; add "
                "--model NAME or a folder that holds it"
            )
        target = _address(url, self.dialect.path)
        self.name = f"{dialect}:{without_password(str(target))}"
        mark = "" if renderer is None else _mark(renderer)
        self.identity = f"{self.name} {served_model or ''} {mark}".strip()
        self.renderer = renderer
        self.served_model = served_model
        self.concurrency = concurrency
        self._client = PatientClient(
            target,
            connections=concurrency,
            timeout_s=timeout_s,
            retries=retries,
            pause_s=pause_s,
            key_variable=key_variable or self.dialect.key_variable,
        )

    @property
    def provenance(self) -> dict[str, str]:
        """What is known here of what its scores hang on; the server says nothing of its arithmetic."""
        made = {} if self.served_model is None else {"served_model": self.served_model}
        if self.renderer is not None:
            made["tokenizer"] = hash_tokenizer(self.renderer.tokenizer)
            made["template"] = hash_text(self.renderer.template_text)
        return made

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) raw scores, in order; the first fault ends all requests.

        Raises:
            EndpointError: the server refused, was not there, or its reply holds no score.
            ScoreError: a score is not finite.
        """
        if not answers:
            return np.zeros(0)
        failed = threading.Event()

        def one(pair: tuple[int, Answer]) -> float:
            if failed.is_set():
                return np.nan
            try:
                return self._ask(pair[1], pair[0])
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(self.concurrency) as pool:
            found = list(pool.map(one, enumerate(answers)))
        return check_scores(np.array(found), answers, self.name)

    def _ask(self, answer: Answer, number: int) -> float:
        about = answer.where or f"answer {number}"
        body = self.dialect.request(answer, self.renderer)
        if self.served_model is not None:
            body["model"] = self.served_model
        response = self._client.post(body, about)
        try:
            return self.dialect.score(response.json())
        except (LookupError, TypeError, ValueError) as error:
            raise EndpointError(
                f"{self.name} answered {about} with {response.text[:200]!r}; expected a score as "
                f"{self.name.partition(':')[0]} sends it ({type(error).__name__}: {error}). Is it "
                "another kind of server?"
            ) from error


def _mark(renderer: ChatRenderer | PolarText) -> str:
    """Template and vocabulary: what decides the ids that are sent."""
    vocabulary = sorted(renderer.tokenizer.get_vocab().items())
    body = json.dumps([renderer.template_text, vocabulary])
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _address(url: str, path: str) -> httpx.URL:
    parsed = checked_url(url)
    before = parsed.path.rstrip("/")
    return parsed.copy_with(path=before if before.endswith(path) else before + path)
