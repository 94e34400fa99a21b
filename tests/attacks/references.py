"""What data terms, divergences, priors and scores are by their definitions: loops over pixels, with nothing of regloss.

Arrays are those of one image: logits (K, *S), labels (*S), images (C, *S), segmentations (K, *S). All is computed in
extended precision where numpy has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Place = tuple[int, ...]

IGNORED = 255


def log_softmax(logits: Array) -> Array:
    """(K, *S)."""
    z = logits.astype(np.longdouble)
    z = z - z.max(0)
    return z - np.log(np.exp(z).sum(0))


def _labelled(labels: Array, roi: Array) -> list[Place]:
    return [place for place in np.ndindex(labels.shape) if labels[place] != IGNORED and roi[place]]


# --------------------------------------------------------------------------------------------------------------------
# Data terms: sum and count of an image


def cross_entropy(
    logits: Array, labels: Array, roi: Array, weights: Sequence[float] | None, smoothing: float
) -> tuple[float, float]:
    """With label smoothing as torch has it: every class's logarithm counts with that class's weight."""
    logs, classes = log_softmax(logits), len(logits)
    weights = [1.0] * classes if weights is None else weights
    total = count = np.longdouble(0)
    for place in _labelled(labels, roi):
        label = labels[place]
        total -= (1 - smoothing) * weights[label] * logs[(label, *place)]
        total -= sum(smoothing / classes * weights[k] * logs[(k, *place)] for k in range(classes))
        count += weights[label]
    return float(total), float(count)


def collision_cross_entropy(
    logits: Array, labels: Array, roi: Array, weights: Sequence[float] | None, smoothing: float
) -> tuple[float, float]:
    """-ln <y, S> with the smoothed label y."""
    logs, classes = log_softmax(logits), len(logits)
    weights = [1.0] * classes if weights is None else weights
    total = count = np.longdouble(0)
    for place in _labelled(labels, roi):
        label = labels[place]
        if smoothing == 0:
            cost = -logs[(label, *place)]
        else:
            soft = [smoothing / classes + (1 - smoothing) * (k == label) for k in range(classes)]
            cost = -np.log(sum(y * np.exp(logs[(k, *place)]) for k, y in enumerate(soft)))
        total += weights[label] * cost
        count += weights[label]
    return float(total), float(count)


def partial_dice(logits: Array, labels: Array, roi: Array, smooth: float, squared: bool) -> tuple[float, float]:
    """1 - mean over the labelled classes of their Dice coefficients."""
    s, places = np.exp(log_softmax(logits)), _labelled(labels, roi)
    present = sorted({int(labels[place]) for place in places})
    if not present:
        return 0.0, 0.0
    coefficients = []
    for k in present:
        size = sum(labels[place] == k for place in places)
        given = sum(s[(k, *place)] ** (2 if squared else 1) for place in places)
        both = sum(s[(k, *place)] for place in places if labels[place] == k)
        coefficients.append((2 * both + smooth) / (given + size + smooth))
    return float(1 - sum(coefficients) / len(present)), 1.0


def entropy(logits: Array, roi: Array) -> tuple[float, float]:
    """Over the region of interest."""
    logs = log_softmax(logits)
    return -float((np.exp(logs) * logs).sum(0)[roi].sum()), float(roi.sum())


def mumford_shah(logits: Array, roi: Array, image: Array) -> tuple[float, float]:
    """Squared distances of colours to each class's mean, with its share of the pixel, in the region of interest."""
    total = 0.0
    for share in np.exp(log_softmax(logits))[:, roi]:
        colors = image[:, roi]
        mean = (share * colors).sum(1, keepdims=True) / max(share.sum(), np.finfo(float).tiny)
        total += float((share * ((colors - mean) ** 2).sum(0)).sum())
    return total, float(roi.sum())


