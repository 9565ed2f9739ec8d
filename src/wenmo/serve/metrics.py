"""What the server counts and measures, in the text format of Prometheus.

In: answers from the guard, events of the engines; at a scrape, how the engines stand. Out: one page of text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from wenmo.engine import Engine, Event
from wenmo.engine.request import Listener
from wenmo.serve.gate import Gate

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# name, whether it only grows, what it is, how an engine is asked for it
_OF_ENGINES: tuple[tuple[str, bool, str, Callable[[Engine], float]], ...] = (
    ("wenmo_engine_waiting", False, "Requests that wait for room.", lambda each: len(each.scheduler.waiting)),
    ("wenmo_engine_running", False, "Requests that write.", lambda each: len(each.scheduler.running)),
    ("wenmo_engine_cache_used_tokens", False, "Tokens that the taken slots can hold.",
     lambda each: each.slots.used_tokens),
    ("wenmo_engine_cache_tokens", False, "Tokens that all slots may hold.", lambda each: each.slots.budget_tokens),
    ("wenmo_engine_preemptions", True, "Requests that gave way to others.", lambda each: each.num_preempted),
    ("wenmo_engine_prefix_hit_tokens", True, "Tokens of prompts that were known from before.",
     lambda each: each.prefixes.hits_tokens),
    ("wenmo_engine_guessed_tokens", True, "Tokens guessed ahead.",
     lambda each: 0 if each.speculation is None else each.speculation.num_drafted),
    ("wenmo_engine_guessed_right_tokens", True, "Guessed tokens that came true.",
     lambda each: 0 if each.speculation is None else each.speculation.num_accepted),
)


class Metrics:
    """`engines` and `computed_by` (served.py): of the models that are loaded, by name, asked at each scrape. A registry
    of its own: two servers in one process do not mix."""

    def __init__(self, gate: Gate, engines: Callable[[], Mapping[str, Engine]] = dict,
                 computed_by: Callable[[], Mapping[str, Mapping[str, str]]] = dict) -> None:
        self.gate, self.engines, self.computed_by = gate, engines, computed_by
        self.registry = CollectorRegistry()
        self._requests = Counter("wenmo_requests", "Answered requests.", ["route", "status"], registry=self.registry)
        self._request_seconds = Histogram("wenmo_request_seconds", "From a request's arrival to the answer's end.",
                                          ["route"], buckets=_SECONDS, registry=self.registry)
        self._read = Counter("wenmo_prompt_tokens", "Tokens of prompts.", ["model"], registry=self.registry)
        self._written = Counter("wenmo_written_tokens", "Tokens written.", ["model"], registry=self.registry)
        self._first = Histogram("wenmo_first_token_seconds", "From a prompt's arrival to its first token.", ["model"],
                                buckets=_SECONDS, registry=self.registry)
        self._between = Histogram("wenmo_between_tokens_seconds", "From one piece of text to the next.", ["model"],
                                  buckets=_SECONDS, registry=self.registry)
        self.registry.register(_Now(self))

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def listen(self, model: str, prompt_tokens: int, listener: Listener) -> Listener:
        """A listener for `Engine.submit` that measures, and passes every event on."""
        first, between = self._first.labels(model), self._between.labels(model)
        written, began, last = self._written.labels(model), time.perf_counter(), 0.0
        self._read.labels(model).inc(prompt_tokens)

        def measured(event: Event) -> None:
            nonlocal last
            now = time.perf_counter()
            if event.text or event.ids:
                if last:
                    between.observe(now - last)
                else:
                    first.observe(now - began)
                last = now
            if event.completion is not None:
                written.inc(len(event.completion.ids))
            listener(event)

        return measured

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Now(Collector):
    """How things stand at the moment of a scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        gate = self.metrics.gate
        yield GaugeMetricFamily("wenmo_requests_inside", "Requests at work or waiting.", value=len(gate.inside))
        yield GaugeMetricFamily("wenmo_draining", "1 while the server stops.", value=int(gate.draining))
        native = GaugeMetricFamily("wenmo_native_steps", "1 where native steps compute it, 0 where torch does.",
                                   labels=["model", "what"])
        for model, whose in self.metrics.computed_by().items():
            for what, by in whose.items():
                native.add_metric([model, what], int(by == "native"))
        yield native
        engines = dict(self.metrics.engines())
        for name, grows, what, asked in _OF_ENGINES:
            family = (CounterMetricFamily if grows else GaugeMetricFamily)(name, what, labels=["model"])
            for model, engine in engines.items():
                family.add_metric([model], asked(engine))
            yield family
