"""Texts of known policies to pre-train a discriminator on.

For each prefix two policies are drawn, every ordered pair equally often: the first writes two continuations
(reference and chosen), the second one (rejected). A folder holds

    config.json           what the run hangs on; another run is refused
    drawn/POLICY.jsonl    what each policy wrote, as it was drawn; a killed run goes on behind it
    train.jsonl           rows of the policies that training may see
    test.jsonl            the same policies on other prefixes
    held_out.jsonl        rows with a policy that training must not see, on other prefixes again
    manifest.json         who wrote what, and what was set aside; written last

Texts are cleaned when rows are made: of a passage that repeats itself to the end one turn is kept, and what stands
behind the last sentence of a text that ran into its bound is cut off. Rows with an empty text or two equal ones
are left out and counted.

Source: arXiv 2507.05197, section on pre-training data.
"""

import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from retrm.backbone.generate import continue_ids, sample
from retrm.backbone.load import load_backbone
from retrm.backbone.sampled import Sampled
from retrm.errors import DataError, MissingExtraError, RecipeError, did_you_mean
from retrm.files import write_json, write_json_lines
from retrm.finetuning.comparisons import Comparison
from retrm.finetuning.corpus import Prefixes
from retrm.finetuning.policies import Policy, check_policies
from retrm.finetuning.run_folder import RunFolder, read_lines
from retrm.records import Message, Prompt, Reference

SPLITS = ("train", "test", "held_out")
_CHUNK = 256  # prefixes that are handed to a model at once
_REPEATS = 3  # turns of a passage after which it counts as a loop
_LONGEST_TURN = 40  # words
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)|\n")


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """How many rows, and how long their texts are.

    Attributes:
        n_pairs: rows to train on.
        n_test: rows of each of the other two splits.
        hold_out: policies that training must not see.
        wrapper: `pretrain` = policies continue the prefix; `sft` = they answer it as a chat.
        max_new_tokens: of a continuation.
        seed: of pairs and draws.
        batch_size: continuations that a local model draws together.
        dtype: of local models.
        device: of local models.
        concurrency: requests to an endpoint at a time.
    """

    n_pairs: int = 2000
    n_test: int = 200
    hold_out: tuple[str, ...] = ()
    wrapper: str = "pretrain"
    max_new_tokens: int = 96
    seed: int = 0
    batch_size: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    concurrency: int = 8

    def __post_init__(self) -> None:
        Reference("x", self.wrapper)  # refuses an unknown one
        for name in ("n_pairs", "max_new_tokens", "batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise RecipeError(f"got {name}={getattr(self, name)}; expected 1 or more")
        if self.n_test < 0:
            raise RecipeError(f"got n_test={self.n_test}; expected 0 or more")


@dataclass(frozen=True)
class Planned:
    """A row that is to be written.

    Attributes:
        prefix: what is continued.
        split: one of `SPLITS`.
        first: writes reference and chosen.
        second: writes rejected.
    """

    prefix: str
    split: str
    first: str
    second: str


@dataclass(frozen=True)
class Drawn:
    """What one policy wrote behind one prefix.

    Attributes:
        texts: two as the first policy, one as the second.
        finished: whether it ended each itself; None = not known.
        n_tokens: of each; None = not known.
    """

    texts: tuple[str, ...]
    finished: tuple[bool | None, ...]
    n_tokens: tuple[int | None, ...]


Write = Callable[[Policy, Sequence[str], int], Iterator[Sampled]]
"""Draws `n` continuations of each text by a policy, in order; tests have their own."""


@dataclass
class _Writer:
    """Local models and endpoints; one local model is in memory at a time."""

    options: SynthesisOptions
    backbone: Any = None
    loaded: tuple[str, str | None] | None = None
    marks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, policy: Policy, texts: Sequence[str], n: int) -> Iterator[Sampled]:
        if policy.endpoint is not None:
            yield from self._served(policy, texts, n)
            return
        self._load(policy)
        options = self._sampling(policy)
        if self.options.wrapper == "sft":
            prompts = [_chat(policy, text) for text in texts]
            batch = self.options.batch_size
            yield from sample(self.backbone, prompts, n=n, **options, batch_size=batch)
            return
        tokenizer = self.backbone.renderer.tokenizer
        ids = [tuple(tokenizer(policy.before + text)["input_ids"]) for text in texts]
        drawn = continue_ids(self.backbone, ids, n=n, **options, batch_size=self.options.batch_size)
        for one in drawn:
            yield _continued(one, ids[one.prompt], self.backbone.renderer)

    def _sampling(self, policy: Policy) -> dict[str, Any]:
        return {
            "temperature": policy.temperature,
            "top_p": policy.top_p,
            "top_k": policy.top_k,
            "max_new_tokens": self.options.max_new_tokens,
            "seed": _seed_of(self.options.seed, policy.name),
        }

    def _served(self, policy: Policy, texts: Sequence[str], n: int) -> Iterator[Sampled]:
        from retrm.backbone.endpoint import continue_endpoint, sample_endpoint

        assert policy.endpoint is not None
        options = self._sampling(policy)
        self.marks[policy.name] = {"endpoint": policy.endpoint}
        if self.options.wrapper == "sft":
            del options["top_k"]  # no part of the protocol; engines' own defaults are switched off
            prompts = [_chat(policy, text) for text in texts]
            drawn = sample_endpoint(
                *(policy.endpoint, policy.model, prompts),
                n=n,
                **options,
                concurrency=self.options.concurrency,
            )
        else:
            drawn = continue_endpoint(
                *(policy.endpoint, policy.model, [policy.before + text for text in texts]),
                n=n,
                **options,
                concurrency=self.options.concurrency,
            )
        for one in drawn:
            if one.served_by is not None:
                self.marks[policy.name]["served_by"] = one.served_by
            yield one

    def _load(self, policy: Policy) -> None:
        wanted = (policy.model, policy.adapter)
        if self.loaded == wanted:
            self.marks[policy.name] = self.marks.get(policy.name) or self._mark(policy)
            return
        self.backbone = None  # the old one leaves the memory first
        self.backbone = load_backbone(
            policy.model, dtype=self.options.dtype, device=self.options.device
        )
        self.loaded = (policy.model, None)
        self.marks[policy.name] = self._mark(policy)
        if policy.adapter is not None:
            _merge(self.backbone, policy.adapter)
        self.loaded = wanted

    def _mark(self, policy: Policy) -> dict[str, Any]:
        mark: dict[str, Any] = {"weights": self.backbone.fingerprint.weights}
        if policy.adapter is not None:
            mark["adapter"] = policy.adapter
        return mark


