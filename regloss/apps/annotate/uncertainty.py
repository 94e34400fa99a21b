"""Which images a trained network is least sure of: those to draw on next.

Uncertainty is the mean over pixels of the entropy of the network's probabilities, as a fraction of log K, its largest
value: 0 where it is sure of every pixel, 1 where it knows nothing.

Source: Settles, "Active learning literature survey", 2009, section 3.1.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping

from torch import Tensor

from regloss.apps.annotate.image_set import ImageSet


def mean_entropy(logits: Tensor) -> float:
    """The mean entropy of (1, K, *S) logits, 0 to 1."""
    logs = logits.float().log_softmax(1)
    return float(-(logs.exp() * logs).sum(1).mean()) / math.log(logits.shape[1])


class Uncertainty:
    """The uncertainty of a network on every image, computed in a thread of its own.

    Args:
        images: the images.
        logits: index -> logits (1, K, H, W).
    """

    def __init__(self, images: ImageSet, logits: Callable[[int], Tensor]) -> None:
        self._images = images
        self._logits = logits
        self._lock = threading.Lock()
        self._found: dict[int, float] = {}
        self._problem = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="regloss-uncertainty", daemon=True)
        self._thread.start()

    @property
    def found(self) -> Mapping[int, float]:
        """What is known so far, by index."""
        with self._lock:
            return dict(self._found)

    @property
    def problem(self) -> str:
        """Why no more will be known; "" if there is no reason."""
        return self._problem

    def close(self) -> None:
        """Compute no more than the image that it is at."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import torch

        torch.set_num_threads(1)
        for index in range(len(self._images.ids)):
            if self._stop.is_set():
                return
            try:
                value = mean_entropy(self._logits(index))
            except Exception as error:  # of any image, any network: the page says it, and the others are not lost
                self._problem = f"{self._images.ids[index]}: {type(error).__name__}: {error}"
                continue
            with self._lock:
                self._found[index] = value