def smoothness(logits: Array, labels: Array, roi: Array) -> tuple[float, float]:
    """Lengths of gradients at labelled pixels whose next ones have their label, or none."""
    s, total = np.exp(log_softmax(logits)), 0.0
    places = set(_labelled(labels, roi))
    for place in places:
        nexts = [tuple(x + (axis == a) for a, x in enumerate(place)) for axis in range(len(place))]
        nexts = [q for q in nexts if q in places]
        if all(labels[q] == labels[place] for q in nexts):
            total += sum(float(sum((s[(k, *q)] - s[(k, *place)]) ** 2 for q in nexts)) ** 0.5 for k in range(len(s)))
    return total, float(len(places))


def size_bounds(
    logits: Array,
    labels: Array | None,
    roi: Array,
    lower: Sequence[float] | None,
    upper: Sequence[float] | None,
    pixels: bool,
    t: float,
    present: bool,
) -> tuple[float, float]:
    """Barriers at the bounds."""
    s, count = np.exp(log_softmax(logits)), int(roi.sum())

    def barrier(z: Any) -> Any:
        return -np.log(-z) / t if z <= -1 / t**2 else t * z - math.log(1 / t**2) / t + 1 / t

    total = np.longdouble(0)
    for k in range(len(logits)):
        if present and (labels is None or not ((labels == k) & roi).any()):
            continue
        size = s[k][roi].sum() / count
        scale = count if pixels else 1
        if lower is not None and lower[k] > 0:
            total += barrier(lower[k] / scale - size)
        if upper is not None and upper[k] / scale < 1:
            total += barrier(size - upper[k] / scale)
    return float(total), 1.0


def boundary(
    logits: Array, labels: Array, roi: Array, classes: Sequence[int] | None, diagonal: bool
) -> tuple[float, float]:
    """Signed distances between centres of labelled pixels, less a half."""
    s, places = np.exp(log_softmax(logits)), _labelled(labels, roi)
    unit = 1.0
    if diagonal:
        box = np.argwhere(roi)
        unit = math.dist(box.max(0) + 1, box.min(0))
    total = np.longdouble(0)
    for k in range(1, len(logits)) if classes is None else classes:
        inside = [place for place in places if labels[place] == k]
        outside = [place for place in places if labels[place] != k]
        if inside and outside:
            for place in places:
                mine = labels[place] == k
                distance = min(math.dist(place, other) for other in (outside if mine else inside)) - 0.5
                total += s[(k, *place)] * (-distance if mine else distance) / unit
    return float(total), float(len(places))


# --------------------------------------------------------------------------------------------------------------------
# Divergences: the sum over an image of what each pixel's soft target X costs


def kl(target: Array, seen: Array, weights: Array) -> float:
    """<X, ln X> - <X, seen>, 0 ln 0 = 0; ``seen`` are logarithms of the proposal's probabilities."""
    total = np.longdouble(0)
    for place in np.ndindex(weights.shape):
        for k in range(len(target)):
            x = np.longdouble(target[(k, *place)])
            if x > 0:
                total += weights[place] * (x * np.log(x) - x * seen[(k, *place)])
    return float(total)


def seen_through(logits: Array, noise: Array, seeds: Array) -> Array:
    """ln T^T q (K, *S) of a proposal seen through a noisy channel; ln q itself at seeds."""
    logs = log_softmax(logits)
    seen = np.empty_like(logs)
    for k in range(len(logs)):
        said = [true for true in range(len(logs)) if noise[true, k] > 0]
        terms = np.stack([np.log(np.longdouble(noise[true, k])) + logs[true] for true in said])
        seen[k] = terms.max(0) + np.log(np.exp(terms - terms.max(0)).sum(0))
    return np.where(seeds, logs, seen)


def euclidean(target: Array, logits: Array, weights: Array) -> float:
    """|X - S|^2 / 2."""
    return float(((target - np.exp(log_softmax(logits))) ** 2 * weights).sum() / 2)


# --------------------------------------------------------------------------------------------------------------------
# Priors on pairs of pixels


def _pairs(roi: Array) -> Iterator[tuple[Place, Place]]:
    return itertools.combinations([tuple(int(i) for i in place) for place in np.argwhere(roi)], 2)


