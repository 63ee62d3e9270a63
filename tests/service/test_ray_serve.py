"""Two replicas behind Ray's proxy on this machine: the scores of one process, the key, the health."""

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from pydantic import ValidationError
from scored import reward_model
from tiny import save_tiny

from retrm.backbone.load import load_backbone
from retrm.errors import RecipeError
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.scorers.reward_model import RewardModel

ray = pytest.importorskip("ray", reason="needs ray: pip install 'retrm[ray]'")
serve = pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'retrm[ray]'")
ray_serve = pytest.importorskip("retrm.service.ray_serve", reason="needs the extra serve")

N_REPLICAS = 2
SOME = {"models": ["longest"], "no_token": True}


def arguments(**given):
    return ray_serve.ReplicaArguments(**{**SOME, **given})


# Without a cluster


def test_models_of_the_command_line_are_separated_by_commas():
    assert arguments(models="a,b=runs/c").models == ["a", "b=runs/c"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"models": ""}, "models"),
        ({"device": "cuda:1"}, "device"),
        ({"replicas": 0}, "replicas"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(given, named):
    with pytest.raises(ValidationError, match=named):
        arguments(**given)


def test_an_unknown_limit_is_refused_where_serve_run_was_typed():
    with pytest.raises(RecipeError, match=r"settings\.max_item\. Did you mean 'max_items'"):
        ray_serve.app(arguments(settings={"max_item": 3}))


def test_paths_are_named_from_the_root_since_replicas_work_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "head").mkdir()
    monkeypatch.chdir(tmp_path)
    told = ray_serve._with_whole_paths(
        arguments(models=["head", "m=head", "hf:head", "longest", "m=hf:none"], token_file="key")
    )

    head = tmp_path / "head"
    assert told.models == [str(head), f"m={head}", f"hf:{head}", "longest", "m=hf:none"]
    assert told.token_file == tmp_path / "key"


def test_a_replica_without_a_key_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.delenv("RETRM_TOKEN", raising=False)

    with pytest.raises(RecipeError, match=r"there is no key.*token_file=PATH.*no_token=true"):
        ray_serve._application(arguments(no_token=False))


# On a cluster


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A reward model as a user has it."""
    folder = tmp_path_factory.mktemp("served")
    save_tiny(folder / "tiny")
    recipe = Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="float32")
    made = reward_model(load_backbone(str(folder / "tiny")), recipe, "gated")
    made.with_selftest([Answer.of("2+2?", "4")]).save(folder / "head")
    return folder / "head"


@pytest.fixture(scope="module")
def url(head):
    """The address of the replicas; the cluster ends with the tests."""
    key = head.parent / "key"
    key.write_text("the-key\n")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RETRM_TOKEN", raising=False)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ray.init(
            address="local",
            num_cpus=N_REPLICAS,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            told = ray_serve.ReplicaArguments(
                models=f"tiny={head}",
                replicas=N_REPLICAS,
                token_file=key,
                settings={"drain_s": 1.0},
            )
            serve.run(ray_serve.app(told), name="retrm")
            yield f"http://127.0.0.1:{port}"
            serve.shutdown()
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def http(url):
    headers = {"authorization": "Bearer the-key"}
    with httpx.Client(base_url=url, headers=headers, timeout=120) as made:
        yield made


@pytest.mark.slow
@pytest.mark.ray
def test_all_replicas_give_the_scores_of_one_process(http, head):
    texts = [f"{'word ' * (i % 7)}{i}" for i in range(32)]

    def one(text):
        reply = http.post("/v1/reward", json={"prompt": "q", "candidates": [text]})
        return reply.json()["results"][0]["score"]

    with ThreadPoolExecutor(16) as pool:
        scores = list(pool.map(one, texts))

    offline = RewardModel.load(head).score([("q", text) for text in texts])
    np.testing.assert_allclose(scores, offline, atol=1e-5)
    (application,) = serve.status().applications.values()
    states = application.deployments["retrm"].replica_states
    assert states == {"RUNNING": N_REPLICAS}


@pytest.mark.slow
@pytest.mark.ray
def test_replicas_say_that_they_are_ready_and_what_they_serve(http):
    assert http.get("/health").json() == {"status": "ready"}
    served = http.get("/v1/models").json()["data"]
    assert [one["id"] for one in served] == ["tiny"]


@pytest.mark.slow
@pytest.mark.ray
def test_without_the_key_nothing_is_scored(url):
    body = {"prompt": "q", "candidates": ["a"]}

    assert httpx.post(f"{url}/v1/reward", json=body, timeout=60).status_code == 401
    assert httpx.get(f"{url}/health", timeout=60).status_code == 200


@pytest.mark.slow
@pytest.mark.ray
def test_mistakes_come_through_the_proxy_as_they_are(http):
    reply = http.post("/classify", json={"input": "x", "normalize": True})

    assert reply.status_code == 400
    assert "got `normalize`" in reply.json()["error"]["message"]
