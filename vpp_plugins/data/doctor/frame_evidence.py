"""In which frame and unit boxes most likely are, judged from the numbers and the images' sizes alone.

A box that is ordered and lies in its image costs the logarithm of the area it could have lain in, so the tightest
frame that holds the boxes wins; a box that does not could have lain anywhere, and costs more. So 0-1 beats pixels for
small fractions, the padded square beats the whole image when no box reaches into the padding, and xywh beats xyxy
when second corners would lie before first ones. In units that are the same along both sides of the image, x and y
swapped fit as well as not: there the numbers cannot tell, and the usual order is taken.

Photographers put things in the middle, so that boxes which leave the edges free are no evidence of a smaller frame:
where the boxes fit what the file is said to be, a candidate must hold them too, and they must fill it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from vpp_plugins.boxes import BoxCodec, box_iou
from vpp_plugins.data.record import PATCH, BoxUnit, LongSide, Order, PixelBudget
from vpp_plugins.data.units import order_of, words_of

Columns = Float[np.ndarray, "n 4"]
Sizes = Float[np.ndarray, "n 2"]
"""(width, height) of each box's image; NaN where it is not known."""
_SIDES = (224, 336, 384, 448, 512, 640, 768, 896, 1024, 1344)
_SQUARES = tuple(BoxUnit(full=float(side)) for side in _SIDES)
"""Pixels of images that were resized to squares, their shapes not kept."""


@dataclass(frozen=True)
class Candidate:
    """One way to read the numbers."""

    unit: BoxUnit

    def __str__(self) -> str:
        if self.unit in _SQUARES:
            return f"xyxy in pixels of the image resized to {self.unit.full:g} x {self.unit.full:g}"
        return str(self.unit)

    @property
    def resized(self) -> bool:
        """Whether the boxes are in pixels of resized images."""
        return self.unit.resized is not None or self.unit in _SQUARES

    @property
    def stated(self) -> tuple[str, PixelBudget | None]:
        """How it is stated to our readers: `Reading.boxes`, and for pixels of resized images `Reading.pixels`."""
        by = self.unit.resized
        return words_of(self.unit), by if isinstance(by, PixelBudget) else None

    @property
    def options(self) -> str:
        """The options of our commands that state it, as `--boxes 0-1,padded`."""
        words, budget = self.stated
        return f"--boxes {words}{f' --max-pixels {budget.most}' if budget else ''}"

    @property
    def prior(self) -> float:
        """The logarithm of how rare the convention is, before any number is seen."""
        order = {"xyxy": 0.0, "xywh": -2.0, "cxcywh": -6.0, "yxyx": -8.0}[self.unit.order]
        return order - 8.0 * self.resized

    def region(self, sizes_wh: Sizes) -> Columns:
        """Return where each image lies in the numbers: left, top, width, height."""
        full = self.unit.full
        if self.unit.frame == "square":
            side = sizes_wh.max(axis=1, keepdims=True)
            scale = 1.0 if full is None else full / side
            return np.concatenate([(side - sizes_wh) // 2 * scale, sizes_wh * scale], axis=1)
        lengths = sizes_wh if full is None else np.full_like(sizes_wh, full)
        if self.unit.resized is not None:
            lengths = _resized(self.unit.resized, sizes_wh)
        return np.concatenate([np.zeros_like(sizes_wh), lengths], axis=1)

    def corners(self, numbers: Columns) -> Columns:
        """Return x1, y1, x2, y2, still in the file's unit."""
        if self.unit.order == "yxyx":
            return numbers[:, [1, 0, 3, 2]]
        if self.unit.order == "xywh":
            return np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], axis=1)
        if self.unit.order == "cxcywh":
            half = numbers[:, 2:] / 2
            return np.concatenate([numbers[:, :2] - half, numbers[:, :2] + half], axis=1)
        return numbers

    def pixels(self, numbers: Columns, sizes_wh: Sizes) -> Columns:
        """Return the boxes as xyxy pixels of the original images, neither cut nor reordered."""
        region = self.region(sizes_wh)
        from_corner = self.corners(numbers) - np.tile(region[:, :2], 2)
        return np.asarray(from_corner * np.tile(sizes_wh / region[:, 2:], 2))


def _resized(by: PixelBudget | LongSide, sizes_wh: Sizes) -> Sizes:
    """Return the sizes after resizing; NaN stays NaN."""
    if isinstance(by, LongSide):
        return np.asarray(sizes_wh * (by.side / sizes_wh.max(axis=1, keepdims=True)))
    sizes = list(map(tuple, sizes_wh.tolist()))
    resized = {(w, h): (w, h) if math.isnan(w) else by((int(w), int(h))) for w, h in set(sizes)}
    return np.array([resized[size] for size in sizes], dtype=float).reshape(-1, 2)


