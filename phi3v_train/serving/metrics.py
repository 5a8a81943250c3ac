"""Counts of a server for Prometheus."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from phi3v_train.serving.answerer import Answerer

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds of the histogram of answers, which may have a thousand tokens."""


class Metrics:
    """Counts of requests, tokens and seconds, and the lengths of the answerer's queues."""

    def __init__(self, answerer: Answerer) -> None:
        self.registry = CollectorRegistry()
        make = partial(Counter, registry=self.registry)
        self.requests = make("phi3v_requests", "Requests for answers, by status of the response.", ["status"])
        self.prompt_tokens = make("phi3v_prompt_tokens", "Tokens of prompts, image tokens included.")
        self.answer_tokens = make("phi3v_answer_tokens", "Tokens of answers.")
        self.seconds = Histogram(
            "phi3v_request_seconds", "Time from request to last token.", registry=self.registry, buckets=SECONDS
        )
        waiting = Gauge("phi3v_waiting", "Requests whose answer has not begun.", registry=self.registry)
        waiting.set_function(lambda: answerer.num_waiting)
        running = Gauge("phi3v_running", "Requests that are being answered.", registry=self.registry)
        running.set_function(lambda: answerer.num_running)

    def count(self, status: int) -> None:
        """Count a request for an answer by the status of its response."""
        self.requests.labels(str(status)).inc()

    def text(self) -> bytes:
        """All counts in Prometheus' text format."""
        return generate_latest(self.registry)
