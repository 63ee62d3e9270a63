"""Rendered answers laid out in rows for forward passes.

Answers to one prompt that begin with the same token ids share a row where the backbone allows it:

    prompt | answer 1 | answer 2 | ... | padding

Every answer sees the prompt and itself, and its positions continue at the prompt's length, so its
states are those of a row of its own; the prompt is read once instead of N times. Rows go by length,
longest first, and a batch is cut where rows x width would exceed the budget: padding counts.

A prompt that is too long for such a row (a row per few answers would carry it again) is read once by
itself; the keys and values of all of it but its last token serve the passes of its answers:

    [cached prompt] last prompt token | answer 1 | answer 2 | ...

A row is not made longer where that costs more than it saves. Attention grows with the square of a
row: with 24 width^2 operations a token for the matrices and 4 width for every token it looks at, a
row of T tokens costs about T + T^2 / (6 width); `_QUADRATIC_AT` stands for 6 width.

Source: the tree attention of speculative decoding with a tree of depth one (SpecInfer, arXiv
2305.09781, section 4.2); prefix caching as in vLLM and SGLang (RadixAttention, arXiv 2312.07104).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrm.backbone.base import Rendered, TokenBatch
from retrm.errors import RecipeError, RenderError

TOKENS_PER_BATCH = 1024
LEAST_FILL = 0.8
"""Share of real tokens below which a pass is not made wider for more rows: padding costs as much as text."""
_QUADRATIC_AT = 4096
_SHARED_ROW = 1024
# Below this a prompt is read again sooner than its keys and values are fetched.
_SHORTEST_CACHED = 64


@dataclass(frozen=True)
class RowPlan:
    """One row: a prompt and the answers behind it.

    Attributes:
        answers: indices into the caller's list, in the order of the row.
        n_prompt: tokens of the prompt.
        n_tokens: tokens of the row, padding and cached ones excluded.
        n_cached: tokens of the prompt that another pass reads for it.
    """

    answers: tuple[int, ...]
    n_prompt: int
    n_tokens: int
    n_cached: int = 0


@dataclass(frozen=True)
class BatchPlan:
    """Rows that pass through the model together.

    Attributes:
        rows: longest first.
        begins_prefix: whether the cached part of its only row is read with it, for those behind it.
        ends_prefix: whether it is the last that needs it.
    """

    rows: tuple[RowPlan, ...]
    begins_prefix: bool = True
    ends_prefix: bool = True

    @property
    def width(self) -> int:
        """Tokens of a row, padding included."""
        return max(row.n_tokens for row in self.rows)

    @property
    def n_padded(self) -> int:
        """Tokens that are computed, padding included: what the budget bounds."""
        return len(self.rows) * self.width

    @property
    def n_tokens(self) -> int:
        """Real tokens that pass through the model."""
        own = sum(row.n_tokens for row in self.rows)
        return own + (sum(row.n_cached for row in self.rows) if self.begins_prefix else 0)

    @property
    def shares(self) -> bool:
        """Whether a row holds several answers."""
        return any(len(row.answers) > 1 for row in self.rows)


def plan_batches(
    rendered: Sequence[Rendered],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    share_prompts: bool = False,
    cache_prompts: bool = False,
) -> list[BatchPlan]:
    """Distribute answers over batches; each appears in exactly one row.

    Args:
        rendered: the answers; tokens behind `stop` are left out, since they change nothing before.
        tokens_per_batch: bound on rows x width; only an answer that is longer by itself exceeds it.
        share_prompts: `shares_prompts` of the backbone.
        cache_prompts: `caches_prompts` of the backbone, where nobody wants states of the prompts.

    Raises:
        RecipeError: the budget is below one token.
        RenderError: a span that does not lie behind at least one prompt token.
    """
    rows, behind = _rows(
        rendered, tokens_per_batch, share_prompts=share_prompts, cache_prompts=cache_prompts
    )
    return _cut(rows, tokens_per_batch) + behind


def plan_first(
    rendered: Sequence[Rendered],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    share_prompts: bool = False,
    cache_prompts: bool = False,
) -> list[int]:
    """The answers that make the best pass with the first one: for a server, whose first one must not wait.

    Rows are made as in `plan_batches`. Of the runs of rows like in length that hold the row of the first
    answer and fit the budget, the one with the most real tokens is taken, if padding leaves it
    `LEAST_FILL` of them. Behind a cached prompt the passes go on until they have read as much as the
    prompt is long, since the next answer behind it reads it anew.

    Args and raises: as `plan_batches`.

    Returns:
        Indices, the first answer's among them.
    """
    rows, behind = _rows(
        rendered, tokens_per_batch, share_prompts=share_prompts, cache_prompts=cache_prompts
    )
    at = next((i for i, row in enumerate(rows) if 0 in row.answers), None)
    if at is None:
        return _behind_first(behind, tokens_per_batch)
    best, most = (at, at + 1), rows[at].n_tokens
    for begin in range(at + 1):
        n_tokens = 0
        for end in range(begin, len(rows)):
            padded = (end + 1 - begin) * rows[begin].n_tokens
            n_tokens += rows[end].n_tokens
            if padded > tokens_per_batch:
                break
            if end >= at and n_tokens > most and n_tokens >= LEAST_FILL * padded:
                best, most = (begin, end + 1), n_tokens
    return [i for row in rows[slice(*best)] for i in row.answers]


def _behind_first(behind: Sequence[BatchPlan], tokens_per_batch: int) -> list[int]:
    """The pass with answer 0 and some that follow it behind the same cached prompt."""
    at = next(i for i, plan in enumerate(behind) if 0 in plan.rows[0].answers)
    room = max(tokens_per_batch, behind[at].rows[0].n_prompt)
    chosen: list[int] = []
    for number in range(at, len(behind)):
        row = behind[number].rows[0]
        if number > at and (behind[number].begins_prefix or row.n_tokens > room):
            break
        chosen += row.answers
        room -= row.n_tokens
    return chosen


def _rows(
    rendered: Sequence[Rendered],
    tokens_per_batch: int,
    *,
    share_prompts: bool,
    cache_prompts: bool,
) -> tuple[list[RowPlan], list[BatchPlan]]:
    """Rows, longest first, and batches behind cached prompts; each answer in one of them."""
    _check(rendered, tokens_per_batch)
    if share_prompts:
        rows, behind = _shared_rows(rendered, tokens_per_batch, cache_prompts=cache_prompts)
    else:
        rows = [RowPlan((i,), item.start, item.stop) for i, item in enumerate(rendered)]
        behind = []
    return sorted(rows, key=lambda row: -row.n_tokens), behind


def _check(rendered: Sequence[Rendered], tokens_per_batch: int) -> None:
    if tokens_per_batch < 1:
        raise RecipeError(f"got tokens_per_batch = {tokens_per_batch}; expected at least 1")
    for i, item in enumerate(rendered):
        if not 1 <= item.start <= item.stop <= len(item.ids):
            raise RenderError(
                f"answer {i} spans tokens {item.start} to {item.stop} of {len(item.ids)}; expected "
                "1 <= start <= stop <= number of tokens, since the first judged token needs one "
                "before it. Check the renderer"
            )


def _cut(rows: Sequence[RowPlan], tokens_per_batch: int) -> list[BatchPlan]:
    """Fill batches in the given order; the first row of a batch is its longest."""
    plans: list[BatchPlan] = []
    batch: list[RowPlan] = []
    for row in rows:
        if batch and (len(batch) + 1) * batch[0].n_tokens > tokens_per_batch:
            plans.append(BatchPlan(tuple(batch)))
            batch = []
        batch.append(row)
    if batch:
        plans.append(BatchPlan(tuple(batch)))
    return plans


def _shared_rows(
    rendered: Sequence[Rendered], tokens_per_batch: int, *, cache_prompts: bool
) -> tuple[list[RowPlan], list[BatchPlan]]:
    """Rows that carry their prompt, and batches behind a cached one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(rendered):
        groups.setdefault(item.ids[: item.start], []).append(i)
    longest = max((item.stop for item in rendered), default=0)
    limit = min(tokens_per_batch, max(_SHARED_ROW, 2 * longest))
    rows: list[RowPlan] = []
    behind: list[BatchPlan] = []
    for prompt, members in groups.items():
        split = _split_group(rendered, members, len(prompt), limit)
        if cache_prompts and len(split) > 1 and len(prompt) >= _SHORTEST_CACHED:
            behind += _behind_cache(rendered, members, len(prompt), limit)
        else:
            rows += split
    return rows, behind


