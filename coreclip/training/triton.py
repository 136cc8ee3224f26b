"""An NVIDIA Triton model repository of the two towers' ONNX graphs, and a check of such a repository.

``model_repository/{image_tower,text_tower}/config.pbtxt`` and ``1/model.onnx``. No server is run: the check reads each
configuration by a table of the fields of Triton's ``ModelConfig`` (the tests compare it with NVIDIA's own schema) and holds it against
the graph beside it. Left out of the table: batch inputs, sequence batching, ensembles, model agents, warm-up data; a configuration that
uses them is refused as unknown.
"""

from pathlib import Path
from typing import Any

from coreclip.errors import CoreclipError
from coreclip.files import write_text
from coreclip.training.export_job import INPUTS, OUTPUT, TOWERS, ExportJob, Runner
from coreclip.training.onnx_export import run_onnx, write_tower
from coreclip.training.pbtxt import Field, parse

REPOSITORY = "model_repository"
MAX_BATCH_SIZE = 64
_QUEUE_MICROSECONDS = 1000

# Triton's names of types, and ONNX's numbers for them (onnx.TensorProto.DataType).
_TYPES = {"TYPE_BOOL": 9, "TYPE_UINT8": 2, "TYPE_UINT16": 4, "TYPE_UINT32": 12, "TYPE_UINT64": 13, "TYPE_INT8": 3, "TYPE_INT16": 5,
          "TYPE_INT32": 6, "TYPE_INT64": 7, "TYPE_FP16": 10, "TYPE_FP32": 1, "TYPE_FP64": 11, "TYPE_STRING": 8, "TYPE_BF16": 16}  # fmt: skip


def _map(value: Field) -> Field:
    return Field("message", repeated=True, message={"key": Field("string"), "value": value})


def _messages(**message: Field) -> Field:
    return Field("message", repeated=True, message=message)


def _message(**message: Field) -> Field:
    return Field("message", message=message)


_STRING, _INT, _BOOL = Field("string"), Field("int"), Field("bool")
_DIMS = Field("int", repeated=True)
_TYPE = Field("enum", values=tuple(_TYPES))
_RESHAPE = _message(shape=_DIMS)
_QUEUE_POLICY = {
    "timeout_action": Field("enum", values=("REJECT", "DELAY")),
    "default_timeout_microseconds": _INT,
    "allow_timeout_override": _BOOL,
    "max_queue_size": _INT,
}
_ACCELERATOR = _messages(name=_STRING, parameters=_map(_STRING))
MODEL_CONFIG = {
    "name": _STRING,
    "platform": _STRING,
    "backend": _STRING,
    "runtime": _STRING,
    "default_model_filename": _STRING,
    "max_batch_size": _INT,
    "version_policy": _message(latest=_message(num_versions=_INT), all=_message(), specific=_message(versions=_DIMS)),
    "input": _messages(
        name=_STRING,
        data_type=_TYPE,
        format=Field("enum", values=("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW")),
        dims=_DIMS,
        reshape=_RESHAPE,
        is_shape_tensor=_BOOL,
        allow_ragged_batch=_BOOL,
        optional=_BOOL,
    ),
    "output": _messages(
        name=_STRING, data_type=_TYPE, dims=_DIMS, reshape=_RESHAPE, label_filename=_STRING, is_shape_tensor=_BOOL
    ),
    "dynamic_batching": _message(
        preferred_batch_size=_DIMS,
        max_queue_delay_microseconds=_INT,
        preserve_ordering=_BOOL,
        priority_levels=_INT,
        default_priority_level=_INT,
        default_queue_policy=_message(**_QUEUE_POLICY),
    ),
    "instance_group": _messages(
        name=_STRING,
        kind=Field("enum", values=("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")),
        count=_INT,
        gpus=_DIMS,
        profile=Field("string", repeated=True),
        passive=_BOOL,
    ),
    "optimization": _message(
        graph=_message(level=_INT),
        priority=Field("enum", values=("PRIORITY_DEFAULT", "PRIORITY_MAX", "PRIORITY_MIN")),
        execution_accelerators=_message(gpu_execution_accelerator=_ACCELERATOR, cpu_execution_accelerator=_ACCELERATOR),
        input_pinned_memory=_message(enable=_BOOL),
        output_pinned_memory=_message(enable=_BOOL),
        gather_kernel_buffer_threshold=_INT,
        eager_batching=_BOOL,
    ),
    "parameters": _map(_message(string_value=_STRING)),
    "metric_tags": _map(_STRING),
    "response_cache": _message(enable=_BOOL),
    "model_transaction_policy": _message(decoupled=_BOOL),
}
"""The fields of a ``config.pbtxt`` that :func:`check_repository` knows."""