def pair_cost(relaxation: str, p: Array, q: Array) -> float:
    """What a pair costs before its weight."""
    product = float(p @ q)
    cosine = product / math.sqrt(float(p @ p) * float(q @ q))
    apart = float(((p - q) ** 2).sum()) / 2
    if relaxation == "total-variation":
        return float(np.abs(p - q).sum()) / 2
    return {
        "bilinear": 1 - product,
        "quadratic": apart,
        "normalized-quadratic": 1 - cosine,
        "collision-cross-entropy": -math.log(max(product, 1e-6)),
        "collision-divergence": -math.log(max(cosine, 1e-6)),
        "log-quadratic": -math.log(max(1 - apart, 1e-6)),
    }[relaxation]


def grid_crf(
    s: Array, image: Array, roi: Array, differing: int, sigma: float | str, unit: bool, relaxation: str
) -> float:
    """Neighbours differ by 1 in at most ``differing`` axes."""
    squares, found = [], []
    for p, q in _pairs(roi):
        step = [abs(a - b) for a, b in zip(p, q, strict=True)]
        if max(step) == 1 and sum(step) <= differing:
            squares.append(float(((image[(slice(None), *p)] - image[(slice(None), *q)]) ** 2).sum()))
            found.append((p, q, 1.0 if unit else math.dist(p, q)))
    variance = sigma**2 if isinstance(sigma, float) else float(np.mean(squares)) if found else 1.0
    variance = variance or 1.0
    total = 0.0
    for square, (p, q, distance) in zip(squares, found, strict=True):
        cost = pair_cost(relaxation, s[(slice(None), *p)], s[(slice(None), *q)])
        total += math.exp(-square / (2 * variance)) / distance * cost
    return total


def gaussian_weights(image: Array, roi: Array, sigma_xy: float, sigma_rgb: float) -> dict[tuple[Place, Place], float]:
    """exp(-|p - q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2)) of unordered pairs."""
    weights = {}
    for p, q in _pairs(roi):
        apart = math.dist(p, q) ** 2 / (2 * sigma_xy**2)
        colour = float(((image[(slice(None), *p)] - image[(slice(None), *q)]) ** 2).sum()) / (2 * sigma_rgb**2)
        weights[p, q] = math.exp(-apart - colour)
    return weights


def gated_crf(
    s: Array, image: Array, roi: Array, radius: int, sigma_xy: float, sigma_rgb: float, relaxation: str
) -> float:
    """Pairs within a window."""
    return sum(
        weight * pair_cost(relaxation, s[(slice(None), *p)], s[(slice(None), *q)])
        for (p, q), weight in gaussian_weights(image, roi, sigma_xy, sigma_rgb).items()
        if max(abs(a - b) for a, b in zip(p, q, strict=True)) <= radius
    )


def dense_crf(s: Array, image: Array, roi: Array, sigma_xy: float, sigma_rgb: float, relaxation: str) -> float:
    """All pairs, over the pixels that a Gaussian covers."""
    mass = (2 * math.pi) ** (roi.ndim / 2) * sigma_xy**roi.ndim
    return gated_crf(s, image, roi, max(roi.shape), sigma_xy, sigma_rgb, relaxation) / mass


def normalized_cut(s: Array, image: Array, roi: Array, sigma_xy: float, sigma_rgb: float) -> float | None:
    """N times the sum of cut over volume; None where a volume is lost beside what pixels are to themselves."""
    cut, volume = np.zeros(len(s)), np.zeros(len(s))
    for (p, q), weight in gaussian_weights(image, roi, sigma_xy, sigma_rgb).items():
        a, b = s[(slice(None), *p)], s[(slice(None), *q)]
        cut += weight * (a * (1 - b) + b * (1 - a))
        volume += weight * (a + b)
    if any(0 < v < 1e-9 * roi.sum() for v in volume):
        return None
    return float(roi.sum() * sum(c / v for c, v in zip(cut, volume, strict=True) if v > 0))