def _chat(policy: Policy, text: str) -> Prompt:
    system = (Message("system", policy.before),) if policy.before else ()
    return Prompt((*system, Message("user", text)))


def _continued(one: Sampled, prefix: tuple[int, ...], renderer: Any) -> Sampled:
    """The text behind the prefix; tokenizers that drop the space of a first word would lose one."""
    assert one.token_ids is not None
    ids = one.token_ids[:-1] if one.finished else one.token_ids
    before = renderer.decode(prefix)
    whole = renderer.decode((*prefix, *ids))
    return replace(one, response=whole[len(before) :] if whole.startswith(before) else one.response)


def _merge(backbone: Any, adapter: str) -> None:
    """Add a low-rank adapter to the weights in memory.

    Raises:
        MissingExtraError: peft is not installed.
        RecipeError: the folder holds no adapter of this model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError(
            f"adapters need peft ({error}). Run: pip install 'retrm[finetune]'"
        ) from error
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise RecipeError(
            f"{adapter} holds no adapter (adapter_config.json); expected a folder that peft saved"
        )
    try:
        PeftModel.from_pretrained(backbone.model, adapter).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        raise RecipeError(
            f"the adapter in {adapter} does not fit {backbone.name!r}: {str(error)[:200]}. Name the model "
            "that it was trained on"
        ) from error


def _seed_of(seed: int, name: str) -> int:
    """Policies that share a model must not share their draws."""
    return random.Random(f"{seed} {name}").getrandbits(32)


def plan(
    prefixes: Sequence[str], policies: Sequence[Policy], options: SynthesisOptions
) -> list[Planned]:
    """Which policies write behind which prefix; no prefix stands in two rows.

    Raises:
        DataError: too few prefixes.
        RecipeError: `hold_out` names no policy, or leaves fewer than two to train on.
    """
    names = [policy.name for policy in policies]
    for name in options.hold_out:
        if name not in names:
            raise RecipeError(f"no policy {name!r} to hold out. {did_you_mean(name, names)}")
    known = [name for name in names if name not in options.hold_out]
    if len(known) < 2:
        raise RecipeError(
            f"{len(known)} of {len(names)} policies are left to train on; expected two at least"
        )
    inside = list(itertools.permutations(known, 2))
    outside = [p for p in itertools.permutations(names, 2) if set(p) & set(options.hold_out)]
    wanted = [
        ("train", inside, options.n_pairs),
        ("test", inside, options.n_test),
        ("held_out", outside, options.n_test if outside else 0),
    ]
    total = sum(n for _, _, n in wanted)
    if len(prefixes) < total:
        raise DataError(
            f"got {len(prefixes)} different prefixes for {total} rows; expected one for each. Take a larger "
            "corpus, or fewer pairs"
        )
    rng = random.Random(options.seed)
    given = iter(prefixes)
    made: list[Planned] = []
    for split, pairs, n in wanted:
        rng.shuffle(pairs)
        chosen = itertools.islice(itertools.cycle(pairs), n)
        made += [Planned(next(given), split, *pair) for pair in chosen]
    return made


def synthesise(
    prefixes: Prefixes,
    policies: tuple[Policy, ...],
    folder: RunFolder,
    *,
    options: SynthesisOptions | None = None,
    source: str = "",
    write: Write | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Draw what is missing, make the rows, and write the manifest.

    Args:
        prefixes: of the corpus.
        policies: that write.
        folder: of the run.
        options: how many rows, and how long.
        source: of the prefixes, for the manifest.
        write: draws continuations; None = local models and endpoints.
        on_progress: told texts drawn, texts in all, and by whom.

    Returns:
        The manifest.

    Raises:
        ArtifactError: the folder holds another run.
        DataError: too few prefixes, or no row is left after cleaning.
        BackboneError, EndpointError, RecipeError: a policy cannot write.
    """
    options = options or SynthesisOptions()
    check_policies(policies)
    rows = plan(prefixes.texts, policies, options)
    sampling = {**asdict(options), "hold_out": list(options.hold_out)}
    for name in ("batch_size", "device", "concurrency"):
        del sampling[name]  # they change no text
    folder.begin(
        {
            "kind": "polar-synthesis",
            "corpus": prefixes.sha,
            "policies": {policy.name: policy.as_dict() for policy in policies},
            "options": sampling,
        }
    )
    writer = write or _Writer(options)
    drawn = _draw_all(rows, policies, folder, writer, on_progress)
    manifest = {
        "source": source,
        "corpus": {"sha": prefixes.sha, **prefixes.counts},
        "options": sampling,
        **_write_rows(rows, drawn, folder, options.wrapper),
        "policies": {
            policy.name: {
                **policy.as_dict(),
                **(writer.marks.get(policy.name, {}) if isinstance(writer, _Writer) else {}),
                **_wrote(drawn[policy.name].values()),
            }
            for policy in policies
        },
    }
    write_json(folder.path / "manifest.json", manifest)
    return manifest


