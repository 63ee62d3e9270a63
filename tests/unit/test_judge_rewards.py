"""What judgements earn, by the worked examples of the three papers; and whether words fit the verdict."""

import pytest
from judge_training import RIGHT

from retrm.errors import EndpointError, RecipeError
from retrm.finetuning.consistency import JudgeConsistency, RuleConsistency
from retrm.finetuning.rewards import (
    R1RewardReward,
    RmR1Reward,
    UnifiedRewardThinkReward,
    is_r1_format,
    reward_rule,
)
from retrm.judges.cache import Reply
from retrm.judges.registry import TEMPLATES, get_template

A, B = "<answer>[[A]]</answer>", "<answer>[[B]]</answer>"


def earned(rule, output, label="first"):
    return rule([output], [label])[0].reward


@pytest.mark.parametrize(
    ("output", "reward"),
    [
        (f"... {A}", 1),
        (f"{A} or {B}", -1),
        ("no tag", -1),
        (A + "x" * 100, -1),  # the tag lies outside of the last 80 characters
        ("[[A]]", -1),
        (f"{A} not [[B]]", 1),  # only the exact tag counts
        (f"<eval>{B}</eval>" + "y" * 80 + A, 1),  # the other tag lies further ahead
        ("", -1),
    ],
)
def test_rm_r1_pays_for_the_exact_tag_at_the_end(output, reward):
    assert earned(RmR1Reward(), output) == reward


@pytest.mark.parametrize("output", [f"x {A}", f"x {B}", "nothing", f"{A}{B}"])
def test_swapping_label_and_tags_leaves_the_reward_of_rm_r1(output):
    mirrored = output.replace("[[A]]", "[[C]]").replace("[[B]]", "[[A]]").replace("[[C]]", "[[B]]")
    assert earned(RmR1Reward(), output) == earned(RmR1Reward(), mirrored, "second")


THINK = "<think>t</think>"
SAYS = "<answer>Answer 1 is better</answer>"


@pytest.mark.parametrize(
    ("output", "reward"),
    [
        (THINK + SAYS, 2),
        (f"Sure! {THINK}{SAYS}", 1),  # not from its start
        (f"{THINK}<answer>Answer 1</answer>", 1),  # another text
        ("Answer 1 is better", 1),  # no tags, the sentence alone
        (f"{THINK}{SAYS} and more", 2),  # text behind is allowed
        (f"{THINK}{SAYS}<answer>Answer 2 is better</answer>", 2),  # the first block counts
        ("", 0),
        (f"{THINK}\n\n{SAYS}", 2),  # white space between the blocks is allowed
        (f"{THINK}<answer>Answer 1 is better.</answer>", 1),  # letter by letter
        (f"{THINK}<answer>Answer 2 is better</answer>", 1),  # form alone
    ],
)
def test_unified_reward_think_pays_for_form_and_accuracy(output, reward):
    assert earned(UnifiedRewardThinkReward(), output) == reward


def test_totals_are_rewarded_only_when_asked_for():
    lines = (
        "1. Semantic accuracy: Answer 1 (9/10) - a; Answer 2 (7/10) - b\n"
        "2. Correctness: Answer 1 (8/10) - a; Answer 2 (7/10) - b\n"
        "Total score:\nAnswer 1: 9+8=17\nAnswer 2: 7+7=14\n"
    )
    right, against = (
        f"<think>\n{lines}</think><answer>Answer {k} is better</answer>" for k in (1, 2)
    )
    with_totals = UnifiedRewardThinkReward(totals_weight=0.25)

    assert earned(UnifiedRewardThinkReward(), right) == 2
    assert earned(with_totals, right) == 2.25
    # 17 to 14 speaks for the first, the verdict for the second: still 2 if that is the label
    assert earned(with_totals, against, "second") == 2


SAME = "<think>Response 1 is better.</think><answer>1</answer>"
OTHER = "<think>Response 2 is better.</think><answer>1</answer>"


class Unknown:
    name = "unknown"

    def __call__(self, outputs, verdicts):
        return [None] * len(outputs)


@pytest.mark.parametrize(
    ("rule", "output", "label", "reward"),
    [
        (R1RewardReward(), SAME, "first", 2.0),  # 1 (1 + 0.5) + 0.5
        (R1RewardReward(consistency=Unknown()), SAME, "first", 1.5),
        (R1RewardReward(), OTHER, "first", 1.0),  # 1 (1 - 0.5) + 0.5
        (R1RewardReward(), SAME, "second", 0.5),  # wrong, whatever the consistency
        (R1RewardReward(), OTHER, "second", 0.5),
        (R1RewardReward(), SAME.replace("><answer", "> <answer"), "first", 1.5),  # no format
        (R1RewardReward(consistency_scale="01"), OTHER, "first", 1.5),  # paper: 1 (1 + 0) + 0.5
        (R1RewardReward(consistency_scale="01"), SAME, "first", 2.0),
        (R1RewardReward(consistency=None), SAME, "first", 1.5),
        (R1RewardReward(), "", "first", 0.0),
        (R1RewardReward(), "((1)", "first", 0.0),  # the released matcher pays 1.0 where it fails
    ],
)
def test_r1_reward_table(rule, output, label, reward):
    assert earned(rule, output, label) == reward


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("<think>a</think><answer>1</answer>", True),
        ("<think>a</think> <answer>1</answer>", False),
        ("<think>a</think><answer>1</answer>\n", False),
        (" <think>a</think><answer>1</answer>", False),
        ("<think>a</think><answer>1</answer><answer>1</answer>", False),
        ("<think>a<think>b</think><answer>1</answer>", False),
        ("<answer>1</answer><think>a</think>", False),
    ],
)
def test_format_of_r1_reward(output, expected):
    assert is_r1_format(output) is expected


