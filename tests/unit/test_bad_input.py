"""One table of bad inputs: what was got, what was expected and what to do is in every message.

Rows that set `needs_model=False` also prove that the mistake surfaces before any model is loaded.
"""

import contextlib
import gzip
import json
import os
from dataclasses import dataclass, field

import pytest

from retrm.cli.main import app
from retrm.data.grade import extract_key, grade_records, is_correct
from retrm.data.load import build_table, load_table
from retrm.data.read import read_records, records_of
from retrm.errors import (
    ArtifactError,
    BackboneError,
    DataError,
    FingerprintError,
    FitError,
    FormatError,
    LabelError,
    OutputError,
    OverlongError,
    RecipeError,
)


def raw(content, name="f.jsonl"):
    """Load a file that holds these bytes."""

    def call(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_table(folder / name)

    return call


def rows(*records, **options):
    """Load a file of these records."""

    def call(folder):
        path = folder / "f.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return load_table(path, **options)

    return call


def grade(record, **options):
    return lambda folder: grade_records(records_of([record]), **options)


@dataclass(frozen=True)
class Bad:
    id: str
    call: object
    error: type
    fragments: tuple = field(default=())
    needs_model: bool = False


def command(*arguments, records=(), name="f.jsonl", prepare=None):
    """Run `retrm ARGUMENTS` in a folder that holds `records`; {d} stands for the folder."""

    def call(folder):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / name).write_text(lines)
        with prepare(folder) if prepare else contextlib.nullcontext():
            app(
                [str(a).format(d=folder) for a in arguments],
                exit_on_error=False,
                result_action="return_value",
            )

    return call


def fit(*options, records=None, prepare=None):
    """Run `retrm fit` on the toy backbone, twelve mixed prompts unless told otherwise."""
    return command(
        *("fit", "{d}/f.jsonl", "--model", "fake", "-o", "{d}/out", *options),
        records=GRADED if records is None else records,
        prepare=prepare,
    )


def head(change=lambda folder: None, model="fake"):
    """Fit a head, damage its folder, and score with it."""

    def call(folder):
        fit("--method", "retrm", "--subspace", "reasoning:4")(folder)
        change(folder / "out")
        app(
            ["score", str(folder / "out"), str(folder / "f.jsonl"), "--model", model],
            exit_on_error=False,
            result_action="return_value",
        )

    return call


def edit_manifest(**values):
    def change(folder):
        path = folder / "reward_model.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def flip(name):
    def change(folder):
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(bytes(content))

    return change


@contextlib.contextmanager
def full_disk(_folder):
    with pytest.MonkeyPatch.context() as patch:

        def fsync(_handle):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", fsync)
        yield


@contextlib.contextmanager
def file_in_the_way(folder):
    (folder / "out").write_text("mine")
    yield
    assert (folder / "out").read_text() == "mine"


@contextlib.contextmanager
def toml(folder, text):
    (folder / "c.toml").write_text(text)
    yield