def _draw_all(
    rows: Sequence[Planned],
    policies: Sequence[Policy],
    folder: RunFolder,
    write: Write,
    on_progress: Callable[[int, int, str], None] | None,
) -> dict[str, dict[int, Drawn]]:
    """By policy and row: what stands in the folder already, and what is drawn now."""
    total, n_done = 2 * len(rows), 0
    found: dict[str, dict[int, Drawn]] = {}
    for policy in sorted(policies, key=lambda p: (p.model, p.adapter or "")):
        name = f"drawn/{policy.name}.jsonl"
        (folder.path / "drawn").mkdir(parents=True, exist_ok=True)
        kept = found[policy.name] = _kept(folder.path / name)
        n_done += len(kept)
        for n, role in ((2, "first"), (1, "second")):
            todo = [i for i, row in enumerate(rows) if getattr(row, role) == policy.name]
            todo = [i for i in todo if i not in kept]
            for start in range(0, len(todo), _CHUNK):
                part = todo[start : start + _CHUNK]
                texts = [rows[i].prefix for i in part]
                for at, drawn in _grouped(write(policy, texts, n), n):
                    place = part[at]
                    kept[place] = drawn
                    folder.append(name, {"row": place, **asdict(drawn)})
                    n_done += 1
                    if on_progress is not None:
                        on_progress(n_done, total, policy.name)
    return found


def _grouped(drawn: Iterable[Sampled], n: int) -> Iterator[tuple[int, Drawn]]:
    for group in _in_groups(drawn, n):
        yield (
            group[0].prompt,
            Drawn(
                tuple(one.response for one in group),
                tuple(one.finished for one in group),
                tuple(
                    len(one.token_ids) if one.token_ids is not None else one.n_new_tokens
                    for one in group
                ),
            ),
        )


