"""Traces from a judge that knows more, or from the judge itself: filtered, repaired, counted.

    1. each pair is shown in its order; a trace is kept if its verdict is the label       (filter)
    2. a pair that was judged wrong is tried again, up to `attempts` samples              (difficulty)
    3. what is still wrong is shown again with the right verdict, and rewritten           (repair)

RM-R1 (arXiv 2505.02387): one pass, then a second teacher who is told the verdict. R1-Reward (arXiv
2505.02835): up to 3 attempts, whose number is the difficulty; RL takes what needed 2 or more, or failed.
UnifiedReward-Think (arXiv 2505.03318): the judge's own right traces are trained on, the pairs it got wrong
go to RL. A repaired trace is trained on with the ORIGINAL messages; the label that the teacher was told is
never in them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from retrm.errors import RecipeError
from retrm.finetuning.asked import asked
from retrm.finetuning.labelled import Label, LabelledPair, Trace
from retrm.judges.asking import JudgeModel
from retrm.judges.cache import Reply, ReplyCache, Sampling
from retrm.judges.r1_reward import DIGITS
from retrm.judges.rm_r1 import TAGS
from retrm.judges.template import CUT, JudgeTemplate, Verdict, template_mark
from retrm.judges.unified_reward_think import SENTENCES
from retrm.records import Message

WRONG = "wrong verdict"
HARD = 2
"""Attempts from which a pair is hard enough for RL (R1-Reward)."""


@dataclass(frozen=True)
class CollectOptions:
    """How traces are drawn.

    Attributes:
        attempts: samples a pair until its verdict is right; R1-Reward: 3.
        temperature: 0 only with one attempt.
        max_new_tokens: a judgement is cut there, and is then no trace.
        seed: of the draws.
    """

    attempts: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise RecipeError(f"got attempts={self.attempts}; expected 1 or more")
        if self.attempts > 1 and self.temperature == 0:
            raise RecipeError(
                f"got attempts={self.attempts} with temperature=0: every attempt would be the same. Use "
                "temperature=1, or attempts=1"
            )


@dataclass
class Collected:
    """What came of all pairs: each stands in `traces` or in `failed`.

    Attributes:
        traces: with the right verdict, in the order of the pairs.
        failed: pairs without one.
        problems: why outputs were no traces, counted.
        attempts: pairs by the number of attempts that they took; repaired and failed ones are not in it.
        repaired: traces whose writer was told the verdict.
        first_rate: share of readable verdicts for the candidate shown first.
        new_tokens: written, as far as they are told.
    """

    traces: list[Trace] = field(default_factory=list)
    failed: list[LabelledPair] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    repaired: int = 0
    first_rate: float | None = None
    new_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Counts as plain JSON."""
        sides = Counter(trace.pair.label for trace in self.traces)
        return {
            "traces": len(self.traces),
            "failed": len(self.failed),
            "repaired": self.repaired,
            "label_first": sides["first"],
            "label_second": sides["second"],
            "problems": dict(sorted(self.problems.items())),
            "attempts": {str(k): n for k, n in sorted(self.attempts.items())},
            "first_rate": self.first_rate,
            "new_tokens": self.new_tokens,
        }

    def hard(self) -> list[LabelledPair]:
        """Pairs for RL: those that took two attempts or more, and those that failed."""
        slow = [
            trace.pair for trace in self.traces if trace.attempts is None or trace.attempts >= HARD
        ]
        return slow + self.failed


