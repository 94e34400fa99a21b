"""What the command line calls, one module a command; the same can be called from Python.

train          a network, as a TOML file says
evaluate       scores of a trained model, with noise too (noise)
compare        scores of several, as a table and a chart
predict        images segmented with a trained model
post_process   predictions refined by a prior
annotate       a page to draw scribbles on, and to train on them
segment        one image, without a network of its own, by a segmenter
demo           two trainings on sample images, compared
components     NAME:setting=value,... of a command line
"""
