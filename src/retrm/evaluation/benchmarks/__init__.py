"""The field's reward-model benchmarks, one file each, by their official rules.

Names that a person types stand in `BENCHMARKS`; a benchmark is imported when it is asked for. Third
parties add theirs through the entry-point group `retrm.benchmarks`.

>>> from retrm.evaluation.benchmarks import benchmark
>>> benchmark("rm_bench").title
'RM-Bench'
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points

from retrm.errors import RecipeError, did_you_mean
from retrm.evaluation.benchmarks.base import Benchmark

BENCHMARKS: Mapping[str, str] = {
    "reward_bench": "retrm.evaluation.benchmarks.reward_bench:RewardBench",
    "reward_bench_2": "retrm.evaluation.benchmarks.reward_bench_2:RewardBench2",
    "rm_bench": "retrm.evaluation.benchmarks.rm_bench:RMBench",
    "judge_bench": "retrm.evaluation.benchmarks.judge_bench:JudgeBench",
    "llmbar": "retrm.evaluation.benchmarks.llmbar:LLMBar",
    "rmb": "retrm.evaluation.benchmarks.rmb:RMB",
    "ppe_preference": "retrm.evaluation.benchmarks.ppe:PPEPreference",
    "ppe_correctness": "retrm.evaluation.benchmarks.ppe:PPECorrectness",
    "reward_math": "retrm.evaluation.benchmarks.reward_math:RewardMATH",
    "process_bench": "retrm.evaluation.benchmarks.process_bench:ProcessBench",
    "prm_bench": "retrm.evaluation.benchmarks.prm_bench:PRMBench",
    "hh_rlhf": "retrm.evaluation.benchmarks.hh_rlhf:HHRLHF",
    "best_of_n": "retrm.evaluation.benchmarks.best_of_n:BestOfNBenchmark",
}
"""Name to ``module:class``."""


def names() -> list[str]:
    """Every benchmark: ours, then those of installed plug-ins."""
    others = sorted({point.name for point in entry_points(group="retrm.benchmarks")})
    return [*BENCHMARKS, *(name for name in others if name not in BENCHMARKS)]


def benchmark(name: str, *, threshold: float | None = None) -> Benchmark:
    """The benchmark called `name`.

    Args:
        name: of ours or of an installed plug-in.
        threshold: that scores of steps are held against; None = the benchmark's own, 0 for raw scores.
            Benchmarks that hold scores against nothing stay as they are.

    Raises:
        RecipeError: no such benchmark, here or among installed plug-ins, or `threshold` is not finite.
    """
    found = _named(name)
    if threshold is None or not has_threshold(found):
        return found
    return replace(found, threshold=threshold)  # type: ignore[type-var]


def has_threshold(rule: Benchmark) -> bool:
    """Whether the benchmark holds scores against a number that can be chosen."""
    return "threshold" in getattr(rule, "__dataclass_fields__", {})


def _named(name: str) -> Benchmark:
    if name in BENCHMARKS:
        module, _, cls = BENCHMARKS[name].partition(":")
        return getattr(import_module(module), cls)()
    for point in entry_points(group="retrm.benchmarks"):
        if point.name == name:
            return point.load()()
    raise RecipeError(f"unknown benchmark {name!r}. {did_you_mean(name, BENCHMARKS)}")
