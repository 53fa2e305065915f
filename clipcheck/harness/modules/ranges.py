"""Call the modules of an archive or a program alone, on numbers that ordinary inputs never reach.

Ordinary activations do not show a clamp at 50, or a wrong epsilon beside a variance of one. A
module can be called alone and compared with the eager module and its float64 copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from clipcheck.backends.forward import Sizes, outputs_of
from clipcheck.backends.runner import Runner, Shows
from clipcheck.errors import RunError
from clipcheck.families import eager
from clipcheck.gates.localisation import FORWARD, HEAD
from clipcheck.gates.modules import ModuleError
from clipcheck.gates.result import LOGITS
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.modules.twins import Pair, Twins, distance
from clipcheck.inputs.batches import Batch
from clipcheck.models.taps import Site

SCORE = 95.0
"""Attention scores to reach: exp overflows in float32 above 88."""

_VECTORS = 16
"""Number of vectors for a module that treats each alone."""

_MOST_BESIDE = 1 << 16
"""Most numbers of a further input, such as a mask, that is kept."""


@dataclass(frozen=True, kw_only=True)
class CallSite:
    """A call of a module.

    Attributes:
        shape: of its input.
        place: of the input among the tensors.
        beside: the tensors, with None in the input's place.
        output: place of the output among the results.
        sound: whether the module alone passed, whatever its block did.
    """

    site: Site
    shape: tuple[int, ...]
    place: int
    beside: tuple[torch.Tensor | None, ...]
    output: int
    sound: bool


def record_call(
    site: Site, inputs: Sequence[torch.Tensor], place: int, output: int, *, sound: bool
) -> CallSite:
    """Record a judged call, without its input."""
    # A tensor of the input's shape may be the input again, as key and value.
    beside = tuple(
        tensor.clone()
        if number != place
        and tensor.shape != inputs[place].shape
        and tensor.numel() <= _MOST_BESIDE
        else None
        for number, tensor in enumerate(inputs)
    )
    return CallSite(
        site=site,
        shape=tuple(inputs[place].shape),
        place=place,
        beside=beside,
        output=output,
        sound=sound,
    )


@dataclass(kw_only=True)
class Ranges:
    """Calls modules alone.

    Attributes:
        model: the eager model of the same weights, in float32.
        slack: see `ModuleError`.
        errors: the worst of each module.
        reached: by kind of number, the greatest that was reached.
    """

    archive: Shows
    model: eager.CLIP
    device: torch.device
    slack: float = 1.0
    errors: list[ModuleError] = field(default_factory=list)
    reached: dict[str, float] = field(default_factory=dict)

    def modules(self, sites: Mapping[str, CallSite]) -> None:
        """Call each module that can be called alone, in the order in which their first calls ended:
        a module before its block."""
        # One row of each tower: rows and positions are distinguished by their number.
        twins = Twins(self.model, 1, 1, self.device)
        for name, called in sites.items():
            if called.sound and None not in _tensors_beside(called):
                self._module(twins, name, called)

    def _module(self, twins: Twins, name: str, called: CallSite) -> None:
        module = self.model.get_submodule(name)
        for values in _values(module, called, self._generator(name), self.reached):
            inputs = list(called.beside)
            inputs[called.place] = values.tensor.to(self.device)
            expected = twins.run(name, twins.pair(values.tensor.to(self.device)))
            try:
                given = self.archive.call_module(
                    name, called.site.method, [each for each in inputs if each is not None]
                )
            except RunError:
                return  # it cannot be called alone
            if called.output < len(given):
                got = given[called.output]
                if got.shape == expected.exact.shape:
                    worst = _worst(name, called.site.method, got, expected, values)
                    self.errors.append(replace(worst, slack=self.slack))

    def head(self, archive: Runner, batch: Batch) -> None:
        """Call ``forward`` with text features parallel and opposite to the image's.

        Another text projection, for one call, gives the texts these features. The expected logits
        follow from the archive's own features with this projection.
        """
        pixels = torch.from_numpy(batch.pixels[:1]).to(self.device)
        tokens = torch.from_numpy(batch.tokens[:2]).to(self.device)
        try:
            image = self._tensor(archive.call("encode_image", pixels))
            other = {"text_projection": self._aligned(image, tokens)}
            text = self._tensor(archive.call_with(other, "encode_text", tokens))
            given = archive.call_with(other, "forward", pixels, tokens)
            sizes = Sizes(len(pixels), len(tokens), image.shape[-1])
            got = self._tensor(outputs_of(given, sizes).get(LOGITS[0]))
        except (RunError, TypeError, ValueError):
            return  # other gates report missing methods and outputs
        self._logits(got, image, text)

    def head_alone(self) -> None:
        """Have the program compute logits from features of texts parallel and nearly opposite to an
        image's, if it can."""
        width = self.model.text_projection.shape[1]
        image = torch.randn(1, width, generator=self._generator(FORWARD)).to(self.device)
        text = torch.cat([image, 0.2 * torch.roll(image, 1, -1) - image])
        try:
            got = self.archive.call_head(image, text)
        except RunError:
            return  # it cannot run alone
        if got is not None:
            self._logits(got, image, text, HEAD)

    def _logits(
        self, got: torch.Tensor, image: torch.Tensor, text: torch.Tensor, part: str = ""
    ) -> None:
        own = self.model.logits(image, text)[0]
        scale = self.model.logit_scale
        exact = eager.scaled_cosines(image.double(), text.double(), scale.double())[0]
        if got.shape != exact.shape:
            return
        self._reach("logit", exact)
        self.errors.append(
            ModuleError(
                module=FORWARD,
                method=FORWARD,
                part=part,
                candidate=distance(got, exact),
                reference=distance(own, exact),
                size=float(exact.square().mean().sqrt()),
                given=f"logits from {float(exact.min()):.3g} to {float(exact.max()):.3g}",
            )
        )

    def _aligned(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return a projection that gives the first prompt the image's features, and the second
        nearly the opposite."""
        model = self.model
        x = model.embed(model.token_embedding(tokens))
        x = model.transformer(x.transpose(0, 1), eager.causal_mask(x)).transpose(0, 1)
        hidden = model.pool(model.ln_final(x), tokens).double()  # [2, D]
        unit = image.double() / image.double().norm()
        beside = torch.roll(unit, 1, -1)
        wanted = torch.cat([unit, 0.2 * beside - unit])  # [2, E]
        projection = model.text_projection.double()
        change = torch.linalg.pinv(hidden) @ (wanted - hidden @ projection)
        aligned: torch.Tensor = projection + change
        return aligned.to(model.text_projection.dtype)

    def _tensor(self, found: object) -> torch.Tensor:
        if not isinstance(found, torch.Tensor):
            raise TypeError(type(found).__name__)
        return found.to(self.device)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(sum(name.encode()))

    def _reach(self, what: str, values: torch.Tensor) -> None:
        self.reached[what] = max(self.reached.get(what, 0.0), float(values.abs().max()))


def _tensors_beside(called: CallSite) -> list[torch.Tensor | None]:
    return [each for number, each in enumerate(called.beside) if number != called.place]


@dataclass(frozen=True)
class _Values:
    """An input.

    Attributes:
        kinds: of its vectors, in turn along the dimension ``across``.
        across: dimension along which errors are measured separately.
    """

    tensor: torch.Tensor
    kinds: Sequence[str]
    across: int


_Draw = Callable[[torch.Tensor], torch.Tensor]

_VECTOR_KINDS: dict[str, _Draw] = {
    "nearly constant numbers": lambda x: 3e-3 * x + 0.01,
    "zeros": lambda x: 0 * x,
    "the same number": lambda x: 0 * x + 1,
    "numbers of 8": lambda x: 8 * x.sign(),
    "numbers of 50": lambda x: 50 * x.sign(),
    "numbers of about 20": lambda x: 20 * x,
    "one channel of 1000": lambda x: _with_outlier(x, 1000.0),
    "one channel of -1000": lambda x: _with_outlier(x, -1000.0),
}
_BLOCK_KINDS = {
    name: _VECTOR_KINDS[name]
    for name in ("nearly constant numbers", "numbers of about 20", "one channel of 1000")
}


def _with_outlier(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x[..., x.shape[-1] // 3] = value
    return x


def _values(
    module: nn.Module, called: CallSite, generator: torch.Generator, reached: dict[str, float]
) -> list[_Values]:
    """Return the inputs for a module; none for one that takes ids."""
    shape = called.shape
    if isinstance(module, nn.Embedding) or len(shape) < 2:
        return []
    if len(shape) == 4:
        return [_planes(shape, generator)]
    if isinstance(module, (eager.ResidualAttentionBlock, nn.MultiheadAttention)):
        rows_second = len(shape) == 3 and shape[1] < shape[0]
        positions, width = max(shape[:2]), shape[2]
        noise = torch.randn(positions, width, generator=generator)
        if isinstance(module, nn.MultiheadAttention):
            values = _draw_attention_inputs(module, noise, reached)
        else:
            values = _draw_by_kind(noise, _BLOCK_KINDS)
        reached["activation"] = max(reached.get("activation", 0.0), float(values.abs().max()))
        across = 0 if rows_second else 1
        return [_Values(values.unsqueeze(1 - across).contiguous(), _names(module), across)]
    flat = torch.randn(_VECTORS, shape[-1], generator=generator)
    values = _draw_by_kind(flat, _VECTOR_KINDS)
    tensor = values if len(shape) == 2 else values.unsqueeze(1)
    return [_Values(tensor, list(_VECTOR_KINDS), 0)]


def _names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.MultiheadAttention):
        return ["input of sharp attention", "input of flat attention"]
    return list(_BLOCK_KINDS)


def _draw_by_kind(noise: torch.Tensor, kinds: Mapping[str, _Draw]) -> torch.Tensor:
    """Transform the vectors of [V, D] by each kind in turn."""
    draws = list(kinds.values())
    return torch.stack([draws[n % len(draws)](vector) for n, vector in enumerate(noise)])


def _draw_attention_inputs(
    module: nn.MultiheadAttention, noise: torch.Tensor, reached: dict[str, float]
) -> torch.Tensor:
    """Draw inputs [L, D]: even positions attend sharply to each other, odd ones evenly."""
    low, high = 0.0, 64.0
    noise = noise.clone()
    noise[1::2] *= 1e-2
    square, linear, constant = _scores(module, noise)
    for _ in range(20):  # bisection: with a bias, the scores are no simple square of the factor
        middle = (low + high) / 2
        if float((middle**2 * square + middle * linear + constant).max()) > SCORE:
            high = middle
        else:
            low = middle
    found = float((low**2 * square + low * linear + constant).max())
    reached["attention score"] = max(reached.get("attention score", 0.0), found)
    return low * noise


def _scores(module: nn.MultiheadAttention, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return a, b, c of the attention scores s² a + s b + c [heads, L, L] of inputs s x [L, D]."""
    width, heads = x.shape[1], module.num_heads
    weight, bias = module.in_proj_weight.detach().cpu(), module.in_proj_bias.detach().cpu()
    projected = x.float() @ weight[: 2 * width].float().t()
    query, key, own_query, own_key = (
        y.unflatten(-1, (heads, -1)).transpose(0, 1)
        for y in (
            *projected.chunk(2, dim=-1),
            *bias[: 2 * width].float().expand_as(projected).chunk(2, dim=-1),
        )
    )
    root = math.sqrt(width // heads)

    def product(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query @ key.transpose(1, 2) / root

    return (
        product(query, key),
        product(query, own_key) + product(own_query, key),
        product(own_query, own_key),
    )


def _planes(shape: tuple[int, ...], generator: torch.Generator) -> _Values:
    """Draw feature maps or pixels [1, C, H, W]: large in the upper half, small in the lower."""
    planes = 50 * torch.randn((1, *shape[1:]), generator=generator)
    planes[:, :, shape[2] // 2 :] *= 1e-4
    return _Values(planes, ["numbers of 50 beside small ones"], 0)


def _worst(
    name: str, method: str, got: torch.Tensor, expected: Pair, values: _Values
) -> ModuleError:
    """Return the error of the worst vector, in units of the eager module's error there."""
    exact = expected.exact.double()
    across = min(values.across, exact.dim() - 1)

    def by_vector(x: torch.Tensor) -> torch.Tensor:
        return x.double().to(exact.device).movedim(across, 0).flatten(1)

    sizes = by_vector(exact).square().mean(1).sqrt()
    got_apart, own_apart = (
        (by_vector(x) - by_vector(exact)).square().mean(1).sqrt() for x in (got, expected.own)
    )
    least = LIMITS["float32"].roundoff * sizes
    units = torch.maximum(own_apart, least)
    found = torch.where(units > 0, got_apart / units, torch.where(got_apart > 0, torch.inf, 0.0))
    found = found.nan_to_num(nan=torch.inf, posinf=torch.inf)
    place = int(found.argmax())
    kind = values.kinds[place % len(values.kinds)]
    return ModuleError(
        module=name,
        method=method,
        candidate=float(got_apart[place]),
        reference=float(own_apart[place]),
        size=float(sizes[place]),
        given=kind,
    )
