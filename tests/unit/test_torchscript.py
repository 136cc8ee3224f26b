"""The guard of traces: a module that branches on its input is refused on the input whose branch the trace lacks."""

import pytest
import torch
from torch import nn

from coreclip.errors import CoreclipError
from coreclip.training.torchscript import checked_trace

pytestmark = pytest.mark.usefixtures("one_thread")

DARK, BRIGHT = torch.zeros(2, 3), torch.ones(2, 3)


class ByValue(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 1 else x - 1


class ByBatch(nn.Module):
    def forward(self, x):
        return x.flip(0) if len(x) == 2 else x


class FixedShape(nn.Module):
    def forward(self, x):
        return x.reshape(int(x.shape[0]), 3).expand(x.tolist().__len__(), 3) + torch.ones(x.tolist().__len__(), 1)


class Straight(nn.Module):
    def forward(self, x):
        return torch.where(x > 1, x * 2, x - 1)


@pytest.mark.parametrize(
    ("module", "case", "rows", "words"),
    [
        (ByValue(), "dark rows", DARK, "differs by 1, 0.0001 is allowed on dark rows"),
        (ByBatch(), "a batch of one", torch.arange(3.0)[None].repeat(3, 1) * torch.arange(3)[:, None], "differs by"),
        (FixedShape(), "a batch of three", torch.ones(3, 3), "fails .* on a batch of three"),
    ],
)
def test_a_trace_that_lacks_a_branch_is_refused(module, case, rows, words):
    with pytest.raises(CoreclipError, match=words):
        checked_trace(module.eval(), BRIGHT, {"what was traced": BRIGHT, case: rows}, name="tower")


def test_the_error_says_what_to_do():
    with pytest.raises(CoreclipError, match=r"the trace of the tower .* use --format torch-export or onnx"):
        checked_trace(ByValue().eval(), BRIGHT, {"dark rows": DARK}, name="tower")


def test_a_module_without_branches_passes_on_all():
    cases = {"bright": BRIGHT, "dark": DARK, "one": BRIGHT[:1], "many": torch.randn(7, 3)}
    trace = checked_trace(Straight().eval(), BRIGHT, cases, name="tower")
    torch.testing.assert_close(trace(DARK), DARK - 1)


def test_a_shape_that_the_trace_froze_is_refused():
    class Frozen(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x.tolist()), 2)

    with pytest.raises(CoreclipError, match=r"has the shape \(2, 2\) in place of \(1, 2\) on one row"):
        checked_trace(Frozen().eval(), BRIGHT, {"one row": BRIGHT[:1]}, name="tower")
