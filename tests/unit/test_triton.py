"""A Triton model repository: what we write passes the check, and each way to break it is found."""

import importlib.util
import json
from pathlib import Path

import pytest

from coreclip.errors import CoreclipError
from coreclip.training.pbtxt import Field, parse
from coreclip.training.triton import MODEL_CONFIG, REPOSITORY, check_repository, config_of


def write_graph(path: Path, *, batch="batch", dims=(3, 16, 16)) -> None:
    """Write an ONNX graph with the image tower's signature."""
    from onnx import TensorProto, checker, helper, save

    path.parent.mkdir(parents=True, exist_ok=True)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, *dims])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, None])
    nodes = [helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT), helper.make_node("Flatten", ["pixels"], ["features"])]  # fmt: skip
    graph = helper.make_graph(nodes, "tower", [images], [features])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    checker.check_model(model)
    save(model, path)


@pytest.fixture
def repository(tmp_path):
    path = tmp_path / "image_tower" / "1" / "model.onnx"
    write_graph(path)
    (tmp_path / "image_tower" / "config.pbtxt").write_text(config_of("image_tower", path))
    return tmp_path


def test_what_is_written_passes_and_says_what_the_graph_says(repository):
    assert check_repository(repository) == ["image_tower"]
    config = parse((repository / "image_tower" / "config.pbtxt").read_text(), MODEL_CONFIG, "it")
    assert config["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": [3, 16, 16]}]
    assert config["output"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [-1]}]
    assert config["max_batch_size"] == 64
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 1000}


def test_the_block_for_tensorrt_is_well_formed_once_it_is_asked_for(repository):
    path = repository / "image_tower" / "config.pbtxt"
    text = path.read_text()
    head, _, block = text.partition("take the # away:\n")
    assert "not verified" in head
    path.write_text(head.rpartition("#")[0] + block.replace("#", ""))
    config = parse(path.read_text(), MODEL_CONFIG, "it")
    (accelerator,) = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert accelerator["name"] == "tensorrt"
    assert {"key": "precision_mode", "value": "FP16"} in accelerator["parameters"]
    assert check_repository(repository) == ["image_tower"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name: "image_tower"', 'name: "tower"', "name is 'tower', and must be that of its folder, 'image_tower'"),
        ('backend: "onnxruntime"', 'backend: "pytorch"', "a backend or platform for ONNX is needed"),
        ("max_batch_size: 64", "max_batch_size: -1", "max_batch_size is -1"),
        ("max_batch_size: 64", "max_batch_size: 0", "dynamic_batching needs a max_batch_size of 1 or more"),
        ("max_batch_size: 64", 'max_batch_size: "64"', "line 3: max_batch_size is \"64\", and must be a value of type int"),
        ("max_batch_size: 64", "max_batch_size 64", "max_batch_size needs a colon"),
        ("max_batch_size: 64", "max_batch_size: 64 max_batch_size: 1", "max_batch_size is given twice"),
        ("dynamic_batching {", "dynamic_batching { preferred_batch_size: [ 8, 128 ]", r"preferred_batch_size is \[8, 128\]"),
        ("dynamic_batching", "dynamic_batch", "there is no field 'dynamic_batch' here, but backend"),
        ('"images"', '"image"', r"inputs are \['image'\], those of the graph are \['images'\]"),
        ('"features"', '"embedding"', r"outputs are \['embedding'\]"),
        ("TYPE_UINT8", "TYPE_FP32", "input images has the data_type TYPE_FP32, the graph's is TYPE_UINT8"),
        ("TYPE_UINT8", "TYPE_U8", "data_type is TYPE_U8, and must be one of TYPE_BOOL"),
        ("dims: [ 3, 16, 16 ]", "dims: [ 3, 16 ]", r"input images has dims \[3, 16\], the graph has \[3, 16, 16\]"),
        ("dims: [ 3, 16, 16 ]", "dims: [ 3, 16, -1 ]", r"dims \[3, 16, -1\], the graph has"),
        ("dims: [ 3, 16, 16 ]", "dims: [ 0, 16, 16 ]", "each must be at least 1, or -1 for any"),
        ("dims: [ 3, 16, 16 ]", "dims: [ 3, 16, 16", "the list of dims needs a comma or its end"),
        ("dynamic_batching {", "dynamic_batching", "dynamic_batching is a message and needs braces"),
        ("dynamic_batching {", "dynamic_batching { {", "where a field or '}' is needed"),
        ("max_batch_size", "@max_batch_size", "is no text format"),
    ],
)  # fmt: skip
def test_a_broken_configuration_is_refused(repository, old, new, words):
    path = repository / "image_tower" / "config.pbtxt"
    text = path.read_text().partition("# With")[0]
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(CoreclipError, match=words) as refusal:
        check_repository(repository)
    assert "config.pbtxt" in str(refusal.value)


