import subprocess
import sys

import torch
from torch import Tensor

from vpp_plugins.prompts.compiling import outside_graphs


@outside_graphs
def largest(tensor: Tensor, *, at_least: int = 0) -> int:
    """Return the largest number."""
    return max(at_least, *tensor.tolist())


def test_it_is_the_function() -> None:
    assert largest(torch.tensor([3, 5])) == 5
    assert largest(torch.tensor([3, 5]), at_least=9) == 9
    assert (largest.__name__, largest.__doc__) == ("largest", "Return the largest number.")


def test_numbers_stay_right_between_graphs() -> None:
    compiled = torch.compile(lambda tensor: (tensor + 1) * largest(tensor * 2), backend="eager")
    for numbers in ([1, 2], [3, 4]):
        tensor = torch.tensor(numbers)
        assert torch.equal(compiled(tensor), (tensor + 1) * 2 * numbers[1])


def test_no_public_name_imports_the_compiler() -> None:
    script = (
        "import sys, vpp_plugins; [getattr(vpp_plugins, name) for name in vpp_plugins.__all__]; "
        "assert 'torch' in sys.modules; sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
