"""Models with more than one path, and today's layers: experts, adapters, gates, home-made norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class GatedBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """All experts in one tensor."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, width, width) * 0.3)
        self.down = nn.Parameter(torch.randn(count, width, width) * 0.3)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        hidden = functional.relu(torch.einsum("btd,edf->betf", x, self.up))
        return torch.einsum("betf,efd,bte->btd", hidden, self.down, weights)


class Mixture(nn.Module):
    """A router and experts, each a module of its own or all in one tensor."""

    def __init__(self, width: int, *, in_one: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2, bias=False)
        self.experts = Experts(2, width) if in_one else nn.ModuleList(GatedBlock(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        if isinstance(self.experts, Experts):
            return self.experts(x, weights)
        return torch.stack([expert(x) for expert in self.experts], -1).mul(weights.unsqueeze(2)).sum(-1)


class Decoder(nn.Module):
    """A small GPT with RMSNorm and gated blocks, or mixtures of experts."""

    def __init__(self, width: int = 8, blocks: int = 3, mixture: str = "") -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": RMSNorm(width),
                    "attn": Attention(width),
                    "norm2": RMSNorm(width),
                    "mlp": Mixture(width, in_one=mixture == "tensor") if mixture else GatedBlock(width),
                }
            )
            for _ in range(blocks)
        )
        self.norm, self.head = RMSNorm(width), nn.Linear(width, 11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["attn"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(self.norm(x))


class Lora(nn.Module):
    """A layer with an adapter, named as in PEFT."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})
        self.lora_embedding_A = nn.ParameterDict()
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        adapted = self.lora_B["default"](self.lora_A["default"](self.lora_dropout["default"](x)))
        return self.base_layer(x) + adapted


def adapted_decoder() -> Decoder:
    model = Decoder()
    for name, module in list(model.named_modules()):
        if name.endswith(("q_proj", "v_proj")):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Lora(module))
    return model


class PackedLinear(nn.Module):
    """A linear layer with an 8-bit weight in a buffer and a scale that is not trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-9, 9, (width, width), dtype=torch.int8))
        self.register_buffer("scale", torch.full((width, 1), 0.05))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype) * self.scale)


class ActorCritic(nn.Module):
    """A common body, and a policy and a value of one layer, or of several."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.pi, self.v = (self._head(out, deep) for out in (2, 1))

    @staticmethod
    def _head(out: int, deep: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, out)) if deep else (
            nn.Linear(8, out)
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.pi(x), self.v(x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = (nn.Conv2d(c, d, 3, padding=1) for c, d in ((3, 4), (4, 6), (6, 8)))
        self.up2 = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.join2, self.up1 = nn.Conv2d(12, 6, 3, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.join1, self.out = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.relu(self.down1(x))
        b = functional.relu(self.down2(functional.max_pool2d(a, 2)))
        x = functional.relu(self.middle(functional.max_pool2d(b, 2)))
        x = functional.relu(self.join2(torch.cat([self.up2(x), b], 1)))
        x = functional.relu(self.join1(torch.cat([self.up1(x), a], 1)))
        return self.out(x)


class Siamese(nn.Module):
    """One encoder for both inputs, or an encoder for each, and a head for their difference."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.left = self._encoder()
        self.right = self.left if shared else self._encoder()
        self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))

    @staticmethod
    def _encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x) - self.right(x.flip(0) + 1)).abs())


def stack(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))


class Recurrent(nn.Module):
    """Two cells in turn, the second of which also feeds the first in the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 4)
        for t in range(3):
            state = torch.tanh(self.second(torch.tanh(self.first(self.embed(x[:, t]) + state))))
        return self.head(state)
