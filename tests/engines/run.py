"""The command line with vLLM made for two CPU cores: python run.py [--repeated] WORDS OF vlaa_lib.

`--repeated`: prompts reach a colocated vLLM as TRL 1.16 makes them, image tokens repeated.
"""

import functools
import sys


def for_a_cpu() -> None:
    """Start in seconds, not minutes; and keep the weights that colocation renews."""
    import trl.generation.vllm_generation as colocated
    import vllm
    from torch.nn import functional
    from vllm.model_executor.layers import utils

    def plain(layer, remove_weight: bool) -> None:
        """Packed weights would be gone: "'Parameter' object has no attribute 'weight_loader'"."""
        layer.cpu_linear = functional.linear

    utils.dispatch_cpu_unquantized_gemm = plain
    # of float32 weights vLLM makes bfloat16 by itself
    given = {"enforce_eager": True, "dtype": "float32"}
    vllm.LLM = colocated.LLM = functools.partial(vllm.LLM, **given)


if __name__ == "__main__":  # vLLM's processes import this file again
    from vlaa_lib.__main__ import main
    from vlaa_lib.train import fast

    for_a_cpu()
    words = sys.argv[1:]
    if words[0] == "--repeated":
        fast.collapsed = lambda ids, token: ids
        words = words[1:]
    sys.exit(main(words))
