"""Compare all modules of an archive as it runs, and the steps between them.

A `Judge` compares every module on the input that the archive gives it. The walk also compares these
inputs: each must follow from earlier outputs by the eager model's steps (`connections`). If the
archive does not call a module by name, the eager module takes its place: no step is left out.

Kept are the tensors of each tower's last two residual blocks so far, and the outputs of the
towers' last modules: a program returns features of images when both towers have run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch

from clipcheck.backends.forward import Sizes, outputs_of
from clipcheck.backends.reference import exact_arithmetic
from clipcheck.backends.runner import Shows
from clipcheck.errors import RunError
from clipcheck.families import eager
from clipcheck.families.connections import (
    IMAGE_FEATURES,
    LAST,
    PIXELS,
    TEXT_FEATURES,
    TOKENS,
    Connection,
    End,
    connections,
)
from clipcheck.gates.localisation import FORWARD, HEAD, Failure, Localisation, localise, tower_of
from clipcheck.gates.modules import Coverage, ModuleError, ratio, ratios
from clipcheck.gates.result import ENCODERS, FEATURES, LOGITS
from clipcheck.gates.tolerances import EXTREME, Limits
from clipcheck.harness.modules.judge import Judge, Tensors, error_of, methods_of, nearest
from clipcheck.harness.modules.ranges import Ranges
from clipcheck.harness.modules.twins import NOT_TAKEN, Pair, Twins
from clipcheck.inputs.batches import Batch
from clipcheck.models.taps import Site
from clipcheck.system.progress import Advance, Tally, still


def judge_program(
    program: Shows,
    model: eager.CLIP,
    batch: Batch,
    device: torch.device,
    limits: Limits,
    advance: Advance = still,
) -> Coverage:
    """Judge the modules of a program, and the steps between them.

    A module that the program does not show is judged together with the steps around it.

    Args:
        batch: as for `walk`.

    Returns:
        The errors, which modules they cover, why others were not judged, and why methods failed.
    """
    walker = _Walker(program, model, batch, device, limits, stops=False, advance=advance)
    with exact_arithmetic():
        walker.run_towers()
        found = walker.coverage()
        if found.failures:
            return found
        ranges = walker.ranges()
    return replace(found, ranges=ranges.errors, reached=ranges.reached)


def walk(
    archive: Shows,
    model: eager.CLIP,
    batch: Batch,
    device: torch.device,
    limits: Limits,
    given: str,
    *,
    alone: bool = False,
) -> Localisation:
    """Find where an archive or a program first departs from the eager model, in each tower.

    Each tower runs once in the archive, and its modules once in the eager model and once in
    float64. A program runs both towers at once. If both towers pass, ``forward`` runs as well.

    Args:
        batch: inputs; without images or prompts, that tower does not run. The numbers of images and
            prompts must differ from the number of positions in their tower, to be distinguishable.
        alone: whether modules of a program run alone on extreme inputs, if nothing departs.
    """
    walker = _Walker(archive, model, batch, device, limits)
    with exact_arithmetic():
        walker.run_towers()
        found = walker.localisation(given)
        if not found.found:
            walker.run_forward()
            found = walker.localisation(given)
        if found.found or not alone:
            return found
        errors = walker.ranges().errors
    extreme = described("extreme inputs of each module alone", archive)
    return localise(errors, [], limits, extreme)


def described(given: str, archive: Shows) -> str:
    """Describe inputs, and how a model ran on them."""
    return f"{given}; {archive.note}" if archive.note else given


class _Unknown(Exception):  # noqa: N818 - no error: it ends the search for a value
    """The expected value cannot be computed from the tensors that are kept."""


class _Walker:
    def __init__(
        self,
        archive: Shows,
        model: eager.CLIP,
        batch: Batch,
        device: torch.device,
        limits: Limits,
        *,
        stops: bool = True,
        advance: Advance = still,
    ) -> None:
        self.pixels = torch.from_numpy(batch.pixels).to(device)
        self.tokens = torch.from_numpy(batch.tokens).to(device)
        self._archive = archive
        self._methods = methods_of(archive, batch)
        self._model = model
        self._device = device
        self._limits = limits
        self._twins = Twins(model, len(batch.pixels), len(batch.tokens), device)
        tally = Tally(len(self._twins.blocks), advance)
        subject = "the program" if archive.of_program else "the archive"
        self._judge = Judge(
            twins=self._twins, tally=tally, subject=subject, stay=archive.of_program
        )
        self._stops = stops
        self._covered: set[str] = set()
        self._connections = {connection.target: connection for connection in connections(model)}
        # A copy: the archive shares the model's weights, and may change them.
        self._logit_scale = model.logit_scale.detach().clone()
        self._features: dict[End, torch.Tensor] = {}
        self._orders: dict[End, torch.Tensor] = {}
        self._begun: dict[str, int] = {}
        self._first = 0
        self._placed = False
        self._visual = True
        self._departing: set[End] = set()
        self._failures: list[Failure] = []
        self._held = _Held(self._twins.blocks, stay=archive.of_program)

    def run_towers(self) -> None:
        """Compare both towers: a program's in one run, if it has both."""
        given = {
            "encode_image": {PIXELS: self.pixels},
            "encode_text": {TOKENS: self.tokens},
        }
        for method in self._methods:
            if method in given:
                self.run(method, given[method])
            elif self._archive.of_program:
                self._run_program({PIXELS: self.pixels, TOKENS: self.tokens})

    def run_forward(self) -> None:
        """Compare ``forward``, which in a program is the run of both towers."""
        if FORWARD in self._methods and not self._archive.of_program:
            self.run(FORWARD, {PIXELS: self.pixels, TOKENS: self.tokens})

    def run(self, method: str, given: Mapping[End, torch.Tensor]) -> None:
        """Call a method of the archive, and compare each tensor between its modules."""
        result = self._listened(method, given, [method])
        if result is None or self._placed:
            return  # it failed, or the first departure was found
        if method == FORWARD:
            self._compare_forward(result)
        elif isinstance(result, torch.Tensor):
            target = IMAGE_FEATURES if method == "encode_image" else TEXT_FEATURES
            self._features[target] = result
            self._hold_features(target, result, method)

    def _run_program(self, given: Mapping[End, torch.Tensor]) -> None:
        """Run both towers of a program at once, and compare each tensor between its modules; where
        neither departs, its logits as well."""
        result = self._listened(FORWARD, given, list(ENCODERS))
        if not isinstance(result, Mapping):
            return
        for method, target in zip(ENCODERS, (IMAGE_FEATURES, TEXT_FEATURES), strict=True):
            features = result.get(ENCODERS[method])
            if features is not None and target not in self._departing:
                self._features[target] = features
                self._hold_features(target, features, method)
        if self._stops and not self.localisation("").found:
            self._compare_logits({name: result[name] for name in LOGITS if name in result})

    def _listened(
        self, method: str, given: Mapping[End, torch.Tensor], failing: Sequence[str]
    ) -> object:
        """Return what a method returns, with the walker listening; None if it failed.

        Args:
            failing: the methods of which that is a failure.
        """
        self._held.begin(given)
        self._first, self._placed = len(self._judge.errors), False
        try:
            return self._archive.listen(
                method, list(given.values()), self._twins.blocks, self._listen
            )
        except RunError as error:
            inside = self._judge.running[-1][0].module if self._judge.running else ""
            self._failures += [Failure(each, inside, error.problem) for each in failing]
            self._judge.running.clear()
            return None

    def ranges(self) -> Ranges:
        """Run the judged modules of a program, and its end, alone on extreme inputs."""
        found = Ranges(archive=self._archive, model=self._model, device=self._device, slack=EXTREME)
        found.modules(self._judge.sites)
        found.head_alone()
        return found

    def localisation(self, given: str) -> Localisation:
        """Return the findings so far."""
        given = described(given, self._archive)
        return localise(self._judge.errors, self._failures, self._limits, given)

    def coverage(self) -> Coverage:
        """Return all errors so far, and the modules that they cover."""
        judged = {error.module for error in self._judge.errors if not error.part} | self._covered
        found = self._judge.coverage(list(dict.fromkeys(each.problem for each in self._failures)))
        reasons = {**found.skipped, **self._archive.hidden}
        skipped = {name: reason for name, reason in reasons.items() if name not in judged}
        return replace(
            found, skipped=skipped, covered=sorted(self._covered), note=self._archive.note
        )

    def _listen(self, site: Site, entering: bool, tensors: Tensors) -> None:
        self._enter_tower(self._model.is_visual(f"{site.module}."))
        if self._placed:
            return
        if site.last:
            self._hear_both(site, entering, tensors)
            return
        # Before the module itself: the inside of a block is judged before the block.
        held = self._hold(End(site.module, "in" if entering else "out"), tensors, site.method)
        if entering:
            self._begun[site.module] = len(self._judge.errors)
        elif held and self._is_settled(site.module):
            self._judge.settle(tensors)
            self._covered.add(site.module)
            return
        self._judge.listen(site, entering, tensors)
        self._place()

    def _enter_tower(self, visual: bool) -> None:
        """Begin with a tower of a program, which runs both."""
        if visual != self._visual:
            self._visual, self._placed = visual, False
            self._first = len(self._judge.errors)

    def _place(self) -> None:
        """Stop in this tower if a module of it departs."""
        if self._judge.running or self._is_sound(self._first):
            return
        self._placed = self._stops and self._departs()
        if self._placed:
            self._departing.add(IMAGE_FEATURES if self._visual else TEXT_FEATURES)

    def _hear_both(self, site: Site, entering: bool, tensors: Tensors) -> None:
        """Compare two modules of which an archive or program shows what enters the first and leaves
        the second."""
        first, last = site.module, site.last
        connection = self._connections.get(End(last, "in"))
        if (
            connection is None
            or not connection.passes
            or connection.sources[0] != End(first, "out")
        ):
            return  # they do not follow each other: the eager ones take their place
        if entering:
            self._hold(End(first, "in"), tensors, site.method)
            return
        with suppress(_Unknown, *NOT_TAKEN):
            steps: list[_Step] = []
            expected = self._value(End(last, "out"), steps)
            block = self._twins.blocks[first]
            found = [
                error_of(first, site.method, got, expected, block, f"itself, or {last}")
                for got in tensors
                if got.shape == expected.exact.shape
            ]
            if found:
                self._judge.errors.append(nearest(found))
                self._covered |= {first, last}
        self._held.enter(End(last, "out"))
        self._held.keep(End(last, "out"), tensors)
        self._place()

    def _is_settled(self, block: str) -> bool:
        """Tell whether everything inside a block was judged and passed, so that the block passes
        without a run of its own."""
        begun = self._begun[block]
        return len(self._judge.errors) > begun + 1 and self._is_sound(begun)

    def _is_sound(self, start: int) -> bool:
        """Tell whether all errors from this one on are within the limit."""
        errors = self._judge.errors[start:]
        return all(ratio(error, self._limits) <= self._limits.module for error in errors)

    def _departs(self) -> bool:
        """Tell whether a module of the running method departs, also after its block compensated."""
        found = ratios(self._judge.errors, self._limits)[self._first :]
        return any(most > self._limits.module for most, _ in found)

    def _hold(self, end: End, tensors: Tensors, method: str) -> bool:
        """Compare the archive's tensors at this end with the expected one, and keep them.

        Returns:
            Whether the expected tensor could be computed.
        """
        self._held.enter(end)
        connection = self._connections.get(end)
        if (
            connection is not None
            and connection.passes
            and connection.sources[0] in (PIXELS, TOKENS)
            and tensors
        ):
            self._follow(connection.sources[0], tensors[0])
        inside = self._closed(end.name) if end.side == "out" else []
        self._covered.update(inside)
        # A block that shows nothing of its inside is compared as one.
        compared = (
            connection is not None and not inside and self._compare(connection, tensors, method)
        )
        self._held.keep(end, tensors)
        return compared

    def _closed(self, block: str) -> list[str]:
        """Return the modules inside of a block that shows none of them."""
        inside = [name for name, around in self._twins.blocks.items() if around == block]
        hidden = self._archive.hidden
        return inside if all(name in hidden for name in inside) else []

    def _follow(self, given: End, got: torch.Tensor) -> None:
        """Reorder the rows if the archive does."""
        (rows,) = self._held.tensors(given)
        order = _order(got, rows)
        if order is not None:
            self._held.keep(given, [rows[order]])
            self._orders[IMAGE_FEATURES if given == PIXELS else TEXT_FEATURES] = order

    def _compare(self, connection: Connection, tensors: Tensors, method: str) -> bool:
        steps: list[_Step] = []
        try:
            expected = self._computed(connection, steps)
        except (_Unknown, *NOT_TAKEN):
            return False
        name, part = _named(connection, steps)
        found = [
            error_of(name, method, got, expected, self._block(connection), part)
            for tensor in tensors
            if (got := _in_layout_of(tensor, expected.exact)) is not None
        ]
        if found:
            error = nearest(found)
            if connection.target == TEXT_FEATURES and len(steps) == 1:
                error = self._pooled_elsewhere(error, tensors[0])
            self._judge.errors.append(error)
            self._covered.update(step.name for step in steps if not step.part)
        return bool(found)

    def _computed(self, connection: Connection, steps: list[_Step]) -> Pair:
        """Compute the connection's result, in the eager model's dtype and in float64."""
        sources = [self._value(end, steps) for end in connection.sources]
        if connection.by_rows:
            sources = [_rows_first(pair, self._twins.rows(connection.name)) for pair in sources]
        if not connection.passes:
            steps.append(_Step(connection.name, connection.part))
        own = connection.compute(*(source.own for source in sources))
        return Pair(own, connection.compute(*(source.exact for source in sources)))

    def _value(self, end: End, steps: list[_Step]) -> Pair:
        """Return the archive's tensor at this end, or compute the expected one if it has none."""
        tensors = self._held.tensors(end)
        if tensors:
            finite = [tensor for tensor in tensors if bool(torch.isfinite(tensor).all())]
            if not finite:
                raise _Unknown
            return self._twins.pair(finite[0])
        connection = self._connections.get(end)
        # Of a block that is not shown, the last sum may be.
        if connection is not None and (
            end.side == "in" or all(map(self._held.tensors, connection.sources))
        ):
            return self._computed(connection, steps)
        if end.side == "out":
            given = self._value(End(end.name, "in"), steps)
            steps.append(_Step(end.name))
            return self._twins.run(end.name, given)
        raise _Unknown

    def _block(self, connection: Connection) -> str:
        """Return the residual block around a connection, or an empty string."""
        name, side = connection.target
        block = self._twins.blocks.get(name, "")
        return block or (name if side == "out" else "")

    def _pooled_elsewhere(self, error: ModuleError, got: torch.Tensor) -> ModuleError:
        """Name pooling as the part if the features of another position match: then it is not the
        projection that departs."""
        (last,) = self._connections[TEXT_FEATURES].sources[:1]
        pair = _rows_first(self._value(last, []), len(self.tokens))
        everywhere = self._model.project(pair.exact)  # [M, L, E]
        apart = (everywhere - got[:, None].to(everywhere)).square().mean(dim=-1)
        nearest = float(apart.min(dim=1).values.mean().sqrt())
        allowed = self._limits.module * max(error.reference, self._limits.roundoff * error.size)
        return replace(error, part="pooling") if nearest <= allowed < error.candidate else error

    def _hold_features(self, target: End, got: torch.Tensor, method: str) -> None:
        order = self._orders.get(target)
        self._hold(target, [got if order is None else got[order]], method)

    def _compare_forward(self, given: object) -> None:
        sizes = Sizes(len(self.pixels), len(self.tokens), self._model.text_projection.shape[1])
        try:
            found = outputs_of(given, sizes)
        except ValueError:
            found = dict.fromkeys(LOGITS, torch.empty(0))
        for name, target in zip(FEATURES, (IMAGE_FEATURES, TEXT_FEATURES), strict=True):
            if name in found:
                self._hold_features(target, found[name], "forward")
        self._compare_logits({name: found[name] for name in LOGITS if name in found})

    def _compare_logits(self, logits: Mapping[str, torch.Tensor]) -> None:
        """Compare the logits of ``forward`` with those that follow from the encoders' features or
        from the outputs of the towers' last modules in ``forward``, whichever is nearer."""
        pairs = list(self._features_of_forward())
        expected = [
            [
                eager.scaled_cosines(
                    getattr(image, side),
                    getattr(text, side),
                    self._logit_scale.to(getattr(image, side)),
                )
                for side in ("own", "exact")
            ]
            for image, text in pairs
        ]
        for number, name in enumerate(LOGITS):
            if name not in logits:
                continue
            got = logits[name]
            found = [
                error_of(FORWARD, "forward", got, Pair(own[number], exact[number]), "", HEAD)
                for own, exact in expected
                if got.shape == exact[number].shape
            ]
            other = ModuleError(
                module=FORWARD,
                method="forward",
                candidate=float("inf"),
                reference=0,
                size=0,
                part=f"{HEAD} (its shape)",
            )
            self._judge.errors.append(nearest(found) if found else other)

    def _features_of_forward(self) -> Iterator[tuple[Pair, Pair]]:
        if self._features.keys() == {IMAGE_FEATURES, TEXT_FEATURES}:
            yield (
                self._twins.pair(self._features[IMAGE_FEATURES]),
                self._twins.pair(self._features[TEXT_FEATURES]),
            )
        with suppress(_Unknown, *NOT_TAKEN):
            image, text = (
                self._computed(self._connections[end], [])
                for end in (IMAGE_FEATURES, TEXT_FEATURES)
            )
            # An archive's last module may run over whole sequences, which give no logits.
            if image.own.dim() == text.own.dim() == 2:
                yield image, text


