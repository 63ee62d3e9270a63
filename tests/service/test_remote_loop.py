"""The loop closed: what our own remote scorers read from our own server are the offline scores.

Every form in which clients send an answer arrives at the one rendering: messages, rendered text with its
BOS, without it, with its prompt beside it, ids.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from classifiers import save_classifier
from listening import listening
from scored import reward_model
from tiny import tiny_model, tiny_tokenizer

from retrm.backbone.base import Fingerprint
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.features.recipe import Recipe
from retrm.records import Answer, Message, Prompt
from retrm.scorers.base import Scorer
from retrm.scorers.remote import DIALECTS, RemoteScorer
from retrm.scorers.sequence_classifier import SequenceClassifier
from retrm.service.app import create_app
from retrm.service.core import Service
from retrm.service.models import Registry

ELHSR = Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="float32")
TALK = Prompt((Message("user", "hi"), Message("assistant", "Hello."), Message("user", "2 + 2?")))
ANSWERS = [
    Answer.of("2 + 2?", "4"),
    Answer.of("2 + 2?", "It is 4, since 2 + 2 = 4."),
    Answer.of("Say something in Japanese", "日本 🙂 é"),
    Answer(TALK, "\n\nFour,\nI think. ", TALK.key),
    Answer(Prompt((Message("system", "Be brief."), Message("user", "2 + 2?"))), "4", "s"),
]
TOLERANCE = 1e-5


def backbone_of(*, has_bos: bool, counts_end: bool = True) -> TransformersBackbone:
    renderer = ChatRenderer(tiny_tokenizer(has_bos=has_bos), counts_end=counts_end)
    return TransformersBackbone(tiny_model(), renderer, Fingerprint("", "", "", ""), "tiny")


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    """Heads and classifiers over tokenizers with and without a BOS."""
    made: dict[str, Scorer] = {}
    for mark in ("", "_bos"):
        backbone = backbone_of(has_bos=bool(mark))
        made[f"gated{mark}"] = reward_model(backbone, ELHSR, "gated")
        made[f"last{mark}"] = reward_model(backbone, Recipe(), seed=1)
        folder = tmp_path_factory.mktemp(f"classifier{mark}")
        save_classifier(folder, has_bos=bool(mark))
        made[f"classifier{mark}"] = SequenceClassifier.load(str(folder))
    uncounted = backbone_of(has_bos=True, counts_end=False)
    made["uncounted"] = reward_model(uncounted, Recipe(pooling="mean", counts_end=False), seed=2)
    return made


@pytest.fixture(scope="module")
def url(scorers: dict[str, Scorer]) -> Iterator[str]:
    with listening(create_app(Service(Registry.of(scorers)))) as address:
        yield address


NAMES = (
    "gated", "last", "classifier", "gated_bos", "last_bos", "classifier_bos", "uncounted",
)  # fmt: skip


# POLAR's engines compare with a reference, which these models do not: tests/unit/test_polar_scorer.py.
CHATS = tuple(name for name in DIALECTS if not name.startswith("polar"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dialect", CHATS)
def test_b09_every_remote_scorer_reads_the_offline_scores(scorers, url, dialect, name):
    address = url
    if dialect == "openrlhf":
        address = f"{url}/get_reward?model={name}"
    renderer = ChatRenderer(tiny_tokenizer(has_bos="bos" in name or name == "uncounted"))
    remote = RemoteScorer(
        dialect, address, renderer=renderer, served_model=name, concurrency=4, retries=0
    )
    offline = scorers[name].score(ANSWERS)

    assert len(set(np.round(offline, 6))) == len(ANSWERS)
    np.testing.assert_allclose(remote.score(ANSWERS), offline, rtol=TOLERANCE, atol=TOLERANCE)
