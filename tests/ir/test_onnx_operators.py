"""Operators beyond the elementwise ones and layers: positions at run time, recurrences, control flow, resampling."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from nestegg.ir.errors import UnsupportedError
from nestegg.ir.onnx_frontend import from_onnx
from nestegg.ir.reference import evaluate

from .onnx_models import array, assert_same, ints, model_of, one_node

X, IMAGE = array(3, 4, 5), array(1, 2, 4, 5)
ROWS = np.array([[2, -1], [0, 1]])
WITHIN = np.array([[[0, 2, -1, 1, 3]]])
GRID = np.random.default_rng(1).uniform(-1.3, 1.3, (1, 3, 2, 2)).astype(np.float32)

AT_RUN_TIME = {
    "gather": ("Gather", [X, ROWS], [], {"axis": 1}),
    "gather elements": ("GatherElements", [X, np.repeat(WITHIN, 3, 0)], [], {"axis": 1}),
    "gather nd": ("GatherND", [X, np.array([[0, 1], [2, -4]])], [], {}),
    "gather nd of batches": ("GatherND", [X, np.array([[1], [2], [-1]])], [], {"batch_dims": 1}),
    "scatter elements": ("ScatterElements", [X, WITHIN, array(1, 1, 5)], [], {"axis": 2}),
    "scatter add": ("ScatterElements", [X, WITHIN * 0, array(1, 1, 5)], [], {"axis": 1, "reduction": "add"}),
    "scatter nd": ("ScatterND", [X, np.array([[2], [0]]), array(2, 4, 5)], [], {}),
    "scatter max": ("ScatterND", [X, np.array([[2, 1], [2, 1]]), array(2, 5)], [], {"reduction": "max"}),
    "reverse sequence": ("ReverseSequence", [X, np.array([3, 1, 2, 2])], [], {"time_axis": 0, "batch_axis": 1}),
    "padding value": ("Pad", [X, ints(1, 0, 0, 0, 2, 0), np.array(7, np.float32)], [], {}),
    "one hot": ("OneHot", [np.array([1, -1]), np.array(3), np.array([2, 5], np.float32)], [], {}),
    "few constant positions": ("Gather", [X], [ints(1, 2, -1)], {"axis": 2}),
    "many constant positions": ("Gather", [array(9)], [np.random.default_rng(2).integers(0, 9, 100)], {}),
}


@pytest.mark.parametrize("case", AT_RUN_TIME)
def test_positions_at_run_time(case):
    op, data, parameters, attrs = AT_RUN_TIME[case]
    fixed = {"Pad": {"x1": data[1]} if op == "Pad" else {}, "OneHot": {"x1": data[1]} if op == "OneHot" else {}}
    assert_same(one_node(op, data, parameters, opset=18, **attrs), *data, constants=fixed.get(op, {}))


@pytest.mark.parametrize("largest", [0, 1])
def test_the_k_best_and_their_positions(largest):
    x = np.array([[3, 1, 3, 2], [0, 5, 5, -1]], np.float32)
    assert_same(one_node("TopK", [x], [ints(3)], 2, axis=1, largest=largest), x)


def test_what_a_known_condition_selects():
    assert_same(one_node("Compress", [X], [np.array([False, True, True])], axis=0), X)


GRIDS = [
    {"mode": mode, "padding_mode": padding, "align_corners": corners}
    for mode, padding, corners in [
        *(("linear", p, c) for p in ("zeros", "border", "reflection") for c in (0, 1)),
        *(("nearest", "border", 0), ("cubic", "zeros", 1), ("cubic", "border", 0)),
    ]
]


@pytest.mark.parametrize("attrs", GRIDS, ids=lambda a: "-".join(map(str, a.values())))
def test_sampling_of_a_grid(attrs):
    assert_same(one_node("GridSample", [IMAGE, GRID], opset=20, **attrs), IMAGE, GRID, tolerance=1e-4)


RESIZED = {
    "nearest": (None, ints(1, 2, 7, 3), {"mode": "nearest"}),
    "floor": (np.array([1, 1, 2.5, 0.6], np.float32), None, {"mode": "nearest", "nearest_mode": "floor"}),
    "linear": (None, ints(1, 2, 7, 3), {"mode": "linear"}),
    "corners": (
        np.array([1, 1, 2, 0.6], np.float32),
        None,
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "cubic": (None, ints(1, 2, 7, 3), {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}),
    "antialias": (None, ints(1, 2, 2, 3), {"mode": "cubic", "antialias": 1}),
}


@pytest.mark.parametrize("case", RESIZED)
def test_resizing(case):
    scales, sizes, attrs = RESIZED[case]
    assert_same(one_node("Resize", [IMAGE], [None, scales, sizes], opset=19, **attrs), IMAGE, tolerance=1e-4)


@pytest.mark.parametrize("equation", ["abc->ca", "abc,dc->adb", "abc,abc->b", "...c,c", "aab->ab"])
def test_sums_of_einstein(equation):
    operands = {"abc,dc->adb": [X, array(2, 5)], "abc,abc->b": [X, X], "...c,c": [X, array(5)]}
    data = operands.get(equation, [array(3, 3, 2)] if equation.startswith("aab") else [X])
    assert_same(one_node("Einsum", data, equation=equation), *data)


@pytest.mark.parametrize("attrs", [{}, {"inverse": 1}, {"onesided": 1}], ids=str)
def test_fourier_transforms(attrs):
    x = array(2, 6, 1 if attrs.get("onesided") else 2)
    assert_same(one_node("DFT", [x], axis=1, **attrs), x, tolerance=1e-4)


def test_quantized_products():
    x, w = (np.random.default_rng(k).integers(0, 255, s, np.uint8) for k, s in ((1, (3, 4)), (2, (4, 5))))
    scales = [np.array(v, np.float32) for v in (0.02, 0.03, 0.4)]
    points = [np.array(v, np.uint8) for v in (120, 130, 100)]
    parameters = [scales[0], points[0], w, scales[1], points[1], scales[2], points[2]]
    assert_same(one_node("QLinearMatMul", [x], parameters), x)
    image, kernel = x.reshape(1, 1, 3, 4), w[:2, :2].reshape(1, 1, 2, 2)
    parameters[2] = kernel
    assert_same(one_node("QLinearConv", [image], parameters), image)


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(direction):
    x, by = np.array([1, 200, 7], np.uint8), np.array([1, 3, 0], np.uint8)
    assert_same(one_node("BitShift", [x, by], direction=direction), x, by)


def test_long_integers_divide_exactly():
    x, y = np.array([-7, 7, 2**62 + 1]), np.array([2, -2, 3])
    (got,) = evaluate(from_onnx(one_node("Div", [x, y])).graph, [x, y])
    assert got.tolist() == [-3, -3, (2**62 + 1) // 3]


# --- recurrences -------------------------------------------------------------------------------------

RECURRENT = [("RNN", 1), ("GRU", 3), ("LSTM", 4)]


@pytest.mark.parametrize(("op", "gates"), RECURRENT)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_recurrent_layers(op, gates, direction):
    n, steps, batch, features, hidden = (2 if direction == "bidirectional" else 1), 3, 2, 4, 5
    x = array(steps, batch, features)
    w, r, b = array(n, gates * hidden, features), array(n, gates * hidden, hidden), array(n, 2 * gates * hidden)
    states = [array(n, batch, hidden) for _ in range(2 if op == "LSTM" else 1)]
    model = one_node(op, [x], [w, r, b, None, *states], 1 + len(states), hidden_size=hidden, direction=direction)
    if op == "RNN" and direction == "bidirectional":  # which ONNX' reference implementation lacks
        assert [t.shape for t in from_onnx(model).graph.output_types] == [(steps, n, batch, hidden), (n, batch, hidden)]
        return
    assert_same(model, x, tolerance=1e-4)


def test_a_sequence_keeps_its_state_past_its_end():
    x, hidden = array(4, 2, 3), 5
    parameters = [array(1, hidden, 3), array(1, hidden, hidden), None, np.array([4, 2], np.int32)]
    program = from_onnx(one_node("RNN", [x], parameters, 2, hidden_size=hidden))
    y, last = evaluate(program.graph, [x])
    short = evaluate(from_onnx(one_node("RNN", [x[:2]], parameters[:2], 2, hidden_size=hidden)).graph, [x[:2]])
    np.testing.assert_allclose(last[0, 1], short[1][0, 1], rtol=1e-6)
    assert not y[2:, 0, 1].any()
    assert y[2:, 0, 0].all()


# --- control flow ------------------------------------------------------------------------------------


def graph(nodes, inputs, outputs, constants=()):
    infos = [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs]
    outs = [helper.make_empty_tensor_value_info(o) for o in outputs]
    tensors = [numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    return helper.make_graph(nodes, "body", infos, outs, tensors)


def test_a_loop_of_known_length_is_unrolled():
    body = graph(
        [
            helper.make_node("Mul", ["state", "scale"], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Identity", ["next"], ["row"]),
        ],
        [("step", TensorProto.INT64, []), ("going", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, [3])],
        ["still", "next", "row"],
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["last", "all"], body=body)
    x, weights = array(3), {"trips": np.array(4), "scale": np.array(2, np.float32)}
    (last, every) = evaluate(from_onnx(model_of([node], {"x": x}, ["last", "all"], weights)).graph, [x])
    np.testing.assert_allclose(last, x * 16)
    np.testing.assert_allclose(every, x * np.array([[2], [4], [8], [16]], np.float32))
    with pytest.raises(UnsupportedError, match="the Loop runs 1025 steps; at most 1024 are unrolled"):
        from_onnx(model_of([node], {"x": x}, ["last", "all"], {**weights, "trips": np.array(5000)}))
    with pytest.raises(
        UnsupportedError, match=r"\(Loop\): the trip count must be constant; it is computed from 'trips'"
    ):
        from_onnx(model_of([node], {"x": x, "trips": np.array(4)}, ["last", "all"], {"scale": weights["scale"]}))


def test_a_scan_takes_a_slice_a_step():
    body = graph(
        [helper.make_node("Add", ["total", "now"], ["next"]), helper.make_node("Identity", ["next"], ["row"])],
        [("total", TensorProto.FLOAT, [2]), ("now", TensorProto.FLOAT, [2])],
        ["next", "row"],
    )
    node = helper.make_node("Scan", ["start", "x"], ["last", "sums"], body=body, num_scan_inputs=1)
    x = array(5, 2)
    model = model_of([node], {"x": x}, ["last", "sums"], {"start": np.zeros(2, np.float32)})
    assert_same(model, x)


@pytest.mark.parametrize("condition", [True, False])
def test_an_unknown_condition_chooses_between_both_results(condition):
    branches = [graph([helper.make_node(op, ["x"], ["out"])], [], ["out"]) for op in ("Neg", "Abs")]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    x, c = array(3), np.array(condition)
    assert_same(model_of([node], {"x": x, "c": c}, ["y"]), x, c)


# --- float16 -----------------------------------------------------------------------------------------


def test_float16_is_rounded_once():
    x = (array(64) * 30).astype(np.float16)
    nodes = [helper.make_node("Mul", ["x", "x"], ["s"]), helper.make_node("ReduceMean", ["s"], ["y"], keepdims=0)]
    model = model_of(nodes, {"x": x}, ["y"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT16, []))
    (got,) = evaluate(from_onnx(model).graph, [x])
    assert got.dtype == np.float16
    assert got == np.float16((x.astype(np.float64) ** 2).mean())


def test_a_cast_to_float16_rounds():
    x = array(8)
    casts = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    (got,) = evaluate(from_onnx(model_of(casts, {"x": x}, ["y"])).graph, [x])
    np.testing.assert_array_equal(got, x.astype(np.float16).astype(np.float32))