def test_a_broken_folder_is_refused(repository, tmp_path):
    model = repository / "image_tower"
    with pytest.raises(CoreclipError, match="holds no model"):
        check_repository(model / "1")
    write_graph(model / "1" / "model.onnx", batch=1)
    with pytest.raises(CoreclipError, match="has a fixed first size in the graph"):
        check_repository(repository)
    (model / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CoreclipError, match="is no ONNX file"):
        check_repository(repository)
    (model / "1" / "model.onnx").unlink()
    with pytest.raises(CoreclipError, match=r"model.onnx is missing"):
        check_repository(repository)
    (model / "1").rename(model / "first")
    with pytest.raises(CoreclipError, match=r"version folders are \['first'\], and must be whole numbers from 1"):
        check_repository(repository)
    (model / "config.pbtxt").unlink()
    with pytest.raises(CoreclipError, match=r"has no config.pbtxt"):
        check_repository(repository)


def test_the_text_format_in_its_variants():
    fields = {
        "a": Field("int", repeated=True),
        "s": Field("string"),
        "b": Field("bool"),
        "f": Field("float"),
        "m": Field("message", repeated=True, message={"x": Field("enum", values=("ONE", "TWO"))}),
    }
    text = 'a: 1 a: [2, -3], # comment : {\n s: \'it\\\'s\' " \\"one\\"\\n"; b: true f: -1.5e2f\nm { x: ONE } m: < x: TWO > m [ {}, { x: ONE } ]'
    assert parse(text, fields, "it") == {
        "a": [1, 2, -3],
        "s": 'it\'s "one"\n',
        "b": True,
        "f": -150.0,
        "m": [{"x": "ONE"}, {"x": "TWO"}, {}, {"x": "ONE"}],
    }
    for broken in ("m { x: ONE", "s: 1", "b: yes", "a: 1.5", "x: ONE", "s: 'open", "m { x: 1 }", ": 3", "f: true"):
        with pytest.raises(CoreclipError, match=r"it, line 1: .*; mend that line"):
            parse(broken, fields, "it")


@pytest.fixture(scope="module")
def schema():
    """Triton's own ModelConfig, as NVIDIA generated it from its schema; the package around that module wants gRPC."""
    [folder] = importlib.util.find_spec("tritonclient").submodule_search_locations
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(folder) / "grpc" / "model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


# google.protobuf's numbers of the types that each of our kinds stands for (FieldDescriptor.TYPE_...).
PROTOBUF = {"string": {9}, "int": {3, 4, 5, 13}, "float": {1, 2}, "bool": {8}, "enum": {14}, "message": {11}}


def unlike(fields, descriptor):
    """Yield the fields of our table that NVIDIA's schema does not have in that way."""
    for name, field in fields.items():
        theirs = descriptor.fields_by_name.get(name)
        if theirs is None or theirs.type not in PROTOBUF[field.kind] or theirs.is_repeated != field.repeated:
            yield f"{descriptor.name}.{name}"
        elif field.kind == "message":
            yield from unlike(field.message, theirs.message_type)
        elif field.kind == "enum" and not set(field.values) <= set(theirs.enum_type.values_by_name):
            yield f"{descriptor.name}.{name}'s values"


def test_our_table_of_fields_is_of_nvidias_schema(schema):
    assert list(unlike(MODEL_CONFIG, schema.DESCRIPTOR)) == []
    assert list(unlike({"nam": Field("string"), "name": Field("int")}, schema.DESCRIPTOR)) == [
        "ModelConfig.nam",
        "ModelConfig.name",
    ]


def test_nvidias_schema_reads_what_we_write_as_we_read_it(schema, repository):
    from google.protobuf import json_format, text_format

    text = (repository / "image_tower" / "config.pbtxt").read_text()
    theirs = json_format.MessageToDict(text_format.Parse(text, schema()), preserving_proto_field_name=True)
    ours = parse(text, MODEL_CONFIG, "it")
    # JSON has 64-bit numbers as text.
    whole = json.dumps(ours).replace("[3, 16, 16]", '["3", "16", "16"]').replace("[-1]", '["-1"]')
    assert theirs == json.loads(whole) | {"dynamic_batching": {"max_queue_delay_microseconds": "1000"}}
    # What the comment in it offers is a configuration too.
    offered = "".join(
        line.removeprefix("# ") + "\n" for line in text.splitlines() if line.startswith(("# opt", "#  ", "# }"))
    )
    assert (
        text_format.Parse(offered, schema()).optimization.execution_accelerators.gpu_execution_accelerator[0].name
        == "tensorrt"
    )


def test_the_format_writes_a_checked_repository(tmp_path):
    from coreclip.training.export_inputs import drawn_inputs
    from coreclip.training.export_job import ExportJob
    from coreclip.training.export_parity import measure_parity
    from coreclip.training.triton import open_triton, write_triton
    from tests.unit.test_towers_for_export import SHAPES, make_clip

    clip = make_clip(**SHAPES["resnet, cbow"])
    inputs = drawn_inputs(clip, 5)
    described = write_triton(ExportJob(clip, tmp_path, "fp32", inputs, inputs))
    assert check_repository(tmp_path / REPOSITORY) == ["image_tower", "text_tower"]
    parity = measure_parity(clip, open_triton(tmp_path, described, 1), inputs)
    assert min(row.least_cosine for row in parity) > 0.99999