def total_variation(s: Array, image: Array, roi: Array, isotropic: bool, edge_scale: float) -> float:
    """Forward differences, both ends of which lie in the region of interest."""
    total = 0.0
    for place in np.ndindex(roi.shape):
        ahead = [tuple(i + (axis == a) for a, i in enumerate(place)) for axis in range(roi.ndim)]
        ahead = [q for q in ahead if all(i < n for i, n in zip(q, roi.shape, strict=True)) and roi[place] and roi[q]]
        slopes = [image[(slice(None), *q)] - image[(slice(None), *place)] for q in ahead]
        edge = 1 / (1 + edge_scale * sum(float((slope**2).sum()) for slope in slopes))
        for k in range(len(s)):
            steps = [float(s[(k, *q)] - s[(k, *place)]) for q in ahead]
            total += edge * (math.hypot(*steps) if isotropic else sum(map(abs, steps)))
    return total


# --------------------------------------------------------------------------------------------------------------------
# Scores: None where a number is not defined


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def confusion_scores(pairs: Sequence[tuple[Array, Array, str]], classes: Sequence[str]) -> dict[str, Any]:
    """What `Confusion.compute` promises, of predictions, labels and groups."""
    size = len(classes)
    counts: dict[str, list[list[int]]] = {}
    for prediction, label, group in pairs:
        table = counts.setdefault(group, [[0] * size for _ in range(size)])
        for place in np.ndindex(label.shape):
            if label[place] != IGNORED:
                table[int(label[place])][int(prediction[place])] += 1
    total = [[sum(table[i][j] for table in counts.values()) for j in range(size)] for i in range(size)]

    def row(table: list[list[int]], k: int) -> int:
        return sum(table[k])

    def column(table: list[list[int]], k: int) -> int:
        return sum(line[k] for line in table)

    def dice(table: list[list[int]]) -> list[float | None]:
        return [_ratio(2 * table[k][k], row(table, k) + column(table, k)) for k in range(size)]

    iou = [_ratio(total[k][k], row(total, k) + column(total, k) - total[k][k]) for k in range(size)]
    pixels = sum(map(sum, total))
    groups = {
        group: {
            "dice": dict(zip(classes, dice(table), strict=True)),
            "mean-foreground-dice": _mean(dice(table)[1:]),
        }
        for group, table in counts.items()
    }
    return {
        "images": len(pairs),
        "pixels": pixels,
        "accuracy": _ratio(sum(total[k][k] for k in range(size)), pixels),
        "mean-iou": _mean(iou),
        "mean-foreground-dice": _mean([found["mean-foreground-dice"] for found in groups.values()]),
        "iou": dict(zip(classes, iou, strict=True)),
        "dice": dict(zip(classes, dice(total), strict=True)),
        "dice-per-group": {
            name: _mean([dice(table)[k] for table in counts.values()]) for k, name in enumerate(classes)
        },
        "groups": groups,
        "confusion": total,
    }


def _beside(place: Place, shape: Place, diagonal: bool = False) -> list[Place | None]:
    """Neighbours along an axis, or along both diagonals of the last two axes; None where the image ends."""
    if diagonal:
        steps = [(*[0] * (len(shape) - 2), a, b) for a in (-1, 1) for b in (-1, 1)]
    else:
        steps = [tuple(sign * (axis == a) for a in range(len(shape))) for axis in range(len(shape)) for sign in (-1, 1)]
    found = [tuple(i + j for i, j in zip(place, step, strict=True)) for step in steps]
    return [q if all(0 <= i < n for i, n in zip(q, shape, strict=True)) else None for q in found]


def boundary_distances(label: Array) -> Array:
    """Of every pixel to the nearest one beside another class."""
    border = [
        place
        for place in np.ndindex(label.shape)
        if label[place] != IGNORED
        and any(q and label[q] not in (IGNORED, label[place]) for q in _beside(place, label.shape))
    ]
    distances = np.full(label.shape, np.inf)
    for place in np.ndindex(label.shape):
        distances[place] = min((math.dist(place, q) for q in border), default=math.inf)
    return distances


def trimap_scores(pairs: Sequence[tuple[Array, Array, str]], classes: Sequence[str], width: float) -> dict[str, Any]:
    """Scores of the pixels near a boundary."""
    near = []
    for prediction, label, group in pairs:
        band = np.where(boundary_distances(label) < width, label, IGNORED)
        near.append((prediction, band, group))
    found = confusion_scores(near, classes)
    return {key: found[key] for key in ("accuracy", "mean-iou", "pixels")}


