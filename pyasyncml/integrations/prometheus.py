"""Models as Prometheus metrics: `pip install 'pyasyncml[prometheus]'`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..model import Health, Model, Stats

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

__all__ = ["PrometheusCollector"]

_LABELS = ("model", "backend")

_Number = Callable[[Stats, Health], float]
_Numbers = Callable[[Stats, Health], dict[str, int]]

_COUNTERS: tuple[tuple[str, str, _Number], ...] = (
    (
        "request_success",
        "Requests whose run succeeded.",
        lambda stats, _: stats.completed,
    ),
    (
        "inference_rows",
        "Rows that were run; without batching a request is one.",
        lambda stats, _: stats.rows,
    ),
    ("inference_runs", "Runs of the backend.", lambda stats, _: stats.runs),
    (
        "queue_duration_seconds",
        "Time that requests were in the queue, added up.",
        lambda stats, _: stats.waited,
    ),
    (
        "compute_infer_duration_seconds",
        "Time in the backend, of all runs, added up.",
        lambda stats, _: sum(stats.busy) + stats.inlined_seconds,
    ),
    (
        "inline_requests",
        "Requests that were run where infer was called, among all that were run.",
        lambda stats, _: stats.inlined,
    ),
    (
        "input_cells",
        "Elements of inputs that may be padded, padding included.",
        lambda stats, _: stats.cells,
    ),
    (
        "padding_cells",
        "Elements of inputs that were padding.",
        lambda stats, _: stats.padding_cells,
    ),
)

_COUNTERS_BY_REASON: tuple[tuple[str, str, _Numbers], ...] = (
    (
        "request_failure",
        "Requests that got no result.",
        lambda stats, _: {
            "backend": stats.failed,
            "cancelled": stats.cancelled,
            "expired": stats.expired,
            "rejected": stats.rejected,
        },
    ),
    (
        "batch_release",
        "Runs by the reason why they began.",
        lambda stats, _: stats.releases,
    ),
)

_GAUGES: tuple[tuple[str, str, _Number], ...] = (
    (
        "pending_rows",
        "Rows that wait for a run, parked ones included; without batching a request "
        "is one.",
        lambda stats, _: stats.waiting,
    ),
    (
        "parked_rows",
        "Rows past the queue's bound, that wait to be let in.",
        lambda stats, _: stats.parked,
    ),
    (
        "pending_bytes",
        "Inputs of the requests that wait.",
        lambda stats, _: stats.waiting_bytes,
    ),
    ("running", "Instances in a run.", lambda stats, _: stats.running),
    ("healthy", "1: ready, and not failing.", lambda _, health: health.ok),
    (
        "instances_alive",
        "Instances that serve.",
        lambda _, health: health.instances_alive,
    ),
    (
        "oldest_wait_seconds",
        "Age of the oldest request in the queue.",
        lambda _, health: health.oldest_wait,
    ),
    (
        "longest_run_seconds",
        "Age of the run that is longest under way.",
        lambda _, health: health.longest_run,
    ),
)

_PROCESS_GAUGES: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    (
        "cpu_tokens_held",
        "CPU tokens that instances hold, of all models of the process.",
        lambda stats: stats.cpu_held,
    ),
    (
        "cpu_tokens",
        "CPU tokens that there are for the process.",
        lambda stats: stats.cpu_total,
    ),
)


class PrometheusCollector:
    """Reads `stats()` and `health()` of models when Prometheus scrapes.

    Requests pay nothing for it. Models are held weakly: one that was collected is no
    longer told of. `registry`: where to register, prometheus_client's default one if
    None; ``registry.unregister(collector)`` ends it. Like every custom collector, it
    tells of its own process only.

    The metrics have the labels `model` (its name) and `backend`. These mean what
    Triton's do, in seconds where those are in microseconds:

    - `pyasyncml_request_success_total`: `nv_inference_request_success`
    - `pyasyncml_request_failure_total`, by `reason` (backend, cancelled, expired,
      rejected): `nv_inference_request_failure`
    - `pyasyncml_inference_rows_total`: `nv_inference_count`
    - `pyasyncml_inference_runs_total`: `nv_inference_exec_count`
    - `pyasyncml_queue_duration_seconds_total`: `nv_inference_queue_duration_us`
    - `pyasyncml_compute_infer_duration_seconds_total`:
      `nv_inference_compute_infer_duration_us`, but of runs: Triton adds a run up for
      each request that shared it
    - `pyasyncml_pending_rows`: `nv_inference_pending_request_count`, but in rows

    Without an equal there: `pyasyncml_inline_requests_total` (requests that were run
    where `infer` was called; in the above as any other), `pyasyncml_parked_rows` (those
    of the pending rows that are past the queue's bound), `pyasyncml_pending_bytes`,
    `pyasyncml_running` (instances),
    `pyasyncml_batch_release_total` (runs by the `reason` why they began, see `Stats`),
    `pyasyncml_input_cells_total` and `pyasyncml_padding_cells_total` (elements of
    inputs that may be padded, and the padding among them), `pyasyncml_healthy` (0 or
    1), `pyasyncml_instances_alive`, `pyasyncml_oldest_wait_seconds`,
    `pyasyncml_longest_run_seconds`; and of the process, without labels,
    `pyasyncml_cpu_tokens_held` and `pyasyncml_cpu_tokens`. A request that is cancelled
    or expires in its run counts there, and in what became of the run. A reload sets no
    counter back.

    Raises `ImportError` without prometheus_client, and `ValueError` (its own
    ``DuplicateTimeseries``) where the registry has a collector of these names already.

    >>> import asyncio
    >>> from prometheus_client import CollectorRegistry
    >>> from pyasyncml.testing import echo
    >>> registry = CollectorRegistry()
    >>> collector = PrometheusCollector(registry)
    >>> async def main():
    ...     async with await echo() as model:
    ...         collector.add(model)
    ...         await model.infer(1.0)
    ...         return registry.get_sample_value(
    ...             "pyasyncml_request_success_total",
    ...             {"model": "echo", "backend": "echo"},
    ...         )
    >>> asyncio.run(main())
    1
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise ImportError(
                "PrometheusCollector needs prometheus_client: "
                "pip install 'pyasyncml[prometheus]'"
            ) from error
        self._lock = threading.Lock()
        self._models: dict[str, weakref.ref[Model]] = {}
        (prometheus_client.REGISTRY if registry is None else registry).register(self)

    def add(self, model: Model) -> None:
        """Tell of this model from now on.

        Raises `TypeError` for what is no `Model`, and `ValueError` if another of that
        name is told of and open: its numbers would be mixed with this one's.
        """
        if not isinstance(model, Model):
            raise TypeError(f"model: expected a Model, got {type(model).__name__}")
        with self._lock:
            known = self._models.get(model.name)
            other = known() if known is not None else None
            if other is not None and other is not model and not other._closing:
                raise ValueError(
                    f"there is a model named {model.name!r} already: give one of them "
                    "a name of its own, load(..., name=...)"
                )
            self._models[model.name] = weakref.ref(model)

    def describe(self) -> Iterator[Metric]:
        """The metrics without samples: what the registry asks for once."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """The metrics now. Thread: any."""
        told = []
        with self._lock:
            for name, known in list(self._models.items()):
                model = known()
                if model is None:
                    del self._models[name]
                else:
                    told.append((model.name, model.stats(), model.health()))
        return self._families(told)

    def _families(
        self, told: list[tuple[str, Stats, Health]] | tuple[()]
    ) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, text, number in _COUNTERS:
            counter = CounterMetricFamily(f"pyasyncml_{name}", text, labels=_LABELS)
            for model, stats, health in told:
                counter.add_metric((model, stats.backend), number(stats, health))
            yield counter
        for name, text, numbers in _COUNTERS_BY_REASON:
            counter = CounterMetricFamily(
                f"pyasyncml_{name}", text, labels=(*_LABELS, "reason")
            )
            for model, stats, health in told:
                for reason, count in numbers(stats, health).items():
                    counter.add_metric((model, stats.backend, reason), count)
            yield counter
        for name, text, number in _GAUGES:
            gauge = GaugeMetricFamily(f"pyasyncml_{name}", text, labels=_LABELS)
            for model, stats, health in told:
                gauge.add_metric((model, stats.backend), number(stats, health))
            yield gauge
        for name, text, of_process in _PROCESS_GAUGES:
            gauge = GaugeMetricFamily(f"pyasyncml_{name}", text)
            for _, stats, _ in told[-1:]:
                gauge.add_metric((), of_process(stats))
            yield gauge
