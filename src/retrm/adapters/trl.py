"""TRL: reward functions for GRPO, RLOO and their kin, against a server, a scorer, or the policy itself.

    GRPOTrainer(..., reward_funcs=RetrmReward(url="http://127.0.0.1:8000"))
    trl grpo ... --reward_funcs retrm.adapters.trl.retrm_reward          (RETRM_URL or RETRM_SCORER)

`RetrmReward` is an async callable, which TRL awaits together with the other functions, and picklable, as its
asynchronous trainer wants. `PolicyStatesReward` puts a head on the very model that is trained: no second
model, and scores that DRIFT while it moves, which it measures on fixed probe answers.

Scores are raw: GRPO normalises within a group. Plain prompts count as one user turn. An answer that cannot be
judged is an error and never None: where no other function has a reward, TRL makes None a 0.

Made for trl 1.16.0 (`GRPOTrainer._calculate_rewards`).
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrm.adapters.judge import Judge, answer_of, score_of
from retrm.errors import DataError, RecipeError
from retrm.records import Answer

if TYPE_CHECKING:
    from retrm.scorers.policy_states import DriftReport, PolicyStates

_LOG = logging.getLogger(__name__)

LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list[Any]], None]


class RetrmReward:
    """Rewards completions; give an instance to `reward_funcs`.

    Args:
        scorer: what judges in this process, by any name that `retrm score` takes.
        url: of a server, instead of `scorer`. With neither, RETRM_URL or RETRM_SCORER says it.
        model: name of the served model.
        backbone: where the backbone of a scorer's folder lies now.
        device: for the backbone of a scorer in this process.
        length_policy: `error`, `truncate_prompt`, or, by a server only, `truncate_response`.
        name: under which TRL logs it.

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
        name: str = "retrm",
    ) -> None:
        self.__name__ = name  # TRL's logs are named by it
        self._judge = Judge(
            scorer,
            url=url,
            model=model,
            backbone=backbone,
            device=device,
            length_policy=length_policy,
        )

    async def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float]:
        """One raw score a completion, in order.

        Args:
            prompts: texts or lists of turns, one a completion.
            completions: texts or lists of turns, the last one the assistant's.
            log_metric: TRL's; told the mean number of tokens and the share that was cut to fit.
            log_extra: TRL's; told the tokens of each completion for the table of completions.
            columns: what else TRL sends (ids, columns of the data set, its state); not looked at.

        Raises:
            DataError: a completion without an answer.
            EndpointError, RenderError, ScoreError: it could not be judged.
        """
        del columns
        answers = _answers(prompts, completions)
        found = await self._judge.arewards(answers)
        has_tokens = any(r.num_tokens for r in found)  # scorers without a backbone count none
        if log_metric is not None and found:
            log_metric(f"{self.__name__}/truncated", sum(r.truncated for r in found) / len(found))
        if log_metric is not None and has_tokens:
            log_metric(f"{self.__name__}/tokens", sum(r.num_tokens for r in found) / len(found))
        if log_extra is not None and has_tokens:
            log_extra(f"{self.__name__}_tokens", [r.num_tokens for r in found])
        return [score_of(reward) for reward in found]


