"""A hidden-state reward model: a frozen backbone, a recipe and a tiny head.

>>> from retrm import RewardModel                                        # doctest: +SKIP
>>> rm = RewardModel.load("runs/elhsr")                                   # doctest: +SKIP
>>> rm.rank("What is 3 + 4?", ["The answer is 7.", "It is 8."])           # doctest: +SKIP
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from retrm.backbone.base import Backbone, Fingerprint, Rendered
from retrm.backbone.follow import PruneRule, Running
from retrm.backbone.generate import sample
from retrm.backbone.remote import open_backbone
from retrm.backbone.sampled import Sampled
from retrm.engines.base import Engine
from retrm.errors import (
    DataError,
    FingerprintError,
    OverlongError,
    RecipeError,
    RenderError,
    SelfTestError,
)
from retrm.features.read import (
    Overlong,
    Progress,
    read,
    read_chunks,
    read_rendered,
    read_rendered_together,
    render_all,
)
from retrm.features.reduce import Features, Reducer
from retrm.heads.artifact import (
    Artifact,
    SelfTestItem,
    identity_of,
    load_artifact,
    save_artifact,
)
from retrm.heads.card import model_card
from retrm.heads.explanation import Explanation
from retrm.heads.mixture import MixtureHead
from retrm.records import Answer, Prompt
from retrm.scorers.base import check_scores
from retrm.scorers.running import RunningScores, check_exact, check_prunable
from retrm.scorers.together import judged

SELFTEST_TOLERANCE = {"float32": 1e-4, "float64": 1e-4}  # relative to 1 + |score|
SELFTEST_TOLERANCE_LOW_PRECISION = 5e-2

PromptLike = str | Prompt | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RankedCandidate:
    """One candidate in a ranking.

    Attributes:
        text: of the candidate.
        score: raw.
        index: its place in the list that was given.
    """

    text: str
    score: float
    index: int


@dataclass(frozen=True)
class TokenScores:
    """An answer token by token; all arrays have one entry a response token.

    Attributes:
        tokens: their text.
        rewards: value of the head at each token.
        gates: weight of each token, 0..1.
        contributions: what each token adds to the score.
        running: the score if the answer ended there.
        score: of the whole answer.
        layers: those of `by_layer`, ascending; empty where it is None.
        by_layer: (tokens, layers) what each layer adds to the reward of each token: rows sum to
            `rewards`, the bias being spread evenly over the layers. None where it was not asked for, or
            where the head does not add layers up.
    """

    tokens: tuple[str, ...]
    rewards: np.ndarray
    gates: np.ndarray
    contributions: np.ndarray
    running: np.ndarray
    score: float
    layers: tuple[int, ...] = ()
    by_layer: np.ndarray | None = None


class RewardModel:
    """Scores answers by reading a frozen LLM's hidden states; implements `Scorer`."""

    def __init__(self, artifact: Artifact, backbone: Backbone, *, name: str | None = None) -> None:
        """Attach a head to a backbone.

        Raises:
            FingerprintError: the head belongs to another backbone, tokenizer or template.
            RecipeError: the head reads another context than the recipe gives.
        """
        self.artifact = artifact
        self.backbone = backbone
        self.name = name or artifact.method
        identity = artifact.backbone
        check_fingerprint(identity.fingerprint, backbone, fitted_on=repr(identity.name))
        self.reducer = Reducer(artifact.recipe, backbone, bases=artifact.bases)
        if self.reducer.n_context != artifact.head.n_context:
            raise RecipeError(
                f"the recipe of {self.name} has context={artifact.recipe.context!r}, which is "
                f"{self.reducer.n_context} numbers of the prompt, and its {artifact.head.name} head reads "
                f"{artifact.head.n_context}; expected the same. Fit again"
            )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model: str | None = None,
        backbone: Backbone | None = None,
        device: str = "cpu",
        engine: Engine | None = None,
        check: bool = True,
    ) -> Self:
        """A reward model from its folder.

        Args:
            folder: written by `retrm fit`.
            model: where the backbone lies now, if its stored name no longer finds it.
            backbone: an already loaded backbone; several heads may share one.
            device: for the backbone.
            engine: whose workers load the backbone; None = this process.
            check: replay the stored self-test.

        Raises:
            ArtifactError: missing, damaged or of another version.
            FingerprintError: another backbone, tokenizer or template.
            SelfTestError: the stored scores are not reproduced.
        """
        artifact = load_artifact(Path(folder))
        if backbone is None:
            backbone = open_backbone(
                model or artifact.backbone.name,
                engine=engine,
                dtype=artifact.backbone.dtype,
                device=device,
                counts_end=artifact.recipe.counts_end,
                template=artifact.recipe.template,
            )
        loaded = cls(artifact, backbone, name=Path(folder).name)
        if check:
            loaded.replay_selftest()
        return loaded

    def score(
        self,
        answers: Sequence[Answer] | Sequence[tuple[PromptLike, str]],
        *,
        overlong: Overlong = "error",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> np.ndarray:
        """One raw score an answer, in order.

        Args:
            answers: rows of a table, or (prompt, response) tuples.
            overlong: `error`, `truncate_left`, or `skip` (their score is NaN).
            on_progress: called after each batch.

        Returns:
            (n,) float64.

        Raises:
            OverlongError, RenderError, ScoreError: naming the record.
        """
        rows = [a if isinstance(a, Answer) else Answer.of(a[0], a[1]) for a in answers]
        if not rows:
            return np.zeros(0)
        reading = read(
            self.backbone,
            rows,
            {self.name: self.artifact.recipe},
            reducers={self.name: self.reducer},
            overlong=overlong,
            on_progress=on_progress,
        )
        return judged(self.name, self, rows, reading).scores

    @property
    def identity(self) -> str:
        """Two models with the same one give the same scores: hash of recipe, weights and backbone."""
        return identity_of(self.artifact)

    def of_features(self, features: Features) -> np.ndarray:
        """(n,) float64 scores of features that `reducer` made."""
        return self.artifact.head.score(features).double().numpy()

    def generate(
        self,
        prompts: Sequence[PromptLike],
        *,
        n: int = 8,
        temperature: float = 0.8,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 256,
        seed: int = 0,
        batch_size: int = 64,
        prune: PruneRule | None = None,
        on_running: Callable[[Running], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Sampled]:
        """Draw `n` answers to each prompt, scored by the states that drawing computes anyway.

        The score belongs to the SAMPLED token ids: it is that of `score` for an `Answer` with these
        `response_ids`, to 1e-4 of 1 + |score| with float32 features; features kept in bfloat16, as by
        elhsr, may differ by a step of their rounding, as between two readings. Where `is_text_exact`
        is False, reading the text alone would score other tokens. The answers are those of
        `retrm.sample` with the same seed, pruned ones being cut short.

        Args:
            prompts: what to answer.
            n: answers to each prompt.
            temperature: 0 = always the likeliest token (then n must be 1).
            top_p: share of probability to draw from, in (0, 1]; 1 = all.
            top_k: how many of the likeliest tokens to draw from; 0 = all.
            max_new_tokens: after so many tokens an answer is broken off.
            seed: same seed, same answers.
            batch_size: rows that are continued together; with `prune` at least n.
            prune: stops candidates by their running scores, see `retrm.selection.prune`.
            on_running: told the running scores after every token.
            on_progress: told how many answers of how many are ready.

        Returns:
            The answers in the order of the prompts, as they become ready.

        Raises:
            RecipeError: an option is out of range; a head that needs all tokens of an answer at
                once; `prune` with a head of the prompt.
            BackboneError: generation computes other states than a reading does.
            OverlongError, RenderError: a prompt is too long or cannot be rendered.
            ScoreError: a score is not finite; while the answers are drawn.
        """
        asked = [Answer.of(prompt, "").prompt for prompt in prompts]
        follower = RunningScores(self.reducer, self.artifact.head, self.backbone.device)
        if prune is not None:
            check_prunable(self.reducer)
        check_exact(self.backbone, asked, max_new_tokens)
        drawn = sample(
            self.backbone,
            asked,
            n=n,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
            follower=follower,
            prune=prune,
            on_running=on_running,
            on_progress=on_progress,
        )
        return (self._checked(one, asked[one.prompt]) for one in drawn)

    def _checked(self, one: Sampled, prompt: Prompt) -> Sampled:
        """Refuses a score that is no number, and looks whether the text gives the ids again."""
        answer = Answer(prompt, one.response, prompt.key, finished=one.finished)
        if one.score is not None:
            where = f"answer {one.number} to prompt {one.prompt}"
            check_scores(np.array([one.score]), [replace(answer, where=where)], self.name)
        try:
            rendered = self.backbone.renderer.render(answer)
        except (RenderError, OverlongError):  # an empty answer, for one: no text, no ids
            return replace(one, is_text_exact=False)
        return replace(one, is_text_exact=rendered.ids[rendered.start :] == one.token_ids)

    def rank(self, prompt: PromptLike, candidates: Sequence[str]) -> list[RankedCandidate]:
        """The candidates, best first; ties keep their order."""
        if not candidates:
            raise DataError("no candidates to rank; expected at least one answer")
        scores = self.score([(prompt, text) for text in candidates])
        order = np.argsort(-scores, kind="stable")
        return [RankedCandidate(candidates[i], float(scores[i]), int(i)) for i in order]

    @property
    def shows_tokens(self) -> bool:
        """Whether the score comes from the tokens of the answer, so that `token_scores` can say how."""
        recipe = self.artifact.recipe
        return recipe.source != "log_probability" and recipe.pooling != "prompt_end"

    @property
    def added_layers(self) -> tuple[int, ...]:
        """Layers whose parts add up to the reward of a token; empty where the head does not add."""
        is_of_states = self.artifact.recipe.source == "states" and self.shows_tokens
        if not (is_of_states and self.artifact.head.adds_layers):
            return ()
        return tuple(layer for layer, _ in self.reducer.states)

    def token_scores(self, prompt: PromptLike, response: str) -> TokenScores:
        """What the reward looks at in one answer.

        Raises:
            RecipeError: the score does not come from the tokens of the answer.
        """
        return self.token_scores_of(Answer.of(prompt, response))

    def token_scores_of(self, answer: Answer, *, by_layer: bool = False) -> TokenScores:
        """The same for a row of a table (sampled token ids are used where they are known)."""
        (rendered,) = render_all(self.backbone, [answer]).rendered
        return self.token_scores_rendered(rendered, by_layer=by_layer)

    def token_scores_rendered(self, rendered: Rendered, *, by_layer: bool = False) -> TokenScores:
        """The same for an answer that is already token ids.

        Args:
            rendered: prompt and answer with the answer's span.
            by_layer: also say what each layer adds; see `added_layers` for whether it can be said.

        Raises:
            RecipeError: the score does not come from the tokens of the answer.
        """
        if not self.shows_tokens:
            raise RecipeError(
                f"{self.name} reads {self._read_in_words}: its score has no parts that belong to single "
                "tokens of the answer. Ask for the score alone, or use a model that reads their states "
                "(pooling last, mean, max or tokens)"
            )
        values = self._token_features(rendered)
        layers = self.added_layers if by_layer else ()
        with torch.no_grad():
            view = self.artifact.head.token_view(values, self.artifact.recipe.pooling)
            parts = self.artifact.head.layer_rewards(values, len(layers)) if layers else None
        pieces = self.backbone.renderer.pieces(rendered.ids[rendered.start : rendered.stop])
        return TokenScores(
            tokens=tuple(pieces),
            rewards=view.rewards.numpy(),
            gates=view.gates.numpy(),
            contributions=view.contributions.numpy(),
            running=view.running.numpy(),
            score=view.score,
            layers=layers,
            by_layer=None if parts is None else parts.numpy(),
        )

    def _token_features(self, rendered: Rendered) -> Tensor:
        """(tokens, features) float32: before pooling; the context, where there is one, behind each."""
        recipe = replace(self.artifact.recipe, pooling="tokens", context="none")
        reducers = {"tokens": Reducer(recipe, self.backbone, bases=self.artifact.bases)}
        n_context = self.reducer.n_context
        if n_context:
            reducers["pooled"] = self.reducer
        read_once = read_rendered_together(self.backbone, [rendered], reducers)
        tokens = read_once["tokens"].values.float()
        if not n_context:
            return tokens
        context = read_once["pooled"].values[:, -n_context:]
        return torch.cat([tokens, context.expand(len(tokens), -1)], dim=1)

    @property
    def explains(self) -> bool:
        """Whether the score is a sum over named objectives, so that `explain` can say how."""
        return bool(self.objectives)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives that the score is a sum over; empty for a head without any."""
        head = self.artifact.head
        return head.objectives if isinstance(head, MixtureHead) else ()

    def explain(self, prompt: PromptLike, response: str) -> Explanation:
        """Why an answer has its score: what each objective gives it, and what the prompt weighs it with.

        Raises:
            RecipeError: the head knows no objectives.
            OverlongError, RenderError: the answer cannot be read.
        """
        return self.explain_of(Answer.of(prompt, response))

    def explain_of(self, answer: Answer) -> Explanation:
        """The same for a row of a table (sampled token ids are used where they are known)."""
        self._check_explains()
        return self.explain_rendered(render_all(self.backbone, [answer]).rendered)[0]

    def explain_chunks(
        self, chunks: Iterable[Sequence[Answer]], *, overlong: Overlong = "error"
    ) -> Iterator[tuple[Explanation | None, ...]]:
        """The same for each chunk of a stream, in order; None = left out as over-long.

        Raises:
            RecipeError, OverlongError, RenderError, ScoreError: when the chunk at fault is asked for.
        """
        self._check_explains()
        readings = read_chunks(
            self.backbone,
            chunks,
            {self.name: self.artifact.recipe},
            reducers={self.name: self.reducer},
            overlong=overlong,
        )
        for rows, reading in readings:
            found = self.explain_features(reading.features[self.name])
            scores = np.array([one.score for one in found])
            check_scores(scores, [rows[i] for i in reading.rows], self.name)
            by_row = dict(zip(reading.rows.tolist(), found, strict=True))
            yield tuple(by_row.get(i) for i in range(len(rows)))

    def explain_rendered(self, rendered: Sequence[Rendered]) -> tuple[Explanation, ...]:
        """The same for answers that are already token ids, in one reading."""
        self._check_explains()
        return self.explain_features(read_rendered(self.backbone, rendered, self.reducer))

    def explain_features(self, features: Features) -> tuple[Explanation, ...]:
        """The same for features that `reducer` made: a score that is known costs no second reading."""
        head = self._check_explains()
        head.check(features)
        return head.explain(features.values.float())

    def _check_explains(self) -> MixtureHead:
        head = self.artifact.head
        if not isinstance(head, MixtureHead):
            raise RecipeError(
                f"{self.name} has a {head.name} head, whose score is no sum over objectives; expected a "
                "mixture head, as retrm fit --method armorm makes it. Ask for token_scores instead"
            )
        return head

    @property
    def _read_in_words(self) -> str:
        is_of_prompt = self.artifact.recipe.pooling == "prompt_end"
        return "the end of the prompt" if is_of_prompt else "log-probabilities of the whole answer"

    def score_rendered(self, rendered: Sequence[Rendered]) -> np.ndarray:
        """Scores of answers that are already token ids; for the self-test and the service."""
        features = read_rendered(self.backbone, rendered, self.reducer)
        return self.of_features(features)

    def with_selftest(self, answers: Sequence[Answer]) -> Self:
        """The same model with a self-test: these answers and the scores they get, read alone."""
        rendered = render_all(self.backbone, answers, overlong="truncate_left").rendered
        items = [SelfTestItem(r, float(self.score_rendered([r])[0])) for r in rendered]
        return type(self)(replace(self.artifact, selftest=items), self.backbone, name=self.name)

    def with_metrics(self, metrics: Mapping[str, Any]) -> Self:
        """The same model with held-out figures (plain JSON) to be stored with it."""
        return type(self)(replace(self.artifact, metrics=metrics), self.backbone, name=self.name)

    def save(self, folder: str | Path) -> None:
        """Write the folder; an existing reward model in it is replaced as a whole.

        Raises:
            OutputError: it cannot be written; what was there is intact.
        """
        save_artifact(Path(folder), self.artifact, model_card(self.artifact))

    def replay_selftest(self) -> None:
        """Score the stored answers again.

        Raises:
            SelfTestError: a score differs by more than the tolerance, with both values.
        """
        items = self.artifact.selftest
        if not items:
            return
        got = self.score_rendered([item.rendered for item in items])
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        limit = SELFTEST_TOLERANCE.get(dtype, SELFTEST_TOLERANCE_LOW_PRECISION)
        for number, (item, score) in enumerate(zip(items, got, strict=True)):
            if not abs(score - item.score) <= limit * (1 + abs(item.score)):
                raise SelfTestError(
                    f"self-test {number} of {self.name}: got score {score:.6g}, stored "
                    f"{item.score:.6g} (tolerance {limit:g} relative to 1 + |score|, {dtype}). The "
                    "backbone computes something else now: run retrm doctor on it, and compare "
                    "library versions with those in reward_model.json"
                )


def check_fingerprint(
    stored: Fingerprint, backbone: Backbone, *, fitted_on: str = "another backbone"
) -> None:
    """Refuse a backbone that a head does not belong to.

    Args:
        stored: of the backbone that the head was fitted on.
        backbone: the one it is to read now.
        fitted_on: that backbone in words.

    Raises:
        FingerprintError: says in what the two differ.
    """
    got = backbone.fingerprint
    parts = {
        "weights": "other weights (another model, another quantisation, or fine-tuned since)",
        "unembedding": "another LM head or final norm",
        "tokenizer": "another tokenizer",
        "template": "another chat template or end-of-turn rule",
    }
    wrong = [text for key, text in parts.items() if getattr(stored, key) != getattr(got, key)]
    if wrong:
        raise FingerprintError(
            f"this head was fitted on {fitted_on} and cannot read {backbone.name!r}: "
            f"{'; '.join(wrong)}. Load the backbone it was fitted on, or fit a head on this one"
        )
