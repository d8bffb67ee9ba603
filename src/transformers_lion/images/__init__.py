"""Opens images in any form as upright RGB images with 8 bits per channel, or raises an error that names the image.

All images are opened here, so that models, drawing and box conversion use the same pixels and the same size. Reading
order: `loading.py`, `pixels.py`, `downloads.py`, `files.py`.
"""

from .downloads import TIMEOUT, is_url
from .files import describe_passed_over, find_files, open_image_bytes, open_image_file, readable_suffixes, walk
from .loading import (
    PLUG_IN_SUFFIXES,
    ImageSource,
    advise,
    find_size,
    flatten,
    image_key,
    is_base64,
    is_batch,
    is_data_uri,
    is_stored_image,
    load_rgb_images,
    open_file,
    register_plug_ins,
    to_rgb,
    upright_size,
    warn_about_gray_batch,
)
from .pixels import ORIENTATION, measure

__all__ = [
    "ORIENTATION",
    "PLUG_IN_SUFFIXES",
    "TIMEOUT",
    "ImageSource",
    "advise",
    "describe_passed_over",
    "find_files",
    "find_size",
    "flatten",
    "image_key",
    "is_base64",
    "is_batch",
    "is_data_uri",
    "is_stored_image",
    "is_url",
    "load_rgb_images",
    "measure",
    "open_file",
    "open_image_bytes",
    "open_image_file",
    "readable_suffixes",
    "register_plug_ins",
    "to_rgb",
    "upright_size",
    "walk",
    "warn_about_gray_batch",
]