def declared_candidate(unit: BoxUnit | BoxCodec) -> Candidate | None:
    """Return what a format or a family says of its boxes, or None for tokens that are no four coordinates."""
    if isinstance(unit, BoxUnit):
        return Candidate(unit)
    if unit.scale.per_box != 4:
        return None
    if unit.scale.full is None:
        return Candidate(BoxUnit(resized=PixelBudget(most=1280 * PATCH**2)))
    return Candidate(BoxUnit(unit.frame, float(unit.scale.full), order_of(unit)))


def all_candidates() -> list[Candidate]:
    """Return every convention that public data are known to use."""
    orders: tuple[Order, ...] = ("xyxy", "xywh", "yxyx", "cxcywh")
    plain = [BoxUnit("image", full, order) for order in orders for full in (None, 1.0, 100.0, 1000.0)]
    padded = [BoxUnit("square", full, order) for order in orders for full in (None, 1.0, 100.0, 1000.0)]
    resized = [BoxUnit(resized=LongSide(side)) for side in _SIDES]
    resized += [BoxUnit(resized=PixelBudget(most=number * PATCH**2)) for number in (256, 512, 768, 1280)]
    return [Candidate(unit) for unit in [*plain, *padded, *_SQUARES, *resized]]


ENOUGH = 3.0
"""Logarithm of the odds, 20 to 1, from which one candidate is preferred to another."""
_HELD = 0.995
"""The share of the boxes that fit what the file says which another candidate must hold to be preferred."""
_REACHED = 0.9
"""How far some boxes must reach towards each of a frame's four edges, from the opposite one, for them to fill it."""
_TELLABLE = 0.1
"""A resized image must differ so much from the original: closer, nothing in the numbers could tell the two."""
_SAME_IOU = 0.9


@dataclass(frozen=True)
class Fit:
    """How the numbers agree with a candidate: shares of all boxes, and the logarithm of its likelihood.

    `reach` is how far the boxes that fit go towards the edge that they leave the freest, 0 to 1.
    """

    candidate: Candidate
    fits: float
    inverted: float
    beyond: float
    reach: float
    score: float


@dataclass(frozen=True)
class FrameVerdict:
    """What the file is said to be, and the candidates as they fit, best first.

    `rivals` are candidates that are about as likely as the best, and would put the boxes elsewhere.
    """

    declared: Candidate
    fits: tuple[Fit, ...]
    rivals: tuple[Candidate, ...]

    @property
    def decided(self) -> bool:
        """Whether the numbers tell where the boxes are."""
        return not self.rivals

    @property
    def best(self) -> Candidate:
        """The likeliest candidate."""
        return self.fits[0].candidate

    @property
    def contradicts(self) -> bool:
        """Whether the numbers speak clearly against what the file is said to be, also where not for one thing alone."""
        return self.declared not in (self.best, *self.rivals)

    def shown(self) -> list[Fit]:
        """Return the declared candidate and the four likeliest others."""
        own = [fit for fit in self.fits if fit.candidate == self.declared]
        return own + [fit for fit in self.fits if fit.candidate != self.declared][:4]

    def __str__(self) -> str:
        best = self.fits[0]
        fits = f"{best.fits:.1%} of the boxes fit"
        if not self.decided:
            close = next(fit for fit in self.fits if fit.candidate == self.rivals[0])
            return (
                f"The numbers do not decide: they fit {best.candidate} ({best.fits:.1%} of the boxes) about as well as "
                f"{close.candidate} ({close.fits:.1%})."
            )
        if best.candidate == self.declared:
            return f"The boxes most likely are what the file says, {best.candidate}: {fits}."
        own = next(fit for fit in self.fits if fit.candidate == self.declared)
        return (
            f"The boxes most likely are {best.candidate}: {fits}. As {own.candidate}, which the file is said to be, "
            f"{own.fits:.1%} fit, {own.inverted:.1%} are inverted and {own.beyond:.1%} reach beyond the edge."
        )