class PolicyStatesReward:
    """A head on the states of the policy that is being trained; give an instance to `reward_funcs`.

    The head was fitted on the policy as it was before training, and is frozen. While the policy moves,
    the states move under the head: the same answer gets another score, and a policy may learn states that
    please the head rather than better answers. Watch `drift`, keep the learning rate low, and judge the
    result with a scorer of its own.

    Args:
        folder: of the reward model, made by `retrm fit` on this very policy.
        policy: the model that is given to the trainer; or `attach` it later.
        tokenizer: of it.
        probes: answers, or (prompt, response) pairs, that are scored again and again.
        labels: of the probes, 1 right and 0 wrong; then the report says whether scores still tell them
            apart.
        every: training steps between two measurements of the drift.
        name: under which TRL logs it.
    """

    def __init__(
        self,
        folder: str | Path,
        policy: Any = None,
        tokenizer: Any = None,
        *,
        probes: Sequence[Answer | tuple[Any, str]] = (),
        labels: Sequence[float] | None = None,
        every: int = 10,
        name: str = "retrm_policy_states",
    ) -> None:
        if every < 1:
            raise RecipeError(f"got every={every}; expected 1 or more training steps")
        self.__name__ = name
        self.folder = Path(folder)
        self.every = every
        self._probes = [p if isinstance(p, Answer) else answer_of(*p, "probe") for p in probes]
        self._labels = labels
        self._states: PolicyStates | None = None
        if policy is not None:
            self.attach(policy, tokenizer)

    def attach(self, policy: Any, tokenizer: Any) -> None:
        """Put the head on a policy that was not trained yet.

        Raises:
            FingerprintError: the head was fitted on another model.
            ArtifactError: the folder is no reward model.
        """
        from retrm.scorers.policy_states import PolicyStates

        self._states = PolicyStates(
            self.folder, policy, tokenizer, probes=self._probes, labels=self._labels
        )
        _LOG.warning(
            "%s reads the policy's own states: its scores drift as the policy moves%s",
            self.__name__,
            "" if self._probes else ". Give probes= to see by how much",
        )

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[float]:
        """One raw score a completion, in order.

        Args:
            prompts: texts or lists of turns, one a completion.
            completions: texts or lists of turns, the last one the assistant's.
            completion_ids: what the policy sampled, of completions of one turn: these tokens are scored.
            trainer_state: TRL's; says the training step.
            log_metric: TRL's; told the drift.
            columns: what else TRL sends; not looked at.

        Raises:
            RecipeError: no policy was attached.
            DataError, RenderError, OverlongError, ScoreError: naming the completion.
        """
        del columns
        states = self._attached()
        step = int(getattr(trainer_state, "global_step", 0))
        if states.is_due(step, self.every):
            point = states.measure(step)
            if log_metric is not None:
                log_metric(f"{self.__name__}/drift_mean_abs", point.mean_abs_shift)
                log_metric(f"{self.__name__}/drift_same_order", point.same_order)
        answers = _answers(prompts, completions)
        if completion_ids is not None:
            rows = zip(answers, completions, completion_ids, strict=True)
            # Ids of several turns are not those of the last one, and no ids are no answer of a policy.
            answers = [
                states.sampled(answer, ids) if len(ids) and not _has_turns(completion) else answer
                for answer, completion, ids in rows
            ]
        return states.score(answers).tolist()

    def measure(self, step: int) -> None:
        """Measure the drift now, at the end of a training for example.

        Raises:
            RecipeError: no policy was attached, or there are no probes.
        """
        states = self._attached()
        states.report()
        states.measure(step)

    @property
    def drift(self) -> "DriftReport":
        """What became of the probes' scores so far.

        Raises:
            RecipeError: no policy was attached, or there are no probes.
        """
        return self._attached().report()

    def _attached(self) -> "PolicyStates":
        if self._states is None:
            raise RecipeError(
                f"{self.__name__} has no policy to read; expected PolicyStatesReward(folder, model, "
                "tokenizer) with the model that the trainer gets, or attach(model, tokenizer)"
            )
        return self._states

    def __getstate__(self) -> dict[str, Any]:
        raise RecipeError(
            f"{self.__name__} reads the policy in the process of its trainer and cannot travel to "
            "another one; expected RetrmReward where rewards are computed elsewhere"
        )


def _answers(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Answer]:
    if len(prompts) != len(completions):
        raise DataError(
            f"got {len(prompts)} prompts and {len(completions)} completions; expected as many"
        )
    pairs = zip(prompts, completions, strict=True)
    return [answer_of(*pair, f"completion {i}") for i, pair in enumerate(pairs)]


def _has_turns(completion: Any) -> bool:
    """Whether tools were called in between, so that the ids are not those of the last turn alone."""
    return not isinstance(completion, str) and len(completion) > 1


retrm_reward = RetrmReward()
"""Configured by the environment when the first completion comes: for `trl grpo --reward_funcs`."""
