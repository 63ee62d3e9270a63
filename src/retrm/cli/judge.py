"""`retrm judge cold-start | reject | train`: a generative judge of one's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from retrm.cli.console import err, out, print_json, progress, table
from retrm.cli.options import Output
from retrm.cli.settings import options_of, read_settings
from retrm.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from retrm.finetuning.collect import Collected, CollectOptions
    from retrm.finetuning.labelled import LabelledPair
    from retrm.finetuning.run_folder import RunFolder
    from retrm.judges.asking import JudgeModel
    from retrm.judges.template import JudgeTemplate

app = App(
    name="judge",
    usage="Usage: retrm judge COMMAND",
    help=(
        "Train a generative judge: cold start on traces, rejection sampling, reinforcement learning.\n\n"
        "    retrm judge cold-start PAIRS --model MODEL --traces TRACES -o runs/cold\n"
        "    retrm judge reject PAIRS --model runs/cold/model -o runs/reject\n"
        "    retrm judge train runs/reject/hard.jsonl --model runs/reject/model -o runs/judge"
    ),
)
VERBS = ("cold-start", "reject", "train")
TABLES = ("reinforce", "policy", "reward", "lora")


@app.default
def no_verb(*words: Annotated[str, Parameter(show=False)]) -> None:
    """Say which verb is missing."""
    if not words:
        app.help_print([])
        return
    raise RecipeError(
        f"got `retrm judge {' '.join(words)}`; expected one of {', '.join(VERBS)}. "
        f"{did_you_mean(words[0], VERBS)}"
    )


@app.command(name="cold-start")
def cold_start(
    data: str,
    /,
    *,
    model: str,
    output: Output,
    template: str = "rm_r1",
    wording: Path | None = None,
    teacher: str | None = None,
    url: str | None = None,
    repair: bool = False,
    traces: Path | None = None,
    config: Path | None = None,
    limit: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Teach a model the form of a judgement, from a teacher's traces whose verdict is the label.

    Traces with another verdict are left out and counted, or, with --repair, written again by the teacher, who is
    then told the label; what is trained on never says so. A killed run goes on where it was.

    Parameters
    ----------
    data
        Pairs: chosen and rejected answers. Every second one is shown with the chosen one behind.
    model
        That learns: smollm2-135m, a hub id, a folder or a GGUF file.
    output
        Folder of the run; the judge is written to model/ in it.
    template
        rm_r1, rm_r1_reasoning, unified_reward_think or r1_reward.
    wording
        File with instructions instead of ours.
    teacher
        Who writes the traces: a local model, or with --url the name by which the engine knows it.
    url
        Of an OpenAI-compatible endpoint.
    repair
        Have wrong judgements written again.
    traces
        A file of traces instead of a teacher: prompt, first, second, label, trace. DATA is then not read.
    config
        TOML file with the tables [collect], [sft] and [lora].
    limit
        Only the first so many pairs.
    dtype
        float32 or bfloat16.
    device
        cpu, cuda, ...
    json
        Print one JSON object on stdout.
    """
    from retrm.finetuning.collect import CollectOptions
    from retrm.finetuning.labelled import load_pairs, load_traces, save_rows
    from retrm.finetuning.run_folder import RunFolder

    reader, settings = _reader(template, wording), read_settings(config, ("collect", "sft", "lora"))
    if (teacher is None) == (traces is None):
        raise RecipeError(
            "expected either --teacher (who writes traces) or --traces (a file of them), not both and not "
            "neither"
        )
    asking = options_of(CollectOptions, settings.get("collect", {}), "collect")
    folder = RunFolder(output)
    found: dict[str, Any] = {}
    if traces is not None:
        some = load_traces(traces, reader)[:limit]
    else:
        assert teacher is not None
        _check_trainable(settings)
        pairs = load_pairs(data, limit=limit)
        writer = _writer(teacher, url, dtype, device)
        made = _collected(
            pairs, writer, reader, asking, folder, repairer=writer if repair else None
        )
        save_rows(output / "traces.jsonl", made.traces)
        some, found = made.traces, made.as_dict()
    _train_sft(some, model, reader, folder, settings, dtype, device, found, as_json=json)


