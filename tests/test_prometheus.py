"""Models as Prometheus metrics."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import pyasyncml as ml
from pyasyncml.integrations.prometheus import PrometheusCollector
from pyasyncml.testing import echo

prometheus_client = pytest.importorskip("prometheus_client")


@pytest.fixture
def registry():
    return prometheus_client.CollectorRegistry()


def value(registry, name, model="echo", **labels):
    labels = {"model": model, "backend": "echo", **labels}
    return registry.get_sample_value(f"pyasyncml_{name}", labels)


def test_metrics_are_what_stats_and_health_say(run):
    async def main():
        registry = prometheus_client.CollectorRegistry()
        collector = PrometheusCollector(registry)
        queue = ml.Queue(max_rows=4, when_full="reject")
        async with await echo(queue=queue) as model:
            collector.add(model)
            model.hold()
            futures = [model.infer(np.zeros(8))]
            await model.begun(1)
            futures += [model.infer(np.zeros(8)) for _ in range(3)]
            futures.append(model.infer(np.zeros(8), timeout=0.01))
            rejected = model.infer(1)
            assert value(registry, "pending_rows") == 4
            assert value(registry, "pending_bytes") == 4 * 64
            assert value(registry, "running") == 1
            assert value(registry, "longest_run_seconds") > 0
            assert value(registry, "oldest_wait_seconds") > 0
            await asyncio.wait(futures[-1:])
            futures[1].cancel()
            model.fail(1)
            model.release()
            await asyncio.gather(*futures, rejected, return_exceptions=True)
            stats = model.stats()
            assert value(registry, "request_success_total") == 2
            for reason in ("backend", "cancelled", "expired", "rejected"):
                count = value(registry, "request_failure_total", reason=reason)
                assert (reason, count) == (reason, 1)
            assert value(registry, "inference_rows_total") == stats.rows
            assert value(registry, "inference_runs_total") == stats.runs
            assert value(registry, "queue_duration_seconds_total") == stats.waited > 0
            assert value(registry, "compute_infer_duration_seconds_total") == sum(
                stats.busy
            )
            assert value(registry, "batch_release_total", reason="alone") == 3
            assert value(registry, "pending_rows") == 0
            assert value(registry, "pending_bytes") == 0
            assert value(registry, "instances_alive") == 1
            assert value(registry, "healthy") == 1
            tokens = registry.get_sample_value("pyasyncml_cpu_tokens")
            assert tokens == stats.cpu_total
            assert registry.get_sample_value("pyasyncml_cpu_tokens_held") >= 0
        assert value(registry, "healthy") == 0

    run(main)


def test_padding_is_counted_in_cells(run):
    async def main():
        registry = prometheus_client.CollectorRegistry()
        collector = PrometheusCollector(registry)
        pad = ml.Pad({"length": {0: 1}}, outputs={"length": {0: 1}})
        batching = ml.Batching(pad=pad, buckets={"length": (8,)})
        async with await echo(batching=batching) as model:
            collector.add(model)
            await model.infer(np.zeros((1, 6)))
            assert value(registry, "input_cells_total") == 8
            assert value(registry, "padding_cells_total") == 2
            stats = model.stats()
            assert (stats.cells, stats.padding_cells) == (8, 2)
            assert stats.padding_waste == 0.25

    run(main)


def test_requests_that_run_inline_count_as_any_other(run, registry):
    async def main():
        batching = ml.Batching(max_rows=8)
        async with await echo(inline_below=0.5, batching=batching) as model:
            PrometheusCollector(registry).add(model)
            while model.stats().inlined < 3:
                await model.infer(np.zeros((2, 3)))
            stats = model.stats()
            assert value(registry, "inline_requests_total") == 3
            assert value(registry, "request_success_total") == stats.submitted
            assert value(registry, "inference_runs_total") == stats.submitted
            assert value(registry, "inference_rows_total") == 2 * stats.submitted
            seconds = value(registry, "compute_infer_duration_seconds_total")
            assert seconds == sum(stats.busy) + stats.inlined_seconds > sum(stats.busy)

    run(main)


def test_reload_sets_no_counter_back(run):
    async def main():
        registry = prometheus_client.CollectorRegistry()
        collector = PrometheusCollector(registry)
        async with await echo() as model:
            collector.add(model)
            for n in range(1, 5):
                await model.infer(1)
                await model.reload()
                assert value(registry, "request_success_total") == n
                assert value(registry, "inference_runs_total") == n

    run(main)


def test_time_in_the_queue_adds_up(run):
    async def main():
        async with await echo(delay=0.01) as model:
            await asyncio.gather(*(model.infer(n) for n in range(5)))
            assert model.stats().waited >= 0.9 * (1 + 2 + 3 + 4) * 0.01
            before = model.stats().waited
            await model.infer(5)
            assert before <= model.stats().waited < before + 5

    run(main)


def test_models_are_told_apart_and_held_weakly(run, registry):
    collector = PrometheusCollector(registry)

    async def main():
        async with await echo(name="a") as a, await echo(name="b") as b:
            collector.add(a)
            collector.add(b)
            collector.add(b)
            await a.infer(1)
            assert value(registry, "request_success_total", "a") == 1
            assert value(registry, "request_success_total", "b") == 0

    run(main)
    gc.collect()
    assert value(registry, "request_success_total", "a") is None
    assert b"{" not in prometheus_client.generate_latest(registry)


def test_two_open_models_of_one_name_are_refused(run, registry):
    async def main():
        collector = PrometheusCollector(registry)
        async with await echo() as first:
            collector.add(first)
            async with await echo() as second:
                with pytest.raises(ValueError, match="a model named 'echo' already"):
                    collector.add(second)
                await first.close()
                collector.add(second)
                await second.infer(1)
                assert value(registry, "request_success_total") == 1

    run(main)


def test_what_is_no_model_is_refused(registry):
    with pytest.raises(TypeError, match="model: expected a Model, got int"):
        PrometheusCollector(registry).add(5)


def test_second_collector_in_one_registry_is_refused(registry):
    PrometheusCollector(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusCollector(registry)


def test_default_registry_is_the_library_s():
    collector = PrometheusCollector()
    try:
        assert collector in prometheus_client.REGISTRY._collector_to_names
    finally:
        prometheus_client.REGISTRY.unregister(collector)


def test_scrapes_from_another_thread_while_it_serves_and_reloads(
    run, registry, quick_switches
):
    async def main():
        collector = PrometheusCollector(registry)
        async with await echo() as model:
            collector.add(model)
            stop = threading.Event()

            def scrape():
                pages = 0
                while not stop.is_set() or not pages:
                    page = prometheus_client.generate_latest(registry).decode()
                    assert re.search(
                        r'^pyasyncml_request_success_total\{backend="echo",model="echo"',
                        page,
                        re.M,
                    )
                    pages += 1
                return pages

            scraping = asyncio.ensure_future(asyncio.to_thread(scrape))
            for n in range(10):
                reload = asyncio.ensure_future(model.reload())
                await asyncio.gather(*(model.infer(n) for n in range(100)), reload)
            stop.set()
            assert await scraping > 0
            assert value(registry, "request_success_total") == 1000

    run(main)


def test_library_is_imported_only_when_it_is_used():
    program = """
import sys
sys.modules["prometheus_client"] = None  # not to be had
from pyasyncml.integrations.prometheus import PrometheusCollector
try:
    PrometheusCollector()
except ImportError as error:
    assert "pip install 'pyasyncml[prometheus]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_guide_names_every_metric(registry):
    guide = Path(__file__).parent.parent.joinpath("docs", "guide.md").read_text()
    collector = PrometheusCollector(registry)
    for metric in collector.describe():
        name = metric.name + ("_total" if metric.type == "counter" else "")
        assert f"`{name}`" in guide
        assert f"`{name}`" in PrometheusCollector.__doc__
