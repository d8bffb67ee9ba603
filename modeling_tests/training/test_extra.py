import subprocess
import sys

WITHOUT = """
import sys
sys.modules["datasets"] = None  # any import of it now fails
try:
    from transformers_lion.training import make_trainer
except ImportError as error:
    print(error)
try:
    import transformers_lion.training.stages
except ImportError as error:
    print(error)
"""


def test_without_the_extra_training_names_it() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    expected = 'Training needs datasets, which is not installed: pip install "transformers-lion[train]".'
    assert ran.stdout.splitlines() == [expected, expected]