def boundary_density(labels: Array) -> float:
    """Percent of boundary length by the Cauchy-Crofton formula; volumes slice by slice."""
    slices = labels if labels.ndim == 3 else labels[None]
    length, area = 0.0, 0
    for one in slices:
        for place in np.ndindex(one.shape):
            if one[place] == IGNORED:
                continue
            area += 1
            for diagonal in (False, True):
                jumps = sum(
                    1
                    for q in _beside(place, one.shape, diagonal)
                    if q is not None and one[q] not in (IGNORED, one[place])
                )
                length += jumps / 2 / (math.sqrt(2) if diagonal else 1)  # each pair is met from both its ends
    return 100 * math.pi / 8 * length / area if area else 0.0


def hausdorff(prediction: Array, label: Array, k: int, percentile: float) -> float:
    """NaN where neither has the class, infinity where one alone has it."""
    borders = []
    for values in (prediction, label):
        inside = {p for p in np.ndindex(label.shape) if values[p] == k and label[p] != IGNORED}
        borders.append([p for p in inside if any(q is None or q not in inside for q in _beside(p, label.shape))])
    if not borders[0] and not borders[1]:
        return math.nan
    if not borders[0] or not borders[1]:
        return math.inf

    def far(first: list[Place], second: list[Place]) -> float:
        found = sorted(min(math.dist(p, q) for q in second) for p in first)
        at = percentile / 100 * (len(found) - 1)
        low = math.floor(at)
        high = min(low + 1, len(found) - 1)
        return found[low] + (at - low) * (found[high] - found[low])

    return max(far(*borders), far(borders[1], borders[0]))


def hausdorff_scores(pairs: Sequence[tuple[Array, Array, str]], classes: Sequence[str]) -> dict[str, Any]:
    """What `SurfaceDistances.compute` promises."""
    groups: dict[str, list[list[float]]] = {}
    alone = both = 0
    for prediction, label, group in pairs:
        found = groups.setdefault(group, [[] for _ in classes])
        for k in range(len(classes)):
            distance = hausdorff(prediction, label, k, 95.0)
            if math.isfinite(distance):
                found[k].append(distance)
                both += k > 0
            elif distance == math.inf:
                alone += k > 0
    of_classes = [_mean([_mean(found[k]) for found in groups.values()]) for k in range(len(classes))]
    return {
        "hd95": dict(zip(classes, of_classes, strict=True)),
        "mean-foreground-hd95": _mean(of_classes[1:]),
        "unmatched": _ratio(alone, alone + both),
    }


def foreground_scores(prediction: Array, label: Array, chosen: Sequence[int]) -> tuple[float, float, float]:
    """F, IoU and accuracy with some phases as the foreground."""
    hits = false = missed = total = 0
    for place in np.ndindex(label.shape):
        if label[place] == IGNORED:
            continue
        found, meant = prediction[place] in chosen, label[place] > 0
        total += 1
        hits += bool(found and meant)
        false += bool(found and not meant)
        missed += bool(meant and not found)
    if hits + false + missed == 0:
        return 1.0, 1.0, 1.0
    return (
        2 * hits / (2 * hits + false + missed),
        hits / (hits + false + missed),
        (total - false - missed) / total,
    )


def best_foreground(prediction: Array, label: Array, phases: int) -> list[tuple[float, float, float]]:
    """Scores of all sets of phases, neither none nor all, that have the highest IoU."""
    sets = [chosen for size in range(1, phases) for chosen in itertools.combinations(range(phases), size)]
    scores = [foreground_scores(prediction, label, chosen) for chosen in sets]
    highest = max(score[1] for score in scores)
    return [score for score in scores if score[1] > highest - 1e-12]


def off_border(prediction: Array, phases: int) -> list[int]:
    """All phases but the one with most pixels of the image's faces."""
    counts = [0] * phases
    for place in np.ndindex(prediction.shape):
        on_face = any(q is None for q in _beside(place, prediction.shape))
        if on_face and 0 <= prediction[place] < phases:
            counts[int(prediction[place])] += 1
    return [k for k in range(phases) if k != counts.index(max(counts))]
