"""ONNX front end: a model file (or `ModelProto`) becomes a graph.

What each operator becomes stands in `onnx_ops.py`. Whatever depends on constants only (shape computations,
mostly) is computed while importing. Operators without a handler of their own are expanded by the function
body that their ONNX schema gives, if it gives one; so are the model's local functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import canonical as ir
from .errors import ImportFailure, NesteggError, NotConstantError, TypeRuleError, UnsupportedError
from .graph import GraphBuilder, Value
from .imported import ImportedProgram
from .onnx_control import CONTROL, Body, ControlFlow
from .onnx_ops import HANDLERS, Known, OnnxCall, widened
from .operator import require
from .types import DTYPES, TensorType, dtype_of, is_damaged

OLDEST_OPSET = 6
LARGEST_PROTOBUF = 2**31  # bytes; a limit of the format
_MOVEMENT = frozenset(
    {
        *("Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
        *("Transpose", "Unsqueeze"),
    }
)
#: Not computed while importing: they are random, or ONNX' reference implementation knows their newest opset only, or
#: not all of their attributes.
_UNFAITHFUL = frozenset(
    {"Bernoulli", "Multinomial", "Softmax", "LogSoftmax", "Hardmax", "LRN", "LSTM", "GRU", "RNN", "QuantizeLinear"}
)
Shapes = Mapping[str, Sequence[int]]


def from_onnx(
    model: Any, shapes: Shapes | None = None, constants: Mapping[str, np.ndarray] | None = None
) -> ImportedProgram:
    """Import an ONNX model: a path or an `onnx.ModelProto`.

    float16 and bfloat16 are computed in float32 and rounded where the program says so: at Cast nodes and outputs.
    `shapes` gives the shape of inputs by name where the model leaves dimensions open. `constants` fixes inputs to
    arrays: they are no inputs of the program any more, and may decide shapes (what a Reshape reshapes to).
    Raises `ImportFailure` for a file that cannot be read or is inconsistent, `NotConstantError` for an operand that
    decides shapes and is known at run time only, `UnsupportedError` for what has no operator; each names file and node.
    """
    proto, source = _load(model)
    return _Importer(proto, source, dict(shapes or {}), dict(constants or {})).run()


def _load(model: Any) -> tuple[Any, str]:
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    if isinstance(model, onnx.ModelProto):
        return model, f"ONNX model {model.graph.name!r}"
    path = Path(model)
    if not path.is_file():
        raise ImportFailure(f"{path}: no such file; give the path of an .onnx file, or zoo:NAME")
    if path.stat().st_size >= LARGEST_PROTOBUF:
        raise ImportFailure(
            f"{path}: a protobuf of 2 GiB or more cannot be read; export the model again and store the weights as "
            "external data (onnx.save with save_as_external_data=True)"
        )
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as e:
        raise ImportFailure(
            f"{path}: not a readable ONNX file ({_first_line(e)}); export the model again"
        ) from None
    if not proto.graph.node and not proto.graph.output:
        raise ImportFailure(f"{path}: not an ONNX model (it holds no graph); export the model again")
    _check_external(proto, path)
    try:
        load_external_data_for_model(proto, str(path.parent))
    except Exception as e:
        raise ImportFailure(f"{path}: its external data cannot be read: {_first_line(e)}") from None
    return proto, str(path)


def _check_external(proto: Any, path: Path) -> None:
    from onnx.external_data_helper import uses_external_data

    for tensor in proto.graph.initializer:
        if uses_external_data(tensor):
            place = next((e.value for e in tensor.external_data if e.key == "location"), "")
            if not (path.parent / place).is_file():
                raise ImportFailure(
                    f"{path}: initializer {tensor.name!r} is in external file {place!r}, which is missing; "
                    "put it beside the model"
                )


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).split("\n")[0]


class _Importer:
    def __init__(
        self, proto: Any, source: str, shapes: dict[str, Sequence[int]], constants: dict[str, np.ndarray]
    ) -> None:
        self.proto, self.source, self.shapes, self.constants = proto, source, shapes, constants
        self.builder = GraphBuilder()
        self.opset = self._opset()
        self.functions = {(f.domain, f.name): f for f in proto.functions}
        self.halves = _half_types(proto)
        self.calling: list[tuple[str, str]] = []

    def fail(self, message: str) -> ImportFailure:
        return ImportFailure(f"{self.source}: {message}")

    def _opset(self) -> int:
        from onnx.defs import onnx_opset_version

        newest = onnx_opset_version()
        versions = {o.domain: o.version for o in self.proto.opset_import}
        if not versions:
            raise self.fail("declares no ONNX operator set (opset_import); export the model again")
        version = versions.get("", versions.get("ai.onnx", newest))
        if not OLDEST_OPSET <= version <= newest:
            advice = (
                "convert it with onnx.version_converter"
                if version < OLDEST_OPSET
                else "upgrade the onnx package"
            )
            raise UnsupportedError(
                f"{self.source}: opset {version} is not in the supported {OLDEST_OPSET}..{newest}; {advice}"
            )
        return int(version)

    def run(self) -> ImportedProgram:
        graph = self.proto.graph
        env: dict[str, Known | None] = {"": None}
        initial = {t.name for t in graph.initializer}
        if graph.sparse_initializer:
            raise UnsupportedError(f"{self.source}: sparse initializers are not supported; store them dense")
        declared = [i for i in graph.input if i.name not in initial]
        self._check_names("--shape", self.shapes, [i.name for i in declared])
        self._check_names("constants=", self.constants, [i.name for i in declared])
        env |= {name: widened(np.asarray(array)) for name, array in self.constants.items()}
        inputs = [i for i in declared if i.name not in self.constants]
        for info in inputs:
            env[info.name] = widened(self.builder.input(self._input_type(info), info.name))
        for tensor in graph.initializer:
            env[tensor.name] = self.array(tensor, f"initializer {tensor.name!r}")
        self.nodes(graph.node, env, self.opset)
        missing = [o.name for o in graph.output if env.get(o.name) is None]
        if missing:
            raise self.fail(f"output {missing[0]!r} is computed by no node; export the model again")
        outputs = [self._output(o, self.value(env[o.name], o.name)) for o in graph.output]
        names = tuple(i.name for i in inputs)
        out_names = tuple(o.name for o in graph.output)
        return ImportedProgram(self.builder.finish(outputs), names, out_names, source=self.source)

    def _output(self, info: Any, x: Value) -> Value:
        from onnx import TensorProto

        if info.type.WhichOneof("value") not in (None, "tensor_type"):
            raise UnsupportedError(f"{self.source}: output {info.name!r} is no tensor; only tensors are supported")
        declared = {TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16"}.get(info.type.tensor_type.elem_type)
        return x if declared is None else ir.cast(x, declared)

    def value(self, x: Known | None, name: str) -> Value:
        assert x is not None
        try:
            return x if isinstance(x, Value) else self.builder.constant(x, name)
        except TypeRuleError as e:
            raise UnsupportedError(f"{self.source}: {name!r}: {e}") from None

    # --- inputs and constants ---

    def _check_names(self, option: str, given: Mapping[str, Any], names: list[str]) -> None:
        for name in given:
            if name not in names:
                raise self.fail(f"{option} names input {name!r}; the inputs are {', '.join(names)}")

    def _input_type(self, info: Any) -> TensorType:
        from onnx import helper

        if not info.type.HasField("tensor_type"):
            raise UnsupportedError(
                f"{self.source}: input {info.name!r} is no tensor; only tensors are supported"
            )
        tensor = info.type.tensor_type
        try:
            dtype = dtype_of(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (TypeRuleError, KeyError, TypeError) as e:
            raise UnsupportedError(f"{self.source}: input {info.name!r}: {_first_line(e)}") from None
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        given = self.shapes.get(info.name)
        if given is not None:
            return self._given_type(info.name, given, dims if tensor.HasField("shape") else None, dtype)
        if not tensor.HasField("shape") or None in dims:
            shown = ",".join(
                d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?")
                for d in tensor.shape.dim
            )
            example = ",".join(str(d or 1) for d in dims) or "1,3,224,224"
            raise self.fail(
                f"input {info.name!r} has dynamic dimensions [{shown}]; pass --shape {info.name}={example} "
                "(in Python: shapes=)"
            )
        return TensorType(tuple(int(d) for d in dims if d is not None), dtype)

    def _given_type(
        self, name: str, given: Sequence[int], dims: list[int | None] | None, dtype: str
    ) -> TensorType:
        shape = tuple(int(n) for n in given)
        if dims is not None and (
            len(dims) != len(shape) or any(d is not None and d != n for d, n in zip(dims, shape, strict=True))
        ):
            declared = ",".join("?" if d is None else str(d) for d in dims)
            raise self.fail(
                f"--shape {name}={','.join(map(str, shape))} contradicts the declared [{declared}]"
            )
        return TensorType(shape, dtype)

    def array(self, tensor: Any, what: str, finite: bool = True) -> np.ndarray:
        """The array of a `TensorProto`, checked for size and (weights) finiteness. Raises `ImportFailure`."""
        from onnx import helper, numpy_helper

        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            wanted = math.prod(tensor.dims) * dtype.itemsize
            if (
                tensor.raw_data
                and dtype.kind != "O"
                and len(tensor.raw_data) != wanted
                and dtype.itemsize > 1
            ):
                raise self.fail(
                    f"{what} declares shape {tuple(tensor.dims)} ({wanted} bytes) and holds "
                    f"{len(tensor.raw_data)} bytes; the file is damaged, export it again"
                )
            array = np.array(widened(numpy_helper.to_array(tensor)))
        except NesteggError:
            raise
        except Exception as e:
            raise self.fail(
                f"{what} does not fit its shape {tuple(tensor.dims)} ({_first_line(e)})"
            ) from None
        if finite and is_damaged(array):
            raise self.fail(f"{what} holds values that are not finite; repair the weights")
        return array

    # --- nodes ---

    def nodes(self, nodes: Sequence[Any], env: dict[str, Known | None], opset: int) -> None:
        for node in self._in_order(nodes, env):
            outs = self.node(node, env, opset)
            for name, out in zip(node.output, outs, strict=False):
                if name:
                    env[name] = out
            short = [name for name in node.output[len(outs) :] if name]
            for name in short:
                env[name] = None

    def _in_order(self, nodes: Sequence[Any], env: Mapping[str, Any]) -> list[Any]:
        """Topological order (the file's own, if it is one). Raises `ImportFailure` for a cycle or undefined
        name.
        """
        known = set(env)
        produced = {name for n in nodes for name in n.output}
        self._check_unique(nodes)
        rest, order = list(nodes), []
        while rest:
            ready = []
            waiting = []
            for n in rest:
                if all(i in known for i in n.input):
                    known.update(n.output)
                    ready.append(n)
                else:
                    waiting.append(n)
            if not ready:
                self._report_unordered(waiting, known, produced)
            order += ready
            rest = waiting
        return order

    def _check_unique(self, nodes: Sequence[Any]) -> None:
        made: dict[str, Any] = {}
        for n in nodes:
            for name in n.output:
                if name and made.setdefault(name, n) is not n:
                    two = f"{_title(made[name])} and {_title(n)}"
                    raise self.fail(f"{two} both define {name!r}; export the model again")

    def _report_unordered(self, waiting: Sequence[Any], known: set[str], produced: set[str]) -> None:
        for n in waiting:
            for name in n.input:
                if name not in known and name not in produced:
                    raise self.fail(
                        f"{_title(n)} reads {name!r}, which nothing defines; export the model again"
                    )
        loop = " and ".join(_title(n) for n in waiting[:3])
        raise self.fail(f"the graph is cyclic: {loop} depend on each other's outputs; export the model again")

    def node(self, node: Any, env: Mapping[str, Known | None], opset: int) -> list[Known | None]:
        ins = [env[name] for name in node.input]
        where = f"{self.source}: {_title(node)}"
        try:
            return self._apply(node, ins, env, opset)
        except (UnsupportedError, TypeRuleError) as e:
            text = str(e) if str(e).startswith(self.source) else f"{where}: {e}"
            if isinstance(e, NotConstantError):
                raise NotConstantError(text, e.inputs) from None
            raise UnsupportedError(text) from None
        except NesteggError:
            raise
        except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError, AssertionError) as e:
            raise ImportFailure(f"{where}: malformed: {_first_line(e)}; run onnx.checker on the model") from e

    def _apply(
        self, node: Any, ins: list[Known | None], env: Mapping[str, Known | None], opset: int
    ) -> list[Known | None]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not domain:
            _check_form(node, opset)
        attrs = {a.name: self._attribute(a, node) for a in node.attribute}
        if not domain and node.op_type in CONTROL:
            flow = ControlFlow(attrs, ins, len(node.output), self._subgraph(env, opset), self.builder)
            return list(CONTROL[node.op_type](flow))
        if node.op_type == "Cast" and not domain and self.halves.get(node.input[0]) == attrs.get("to"):
            return [ins[0]]  # from float16 to float16: nothing to round
        if (local := self.functions.get((node.domain, node.op_type))) is not None:
            return self._call(local, node, ins, opset)
        if domain == "" and _is_foldable(node.op_type, ins):
            folded = self._fold(node, ins, opset)
            if folded is not None:
                return folded
        if domain == "" and node.op_type in HANDLERS:
            call = OnnxCall(node.op_type, opset, attrs, ins, self.builder, len(node.output))
            out = HANDLERS[node.op_type](call)
            return list(out) if isinstance(out, (list, tuple)) else [out]
        body = self._schema_body(node, ins, opset)
        if body is None:
            shown = f"{domain}.{node.op_type}" if domain else node.op_type
            raise UnsupportedError(f"operator {shown} is not supported; export the model without it")
        return self._inline(body, node, ins, opset)

    def _attribute(self, attribute: Any, node: Any) -> Any:
        from onnx import AttributeProto, helper

        if attribute.type == AttributeProto.TENSOR:
            finite = node.op_type == "Constant"
            return self.array(attribute.t, f"attribute {attribute.name!r} of {_title(node)}", finite)
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode()
        return (
            [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, list) else value
        )

    def _subgraph(self, env: Mapping[str, Known | None], opset: int) -> Body:
        """How a node here imports its subgraphs, which may read every name around them."""

        def run(graph: Any, given: Mapping[str, Any]) -> list[Any]:
            inner = {**env, **given}
            for tensor in graph.initializer:
                inner[tensor.name] = self.array(tensor, f"initializer {tensor.name!r}")
            self.nodes(graph.node, inner, opset)
            return [inner[o.name] for o in graph.output]

        return run

    def _fold(self, node: Any, ins: Sequence[Any], opset: int) -> list[Known | None] | None:
        """The node's outputs by ONNX' own reference implementation; None if that does not apply."""
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            return [self._attribute(node.attribute[0], node)]
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        feeds = {name: x for name, x in zip(node.input, ins, strict=True) if x is not None}
        try:
            infos = [
                helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for k, v in feeds.items()
            ]
            outs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
            graph = helper.make_graph([node], "fold", infos, outs)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
            results = dict(
                zip([o.name for o in outs], ReferenceEvaluator(model).run(None, feeds), strict=True)
            )
        except Exception:
            return None
        if any(isinstance(r, (list, dict)) for r in results.values()):
            return None
        return [widened(np.asarray(results[name])) if name else None for name in node.output]

    def _schema_body(self, node: Any, ins: Sequence[Known | None], opset: int) -> Any:
        """The function body that defines the operator by others; None if its schema has none."""
        import onnx
        from onnx import defs

        try:
            schema: Any = defs.get_schema(node.op_type, opset, node.domain)
        except defs.SchemaError:
            return None
        plain = [v for v in schema.function_opset_versions if v <= opset]
        typed = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if not plain and not typed:
            return None
        body = onnx.FunctionProto()
        if plain:
            body.ParseFromString(schema.get_function_with_opset_version(max(plain)))
        else:
            types = [_type_proto(x).SerializeToString() for x in ins]
            text = schema.get_context_dependent_function_with_opset_version(
                max(typed), node.SerializeToString(), types
            )
            body.ParseFromString(text)
        return body

    def _call(self, body: Any, node: Any, ins: Sequence[Known | None], opset: int) -> list[Known | None]:
        """A local function of the model. Raises `ImportFailure` if it calls itself."""
        name = (body.domain, body.name)
        if name in self.calling:
            raise self.fail(f"function {body.domain}.{body.name} calls itself; export the model again")
        self.calling.append(name)
        outs = self._inline(body, node, ins, opset)
        self.calling.pop()
        return outs

    def _inline(self, body: Any, node: Any, ins: Sequence[Known | None], opset: int) -> list[Known | None]:
        inner: dict[str, Known | None] = {"": None}
        inner |= dict.fromkeys(body.input) | dict(zip(body.input, ins, strict=False))
        defaults = _schema_defaults(node, opset) if not node.domain else []
        given = {a.name: a for a in (*defaults, *body.attribute_proto, *node.attribute)}
        version = next((o.version for o in body.opset_import if o.domain in ("", "ai.onnx")), opset)
        self.nodes([_bound(n, given) for n in body.node], inner, int(version))
        return [inner.get(name) for name in body.output]


def _half_types(proto: Any) -> dict[str, int]:
    """The types of tensors that the model declares, or ONNX infers, as float16 or bfloat16; here they are float32."""
    from onnx import TensorProto, helper, shape_inference

    graph = proto.graph
    if not any(n.op_type == "Cast" for n in graph.node):
        return {}
    named = {i.name for i in graph.input}
    weights = [t for t in graph.initializer if t.name not in named]
    inputs = [*graph.input, *(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights)]
    types_only = helper.make_graph(graph.node, "types", inputs, graph.output, value_info=graph.value_info)
    try:
        infos: Any = shape_inference.infer_shapes(helper.make_model(types_only, opset_imports=proto.opset_import)).graph
    except Exception:  # types that do not fit are reported where they are met
        infos = graph
    types = {i.name: i.type.tensor_type.elem_type for i in (*infos.input, *infos.value_info, *infos.output)}
    return {name: t for name, t in types.items() if t in (TensorProto.FLOAT16, TensorProto.BFLOAT16)}


def _check_form(node: Any, opset: int) -> None:
    """Raises `TypeRuleError` for a node with fewer or more inputs than its operator takes, or without an attribute that
    it needs."""
    from onnx import defs

    try:
        schema: Any = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return
    least, most, given = schema.min_input, schema.max_input, len(node.input)
    require(least <= given <= most, f"{given} inputs given; it takes {least if given < least else most}")
    names = {a.name for a in node.attribute}
    missing = [a.name for a in schema.attributes.values() if a.required and a.name not in names]
    require(not missing, f"its attribute {missing[0]!r} is missing" if missing else "")


def _schema_defaults(node: Any, opset: int) -> list[Any]:
    from onnx import defs

    attributes = defs.get_schema(node.op_type, opset, "").attributes
    return [a.default_value for a in attributes.values() if a.default_value.name]


def _bound(node: Any, given: Mapping[str, Any]) -> Any:
    """A node of a function body with its references to the caller's attributes filled in."""
    if not any(a.ref_attr_name or a.HasField("g") for a in node.attribute):
        return node
    out = type(node)()
    out.CopyFrom(node)
    del out.attribute[:]
    for a in node.attribute:
        if a.HasField("g"):
            out.attribute.append(_bound_graph(a, given))
        elif not a.ref_attr_name:
            out.attribute.append(a)
        elif a.ref_attr_name in given:
            out.attribute.append(given[a.ref_attr_name])
            out.attribute[-1].name = a.name
    return out


def _bound_graph(attribute: Any, given: Mapping[str, Any]) -> Any:
    out = type(attribute)()
    out.CopyFrom(attribute)
    del out.g.node[:]
    out.g.node.extend(_bound(n, given) for n in attribute.g.node)
    return out


def _is_foldable(op: str, ins: Sequence[Known | None]) -> bool:
    """Small constants, index arithmetic and movement; arithmetic on weights stays in the graph, for the
    rules.
    """
    if op in _UNFAITHFUL or op.startswith("Random"):
        return False
    arrays = [x for x in ins if x is not None]
    if any(isinstance(x, Value) for x in arrays):
        return False
    small = all(x.dtype.kind != "f" or math.prod(x.shape) <= 64 for x in arrays if isinstance(x, np.ndarray))
    return small or op in _MOVEMENT or op not in HANDLERS


def _type_proto(x: Known | None) -> Any:
    from onnx import TypeProto, helper

    if x is None:
        return TypeProto()
    dtype = x.dtype if isinstance(x, np.ndarray) else DTYPES[x.dtype].numpy
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), x.shape)


def _title(node: Any) -> str:
    name = node.name or (node.output[0] if node.output else "")
    return f"node {name!r} ({node.op_type})"
