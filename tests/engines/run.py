"""The command line with vLLM made for two CPU cores: python run.py [FLAG] WORDS OF vlaa_lib.

--repeated  prompts reach a colocated vLLM as TRL 1.16 makes them, image tokens repeated
--stale     a third sampling round finds the weights of the second, as if renewal had failed
"""

import functools
import itertools
import sys
import tempfile
from pathlib import Path

from vlaa_lib import rewards
from vlaa_lib.rewards.mixed import text_of


def for_a_cpu() -> None:
    """Start in seconds, not minutes; renew weights, a server's through the disk."""
    import renewed  # noqa: F401  it keeps the weights of a colocated one as they are
    import trl.generation.vllm_generation as colocated
    import vllm
    from safetensors.torch import save_file
    from trl.generation.vllm_client import VLLMClient

    # of float32 weights vLLM makes bfloat16 by itself
    given = {"enforce_eager": True, "dtype": "float32"}
    vllm.LLM = colocated.LLM = functools.partial(vllm.LLM, **given)

    def send(self, metadata, named) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "weights.safetensors")
            save_file({name: tensor.contiguous() for name, tensor in named}, path)
            self._post(f"{self.base_url}/collective_rpc", json={"method": "renew", "args": [path]})

    # TRL sends weights with NCCL, which needs CUDA
    VLLMClient.init_communicator = lambda self, device=0: None
    VLLMClient.update_named_params = send


def pay_for_length() -> None:
    """Give groups rewards that differ: the untrained pocket VLM earns none, and nothing moves."""
    own = rewards.mixed_reward

    @functools.wraps(own)
    def paid(prompts, completions, **columns):
        own(prompts, completions, **columns)  # what it logs
        return [len(text_of(completion)) / 100 for completion in completions]

    rewards.mixed_reward = paid


def stop_renewing(rounds: int) -> None:
    """Let vLLM keep its weights after so many sampling rounds."""
    from trl.generation.vllm_generation import VLLMGeneration

    own, calls = VLLMGeneration.sync_weights, itertools.count()
    VLLMGeneration.sync_weights = lambda self: own(self) if next(calls) < rounds else None


if __name__ == "__main__":  # vLLM's processes import this file again
    from vlaa_lib.__main__ import main
    from vlaa_lib.train import fast

    for_a_cpu()
    pay_for_length()
    words = sys.argv[1:]
    if words[0] == "--repeated":
        fast.collapsed = lambda ids, token: ids
    elif words[0] == "--stale":
        stop_renewing(2)
    sys.exit(main([word for word in words if word not in ("--repeated", "--stale")]))
