"""A small fully convolutional network: dilated convolutions at the resolution of the image.

Layer by layer the taps of the 3x3 convolutions lie 1, 2, 4, ... pixels apart, so that a pixel sees 2^layers - 1 pixels
to each side, and nothing has to be scaled down and up again.
Source: Yu, Koltun, "Multi-scale context aggregation by dilated convolutions", ICLR 2016.
"""

from __future__ import annotations

from torch import Tensor, nn

from regloss.errors import UsageError


class MyComponent(nn.Module):
    """Dilated 3x3 convolutions, each with group normalisation and ReLU, and a 1x1 convolution to the logits; 2D.

    Args:
        in_channels: channels C of the image; given by the data.
        classes: classes K; given by the data.
        channels: feature maps of each layer, a multiple of 4.
        layers: number of dilated convolutions, at least 1.

    Raises:
        UsageError: a setting outside its range.
    """

    def __init__(self, in_channels: int, classes: int, channels: int = 16, layers: int = 4) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise UsageError(f"channels must be a multiple of 4, for groups of 4; got {channels}.")
        if layers < 1:
            raise UsageError(f"layers must be at least 1; got {layers}.")
        self.in_channels = in_channels
        body: list[nn.Module] = []
        for layer in range(layers):
            seen, apart = (channels if layer else in_channels), 2**layer
            body += [
                # No bias: the normalisation has one. Groups rather than a batch, so that images do not see each other.
                nn.Conv2d(seen, channels, 3, padding=apart, dilation=apart, bias=False),
                nn.GroupNorm(channels // 4, channels),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*body)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of ``image`` (B, C, H, W)."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise UsageError(
                f"my-component was made for images (B, {self.in_channels}, H, W); got the shape {tuple(image.shape)}."
            )
        logits: Tensor = self.head(self.body(image))
        return logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Body and head, which ``training.head-lr`` gives another learning rate."""
        return {"body": list(self.body.parameters()), "head": list(self.head.parameters())}