class _Held:
    """The tensors at the ends of connections, as long as they may be needed."""

    def __init__(self, blocks: Mapping[str, str], *, stay: bool) -> None:
        self._blocks = blocks
        self._stay = stay
        self._tensors: dict[End, list[torch.Tensor]] = {}
        self._recent = {True: ["", ""], False: ["", ""]}

    def begin(self, given: Mapping[End, torch.Tensor]) -> None:
        """Keep only the inputs of a method."""
        self._tensors = {end: [tensor] for end, tensor in given.items()}
        self._recent = {True: ["", ""], False: ["", ""]}

    def enter(self, end: End) -> None:
        """Drop the tensors of its tower that are of neither this block nor the one before."""
        block = self._whole(end)
        recent = self._recent[tower_of(block) == "image"]
        if end.side == "model" or block == recent[-1]:
            return
        recent[:] = [recent[-1], block]
        kept = {name for names in self._recent.values() for name in names}
        self._tensors = {
            end: tensors
            for end, tensors in self._tensors.items()
            if end.side == "model" or end.name in LAST or self._whole(end) in kept
        }

    def keep(self, end: End, tensors: Tensors) -> None:
        """Keep the tensors at this end; an archive's as copies: later steps may overwrite them."""
        self._tensors[end] = [each if self._stay else each.clone() for each in tensors]

    def tensors(self, end: End) -> Sequence[torch.Tensor]:
        """Return the tensors at this end; none if they were dropped or never arrived."""
        return self._tensors.get(end, ())

    def _whole(self, end: End) -> str:
        return self._blocks.get(end.name) or end.name


