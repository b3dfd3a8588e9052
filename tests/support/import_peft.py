"""The one place that imports PEFT: it imports transformers, which imports torchvision.

A PEFT that cannot be imported fails the tests: it is one of their tools.
"""

import importlib
import importlib.util

from start_comfyui import declare_missing_torchvision_ops

if importlib.util.find_spec("torchvision") is not None:
    declare_missing_torchvision_ops()

peft = importlib.import_module("peft")
