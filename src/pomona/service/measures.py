"""What the service counts of itself, as Prometheus reads it.

In: requests and photos as they are done. Out: the text of `/metrics`.
Why: whoever runs a service must see that it is slow before its users say so. Nothing leaves the machine unless asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from pomona.service.lanes import Lanes, Said
    from pomona.service.live import LiveBundle

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Measures:
    """Counts of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pomona_requests", "Requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self._request_s = Histogram(
            "pomona_request_seconds", "Seconds a request.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._photos = Counter(
            "pomona_photos", "Photos, by outcome: known, unknown, or why not.", ["outcome"], registry=self.registry
        )
        self._stage_s = Histogram(
            "pomona_stage_seconds", "Seconds a photo, by stage.", ["stage"], buckets=_SECONDS, registry=self.registry
        )

    def watch(self, lanes: Lanes, live: LiveBundle) -> None:
        """Let what is asked of the parts when `/metrics` is read be among it."""
        self.registry.register(_Asked(lanes, live))

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that is done."""
        self._requests.labels(route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def count_photo(self, seconds: dict[str, float], said: Said) -> None:
        """Count a photo that is done."""
        outcome = said.fault or ("unknown" if said.prediction.unknown else "known")
        self._photos.labels(outcome).inc()
        for stage, took_s in seconds.items():
            self._stage_s.labels(stage).observe(took_s)

    def write(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class _Asked:
    """What is known by the parts themselves."""

    def __init__(self, lanes: Lanes, live: LiveBundle) -> None:
        self.lanes, self.live = lanes, live

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("pomona_waiting_photos", "Photos that wait.", self.lanes.n_waiting)
        yield CounterMetricFamily(
            "pomona_worker_restarts", "Processes that decode which were replaced.", self.lanes.n_restarts
        )
        yield GaugeMetricFamily("pomona_model_version", "Number of the bundle that answers.", self.live.version)
        yield GaugeMetricFamily("pomona_ready", "Whether it is warm.", float(self.live.is_ready))
