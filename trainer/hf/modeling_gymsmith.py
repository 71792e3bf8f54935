"""Gymsmith's small transformer for `transformers`: loaded with trust_remote_code=True, needs torch and transformers only.

It differs from stock architectures in: embeddings of preceding tokens added to the input (smear), RMSNorm without gains, a
squared-ReLU feed-forward network, an attention scale of its own, and a learned gain on the logits. It keeps no cache: every call
computes all positions, which suits a model of this size. Padding, if any, belongs on the right.
"""

# mypy: ignore-errors

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class GymsmithConfig(PretrainedConfig):
    model_type = "gymsmith"

    def __init__(self, gymsmith=None, vocab_size=640, hidden_size=128, num_hidden_layers=2, **kwargs):
        self.gymsmith = gymsmith or {}
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**kwargs)


class RMSNorm(nn.Module):
    def __init__(self, dim, c):
        super().__init__()
        self.dim, self.eps = dim, c["norm_eps"]
        self.weight = nn.Parameter(torch.ones(dim)) if c["norm_weight"] else None

    def forward(self, x):
        return F.rms_norm(x, (self.dim,), self.weight, self.eps)


class Embedding(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.token = nn.Embedding(c["vocab_size"], c["dim"])
        self.smear = nn.ModuleList(nn.Embedding(c["vocab_size"], c["dim"]) for _ in range(c["smear"]))
        self.norm = RMSNorm(c["dim"], c) if c["embedding_norm"] else None

    def forward(self, ids):
        x = self.token(ids)
        for back, table in enumerate(self.smear, 1):
            x = x + table(F.pad(ids, (back, 0))[:, : ids.size(1)])
        return x if self.norm is None else self.norm(x)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Attention(nn.Module):
    def __init__(self, c, kind):
        super().__init__()
        self.c, self.kind = c, kind
        queries, keys = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
        self.q = nn.Linear(c["dim"], queries, bias=False)
        self.k = nn.Linear(c["dim"], keys, bias=False)
        self.v = nn.Linear(c["dim"], keys, bias=False)
        self.o = nn.Linear(queries, c["dim"], bias=False)
        self.q_norm = RMSNorm(c["head_dim"], c) if c["qk_norm"] else nn.Identity()
        self.k_norm = RMSNorm(c["head_dim"], c) if c["qk_norm"] else nn.Identity()

    def forward(self, x, cos, sin):
        split = (-1, self.c["head_dim"])
        q = self.q_norm(self.q(x).unflatten(-1, split)).transpose(1, 2)
        k = self.k_norm(self.k(x).unflatten(-1, split)).transpose(1, 2)
        v = self.v(x).unflatten(-1, split).transpose(1, 2)
        if self.kind["position"] == "rope":
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.c["n_heads"] // self.c["n_kv_heads"]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scale = self.c["attention_scale"] or self.c["head_dim"] ** -0.5
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return self.o(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, c, kind):
        super().__init__()
        self.gate = nn.Linear(c["dim"], c["ffn_dim"], bias=False) if kind["ffn"] == "swiglu" else None
        self.up = nn.Linear(c["dim"], c["ffn_dim"], bias=False)
        self.down = nn.Linear(c["ffn_dim"], c["dim"], bias=False)

    def forward(self, x):
        if self.gate is None:
            return self.down(F.relu(self.up(x)).square())
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, c, kind):
        super().__init__()
        self.attention_norm = RMSNorm(c["dim"], c)
        self.attention = Attention(c, kind)
        self.ffn_norm = RMSNorm(c["dim"], c)
        self.ffn = FeedForward(c, kind)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.ffn(self.ffn_norm(x))


class GymsmithForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = GymsmithConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _no_split_modules = ["Block"]

    def __init__(self, config):
        super().__init__(config)
        c = config.gymsmith
        kinds = [c["pattern"][i % len(c["pattern"])] for i in range(c["n_layers"])]
        self.embedding = Embedding(c)
        self.blocks = nn.ModuleList(Block(c, kind) for kind in kinds)
        self.norm = RMSNorm(c["dim"], c)
        self.head = nn.Linear(c["dim"], c["vocab_size"], bias=False)
        self.gain = nn.Parameter(torch.zeros(())) if c["logit_gain"] else None
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding.token

    def get_output_embeddings(self):
        return self.head

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
        c = self.config.gymsmith
        half = torch.arange(0, c["head_dim"], 2, dtype=torch.float64, device=input_ids.device)
        time = torch.arange(input_ids.size(1), dtype=torch.float64, device=input_ids.device)
        angle = time[:, None] * (c["rope_theta"] ** (-half / c["head_dim"]))[None]
        x = self.embedding(input_ids)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.norm(x)
        logits = self.head(x if self.gain is None else x * self.gain.exp())
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits)
