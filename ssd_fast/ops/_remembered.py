# SPDX-License-Identifier: BSD-3-Clause
"""What options come to, remembered: a loop asks with the same ones at every step."""

import functools
import operator
from collections.abc import Callable
from typing import Any

__all__ = ["Remembered"]

_PLAIN = frozenset({int, float, bool, str, type(None)})


class Remembered:
    """A function of options that is called once for each set of them.

    Numbers, words and tuples of them are remembered; of nothing else is it known that equal means
    the same, for a tensor may change its value.

    Args:
        function: of at least one option, by position; what it raises is not remembered.
    """

    def __init__(self, function: Callable[..., tuple[Any, ...]]) -> None:
        self._function = function
        self._remembered = functools.lru_cache(maxsize=64, typed=True)(function)
        # The very objects asked with last: comparing identities is a third of looking them up.
        # Replaced as a whole, so that threads never see half of it.
        self._latest: tuple[tuple[Any, ...], tuple[Any, ...]] = ((object(),), ())

    def __call__(self, *options: Any) -> tuple[Any, ...]:
        asked, found = self._latest
        if all(map(operator.is_, options, asked)):
            return found
        if not all(map(_is_plain, options)):
            return self._function(*options)
        found = self._remembered(*options)
        self._latest = options, found
        return found


def _is_plain(option: Any) -> bool:
    if type(option) is tuple:
        return _PLAIN.issuperset(map(type, option))
    return type(option) in _PLAIN
