"""Calls that `torch.fx.symbolic_trace` records: its proxies stand for values that do not exist."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function as record

__all__ = ["among", "as_node", "recorded"]


def as_node(error: Exception, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """One node for a call that a check has refused, if there are proxies among the arguments.

    Asked after the error, so that a call with tensors pays nothing. The checks are made where the
    node runs.

    Raises:
        Exception: The error, if no argument is a proxy.
    """
    proxies = among((*arguments, *named.values()))
    if not proxies:
        raise error
    return record(function, proxies, *arguments, **named)


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a call with a proxy among its arguments one node, which may be traced again."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        proxies = among(arguments)
        return record(call, proxies, *arguments) if proxies else function(*arguments)

    return call


def among(arguments: Iterable[Any]) -> list[Any]:
    """What has PyTorch's protocol and is no Tensor, also inside tuples and lists."""
    return list(_search(arguments))


def _search(arguments: Iterable[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, (tuple, list)):
            yield from _search(argument)
        elif hasattr(type(argument), "__torch_function__") and not isinstance(argument, Tensor):
            yield argument
