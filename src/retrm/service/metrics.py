"""What Prometheus is told; names follow vLLM's where it has them, with `retrm:` in place of `vllm:`.

    retrm:requests_total{dialect, status}         every reply
    retrm:refused_requests_total{reason}          busy, deadline, not_ready, gone, access, page, too_large
    retrm:items_total{model}                      items that were judged
    retrm:prompt_tokens_total{model}              tokens of their texts
    retrm:truncated_items_total{side}             items that were cut to fit
    retrm:skipped_items_total                     items left out as over-long
    retrm:num_requests_waiting, _running          items in the queue, and in the pass under way
    retrm:waiting_tokens                          tokens in the queue
    retrm:pass_items, retrm:pass_tokens           of a forward pass
    retrm:pass_seconds                            of a forward pass
    retrm:request_queue_time_seconds              until the pass of an item begins
    retrm:request_inference_time_seconds          of that pass
    retrm:e2e_request_latency_seconds             of a request that was judged
    retrm:model_info{model, head_id, backbone}    1 for each served model

No label comes from a request, so nobody can make their number grow.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from retrm.service.batching import Outcome, PassFacts, QueueFacts
from retrm.service.items import Judged, ServedModel

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


class ServiceMetrics:
    """Counts of one server; two servers in a process do not share them.

    Args:
        models: that are served.
        queue: asked for the queue whenever the metrics are read.
    """

    def __init__(self, models: Iterable[ServedModel], queue: Callable[[], QueueFacts]) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Replies by protocol and status.", "dialect", "status"
        )
        self._refused = self._counter(
            "refused_requests", "Requests without scores, by reason.", "reason"
        )
        self._items = self._counter("items", "Items judged.", "model")
        self._tokens = self._counter("prompt_tokens", "Tokens of the items judged.", "model")
        self._truncated = self._counter("truncated_items", "Items cut to fit the context.", "side")
        self._skipped = self._counter("skipped_items", "Items left out as over-long.")
        self._gauge("num_requests_waiting", "Items in the queue.", lambda: queue().waiting_items)
        self._gauge("num_requests_running", "Items in the pass.", lambda: queue().running_items)
        self._gauge("waiting_tokens", "Tokens in the queue.", lambda: queue().waiting_tokens)
        self._pass_items = self._histogram("pass_items", "Items of a forward pass.", _COUNTS)
        self._pass_tokens = self._histogram("pass_tokens", "Tokens of a forward pass.", _TOKENS)
        self._pass_s = self._histogram("pass_seconds", "Seconds of a forward pass.", _SECONDS)
        self._wait_s = self._histogram(
            "request_queue_time_seconds", "Seconds until an item's pass begins.", _SECONDS
        )
        self._forward_s = self._histogram(
            "request_inference_time_seconds", "Seconds of an item's pass.", _SECONDS
        )
        self._whole_s = self._histogram(
            "e2e_request_latency_seconds", "Seconds of a judged request.", _SECONDS
        )
        info = Gauge(
            *("retrm:model_info", "1 for each served model."),
            labelnames=("model", "head_id", "backbone"),
            registry=self._registry,
        )
        for model in models:
            info.labels(model.name, model.head_id, model.backbone).set(1)

    def replied(self, dialect: str, status: int) -> None:
        """A reply was sent."""
        self._requests.labels(dialect, str(status)).inc()

    def refused(self, reason: str) -> None:
        """A request got no scores, for a reason that is not its content."""
        self._refused.labels(reason).inc()

    def passed(self, facts: PassFacts) -> None:
        """A forward pass is over."""
        self._pass_items.observe(facts.n_items)
        self._pass_tokens.observe(facts.n_tokens)
        self._pass_s.observe(facts.elapsed_s)

    def judged(
        self, model: str, judged: Sequence[Judged], outcomes: Sequence[Outcome], elapsed_s: float
    ) -> None:
        """A request was judged."""
        kept = [one for one in judged if one.score is not None]
        self._items.labels(model).inc(len(kept))
        self._tokens.labels(model).inc(sum(one.n_tokens for one in kept))
        self._skipped.inc(len(judged) - len(kept))
        for one in judged:
            if one.truncation is not None:
                self._truncated.labels(one.truncation.side).inc()
        for outcome in outcomes:
            self._wait_s.observe(outcome.wait_s)
            self._forward_s.observe(outcome.forward_s)
        self._whole_s.observe(elapsed_s)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"retrm:{name}", what, labelnames=labels, registry=self._registry)

    def _gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        Gauge(f"retrm:{name}", what, registry=self._registry).set_function(value)

    def _histogram(self, name: str, what: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"retrm:{name}", what, buckets=buckets, registry=self._registry)