@app.command
def reject(
    data: str,
    /,
    *,
    model: str,
    output: Output,
    template: str = "rm_r1",
    wording: Path | None = None,
    config: Path | None = None,
    limit: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Judge pairs with the judge itself: its right traces are trained on, hard pairs are kept for RL.

    Written: traces.jsonl, failed.jsonl (no right verdict) and hard.jsonl (two attempts or more, or failed), and
    the judge in model/.

    Parameters
    ----------
    data
        Pairs: chosen and rejected answers.
    model
        The judge after its cold start.
    output
        Folder of the run.
    template
        rm_r1, rm_r1_reasoning, unified_reward_think or r1_reward.
    wording
        File with instructions instead of ours.
    config
        TOML file with the tables [collect] (attempts, temperature, ...), [sft] and [lora].
    limit
        Only the first so many pairs.
    dtype
        float32 or bfloat16.
    device
        cpu, cuda, ...
    json
        Print one JSON object on stdout.
    """
    from retrm.finetuning.collect import CollectOptions
    from retrm.finetuning.labelled import load_pairs, save_rows
    from retrm.finetuning.run_folder import RunFolder

    reader, settings = _reader(template, wording), read_settings(config, ("collect", "sft", "lora"))
    asking = options_of(CollectOptions, settings.get("collect", {}), "collect")
    _check_trainable(settings)
    pairs = load_pairs(data, limit=limit)
    folder = RunFolder(output)
    made = _collected(pairs, _writer(model, None, dtype, device), reader, asking, folder)
    save_rows(output / "traces.jsonl", made.traces)
    save_rows(output / "failed.jsonl", made.failed)
    save_rows(output / "hard.jsonl", made.hard())
    _train_sft(
        made.traces, model, reader, folder, settings, dtype, device, made.as_dict(), as_json=json
    )


@app.command
def train(
    data: str,
    /,
    *,
    model: str,
    output: Output,
    template: str = "rm_r1",
    wording: Path | None = None,
    policy: str = "stable_reinforce",
    consistency: str = "rule",
    url: str | None = None,
    config: Path | None = None,
    limit: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Reinforcement learning of a judge with the reward of its template.

    Left in the folder: config.json, metrics.jsonl (reward, KL, length, parse rate, clip share, filtered share),
    samples.jsonl to read, curves.png, and the judge in model/. A killed run goes on from its last checkpoint.

    Parameters
    ----------
    data
        Pairs; hard.jsonl of retrm judge reject, for example.
    model
        The judge to start from.
    output
        Folder of the run.
    template
        rm_r1, rm_r1_reasoning, unified_reward_think or r1_reward.
    wording
        File with instructions instead of ours.
    policy
        stable_reinforce, stable_reinforce_released, reinforce_pp, grpo or unified_reward_think; its options
        are changed in the table [policy].
    consistency
        For r1_reward: rule, none, or the name of a model that is asked.
    url
        Of an OpenAI-compatible endpoint that has the consistency model.
    config
        TOML file with the tables [reinforce], [policy], [reward] and [lora].
    limit
        Only the first so many pairs.
    dtype
        float32 or bfloat16.
    device
        cpu, cuda, ...
    json
        Print one JSON object on stdout.
    """
    from retrm.finetuning.labelled import load_pairs
    from retrm.finetuning.policy import PolicyOptions, policy_options
    from retrm.reports.canvas import check_plotting

    reader, settings = _reader(template, wording), read_settings(config, TABLES)
    options_of(PolicyOptions, settings.get("policy", {}), "policy")  # keys and types
    objective = policy_options(policy, settings.get("policy"))
    check_plotting()
    from retrm.finetuning.language_model import LoraOptions
    from retrm.finetuning.reinforce import ReinforceOptions, reinforce
    from retrm.finetuning.run_folder import RunFolder
    from retrm.reports.judge_training import curves_png

    given = dict(settings.get("reinforce", {}))
    if objective.scope == "group":
        given.setdefault("group_size", 7)
        given.setdefault("batch_size", 56)
    options = options_of(ReinforceOptions, given, "reinforce")
    lora = options_of(LoraOptions, settings.get("lora", {}), "lora")
    pairs = load_pairs(data, limit=limit)
    rule = _rule(reader, settings.get("reward", {}), consistency, url, output, dtype, device)
    folder = RunFolder(output)
    facts = reinforce(
        *(pairs, model, reader, rule, folder),
        policy=objective,
        options=options,
        lora=lora,
        dtype=dtype,
        device=device,
    )
    curves_png(output / "curves.png", folder.metrics(), title=f"{policy}, {reader.name}")
    _say({**facts, "model": str(folder.model)}, "retrm judge train", as_json=json)


def _reader(name: str, wording: Path | None) -> "JudgeTemplate":
    from retrm.judges.registry import get_template

    return get_template(name, wording=wording)


def _check_trainable(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Before a teacher is paid: what trains on its traces later has to be there."""
    from retrm.finetuning.language_model import LoraOptions, check_trainers
    from retrm.finetuning.sft import SftOptions

    check_trainers()
    options_of(SftOptions, settings.get("sft", {}), "sft")
    options_of(LoraOptions, settings.get("lora", {}), "lora")


def _writer(name: str, url: str | None, dtype: str, device: str) -> "JudgeModel":
    from retrm.judges.asking import EndpointJudgeModel, LocalJudgeModel

    if url is not None:
        return EndpointJudgeModel(url, name)
    from retrm.backbone.load import load_backbone

    return LocalJudgeModel(load_backbone(name, dtype=dtype, device=device))


def _rule(
    reader: "JudgeTemplate",
    values: Mapping[str, Any],
    consistency: str,
    url: str | None,
    output: Path,
    dtype: str,
    device: str,
) -> Any:
    from retrm.finetuning.consistency import JudgeConsistency, RuleConsistency
    from retrm.finetuning.rewards import R1RewardReward, reward_rule

    known = reward_rule(reader)
    if not isinstance(known, R1RewardReward):
        return options_of(type(known), values, "reward")
    check: Any = None
    if consistency == "rule":
        check = RuleConsistency()
    elif consistency != "none":
        from retrm.judges.cache import ReplyCache

        check = JudgeConsistency(
            _writer(consistency, url, dtype, device), cache=ReplyCache(output / "consistency.jsonl")
        )
    made = options_of(R1RewardReward, values, "reward")
    return R1RewardReward(check, made.consistency_scale, made.weight)


def _collected(
    pairs: "list[LabelledPair]",
    writer: "JudgeModel",
    reader: "JudgeTemplate",
    options: "CollectOptions",
    folder: "RunFolder",
    *,
    repairer: "JudgeModel | None" = None,
) -> "Collected":
    from retrm.files import check_writable, write_json
    from retrm.finetuning.collect import collect
    from retrm.judges.cache import ReplyCache

    check_writable(folder.path)
    with progress("judging") as report:
        made = collect(
            *(pairs, writer, reader),
            options=options,
            repairer=repairer,
            cache=ReplyCache(folder.path / "replies.jsonl"),
            on_progress=lambda done: report(done, max(done, len(pairs)), ""),
        )
    write_json(folder.path / "collected.json", made.as_dict())
    err.print(
        f"{len(made.traces):,} traces of {len(pairs):,} pairs, {made.repaired:,} of them repaired; "
        f"{len(made.failed):,} pairs without one"
    )
    return made


def _train_sft(
    traces: Any,
    model: str,
    reader: "JudgeTemplate",
    folder: "RunFolder",
    settings: Mapping[str, Mapping[str, Any]],
    dtype: str,
    device: str,
    found: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    from retrm.finetuning.language_model import LoraOptions
    from retrm.finetuning.sft import SftOptions, train_on_traces

    facts = train_on_traces(
        *(traces, model, reader, folder),
        options=options_of(SftOptions, settings.get("sft", {}), "sft"),
        lora=options_of(LoraOptions, settings.get("lora", {}), "lora"),
        dtype=dtype,
        device=device,
    )
    _say({**found, **facts, "model": str(folder.model)}, "retrm judge", as_json=as_json)


def _say(facts: Mapping[str, Any], title: str, *, as_json: bool) -> None:
    if as_json:
        print_json(dict(facts))
        return
    shown = {key: value for key, value in facts.items() if not isinstance(value, list | dict)}
    out.print(table(title, ("what", "value"), [(key, str(value)) for key, value in shown.items()]))
