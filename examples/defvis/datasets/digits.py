"""The digits world: which handwritten digits a clip shows, how they move, what hides them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOTIONS = ("stay", "enter", "leave", "cross", "behind")


@dataclass(frozen=True)
class Level:
    """How hard a dataset is.

    Attributes:
        digits: Fewest and most digits in a clip.
        size: Range of a digit's height, as a fraction of the frame height.
        shares: Probability of each of `MOTIONS`.
        path: How far a staying digit goes, as a share of the way to a random other place.
        twin: Probability that a digit has the class and colour of the one before it, in another
            handwriting.
        rotation: Largest change of angle during a clip, degrees.
    """

    digits: tuple[int, int]
    size: tuple[float, float]
    shares: tuple[float, float, float, float, float]
    path: float
    twin: float
    rotation: float


# Digits are hidden by other digits, and in "mixed" and "EM" behind a pillar.
LEVELS = {
    "E": Level((1, 3), (0.40, 0.60), (1.0, 0.0, 0.0, 0.0, 0.0), 0.35, 0.0, 15.0),
    "mixed": Level((1, 3), (0.40, 0.60), (0.70, 0.08, 0.08, 0.06, 0.08), 0.40, 0.10, 20.0),
    "EM": Level((1, 4), (0.36, 0.60), (0.61, 0.11, 0.11, 0.12, 0.05), 0.55, 0.12, 25.0),
    "M": Level((2, 4), (0.36, 0.56), (0.55, 0.15, 0.15, 0.15, 0.0), 0.60, 0.15, 30.0),
    "H": Level((2, 6), (0.28, 0.55), (0.25, 0.25, 0.25, 0.25, 0.0), 1.0, 0.35, 60.0),
}
DEFAULT_LEVEL = "EM"


@dataclass(frozen=True)
class Digit:
    """One digit of a scene; arrays have one entry per frame, lengths are in pixels.

    Attributes:
        image: Index into scikit-learn's digit images.
        label: Its class, 0 to 9.
        motion: One of `MOTIONS`.
        colour: RGB, 0 to 1.
        centre: [T, 2] as (x, y).
        height: [T], of the 8 x 8 digit image.
        angle: [T], radians.
        brightness: [T], factor of the colour.
    """

    image: int
    label: int
    motion: str
    colour: NDArray[np.float64]
    centre: NDArray[np.float64]
    height: NDArray[np.float64]
    angle: NDArray[np.float64]
    brightness: NDArray[np.float64]


@dataclass(frozen=True)
class Pillar:
    """A vertical bar in front of everything; `left` and `right` in pixels, `colour` 0 to 1."""

    left: float
    right: float
    colour: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """What a clip shows.

    Attributes:
        digits: From the farthest to the nearest; nearer ones hide farther ones.
        pillar: Present if a digit passes behind one.
        texture: Index of the background texture.
        tint: RGB factor of the background.
        pan: [T, 2], background shift in pixels (x, y), at least 0.
        brightness: [T], factor of the whole picture.
    """

    digits: tuple[Digit, ...]
    pillar: Pillar | None
    texture: int
    tint: NDArray[np.float64]
    pan: NDArray[np.float64]
    brightness: NDArray[np.float64]


def draw_scene(
    random: np.random.Generator,
    level: Level,
    images: NDArray[np.int64],
    labels: NDArray[np.int64],
    frames: int,
    height: int,
    width: int,
    num_textures: int,
) -> Scene:
    """Draws a random scene.

    Args:
        random: Source of every draw.
        level: How hard the scene is.
        images: Indices of the digit images that may be used.
        labels: Class of every digit image, also of those that may not be used.
        frames: T.
        height: Frame height in pixels.
        width: Frame width in pixels.
        num_textures: Textures to choose from.
    """
    count = int(random.integers(level.digits[0], level.digits[1] + 1))
    motions = [str(random.choice(MOTIONS, p=level.shares)) for _ in range(count)]
    tint = random.uniform(0.5, 1.1, 3)
    pillar = None
    if "behind" in motions:
        middle, half = random.uniform(0.35, 0.65) * width, 0.13 * width
        pillar = Pillar(middle - half, middle + half, random.uniform(0.1, 0.9, 3))

    digits: list[Digit] = []
    for motion in motions:
        twin = bool(digits) and random.random() < level.twin
        allowed = images[labels[images] == digits[-1].label] if twin else images
        image = int(random.choice(allowed))
        colour = digits[-1].colour if twin else _contrasting(random, tint)
        size = random.uniform(*level.size) * height
        if motion == "behind":
            size = level.size[0] * height
        growth = 1 + random.uniform(-0.12, 0.12) * np.linspace(-1, 1, frames)
        turn = math.radians(random.uniform(-level.rotation, level.rotation))
        tilt = math.radians(random.uniform(-level.rotation, level.rotation)) / 2
        digits.append(
            Digit(
                image=image,
                label=int(labels[image]),
                motion=motion,
                colour=colour,
                centre=_path(random, motion, level, size, frames, height, width, pillar),
                height=size * growth,
                angle=tilt + turn * np.linspace(-0.5, 0.5, frames),
                brightness=1 + random.uniform(-0.15, 0.15) * np.linspace(-1, 1, frames),
            )
        )
    order = random.permutation(count)
    speed = random.uniform(-2, 2, 2)
    pan = np.arange(frames)[:, None] * speed
    return Scene(
        digits=tuple(digits[index] for index in order),
        pillar=pillar,
        texture=int(random.integers(num_textures)),
        tint=tint,
        pan=pan - pan.min(axis=0),
        brightness=1 + random.uniform(-0.15, 0.15) * np.linspace(-1, 1, frames),
    )


def _contrasting(random: np.random.Generator, tint: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour whose brightness differs from the background's (textures average about 0.45)."""
    while True:
        colour = random.uniform(0, 1, 3)
        if abs(colour.mean() - 0.45 * tint.mean()) > 0.25:
            return colour


