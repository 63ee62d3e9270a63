"""HH-RLHF: pairs of whole transcripts, of which people preferred one.

    right if score(chosen) > score(rejected); a tie is not

There is no official script. A second figure gives ties one half, which equals the first where none
are. Labels are noisy: people agree on such pairs in about two of three cases. Source: Bai et al. 2022,
arXiv 2204.05862.

Only the last reply is judged; what stands before is the prompt. A pair whose sides differ before the
last reply has no common prompt, and a blank reply cannot be judged: both are left out and counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from retrm.data.detect import parse
from retrm.data.read import Record
from retrm.data.values import EmptyAnswerError
from retrm.evaluation.benchmarks.base import (
    BenchmarkData,
    Figure,
    Item,
    ScoredItem,
    by_subset,
    check_n_scores,
    pair_verdicts,
)
from retrm.evaluation.benchmarks.pairs import DecidedByPairs, Pairs, first_beat_rest
from retrm.evaluation.benchmarks.source import Part, Source, field

SIDES = ("chosen", "rejected")
REASONS = {
    "different_prompts": "the two sides differ before the last reply",
    "identical": "both replies are the same text",
}
BLANK = "a reply is blank"
FOLDERS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
"""Of the published data, each with a `test.jsonl`."""


class HHRLHF(DecidedByPairs):
    """HH-RLHF test pairs."""

    name = "hh_rlhf"
    title = "HH-RLHF"
    hub: tuple[str, ...] = ("hub:Anthropic/hh-rlhf:test",)
    pattern = ("test.jsonl*", *(f"{name}/test.jsonl*" for name in FOLDERS), "*/test.jsonl*")
    paper = "Bai et al. 2022, arXiv 2204.05862"

    def read(self, source: Source) -> BenchmarkData:
        """One item a pair, the chosen reply first; subsets are named after folders.

        Raises:
            DataError: a record has no transcript, or its last turn is not the assistant's.
        """
        items: list[Item] = []
        excluded: Counter[str] = Counter()
        for part in source.parts:
            for record in part.records:
                found = _item(part, record)
                if isinstance(found, Item):
                    items.append(found)
                else:
                    excluded[found] += 1
        return BenchmarkData(self.name, tuple(items), excluded)

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """Accuracy over all pairs, and of each subset where there are several.

        Raises:
            DataError: an item without two scores.
        """
        check_n_scores(items, 2, self.title)
        scores = np.array([item.scores for item in items])
        strict = pair_verdicts(items, scores[:, 0], scores[:, 1])
        half = pair_verdicts(
            items,
            scores[:, 0],
            scores[:, 1],
            tie_credit=0.5,
            metric="accuracy, ties half",
            is_official=False,
        )
        rows = by_subset(items)
        subsets = [strict.share(name, rows[name]) for name in rows] if len(rows) > 1 else []
        return [strict.share("", is_headline=True), half.share(""), *subsets]

    def pairs(self, item: ScoredItem) -> Pairs:
        """Chosen over rejected."""
        return first_beat_rest(item)


def _item(part: Part, record: Record) -> Item | str:
    """An item, or the reason why there is none."""
    for name in SIDES:
        field(record, name)
    try:
        parsed = parse(record, "preference_implicit")
    except EmptyAnswerError:
        return BLANK
    if parsed.drop is not None:
        return REASONS[parsed.drop]
    subset = part.folder.rpartition("/")[2] or part.name
    return Item(
        # Transcripts have no id; what they say tells a copy, wherever it stands.
        id=hashlib.sha256(json.dumps([record.fields[name] for name in SIDES]).encode()).hexdigest()[
            :16
        ],
        subset=subset,
        cluster=parsed.answers[0].prompt_id,
        answers=parsed.answers,
        where=record.where,
    )
