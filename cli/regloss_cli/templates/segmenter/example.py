"""A sample image, which regloss[sample] brings, in three phases: python example.py."""

import torch

import regloss

sample = regloss.create("dataset", "sample")
image = torch.from_numpy(sample.load(sample.ids("test")[0]).image).unsqueeze(0)
found = regloss.create("segmenter", "my-component", radius=2)(image, phases=3)
print(found.summary())
print("pixels per class:", found.labels.flatten().bincount().tolist())

# From files to files: regloss segment IMAGE.png --method my-component:radius=2 --phases 3 --output FOLDER
