"""The two towers of a model as modules of one input and one output, and as graphs that need no class of coreclip.

A graph comes from ``torch.export`` with a batch of any size. What inference does not need is taken out of it: checks of the
input's metadata, weights that it never reads, and batch normalisation, which is multiplied into the convolution before it
(Jacob et al. 2018, arXiv 1712.05877, section 3.2). Left out: captions of other lengths than the model's context; a graph has one.
"""

import copy
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from coreclip.training.model import Clip
from coreclip.training.text_towers import caption_lengths

_BATCH = ({0: torch.export.Dim.DYNAMIC},)
_CHECKS = (torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten._assert_scalar.default)


class ImageTower(nn.Module):
    """Images, uint8 (b, 3, size, size), to features, float32 (b, d) of unit norm.

    Parameters
    ----------
    network : Clip
        Is copied.
    dtype : torch.dtype
        Of weights and arithmetic; pixels are standardised, and features normalised, in float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Clip, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        # Contiguous weights: what reads the exported file knows nothing of torch's memory formats.
        self.tower = copy.deepcopy(network.image).to(dtype).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.projection = copy.deepcopy(network.image_projection).to(dtype)
        self.register_buffer("mean", network.mean.detach().clone())
        self.register_buffer("std", network.std.detach().clone())
        self.dtype = dtype
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images.float() - self.mean) / self.std).to(self.dtype)
        return F.normalize(self.projection(self.tower(pixels)).float(), dim=1)


class TextTower(nn.Module):
    """Token rows, int64 (b, context), to features, float32 (b, d) of unit norm; no shape depends on what is in them.

    Parameters
    ----------
    network : Clip
        Is copied.
    dtype : torch.dtype
        Of weights and arithmetic; features are normalised in float32.
    """

    def __init__(self, network: Clip, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.tower = copy.deepcopy(network.text).to(dtype)
        self.projection = copy.deepcopy(network.text_projection).to(dtype)
        self.end = network.end
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tower(tokens, caption_lengths(tokens, self.end), packed=False)
        return F.normalize(self.projection(hidden).float(), dim=1)


def make_tower(name: str, network: Clip, dtype: torch.dtype = torch.float32) -> ImageTower | TextTower:
    """Return ``"image_tower"`` or ``"text_tower"`` of a model."""
    return (ImageTower if name == "image_tower" else TextTower)(network, dtype)


def exported_program(tower: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Return a tower as a program for inference, of any batch size from 1 on, that holds its own weights and nothing else.

    Parameters
    ----------
    tower : ImageTower or TextTower
    example : Tensor
        An input; two rows at least, as torch takes a batch of one for a constant.
    """
    program = torch.export.export(tower, (example,), dynamic_shapes=_BATCH)
    graph = fold_batch_norms(_plain(program.module()))
    return torch.export.export(graph, (example,), dynamic_shapes=_BATCH)


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """Drop the checks of inputs, which a later export adds anew."""
    for node in list(module.graph.nodes):
        if node.target in _CHECKS or (node.op == "call_module" and not node.users):
            module.graph.erase_node(node)
    return _rebuilt(module, module.graph)


def _rebuilt(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph)  # takes along what the graph reads, and no more


def fold_batch_norms(module: fx.GraphModule) -> fx.GraphModule:
    """Multiply each batch normalisation that follows a convolution alone into that convolution.

    Parameters
    ----------
    module : GraphModule
        Of ATen operations in evaluation mode, as ``torch.export.export(...).module()`` returns it; is changed.
    """
    for number, norm in enumerate(list(module.graph.nodes)):
        if norm.target is not torch.ops.aten.batch_norm.default:
            continue
        convolution = norm.args[0]
        if convolution.target is not torch.ops.aten.conv2d.default or len(convolution.users) > 1:
            continue
        weight, bias = (_tensor(module, node) for node in (*convolution.args[1:3], None)[:2])
        gain, shift, mean, variance = (_tensor(module, node) for node in norm.args[1:5])
        dtype = convolution.meta["val"].dtype
        folded = fuse_conv_bn_weights(weight, bias, mean, variance, norm.args[7], gain, shift)  # type: ignore[arg-type]
        names = f"folded_weight_{number}", f"folded_bias_{number}"
        for name, value in zip(names, folded, strict=True):
            module.register_buffer(name, value.detach().to(dtype).contiguous())
        with module.graph.inserting_before(convolution):
            nodes = tuple(module.graph.get_attr(name) for name in names)
        convolution.args = (convolution.args[0], *nodes, *convolution.args[3:])
        norm.replace_all_uses_with(convolution)
    return _rebuilt(module, module.graph)


def _tensor(module: nn.Module, node: fx.Node | None) -> Tensor | None:
    """What a node reads from the module, in float32: a product of halves would be rounded twice."""
    return None if node is None else operator.attrgetter(str(node.target))(module).float()
