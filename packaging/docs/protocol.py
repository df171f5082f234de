"""Write the reference of hearth.v1 as Markdown, from the comments in protos/."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

# Paths of elements in SourceCodeInfo: numbers of fields in descriptor.proto.
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 4, 5, 6
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM = 2, 3, 4
ENUM_VALUE, SERVICE_METHOD, FILE_SYNTAX = 2, 2, 12

Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in Field.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}


def read(protos: Path) -> descriptor_pb2.FileDescriptorSet:
    """Descriptors of every file under `protos`, with comments.

    Raises:
        RuntimeError: protoc failed; the message has its output.
    """
    files = sorted(protos.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={protos}"]
        command += ["--include_source_info", f"--descriptor_set_out={out}", *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"protoc failed on {protos}: {done.stderr.strip()}")
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())


class Page:
    """The part of the reference that comes from one file."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(location.path): location.leading_comments or location.trailing_comments
            for location in file.source_code_info.location
        }

    def lines(self) -> Iterator[str]:
        """Markdown, a line at a time."""
        file = self._file
        yield from (f"## {file.name}", "", *self._text(FILE_SYNTAX))
        for index, service in enumerate(file.service):
            yield from self._service(service, (FILE_SERVICE, index))
        for index, message in enumerate(file.message_type):
            yield from self._message(message, (FILE_MESSAGE, index), "")
        for index, enum in enumerate(file.enum_type):
            yield from self._enum(enum, (FILE_ENUM, index), "")

    def _text(self, *path: int) -> list[str]:
        text = self._comments.get(path, "").strip()
        return [*(line.strip() for line in text.splitlines()), ""] if text else []

    def _cell(self, *path: int) -> str:
        return " ".join(self._text(*path)).strip().replace("|", "\\|")

    def _service(self, service: Any, path: tuple[int, ...]) -> Iterator[str]:
        yield from (f"### {service.name}", "", *self._text(*path))
        yield from ("| method | request | response | |", "|---|---|---|---|")
        for index, method in enumerate(service.method):
            request = self._type(method.input_type, method.client_streaming)
            response = self._type(method.output_type, method.server_streaming)
            comment = self._cell(*path, SERVICE_METHOD, index)
            yield f"| `{method.name}` | {request} | {response} | {comment} |"
        yield ""

    def _message(self, message: Any, path: tuple[int, ...], outer: str) -> Iterator[str]:
        name = f"{outer}{message.name}"
        yield from (f"### {name}", "", *self._text(*path))
        if message.field:
            yield from ("| field | number | type | |", "|---|---|---|---|")
        for index, field in enumerate(message.field):
            kind = self._field_type(field)
            if field.HasField("oneof_index") and not field.proto3_optional:
                kind += f" (one of `{message.oneof_decl[field.oneof_index].name}`)"
            comment = self._cell(*path, MESSAGE_FIELD, index)
            yield f"| `{field.name}` | {field.number} | {kind} | {comment} |"
        yield ""
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self._message(nested, (*path, MESSAGE_NESTED, index), f"{name}.")
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, (*path, MESSAGE_ENUM, index), f"{name}.")

    def _enum(self, enum: Any, path: tuple[int, ...], outer: str) -> Iterator[str]:
        yield from (f"### {outer}{enum.name}", "", *self._text(*path))
        yield from ("| value | number | |", "|---|---|---|")
        for index, value in enumerate(enum.value):
            comment = self._cell(*path, ENUM_VALUE, index)
            yield f"| `{value.name}` | {value.number} | {comment} |"
        yield ""

    def _field_type(self, field: Any) -> str:
        repeated = "repeated " if field.label == Field.LABEL_REPEATED else ""
        optional = "optional " if field.proto3_optional else ""
        scalar = SCALARS.get(field.type)
        return repeated + optional + (f"`{scalar}`" if scalar else self._type(field.type_name))

    def _type(self, full: str, stream: bool = False) -> str:
        """A link to the type's heading, which the table of contents makes from its name."""
        package = f".{self._file.package}."
        name = full.removeprefix(package)
        shown = f"[`{name}`](#{name.lower().replace('.', '')})" if full != name else f"`{name}`"
        return f"stream {shown}" if stream else shown


def reference(protos: Path) -> str:
    """The page: services, messages and enums of every file, in the order of the files."""
    lines = [
        "# Protocol",
        "",
        "The gRPC contract `hearth.v1`. Generate stubs for your language from `protos/`.",
        "`RootService` is for clients; `WorkerService` is between a root and its workers.",
        "",
    ]
    for file in read(protos).file:
        lines += Page(file).lines()
    return "\n".join(lines)