def _in_groups(drawn: Iterable[Sampled], n: int) -> Iterator[list[Sampled]]:
    group: list[Sampled] = []
    for one in drawn:
        group.append(one)
        if len(group) == n:
            yield group
            group = []


def _kept(path: Path) -> dict[int, Drawn]:
    """What a policy has written before; a line that a kill cut short is taken out of the file."""
    if not path.is_file():
        return {}
    rows = read_lines(path)
    write_json_lines(path, rows)
    return {
        row["row"]: Drawn(tuple(row["texts"]), tuple(row["finished"]), tuple(row["n_tokens"]))
        for row in rows
    }


def _write_rows(
    rows: Sequence[Planned], drawn: dict[str, dict[int, Drawn]], folder: RunFolder, wrapper: str
) -> dict[str, Any]:
    """The three files, and how many rows each has, by pair of policies, and what was left out."""
    counts: Counter[str] = Counter()
    pairs: dict[str, Counter[str]] = defaultdict(Counter)
    files: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for i, row in enumerate(rows):
        good, own = _cleaned(drawn[row.first][i], counts)
        (other,) = _cleaned(drawn[row.second][i], counts)
        texts = [text.strip() for text in (good, own, other)]
        reason = "empty" if not all(texts) else "equal" if len(set(texts)) < 3 else ""
        if reason:
            counts[f"dropped_{reason}"] += 1
            continue
        comparison = Comparison(
            *(row.prefix, Reference(good, wrapper), own, other),
            policies=(row.first, row.second),
            prompt_id=Prompt.of(row.prefix).key,
        )
        files[row.split].append(comparison.as_dict())
        pairs[row.split][f"{row.first} | {row.second}"] += 1
    if not files["train"]:
        raise DataError(
            f"no row is left to train on ({dict(counts)}); policies that write nothing or always the same "
            "cannot be told apart. Raise max_new_tokens or the temperatures"
        )
    for split, made in files.items():
        if made:
            write_json_lines(folder.path / f"{split}.jsonl", made)
    return {
        "rows": {split: len(made) for split, made in files.items()},
        "pairs": {split: dict(sorted(found.items())) for split, found in pairs.items()},
        "counts": dict(counts),
    }


def _cleaned(drawn: Drawn, counts: Counter[str]) -> list[str]:
    made = []
    for text, finished in zip(drawn.texts, drawn.finished, strict=True):
        once = without_loop(text)
        counts["loops_cut"] += once != text
        # Of a loop the tail is gone already.
        done = once if finished is not False or once != text else without_tail(once)
        counts["tails_cut"] += done != once
        made.append(done)
    return made


def without_loop(text: str) -> str:
    """`text` with one turn of a passage that repeats itself to the end.

    A passage is 1 to 40 words that stand three times in a row; the last turn may be cut short.

    >>> without_loop("It was so. I am here. I am here. I am here. I am")
    'It was so. I am here.'
    """
    places = [(m.group(), m.end()) for m in re.finditer(r"\S+", text)]
    words = [word for word, _ in places]
    for period in range(1, min(_LONGEST_TURN, len(words) // _REPEATS) + 1):
        n_same = 0
        while n_same < len(words) - period and words[-1 - n_same] == words[-1 - n_same - period]:
            n_same += 1
        if n_same >= (_REPEATS - 1) * period:
            first = len(words) - n_same - period  # where the first turn begins
            return text[: places[first + period - 1][1]]
    return text


def without_tail(text: str) -> str:
    """`text` up to its last sentence or line; all of it where there is none.

    >>> without_tail("One. Two! Thr")
    'One. Two!'
    """
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    kept = text[: ends[-1]] if ends else ""
    return kept.rstrip() if kept.strip() else text


def _wrote(drawn: Collection[Drawn]) -> dict[str, Any]:
    """How much a policy wrote."""
    texts = [text for one in drawn for text in one.texts]
    tokens = [n for one in drawn for n in one.n_tokens if n is not None]
    ended = [done for one in drawn for done in one.finished if done is not None]
    return {
        "n_texts": len(texts),
        "n_tokens": sum(tokens) if tokens else None,
        "share_finished": round(sum(ended) / len(ended), 4) if ended else None,
        "mean_characters": round(sum(map(len, texts)) / len(texts), 1) if texts else None,
    }
