"""The formats that ``export`` writes, by name. A new one is one more entry."""

from coreclip.training.checkpoint_exports import open_checkpoint, write_hf, write_open_clip
from coreclip.training.export_job import Format
from coreclip.training.onnx_export import PACKAGES as ONNX_PACKAGES
from coreclip.training.onnx_export import open_onnx, write_onnx
from coreclip.training.openvino_export import PACKAGES as OPENVINO_PACKAGES
from coreclip.training.openvino_export import open_openvino, write_openvino
from coreclip.training.torch_export import open_torch_export, write_torch_export
from coreclip.training.torchscript import open_torchscript, write_torchscript
from coreclip.training.triton import open_triton, write_triton

FORMATS: dict[str, Format] = {
    "onnx": Format(
        "two ONNX graphs, for onnxruntime, TensorRT and most others",
        write_onnx,
        open_onnx,
        ("fp32", "fp16", "int8"),
        ONNX_PACKAGES,
    ),
    "openvino": Format(
        "two OpenVINO models, for Intel's processors",
        write_openvino,
        open_openvino,
        ("fp32", "fp16", "int8"),
        OPENVINO_PACKAGES,
    ),
    "torch-export": Format(
        "two torch.export programs (.pt2), which torch alone loads",
        write_torch_export,
        open_torch_export,
        ("fp32", "fp16"),
        runs_code=True,
    ),
    "torchscript": Format(
        "two traces for old deployments of libtorch (legacy)",
        write_torchscript,
        open_torchscript,
        ("fp32", "fp16"),
        runs_code=True,
    ),
    "triton": Format(
        "a model repository of ONNX graphs for NVIDIA Triton",
        write_triton,
        open_triton,
        ("fp32", "fp16", "int8"),
        ONNX_PACKAGES,
    ),
    "hf": Format(
        "a checkpoint for Hugging Face's transformers (ViT, CLIP's vocabulary)",
        write_hf,
        open_checkpoint,
        checkpoint_of="transformers",
    ),
    "open_clip": Format(
        "a checkpoint for open_clip (ViT or ResNet, CLIP's vocabulary)",
        write_open_clip,
        open_checkpoint,
        checkpoint_of="open_clip",
    ),
}
