"""Parity of a second engine's states: what is right passes, every planted fault is named."""

import json

import pytest
import tiny
import torch
from command_line import run
from connector import FakeVllm, record, residuals, write
from fake_engine import engine, listed

from retrm.backbone.load import load_backbone
from retrm.backbone.patient import PatientClient
from retrm.backbone.readout import Readout
from retrm.backbone.recorded import RecordedBackbone
from retrm.backbone.vllm_states import RecordedFolder, VllmServer
from retrm.cli.main import main
from retrm.doctor import Report, check_parity
from retrm.errors import DataError, EndpointError, RecipeError
from retrm.records import Answer

ALL = (0, 1, 2, 3)
NAMES = (*("tokens", "layer numbers", "final norm", "cosine", "states", "scores", "repetition"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama")
    tiny.save_tiny(made, "llama", has_bos=True)
    return made


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def texts(backbone):
    said = [("2 + 2?", "4"), ("2 + 2?", "It is four."), ("Hi", "Ho!"), ("Why?", "Because.")]
    return [backbone.renderer.render(Answer.of(q, a)).ids for q, a in said]


def parity(backbone, folder, layers=ALL, **options) -> Report:
    source = RecordedFolder(folder, layers)
    other = RecordedBackbone(Readout.of(backbone), source)
    return check_parity(backbone, other, layers=source.layers, texts=source.texts(), **options)


def changed(folder, backbone, texts, change, layers=ALL):
    """Recordings whose states went through `change`."""
    for i, ids in enumerate(texts):
        write(folder / f"{i}.safetensors", ids, change(residuals(backbone, ids, layers)).bfloat16())
    return folder


def failed(report: Report) -> set[str]:
    return {check.name for check in report.failed}


def test_bfloat16_recordings_of_the_model_itself_pass_every_check(backbone, texts, tmp_path):
    record(tmp_path, backbone, texts, ALL)
    report = parity(backbone, tmp_path)

    assert report.passed
    assert tuple(check.name for check in report.checks) == NAMES
    assert all(check.passed for check in report.checks)
    assert report.n_prompts == 4
    assert report.check("cosine").limit == 1e-3
    assert "layers 0..3" in report.check("tokens").detail


def test_recordings_that_are_left_out_are_counted(backbone, texts, tmp_path):
    # Of 6 recordings one has a single token, one is longer than the context of 256; 3 are read.
    others = [texts[0][:1], texts[0] * 30]
    assert len(others[1]) > backbone.context_length
    source = [*texts, *others]
    record(tmp_path, backbone, texts, ALL)
    made = RecordedFolder(tmp_path, ALL)
    other = RecordedBackbone(Readout.of(backbone), made)
    report = check_parity(backbone, other, layers=ALL, texts=source, n_prompts=3)

    assert report.n_prompts == 3
    assert report.check("tokens").detail.endswith(
        "3 of 6 recordings compared, left out: 2 of fewer than 2 tokens or beyond the context, "
        "1 beyond the first 3"
    )


def test_a_shift_by_one_layer_is_found_and_named(backbone, texts, tmp_path):
    # Layers 1, 2, 3 and once more 3 under the names 0 to 3: "0-based blocks".
    changed(tmp_path, backbone, texts, lambda x: x[:, [1, 2, 3, 3]])
    report = parity(backbone, tmp_path)

    assert {"layer numbers", "states"} <= failed(report)
    assert "their layer 0 (residual) to our layer 1" in report.check("layer numbers").detail
    assert "3 of 5 are nearest to another" in report.check("layer numbers").detail


def test_descending_layers_are_found(backbone, texts, tmp_path):
    changed(tmp_path, backbone, texts, lambda x: x.flip(1))

    assert {"layer numbers", "final norm", "states"} <= failed(parity(backbone, tmp_path))


def test_a_last_layer_that_was_normed_already_fails_with_the_reason(backbone, texts, tmp_path):
    head = backbone.unembedding

    def normed(x):
        last = x[:, -1]
        size = (last.square().mean(-1, keepdim=True) + head.eps).rsqrt()
        return torch.cat([x[:, :-1], (last * size * head.gain)[:, None]], dim=1)

    changed(tmp_path, backbone, texts, normed)
    report = parity(backbone, tmp_path)

    assert failed(report) == {"tokens"}
    assert "went through the final norm already" in report.check("tokens").detail


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x * 1.2, {"states"}),  # the direction and the norm's output stay
        (lambda x: x + 0.3 * x.abs().mean(), {"states", "cosine", "final norm"}),
    ],
)
def test_states_that_are_scaled_or_moved_are_found(change, found, backbone, texts, tmp_path):
    changed(tmp_path, backbone, texts, change)

    assert found <= failed(parity(backbone, tmp_path))


def test_states_of_another_model_are_found(backbone, texts, tmp_path):
    tiny.save_tiny(tmp_path / "m", "llama", seed=1, has_bos=True)
    record(tmp_path / "hs", load_backbone(str(tmp_path / "m")), texts, ALL)

    assert {"cosine", "states", "final norm"} <= failed(parity(backbone, tmp_path / "hs"))


def test_all_zeros_fail_and_nothing_is_compared(backbone, texts, tmp_path):
    changed(tmp_path, backbone, texts, torch.zeros_like)
    report = parity(backbone, tmp_path)

    assert [check.name for check in report.checks] == ["tokens"]
    assert "holds all zeros" in report.check("tokens").detail


