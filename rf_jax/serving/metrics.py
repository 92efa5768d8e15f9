"""Metrics in Prometheus' format."""

import jax.monitoring
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    generate_latest,
)
from starlette.requests import Request
from starlette.responses import Response

_COMPILED = '/jax/core/compile/backend_compile_duration'


class Metrics:
    """Counters of one server."""

    def __init__(self):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU time, open files
        self.requests = self._counter('requests', 'Requests by path and status.', ['path', 'code'])
        self.tokens = self._counter('tokens', 'Text tokens that were generated.')
        self.images = self._counter('images', 'Images that were generated.')
        self.compilations = self._counter('compilations', 'Programs that were compiled.')
        self._running = Gauge(
            'rf_jax_running', 'Conversations and images under way.', registry=self._registry
        )
        self._waiting = Gauge(
            'rf_jax_waiting', 'Jobs that wait, one per choice or image.', registry=self._registry
        )
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _counter(self, name: str, text: str, labels: list[str] | tuple = ()) -> Counter:
        return Counter(f'rf_jax_{name}', text, labels, registry=self._registry)

    def _compiled(self, event: str, seconds: float, **_) -> None:
        if event == _COMPILED:
            self.compilations.inc()

    def route(self, worker):
        """The handler of /metrics."""

        async def metrics(request: Request) -> Response:
            self._running.set(worker.running)
            self._waiting.set(worker.waiting)
            return Response(generate_latest(self._registry), media_type='text/plain; version=0.0.4')

        return metrics
