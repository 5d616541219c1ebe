"""Categories are compared by id, name and order."""

from __future__ import annotations

import pytest

from defvis.data.categories import difference


def test_equal_categories_differ_in_nothing() -> None:
    assert difference((1, 7), ("dog", "cat"), [1, 7], ["dog", "cat"]) == ""


@pytest.mark.parametrize(
    ("ids", "names", "said"),
    [
        ((1, 8), ("dog", "cat"), "class 1 is 'cat' (id 7) in one and 'cat' (id 8) in the other"),
        ((1, 7), ("dog", "fox"), "class 1 is 'cat' (id 7) in one and 'fox' (id 7) in the other"),
        ((1, 7), ("cat", "dog"), "class 0 is 'dog' (id 1) in one and 'cat' (id 1) in the other"),
        ((1,), ("dog",), "class 1 is 'cat' (id 7) in one and missing in the other"),
    ],
)
def test_the_first_difference_is_named(
    ids: tuple[int, ...], names: tuple[str, ...], said: str
) -> None:
    assert difference((1, 7), ("dog", "cat"), ids, names) == said
