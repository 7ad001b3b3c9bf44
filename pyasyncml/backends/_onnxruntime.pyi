from os import PathLike
from typing import Any

def open_library(path: str | PathLike[str], debug: bool, /) -> Any: ...
def settings(
    graph_optimization_level: int,
    mem_pattern: int,
    cpu_mem_arena: int,
    items: tuple[tuple[int, str, str], ...],
    /,
) -> Any: ...
