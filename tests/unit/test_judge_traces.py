"""Pairs and traces from files, collecting from a teacher, training on traces, and the verbs."""

import json
from dataclasses import replace

import pytest
from judge_training import RIGHT, TEMPLATE, pairs, policy_folder, traces

from retrm.backbone.load import load_backbone
from retrm.cli.main import main
from retrm.cli.settings import options_of
from retrm.errors import DataError, EndpointError, FormatError, LabelError, RecipeError
from retrm.finetuning.collect import CollectOptions, collect, verdict_text
from retrm.finetuning.labelled import balanced, load_pairs, load_traces, save_rows
from retrm.finetuning.policy import PolicyOptions
from retrm.finetuning.run_folder import RunFolder
from retrm.judges.cache import Reply, ReplyCache
from retrm.judges.registry import TEMPLATES, get_template

WRONG = {"first": RIGHT["second"], "second": RIGHT["first"]}


class Teacher:
    """Says what `says(messages, number)` returns; keeps what it was asked."""

    def __init__(self, says, identity="teacher"):
        self.says = says
        self.identity = identity
        self.asked = []

    def ask(self, requests, sampling, on_reply):
        for i, request in enumerate(requests):
            for number in request.numbers:
                self.asked.append(request.messages)
                said = self.says(request.messages, number)
                on_reply(i, number, said if isinstance(said, Reply) else Reply(said))


def label_of(messages):
    """The truth about a test pair: n+1 has the result that is one more than n."""
    question, first, _ = messages[0].content.split("|")
    return "first" if int(first) == int(question.split("+")[0]) + 1 else "second"


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_positions_are_balanced_over_the_whole_build():
    for n in (1, 2, 7, 10):
        chosen_first = [replace(pair, label="first") for pair in pairs(n)]
        sides = [pair.label for pair in balanced(chosen_first)]
        assert abs(sides.count("first") - sides.count("second")) <= 1


