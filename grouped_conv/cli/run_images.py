"""From image files to a network's input: reading, resizing, cropping and normalising as each AlexNet was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

BUNDLED_PHOTO = "chelsea.jpg"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How pixels become input: resize, centre crop, then `(pixel - mean) / std` on pixels in 0..`peak`.

    Attributes:
        resize: the shorter side after resizing, pixels.
        peak: what a full-scale pixel (255) becomes before normalising.
        mean, std: per channel, in `channels` order.
        channels: `RGB` or `BGR`.
    """

    resize: int
    peak: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: str

    def __str__(self) -> str:
        return f"shorter side {self.resize}, centre crop, {self.channels} in 0..{self.peak:g}, minus {self.mean}" + (
            "" if self.std == (1.0, 1.0, 1.0) else f", divided by {self.std}"
        )


PREPROCESSING = {
    # The paper subtracts the training set's mean image; its mean colour is used instead, which needs no file.
    "paper": Preprocessing(256, 255.0, (123.0, 117.0, 104.0), (1.0, 1.0, 1.0), "RGB"),
    # Caffe's mean colour of ILSVRC12, B G R. Its own pipeline squeezes images to 256x256; here the aspect is kept.
    "caffe": Preprocessing(256, 255.0, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "BGR"),
    # torchvision's ImageNet presets.
    "torchvision": Preprocessing(256, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB"),
}


def load_images(paths: Sequence[str | Path], preprocessing: Preprocessing, crop: int) -> Tensor:
    """Read image files as one float32 batch `(N, 3, crop, crop)`.

    Args:
        paths: files that Pillow can read (JPEG, PNG, ...); none at all means the bundled photo.
        preprocessing: how the pixels are prepared.
        crop: side of the centre crop, pixels.

    Raises:
        OSError: for a file that cannot be opened.
        ValueError: for one that is not an image, or is cut short.
    """
    if not paths:
        with as_file(files("grouped_conv.data") / BUNDLED_PHOTO) as photo:
            return _prepare(photo, preprocessing, crop)[None]
    return torch.stack([_prepare(Path(path), preprocessing, crop) for path in paths])


def _prepare(path: Path, preprocessing: Preprocessing, crop: int) -> Tensor:
    image = _read(path)
    scale = max(preprocessing.resize, crop) / min(image.size)
    size = (max(crop, round(image.width * scale)), max(crop, round(image.height * scale)))
    left, top = ((side - crop) // 2 for side in size)
    image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + crop, top + crop))
    pixels = np.asarray(image, dtype=np.float32) * (preprocessing.peak / 255)  # [crop, crop, 3]
    if preprocessing.channels == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = (np.asarray(values, dtype=np.float32) for values in (preprocessing.mean, preprocessing.std))
    normalised = (pixels - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image file that Pillow can read") from None
    except (Image.DecompressionBombError, SyntaxError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:
        if error.filename:
            raise
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
