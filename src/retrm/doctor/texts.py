"""The built-in texts, fitted to what a backbone can take."""

from dataclasses import dataclass, replace

from retrm.backbone.base import Backbone, Rendered
from retrm.errors import DataError, OverlongError, RenderError
from retrm.records import Answer, Message, Prompt

MAX_PROMPTS = 8

_PASSAGE = """\
First I write down what is given. A train leaves at 9:40 and drives 210 kilometres at 84 kilometres an \
hour; a second one leaves the same station half an hour later and drives at 105 kilometres an hour. We \
ask which of them arrives first, and by how many minutes.

The first train needs 210 / 84 = 2.5 hours, so it arrives at 12:10. The second needs 210 / 105 = 2 \
hours. It leaves at 10:10, so it arrives at 12:10 as well.

Let me check this by another way. In the half hour before the second train starts, the first one has \
driven 42 kilometres. The second gains 105 - 84 = 21 kilometres every hour, so it needs 42 / 21 = 2 \
hours to make up for them, and two hours after 10:10 it is 12:10. Both ways agree: at that time both \
trains have driven 210 kilometres, which is the whole way.

So neither of them is first. They arrive at the same minute, 12:10, and the difference is 0 minutes."""


def _texts() -> tuple[Answer, ...]:
    """Short and long answers, a shared prompt, a system turn, several turns, an unfinished answer."""
    sum_of_two = Prompt.of("What is 3 + 4?")
    system = Prompt(
        (Message("system", "You answer in one word."), Message("user", "Name a prime below 10."))
    )
    turns = Prompt(
        (
            Message("user", "Pick a number."),
            Message("assistant", "I pick 12."),
            Message("user", "Double it, then add one.\nShow your work."),
        )
    )
    train = Prompt.of("Two trains drive 210 km. Which arrives first, and by how many minutes?")
    code = Prompt.of(
        "Écris une fonction qui compte les voyelles d'une phrase — en Python, s'il te plaît."
    )
    made = (
        (sum_of_two, "7", None),
        (sum_of_two, "3 + 4 = 7, so the answer is 7.", None),
        (train, _PASSAGE, None),
        (turns, "2 × 12 = 24\n24 + 1 = 25\n\nThe answer is 25.", None),
        (system, "Seven", None),
        (code, "def compte(s):\n    return sum(c in 'aeiouyéè' for c in s.lower())", None),
        (Prompt.of("Why is the sky blue?"), _PASSAGE[:360], False),
        (Prompt.of("?"), "I am not sure what you are asking; could you say more?", None),
    )
    return tuple(Answer(p, text, p.key, finished=done) for p, text, done in made)


@dataclass(frozen=True)
class Fitted:
    """The texts as this backbone can take them, with what had to be changed."""

    answers: tuple[Answer, ...]
    rendered: tuple[Rendered, ...]
    notes: tuple[str, ...]


def fit_texts(backbone: Backbone, n_prompts: int) -> Fitted:
    """The first `n_prompts` texts.

    Raises:
        DataError: `n_prompts` is out of range.
        RenderError: not even a plain question can be rendered.
    """
    check_number(n_prompts)
    answers, rendered, notes = [], [], []
    for answer in _texts()[:n_prompts]:
        answer, made, changed = _fit_text(backbone, answer)
        answers.append(answer)
        rendered.append(made)
        notes += changed
    return Fitted(tuple(answers), tuple(rendered), tuple(dict.fromkeys(notes)))


def check_number(n_prompts: int) -> None:
    """Refuse another number of texts than there can be.

    Raises:
        DataError: it is not 2 to `MAX_PROMPTS`.
    """
    if not 2 <= n_prompts <= MAX_PROMPTS:
        raise DataError(f"got n_prompts = {n_prompts}; expected 2 to {MAX_PROMPTS}")


def _fit_text(backbone: Backbone, answer: Answer) -> tuple[Answer, Rendered, list[str]]:
    """Shorten an answer until it fits; leave out a system turn that the template refuses."""
    notes: list[str] = []
    while True:
        try:
            made = backbone.renderer.render(answer)
            if len(made.ids) > backbone.context_length:
                raise OverlongError(f"{len(made.ids)} tokens in {backbone.context_length}")
            return answer, made, notes
        except OverlongError:
            if len(answer.response) < 2:
                raise
            answer = replace(answer, response=answer.response[: len(answer.response) // 2])
            notes.append("long answers were shortened to the context")
        except RenderError:
            messages = answer.prompt.messages
            if messages[0].role != "system":
                raise
            prompt = Prompt(messages[1:])
            answer = replace(answer, prompt=prompt, prompt_id=prompt.key)
            notes.append("the template refuses system turns; it was left out")
