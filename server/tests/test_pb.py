"""The checked-in stubs are what the proto files say, and cost nothing to import."""

import subprocess
import sys
from pathlib import Path

import pytest

import penstock_server
import penstock_server.pb.penstock.v1 as public
from penstock_server.pb.penstock.v1 import generation_pb2, generation_pb2_grpc
from penstock_server.pb.shard.v1 import shard_pb2, shard_pb2_grpc
from penstock_server.row_status import RowStatus

# Not there where only a GPU's tests are run.
grpc_tools = pytest.importorskip("grpc_tools")
from google.protobuf import descriptor_pb2  # noqa: E402
from grpc_tools import protoc  # noqa: E402

SERVER = Path(penstock_server.__file__).parent.parent
PROTO = SERVER.parent / "proto"
FILES = [
    ("shard/v1/shard.proto", shard_pb2, shard_pb2_grpc.ShardServicer),
    ("penstock/v1/generation.proto", generation_pb2, generation_pb2_grpc.GenerationServicer),
]


def compiled(file, tmp_path):
    output = tmp_path / "descriptors"
    includes = [f"--proto_path={PROTO}", f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}"]
    assert protoc.main(["protoc", *includes, f"--descriptor_set_out={output}", file]) == 0
    (descriptor,) = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    return descriptor


@pytest.mark.parametrize(("file", "module", "servicer"), FILES, ids=["shard", "generation"])
def test_the_stubs_are_those_of_the_proto_file(file, module, servicer, tmp_path):
    """Compares the compiled descriptors: the tools' own version does not matter."""
    expected = compiled(file, tmp_path)
    actual = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    assert without_json_names(actual) == without_json_names(expected), "run `make proto`"
    methods = {method.name for method in expected.service[0].method}
    assert {name for name in vars(servicer) if not name.startswith("_")} == methods


def without_json_names(file):
    """Protoc writes them, its Python plugin does not."""
    for message in file.message_type:
        for part in [message, *message.nested_type]:
            for field in part.field:
                field.ClearField("json_name")
    return file


def test_one_import_has_every_public_message():
    descriptor = generation_pb2.DESCRIPTOR
    names = {*descriptor.message_types_by_name, *descriptor.enum_types_by_name}
    service = {"GenerationStub", "GenerationServicer", "add_GenerationServicer_to_server"}
    assert set(public.__all__) == names | service


@pytest.mark.parametrize("stubs", [shard_pb2_grpc, generation_pb2_grpc], ids=["shard", "generation"])
def test_the_stubs_are_made_by_the_oldest_supported_tools(stubs):
    script = (SERVER / "generate_stubs.py").read_text()
    assert f'OLDEST_GRPCIO_TOOLS = "{stubs.GRPC_GENERATED_VERSION}"' in script


@pytest.mark.parametrize("module", ["shard.v1.shard_pb2_grpc", "penstock.v1"])
def test_the_stubs_import_neither_torch_nor_the_engine(module):
    program = (
        f"import sys, penstock_server.pb.{module}; "
        "print(*(name for name in sys.modules if name == 'torch' or name.startswith('penstock_server')))"
    )
    environment = {"PYTHONPATH": str(SERVER), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    assert all(name.startswith("penstock_server.pb") for name in result.stdout.split()[1:])
    assert result.stdout.split()[0] == "penstock_server"


def test_row_statuses_have_the_numbers_of_the_proto_file():
    numbers = {f"ROW_STATUS_{status.name}": status.value for status in RowStatus}
    assert {"ROW_STATUS_UNSPECIFIED": 0, **numbers} == dict(shard_pb2.RowStatus.items())
