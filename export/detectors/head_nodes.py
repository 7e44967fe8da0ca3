"""The scoring heads as ONNX nodes: patches and a memory bank become `anomaly_map` and `score`.

The heads are written node by node, not traced: that fixes operators, names and memory, and lets the parity gate compare
two independent implementations. Large constants are external data that point into `bank.safetensors`, so the bundle
holds every number once.

Names and order of nodes and initializers are part of the format: the hash of the graph names cached engines, and
`flawscope.runtime.engines` recognises the head by its node names.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from flawscope.bank_names import bank_names, norm_names, place_names
from flawscope.bundle import BankHead, PadimHead, PatchcoreHead
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.triangles import triangle_places

BLOCK_ELEMENTS = 1 << 24
"""Elements of one distance block at the largest batch: 64 MiB of float32."""


class BankFile:
    """Where the tensors of a safetensors file lie, as ONNX external data sees it."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # safetensors: length of the header as uint64, the header as JSON, then the data; offsets count from there.
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        self.name, self._path = path.name, path
        self._start = 8 + length
        self._entries = {key: value for key, value in header.items() if key != "__metadata__"}

    def __contains__(self, tensor: object) -> bool:
        """Return whether a tensor is stored."""
        return tensor in self._entries

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor."""
        return tuple(self._entries[tensor]["shape"])

    def integers(self, tensor: str) -> npt.NDArray[np.int64]:
        """Return a stored tensor of int64."""
        first, last = self._entries[tensor]["data_offsets"]
        with self._path.open("rb") as file:
            file.seek(self._start + first)
            return np.frombuffer(file.read(last - first), np.int64).reshape(self.shape(tensor))

    def initializer(self, tensor: str, name: str) -> TensorProto:
        """Return an initializer that refers to a stored tensor."""
        entry = self._entries[tensor]
        shape = list(entry["shape"])
        # A KeyError is wanted for other types: no head has been written for them.
        kind, itemsize = {
            "F16": (TensorProto.FLOAT16, 2),
            "F32": (TensorProto.FLOAT, 4),
            "I64": (TensorProto.INT64, 8),
        }[entry["dtype"]]
        offset = self._start + entry["data_offsets"][0]
        proto = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.name), ("offset", offset), ("length", itemsize * math.prod(shape))):
            proto.external_data.add(key=key, value=str(value))
        return proto


class HeadNodes:
    """Collects the nodes and constants of a head under one prefix."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        name = f"head.{output}" if output not in ("anomaly_map", "score") else output
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"head/{output}", **attributes))
        return name

    def constant(self, value: npt.NDArray[np.generic], name: str) -> str:
        """Store a small array inside the graph and return its name."""
        self.initializers.append(numpy_helper.from_array(value, f"head.{name}"))
        return f"head.{name}"

    def axes(self, *values: int) -> str:
        """Return the name of an int64 constant; the same values share one."""
        # m for minus, so that the name is an identifier.
        name = "axes_" + "_".join(str(value).replace("-", "m") for value in values)
        if not any(existing.name == f"head.{name}" for existing in self.initializers):
            self.constant(np.array(values, np.int64), name)
        return f"head.{name}"

    def rows(self, tensor: str, start: int, stop: int, output: str) -> str:
        """Take some rows of a tensor and return the name of the result."""
        return self.add("Slice", [tensor, self.axes(start), self.axes(stop), self.axes(0)], output)

    def largest(self, tensor: str, count: int, output: str) -> str:
        """Take the largest values of every row [N, P] and return the name of the result, [N, count]."""
        # Not by `add`, which knows one output: TopK has two.
        names = [f"head.{output}", f"head.{output}_places"]
        node = helper.make_node("TopK", [tensor, self.axes(count)], names, name=f"head/{output}", axis=1, largest=1)
        self.nodes.append(node)
        return names[0]

    def external(self, proto: TensorProto) -> str:
        """Add an initializer made by `BankFile.initializer` and return its name."""
        self.initializers.append(proto)
        return proto.name


WriteHead = Callable[[HeadNodes, Any, BankFile, tuple[int, int], int], None]
"""Adds the nodes of a method: `(nodes, head, bank, (H, W), max_batch)`."""