def _path(
    random: np.random.Generator,
    motion: str,
    level: Level,
    size: float,
    frames: int,
    height: int,
    width: int,
    pillar: Pillar | None,
) -> NDArray[np.float64]:
    """Centres (x, y) of one digit, [T, 2]."""
    margin, out = size * 0.4, size * 0.6

    def inside() -> NDArray[np.float64]:
        return np.array(
            [random.uniform(margin, width - margin), random.uniform(margin, height - margin)]
        )

    def outside(side: float) -> NDArray[np.float64]:
        return np.array([-out if side < 0 else width + out, inside()[1]])

    if motion == "behind":
        assert pillar is not None
        return _behind(random, pillar, frames, inside()[1])
    side = random.choice([-1.0, 1.0])
    if motion == "cross":
        start, end = outside(side), outside(-side)
    elif motion == "stay":
        start, end = inside(), inside()
        end = start + level.path * (end - start)
    else:
        start, end = outside(side), inside()
        if motion == "leave":
            start, end = end, start
    step = np.linspace(0, 1, frames)[:, None]
    return start + (end - start) * step


def _behind(
    random: np.random.Generator, pillar: Pillar, frames: int, y: float
) -> NDArray[np.float64]:
    """Behind the pillar and out again: on the other side, or back on the side it came from.

    The digit is slow in the middle, so it is hidden for about a third of the frames.
    """
    middle, half = (pillar.left + pillar.right) / 2, (pillar.right - pillar.left) / 2
    u = np.linspace(-1, 1, frames)
    u = np.sign(u) * np.abs(u) ** 1.3
    if random.random() < 0.5:
        u = np.abs(u)
    x = middle + random.choice([-1.0, 1.0]) * 2.2 * half * u
    return np.stack((x, np.full(frames, y)), axis=1)
