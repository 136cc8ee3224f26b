"""Operations and bytes of a step, counted where they are known by hand."""

import pytest
import torch
from torch import nn

from coreclip.profiling import measure_peaks, measure_roofline


def test_forward_and_backward_of_a_linear_layer_are_counted():
    layer, x = nn.Linear(64, 32, bias=False), torch.randn(128, 64, requires_grad=True)

    def run():
        layer(x).sum().backward()

    roofline = measure_roofline(run, milliseconds=1.0, repeats=1)
    assert roofline.flops == 3 * 2 * 128 * 64 * 32  # forward, and the gradients of weights and inputs
    products = {operator.name: operator for operator in roofline.operators if operator.flops}
    assert set(products) == {"aten::mm"}
    product = products["aten::mm"]
    assert product.calls == 3
    assert product.n_bytes == 3 * 4 * (128 * 64 + 64 * 32 + 128 * 32)
    assert product.milliseconds > 0


def test_utilisation_is_operations_over_what_the_machine_could_do():
    roofline = measure_roofline(lambda: torch.ones(64, 64) @ torch.ones(64, 64), milliseconds=2.0, repeats=1)
    assert roofline.utilisation == pytest.approx(2 * 64**3 / (0.002 * roofline.peaks.flops_per_second))
    table = roofline.to_dict()
    assert table["operators"][0].keys() == {"name", "calls", "flops", "n_bytes", "milliseconds"}


def test_peaks_are_those_of_a_machine():
    peaks = measure_peaks()
    assert 1e9 < peaks.flops_per_second < 1e15
    assert 1e8 < peaks.bytes_per_second < 1e13
