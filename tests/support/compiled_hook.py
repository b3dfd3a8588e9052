"""Compiles a hooked layer in one piece and compares it at several strengths; a program of its own.

In the process of the tests, annotations are checked at every call, which cannot be compiled.
"""

import torch
from torch import nn

import pack  # noqa: F401, it gives the pack its import name
from anyadapter.algorithms.adapters.lora import Lora
from anyadapter.algorithms.dispatch import Dispatcher
from anyadapter.algorithms.plan import LayerPlan
from anyadapter.algorithms.strength import Placed, Strengths
from layer_cases import layer_of


def main() -> None:
    """Raises an error where the code cannot be compiled whole, or computes something else."""
    torch.manual_seed(0)
    module = nn.Linear(6, 8).requires_grad_(False)
    adapter = Lora(torch.randn(8, 4), torch.randn(4, 6), 2.0)
    x = torch.randn(2, 7, 6)
    plan = LayerPlan(layer_of(module), [Placed(adapter, 1.0)], x.device, x.dtype)
    strengths = Strengths([[0.5]])

    def running(*_: object) -> tuple[LayerPlan, Strengths]:
        return plan, strengths

    plain = module(x)
    module.forward = Dispatcher(module.forward, layer_of(module), running, alone=True).forward
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for number in (0.5, -0.7, 0.0, 0.3):
        strengths = Strengths([[number]])
        expected = plain + number * (x @ (adapter.up @ adapter.down / 2).T)
        torch.testing.assert_close(compiled(x), expected)


if __name__ == "__main__":
    main()
