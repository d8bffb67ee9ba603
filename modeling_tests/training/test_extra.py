import subprocess
import sys

WITHOUT = """
import sys
sys.modules["datasets"] = None  # any import of it now fails
from transformers_lion.example import example_image
print(example_image(64).size)
try:
    from transformers_lion.training import make_trainer
except ImportError as error:
    print(error)
import transformers_lion.training
print(hasattr(transformers_lion.training, "lost"))
"""


def test_without_the_extra_scenes_are_drawn_and_training_names_it() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "(64, 64)",
        'Training needs datasets, which is not installed: pip install "transformers-lion[train]".',
        "False",
    ]
