"""One layer: attention and feed-forward network, each with its norms and a residual sum."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from trainer.model.attention import GQA, Attend
from trainer.model.config import LayerKind, ModelConfig
from trainer.model.dsa import DSA
from trainer.model.ffn import GeGLU, ReLU2, SwiGLU
from trainer.model.ledger import Ledger
from trainer.model.mla import MLA
from trainer.model.moe import MoE
from trainer.model.norm import norm_of

ATTENTION: dict[str, Callable[[ModelConfig, LayerKind, int], nn.Module]] = {"gqa": GQA, "mla": MLA, "dsa": DSA}
"""Class of each `LayerKind.attention`."""
FFN: dict[str, Callable[[ModelConfig], nn.Module]] = {"swiglu": SwiGLU, "geglu": GeGLU, "relu2": ReLU2, "moe": MoE}
"""Class of each `LayerKind.ffn`."""


class Block(nn.Module):
    """x + post(attention(pre x)), then x + post(ffn(pre x)), with the norms that `norm_place` asks for."""

    def __init__(self, config: ModelConfig, kind: LayerKind, index: int) -> None:
        super().__init__()
        self.index = index
        self.rope = rope_key(config, kind)
        pre, post = config.norm_place != "post", config.norm_place != "pre"
        self.attention_norm: nn.Module = norm_of(config) if pre else nn.Identity()
        self.attention = ATTENTION[kind.attention](config, kind, index)
        self.attention_post_norm: nn.Module = norm_of(config) if post else nn.Identity()
        self.ffn_norm: nn.Module = norm_of(config) if pre else nn.Identity()
        self.ffn = FFN[kind.ffn](config)
        self.ffn_post_norm: nn.Module = norm_of(config) if post else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None, attend: Attend, ledger: Ledger | None = None) -> Tensor:
        """x (..., dim); cos and sin of this layer's encoding, None without."""
        x = x + self.attention_post_norm(self.attention(self.attention_norm(x), cos, sin, attend))
        h = self.ffn_norm(x)
        x = x + self.ffn_post_norm(self.ffn(h, self.index, ledger) if isinstance(self.ffn, MoE) else self.ffn(h))
        if ledger is not None and ledger.inspect:
            ledger.note("activation", self.index, x.detach().abs().amax())
        return x


def rope_key(config: ModelConfig, kind: LayerKind) -> str:
    """Under which key of `Transformer.ropes` a layer's tables stand; empty without positions."""
    return "" if kind.position == "none" else f"{kind.position}/{config.rotated(kind)}"