def append_head(
    features: onnx.ModelProto,
    head: BankHead,
    bank: BankFile,
    size: tuple[int, int],
    max_batch: int,
    write_head: WriteHead,
) -> onnx.ModelProto:
    """Return the complete graph `image` → `anomaly_map` float32 [N, H, W], `score` float32 [N].

    Args:
        features: The graph that ends in `patches`.
        head: Method and parameters.
        bank: The stored bank; it must lie beside the graph when that is run.
        size: Height and width of the anomaly map in pixels.
        max_batch: Largest batch; sets how many bank rows one distance block takes.
        write_head: Adds the nodes of the method.
    """
    model = onnx.ModelProto()
    model.CopyFrom(features)
    nodes = HeadNodes()
    write_head(nodes, head, bank, size, max_batch)
    model.graph.node.extend(nodes.nodes)
    model.graph.initializer.extend(nodes.initializers)
    del model.graph.output[:]
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", *size]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ]
    )
    return model


def _map(nodes: HeadNodes, distances: str, head: BankHead, size: tuple[int, int]) -> None:
    """Distances [N·P] or [N, P] → anomaly_map, as the two matrix products of `map_upsampling`."""
    rows, columns = map_matrices(head.grid, size, head.sigma, head.places)
    grid = nodes.add("Reshape", [distances, nodes.axes(-1, *head.grid)], "grid")
    # R · A · Cᵀ from the left, in this order: the other one rounds differently.
    tall = nodes.add("MatMul", [nodes.constant(rows, "map_rows"), grid], "tall")
    nodes.add("MatMul", [tall, nodes.constant(columns, "map_columns")], "anomaly_map")


