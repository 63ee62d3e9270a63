"""Texts of policies: prefixes, plans, drawing and its resumption, cleaning, the manifest."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_tiny

from retrm.backbone.generate import continue_ids
from retrm.backbone.load import load_backbone
from retrm.backbone.sampled import Sampled
from retrm.errors import (
    ArtifactError,
    DataError,
    EndpointError,
    FormatError,
    OverlongError,
    RecipeError,
)
from retrm.finetuning.comparisons import load_comparisons
from retrm.finetuning.corpus import Prefixes, read_prefixes
from retrm.finetuning.policies import Policy, read_policies
from retrm.finetuning.run_folder import RunFolder
from retrm.finetuning.synthesis import (
    SynthesisOptions,
    plan,
    synthesise,
    without_loop,
    without_tail,
)

NAMES = ("a", "b", "c")
POLICIES = tuple(
    Policy(name=name, model="m", temperature=1 + i / 10) for i, name in enumerate(NAMES)
)
PREFIXES = Prefixes(tuple(f"prefix {i}" for i in range(40)), {"texts": 40}, "sha")
OPTIONS = SynthesisOptions(n_pairs=12, n_test=4, hold_out=("c",))


class Writer:
    """Writes who it is; remembers how often it was asked, and dies when told to."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.n = 0
        self.dies_after = dies_after

    def __call__(self, policy, texts, n):
        for place, text in enumerate(texts):
            for number in range(n):
                if self.n == self.dies_after:
                    raise KeyboardInterrupt
                self.n += 1
                yield Sampled(f" {policy.name} {text} {number}.", (1, 2), True, None, place, number)


# ------------------------------------------------------------------------------------------------ prefixes


