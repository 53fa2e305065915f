"""The calls of modules in the graph of a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clipcheck.backends.graph import APART, MERGED, NAMELESS, Call, Graph, Modules, Node, find_calls

MODULES = Modules(
    ["visual.conv1", "visual.bn1", "visual.block", "visual.block.ln", "ln_final"],
    {"visual.conv1.weight", "visual.bn1.weight", "visual.block.ln.weight", "ln_final.weight"},
    lambda key: key.startswith("visual."),
)


def of(*nodes: Node, outputs: Sequence[str] = ("y",)) -> Graph:
    weights = {
        "m.visual.conv1.weight",
        "m.visual.block.ln.weight",
        "m.ln_final.weight",
        "ln.weight",
    }
    return Graph(nodes, ["pixels", "tokens"], outputs, weights | {"constant"})


def node(scope: str, inputs: Sequence[str], output: str, op: str = "Op") -> Node:
    return Node(op, tuple(inputs), (output,), scope)


def test_the_inputs_and_outputs_of_a_module_are_found_below_any_wrapper() -> None:
    found = find_calls(
        of(
            node("m.visual.conv1", ["pixels", "m.visual.conv1.weight"], "x"),
            node("m.visual.block", ["x", "constant"], "x1"),
            node("m.visual.block.ln", ["x1", "m.visual.block.ln.weight"], "x2"),
            node("m.visual.block", ["x1", "x2"], "y"),
        ),
        MODULES,
        ["pixels"],
    )
    assert found.calls == [
        Call("visual.conv1", ("pixels",), ("x",), 0),
        Call("visual.block", ("x",), ("y",), 1),
        Call("visual.block.ln", ("x1",), ("x2",), 2),
    ]
    assert found.hidden == {"visual.bn1": NAMELESS, "ln_final": NAMELESS}


def test_an_operation_that_only_reads_a_shape_is_not_an_output() -> None:
    found = find_calls(
        of(
            node("m.visual.conv1", ["pixels", "m.visual.conv1.weight"], "x"),
            node("m.visual.block.ln", ["x"], "size", "Shape"),
            node("m.visual.block.ln", ["x", "size", "m.visual.block.ln.weight"], "y"),
            node("", ["x", "size"], "z", "Shape"),
        ),
        MODULES,
        ["pixels"],
    )
    assert Call("visual.block.ln", ("x",), ("y",), 2) in found.calls


def test_a_convolution_with_a_folded_normalisation_is_one_call() -> None:
    folded = node("m.visual.bn1", ["pixels", "m.visual.conv1.weight"], "y")
    found = find_calls(of(folded), MODULES, ["pixels"])
    assert found.calls == [Call("visual.conv1", ("pixels",), ("y",), 0, "visual.bn1")]


def test_modules_that_are_fused_in_other_ways_are_left_out() -> None:
    found = find_calls(
        of(
            node("m.visual.conv1", ["pixels", "m.visual.conv1.weight"], "x"),
            node("m.visual.bn1", ["x", "m.visual.conv1.weight"], "y"),
        ),
        MODULES,
        ["pixels"],
    )
    assert not found.calls
    assert found.hidden["visual.conv1"] == found.hidden["visual.bn1"] == MERGED


def test_a_module_whose_tensors_leave_it_and_come_back_is_left_out() -> None:
    nodes = (
        node("m.visual.conv1", ["pixels", "m.visual.conv1.weight"], "x"),
        node("m.visual.block", ["x", "constant"], "x1"),
        node("m.visual.conv1", ["x1", "constant"], "y"),
    )
    both = find_calls(of(*nodes), MODULES, ["pixels"])
    assert [call.module for call in both.calls] == ["visual.block"]
    assert both.hidden["visual.conv1"] == APART
    beside = node("m.visual.block", ["pixels", "constant"], "x1")
    found, _ = find_calls(of(nodes[0], beside, nodes[2]), MODULES, ["pixels"]).calls
    assert found.inputs == ("pixels", "x1")


def test_operations_without_a_path_are_in_the_module_that_they_lie_between() -> None:
    """As the split that an exporter makes of the slices of query, key and value."""
    first = node("m.visual.conv1", ["pixels", "m.visual.conv1.weight"], "x")
    between = (node("", ["x"], "x1"), node("", ["x1", "constant"], "x2"))
    last = node("m.visual.conv1", ["x2", "constant"], "y")
    beside = node("", ["x1"], "z")
    inside = Call("visual.conv1", ("pixels",), ("y",), 0)
    assert find_calls(of(first, *between, last), MODULES, ["pixels"]).calls == [inside]
    # One that leads nowhere in it takes a tensor that leaves the module.
    (call,) = find_calls(
        of(first, *between, last, beside, node("", ["z"], "z1")), MODULES, ["pixels"]
    ).calls
    assert set(call.outputs) == {"x1", "y"}
    # Without paths, the end of a module is not known: its last operation may take no weight.
    known = [replace(each, scope="") for each in (first, *between)]
    known.append(node("", ["x2", "m.visual.bn1.weight"], "y"))
    weights = ["m.visual.conv1.weight", "m.visual.bn1.weight", "constant"]
    block = Modules(["visual"], {weight[2:] for weight in weights[:2]}, MODULES.is_visual)
    assert find_calls(Graph(known, ["pixels"], ["y"], weights), block, ["pixels"]).calls == []


def test_a_module_known_by_its_weights_alone_must_have_them_all() -> None:
    modules = Modules(["ln_final"], {"ln_final.weight", "ln_final.bias"}, lambda _: False)
    scaled = node("", ["tokens", "ln_final.weight"], "x")
    shifted = node("", ["x", "ln_final.bias"], "y")
    weights = ["ln_final.weight", "ln_final.bias"]

    def calls(*nodes: Node) -> Sequence[Call]:
        return find_calls(Graph(nodes, ["tokens"], ["y"], weights), modules, []).calls

    assert calls(scaled, shifted) == [Call("ln_final", ("tokens",), ("y",), 0)]
    alone = replace(scaled, outputs=("y",))
    assert calls(alone) == []
    assert calls(replace(alone, scope="ln_final")) == [Call("ln_final", ("tokens",), ("y",), 0)]


def test_a_module_known_by_its_weights_alone_must_take_no_others() -> None:
    """ONNX's version converter keeps a folded convolution's weights, and no paths."""
    folded = node("", ["pixels", "m.visual.conv1.weight", "constant"], "y")
    found = find_calls(of(folded), MODULES, ["pixels"])
    assert (found.calls, found.hidden["visual.conv1"]) == ([], MERGED)
    plain = replace(folded, inputs=folded.inputs[:2])
    assert find_calls(of(plain), MODULES, ["pixels"]).calls == [
        Call("visual.conv1", ("pixels",), ("y",), 0)
    ]


def test_a_module_without_known_weights_is_left_out() -> None:
    # A BatchNorm may be folded into them, and then the output is another module's.
    unnamed = node("m.visual.conv1", ["pixels", "onnx::Conv_12"], "y")
    assert find_calls(of(unnamed), MODULES, ["pixels"]).hidden["visual.conv1"] == NAMELESS


def test_a_cast_without_a_path_is_in_the_module_before_it() -> None:
    """As the rounding at the end of a layer in half precision."""
    first = node("m.visual.conv1", ["pixels", "m.visual.conv1.weight"], "x")
    casts = node("", ["x"], "x1", "Cast"), node("", ["x1", "pixels"], "x2", "CastLike")
    last = node("m.visual.block", ["x2"], "y")
    found, _ = find_calls(of(first, *casts, last), MODULES, ["pixels"]).calls
    assert (found.module, found.outputs) == ("visual.conv1", ("x2",))
    plain = [replace(each, op="Op") for each in casts]
    found, _ = find_calls(of(first, *plain, last), MODULES, ["pixels"]).calls
    assert found.outputs == ("x",)


def test_a_tensor_follows_from_others_if_inputs_reach_it_by_no_other_way() -> None:
    features = (node("", ["pixels"], "image"), node("", ["tokens"], "text"))
    size = node("", ["pixels"], "size", "Shape")
    product = node("", ["image", "text", "size"], "y")
    assert of(*features, size, product).follows_from("y", ["image", "text"])
    assert not of(*features, size, product).follows_from("y", ["image"])
    assert not of(*features, size, product).follows_from("size", ["image"])
    own = node("", ["pixels"], "other")
    assert not of(*features, own, node("", ["image", "other"], "y")).follows_from("y", ["image"])


def test_a_tower_that_was_exported_alone_is_recognised_by_its_input() -> None:
    modules = Modules(
        ["visual.ln", "ln"],
        {"visual.ln.weight", "ln.weight"},
        lambda key: key.startswith("visual."),
    )
    alone = of(node("ln", ["pixels", "ln.weight"], "y"))
    assert [call.module for call in find_calls(alone, modules, ["pixels"]).calls] == ["visual.ln"]
    text = of(node("ln", ["tokens", "ln.weight"], "y"))
    assert [call.module for call in find_calls(text, modules, ["pixels"]).calls] == ["ln"]
