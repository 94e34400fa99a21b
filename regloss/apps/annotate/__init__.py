"""A local page to draw scribbles on the images of a folder, with the solver's answer beside.

command      starts it: checks the folder, binds the port, prints the address
image_set    the images of the folder, and its classes
sources      their files: pictures, or volumes whose slices are drawn on
scribbles    what was drawn, on disk after every stroke
leases       which tab draws on which image
live         the segmentation that follows from scribbles
solver       the thread that computes it, newest request first
masks        answers as label maps, on disk
training     "train on these": a configuration, a process, its progress
uncertainty  which images a trained network is least sure of
guard        who may ask: address, token, origin, sizes; and what browsers may do with the answers
server       the routes
page         HTML, style sheet and modules of the page, served as they are
"""
