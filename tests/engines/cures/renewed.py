"""A CPU's vLLM whose weights can be renewed: colocated by import, of a server by its worker.

`vllm serve` takes the worker as `--worker-extension-cls renewed.Worker`.
"""

from safetensors.torch import load_file
from torch.nn import functional
from vllm.model_executor.layers import utils


def plain(layer, remove_weight: bool) -> None:
    """Packed weights would be gone: "'Parameter' object has no attribute 'weight_loader'"."""
    layer.cpu_linear = functional.linear


utils.dispatch_cpu_unquantized_gemm = plain


class Worker:
    """What a worker of the server can do besides: load weights that lie in a file."""

    def renew(self, path: str) -> None:
        self.model_runner.model.load_weights(load_file(path).items())