LAST_WORDS = [
    # (words, verdict 1, verdict 2): True = the words say so
    ("Response 1 is better.", True, False),
    ("Response 2 is better.", False, True),
    ("Overall, response 1 is better than response 2.", True, False),
    ("Response 2 is worse than Response 1.", True, False),
    ("Response 1 is not better.", False, True),
    ("Both responses 1 and 2 are good.", False, False),
    ("Response 1 and Response 2 are equally good.", False, False),
    ("Neither Response 1 nor Response 2 helps.", False, False),
    ("Response 1 is long. Response 2 is better.", False, True),
    ("Response 1 is better. I am sure", True, False),
    ("Response 1 has 3.5 items and is better.", True, False),
    ("Response 1 is wrong, it says 5.", False, True),
    ("Response 2 is the preferred one.", False, True),
    ("Response 1 wins.", True, False),
    ("Response 1 is superior to Response 2.", True, False),
    ("Answer 2 is better.", False, True),
    ("RESPONSE 1 IS BETTER", True, False),
    ("Response 1 isn't right.", False, True),
    ("Response 1 mentions tea.", False, False),
    ("It is hard to say.", False, False),
    ("", False, False),
    ("1 is better.", False, False),
    ("Response 3 is better.", False, False),
    ("Response 1 is better!\nSo that is it.", True, False),
]


@pytest.mark.parametrize(("words", "first", "second"), LAST_WORDS)
def test_the_rule_reads_the_last_sentence_that_names_a_response(words, first, second):
    check = RuleConsistency()
    outputs = [f"<think>{words}</think><answer>{k}</answer>" for k in (1, 2)]
    assert check(outputs, ["first", "second"]) == [first, second]
    assert check(outputs[:1], [None]) == [None]


class Scripted:
    """A judge model that says what it is told to, and counts."""

    identity = "scripted"

    def __init__(self, *says):
        self.says = list(says)
        self.n_asked = 0

    def ask(self, requests, sampling, on_reply):
        for i, request in enumerate(requests):
            for number in request.numbers:
                self.n_asked += 1
                on_reply(i, number, Reply(self.says.pop(0)))


def test_a_consistency_judge_is_asked_once_for_equal_words():
    model = Scripted("1", "0")
    check = JudgeConsistency(model)

    assert check([SAME, OTHER, SAME], ["first", "first", "first"]) == [True, False, True]
    assert check([SAME], ["first"]) == [True]
    assert model.n_asked == 2


def test_a_consistency_judge_that_cannot_be_read_three_times_is_unknown():
    model = Scripted("hm", "well", "who knows")
    assert JudgeConsistency(model)([SAME], ["first"]) == [None]
    assert model.n_asked == 3
    assert JudgeConsistency(Scripted("hm", "1"))([SAME], ["first"]) == [True]


def test_an_unreachable_consistency_judge_pays_nothing():
    class Dead:
        identity = "dead"

        def ask(self, requests, sampling, on_reply):
            raise EndpointError("no route")

    rule = R1RewardReward(consistency=JudgeConsistency(Dead()))
    with pytest.raises(EndpointError, match="no route"):
        rule([SAME], ["first"])
    # Nothing right, nobody asked.
    assert earned(rule, SAME, "second") == 0.5


def test_tags_in_the_last_words_do_not_reach_the_consistency_judge():
    seen = []

    class Listening(Scripted):
        def ask(self, requests, sampling, on_reply):
            seen.extend(requests)
            super().ask(requests, sampling, on_reply)

    JudgeConsistency(Listening("1"))(
        ["<think>a\n<|im_end|>b\nc</think><answer>1</answer>"], ["first"]
    )
    (request,) = seen
    assert "<|im_end|>" not in request.messages[0].content
    assert "Response 1 is better." in request.messages[0].content


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_has_its_reward(name):
    template = get_template(name)
    rule = reward_rule(template)
    assert name.startswith(rule.name)
    assert rule.settings["rule"] == rule.name


def test_a_template_without_a_reward_is_refused():
    class Own:
        name = "mine"

    with pytest.raises(RecipeError, match="no reward is known for the template 'mine'"):
        reward_rule(Own())


def test_an_unknown_scale_is_refused():
    with pytest.raises(RecipeError, match="consistency_scale='0'"):
        R1RewardReward(consistency_scale="0")


def test_right_traces_of_the_shared_helpers_earn_the_most():
    # They name no response, so their consistency is a mismatch: 1 (1 - 0.5) + 0.5
    assert [earned(R1RewardReward(), RIGHT[label], label) for label in RIGHT] == [1.0, 1.0]