def _behind_cache(
    rendered: Sequence[Rendered], members: Sequence[int], n_prompt: int, limit: int
) -> list[BatchPlan]:
    """Single rows of answers behind all of the prompt but its last token, which is in every row.

    Bounded like every row: its mask is dense, so a longer one takes memory by the square of its length.
    """
    chunks: list[list[int]] = [[]]
    n_tokens = 1
    for i in sorted(members, key=lambda i: -rendered[i].n_response):
        if chunks[-1] and n_tokens + rendered[i].n_response > limit:
            chunks.append([])
            n_tokens = 1
        chunks[-1].append(i)
        n_tokens += rendered[i].n_response
    plans = []
    for number, chunk in enumerate(chunks):
        own = 1 + sum(rendered[i].n_response for i in chunk)
        row = RowPlan(tuple(chunk), n_prompt, own, n_prompt - 1)
        plans.append(BatchPlan((row,), number == 0, number == len(chunks) - 1))
    return plans


def _split_group(
    rendered: Sequence[Rendered], members: Sequence[int], n_prompt: int, limit: int
) -> list[RowPlan]:
    """Rows for the answers to one prompt; each row carries its own copy of the prompt."""
    rows: list[RowPlan] = []
    kept: list[int] = []
    n_tokens = n_prompt
    for i in sorted(members, key=lambda i: -rendered[i].n_response):
        longer = n_tokens + rendered[i].n_response
        alone = n_prompt + rendered[i].n_response
        is_worth_it = _cost(longer) <= _cost(n_tokens) + _cost(alone)
        if kept and (longer > limit or not is_worth_it):
            rows.append(RowPlan(tuple(kept), n_prompt, n_tokens))
            kept, longer = [], alone
        kept.append(i)
        n_tokens = longer
    rows.append(RowPlan(tuple(kept), n_prompt, n_tokens))
    return rows