def test_preferences_become_pairs_whose_label_follows_the_place(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    found = load_pairs(lines(tmp_path / "p.jsonl", rows))

    assert [pair.label for pair in found] == ["first", "second", "first", "second"]
    for pair in found:
        better = pair.first if pair.label == "first" else pair.second
        assert better.startswith("good")


def test_pairs_that_have_an_order_keep_it(tmp_path):
    some = pairs(5)
    save_rows(tmp_path / "hard.jsonl", some)
    found = load_pairs(tmp_path / "hard.jsonl")

    assert [(p.prompt, p.first, p.second, p.label) for p in found] == [
        (p.prompt, p.first, p.second, p.label) for p in some
    ]


@pytest.mark.parametrize(
    ("row", "error", "said"),
    [
        ({"prompt": "q", "first": "a", "second": "a", "label": "first"}, DataError, "same text"),
        (
            {"prompt": "q", "first": "a", "second": " ", "label": "first"},
            DataError,
            "candidate is empty",
        ),
        ({"prompt": "q", "first": "a", "second": "b", "label": "tie"}, LabelError, "label='tie'"),
        (
            {"prompt": "q", "first": "a", "second": 3, "label": "first"},
            FormatError,
            "`first` and `second`",
        ),
    ],
)
def test_pairs_without_a_label_are_refused_with_their_line(tmp_path, row, error, said):
    good = {"prompt": "q", "first": "a", "second": "b", "label": "first"}
    with pytest.raises(error, match=said) as caught:
        load_pairs(lines(tmp_path / "p.jsonl", [good, row]))
    assert "p.jsonl:2" in str(caught.value)


def test_identical_candidates_among_preferences_are_refused(tmp_path):
    rows = [{"prompt": "q", "chosen": "same", "rejected": "same"}]
    with pytest.raises(DataError):
        load_pairs(lines(tmp_path / "p.jsonl", rows))


def test_traces_survive_a_file_and_are_read_by_their_template(tmp_path):
    save_rows(tmp_path / "t.jsonl", traces(3))
    assert [t.text for t in load_traces(tmp_path / "t.jsonl", TEMPLATE)] == [
        t.text for t in traces(3)
    ]


def test_a_trace_that_says_something_else_than_its_label_is_refused(tmp_path):
    wrong = replace(traces(1)[0], text=RIGHT["second"])
    save_rows(tmp_path / "t.jsonl", [wrong])
    with pytest.raises(DataError, match="says 'second' and its label is 'first'"):
        load_traces(tmp_path / "t.jsonl", TEMPLATE)
    save_rows(tmp_path / "t.jsonl", traces(1))
    with pytest.raises(DataError, match="no verdict tag"):
        load_traces(tmp_path / "t.jsonl", get_template("rm_r1"))


def test_traces_are_filtered_by_verdict_and_every_pair_is_accounted_for():
    def says(messages, number):
        question = messages[0].content
        if question.startswith("0"):
            return "no tags"
        if question.startswith("1"):
            return WRONG[label_of(messages)]
        if question.startswith("2"):  # right, and then cut
            return Reply(RIGHT[label_of(messages)], finished=False)
        return RIGHT[label_of(messages)]

    made = collect(pairs(6), Teacher(says), TEMPLATE)

    assert [trace.pair.prompt[0].content for trace in made.traces] == ["3+1?", "4+1?", "5+1?"]
    assert len(made.traces) + len(made.failed) == 6
    assert made.problems == {"no verdict tag": 1, "wrong verdict": 1, "cut by length": 1}
    assert made.attempts == {1: 3}


def test_difficulty_is_the_number_of_attempts_and_hard_pairs_go_to_rl():
    def says(messages, number):
        n = int(messages[0].content.split("+")[0])  # right from attempt n on
        return (RIGHT if number >= n else WRONG)[label_of(messages)]

    options = CollectOptions(attempts=3, temperature=1.0)
    made = collect(pairs(4), Teacher(says), TEMPLATE, options=options)

    assert [trace.attempts for trace in made.traces] == [1, 2, 3]
    assert made.attempts == {1: 1, 2: 1, 3: 1}
    hard = {pair.prompt[0].content for pair in made.hard()}
    assert hard == {"1+1?", "2+1?", "3+1?"}  # two attempts, three, and the one that failed


def test_a_wrong_trace_is_repaired_by_who_is_told_and_trained_on_without_the_hint():
    writer = Teacher(lambda messages, number: WRONG[label_of(messages)])
    told = Teacher(lambda messages, number: RIGHT[label_of(messages)], "told")
    made = collect(pairs(4), writer, TEMPLATE, repairer=told)

    assert made.repaired == 4
    assert made.failed == []
    for messages, pair in zip(told.asked, pairs(4), strict=True):
        assert verdict_text(TEMPLATE, pair.label) in messages[-1].content
        assert messages[-2].content == WRONG[pair.label]
    assert all(trace.attempts is None for trace in made.traces)
    assert all("told" in trace.source for trace in made.traces)
    # What is trained on is the pair as it was shown, which says nothing of the verdict.
    shown = TEMPLATE.render(
        made.traces[0].pair.prompt, made.traces[0].pair.first, made.traces[0].pair.second
    )
    assert verdict_text(TEMPLATE, made.traces[0].pair.label) not in shown[-1].content


def test_a_killed_collection_pays_for_nothing_twice(tmp_path):
    def dies(messages, number):
        if messages[0].content.startswith("3"):
            raise EndpointError("gone")
        return RIGHT[label_of(messages)]

    with pytest.raises(EndpointError):
        collect(pairs(5), Teacher(dies), TEMPLATE, cache=ReplyCache(tmp_path / "replies.jsonl"))
    lives = Teacher(lambda messages, number: RIGHT[label_of(messages)])
    made = collect(pairs(5), lives, TEMPLATE, cache=ReplyCache(tmp_path / "replies.jsonl"))

    assert len(made.traces) == 5
    assert len(lives.asked) == 2


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("label", ["first", "second"])
def test_the_verdict_that_a_repairer_is_told_is_read_as_that_verdict(name, label):
    template = get_template(name)
    assert template.parse(verdict_text(template, label)).winner == label


def test_several_attempts_without_temperature_are_refused():
    with pytest.raises(RecipeError, match="attempts=3 with temperature=0"):
        CollectOptions(attempts=3)


def test_tables_of_settings_are_strict():
    made = options_of(PolicyOptions, {"log_ratio_clamp": "none", "filter_sigma": 2}, "policy")
    assert (made.log_ratio_clamp, made.filter_sigma) == (None, 2.0)
    with pytest.raises(RecipeError, match="unknown key 'klx'"):
        options_of(PolicyOptions, {"klx": 1}, "policy")
    with pytest.raises(RecipeError, match="got kl = 'much'; expected float"):
        options_of(PolicyOptions, {"kl": "much"}, "policy")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    pytest.importorskip("trl", reason="trl is not installed")
    return str(policy_folder(tmp_path_factory.mktemp("policy")))


def ran(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in arguments])
    said = capsys.readouterr()
    return caught.value.code, said