class _Step(NamedTuple):
    """A step that the eager model computed because the archive did not show it."""

    name: str
    part: str = ""


def _named(connection: Connection, steps: Sequence[_Step]) -> tuple[str, str]:
    """Return the module to look at first, and all steps that may be wrong. A module that the
    archive does not call comes before the steps around it."""
    if not steps:
        return connection.name, connection.part
    first = next((step for step in steps if not step.part), steps[0])
    others = [step.part or step.name for step in steps if step is not first]
    if not others:
        return first.name, first.part
    return first.name, ", or ".join([first.part or "itself", *others])


def _in_layout_of(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor | None:
    """Return the tensor with rows and positions in the order of ``expected``, or None if its shape
    differs."""
    if got.shape == expected.shape:
        return got
    if got.dim() == 3 and got.transpose(0, 1).shape == expected.shape:
        return got.transpose(0, 1)
    return None


def _order(got: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
    """Return the order in which ``got`` has the same rows, or None if they differ."""
    if got.shape != rows.shape:
        return None
    same = (got[:, None] == rows[None]).flatten(start_dim=2).all(dim=-1)  # [N, N]
    order = same.int().argmax(dim=1)
    every = torch.arange(len(rows), device=order.device)
    found = bool(same.any(dim=1).all()) and torch.equal(order.sort().values, every)
    return order if found else None


def _rows_first(pair: Pair, rows: int) -> Pair:
    """Return sequences in the layout [N, L, D]."""
    if pair.own.dim() == 3 and pair.own.shape[0] != rows and pair.own.shape[1] == rows:
        return Pair(pair.own.transpose(0, 1), pair.exact.transpose(0, 1))
    return pair