def _cost(n_tokens: int) -> float:
    return n_tokens * (1 + n_tokens / _QUADRATIC_AT)


def build(
    plan: BatchPlan,
    rendered: Sequence[Rendered],
    pad_id: int,
    device: torch.device | str = "cpu",
) -> TokenBatch:
    """Tensors of one planned batch, on `device`.

    `pad_id` may be any valid token id: nothing looks at padding. Padding stands at position 0.
    """
    shape = (len(plan.rows), plan.width)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    # 0 = prompt, k = k-th answer of the row, -1 = padding.
    owner = torch.full(shape, -1, dtype=torch.long)
    answers, rows, spans, previous = [], [], [], []
    for r, row in enumerate(plan.rows):
        n = at = row.n_prompt - row.n_cached
        ids[r, :n] = torch.tensor(rendered[row.answers[0]].ids[row.n_cached : row.n_prompt])
        positions[r, :n] = torch.arange(row.n_cached, row.n_prompt)
        owner[r, :n] = 0
        for k, i in enumerate(row.answers, start=1):
            item, end = rendered[i], at + rendered[i].n_response
            ids[r, at:end] = torch.tensor(item.ids[item.start : item.stop], dtype=torch.long)
            positions[r, at:end] = torch.arange(item.start, item.stop)
            owner[r, at:end] = k
            span = torch.arange(at, end)
            answers.append(i)
            rows.append(r)
            spans.append(span.to(device))
            previous.append(_previous(span, n).to(device))
            at = end
    n_cached = plan.rows[0].n_cached
    attention = _tree_mask(owner) if plan.shares or n_cached else owner >= 0
    return TokenBatch(
        ids=ids.to(device),
        positions=positions.to(device),
        attention=attention.to(device),
        answers=tuple(answers),
        rows=tuple(rows),
        spans=tuple(spans),
        previous=tuple(previous),
        n_tokens=plan.n_tokens,
        prefix=rendered[plan.rows[0].answers[0]].ids[:n_cached],
        begins_prefix=plan.begins_prefix,
        ends_prefix=plan.ends_prefix,
    )


def whole_rows(
    texts: Sequence[tuple[int, ...]],
    *,
    padding: Tensor | None = None,
    left: bool = False,
    device: torch.device | str = "cpu",
) -> TokenBatch:
    """One text a row, every token of it in its span: no prompt is shared, no token is left out.

    Args:
        texts: token ids, at least one each.
        padding: (rows, tokens) ids to stand where no text stands; None = `0`.
        left: whether texts end together instead of beginning together.
        device: of the tensors.
    """
    lengths = [len(text) for text in texts]
    shape = (len(texts), max(lengths))
    ids = torch.zeros(shape, dtype=torch.long) if padding is None else padding.clone()
    positions = torch.zeros(shape, dtype=torch.long)
    keep = torch.zeros(shape, dtype=torch.bool)
    spans = []
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        start = shape[1] - n if left else 0
        ids[row, start : start + n] = torch.tensor(text)
        positions[row, start : start + n] = torch.arange(n)
        keep[row, start : start + n] = True
        spans.append(torch.arange(start, start + n, device=device))
    return TokenBatch(
        ids=ids.to(device),
        positions=positions.to(device),
        attention=keep.to(device),
        answers=tuple(range(len(texts))),
        rows=tuple(range(len(texts))),
        spans=tuple(spans),
        previous=tuple((span - 1).clamp(min=int(span[0])) for span in spans),
        n_tokens=sum(lengths),
    )


def _previous(span: Tensor, n_prompt: int) -> Tensor:
    """Positions before those of `span`: for the first, the last of the prompt, not its neighbour."""
    before = span - 1
    before[:1] = n_prompt - 1
    return before


def _tree_mask(owner: Tensor) -> Tensor:
    """(rows, tokens) owners -> (rows, 1, tokens, tokens): the prompt and its own answer, causally.

    Padding looks at padding, so that no row of the mask is empty and no NaN arises.
    """
    looks, seen = owner[:, :, None], owner[:, None, :]
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    return (causal & ((seen == 0) | (seen == looks)))[:, None]
