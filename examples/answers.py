"""Runs the example checkpoint on two images: `python -m examples.answers [FOLDER]`."""

import argparse
from pathlib import Path
from typing import Any

from transformers import logging, pipeline

from transformers_lion.example import example_checkpoint, example_image, sketch
from transformers_lion.grounding import draw_boxes

SCENE_QUESTIONS = ("How many objects are there?", "Is there a green star in the image?")
SCENE_PHRASES = ("the leftmost object", "the lowest object")
SKETCH_QUESTIONS = ("What color is the triangle?", "Is the yellow square to the right of the red circle?")
SKETCH_PHRASES = ("the red circle", "the blue triangle", "the small yellow square")


def main() -> None:
    """Tag, caption and query two images, print the answers, and save the images with boxes."""
    parser = argparse.ArgumentParser(prog="python -m examples.answers", description="Show LION at work.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo"), help="folder for the output images")
    folder = parser.parse_args().folder
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipe: Any = pipeline("image-to-text", model=example_checkpoint())
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, questions, phrases in (
        ("scene", example_image(), SCENE_QUESTIONS, SCENE_PHRASES),
        ("sketch", sketch(), SKETCH_QUESTIONS, SKETCH_PHRASES),
    ):
        print(f"{name}, {image.width} x {image.height}")
        print(f"  tags     {', '.join(pipe.tagger([image])[0] or [])}")
        print(f"  caption  {pipe(image)[0]['generated_text']}")
        for question in questions:
            print(f"  ask      {question}  {pipe(image, text=question)[0]['generated_text']}")
        entities = []
        for phrase in phrases:
            question = f"How can I locate {phrase} in the image? Please provide the coordinates."
            answer = pipe(image, text=question, task_type="region_level")[0]["generated_text"]
            print(f"  locate   {phrase}  {answer}")
            found = pipe.processor.post_process_generation(answer, image_size=image)[1]
            entities += [(phrase, span, boxes) for _, span, boxes in found]
        file = folder / f"{name}.png"
        draw_boxes(image, entities).save(file)
        print(f"  image  {file}")


if __name__ == "__main__":
    main()
