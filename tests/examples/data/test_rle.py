"""Run lengths against pycocotools, and every way in which they can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from defvis.data import rle


def _random_mask(seed: int, height: int = 37, width: int = 53) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.random((height // 6 + 1, width // 6 + 1)) < 0.3 + 0.4 * (seed % 2)
    return np.kron(coarse, np.ones((6, 6), dtype=bool))[:height, :width]


def _uncompressed(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs


@pytest.mark.parametrize("seed", range(2))
def test_compressed_and_uncompressed_agree_with_pycocotools(seed: int) -> None:
    mask = _random_mask(seed)
    height, width = mask.shape
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    forms = [
        {"size": [height, width], "counts": compressed["counts"].decode()},
        {"size": [height, width], "counts": compressed["counts"]},
        {"size": [height, width], "counts": _uncompressed(mask)},
    ]
    for form in forms:
        np.testing.assert_array_equal(rle.decode(rle.to_rle(form, height, width)), mask)
    assert rle.encode(mask) == compressed
    assert rle.area(rle.encode(mask)) == mask.sum()


@pytest.mark.parametrize("fill", [False, True])
def test_uniform_masks(fill: bool) -> None:
    mask = np.full((1080, 1920), fill)
    np.testing.assert_array_equal(rle.decode(rle.encode(mask)), mask)
    read = rle.to_rle(rle.to_json(rle.encode(mask)), 1080, 1920)
    assert read == (rle.encode(mask) if fill else None)


def test_a_whole_object_is_read_as_its_frames_are() -> None:
    """Masks with an odd and an even number of runs, one that is full, and frames without one."""
    masks = [_random_mask(seed) for seed in range(9)] + [np.ones((37, 53), dtype=bool)]
    masks[2][0, 0], masks[3][0, 0], masks[4][-1, -1] = True, False, True
    segmentations = [rle.to_json(rle.encode(mask)) for mask in masks]
    segmentations[5] = None
    read, areas = rle.to_rles(segmentations, 37, 53, "here", first=10)
    kept = [frame for frame in range(10) if frame != 5]
    assert list(read) == list(areas) == [10 + frame for frame in kept]
    decoded = rle.decode_all(list(read.values()))
    for place, frame in enumerate(kept):
        np.testing.assert_array_equal(rle.decode(read[10 + frame]), masks[frame])
        np.testing.assert_array_equal(decoded[place], masks[frame])
        assert areas[10 + frame] == masks[frame].sum()
    segmentations[7]["counts"] += "1"
    with pytest.raises(ValueError, match=r"^here, frame 17: .* add up to 1961 pixels"):
        rle.to_rles(segmentations, 37, 53, "here", first=10)


def test_polygons_agree_with_pycocotools() -> None:
    polygons = [[2.0, 3.0, 20.0, 3.0, 20.0, 15.0, 2.0, 15.0], [30, 20, 40, 20, 35, 30]]
    expected = coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, 37, 53)))
    mask = rle.decode(rle.to_rle(polygons, 37, 53))
    assert mask.sum() == expected
    assert mask[8, 10]
    assert mask[22, 35]
    assert not mask[25, 10]


@pytest.mark.parametrize(
    "segmentation",
    [None, [], {}, [[]], [[1, 2, 3, 4], [2, 2]], [[2, 2, 2, 2, 2, 2]],
     {"size": [4, 5], "counts": ""}, {"size": [4, 5], "counts": []},
     {"size": [4, 5], "counts": [20]}, {"size": [4, 5], "counts": [20, 0]},
     {"size": [4, 5], "counts": "d0"}],
)  # fmt: skip
def test_what_is_absent(segmentation: object) -> None:
    assert rle.to_rle(segmentation, 4, 5) is None


def test_slivers_are_dropped_and_whole_numbers_may_be_floats() -> None:
    triangle = [1, 1, 4, 1, 4, 4]
    assert rle.to_rle([[1, 1, 4, 1], triangle, [3, 3]], 4, 5) == rle.to_rle([triangle], 4, 5)
    whole = rle.to_rle({"size": [4, 5], "counts": [3, 5, 12]}, 4, 5)
    assert rle.to_rle({"size": [4, 5], "counts": [3.0, 5.0, 12]}, 4, 5) == whole


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 5]}, "RLE with size and counts"),
        (
            {"size": [5, 4], "counts": [20]},
            r"size \[4, 5\], got \[5, 4\]; width and height are swapped",
        ),
        ({"size": [4, 5], "counts": [19]}, "add up to 20 pixels, got 19"),
        ({"size": [4, 5], "counts": [30, -10]}, "must be 0 to 20"),
        ({"size": [4, 5], "counts": [2**70, 0]}, "must be 0 to 20"),
        ({"size": [4, 5], "counts": [True, 19]}, "must be integers"),
        ({"size": 20, "counts": [20]}, r"size \[4, 5\], got 20"),
        ({"size": [4, 5], "counts": "1"}, "add up to 20 pixels, got 1"),
        ({"size": [4, 5], "counts": "P"}, "middle of a run"),
        ({"size": [4, 5], "counts": "z"}, "outside"),
        # 64 runs of 2^58, and 20 more in the first: in 64 bits their sum wraps to 20.
        (
            {"size": [4, 5], "counts": "d" + 10 * "P" + "8" + 2 * (11 * "P" + "8") + 61 * "0"},
            "a run of more than 30 bits",
        ),
        ({"size": [4, 5], "counts": "0é"}, "a character outside"),
        ({"size": [4, 5], "counts": "b'd0'"}, r"text of Python bytes, .*decode\('ascii'\)"),
        ({"size": [4, 5], "counts": [2.5, 17.5]}, "must be integers, got 2.5"),
        ({"size": ["x" * 9999, 5], "counts": [20]}, r"got \['x{,60}\.\.\.x+', 5\]"),
        ({"size": [4, 5], "counts": 20}, "a string or a list, got int"),
        ([1, 2, 3, 4, 5, 6], "a list of flat lists .*, got a list of 1, "),
        ([[1, 2], [3, 4], [5, 6]], r"a list of points \[\[1, 2\], \[3, 4\]\]"),
        ([[[1, 2], [3, 4], [5, 6]]], r"must hold numbers, got \[1, 2\]"),
        ([[1, 2, 3, 4, 3, 2], 5], "a polygon must be a list, got 5"),
        ([[1, 2, 3, 4, 5]], "pairs x, y, got 5 numbers"),
        ([[1, 2, 3, 4, "5", 6]], "must hold numbers, got '5'"),
        ([[-5, -4, 10, 8] * 80_000], "at most 4000000 pixels long"),
        ([[0, 0, 1e9, 0, 0, 3]], "x of a polygon must be -5 to 10"),
        ([[0, 0, 3, 0, 0, float("nan")]], "y of a polygon must be -4 to 8"),
        (7, "RLE with size and counts, polygons, or null"),
    ],
)
def test_broken_forms_are_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.to_rle(segmentation, 4, 5)