_TEMPLATE = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [ {{ name: "{input}" data_type: {input_type} dims: [ {input_dims} ] }} ]
output [ {{ name: "{output}" data_type: {output_type} dims: [ {output_dims} ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}

# With TensorRT inside onnxruntime, on a GPU (not verified: coreclip's tests have no GPU and no server), take the # away:
# optimization {{ execution_accelerators {{ gpu_execution_accelerator: [ {{
#   name: "tensorrt"
#   parameters {{ key: "precision_mode" value: "FP16" }}
#   parameters {{ key: "max_workspace_size_bytes" value: "1073741824" }}
# }} ] }} }}
"""


def write_triton(job: ExportJob) -> dict[str, Any]:
    """Write and check the repository; as a format's ``write``."""
    files = {tower: f"{REPOSITORY}/{tower}/1/model.onnx" for tower in TOWERS}
    notes = {}
    for tower, file in files.items():
        path = job.folder / file
        path.parent.mkdir(parents=True)
        notes[tower] = write_tower(job, tower, path)
        write_text(path.parents[1] / "config.pbtxt", config_of(tower, path))
    check_repository(job.folder / REPOSITORY)
    return {"files": files, "onnx": notes, "max_batch_size": MAX_BATCH_SIZE}


def open_triton(folder: Path, description: dict[str, Any], threads: int | None) -> Runner:
    """Return the repository's graphs on onnxruntime, without a server; as a format's ``open``."""
    return {tower: run_onnx(folder / description["files"][tower], tower, threads) for tower in TOWERS}


def config_of(tower: str, path: Path) -> str:
    """Return the ``config.pbtxt`` of one tower's graph."""
    inputs, outputs = _signature(path)
    names = {number: name for name, number in _TYPES.items()}
    (input_type, input_shape), (output_type, output_shape) = inputs[INPUTS[tower]], outputs[OUTPUT]
    return _TEMPLATE.format(
        name=tower, batch=MAX_BATCH_SIZE, delay=_QUEUE_MICROSECONDS, input=INPUTS[tower], output=OUTPUT,
        input_type=names[input_type], input_dims=", ".join(map(str, input_shape[1:])),
        output_type=names[output_type], output_dims=", ".join(map(str, output_shape[1:])),
    )  # fmt: skip


_Signature = dict[str, tuple[int, list[int]]]


def _signature(path: Path) -> tuple[_Signature, _Signature]:
    """Return ONNX type and shape, -1 for a size that is open, of each input and each output of a graph."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own exceptions come and go with its versions
        raise CoreclipError(f"{path} is no ONNX file ({error}); export again") from None
    weights = {tensor.name for tensor in graph.initializer}
    inputs, outputs = (
        {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
            if value.name not in weights
        }
        for values in (graph.input, graph.output)
    )
    return inputs, outputs


def check_repository(folder: Path) -> list[str]:
    """Check a model repository of ONNX graphs: each configuration by itself, and against its graphs.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of str
        The models' names.

    Raises
    ------
    CoreclipError
        For an empty repository, a configuration that Triton would refuse, or one that says otherwise than its graph.
    """
    models = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not models:
        raise CoreclipError(f"{folder} holds no model; a repository has one folder for each; check the path")
    for model in models:
        _check_model(model)
    return [model.name for model in models]


def _check_model(model: Path) -> None:
    path = model / "config.pbtxt"
    if not path.is_file():
        raise CoreclipError(f"{model} has no config.pbtxt; each model of a repository needs one; export again")
    config = parse(path.read_text(encoding="utf-8"), MODEL_CONFIG, str(path))
    _require(path, config.get("name", model.name) == model.name, f"name is {config.get('name')!r}, and must be that of its folder, {model.name!r}")  # fmt: skip
    runs = config.get("backend") == "onnxruntime" or config.get("platform") == "onnxruntime_onnx"
    _require(
        path, runs, "a backend or platform for ONNX is needed: backend is onnxruntime or platform is onnxruntime_onnx"
    )
    batch = config.get("max_batch_size", 0)
    _require(path, batch >= 0, f"max_batch_size is {batch}, and must be 0 or more")
    _require(
        path, batch > 0 or "dynamic_batching" not in config, "dynamic_batching needs a max_batch_size of 1 or more"
    )
    preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
    _require(path, all(0 < size <= batch for size in preferred), f"preferred_batch_size is {preferred}, and each must be 1 to max_batch_size = {batch}")  # fmt: skip
    versions = sorted(p for p in model.iterdir() if p.is_dir())
    numbered = [p for p in versions if p.name.isdecimal() and not p.name.startswith("0")]
    _require(path, versions != [] and versions == numbered, f"version folders are {[p.name for p in versions]}, and must be whole numbers from 1")  # fmt: skip
    for version in versions:
        graph = version / config.get("default_model_filename", "model.onnx")
        _require(path, graph.is_file(), f"{graph} is missing")
        for kind, signature in zip(("input", "output"), _signature(graph), strict=True):
            _check_tensors(path, kind, config.get(kind, []), signature, batched=batch > 0)


def _require(path: Path, condition: bool, message: str) -> None:
    if not condition:
        raise CoreclipError(f"{path}: {message}; mend it or export again")


def _check_tensors(
    path: Path, kind: str, declared: list[dict[str, Any]], signature: _Signature, *, batched: bool
) -> None:
    names = [tensor.get("name") for tensor in declared]
    _require(path, sorted(map(str, names)) == sorted(signature), f"{kind}s are {names}, those of the graph are {sorted(signature)}")  # fmt: skip
    for tensor in declared:
        name = tensor["name"]
        number, shape = signature[name]
        given = _TYPES.get(tensor.get("data_type", ""))
        _require(path, given == number, f"{kind} {name} has the data_type {tensor.get('data_type')}, the graph's is {_type_name(number)}")  # fmt: skip
        if batched:
            _require(path, shape[:1] == [-1], f"{kind} {name} has a fixed first size in the graph, and max_batch_size needs an open one")  # fmt: skip
            shape = shape[1:]
        dims = tensor.get("dims", [])
        _require(path, all(size > 0 or size == -1 for size in dims), f"{kind} {name} has dims {dims}, and each must be at least 1, or -1 for any")  # fmt: skip
        fits = len(dims) == len(shape) and all(a == b or b == -1 for a, b in zip(dims, shape, strict=True))
        _require(path, fits, f"{kind} {name} has dims {dims}, the graph has {shape}")


def _type_name(number: int) -> str:
    return next((name for name, value in _TYPES.items() if value == number), f"ONNX type {number}")
