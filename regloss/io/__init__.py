"""Files: reading and writing of images, label maps, scribbles and the folders that hold them.

    types       FloatImage, LabelMap, Header: what is read and written
    images      images of any format, by a table of readers
    labels      label maps of any format, likewise, and writing them
    raster      PNG, JPEG and TIFF files, for both
    palettes    colours of classes
    classes     names and colours of a data set's classes: classes.toml
    reduction   images by box mean, labels and scribbles by majority
    scribbles   shortened, or simulated from dense labels
    drawing     polygons, lines and ellipses as pixels
    foreign     annotations of other programs
    folders     files by stem, roots of data sets
    stacks      TIFF, NPY and HDF5 files whose axes have names
    dicom       DICOM files and series
    tiles       rectangles of large images, label maps written as they come
    toml        small files beside data, values on a command line
    samples     image, label map and scribbles that belong together: read, checked, reduced
    outputs     files that are complete or absent, folders that are new or known

Nothing here knows networks or training. The layouts of data sets are plugins (`regloss_plugins.datasets`).
"""