def patchcore_nodes(
    nodes: HeadNodes, head: PatchcoreHead, bank: BankFile, size: tuple[int, int], max_batch: int
) -> None:
    """Add PatchCore: nearest rows in blocks, the map, and the re-weighting of equation 7 of arXiv:2106.08265."""
    positions = head.grid[0] * head.grid[1]
    names = bank_names(head.banks)
    queries = nodes.add("Reshape", ["patches", nodes.axes(-1, sum(bank.shape(name)[1] for name in names))], "queries")
    # Rows of a block: a multiple of 64, for the vector units, and at least 64 however large the batch is.
    block = max(64, BLOCK_ELEMENTS // (max_batch * positions) // 64 * 64)
    if head.banks == 1:
        distance, matched = _bank_distances(nodes, head, bank, queries, 0, block)
    else:
        distance, matched = _mean_distance(nodes, head, bank, queries, block), ""
    if head.foreground:
        distance = nodes.add("Mul", [distance, _foreground(nodes, head, bank, queries)], "in_foreground")
    _map(nodes, distance, head, size)

    by_image = nodes.add("Reshape", [distance, nodes.axes(-1, positions)], "by_image")
    if head.reweights and bank.shape("bank")[0] > 1:  # one neighbour is nothing to weigh against
        _reweighted_score(nodes, head, bank, matched, by_image)
    elif head.top > 1:
        largest = nodes.largest(by_image, head.top, "largest")
        nodes.add("ReduceMean", [largest, nodes.axes(1)], "score", keepdims=0)
    else:
        nodes.add("ReduceMax", [by_image, nodes.axes(1)], "score", keepdims=0)


def _bank_distances(
    nodes: HeadNodes, head: PatchcoreHead, bank: BankFile, queries: str, number: int, block: int
) -> tuple[str, str]:
    """Add the distances of queries float32 [N·P, D] to one bank.

    Returns:
        Names of the distances float32 [N·P], and of the indices of the nearest rows, int64 [N·P].
    """
    name, norm_name = bank_names(head.banks)[number], norm_names(head.banks)[number]
    # The first keeps the names that a single bank has.
    mark = f"_of_{number}" if number else ""
    whole = nodes.external(bank.initializer(name, name))
    norms = nodes.external(bank.initializer(norm_name, norm_name))
    mask = None if head.window is None else _window_mask(nodes, head, bank, number, mark)
    index = _nearest_rows(nodes, queries, whole, norms, bank.shape(name)[0], block, mark, mask)
    matched = nodes.add("Reshape", [index, nodes.axes(-1)], f"matched{mark}")
    # The product form loses digits where distances are small beside norms: the winner's distance is taken again.
    neighbour = nodes.add("Gather", [whole, matched], f"neighbour{mark}", axis=0)
    difference = nodes.add("Sub", [queries, neighbour], f"difference{mark}")
    squared = nodes.add("ReduceSumSquare", [difference, nodes.axes(1)], f"squared{mark}", keepdims=0)
    return _by_metric(nodes, head, squared, f"distance{mark}"), matched


def _mean_distance(nodes: HeadNodes, head: PatchcoreHead, bank: BankFile, queries: str, block: int) -> str:
    """Add the mean over several banks of the distances of their channels of queries; return its name."""
    total, start = "", 0
    for number, name in enumerate(bank_names(head.banks)):
        stop = start + bank.shape(name)[1]
        part = nodes.add("Slice", [queries, nodes.axes(start), nodes.axes(stop), nodes.axes(1)], f"layer_{number}")
        distance, _ = _bank_distances(nodes, head, bank, part, number, block)
        total = distance if not number else nodes.add("Add", [total, distance], f"total_{number}")
        start = stop
    share = nodes.constant(np.array(1 / head.banks, np.float32), "share_of_a_bank")
    return nodes.add("Mul", [total, share], "mean_distance")


def _foreground(nodes: HeadNodes, head: PatchcoreHead, bank: BankFile, queries: str) -> str:
    """Add the weights of `flawscope.imaging.patch_foreground`; return their name, float32 [N·P]."""
    direction = nodes.external(bank.initializer("foreground", "foreground"))
    limits = nodes.external(bank.initializer("foreground_limits", "foreground_limits"))
    projected = nodes.add("MatMul", [queries, direction], "projected")
    shifted = nodes.add("Add", [projected, nodes.rows(limits, 0, 1, "foreground_offset")], "from_background")
    one = nodes.constant(np.array(1.0, np.float32), "foreground_one")
    ends = [nodes.constant(np.array(0.0, np.float32), "foreground_zero"), one]
    grid = nodes.add("Reshape", [nodes.add("Clip", [shifted, *ends], "ramp"), nodes.axes(-1, 1, *head.grid)], "ramps")
    grown = nodes.add("MaxPool", [grid], "grown", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    by_image = nodes.add("Reshape", [grown, nodes.axes(-1, head.grid[0] * head.grid[1])], "grown_by_image")
    # An image that shows too little of the part is scored whole.
    share = nodes.add("ReduceMean", [by_image, nodes.axes(1)], "foreground_share", keepdims=1)
    shows_little = nodes.add("Less", [share, nodes.rows(limits, 1, 2, "foreground_least")], "shows_little")
    weights = nodes.add("Where", [shows_little, one, by_image], "foreground_weights")
    return nodes.add("Reshape", [weights, nodes.axes(-1)], "foreground_of_patches")


def _by_metric(nodes: HeadNodes, head: PatchcoreHead, squared: str, output: str) -> str:
    """Add the distance from its square, as the metric has it; return its name."""
    if head.metric == "euclidean":
        return nodes.add("Sqrt", [squared], output)
    return nodes.add("Mul", [squared, nodes.constant(np.array(0.5, np.float32), f"half_{output}")], output)


Mask = Callable[[str, int, int], str]
"""`(products [N·P, B], first row, last row + 1) -> products` with infinity for rows that do not count for a patch."""


def _window_mask(nodes: HeadNodes, head: PatchcoreHead, bank: BankFile, number: int, mark: str) -> Mask:
    """Return what makes the products of rows from beyond the window of a patch infinite.

    Everything but the products is constant, so a runtime computes it once: a mask [P, M] of one byte an element.
    """
    assert head.window is not None
    name = place_names(head.banks)[number]
    positions = head.grid[0] * head.grid[1]
    reach = window_reach(place_starts(bank.integers(name), head.grid), head.grid, head.window)
    # float32, in which TensorRT compares too: whole numbers up to 8,192 are exact.
    own = [
        nodes.constant(axis.reshape(positions, 1).astype(np.float32), f"window_{side}{mark}")
        for side, axis in zip(("rows", "columns"), np.indices(head.grid), strict=True)
    ]
    reachable = nodes.constant(reach.reshape(positions, 1).astype(np.float32), f"window_reach{mark}")
    infinite = nodes.constant(np.array(np.inf, np.float32), f"window_infinite{mark}")
    stored = nodes.external(bank.initializer(name, name))
    places = nodes.add("Cast", [stored], f"window_places{mark}", to=TensorProto.FLOAT)
    of_rows = nodes.add("Transpose", [places], f"window_of_rows{mark}", perm=[1, 0])

    def mask(product: str, start: int, stop: int) -> str:
        away = []
        for axis, side in enumerate(("down", "along")):
            bounds = nodes.axes(axis, start), nodes.axes(axis + 1, stop), nodes.axes(0, 1)
            theirs = nodes.add("Slice", [of_rows, *bounds], f"window_{side}_places_{start}{mark}")
            signed = nodes.add("Sub", [own[axis], theirs], f"window_{side}_signed_{start}{mark}")
            away.append(nodes.add("Abs", [signed], f"window_{side}_{start}{mark}"))
        farthest = nodes.add("Max", away, f"window_away_{start}{mark}")
        outside = nodes.add("Greater", [farthest, reachable], f"window_outside_{start}{mark}")
        # One mask for the images of a batch.
        by_place = nodes.add(
            "Reshape", [product, nodes.axes(-1, positions, stop - start)], f"window_product_{start}{mark}"
        )
        masked = nodes.add("Where", [outside, infinite, by_place], f"window_masked_{start}{mark}")
        return nodes.add("Reshape", [masked, nodes.axes(-1, stop - start)], f"window_{start}{mark}")

    return mask


def _nearest_rows(
    nodes: HeadNodes, queries: str, bank: str, norms: str, rows: int, block: int, mark: str, mask: Mask | None
) -> str:
    """Add the search for the nearest bank row of each query; return the name of its index, int64 [N·P, 1].

    Args:
        nodes: Collects the nodes.
        queries: Patches float32 [N·P, D].
        bank: The bank, float32 [M, D].
        norms: Squared norms of its rows, float32 [M].
        rows: M.
        block: Rows of one distance block; a bank that fits into one needs no merging of blocks.
        mark: Ends the names of the nodes, which tell several banks apart.
        mask: Leaves out rows that do not count for a patch; None where all do.
    """
    least_of_all = index = ""
    for start in range(0, rows, block):
        stop, is_only = min(start + block, rows), rows <= block
        # Sliced in the graph and not from the file: TensorRT refuses two weights that begin at the same address.
        part = bank if is_only else nodes.rows(bank, start, stop, f"bank_{start}{mark}")
        part_norms = norms if is_only else nodes.rows(norms, start, stop, f"norms_{start}{mark}")
        # ‖m‖² − 2·q·m: what is left out, ‖q‖², is the same for all rows of the bank.
        product = nodes.add("Gemm", [queries, part, part_norms], f"product_{start}{mark}", alpha=-2.0, transB=1)
        if mask is not None:
            product = mask(product, start, stop)
        nearest = nodes.add("ArgMin", [product], f"found_{start}{mark}", axis=1, keepdims=1)
        if is_only:
            return nearest
        least = nodes.add("ReduceMin", [product, nodes.axes(1)], f"least_{start}{mark}", keepdims=1)
        shifted = nodes.add("Add", [nearest, nodes.axes(start)], f"shifted_{start}{mark}")
        if not index:
            least_of_all, index = least, shifted
            continue
        # Less, not LessOrEqual: of equal rows the first wins, as ArgMin has it inside a block.
        better = nodes.add("Less", [least, least_of_all], f"better_{start}{mark}")
        index = nodes.add("Where", [better, shifted, index], f"index_{start}{mark}")
        least_of_all = nodes.add("Min", [least, least_of_all], f"value_{start}{mark}")
    return index


def _reweighted_score(nodes: HeadNodes, head: PatchcoreHead, bank: BankFile, matched: str, by_image: str) -> None:
    """Add the score: the largest distance s* times 1 − exp(d*) / Σ exp(d) over the neighbours, equation 7.

    Args:
        nodes: Collects the nodes.
        head: Says which neighbours count.
        bank: Has the table of each row's own neighbours, for `paper`.
        matched: Nearest row of each patch, int64 [N·P].
        by_image: Distances to it, float32 [N, P].
    """
    rows, positions = bank.shape("bank")[0], head.grid[0] * head.grid[1]
    whole, norms = "bank", "norms"  # the initializers that the search has added
    # The patch with the largest distance, s* and its position, in each image.
    top = nodes.add("ReduceMax", [by_image, nodes.axes(1)], "top", keepdims=0)
    place = nodes.add("ArgMax", [by_image], "place", axis=1, keepdims=1)
    query = nodes.add("GatherND", ["patches", place], "query", batch_dims=1)
    if head.reweight == "paper":
        # Neighbours of the matched row m*, as the paper has it; their table was computed in training.
        matches = nodes.add("Reshape", [matched, nodes.axes(-1, positions)], "matches")
        best = nodes.add("GatherND", [matches, place], "best", batch_dims=1)
        table = nodes.external(bank.initializer("neighbours", "neighbours"))
        around = nodes.add("Gather", [table, best], "around", axis=0)
    else:
        # Neighbours of the query itself.
        products = nodes.add("Gemm", [query, whole, norms], "query_products", alpha=-2.0, transB=1)
        count = nodes.axes(min(head.neighbors, rows))
        # Not by `nodes.add`, which knows one output: TopK has two.
        nodes.nodes.append(
            helper.make_node(
                "TopK", [products, count], ["head.query_least", "head.around"], name="head/around", axis=1, largest=0
            )
        )
        around = "head.around"
    members = nodes.add("Gather", [whole, around], "members", axis=0)
    centre = nodes.add("Unsqueeze", [query, nodes.axes(1)], "centre")
    spread = nodes.add("Sub", [members, centre], "spread")
    spread_squared = nodes.add("ReduceSumSquare", [spread, nodes.axes(2)], "spread_squared", keepdims=0)
    distances = _by_metric(nodes, head, spread_squared, "distances")
    # As a softmax: exp(d) alone overflows float32 from distances of 89 on.
    shares = nodes.add("Softmax", [distances], "shares", axis=1)
    if head.reweight == "paper":
        # The first neighbour of m* in the table is m* itself.
        first = nodes.constant(np.array(0, np.int64), "first")
        own_share = nodes.add("Gather", [shares, first], "own_share", axis=1)
    else:
        # Here the numerator is the largest exp(d) of the neighbours, as in `runtime/scorers/patchcore_scorer.py`.
        own_share = nodes.add("ReduceMax", [shares, nodes.axes(1)], "own_share", keepdims=0)
    weight = nodes.add("Sub", [nodes.constant(np.array(1.0, np.float32), "one"), own_share], "weight")
    nodes.add("Mul", [weight, top], "score")


def padim_nodes(nodes: HeadNodes, head: PadimHead, bank: BankFile, size: tuple[int, int], max_batch: int) -> None:
    """Add PaDiM: the Mahalanobis distance at every position, and the map (arXiv:2011.08785)."""
    mean = nodes.external(bank.initializer("mean", "mean"))
    whitening = _whitening(nodes, bank)
    centred = nodes.add("Sub", ["patches", mean], "centred")
    # One matrix product per position: (x − μ) W with W Wᵀ = Σ⁻¹ has the Mahalanobis distance as its norm.
    at_position = nodes.add("Transpose", [centred], "at_position", perm=[1, 0, 2])
    white = nodes.add("MatMul", [at_position, whitening], "white")
    squared = nodes.add("ReduceSumSquare", [white, nodes.axes(2)], "squared", keepdims=0)
    distance = nodes.add("Sqrt", [squared], "distance")
    by_image = nodes.add("Transpose", [distance], "by_image", perm=[1, 0])
    _map(nodes, by_image, head, size)
    nodes.add("ReduceMax", ["anomaly_map", nodes.axes(1, 2)], "score", keepdims=0)


def _whitening(nodes: HeadNodes, bank: BankFile) -> str:
    """Add the whitening matrices float32 [P, D, D] and return their name.

    Of upper triangles alone they are made in the graph, from constants: a runtime does it once, when it loads it.
    """
    if "whitening" in bank:  # bundles that were written before they were stored as triangles
        return nodes.external(bank.initializer("whitening", "whitening"))
    channels = bank.shape("mean")[1]
    stored = nodes.external(bank.initializer("triangles", "triangles"))
    # Gathered before the cast: that is half of the bytes where they are float16.
    places = nodes.constant(triangle_places(channels).reshape(-1), "triangle_places")
    gathered = nodes.add("Gather", [stored, places], "gathered", axis=1)
    numbers = nodes.add("Cast", [gathered], "gathered_numbers", to=TensorProto.FLOAT)
    square = nodes.add("Reshape", [numbers, nodes.axes(-1, channels, channels)], "squares")
    # Whatever stands below a diagonal is the triangle's first number times zero.
    upper = nodes.constant(np.triu(np.ones((channels, channels), np.float32)), "upper")
    return nodes.add("Mul", [square, upper], "whitening")
