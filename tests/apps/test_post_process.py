"""PostProcess of predictions: what is solved, what is written, and what the command takes."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from regloss import DenseCRF, MeanField, MissingForm, Sum, TotalVariation, UsageError, solve
from regloss.apps.post_process import PostProcess
from regloss.apps.predict import predict_files
from regloss.io.images import read_image
from regloss.numerics import one_hot
from regloss.training.model import load_model, predict


def test_by_default_it_is_mean_field_on_two_dense_crfs():
    refinement = PostProcess.parse()
    assert isinstance(refinement.regularizer, Sum)
    assert refinement.regularizer.parts == (
        DenseCRF(10, sigma_xy=80, sigma_rgb=0.051, scale=1),
        DenseCRF(3, sigma_xy=3, sigma_rgb=math.inf, scale=1),
    )
    assert refinement.solver == MeanField(max_steps=10, tolerance=1e-3)
    assert refinement.entropy == 1


def test_it_cleans_up_what_colours_contradict():
    """Two flat halves: wrong predictions amid one colour go, those at the edge of the colours stay."""
    truth = (torch.arange(60) >= 30).long().expand(1, 40, 60)
    image = (0.2 + 0.6 * truth).unsqueeze(1).float().expand(1, 3, 40, 60)
    logits = 2.0 * torch.nn.functional.one_hot(truth, 2).movedim(-1, 1)
    logits[:, :, 10:14, 5:9] = logits[:, :, 10:14, 5:9].flip(1)
    logits[:, :, 20:24, 40:44] = logits[:, :, 20:24, 40:44].flip(1)
    assert not torch.equal(logits.argmax(1), truth)
    refinement = PostProcess.parse()
    found = refinement(logits.to(torch.bfloat16), image)
    assert torch.equal(found.labels, truth)
    term = refinement.regularizer.bind(image)
    same = solve(term, -torch.log_softmax(logits, 1), refinement.solver, entropy=1.0)
    assert torch.allclose(found.probabilities, same.probabilities, atol=1e-3)


def test_other_priors_and_solvers():
    image = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    weightless = PostProcess.parse(["dense-crf:weight=0"])
    assert torch.allclose(weightless(logits, image).probabilities, logits.softmax(1), atol=1e-6)
    refinement = PostProcess.parse(["grid-crf:weight=3"], "alpha-expansion", 0.0)
    cut = refinement(logits, image)
    own = one_hot(logits.argmax(1), 3, torch.float32)
    before = refinement.regularizer.bind(image).energy(own) - torch.log_softmax(logits, 1).amax(1).sum()
    assert float(cut.energy) < float(before)
    with pytest.raises(UsageError, match="Use entropy=0"):
        PostProcess.parse(["grid-crf"], "alpha-expansion")(logits, image)


@pytest.mark.parametrize(("size", "classes"), [((3, 4), 2), ((2, 4), 3)])
def test_labels_with_total_variation_are_tv_l1(size, classes):
    """Of all labellings none has a smaller |s - f|_1 + TV(s)."""
    refinement = PostProcess.parse(["tv:weight=0.7"], "alpha-expansion", 0.0, "labels")
    image, changed = torch.zeros(1, 1, *size), 0
    term = refinement.regularizer.bind(image)
    every = torch.tensor(list(itertools.product(range(classes), repeat=math.prod(size)))).reshape(-1, *size)
    for seed in range(5):
        logits = 9 * torch.randn(1, classes, *size, generator=torch.Generator().manual_seed(seed))
        f = one_hot(logits.argmax(1), classes)
        s = one_hot(every, classes)
        variations = TotalVariation(0.7).bind(torch.zeros(len(every), 1, *size)).energy(s)
        energies = (s - f).abs().flatten(1).sum(1) + variations
        found = refinement(logits, image)
        assert float(found.energy) == pytest.approx(float(energies.min()), abs=1e-5)
        own = one_hot(found.labels, classes)
        assert float((own - f).abs().sum() + term.energy(own)) == pytest.approx(float(energies.min()), abs=1e-5)
        changed += not torch.equal(found.labels, logits.argmax(1))
    assert changed >= 3


def test_logits_that_are_not_finite_are_refused():
    logits = torch.full((1, 2, 3, 3), math.nan)
    with pytest.raises(UsageError, match="logits"):
        PostProcess.parse(["tv"], "alpha-expansion", 0.0, "labels")(logits, torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((["grid-crfs"],), UsageError, "grid-crf"),
        ((["dense-crf:sigma-rgb=13"],), UsageError, "divided by 255"),
        ((None, "alpha-expansion"), MissingForm, "Solvers that can"),
        ((None, None, -1.0), UsageError, "entropy"),
        ((None, None, math.nan), UsageError, "entropy"),
        ((None, None, None, "label"), UsageError, "log-probabilities, labels"),
    ],
)
def test_what_is_invalid_is_refused(given, error, words):
    with pytest.raises(error, match=words):
        PostProcess.parse(*given)


def test_predictions_are_refined_at_the_size_of_the_image(trained, images, tmp_path):
    refine = PostProcess.parse(["dense-crf:weight=20,sigma-xy=6,sigma-rgb=0.2"])
    assert predict_files(trained, images / "images", tmp_path / "out", post_process=refine) == 8
    model, changed = load_model(trained), 0
    for name in (f"i{n}" for n in range(8)):
        image = torch.from_numpy(read_image(images / "images" / f"{name}.png")).unsqueeze(0)
        logits = predict(model.segmenter, image)
        with Image.open(tmp_path / "out" / "labels" / f"{name}.png") as picture:
            found = np.asarray(picture)
        np.testing.assert_array_equal(found, refine(logits, image).labels[0])
        changed += int((found != logits.argmax(1)[0].numpy()).sum())
    assert changed > 0
