"""Images as Python programs hold them: also file objects and tensors."""

from typing import BinaryIO, TypeAlias, cast

from torch import Tensor

from captioner.files import Inner
from captioner.images import ImageSource

AnyImage: TypeAlias = ImageSource | BinaryIO | Tensor
"""A tensor is (3, H, W) uint8, as torchvision reads images."""


def plain_source(image: AnyImage) -> ImageSource:
    """Convert for `open_image`: a file object to its bytes, a tensor to an array (H, W, 3); return others unchanged."""
    if isinstance(image, Tensor):
        return cast(ImageSource, (image.movedim(0, -1) if image.ndim == 3 else image).cpu().numpy())
    if hasattr(image, "read") and not isinstance(image, Inner):
        return cast(BinaryIO, image).read()
    return image