@pytest.fixture
def files(tmp_path):
    wording = tmp_path / "wording.txt"
    wording.write_text(TEMPLATE.wording)
    save_rows(tmp_path / "traces.jsonl", traces(6))
    save_rows(tmp_path / "pairs.jsonl", pairs(8))
    (tmp_path / "c.toml").write_text(
        "[sft]\nepochs = 2\nlearning_rate = 1e-2\nbatch_size = 3\ndevice_batch = 3\nmax_length = 200\n"
    )
    (tmp_path / "r.toml").write_text(
        "[reinforce]\nsteps = 2\nbatch_size = 4\ndevice_batch = 4\nupdates = 1\nmax_new_tokens = 4\n"
        "[policy]\nfilter_sigma = 'none'\n"
    )
    return tmp_path


def test_cold_start_learns_the_traces_and_train_goes_on_from_there(start, files, capsys):
    common = ("--template", "r1_reward", "--wording", files / "wording.txt", "--json")
    code, said = ran(
        *(
            capsys,
            "judge",
            "cold-start",
            files / "pairs.jsonl",
            "--model",
            start,
            "-o",
            files / "cold",
        ),
        *("--traces", files / "traces.jsonl", "--config", files / "c.toml", *common),
    )
    facts = json.loads(said.out)

    assert code == 0, said.err
    assert facts["steps"] == 4  # 6 traces x 2 epochs / 3
    assert facts["loss"][-1] < facts["loss"][0]
    assert load_backbone(facts["model"]).name

    code, said = ran(
        *(
            capsys,
            "judge",
            "train",
            files / "pairs.jsonl",
            "--model",
            facts["model"],
            "-o",
            files / "rl",
        ),
        *("--config", files / "r.toml", *common),
    )
    assert code == 0, said.err
    assert json.loads(said.out)["steps"] == 2
    assert (files / "rl" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((files / "rl" / "config.json").read_text())["policy"]["filter_sigma"] is None
    assert len(RunFolder(files / "rl").metrics()) == 2


def test_reject_splits_pairs_into_traces_and_failures(start, files, capsys):
    code, said = ran(
        *(
            capsys,
            "judge",
            "reject",
            files / "pairs.jsonl",
            "--model",
            start,
            "-o",
            files / "reject",
        ),
        *(
            "--template",
            "r1_reward",
            "--wording",
            files / "wording.txt",
            "--config",
            files / "c.toml",
        ),
    )
    # A random model never writes a verdict: all pairs go to RL, and there is nothing to train on.
    assert code == 2
    assert "no trace to train on" in said.err
    assert len((files / "reject" / "failed.jsonl").read_text().splitlines()) == 8
    assert json.loads((files / "reject" / "collected.json").read_text())["traces"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("judge", "trian"), "train"),
        (
            ("judge", "train", "x.jsonl", "--model", "m", "-o", "o", "--policy", "ppo"),
            "unknown policy 'ppo'",
        ),
        (
            ("judge", "train", "x.jsonl", "--model", "m", "-o", "o", "--template", "rmr1"),
            "unknown judge template",
        ),
        (("judge", "cold-start", "x.jsonl", "--model", "m", "-o", "o"), "either --teacher"),
    ],
)
def test_mistakes_are_told_before_any_work(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, output = ran(capsys, *arguments)
    assert code == 2
    assert said in output.err
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_is_too_long_is_refused_and_not_cut(start, tmp_path):
    from retrm.finetuning.sft import SftOptions, train_on_traces

    with pytest.raises(DataError, match="more than max_length=20"):
        train_on_traces(
            *(traces(2), start, TEMPLATE, RunFolder(tmp_path)), options=SftOptions(max_length=20)
        )