def test_text_files_give_prefixes_within_their_paragraphs(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(
        "one two three four five six\n\nshort\n\none two three four five six\n\n" + "w " * 50
    )
    found = read_prefixes(path, words=(2, 4), seed=3)

    assert found.counts == {"texts": 4, "too_short": 1, "repeated": found.counts["repeated"]}
    for text in found.texts:
        assert 2 <= len(text.split()) <= 4
        assert "one two three four five six".startswith(text) or set(text.split()) == {"w"}
    assert read_prefixes(path, words=(2, 4), seed=3) == found


def test_records_give_the_named_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a b c", "body": "d e f"}, {"text": "g h i", "body": "j k l"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert set(read_prefixes(path, words=(2, 2)).texts) == {"a b", "g h"}
    assert set(read_prefixes(path, words=(2, 2), column="body").texts) == {"d e", "j k"}
    assert set(read_prefixes(path, is_whole=True).texts) == {"a b c", "g h i"}
    with pytest.raises(FormatError, match="no column title; the columns are text, body"):
        read_prefixes(path, column="title")


def test_a_corpus_of_short_texts_is_refused(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("too short")
    with pytest.raises(DataError, match="none of 1 texts is longer than 16 words"):
        read_prefixes(path)
    with pytest.raises(RecipeError, match="5 to 2 words"):
        read_prefixes(path, words=(5, 2))


# ------------------------------------------------------------------------------------------------ policies


def test_policies_have_the_papers_settings_where_nothing_is_said(tmp_path):
    path = tmp_path / "policies.toml"
    path.write_text('[policies.a]\nmodel = "x"\n[policies.b]\nmodel = "x"\ntemperature = 0.7\n')
    first, second = read_policies(path)

    assert (first.temperature, first.top_p, first.top_k) == (1.0, 0.9, 50)
    assert (second.name, second.temperature) == ("b", 0.7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[policies.a]\nmodel = "x"\n', "got 1 policies"),
        ('[policies.a]\nmodel = "x"\n[policies.b]\nmodel = "x"\n', "a and b are the same"),
        ('[policies.a]\nmodel = "x"\ntemprature = 1\n', "Did you mean 'temperature'"),
        ('[policies.a]\nmodel = "x"\ntemperature = 0\n', "are the same; use"),
        ("[policies.a]\ntemperature = 1\n", "policy a has no model"),
        ('[policies.a]\nmodel = "x"\ntop_p = 2\n', "top_p=2"),
        ('[policies."a/b"]\nmodel = "x"\n', "names a file"),
        ("[policies.a]\nmodel = 3\n", "model is 3"),
        ('[policy.a]\nmodel = "x"\n', "expected tables"),
        ("policies", "no valid TOML"),
    ],
)
def test_bad_policies_are_refused(tmp_path, text, said):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        read_policies(tmp_path / "p.toml")


def test_an_adapter_of_an_endpoint_is_refused():
    with pytest.raises(RecipeError, match="an adapter and an endpoint"):
        Policy(name="a", model="m", adapter="x", endpoint="http://x")


# ------------------------------------------------------------------------------------------------- planning


def test_every_ordered_pair_writes_equally_often_and_no_prefix_twice():
    rows = plan(PREFIXES.texts, POLICIES, replace(OPTIONS, hold_out=(), n_pairs=18, n_test=0))
    pairs = [(row.first, row.second) for row in rows]

    # 18 rows of 6 ordered pairs.
    assert all(pairs.count(pair) == 3 for pair in set(pairs))
    assert len(set(pairs)) == 6
    assert len({row.prefix for row in rows}) == 18


def test_held_out_policies_write_for_their_own_split_only():
    rows = plan(PREFIXES.texts, POLICIES, OPTIONS)

    assert [row.split for row in rows].count("held_out") == 4
    for row in rows:
        assert ("c" in (row.first, row.second)) == (row.split == "held_out")


def test_impossible_plans_are_refused():
    with pytest.raises(DataError, match="40 different prefixes for 108 rows"):
        plan(PREFIXES.texts, POLICIES, replace(OPTIONS, n_pairs=100))
    with pytest.raises(RecipeError, match="no policy 'd'"):
        plan(PREFIXES.texts, POLICIES, replace(OPTIONS, hold_out=("d",)))
    with pytest.raises(RecipeError, match="1 of 3 policies are left"):
        plan(PREFIXES.texts, POLICIES, replace(OPTIONS, hold_out=("b", "c")))


# -------------------------------------------------------------------------------------------------- drawing


def test_rows_say_who_wrote_what_and_are_read_by_training(tmp_path):
    manifest = synthesise(PREFIXES, POLICIES, RunFolder(tmp_path), options=OPTIONS, write=Writer())

    rows = load_comparisons(tmp_path / "train.jsonl").rows
    assert len(rows) == 12
    assert manifest["rows"] == {"train": 12, "test": 4, "held_out": 4}
    for row in rows:
        first, second = row.policies
        assert row.reference.text == f" {first} {row.prompt} 0."
        assert row.reference.wrapper == "pretrain"
        assert row.chosen == f" {first} {row.prompt} 1."
        assert row.rejected == f" {second} {row.prompt} 0."
    assert manifest["pairs"]["train"] == {"a | b": 6, "b | a": 6}
    # Each row has three texts.
    assert sum(one["n_texts"] for one in manifest["policies"].values()) == 60
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize("dies_after", [0, 1, 7, 33])
def test_a_killed_run_goes_on_without_drawing_again(tmp_path, dies_after):
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    synthesise(PREFIXES, POLICIES, whole, options=OPTIONS, write=Writer())
    with pytest.raises(KeyboardInterrupt):
        synthesise(PREFIXES, POLICIES, killed, options=OPTIONS, write=Writer(dies_after))
    for path in (killed.path / "drawn").glob("*.jsonl"):
        path.write_text(path.read_text() + '{"row": 1, "te')  # a line that the kill cut short
    rest = Writer()
    synthesise(PREFIXES, POLICIES, killed, options=OPTIONS, write=rest)

    # 60 texts in all; a pair of texts of which one was drawn is drawn again.
    assert 60 - dies_after <= rest.n <= 61 - dies_after
    for name in ("train.jsonl", "test.jsonl", "held_out.jsonl", "manifest.json"):
        assert (whole.path / name).read_bytes() == (killed.path / name).read_bytes()
    again = Writer()
    synthesise(PREFIXES, POLICIES, killed, options=OPTIONS, write=again)
    assert again.n == 0


def test_another_synthesis_in_the_folder_is_refused(tmp_path):
    synthesise(PREFIXES, POLICIES, RunFolder(tmp_path), options=OPTIONS, write=Writer())
    with pytest.raises(ArtifactError, match="options"):
        options = replace(OPTIONS, seed=1)
        synthesise(PREFIXES, POLICIES, RunFolder(tmp_path), options=options, write=Writer())


def test_equal_and_empty_texts_are_left_out_and_counted(tmp_path):
    def write(policy, texts, n):
        for place, text in enumerate(texts):
            for number in range(n):
                said = "" if policy.name == "a" and text == "prefix 0" else "same."
                own = said if text in ("prefix 0", "prefix 1") else f"{policy.name} {number}."
                yield Sampled(own, None, True, None, place, number)

    options = replace(OPTIONS, hold_out=(), n_pairs=40, n_test=0)
    counts = synthesise(PREFIXES, POLICIES, RunFolder(tmp_path), options=options, write=write)[
        "counts"
    ]
    assert counts.get("dropped_equal", 0) + counts.get("dropped_empty", 0) == 2

    def mute(policy, texts, n):
        for place in range(len(texts)):
            yield from (Sampled("same", None, True, None, place, number) for number in range(n))

    with pytest.raises(DataError, match="no row is left"):
        synthesise(PREFIXES, POLICIES, RunFolder(tmp_path / "mute"), options=options, write=mute)


def test_an_unknown_wrapper_is_refused():
    with pytest.raises(DataError, match="expected sft"):
        SynthesisOptions(wrapper="chat")


# ------------------------------------------------------------------------------------------- real policies


def test_local_policies_continue_the_text_itself(tmp_path):
    save_tiny(tmp_path / "one", "llama", has_bos=True)
    save_tiny(tmp_path / "two", "llama", seed=1)
    policies = (
        Policy(name="one", model=str(tmp_path / "one")),
        Policy(name="told", model=str(tmp_path / "one"), before="Once. "),
        Policy(name="two", model=str(tmp_path / "two"), temperature=0.8),
    )
    options = SynthesisOptions(n_pairs=6, n_test=0, max_new_tokens=6)
    manifest = synthesise(PREFIXES, policies, RunFolder(tmp_path / "out"), options=options)

    found = manifest["policies"]
    assert found["one"]["weights"] == found["told"]["weights"] != found["two"]["weights"]
    assert all(1 <= one["n_tokens"] <= 6 * one["n_texts"] for one in found.values())
    again = synthesise(PREFIXES, policies, RunFolder(tmp_path / "again"), options=options)
    assert again["rows"] == manifest["rows"]
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == (
        tmp_path / "again" / "train.jsonl"
    ).read_bytes()


def test_chats_are_answered_where_that_is_asked_for(tmp_path):
    save_tiny(tmp_path / "one", "llama")
    policies = (
        Policy(name="one", model=str(tmp_path / "one")),
        Policy(name="cold", model=str(tmp_path / "one"), temperature=0.7, before="Be brief."),
    )
    options = SynthesisOptions(n_pairs=4, n_test=0, max_new_tokens=6, wrapper="sft")
    synthesise(PREFIXES, policies, RunFolder(tmp_path / "out"), options=options)

    assert load_comparisons(tmp_path / "out" / "train.jsonl").wrappers == ("sft",)


def test_an_adapter_changes_what_is_written_and_a_strange_one_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = save_tiny(tmp_path / "one", "llama")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    policies = (
        Policy(name="plain", model=str(tmp_path / "one")),
        Policy(name="adapted", model=str(tmp_path / "one"), adapter=str(tmp_path / "adapter")),
    )
    options = SynthesisOptions(n_pairs=4, n_test=0, max_new_tokens=6)
    manifest = synthesise(PREFIXES, policies, RunFolder(tmp_path / "out"), options=options)
    assert manifest["policies"]["adapted"]["adapter"] == str(tmp_path / "adapter")

    missing = (policies[0], replace(policies[1], adapter=str(tmp_path / "one")))
    with pytest.raises(RecipeError, match="holds no adapter"):
        synthesise(PREFIXES, missing, RunFolder(tmp_path / "bad"), options=options)


def test_an_endpoint_that_is_not_there_ends_the_run_and_keeps_what_was_drawn(tmp_path, monkeypatch):
    from retrm.finetuning import synthesis

    def gone(*args, **kwargs):
        raise EndpointError("gone")

    monkeypatch.setattr("retrm.backbone.endpoint.continue_endpoint", gone)
    save_tiny(tmp_path / "one", "llama")
    policies = (
        Policy(name="one", model=str(tmp_path / "one")),
        Policy(name="served", model="zzz", endpoint="http://127.0.0.1:1"),
    )
    options = SynthesisOptions(n_pairs=4, n_test=0, max_new_tokens=4)
    with pytest.raises(EndpointError, match="gone"):
        synthesis.synthesise(PREFIXES, policies, RunFolder(tmp_path / "out"), options=options)
    assert len((tmp_path / "out" / "drawn" / "one.jsonl").read_text().splitlines()) == 4


def test_continuing_ids_reads_no_template(tmp_path):
    save_tiny(tmp_path, "llama")
    backbone = load_backbone(str(tmp_path))
    ids = tuple(backbone.renderer.tokenizer("ab")["input_ids"])
    (one,) = continue_ids(backbone, [ids], max_new_tokens=4, seed=1)

    assert len(one.token_ids) <= 4
    with pytest.raises(OverlongError, match="exceeds the context of 256"):
        continue_ids(backbone, [ids * 130], max_new_tokens=4)


# ------------------------------------------------------------------------------------------------- cleaning


def test_of_a_loop_one_turn_is_kept():
    assert without_loop("Yes. no no no no") == "Yes. no"
    assert (
        without_loop("It was so. I am here. I am here. I am here. I am") == "It was so. I am here."
    )
    # Twice is no loop, and a repetition that ends is none either.
    assert without_loop("so so") == "so so"
    assert without_loop("no no no no but yes") == "no no no no but yes"


def test_the_tail_behind_the_last_sentence_is_cut():
    assert without_tail('He said "Go." And the') == 'He said "Go."'
    assert without_tail("1.5 metres and") == "1.5 metres and"
    assert without_tail("a line\nanother") == "a line"


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "c."]), max_size=12))
def test_cleaning_twice_is_cleaning_once_and_only_shortens(words):
    text = " ".join(words)
    once = without_loop(text)

    assert text.startswith(once)
    assert without_tail(without_tail(text)) == without_tail(text)
    assert bool(once) == bool(text)
