"""lm-evaluation-harness: a filter that keeps the answer a reward model likes best.

    repeats: 8
    generation_kwargs: {do_sample: true, temperature: 0.8}
    filter_list:
      - name: retrm
        filter:
          - {function: custom, filter_fn: !function my_task.retrm_best_of_n}
          - {function: regex, regex_pattern: "answer is (-?[0-9.]+)"}
          - {function: take_first}

with `my_task.py` beside the task saying how a row of the data set reads as a prompt:

    from retrm.adapters.lm_eval import best_of_n_by
    retrm_best_of_n = best_of_n_by(lambda doc: doc["question"])

The filter stands first: the whole answer must be judged. RETRM_URL or RETRM_SCORER says what judges.

Made for lm_eval 0.4.13 (`filters/custom.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retrm.adapters.judge import answer_of, score_of, shared_judge
from retrm.errors import DataError
from retrm.records import Answer

Filter = Callable[[Sequence[Sequence[str]], Sequence[Mapping[str, Any]]], list[list[str]]]


def best_of_n_by(prompt_of: Callable[[Mapping[str, Any]], Any]) -> Filter:
    """A filter function for tasks whose rows read as prompts by `prompt_of` (a text or messages)."""

    def retrm_best_of_n(
        resps: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]
    ) -> list[list[str]]:
        """The best answer of each row, in the order of the rows; equal scores keep the earlier."""
        if len(resps) != len(docs):
            raise DataError(f"got answers to {len(resps)} rows and {len(docs)} rows")
        answers: list[Answer] = []
        for i, (texts, doc) in enumerate(zip(resps, docs, strict=True)):
            if not texts:
                raise DataError(f"row {i} has no answers; expected one at least")
            prompt = prompt_of(doc)
            answers += [answer_of(prompt, t, f"row {i}, answer {k}") for k, t in enumerate(texts)]
        scores = iter([score_of(reward) for reward in shared_judge().rewards(answers)])
        kept = []
        for texts in resps:
            own = [next(scores) for _ in texts]
            kept.append([texts[own.index(max(own))]])
        return kept

    return retrm_best_of_n


retrm_best_of_n = best_of_n_by(lambda doc: doc["question"])
"""For tasks whose rows have a `question`, as gsm8k's have."""