def test_some_layers_are_compared_under_their_own_numbers(backbone, texts, tmp_path):
    record(tmp_path, backbone, texts, (1, 2))
    report = parity(backbone, tmp_path, layers=(2, 1))

    assert report.passed
    assert report.check("final norm").passed is None
    assert "layers 1, 2" in report.check("tokens").detail


def test_some_layers_under_wrong_numbers_are_found(backbone, texts, tmp_path):
    record(tmp_path, backbone, texts, (1, 2))  # recorded as 1, 2 and read as 2, 3

    assert "layer numbers" in failed(parity(backbone, tmp_path, layers=(2, 3)))


def test_states_that_change_from_request_to_request_are_found(backbone, texts, tmp_path):
    record(tmp_path, backbone, texts, ALL)
    noise = torch.Generator().manual_seed(0)

    class Unsteady(RecordedFolder):
        def states(self, wanted):
            return [
                type(own)(
                    own.ids,
                    own.states + torch.randn(own.states.shape, generator=noise).bfloat16(),
                    own.where,
                )
                for own in super().states(wanted)
            ]

    source = Unsteady(tmp_path, ALL)
    other = RecordedBackbone(Readout.of(backbone), source)

    assert "repetition" in failed(check_parity(backbone, other, texts=source.texts()))


def test_ids_that_the_model_does_not_have_are_refused(backbone, tmp_path):
    write(tmp_path / "x.safetensors", [1, 9999], torch.ones(2, 4, 16).bfloat16())

    with pytest.raises(DataError, match=r"got token id 9999; .* has 0 to 271"):
        parity(backbone, tmp_path)


def test_texts_that_do_not_fit_the_context_are_refused(backbone, tmp_path):
    write(tmp_path / "x.safetensors", [1], torch.ones(1, 4, 16).bfloat16())

    with pytest.raises(DataError, match="got 1 texts, none of 2 to 256 tokens"):
        parity(backbone, tmp_path)


def test_the_command_compares_a_server_with_the_model(folder, backbone, tmp_path, capsys):
    with engine(FakeVllm(tmp_path, backbone, ALL, delay_s=0), listed("vllm")) as running:
        code = run("doctor", folder, "--states-from", running.url, "--json")
    report = json.loads(capsys.readouterr().out)

    assert code == 0
    assert report["passed"]
    assert report["n_prompts"] == 8
    assert [check["name"] for check in report["checks"]] == list(NAMES)
    assert report["backbone"].endswith("/v1/completions")
    assert list(tmp_path.iterdir()) == []


def test_the_command_exits_with_one_where_a_folder_holds_other_states(
    folder, backbone, texts, tmp_path, capsys
):
    changed(tmp_path, backbone, texts, lambda x: x[:, [1, 2, 3, 3]])

    assert run("doctor", folder, "--states-from", tmp_path) == 1
    assert "layer numbers" in capsys.readouterr().out


def test_options_for_states_without_states_are_refused(folder):
    from retrm.cli.doctor import doctor

    with pytest.raises(RecipeError, match="say how --states-from is read"):
        doctor(str(folder), states_layers="1")
    with pytest.raises(RecipeError, match=r"states_dtype='bf16'\. Did you mean 'bfloat16'"):
        doctor(str(folder), states_from=".", states_dtype="bf16")


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model is a mistake here: it may take minutes."""

    def refused(*_args, **_options):
        raise AssertionError("loaded")

    monkeypatch.setattr("retrm.backbone.load.load_backbone", refused)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: at / "nothing", "nothing does not exist; expected a folder"),
        (lambda at: at / "file", "file is a file; expected a folder"),
        (lambda at: at, "holds no *.safetensors file"),
        (lambda _: "ftp://host/x", "got --states-from ftp://host/x; expected a server"),
    ],
)
def test_recordings_that_are_not_there_are_told_before_a_model_is_loaded(
    make, said, folder, tmp_path, capsys
):
    (tmp_path / "file").write_text("x")

    assert run("doctor", folder, "--states-from", make(tmp_path)) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("no_model")
def test_a_server_that_is_down_is_no_verdict_on_the_model(folder, monkeypatch, capsys):
    monkeypatch.setattr(PatientClient, "pause", lambda *_: None)

    assert run("doctor", folder, "--states-from", "http://127.0.0.1:9") == 2
    captured = capsys.readouterr()
    assert "did not answer GET" in " ".join(captured.err.split())
    assert "FAILED" not in captured.out + captured.err


def test_a_server_that_goes_away_between_two_texts_is_no_verdict_either(
    folder, backbone, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(VllmServer, "states", gone)
    with engine(FakeVllm(tmp_path, backbone, ALL, delay_s=0), listed("vllm")) as running:
        assert run("doctor", folder, "--states-from", running.url) == 2
    captured = capsys.readouterr()
    assert "the server went away" in captured.err
    assert "FAILED" not in captured.out


def gone(*_):
    raise EndpointError("the server went away")


def test_a_folder_of_a_server_beside_a_folder_of_files_is_refused(folder, tmp_path, capsys):
    given = ["--states-from", str(tmp_path), "--states-folder", str(tmp_path / "other")]
    with pytest.raises(SystemExit) as caught:
        main(["doctor", str(folder), *given])

    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "says where a server writes. Leave it out" in said