def judge(numbers: Columns, sizes_wh: Sizes, declared: Candidate) -> FrameVerdict | None:
    """Compare all candidates on boxes of finite numbers; None where there are no boxes, or no images' sizes.

    The declared candidate wins unless another is clearly likelier, and nothing is decided while one that would place
    the boxes elsewhere is nearly as likely.
    """
    known = ~np.isnan(sizes_wh).any(axis=1)
    numbers, sizes_wh = numbers[known], sizes_wh[known]
    if not len(numbers):
        return None
    own = fit(numbers, sizes_wh, declared)
    own = replace(own, score=own.score - declared.prior)  # rare or not, the file says so
    candidates = [other for other in all_candidates() if other != declared and _tellable(other, sizes_wh)]
    others = sorted((fit(numbers, sizes_wh, other) for other in candidates), key=lambda found: -found.score)
    held = [other for other in others if other.fits >= _HELD * own.fits]
    best = next((other for other in held if other.score - own.score >= ENOUGH and _has_evidence(other, own)), own)
    usual = next((found for found in others if best is not own and _whole(found, best)), best)
    rest = sorted((found for found in (own, *others) if found is not usual), key=lambda found: -found.score)
    near = [found.candidate for found in rest if found in (own, *held) and best.score - found.score < ENOUGH]
    rivals = tuple(near for near in near if not _same_place(usual.candidate, near, numbers, sizes_wh))
    return FrameVerdict(declared, (usual, *rest), rivals)


def fit(numbers: Columns, sizes_wh: Sizes, candidate: Candidate) -> Fit:
    """Measure one candidate on the boxes."""
    ordered, inside = agreement(numbers, sizes_wh, candidate)
    good = ordered & inside
    region = candidate.region(sizes_wh)
    areas = region[:, 2:].prod(axis=1)
    relative = ((candidate.corners(numbers) - np.tile(region[:, :2], 2)) / np.tile(region[:, 2:], 2))[good]
    reached = np.concatenate([1 - relative[:, :2], relative[:, 2:]], axis=1)
    broad = 2 * max(float(np.quantile(np.abs(numbers), 0.99)), 1e-9)
    broken = (np.sum(~good) + 0.5) / (len(good) + 1)  # the share that explains the data best
    costs = np.where(good, math.log(1 - broken) - 2 * np.log(areas), math.log(broken) - 4 * math.log(broad))
    return Fit(
        candidate=candidate,
        fits=float(good.mean()),
        inverted=float((~ordered).mean()),
        beyond=float((~inside).mean()),
        reach=float(reached.max(axis=0).min()) if len(reached) else 0.0,
        score=float(costs.sum()) + candidate.prior,
    )


def agreement(
    numbers: Columns, sizes_wh: Sizes, candidate: Candidate
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Say of each box whether its corners are in order, and whether it lies in its image, up to the rounding.

    The rounding is half a step of the finest number in the data, and three quarters of a pixel.
    """
    region, corners = candidate.region(sizes_wh), candidate.corners(numbers)
    first, second = corners[:, :2], corners[:, 2:]
    slack = np.maximum(0.5 * _step(numbers), 0.75 * region[:, 2:] / sizes_wh) + 1e-9
    low, high = np.minimum(first, second), np.maximum(first, second)
    inside = (low >= region[:, :2] - slack) & (high <= region[:, :2] + region[:, 2:] + slack)
    return np.all(first <= second, axis=1), np.all(inside, axis=1)


def _has_evidence(other: Fit, own: Fit) -> bool:
    """Whether more speaks for a candidate than its size: it holds more boxes than what the file says, or is filled."""
    return other.fits > own.fits + 1 - _HELD or other.reach >= _REACHED


def _whole(other: Fit, best: Fit) -> bool:
    """Whether a candidate is the best without its resizing, and loses to it by the size of its frame alone."""
    unfilled = best.reach < _REACHED and other.fits >= best.fits
    whole = replace(best.candidate.unit, full=None, resized=None)
    return unfilled and best.candidate.resized and other.candidate.unit == whole


def _step(numbers: Columns) -> float:
    """The step of the decimals in which nearly all numbers are written; 0 beyond three."""
    written = (n for n in range(4) if np.mean(np.abs(numbers - np.round(numbers, n)) < 1e-9) > 0.99)
    return next((10.0**-decimals for decimals in written), 0.0)


def _tellable(candidate: Candidate, sizes_wh: Sizes) -> bool:
    if not candidate.resized:
        return True
    ratio: Float[np.ndarray, "n 2"] = candidate.region(sizes_wh)[:, 2:] / sizes_wh
    return bool(np.mean((np.abs(ratio - 1) > _TELLABLE).any(axis=1)) > 0.5)


def _same_place(a: Candidate, b: Candidate, numbers: Columns, sizes_wh: Sizes) -> bool:
    """Whether two candidates put the boxes at nearly the same pixels, as 0-999 and 0-1000 do."""
    some = slice(0, 200)
    pairs = zip(a.pixels(numbers[some], sizes_wh[some]), b.pixels(numbers[some], sizes_wh[some]), strict=True)
    solid = [box_iou(one.tolist(), other.tolist()) for one, other in pairs if (one[2:] > one[:2]).all()]
    return not solid or sum(iou > _SAME_IOU for iou in solid) >= 0.9 * len(solid)