def collect(
    pairs: Sequence[LabelledPair],
    model: JudgeModel,
    template: JudgeTemplate,
    *,
    options: CollectOptions | None = None,
    repairer: JudgeModel | None = None,
    cache: ReplyCache | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Collected:
    """Traces of pairs, each in the order that it stands in.

    Args:
        pairs: with positions balanced (`labelled.balanced`).
        model: that judges.
        template: that renders and reads.
        options: of the draws.
        repairer: rewrites wrong judgements, told the verdict; None = they stay wrong.
        cache: of replies; on a disk, a killed collection goes on where it was.
        on_progress: told how many replies are there.

    Raises:
        EndpointError: the engine failed for good; what came before is in the cache.
        RecipeError: a template whose verdicts cannot be written, where `repairer` is given.
        RenderError: a prompt without words.
    """
    options, cache = options or CollectOptions(), cache if cache is not None else ReplyCache()
    run = _Run(template, Sampling(**_sampling(options)), cache, on_progress)
    shown = [template.render(pair.prompt, pair.first, pair.second) for pair in pairs]
    found: dict[int, Trace] = {}
    wrong: dict[int, str] = {}
    for attempt in range(options.attempts):
        left = [i for i in range(len(pairs)) if i not in found]
        replies = run.replies(model, [shown[i] for i in left], attempt)
        for i, reply in zip(left, replies, strict=True):
            if run.is_right(reply, pairs[i].label):
                found[i] = Trace(pairs[i], reply.text, attempt + 1, model.identity)
                run.made.attempts[attempt + 1] += 1
            else:
                wrong[i] = reply.text
    if repairer is not None:
        left = [i for i in range(len(pairs)) if i not in found]
        told = [_told(shown[i], wrong[i], pairs[i].label, template) for i in left]
        for i, reply in zip(left, run.replies(repairer, told, 0), strict=True):
            if run.is_right(reply, pairs[i].label):
                found[i] = Trace(
                    pairs[i], reply.text, None, f"{repairer.identity}, told the verdict"
                )
                run.made.repaired += 1
    run.made.traces = [found[i] for i in sorted(found)]
    run.made.failed = [pair for i, pair in enumerate(pairs) if i not in found]
    run.made.first_rate = run.first / run.read if run.read else None
    return run.made


class _Run:
    """Counts what one collection sees."""

    def __init__(
        self,
        template: JudgeTemplate,
        sampling: Sampling,
        cache: ReplyCache,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self.template = template
        self.sampling = sampling
        self.cache = cache
        self.made = Collected()
        self.read = self.first = self.done = 0
        self._mark = template_mark(template)
        self._on_progress = on_progress

    def replies(
        self, model: JudgeModel, messages: Sequence[tuple[Message, ...]], number: int
    ) -> list[Reply]:
        replies = asked(
            *(model, messages, self.sampling, self.cache),
            number=number,
            purpose=self.template.name,
            mark=self._mark,
            on_reply=self._told,
        )
        self.made.new_tokens += sum(reply.n_new_tokens or 0 for reply in replies)
        return replies

    def is_right(self, reply: Reply, label: Label) -> bool:
        verdict = self._verdict(reply)
        self.read += verdict.winner is not None
        self.first += verdict.winner == "first"
        if verdict.winner == label and reply.finished is not False:
            return True
        # A verdict that was read and then written on without end is no trace to learn from.
        problem = verdict.problem or (WRONG if verdict.winner != label else CUT)
        self.made.problems[problem] += 1
        return False

    def _verdict(self, reply: Reply) -> Verdict:
        if reply.problem is not None:
            return Verdict.unread(reply.problem)
        return self.template.parse(reply.text, finished=reply.finished is not False)

    def _told(self) -> None:
        self.done += 1
        if self._on_progress is not None:
            self._on_progress(self.done)


def verdict_text(template: JudgeTemplate, label: Label) -> str:
    """The answer block that says `label`.

    Raises:
        RecipeError: a template of one's own.
    """
    by_template: Mapping[str, str] = {
        "rm_r1_instruct": TAGS[label],
        "rm_r1_reasoning": TAGS[label],
        "unified_reward_think": f"<answer>{SENTENCES[label]}</answer>",
        "r1_reward": "".join(
            f"<answer>{k}</answer>" for k, side in DIGITS.items() if side == label
        ),
    }
    if template.name not in by_template:
        raise RecipeError(
            f"how the template {template.name!r} writes a verdict is not known here, so its judgements "
            "cannot be repaired; leave out the repairer"
        )
    return by_template[template.name]


def _told(
    shown: tuple[Message, ...], wrong: str, label: Label, template: JudgeTemplate
) -> tuple[Message, ...]:
    ask = (
        "That judgement is wrong. Careful raters agree on this verdict:\n"
        f"{verdict_text(template, label)}\n"
        "Write the whole judgement again in the form that was asked for, with reasons that hold and with "
        "this verdict at its end. Do not mention that you were told."
    )
    return (*shown, Message("assistant", wrong or "(nothing)"), Message("user", ask))


def _sampling(options: CollectOptions) -> dict[str, Any]:
    return {key: value for key, value in asdict(options).items() if key != "attempts"}
