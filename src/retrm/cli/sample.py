"""`retrm sample`: answers from a local model or any OpenAI-compatible endpoint."""

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
    endpoint: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
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
    endpoint
        URL of an OpenAI-compatible engine (vLLM, SGLang, llama.cpp); the key comes from the
        environment.
    device
        cpu, cuda, cuda:1, ...
    dtype
        Of a local model: float32 or bfloat16.
    json
        Print a summary as one JSON object on stdout.
    """
    from retrm.data.problems import read_problems

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
    }
    part = output.with_name(output.name + ".part")
    done = _resume(part, settings, [q.prompt_id for q in questions])
    todo = questions[done:]
    if done:
        err.print(f"going on after {done:,} questions in {part}")
    counts = {"questions": len(questions), "answers": 0, "cut": 0}
    # The model is loaded before the first byte is written: a misspelt name leaves nothing behind.
    drawn = _draw(model, [q.prompt for q in todo], settings, batch_size, endpoint, device, dtype)
    with _append(part) as file, progress("sampling") as report:
        if file.tell() == 0:
            file.write(json_module.dumps({"settings": settings}) + "\n")
        total = len(todo) * n
        for question, answers in zip(todo, _by_question(drawn, n), strict=True):
            file.write(json_module.dumps(_row(question, answers), ensure_ascii=False) + "\n")
            file.flush()
            counts["answers"] += len(answers)
            counts["cut"] += sum(answer.finished is False for answer in answers)
            report(counts["answers"], total, f"{counts['cut']:,} cut")
    _finish(part, output)
    if json:
        print_json({**counts, **settings, "output": str(output)})
    else:
        err.print(
            ", ".join(f"{name} {count:,}" for name, count in counts.items()) + f" -> {output}"
        )


def _draw(
    model: str,
    prompts: list[Any],
    settings: dict[str, Any],
    batch_size: int,
    endpoint: str | None,
    device: str,
    dtype: str,
) -> Iterable[Any]:
    options = {k: settings[k] for k in ("n", "temperature", "top_p", "max_new_tokens", "seed")}
    if endpoint is not None:
        from retrm.backbone.endpoint import sample_endpoint

        return sample_endpoint(endpoint, model, prompts, **options)
    from retrm.backbone.generate import sample as sample_local
    from retrm.backbone.load import load_backbone

    backbone = load_backbone(model, device=device, dtype=dtype)
    return sample_local(
        backbone, prompts, **options, top_k=settings["top_k"], batch_size=batch_size
    )


def _by_question(drawn: Iterable[Any], n: int) -> Iterator[list[Any]]:
    answers: list[Any] = []
    for answer in drawn:
        answers.append(answer)
        if len(answers) == n:
            yield answers
            answers = []


def _row(question: Any, answers: list[Any]) -> dict[str, Any]:
    fields = {k: v for k, v in question.fields.items() if k != "prompt_id"}
    return {
        "prompt_id": question.prompt_id,
        **fields,
        "responses": [a.response for a in answers],
        "token_ids": None
        if any(a.token_ids is None for a in answers)
        else [list(a.token_ids) for a in answers],
        "finished": [a.finished for a in answers],
        "logprobs": [None if a.logprob is None else round(a.logprob, 6) for a in answers],
    }


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
