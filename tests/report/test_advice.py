"""What is said of a run that looks bad, with its numbers; of a good one nothing is said."""

from dataclasses import replace

import numpy as np
import pytest

from regloss.report.advice import Advice, TrainingMeasures, advice

CLASSES = ["background", "cell", "nucleus"]
RIGHT = np.diag([8000, 1500, 500])
GOOD = TrainingMeasures(
    images=8,
    compared=8,
    pixels=8 * 10_000,
    scribbles=True,
    labelled=np.array([800, 400, 300]),
    labelled_images=np.array([8, 8, 7]),
    in_crops=np.array([100.0, 150.0, 120.0]),
    crop_share=0.25,
    at_labels=np.diag([800, 400, 300]),
    prediction=RIGHT,
    proposal=RIGHT,
)


def said(measures=GOOD, confusion=RIGHT, losses=(), classes=CLASSES):
    scores = {} if confusion is None else {"test": {"confusion": np.asarray(confusion).tolist()}}
    epochs = [{"epoch": epoch, "loss": loss} for epoch, loss in enumerate(losses)]
    return [str(each) for each in advice(classes, scores, epochs, measures)]


def test_nothing_is_said_of_a_good_run():
    assert said() == []
    assert said(confusion=None) == []
    assert said(losses=[1.0] * 40) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"labelled": np.array([800, 0, 300]), "labelled_images": np.array([8, 0, 7])},
            "None of 8 training images has a scribble of 'cell'. Scribble it where it occurs",
        ),
        ({"labelled_images": np.array([3, 8, 7])}, "'background' is scribbled in 3 of 8 training images. Scribble it"),
        (
            {"labelled": np.array([800, 400, 70])},
            "Labelled pixels are few; in an image, in the mean: 'nucleus' 10. Draw",
        ),
        (
            {"in_crops": np.array([40.0, 150.0, 120.0])},
            "A training crop holds 5.0 % of the scribbles of 'background', in the mean, and 25.0 % of an image. Draw",
        ),
        (
            {"proposal": np.array([[4000, 4000, 0], [0, 1500, 0], [0, 0, 500]])},
            # IoU 1/2, 1500/5500 and 1.
            "The proposals are worse than the network: mean IoU 0.591 against 1.000 on 8 training images. Lower",
        ),
        (
            {"at_labels": np.array([[200, 500, 100], [0, 400, 0], [0, 0, 300]])},
            "62.5 % of the pixels scribbled as 'background' in training images are called 'cell' by the network. Train",
        ),
        (
            {"scribbles": False, "at_labels": np.array([[200, 500, 100], [0, 400, 0], [0, 0, 300]])},
            "62.5 % of the pixels labelled as 'background' in training images are called 'cell' by the network. Train",
        ),
    ],
)
def test_of_what_was_measured_on_training_images(changes, found):
    (only,) = said(replace(GOOD, **changes))
    assert only.startswith(found)


def test_a_warm_up_is_named_last():
    """As docs/start/your-images.md, where it did worse than nothing on most runs."""
    (only,) = said(replace(GOOD, at_labels=np.array([[200, 500, 100], [0, 400, 0], [0, 0, 300]])))
    assert only.index("training.epochs") < only.index("weight of the regularizer") < only.index("The last thing to try")
    assert only.index("The last thing to try") < only.index("training.warm-up")


def test_of_scores():
    never = np.array([[0, 6000, 2000], [0, 1500, 0], [0, 0, 500]])
    only = said(replace(GOOD, prediction=None, proposal=None), never)
    assert [line.split(". ")[0] for line in only] == [
        "'background' is never predicted on test, where 80.0 % of the pixels are of it; most are called 'cell'"
    ]
    confused = np.array([[8000, 0, 0], [0, 900, 600], [0, 0, 500]])
    (only,) = said(replace(GOOD, prediction=None, proposal=None), confused)
    assert only.startswith("40.0 % of 'cell' on test is called 'nucleus'. Scribble both on either side")
    # A class that the subset does not hold says nothing of the network.
    assert said(confusion=np.diag([8000, 1500, 0])) == []


def test_of_a_network_that_knows_its_training_images_alone():
    # Every class loses 25 % to the next: IoU 6000 / 8125, 1125 / 3500 and 375 / 875.
    test = np.array([[6000, 2000, 0], [0, 1125, 375], [125, 0, 375]])
    (only,) = said(confusion=test)
    assert only.startswith("The mean IoU is 0.496 on test, and 1.000 on training images. Train on more images")


def test_of_a_loss_that_still_fell():
    falling = [1 / (1 + epoch) for epoch in range(40)]
    (only,) = said(losses=falling)
    assert only.startswith("The loss was still falling: 0.029, then 0.026 in the last 4 of 40 epochs. Train longer")
    assert said(losses=falling[:19]) == []  # too few to tell
    assert said(losses=[*falling[:20], float("nan"), *[0.05] * 20]) == []


def test_dense_labels_are_no_strokes():
    """Few, at the border, in some images alone: true of dense labels too, and nothing that one could draw better."""
    few = {"labelled": np.array([9, 0, 9]), "labelled_images": np.array([1, 0, 7]), "in_crops": np.array([0.1, 0, 0.1])}
    assert said(replace(GOOD, **few, scribbles=False)) == []
    assert len(said(replace(GOOD, **few))) == 5


def test_few_pixels_of_a_small_image_are_not_few():
    few = replace(GOOD, labelled=np.array([800, 72, 70]))
    assert said(few) == [
        "Labelled pixels are few; in an image, in the mean: 'cell' 9, 'nucleus' 10. Draw longer strokes, over all that "
        "the class looks like; a click leaves the rest to the prior."
    ]
    assert said(replace(few, pixels=8 * 1000)) == []


def test_without_labels_only_the_loss_speaks():
    never = np.array([[0, 6000, 2000], [0, 1500, 0], [0, 0, 500]])
    assert said(None, never) == []
    assert len(said(None, never, [1 / (1 + epoch) for epoch in range(40)])) == 1


def test_advice_in_words():
    assert str(Advice("It is so.", "Do this.")) == "It is so. Do this."