def gguf_cut_short(folder):
    import numpy as np
    from gguf import GGUFWriter

    path = folder / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("w", np.zeros((64, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.write_bytes(path.read_bytes()[:-1000])
    return app(
        ["fit", str(folder / "f.jsonl"), "--model", str(path), "-o", str(folder / "out")],
        exit_on_error=False,
        result_action="return_value",
    )


def with_graded(call):
    def wrapped(folder):
        (folder / "f.jsonl").write_text("".join(json.dumps(r) + "\n" for r in GRADED))
        return call(folder)

    return wrapped


def graded(n_prompts=12, labels=(True, False, True, False), text="it is {k}"):
    return [
        {
            "prompt_id": f"q{p}",
            "prompt": f"question {p}",
            "responses": [text.format(k=k) for k in range(len(labels))],
            "correct": list(labels),
        }
        for p in range(n_prompts)
    ]


GRADED = graded()
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
ONE = {"prompt": "p", "response": "r"}
MANY = {"prompt": "p", "responses": ["a", "b"]}
TURN = {"role": "user", "content": "hi"}
STRENGTH = {"prompt": "p", "response1": "a", "response2": "b", "overall_preference": 1}
GZ = gzip.compress(b'{"prompt": "p", "response": "r"}\n' * 500)

BAD = [
    # files
    Bad("missing file", lambda d: (d / "train.jsonl").write_text("") or load_table(d / "trian.jsonl"), DataError, ("trian.jsonl does not exist", "expected a data file", "Did you mean 'train.jsonl'?")),
    Bad("missing folder", lambda d: load_table(d / "no" / "f.jsonl"), DataError, ("does not exist", "The folder", "either")),
    Bad("a folder", lambda d: (d / "data.jsonl").write_text("") or load_table(d), DataError, ("is a folder", "expected one file", "Did you mean 'data.jsonl'?")),
    Bad("unread suffix", raw("a,b", "f.tsv"), DataError, ("ends in '.tsv'", "expected .jsonl", "Convert the file")),
    Bad("unread packed suffix", raw("a,b", "f.tsv.gz"), DataError, ("ends in '.tsv.gz'", "Convert the file")),
    Bad("no records", raw(""), DataError, ("f.jsonl has no records", "expected at least one", "Check how it was written")),
    Bad("empty array", raw("[]", "f.json"), DataError, ("f.json has no records", "expected at least one")),
    Bad("cut gzip", raw(GZ[: len(GZ) // 2], "f.jsonl.gz"), DataError, ("f.jsonl.gz", "damaged or cut off", "expected a whole gzip", "again")),
    Bad("no parquet", raw(b"PAR1 but not really", "f.parquet"), DataError, ("f.parquet", "not a readable Parquet file", "again")),
    Bad("bad limit", lambda d: read_records("f.jsonl", limit=-1), DataError, ("got limit=-1", "from 0 up")),
    Bad("bad hub name", lambda d: read_records("hub:"), DataError, ("got 'hub:'", "expected hub:owner/name")),
    # lines
    Bad("malformed line", raw('{"prompt": "p", "response": "r"}\n{"prompt": "p" "response": "r"}\n{}\n'), DataError, ("f.jsonl:2: malformed JSON at character 16", "expected one JSON object a line", "Mend that line")),
    Bad("truncated last line", raw('{"prompt": "p", "response": "r"}\n{"prompt": "p",'), DataError, ("f.jsonl:2: the file ends in the middle", "interrupted?", "Delete the last line")),
    Bad("pretty-printed object", raw('{\n "prompt": "p"\n}\n'), DataError, ("f.jsonl:1: the object goes on over several lines", "or one array of objects")),
    Bad("NaN literal", raw('{"prompt": "p", "response": "r", "label": NaN}\n'), DataError, ("f.jsonl:1: got the number NaN", "expected finite numbers", "Write null")),
    Bad("infinite literal", raw('\n[{"margin": -Infinity}]', "f.json"), DataError, ("f.json[0]: got the number -Infinity", "Write null")),
    Bad("number beyond all floats", raw('{"margin": 1e999}\n'), DataError, ("f.jsonl:1: got the number 1e999", "expected finite")),
    Bad("no UTF-8", raw(b'{"prompt": "p", "response": "r"}\n{"prompt": "caf\xe9"}\n'), DataError, ("f.jsonl:2: byte 16 of the line (0xe9) is not UTF-8", "expected UTF-8", "Save the file as UTF-8")),
    Bad("UTF-16", raw('{"prompt": "p"}'.encode("utf-16")), DataError, ("got UTF-16 text", "expected UTF-8", "Save it as UTF-8")),
    Bad("list as a record", raw('{"prompt": "p", "response": "r"}\n["p", "r"]\n'), DataError, ("f.jsonl:2: got a list", "expected an object")),
    Bad("number as a record", raw("[{}, 3]", "f.json"), DataError, ("f.json[0]", "fit no record format")),
    Bad("too deep", raw('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n"), DataError, ("f.jsonl:1: the record is nested too deeply", "expected a flat object")),
    Bad("array that ends early", raw('[{"prompt": "p", "response": "r"},\n', "f.json"), DataError, ("f.json[1], line 2", "ends inside the array", "interrupted?")),
    Bad("array without a comma", raw('[{"prompt": "p", "response": "r"} {}]', "f.json"), DataError, ("f.json[1], line 1", "expected a comma")),
    Bad("array with a tail", raw('[{"prompt": "p", "response": "r"}]\n\n[]', "f.json"), DataError, ("f.json[1], line 3", "text behind the closing bracket")),
    Bad("array with a broken element", raw('[{"prompt": "p", "response": "r"},\n{"prompt" "p"}]', "f.json"), DataError, ("f.json[1], line 2: malformed JSON", "Mend the file")),
    # columns
    Bad("misspelt column", rows({"prompt": "p", "choosen": "a", "rejected": "b"}), FormatError, ("f.jsonl:1: the columns 'prompt', 'choosen', 'rejected' fit no record format", "nearest is 'preference'", "Did you mean 'chosen' where the file says 'choosen'?")),
    Bad("unknown columns", rows({"foo": 1, "mesages": []}), FormatError, ("fit no record format; expected those of one of", "Did you mean 'messages'?")),
    Bad("prompt alone", rows({"prompt": "p"}), FormatError, ("fit no record format", "also needs 'response' or 'completion'", "Rename or add")),
    Bad("empty object", rows({}), FormatError, ("the columns none fit no record format", "preference")),
    Bad("two formats", rows({**MANY, "correct": [1, 0], "scores": [1, 2]}), FormatError, ("fit 2 formats (rollouts, ranked)", "expected one", "--format rollouts")),
    Bad("ratings and a label", rows({**ONE, "label": 1, "helpfulness": 3}), FormatError, ("fit 2 formats (pointwise, unpaired)", "--format")),
    Bad("formats that change", rows({**ONE, "label": 1}, ONE), FormatError, ("f.jsonl:2: the columns are those of 'unlabelled', but f.jsonl:1 is 'unpaired'", "expected one format", "--format unpaired")),
    Bad("unknown format", rows(PAIR, format="preferences"), FormatError, ("got format 'preferences'", "Did you mean 'preference'?")),
    Bad("format without its columns", rows(ONE, format="unpaired"), FormatError, ("f.jsonl:1: format 'unpaired' needs 'label'", "got the columns 'prompt', 'response'", "add the column")),
    Bad("no objective", rows({**ONE, "helpfulness": 3, "honesty": 1}), FormatError, ("got ratings helpfulness, honesty and no objective", "--attribute NAME")),
    Bad("misspelt objective", rows({**ONE, "helpfulness": 3}, attribute="helpfullness"), FormatError, ("no attribute 'helpfullness'", "Did you mean 'helpfulness'?")),
    Bad("no sign", rows(STRENGTH), FormatError, ("strength_sign=None", "'negative_first'", "look it up")),
    Bad("wrong sign", rows(STRENGTH, strength_sign="first"), FormatError, ("strength_sign='first'", "'positive_first'")),
    Bad("ranks and scores", rows({**MANY, "ranks": [1, 2], "scores": [1, 2]}), FormatError, ("got ranks and scores", "expected one of", "Leave the other out")),
    Bad("bad empty policy", rows(ONE, empty="skip"), DataError, ("got empty='skip'", "'drop'")),
    # values
    Bad("label in words", rows({**ONE, "label": "yes"}), LabelError, ("f.jsonl:1: `label` is the text 'yes'", "expected true or false", "null where it is missing")),
    Bad("label of two", rows({**ONE, "label": 2}), LabelError, ("`label` is the number 2", "--format pointwise")),
    Bad("label in a list", rows({**MANY, "correct": [True, "maybe"]}), LabelError, ("`correct[1]` is the text 'maybe'",)),
    Bad("infinite rating", lambda d: build_table(records_of([{**ONE, "helpfulness": float("inf")}]), attribute="helpfulness"), LabelError, ("rows[0]: `helpfulness` is the number inf", "finite")),
    Bad("margin in words", rows({**PAIR, "margin": "large"}), LabelError, ("`margin` is the text 'large'", "finite number")),
    Bad("empty prompt", rows({**ONE, "prompt": " \n"}), DataError, ("f.jsonl:1: `prompt` is empty", "expected what the answer replies to")),
    Bad("empty message list", rows({**ONE, "prompt": []}), DataError, ("`prompt` is an empty list", "expected a list of messages")),
    Bad("null prompt", rows({**ONE, "prompt": None}), DataError, ("`prompt` is null", "expected a list of messages")),
    Bad("empty answer", rows(PAIR, {**PAIR, "rejected": ""}), DataError, ("f.jsonl:2: `rejected` is an empty answer", "cannot be scored", "empty='drop'")),
    Bad("blank sample", rows({**MANY, "responses": ["a", " "]}), DataError, ("`responses[1]` is an empty answer",)),
    Bad("null answer", rows({**ONE, "response": None}), DataError, ("`response` is null", "expected text")),
    Bad("no answers", rows({**MANY, "responses": []}), DataError, ("`responses` is an empty list", "at least one answer")),
    Bad("half a surrogate", rows({**ONE, "response": "ab\ud800"}), DataError, ("`response` holds half of a surrogate pair at character 3", "Replace the broken escape")),
    Bad("id of another prompt", rows({**ONE, "prompt_id": "7"}, {**ONE, "prompt": "q", "prompt_id": 7}), DataError, ("f.jsonl:2: prompt_id '7' stands for another prompt than at f.jsonl:1", "ids of their own", "leave `prompt_id` out")),
    Bad("id that is no name", rows({**ONE, "prompt_id": [1]}), DataError, ("`prompt_id` is a list", "expected a text or a whole number")),
    Bad("two references", rows({**MANY, "answer": "1"}, {**MANY, "answer": "2"}), DataError, ("f.jsonl:2: the reference answer '2'", "is '1' at f.jsonl:1", "Mend one")),
    Bad("reference as a list", rows({**MANY, "answer": ["1"]}), DataError, ("`answer` is a list", "expected the reference answer as text")),
    Bad("column of another length", rows({**MANY, "finished": [True]}), DataError, ("`finished` has 1 values for 2 answers", "one each")),
    Bad("column that is no list", rows({**MANY, "correct": True}), DataError, ("`correct` is the truth value True", "one value for each of the 2 answers")),
    Bad("ids that are no numbers", rows({**MANY, "token_ids": [[1], [2, "x"]]}), DataError, ("`token_ids[1]` holds the text 'x'", "whole numbers from 0 up")),
    Bad("negative token id", rows({**MANY, "token_ids": [[1], [-1]]}), DataError, ("`token_ids[1]` holds the number -1",)),
    Bad("end that is no flag", rows({**MANY, "finished": [1, True]}), DataError, ("`finished[0]` is the number 1", "expected true, false or null")),
    Bad("log-probability as text", rows({**MANY, "logprobs": ["-1", -1]}), DataError, ("`logprobs[0]` is the text '-1'", "nats")),
    Bad("key as a number", rows({**MANY, "keys": [4, None]}), DataError, ("`keys[0]` is the number 4", "expected text")),
    Bad("missing attribute of one", rows({"prompt": "p", "completions": [{"response": "a", "annotations": {"honesty": {"Rating": "4"}}}]}, attribute="honestly"), FormatError, ("no attribute 'honestly'", "Did you mean 'honesty'?")),
    Bad("completion without a score", rows({"prompt": "p", "completions": [{"response": "a"}]}), FormatError, ("`completions[0]` has keys response", "`response` and `overall_score`")),
    # messages
    Bad("unknown role", rows({"messages": [{"role": "asistant", "content": "a"}]}), DataError, ("`messages[0]` has the unknown role 'asistant'", "Did you mean 'assistant'?")),
    Bad("unknown speaker", rows({"conversations": [{"from": "alien", "value": "a"}]}), DataError, ("unknown role 'alien'", "Choose from: system, human")),
    Bad("last turn is the user's", rows({"messages": [TURN]}), DataError, ("last message of `messages` is from 'user'", "expected the assistant", "Cut the conversation")),
    Bad("answer without a prompt", rows({"messages": [{"role": "assistant", "content": "a"}]}), DataError, ("`messages` is empty", "replies to")),
    Bad("image part", rows({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}), DataError, ("`messages[0].content` has a content part of type 'image_url'", "only parts of type 'text'", "leave such records out")),
    Bad("part that is a text", rows({"messages": [{"role": "user", "content": ["hi"]}]}), DataError, ("content part that is the text 'hi'", "type 'text'")),
    Bad("message that is a text", rows({"messages": ["hi"]}), DataError, ("`messages[0]` has the text 'hi'", "`role` and `content`")),
    Bad("message without content", rows({"messages": [{"role": "user"}]}), DataError, ("`messages[0]` has no `content`",)),
    Bad("answer that calls a tool", rows({"messages": [TURN, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}), DataError, ("calls a tool", "expected an answer in text")),
    Bad("plain texts without a prompt", rows({"chosen": "Q: 2+2? A: It is 4", "rejected": "Q: 2+2? A: It is 5"}), DataError, ("`chosen` is a plain text without a prompt", "expected a `prompt` column", "may belong to the answers")),
    Bad("tools that are no JSON", rows({**PAIR, "tools": "search"}), DataError, ("`tools` is a text that is no JSON", "JSON list")),
    Bad("tools that are no list", rows({**PAIR, "tools": {"name": "search"}}), DataError, ("`tools` is an object", "expected a list of objects")),
    Bad("template options", rows({**PAIR, "chat_template_kwargs": {"thinking": True}}), DataError, ("`chat_template_kwargs`", "expected none", "leave the column out")),
    # recipes
    Bad("unknown method", fit("--method", "elsr"), RecipeError, ("unknown method 'elsr'", "Did you mean 'elhsr'?")),
    Bad("method twice", fit("--method", "elhsr", "--method", "elhsr"), RecipeError, ("named twice",)),
    Bad("unknown layer word", fit("--layers", "first"), RecipeError, ("cannot read layers 'first'", "last4")),
    Bad("layer beyond the model", fit("--layers", "9"), RecipeError, ("layer 9 does not exist", "layers 0..3"), True),
    Bad("negative layer", fit("--layers=-1"), RecipeError, ("layer -1 does not exist", "0 = embedding output"), True),
    Bad("unknown point", fit("--point", "prenorm"), RecipeError, ("unknown point 'prenorm'", "expected one of residual, post_norm")),
    Bad("unknown subspace", fit("--subspace", "resoning:5%"), RecipeError, ("unknown subspace 'resoning:5%'", "Did you mean 'reasoning'?")),
    Bad("subspace without size", fit("--subspace", "reasoning"), RecipeError, ("need one", "reasoning:5%")),
    Bad("subspace wider than the state", fit("--subspace", "reasoning:99"), RecipeError, ("width 16", "between 1 and 15"), True),
    Bad("unknown pooling", fit("--pooling", "avg"), RecipeError, ("unknown pooling 'avg'", "last, mean, max, tokens")),
    Bad("head that cannot read the pooling", fit("--pooling", "tokens"), RecipeError, ("the linear head needs pooling=last, mean or max", "got 'tokens'")),
    Bad("unknown head", fit("--head", "linaer"), RecipeError, ("unknown head 'linaer'", "Did you mean 'linear'?")),
    Bad("unknown loss", fit("--loss", "bcee"), RecipeError, ("unknown loss 'bcee'", "Did you mean 'bce'?")),
    Bad("basis of the wrong point", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, '[recipe]\nsubspace = "reasoning:4"\nmatrix = "folded"\n')), RecipeError, ("cannot read post_norm states", "matrix=auto")),
    Bad("unknown option in the file", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, "[gradient]\nlearning_rate = 1\n")), RecipeError, ("unknown gradient option 'learning_rate'",)),
    Bad("unknown table in the file", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, "[recipes]\n")), RecipeError, ("unknown table [recipes]", "Did you mean 'recipe'?")),
    Bad("layers as a number", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, "[recipe]\nlayers = 2\n")), RecipeError, ("layers is 2", 'layers = "2"')),
    Bad("flag in words", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, '[recipe]\ncounts_end = "no"\n')), RecipeError, ("counts_end is 'no'", "true or false")),
    Bad("table that is a number", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, "recipe = 3\n")), RecipeError, ("recipe is 3", "expected a table [recipe]")),
    Bad("unknown optimizer", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, '[gradient]\noptimizer = "sgd"\n')), RecipeError, ("optimizer is 'sgd'", "adam, adamw")),
    Bad("no epochs", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, "[gradient]\nepochs = 0\n")), RecipeError, ("epochs is 0", "expected 1")),
    Bad("negative step", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, "[gradient]\nlr = -1\n")), RecipeError, ("lr is -1", "above 0")),
    Bad("broken settings file", fit("--config", "{d}/c.toml", prepare=lambda d: toml(d, "[recipe")), RecipeError, ("no valid TOML",)),
    # labels that cannot determine a head
    Bad("all right", fit(records=graded(labels=(True, True))), LabelError, ("all 24 labelled answers are right", "another difficulty")),
    Bad("all wrong", fit(records=graded(labels=(False, False))), LabelError, ("all 24 labelled answers are wrong",)),
    Bad("nothing labelled", fit(records=[ONE, {"prompt": "q", "response": "s"}]), LabelError, ("carry no labels", "retrm grade")),
    Bad("fewer prompts than folds", fit(records=graded(3)), FitError, ("got 2 prompt(s) to fit on for 3 folds", "hold fewer of them out (test_fraction)")),
    Bad("one prompt only", fit(records=graded(1)), FitError, ("all answers belong to one prompt", "prompt_id")),
    Bad("no mixed prompt for a comparing loss", fit("--loss", "pairwise_logistic", records=[*graded(6, (True, True)), *({**r, "prompt_id": r["prompt_id"] + "x", "prompt": r["prompt"] + "x"} for r in graded(6, (False, False)))]), FitError, ("no prompt has both", "use loss=bce")),
    Bad("pair loss on labels", fit("--loss", "bradley_terry"), LabelError, ("needs preference pairs", "loss=bce")),
    Bad("label loss on pairs", fit("--loss", "bce", records=[{**PAIR, "prompt": f"p{i}"} for i in range(4)]), LabelError, ("needs a right/wrong label", "loss=bradley_terry")),
    Bad("impossible share", fit("--test-fraction", "1.5"), FitError, ("test_fraction is 1.5", "expected 0")),
    # lengths
    Bad("answer beyond the context", fit(records=[*GRADED, {**GRADED[0], "prompt_id": "long", "prompt": "long", "responses": ["x" * 2000] * 4}]), OverlongError, ("f.jsonl:13", "1024"), True),
    Bad("everything skipped", fit("--overlong", "skip", records=[{**r, "prompt": r["prompt"] * 200} for r in GRADED]), OverlongError, ("48 of 48 answers were skipped", "truncate_left"), True),
    Bad("unknown length policy", fit("--overlong", "cut"), RecipeError, ("unknown policy overlong='cut'", "truncate_left")),
    # models
    Bad("unknown model", command("fit", "{d}/f.jsonl", "--model", "smolm2-135m", "-o", "{d}/out", records=GRADED), BackboneError, ("smolm2-135m", "Did you mean 'smollm2-135m'?"), True),
    Bad("folder without a model", command("fit", "{d}/f.jsonl", "--model", "{d}", "-o", "{d}/out", records=GRADED), BackboneError, ("config.json",), True),
    Bad("GGUF cut short", with_graded(gguf_cut_short), BackboneError, ("is cut short", "ownload it again"), True),
    Bad("unknown precision", fit("--dtype", "fp8"), BackboneError, ("got dtype='fp8'",), True),
    Bad("half precision", fit("--dtype", "float16"), BackboneError, ("overflows", "bfloat16"), True),
    # heads
    Bad("no such scorer", command("score", "{d}/nothing", "{d}/f.jsonl", records=[ONE]), ArtifactError, ("there is no scorer", "retrm fit")),
    Bad("folder that is no head", command("score", "{d}", "{d}/f.jsonl", records=[ONE]), ArtifactError, ("has no reward_model.json", "hf:PATH")),
    Bad("unknown format version", head(edit_manifest(format_version=7)), ArtifactError, ("format version 7", "reads version 1"), True),
    Bad("damaged weights", head(flip("head.safetensors")), ArtifactError, ("head.safetensors is damaged", "fit again"), True),
    Bad("missing weights", head(lambda f: (f / "head.safetensors").unlink()), ArtifactError, ("lacks head.safetensors",), True),
    Bad("missing self-test", head(lambda f: (f / "selftest.json").unlink()), ArtifactError, ("lacks selftest.json",), True),
    Bad("cut manifest", head(lambda f: (f / "reward_model.json").write_text("{")), ArtifactError, ("is damaged",), True),
    Bad("manifest without a method", head(lambda f: (f / "reward_model.json").write_text(json.dumps({k: v for k, v in json.loads((f / "reward_model.json").read_text()).items() if k != "method"}))), ArtifactError, ("is not complete", "method"), True),
    Bad("manifest without a backbone", head(edit_manifest(backbone={})), ArtifactError, ("is not complete", "Fit again"), True),
    Bad("unknown recipe key", head(edit_manifest(recipe={"layer": "last"})), ArtifactError, ("unknown recipe key 'layer'", "Did you mean 'layers'?"), True),
    Bad("head for another model", head(edit_manifest(backbone={"name": "other", "fingerprint": {"weights": "x", "unembedding": "x", "tokenizer": "x", "template": "x"}, "dtype": "float32", "n_layers": 3, "width": 16})), FingerprintError, ("was fitted on 'other'", "Load the backbone"), True),
    # places to write
    Bad("a file where the folder goes", fit(prepare=file_in_the_way), OutputError, ("is a file", "expected a folder")),
    Bad("a folder below a file", command("fit", "{d}/f.jsonl", "--model", "fake", "-o", "{d}/f.jsonl/out", records=GRADED), OutputError, ("f.jsonl is a file", "expected a folder")),
    Bad("full disk", fit(prepare=full_disk), OutputError, ("No space left on device", "intact", "free space")),
    Bad("rows and summary on one pipe", command("score", "shortest", "{d}/f.jsonl", "--json", records=[ONE]), RecipeError, ("add --output",)),
    # selection
    Bad("unknown rule", command("select", "shortest", "{d}/f.jsonl", "--rule", "bestofn", records=GRADED), RecipeError, ("unknown rule 'bestofn'", "Did you mean 'best_of_n'?")),
    Bad("unknown weights", command("select", "shortest", "{d}/f.jsonl", "--rule", "weighted_vote", "--vote-weights", "sofmax", records=GRADED), RecipeError, ("got vote_weights='sofmax'", "Did you mean 'softmax'?")),
    Bad("unknown objective", command("select", "objectives:brevity=shortest", "{d}/f.jsonl", "--weights", "brevty=1", records=GRADED), RecipeError, ("no objective 'brevty'", "Did you mean 'brevity'?")),
    Bad("constraint without a bound", command("select", "objectives:brevity=shortest", "{d}/f.jsonl", "--require", "brevity", records=GRADED), RecipeError, ("the constraint 'brevity'", "such as verbosity<=0.5")),
    Bad("objectives of one score", command("select", "longest", "{d}/f.jsonl", "--rule", "pareto", records=GRADED), RecipeError, ("no objectives", "--method armorm")),
    Bad("ensemble of one", command("score", "ensemble:{d}/rm", "{d}/f.jsonl", records=[ONE]), RecipeError, ("two different folders",)),
    Bad("unknown policy for empty answers", command("score", "{d}/nothing", "{d}/f.jsonl", "--empty", "skip", records=[ONE]), DataError, ("got empty='skip'", "expected 'error' or 'drop'")),
    Bad("vote without keys", command("select", "shortest", "{d}/f.jsonl", "--rule", "majority", records=GRADED), DataError, ("retrm grade",)),
    Bad("one scorer for two", command("select", "shortest", "{d}/f.jsonl", "--rule", "minmax_combination", records=GRADED), RecipeError, ("combines two scorers", "--other")),
    Bad("no scorer", command("select", "none", "{d}/f.jsonl", records=GRADED), RecipeError, ("needs a scorer",)),
    # sampling
    Bad("questions without a prompt", command("sample", "fake", "{d}/f.jsonl", "-o", "{d}/o", records=[{"promt": "p"}]), FormatError, ("'promt'", "Did you mean 'prompt'?")),
    Bad("question twice", command("sample", "fake", "{d}/f.jsonl", "-o", "{d}/o", records=[{"prompt": "p"}, {"prompt": "p"}]), DataError, ("f.jsonl:2", "stands at", "-n")),
    Bad("no questions", command("sample", "fake", "{d}/f.jsonl", "-o", "{d}/o"), DataError, ("holds no records",)),
    Bad("no answers asked for", command("sample", "fake", "{d}/f.jsonl", "-o", "{d}/o", "-n", "0", records=[{"prompt": "p"}]), RecipeError, ("n=0",)),
    Bad("no draw from the likeliest token", command("sample", "fake", "{d}/f.jsonl", "-o", "{d}/o", "--temperature", "0", "-n", "8", records=[{"prompt": "p"}]), RecipeError, ("got temperature=0 with n=8", "Use n=1")),
    Bad("impossible share of tokens", command("sample", "fake", "{d}/f.jsonl", "-o", "{d}/o", "--top-p", "1.5", records=[{"prompt": "p"}]), RecipeError, ("top_p=1.5", "(0, 1]")),
    Bad("impossible temperature", command("sample", "fake", "{d}/f.jsonl", "-o", "{d}/o", "--temperature=-1", records=[{"prompt": "p"}]), RecipeError, ("temperature=-1",)),
    # grading
    Bad("unknown grader", lambda d: extract_key("numerical", "3"), DataError, ("got grader 'numerical'", "Did you mean 'numeric'?")),
    Bad("choice without options", lambda d: extract_key("choice", "B"), DataError, ("choices=None", "expected the list of options", "column `choices`")),
    Bad("options as one text", lambda d: extract_key("choice", "B", "AB"), DataError, ("choices='AB'", "list of options")),
    Bad("equal options", lambda d: extract_key("choice", "B", ["yes", "Yes"]), DataError, ("'yes', 'Yes'", "options that differ")),
    Bad("reference that is no number", lambda d: is_correct("numeric", "3", "unknown"), DataError, ("reference answer 'unknown'", "finds no answer", "another grader")),
    Bad("reference that is no option", lambda d: is_correct("choice", None, "E", ["A", "B"]), DataError, ("reference answer 'E'", "expected one of 'A', 'B'")),
    Bad("nothing to grade by", grade(MANY, grader="exact"), DataError, ("rows[0]: there is no reference answer", "`answer`", "leave the record out")),
    Bad("no grader", grade({**MANY, "answer": "1"}), DataError, ("rows[0]: which grader", "--grader")),
    Bad("reference of a record", grade({**MANY, "answer": "?"}, grader="numeric"), DataError, ("rows[0]: got the reference answer '?'",)),
    Bad("options of a record", grade({**MANY, "answer": "A", "choices": "AB"}, grader="choice"), DataError, ("rows[0]: `choices` is the text 'AB'", "list of options")),
    Bad("nothing sampled", grade({"prompt": "p", "reponses": ["a"]}, grader="exact"), FormatError, ("expected `responses`", "Did you mean 'reponses'?")),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=[bad.id for bad in BAD])
def test_bad_input_is_refused_with_its_place_and_a_remedy(tmp_path, bad, monkeypatch):
    if not bad.needs_model:
        for module in ("retrm.backbone.remote", "retrm.backbone.load"):
            monkeypatch.setattr(f"{module}.load_backbone", must_not_be_loaded)
    with pytest.raises(bad.error) as caught:
        bad.call(tmp_path)
    message = str(caught.value)
    assert [part for part in bad.fragments if part not in message] == [], message
    # EmptyAnswerError is the one subclass that callers need not know.
    assert bad.error in (type(caught.value), type(caught.value).__bases__[0])


def must_not_be_loaded(*_args, **_options):
    raise AssertionError("a model was loaded before the mistake was found")


def test_the_table_is_long_and_says_something_of_each():
    assert len({bad.id for bad in BAD}) == len(BAD) >= 140
    assert all(bad.fragments for bad in BAD)
