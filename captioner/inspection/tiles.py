"""Large photos in tiles, which are encoded separately and read as one memory."""

import torch
from PIL.Image import Image

from captioner.errors import ConfigError
from captioner.geometry import Geometry, to_pixels
from captioner.inspection.trace import View
from captioner.model.caption_model import CaptionModel
from captioner.model.memory import Memory, concat

MAX_TILES = 64


@torch.inference_mode()
def tiled_memory(model: CaptionModel, photo: Image, tiles: tuple[int, int]) -> tuple[Memory, View]:
    """One memory of the photo's tiles, and the large grid that their patches form."""
    encoder, (rows, columns) = model.encoder, tiles
    height, width = encoder.image_size
    if not 1 <= rows <= photo.height or not 1 <= columns <= photo.width or rows * columns > MAX_TILES:
        raise ConfigError(f"tiles {rows}x{columns}: give 1x1 to {MAX_TILES} tiles, none of less than a pixel")
    whole = Geometry.of(*photo.size, size=(rows * height, columns * width), fit="squash")
    assert encoder.config.interpolation is not None
    pixels = torch.from_numpy(to_pixels(photo, whole, encoder.config.interpolation))
    cut = pixels.unflatten(2, (columns, width)).unflatten(1, (rows, height)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    encoded = model.encode(cut.to(encoder.mean.device))
    memory = concat([encoded.select(torch.tensor([tile])) for tile in range(rows * columns)])
    positions = torch.arange(memory.positions).view(rows, columns, -1)
    prefix, patches, null = positions.tensor_split((encoder.prefix, encoder.patches.stop), dim=2)
    # Patch (y, x) of tile (r, c) is patch (r·h + y, c·w + x) of the large grid.
    high, wide = encoder.grid
    ordered = patches.unflatten(2, (high, wide)).permute(0, 2, 1, 3)
    order = torch.cat([prefix.flatten(), ordered.flatten(), null.flatten()]).tolist()
    return memory, View((rows * high, columns * wide), prefix.numel(), whole, tuple(order))
