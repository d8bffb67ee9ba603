"""Entry point of `python -m transformers_lion.cli`, for `torchrun` and `accelerate launch`."""

from . import main

main()
