"""`retrm sample`: answers from a local model or any OpenAI-compatible endpoint.

With `--score` a head runs on the states that a local model computes anyway while it answers.
"""

import json as json_module
import os
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from retrm.cli.console import err, print_json, progress
from retrm.cli.options import Count, Output
from retrm.errors import DataError, OutputError, RecipeError

_HEAD = b'{"settings": '  # how the first line of a file that this verb began begins


def sample(
    model: str,
    problems: str,
    /,
    *,
    output: Output,
    n: Count = 8,
    temperature: float = 0.8,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    limit: int | None = None,
    score: Path | None = None,
    prune: str | None = None,
    endpoint: str | None = None,
    concurrency: int = 8,
    device: str = "cpu",
    dtype: str = "float32",
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Draw n answers to each question; one line a question, with everything retrm grade needs.

    Finished questions are written as they come to OUTPUT.part; the same command goes on there after
    a kill. The output takes its name when it is whole. A file of that name is not replaced, for it may
    have been graded since.

    Parameters
    ----------
    model
        smollm2-135m, a hub id, a local folder or a GGUF file; with --endpoint, the name by which the
        engine knows the model.
    problems
        Questions: JSONL, JSON, Parquet or hub:owner/name, with prompt, problem or question, and
        optionally answer, grader, choices, prompt_id.
    output
        JSONL file to write.
    n
        Answers a question.
    temperature
        0 takes the likeliest token (then n must be 1).
    top_p
        Share of probability to draw from.
    top_k
        How many of the likeliest tokens to draw from; 0 = all.
    max_new_tokens
        Longer answers are cut and marked as not finished.
    seed
        Same seed, same answers (local models).
    batch_size
        Answers continued together; more is faster and takes more memory.
    limit
        Only the first so many questions.
    score
        Folder made by retrm fit on this model: adds the score of every answer, which costs no second
        reading. `retrm select stored OUTPUT` then keeps the best.
    prune
        With --score, stop candidates that fall behind, for example lower_share:every=32,share=0.5:
        after every 32 tokens the lower half of those under way. They are marked and have no score.
    endpoint
        URL of an OpenAI-compatible engine (vLLM, SGLang, llama.cpp); the key comes from the
        environment.
    concurrency
        Requests to the endpoint at a time; a vLLM or SGLang server takes a hundred and more.
    device
        cpu, cuda, cuda:1, ...
    dtype
        Of a local model: float32 or bfloat16.
    engine
        local = in this process; ray = on the workers of a Ray cluster.
    workers
        Backbones of engine ray; by default one a GPU, or without GPUs one a machine.
    ray_address
        Of a running cluster, or auto; by default RAY_ADDRESS, else this machine alone.
    overwrite
        Replace OUTPUT if it is there, once the new answers are whole.
    json
        Print a summary as one JSON object on stdout.
    """
    from retrm.data.problems import read_problems
    from retrm.engines.base import open_engine

    _check_engine(engine, score, endpoint)
    rule = _prune_rule(prune, score, endpoint)
    if endpoint is None:
        _check_options(n, temperature, top_p, top_k, max_new_tokens, seed, batch_size, rule)
    _check_prunes(rule, n, max_new_tokens)
    if endpoint is not None and top_k:
        raise RecipeError(
            "--top-k is not part of the OpenAI protocol; leave it out with --endpoint"
        )
    _check_output(output, overwrite=overwrite)
    questions = read_problems(problems, limit=limit)
    settings = {
        "model": model,
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "endpoint": endpoint,
        "dtype": dtype,
        **_score_settings(score, prune),
    }
    part = output.with_name(output.name + ".part")
    counts = _Counts(len(questions), max_new_tokens, is_scored=score is not None)
    done = _resume(part, settings, [q.prompt_id for q in questions], counts)
    todo = questions[done:]
    if done:
        err.print(f"going on after {done:,} questions in {part}")
    with open_engine(engine, workers=workers, address=ray_address, device=device) as where:
        # The model is loaded before the first byte is written: a misspelt name leaves nothing behind.
        prompts = [q.prompt for q in todo]
        if score is None:
            drawn = _draw(
                model, prompts, settings, batch_size, endpoint, concurrency, device, where
            )
        else:
            drawn = _draw_scored(score, model, prompts, settings, batch_size, device, rule)
        with _append(part) as file, progress("sampling") as report:
            if file.tell() == 0:
                _write(file, part, {"settings": settings})
            total, n_drawn = len(todo) * n, 0
            for question, answers in zip(todo, _by_question(drawn, n), strict=True):
                row = _row(question, answers, is_scored=score is not None)
                _write(file, part, row)
                counts.add(row)
                counts.add_texts(answers)
                n_drawn += len(answers)
                report(n_drawn, total, f"{counts['cut']:,} cut")
    _finish(part, output)
    if json:
        print_json({**counts.found, **settings, "output": str(output)})
    else:
        err.print(f"{counts.in_words()} -> {output}")


def _draw(
    model: str,
    prompts: list[Any],
    settings: dict[str, Any],
    batch_size: int,
    endpoint: str | None,
    concurrency: int,
    device: str,
    where: Any,
) -> Iterable[Any]:
    options = {k: settings[k] for k in ("n", "temperature", "top_p", "max_new_tokens", "seed")}
    if endpoint is not None:
        from retrm.backbone.endpoint import sample_endpoint

        return sample_endpoint(endpoint, model, prompts, **options, concurrency=concurrency)
    from retrm.backbone.generate import sample as sample_local
    from retrm.backbone.remote import open_backbone

    backbone = open_backbone(model, engine=where, device=device, dtype=settings["dtype"])
    return sample_local(
        backbone, prompts, **options, top_k=settings["top_k"], batch_size=batch_size
    )


def _check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse to lose answers that are there, with the labels that they may have got since."""
    if output.is_dir():
        raise OutputError(f"{output} is a folder; expected a file name for the answers")
    if not overwrite and output.is_file() and output.stat().st_size:
        raise OutputError(
            f"{output} is there already; expected a new name, since its answers, and their labels if "
            "they were graded, would be lost. Choose another --output, or add --overwrite"
        )


def _check_options(
    n: int,
    temperature: float,
    top_p: float,
    top_k: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    rule: Any,
) -> None:
    """Refuse what a local model would refuse, before it is loaded."""
    from retrm.backbone.sample_options import SampleOptions

    options = SampleOptions(n, temperature, top_p, top_k, max_new_tokens, seed, batch_size)
    if rule is not None:
        options.check_prune()


def _check_engine(engine: str, score: Path | None, endpoint: str | None) -> None:
    stray = "--score" if score is not None else "--endpoint" if endpoint is not None else None
    if engine != "local" and stray is not None:
        raise RecipeError(
            f"got --engine {engine} with {stray}; workers draw plain answers of a local model only. "
            "Leave one of the two out"
        )


def _prune_rule(prune: str | None, score: Path | None, endpoint: str | None) -> Any:
    """The rule that --prune names, after refusing options that do not go together."""
    if score is not None and endpoint is not None:
        raise RecipeError(
            "--score reads the states of a local model, which an endpoint does not show; leave out "
            "--endpoint, or sample first and run retrm score"
        )
    if prune is None:
        return None
    if score is None:
        raise RecipeError("--prune compares running scores; add --score DIR, made by retrm fit")
    from retrm.selection.prune import parse_prune_rule

    return parse_prune_rule(prune)


def _check_prunes(rule: Any, n: int, max_new_tokens: int) -> None:
    """Refuse a rule that cannot stop anybody: it would be taken for one that had nothing to stop."""
    if rule is None:
        return
    if n == 1:
        raise RecipeError(
            "--prune compares candidates of one prompt, got -n 1; ask for more of them"
        )
    if rule.every >= max_new_tokens:
        raise RecipeError(
            f"--prune first looks after {rule.every} tokens and answers end after {max_new_tokens}, so it "
            "stops nobody; give a smaller every=, or more --max-new-tokens"
        )


def _score_settings(score: Path | None, prune: str | None) -> dict[str, Any]:
    """What a run that goes on must share with its beginning: this head and this rule."""
    if score is None:
        return {}
    import hashlib

    from retrm.heads.artifact import MANIFEST, load_artifact

    load_artifact(score)  # refuses what is no reward model
    digest = hashlib.sha256((score / MANIFEST).read_bytes()).hexdigest()[:16]
    return {"score": str(score), "score_manifest": digest, "prune": prune}


def _draw_scored(
    score: Path,
    model: str,
    prompts: list[Any],
    settings: dict[str, Any],
    batch_size: int,
    device: str,
    rule: Any,
) -> Iterable[Any]:
    from retrm.heads.artifact import load_artifact
    from retrm.scorers.reward_model import RewardModel

    fitted = load_artifact(score).backbone.dtype
    if settings["dtype"] != fitted:
        raise RecipeError(
            f"the head in {score} was fitted on {fitted} states, got --dtype {settings['dtype']}; "
            f"use --dtype {fitted}"
        )
    scorer = RewardModel.load(score, model=model, device=device)
    names = ("n", "temperature", "top_p", "top_k", "max_new_tokens", "seed")
    options = {name: settings[name] for name in names}
    return scorer.generate(prompts, **options, batch_size=batch_size, prune=rule)


class _Counts:
    """What the summary says, counted from rows as they stand in the file, whichever process wrote them.

    Args:
        n_questions: of the whole run.
        max_new_tokens: bound on an answer.
        is_scored: whether the rows hold scores, and so what was pruned.
    """

    def __init__(self, n_questions: int, max_new_tokens: int, *, is_scored: bool) -> None:
        self._most = max_new_tokens
        self._is_scored = is_scored
        self.found: dict[str, int | None] = {"questions": n_questions, "answers": 0, "cut": 0}
        if is_scored:
            more = ("pruned", "tokens", "tokens_saved_at_most", "text_gives_other_tokens")
            self.found |= dict.fromkeys(more, 0)

    def __getitem__(self, name: str) -> int:
        return self.found[name] or 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one question."""
        stopped = row["pruned"] if self._is_scored else [False] * len(row["responses"])
        self._count("answers", len(row["responses"]))
        self._count("cut", sum(done is False for done in row["finished"]) - sum(stopped))
        if not self._is_scored:
            return
        lengths = [len(ids) for ids in row["token_ids"]]
        self._count("pruned", sum(stopped))
        self._count("tokens", sum(lengths))
        # What they would have taken is known only from the same run without --prune.
        saved = (self._most - n for n, is_pruned in zip(lengths, stopped, strict=True) if is_pruned)
        self._count("tokens_saved_at_most", sum(saved))

    def add_texts(self, answers: Iterable[Any]) -> None:
        """Count answers whose text does not give back the tokens that were drawn."""
        if self.found.get("text_gives_other_tokens") is not None:
            other = sum(answer.is_text_exact is False for answer in answers)
            self._count("text_gives_other_tokens", other)

    def forget_texts(self) -> None:
        """The file does not say it, so of a run that goes on it is not known."""
        if self._is_scored:
            self.found["text_gives_other_tokens"] = None

    def in_words(self) -> str:
        """One line."""
        return ", ".join(
            f"{name.replace('_', ' ')} {'not known' if count is None else f'{count:,}'}"
            for name, count in self.found.items()
        )

    def _count(self, name: str, more: int) -> None:
        self.found[name] = self[name] + more


def _by_question(drawn: Iterable[Any], n: int) -> Iterator[list[Any]]:
    answers: list[Any] = []
    for answer in drawn:
        answers.append(answer)
        if len(answers) == n:
            yield answers
            answers = []


def _row(question: Any, answers: list[Any], *, is_scored: bool) -> dict[str, Any]:
    fields = {k: v for k, v in question.fields.items() if k != "prompt_id"}
    for column in ("score", "pruned"):  # lists belong to answers that the record had before
        if isinstance(fields.get(column), list):
            del fields[column]
    row = {
        "prompt_id": question.prompt_id,
        **fields,
        "responses": [a.response for a in answers],
        "token_ids": None
        if any(a.token_ids is None for a in answers)
        else [list(a.token_ids) for a in answers],
        "finished": [a.finished for a in answers],
        "logprobs": [None if a.logprob is None else round(a.logprob, 6) for a in answers],
    }
    if is_scored:
        # The running score of a pruned candidate is not to be compared with those of answers.
        row["score"] = [None if a.is_pruned else a.score for a in answers]
        row["pruned"] = [a.is_pruned for a in answers]
    return row


def _resume(part: Path, settings: dict[str, Any], ids: list[str], counts: _Counts) -> int:
    """Questions that are complete in `part`, which are counted; a torn last line is cut off."""
    if not part.exists():
        return 0
    if not part.is_file():
        raise OutputError(f"{part} is no file; move it away, or choose another --output")
    found = []
    with part.open("rb") as file:
        head = file.readline()
        if not (head.startswith(_HEAD) or _HEAD.startswith(head)):
            raise DataError(
                f"{part}, line 1, is not what retrm sample wrote; expected a file that it began. Move "
                "the file away, or choose another --output"
            )
        if not head.endswith(b"\n"):
            part.unlink()
            return 0
        begun = _parsed(head, part, 1)
        if begun["settings"] != settings:
            raise DataError(
                f"{part} was begun with other settings ({head.decode().strip()[:200]}); expected the "
                "same ones to go on. Delete it to begin again"
            )
        keep = len(head)
        for number, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                break
            row = _parsed(line, part, number)
            try:
                found.append(row["prompt_id"])
                if len(row["responses"]) != settings["n"]:
                    raise ValueError(f"{len(row['responses'])} answers, expected {settings['n']}")
                counts.add(row)
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(part, number, f"{type(error).__name__}: {error}") from error
            keep += len(line)
    if found != ids[: len(found)]:
        raise DataError(
            f"{part} holds answers to other questions than the file now lists; delete it to begin again"
        )
    if keep < part.stat().st_size:
        os.truncate(part, keep)
    if found:
        counts.forget_texts()
    return len(found)


def _parsed(line: bytes, part: Path, number: int) -> dict[str, Any]:
    try:
        row = json_module.loads(line)
    except ValueError as error:
        raise _damaged(part, number, str(error)) from error
    if not isinstance(row, dict):
        raise _damaged(part, number, f"a {type(row).__name__}, expected an object")
    return row


def _damaged(part: Path, number: int, trouble: str) -> DataError:
    return DataError(
        f"{part}, line {number}, is not what retrm sample wrote there ({trouble}). Delete the file to "
        "begin again, or that line and all behind it to go on from there"
    )


def _append(part: Path) -> FileIO:
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: one that is full of what the disk has no room for fails again on closing.
        return part.open("ab", buffering=0)
    except OSError as error:
        raise OutputError(
            f"cannot write {part}: {error.strerror}; choose another --output"
        ) from error


def _write(file: FileIO, part: Path, row: Mapping[str, Any]) -> None:
    """One line, on its way to the disk when this returns."""
    left = (json_module.dumps(row, ensure_ascii=False) + "\n").encode()
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise OutputError(
            f"cannot write {part}: {error.strerror}. What is in it is kept: make room and run the same "
            "command, which goes on behind it"
        ) from error


def _finish(part: Path, output: Path) -> None:
    # The first line of the part file holds the settings, not a record.
    from retrm.files import atomic_write

    with part.open("rb") as source, atomic_write(output) as target:
        source.readline()
        while block := source.read(1 << 20):
            target.write(block)
    part.unlink()
