"""What a run or a segmentation looks like: charts, overlays, and the page of a training.

    overlays      labels over images, as arrays
    examples      images with their labellings, to be shown
    charts        figures: examples, curves, scores
    numbers       columns of logs as numbers, numbers as text
    advice        what to try when a run looks bad
    page          the report of a training: one HTML file
    convergence   how the energy of one image fell: a table and a chart

Nothing here knows networks or how they are trained.
"""
