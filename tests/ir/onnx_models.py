"""Small ONNX models for tests, held against ONNX' own reference implementation."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nestegg.ir.onnx_frontend import from_onnx
from nestegg.ir.reference import evaluate

RNG = np.random.default_rng(3)
DTYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32}
DTYPES |= {
    "float16": TensorProto.FLOAT16,
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def model_of(nodes, inputs, outputs, initializers=(), opset=17):
    """A model; `inputs` and `initializers` map names to arrays (inputs: for their type)."""
    infos = [helper.make_tensor_value_info(k, DTYPES[str(v.dtype)], v.shape) for k, v in inputs.items()]
    outs = [helper.make_empty_tensor_value_info(o) for o in outputs]
    tensors = [numpy_helper.from_array(v, k) for k, v in dict(initializers).items()]
    graph = helper.make_graph(nodes, "test", infos, outs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def one_node(op, data, parameters=(), outputs=1, opset=17, **attrs):
    """A model of one node whose first operands are inputs and last ones initializers; None leaves one out."""
    names = [f"x{k}" for k in range(len(data))]
    weights = {f"w{k}": w for k, w in enumerate(parameters) if w is not None}
    operands = names + [f"w{k}" if w is not None else "" for k, w in enumerate(parameters)]
    outs = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, operands, outs, name="the_node", **attrs)
    return model_of([node], dict(zip(names, data, strict=True)), outs, weights, opset)


def assert_same(model, *args, tolerance=1e-5, constants=None):
    """The model means the same here and in ONNX' reference; `constants` are fixed on import."""
    program = from_onnx(model, constants=constants)
    names = [i.name for i in model.graph.input]
    kept = [a for name, a in zip(names, args, strict=True) if name in program.input_names]
    got = evaluate(program.graph, program.flatten(*kept))
    want = ReferenceEvaluator(model).run(None, dict(zip(names, args, strict=True)))
    for g, w in zip(got, want, strict=True):
        w = np.asarray(w)
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)
