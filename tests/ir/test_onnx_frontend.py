"""ONNX models become graphs that compute the same as ONNX' reference; bad files are refused in one line."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nestegg.ir.errors import CallError, ImportFailure, NesteggError, NotConstantError, UnsupportedError
from nestegg.ir.onnx_frontend import from_onnx
from nestegg.ir.reference import evaluate

from .onnx_models import array, assert_same, ints, model_of, one_node


def test_a_small_network():
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    weights = {"w": array(4, 3, 3, 3), "b": array(4), "v": array(16, 5)}
    x = array(2, 3, 4, 4)
    model = model_of(nodes, {"x": x}, ["y"], weights)
    assert_same(model, x)
    assert (from_onnx(model).input_names, from_onnx(model).output_names) == (("x",), ("y",))


X, IMAGE = array(2, 3, 4), array(1, 4, 7, 6)
UNARY = "Relu Sigmoid Tanh Erf Softplus Softsign Elu Selu Celu LeakyRelu HardSigmoid HardSwish Mish"
UNARY += " ThresholdedRelu"
UNARY += (
    " Neg Abs Sign Floor Ceil Round Exp Reciprocal Sin Cos Tan Sinh Cosh IsNaN IsInf Identity Shrink Softmax"
)
UNARY += " LogSoftmax Hardmax Shape Size Flatten LpNormalization"
UNARY += (
    " ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare"
)


@pytest.mark.parametrize("op", UNARY.split())
def test_unary(op):
    assert_same(one_node(op, [X], opset=18), X)


@pytest.mark.parametrize(
    "op",
    ["Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Greater", "Equal", "GreaterOrEqual", "LessOrEqual"],
)
def test_binary_operators_broadcast(op):
    y = array(4, 1, 1, 4)
    assert_same(one_node(op, [X, y]), X, y)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_before_opset_13_takes_all_later_axes(op, axis):
    program = from_onnx(one_node(op, [X], opset=11, axis=axis))
    axes = tuple(range(axis % 3, 3))
    want = np.exp(X) / np.exp(X).sum(axes, keepdims=True)
    (got,) = evaluate(program.graph, [X])
    np.testing.assert_allclose(got, want if op == "Softmax" else np.log(want), rtol=1e-4, atol=1e-5)


WINDOW = {"kernel_shape": [3, 2], "strides": [2, 2]}
CASES = {
    "gemm": ("Gemm", [array(4, 3), array(5, 4)], [array(1, 5)], {"transA": 1, "transB": 1, "alpha": 0.5}),
    "matmul": ("MatMul", [array(2, 1, 3, 4)], [array(5, 4, 2)], {}),
    "pow": ("Pow", [X], [np.array(3, np.float32)], {}),
    "clip": ("Clip", [X], [None, np.array(0.3, np.float32)], {}),
    "prelu": ("PRelu", [IMAGE], [array(4, 1, 1)], {}),
    "where": ("Where", [X > 0, X, array(4)], [], {}),
    "mod": ("Mod", [np.array([-7, 7, 5], np.int32)], [np.array([3, -3, 5], np.int32)], {}),
    "float mod": ("Mod", [X], [np.array(0.3, np.float32)], {"fmod": 1}),
    "cast": ("Cast", [X * 9], [], {"to": TensorProto.INT32}),
    "reshape": ("Reshape", [X], [ints(0, -1)], {}),
    "squeeze": ("Squeeze", [array(1, 3, 1)], [ints(-1)], {}),
    "unsqueeze": ("Unsqueeze", [X], [ints(0, -1)], {}),
    "transpose": ("Transpose", [X], [], {"perm": [2, 0, 1]}),
    "expand": ("Expand", [array(3, 1)], [ints(2, 1, 4)], {}),
    "tile": ("Tile", [X], [ints(2, 1, 3)], {}),
    "concat": ("Concat", [X, X, X[:, :, :1]], [], {"axis": -1}),
    "slice": ("Slice", [X], [ints(1, 3), ints(10, -10), ints(1, 2), ints(1, -2)], {}),
    "pad": ("Pad", [X], [ints(0, 1, 0, 0, 0, 2), np.array(3, np.float32)], {}),
    "reflect pad": ("Pad", [X], [ints(0, 1, 2, 1, 0, 3)], {"mode": "reflect"}),
    "gather": ("Gather", [X], [ints(2, 0, -1)], {"axis": 1}),
    "reduce axes": ("ReduceMean", [X], [ints(0, -1)], {"keepdims": 0}),
    "log sum exp": ("ReduceLogSumExp", [X], [ints(1)], {"keepdims": 0}),
    "argmax": ("ArgMax", [X], [], {"axis": 1, "keepdims": 0, "select_last_index": 1}),
    "cumsum": ("CumSum", [X], [np.array(1, np.int32)], {"exclusive": 1, "reverse": 1}),
    "depth to space": ("DepthToSpace", [IMAGE], [], {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", [array(1, 2, 4, 6)], [], {"blocksize": 2}),
    "trilu": ("Trilu", [X], [], {"upper": 0}),
    "layer norm": ("LayerNormalization", [X], [array(3, 4), array(3, 4)], {"axis": 1}),
    "instance norm": ("InstanceNormalization", [IMAGE], [array(4), array(4)], {}),
    "batch norm": ("BatchNormalization", [IMAGE], [array(4), array(4), array(4), abs(array(4))], {}),
    "lrn": ("LRN", [array(4, 4, 3, 2)], [], {"size": 3}),
    "global avg pool": ("GlobalAveragePool", [IMAGE], [], {}),
    "global max pool": ("GlobalMaxPool", [IMAGE], [], {}),
    "conv": (
        "Conv",
        [IMAGE],
        [array(6, 2, 3, 2), array(6)],
        {"group": 2, "pads": [1, 0, 2, 1], "dilations": [2, 1]},
    ),
    "conv 1d": ("Conv", [X], [array(2, 3, 2)], {"strides": [2]}),
    "conv same": ("Conv", [IMAGE], [array(2, 4, 3, 2)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "deconv": (
        "ConvTranspose",
        [IMAGE],
        [array(4, 3, 3, 2), array(3)],
        {"strides": [2, 3], "pads": [1, 0, 0, 1]},
    ),
    "max pool": ("MaxPool", [IMAGE], [], {**WINDOW, "ceil_mode": 1, "pads": [1, 0, 1, 1]}),
    "avg pool": ("AveragePool", [IMAGE], [], {**WINDOW, "pads": [1, 0, 1, 1]}),
    "avg pool counting pad": (
        "AveragePool",
        [IMAGE],
        [],
        {**WINDOW, "pads": [1, 0, 1, 1], "count_include_pad": 1},
    ),
    "avg pool same": ("AveragePool", [IMAGE], [], {**WINDOW, "auto_pad": "SAME_UPPER"}),
    "dequantize": (
        "DequantizeLinear",
        [np.array([[-3, 9]], np.int8)],
        [array(2), np.array([1, -2], np.int8)],
        {},
    ),
    "quantize": ("QuantizeLinear", [X * 300], [np.array(2, np.float32), np.array(7, np.uint8)], {}),
    "by its function body": ("MeanVarianceNormalization", [IMAGE], [], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_operators_with_parameters(case):
    op, data, parameters, attrs = CASES[case]
    assert_same(one_node(op, data, parameters, opset=19, **attrs), *data, tolerance=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split_by_attribute_operand_or_number(opset):
    given = {11: ((), {"split": [1, 3]}), 13: ([ints(1, 3)], {}), 18: ((), {"num_outputs": 2})}
    parameters, attrs = given[opset]
    program = from_onnx(one_node("Split", [X], parameters, 2, opset, axis=2, **attrs))
    shapes = [t.shape for t in program.graph.output_types]
    assert shapes == ([(2, 3, 2)] * 2 if opset == 18 else [(2, 3, 1), (2, 3, 3)])


def test_shape_arithmetic_is_computed_while_importing():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "minus"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["y"]),
    ]
    model = model_of(nodes, {"x": X}, ["y"], {"zero": ints(0), "minus": ints(-1)})
    assert_same(model, X)
    assert from_onnx(model).graph.operator_counts == {"input": 1, "reshape": 1}


def test_nodes_out_of_order_are_sorted():
    nodes = [helper.make_node("Neg", ["t"], ["y"]), helper.make_node("Abs", ["x"], ["t"])]
    (got,) = evaluate(from_onnx(model_of(nodes, {"x": X}, ["y"])).graph, [X])
    np.testing.assert_array_equal(got, -abs(X))


def test_open_dimensions_are_given_by_name():
    model = one_node("Relu", [X])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert str(from_onnx(model, {"x0": (5, 3, 4)}).graph.input_types[0]) == "f32[5,3,4]"
    refused(model, ImportFailure, r"input 'x0' has dynamic dimensions \[batch,3,4\]; pass --shape x0=1,3,4")
    refused(model, ImportFailure, r"--shape x0=5,3,9 contradicts the declared \[\?,3,4\]", {"x0": (5, 3, 9)})
    refused(model, ImportFailure, "--shape names input 'data'; the inputs are x0", {"data": (5,)})


def test_a_call_with_too_many_arguments_is_refused():
    with pytest.raises(CallError, match=r"2 arguments given; it takes 1 \(x0\)"):
        from_onnx(one_node("Relu", [X])).flatten(X, X)


# --- bad input: one line that names file, node and what to do ---


def refused(model, kind, message, shapes=None):
    with pytest.raises(kind, match=message) as e:
        from_onnx(model, shapes)
    assert isinstance(e.value, NesteggError)
    assert "\n" not in str(e.value)


def test_missing_and_malformed_files(tmp_path):
    refused(tmp_path / "none.onnx", ImportFailure, r"none\.onnx: no such file; give the path")
    bad = tmp_path / "bad.onnx"
    for content in (b"", b"this is no protobuf", bytes(range(256))):
        bad.write_bytes(content)
        refused(bad, ImportFailure, r"bad\.onnx: not ")
    whole = one_node("Gemm", [array(2, 3)], [array(3, 4)]).SerializeToString()
    bad.write_bytes(whole[: len(whole) // 2])
    refused(bad, ImportFailure, r"bad\.onnx: ")


def test_missing_external_data(tmp_path):
    model = one_node("Add", [array(64, 64)], [array(64, 64)])
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert from_onnx(path).graph.output_types[0].shape == (64, 64)
    (tmp_path / "weights.bin").unlink()
    refused(path, ImportFailure, "initializer 'w0' is in external file 'weights.bin', which is missing")


def test_unsupported_operators_and_opsets():
    refused(
        one_node("NonZero", [X]),
        UnsupportedError,
        r"node 'the_node' \(NonZero\): operator NonZero is not supp",
    )
    refused(one_node("Relu", [X], opset=5), UnsupportedError, "opset 5 is not in the supported 6")
    refused(one_node("Relu", [X], opset=999), UnsupportedError, r"opset 999 .*; upgrade the onnx package")
    foreign = model_of([helper.make_node("Magic", ["x"], ["y"], domain="com.acme")], {"x": X}, ["y"])
    refused(foreign, UnsupportedError, r"operator com\.acme\.Magic is not supported")


def test_what_decides_shapes_must_be_constant_and_can_be_made_so():
    model = one_node("Reshape", [X, ints(24)])
    message = r"\(Reshape\): the shape must be constant; it is computed from 'x1': .* fix the input \(constants=\)"
    refused(model, UnsupportedError, message)
    with pytest.raises(NotConstantError) as e:
        from_onnx(model)
    assert e.value.inputs == ("x1",)
    program = from_onnx(model, constants={"x1": ints(4, 6)})
    assert program.input_names == ("x0",)
    np.testing.assert_array_equal(evaluate(program.graph, [X])[0], X.reshape(4, 6))
    with pytest.raises(ImportFailure, match="constants= names input 'shape'; the inputs are x0, x1"):
        from_onnx(model, constants={"shape": ints(24)})


def test_a_protobuf_beyond_two_gibibytes(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as f:
        f.truncate(2**31)
    refused(path, ImportFailure, r"huge\.onnx: a protobuf of 2 GiB or more .* store the weights as external data")


def test_initializers_of_the_wrong_size():
    model = one_node("Add", [X], [array(4)])
    model.graph.initializer[0].dims[0] = 5
    refused(model, ImportFailure, r"initializer 'w0' declares shape \(5,\) \(20 bytes\) and holds 16 bytes")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value):
    refused(
        one_node("Add", [X], [np.array([1, value, 2, 3], np.float32)]),
        ImportFailure,
        "initializer 'w0' holds",
    )


def test_cycles_and_undefined_names():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]
    refused(
        model_of(nodes, {"x": X}, ["b"]), ImportFailure, r"the graph is cyclic: node 'a' \(Add\) and node 'b'"
    )
    lost = model_of([helper.make_node("Neg", ["nowhere"], ["y"])], {"x": X}, ["y"])
    refused(lost, ImportFailure, r"node 'y' \(Neg\) reads 'nowhere', which nothing defines")
    refused(model_of([], {"x": X}, ["y"]), ImportFailure, "output 'y' is computed by no node")


def test_operands_that_do_not_fit():
    refused(
        one_node("Gemm", [array(2, 3)], [array(4, 5)]), UnsupportedError, r"\(Gemm\): dot.*extents differ"
    )
    refused(
        one_node("Conv", [IMAGE], [array(2, 3, 3, 3)]),
        UnsupportedError,
        r"\(Conv\): conv.*4 channels against 3",
    )
    refused(one_node("Add", [X, array(7)]), UnsupportedError, r"\(Add\): .*do not broadcast")


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_a_constant_softmax_is_that_of_the_models_opset(op):
    nodes = [helper.make_node(op, ["w"], ["s"], axis=1), helper.make_node("Add", ["x", "s"], ["y"])]
    folded = from_onnx(model_of(nodes, {"x": X}, ["y"], {"w": X}, opset=11))
    computed = from_onnx(one_node(op, [X], opset=11, axis=1))
    np.testing.assert_allclose(evaluate(folded.graph, [X])[0], X + evaluate(computed.graph, [X])[0], rtol=1e-6)


def test_a_constant_mask_of_infinities():
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    nodes = [helper.make_node("Add", ["x", "m"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])]
    assert_same(model_of(nodes, {"x": array(4, 4)}, ["y"], {"m": mask}), array(4, 4))


MALFORMED = {
    "an axis beyond the rank": (helper.make_node("Concat", ["x", "x"], ["y"], axis=7), "axis 7 of a tensor of rank 3"),
    "an attribute missing": (helper.make_node("Concat", ["x", "x"], ["y"]), "attribute 'axis' is missing"),
    "too many inputs": (helper.make_node("Relu", ["x", "x"], ["y"]), "2 inputs given; it takes 1"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_nodes_are_refused(what):
    node, message = MALFORMED[what]
    with pytest.raises(UnsupportedError, match=message):
        from_onnx(model_of([node], {"x": X}, ["y"]))


def test_a_name_defined_twice():
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])]
    with pytest.raises(ImportFailure, match="both define 'y'"):
        from_onnx(model_of(nodes, {"x": X}, ["y"]))


def test_a_function_that_calls_itself():
    call = helper.make_node("Loop", ["a"], ["b"], domain="mine")
    itself = helper.make_function("mine", "Loop", ["a"], ["b"], [call], [helper.make_opsetid("mine", 1)])
    model = model_of([helper.make_node("Loop", ["x"], ["y"], domain="mine")], {"x": X}, ["y"])
    model.functions.append(itself)
    with pytest.raises(ImportFailure, match=r"mine\.Loop calls itself"):
        from_onnx(model)
