"""Keeping functions out of torch's graphs, without importing torch's compiler, which takes a second, before it runs."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def outside_graphs(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function that reads numbers off tensors: torch.compile runs it in Python, between two graphs.

    What `torch.compiler.disable` does, which imports the compiler where it stands.
    """

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if torch.compiler.is_compiling():
            disabled: Callable[Parameters, Result] = torch.compiler.disable(function)
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return run
