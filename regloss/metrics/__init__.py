"""Scores of segmentations: torchmetrics Metrics whose states add up over processes.

    confusion    accuracy, IoU and Dice, of a whole set and of each group
    boundary     trimap scores, boundary density, and the functions that measure one image
    surface      HD95, average surface distance and surface Dice
    foreground   scores of phases that know no class names
    scores       all that a network which knows the classes is scored by, in one dictionary
    groups       metrics that keep numbers for each group
    labels       what all of them ask of predictions and labels

Distances are in pixels; those of surfaces in mm where the spacing is known.
"""
