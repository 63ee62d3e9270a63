"""`retrm sample`: answers from a local model or any OpenAI-compatible endpoint.

With `--score` a head runs on the states that a local model computes anyway while it answers.
"""

import json as json_module
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from retrm.cli.console import err, print_json, progress
from retrm.cli.options import Count, Output
from retrm.errors import DataError, OutputError, RecipeError


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
    json: bool = False,
) -> None:
    """Draw n answers to each question; one line a question, with everything retrm grade needs.

    Finished questions are written as they come to OUTPUT.part; the same command goes on there after
    a kill. The output takes its name when it is whole.

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
    json
        Print a summary as one JSON object on stdout.
    """
    from retrm.data.problems import read_problems
    from retrm.engines.base import open_engine

    _check_engine(engine, score, endpoint)
    rule = _prune_rule(prune, score, endpoint)
    if endpoint is not None and top_k:
        raise RecipeError(
            "--top-k is not part of the OpenAI protocol; leave it out with --endpoint"
        )
    if output.is_dir():
        raise OutputError(f"{output} is a folder; expected a file name for the answers")
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
    done = _resume(part, settings, [q.prompt_id for q in questions])
    todo = questions[done:]
    if done:
        err.print(f"going on after {done:,} questions in {part}")
    counts = {"questions": len(questions), "answers": 0, "cut": 0}
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
                file.write(json_module.dumps({"settings": settings}) + "\n")
            total = len(todo) * n
            for question, answers in zip(todo, _by_question(drawn, n), strict=True):
                row = _row(question, answers, is_scored=score is not None)
                file.write(json_module.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                counts["answers"] += len(answers)
                _count(counts, answers, max_new_tokens, is_scored=score is not None)
                report(counts["answers"], total, f"{counts['cut']:,} cut")
    _finish(part, output)
    if json:
        print_json({**counts, **settings, "output": str(output)})
    else:
        said = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())
        err.print(f"{said} -> {output}")


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


def _count(
    counts: dict[str, int], answers: list[Any], max_new_tokens: int, *, is_scored: bool
) -> None:
    pruned = [answer for answer in answers if answer.is_pruned]
    counts["cut"] += sum(answer.finished is False for answer in answers) - len(pruned)
    if not is_scored:
        return
    found = {
        "pruned": len(pruned),
        "tokens": sum(len(answer.token_ids) for answer in answers),
        # What they would have taken is known only from the same run without --prune.
        "tokens_saved_at_most": sum(max_new_tokens - len(answer.token_ids) for answer in pruned),
        "text_gives_other_tokens": sum(answer.is_text_exact is False for answer in answers),
    }
    for name, number in found.items():
        counts[name] = counts.get(name, 0) + number


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


def _resume(part: Path, settings: dict[str, Any], ids: list[str]) -> int:
    """Questions that are complete in `part`; a torn last line is cut off."""
    if not part.exists():
        return 0
    whole, found = b"", []
    with part.open("rb") as file:
        head = file.readline()
        if not head.endswith(b"\n"):
            part.unlink()
            return 0
        if json_module.loads(head).get("settings") != settings:
            raise DataError(
                f"{part} was begun with other settings ({head.decode().strip()[:200]}); expected the "
                "same ones to go on. Delete it to begin again"
            )
        whole = head
        for line in file:
            if not line.endswith(b"\n"):
                break
            found.append(json_module.loads(line)["prompt_id"])
            whole += line
    if found != ids[: len(found)]:
        raise DataError(
            f"{part} holds answers to other questions than the file now lists; delete it to begin again"
        )
    part.write_bytes(whole)
    return len(found)


def _append(part: Path) -> IO[str]:
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        return part.open("a", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {part}: {error.strerror}; choose another --output"
        ) from error


def _finish(part: Path, output: Path) -> None:
    # The first line of the part file holds the settings, not a record.
    from retrm.files import atomic_write

    with part.open("rb") as source, atomic_write(output) as target:
        source.readline()
        while block := source.read(1 << 20):
            target.write(block)
    part.unlink()
