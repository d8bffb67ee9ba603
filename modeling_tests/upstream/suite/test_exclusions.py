"""The list of exclusions names only what is there."""

from exclusions import EXCLUSIONS

import test_image_processing_lion
import test_modeling_lion
import test_processing_lion

MODULES = (test_modeling_lion, test_processing_lion, test_image_processing_lion)


def test_every_exclusion_is_a_check_of_a_test_class():
    classes = {name: value for module in MODULES for name, value in vars(module).items()}
    for check, (names, _) in EXCLUSIONS.items():
        for name in names:
            assert hasattr(classes[name], check), f"{name} has no {check}"
