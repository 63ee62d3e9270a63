"""Write the generated blocks of docs/results/subspace_audit.md; --check only says if they are old.

Run it as `python docs/make_audit_results.py`. Everything comes from committed files: the audits below
docs/results/audit, and the studies gates.json, finetuned_subspace.json and generators.json.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import audit_blocks
import intervention_blocks
import study_blocks
import summary_block
from measurements import Measurement
from tables_in_pages import write_or_check

from retrm.audit.tables import AuditTables
from retrm.audit.verdict import verdicts

RESULTS = Path(__file__).resolve().parent / "results"
QWEN = "qwen2.5-coder-0.5b-instruct.gguf"
ALL_POOLINGS = "--pooling last --pooling mean --pooling max --pooling gate"
# In the order of the page: folder, what was judged, file of the answers, model, other options.
AUDITS = (
    (
        *("demo", "own answers, demo questions", "recipes/demo/rollouts.jsonl", "smollm2-135m"),
        ALL_POOLINGS,
    ),
    (
        "gsm_smollm2",
        "GSM8K, answers of 13 models",
        "runs/data/gsm_models.jsonl",
        "smollm2-135m",
        "",
    ),
    ("gsm_qwen", "GSM8K, answers of 13 models", "runs/data/gsm_models.jsonl", QWEN, ""),
    ("qwen_own", "own answers, reasoning-gym", "runs/data/qwen_own.jsonl", QWEN, ""),
    ("hh", "HH-RLHF harmless, pairs", "runs/data/hh.jsonl", "smollm2-135m", "--overlong skip"),
    ("llmbar", "LLMBar, pairs", "runs/data/llmbar.jsonl", "smollm2-135m", "--overlong skip"),
    (
        *("rm_bench", "RM-Bench without math, pairs", "runs/data/rm_bench.jsonl", "smollm2-135m"),
        "--overlong skip",
    ),
)
STUDIES: dict[str, tuple[str, Callable[[study_blocks.Results], str], str]] = {
    "gates": (
        "gates.json",
        study_blocks.gates,
        "python recipes/audit/gates.py -o docs/results/gates.json",
    ),
    "generators": (
        "generators.json",
        study_blocks.generators,
        "python recipes/audit/generators.py runs/data/gsm_models.jsonl "
        "--audit docs/results/audit/gsm_smollm2 -o docs/results/generators.json",
    ),
    "finetuned": (
        "finetuned_subspace.json",
        study_blocks.finetuned,
        "python recipes/audit/finetuned.py",
    ),
}


def command(name: str, answers: str, model: str, options: str = "") -> str:
    """What makes an audit."""
    made = f"retrm audit {answers} --model {model} -o docs/results/audit/{name} {options}"
    return made.strip()


INTERVENTIONS = command(
    "demo",
    "recipes/demo/rollouts.jsonl",
    "smollm2-135m",
    f"{ALL_POOLINGS} --interventions --n-samples 1 --config recipes/audit/interventions.toml",
)


def measurements(results: Path) -> list[Measurement]:
    """Every audit of the page, measured or not.

    Raises:
        ValueError: a folder that the page does not know.
    """
    known = [name for name, *_ in AUDITS]
    there = {path.parent.name for path in results.glob("audit/*/audit.json")}
    if unknown := sorted(there - set(known)):
        raise ValueError(
            f"{results / 'audit'} holds {', '.join(unknown)}; expected some of {', '.join(known)}. Add "
            "it to AUDITS in docs/make_audit_results.py"
        )
    return [
        Measurement(
            name,
            data,
            command(name, answers, model, options),
            judged(results / "audit" / name) if name in there else None,
            results / "audit" / name,
        )
        for name, data, answers, model, options in AUDITS
    ]


def judged(folder: Path) -> AuditTables:
    """An audit with the verdicts of today's rules: the stored ones may be of older ones."""
    tables = AuditTables.load(folder)
    return replace(tables, verdicts=verdicts(tables))


def study(results: Path, name: str) -> str:
    """One of the studies, or how to make it."""
    file, make, made_by = STUDIES[name]
    path = results / file
    if not path.is_file():
        return f"Not measured yet. It is made by `{made_by}`."
    return make(json.loads(path.read_text("utf-8")))


def blocks(results: Path = RESULTS) -> dict[str, str]:
    """Every generated block of the page."""
    found = measurements(results)
    return {
        "audit-summary": summary_block.summary(found),
        "audit-primary": audit_blocks.primary(found),
        "audit-baselines": audit_blocks.baselines(found),
        "audit-labels": audit_blocks.labels(found),
        "audit-widths": audit_blocks.widths(found),
        "audit-choices": audit_blocks.choices(found),
        "audit-confidence": audit_blocks.confidence(found),
        "audit-layers": audit_blocks.layers(found),
        "audit-interventions": intervention_blocks.interventions(found, INTERVENTIONS),
        **{f"audit-{name}": study(results, name) for name in STUDIES},
        "audit-files": audit_blocks.files(found),
    }


if __name__ == "__main__":
    page = RESULTS / "subspace_audit.md"
    sys.exit(write_or_check(page, blocks, about=__doc__.splitlines()[0]))
