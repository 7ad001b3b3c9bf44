from os import PathLike
from typing import Any

def open_library(path: str | PathLike[str], debug: bool, /) -> Any: ...
