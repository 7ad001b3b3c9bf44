"""The notebook runs from its first cell to its last in a real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.torch

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")


def test_every_cell_of_the_notebook_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=100).execute()
    results = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]
    assert results[-1].count("requests per second") == 1
    assert "100" in results
