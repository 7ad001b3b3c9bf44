"""The notebooks run from their first cells to their last in a real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.torch

FOLDER = Path(__file__).parent


def results_of(name: str) -> list[str]:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=100).execute()
    return [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]


def test_every_cell_of_the_notebook_runs() -> None:
    results = results_of("notebook.ipynb")
    assert results[-1].count("requests per second") == 1
    assert "100" in results


def test_a_net_is_trained_while_it_is_served_with_a_live_plot() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    last = results_of("train_while_serving.ipynb")[-1]
    assert float(last.partition("before, ")[2].split()[0]) >= 0.97
    assert "requests served meanwhile" in last
