"""OAT, the Object-level Attention Transformer, predicts the order in which a person looks at the objects of a scene.

Fang, Yu, Zhang, van der Lans and Shi, "Oat: object-level attention transformer for gaze scanpath prediction", ECCV
2024. The encoder reads all objects and the target, the decoder reads the fixations so far, and an object attention head
scores each object as the next fixation. The target's token, which is the last token of the memory, also represents the
end of the path.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention.baselines import SoftmaxAttention
from ..kernels.attention.choice import Place, gates_of, mixer_of, needs, read_call
from ..kernels.attention.graph_window import GraphWindowAttention
from ..kernels.attention.layer import EditableHeads, ResidualPoint, Seen
from ..kernels.attention.mixer import CS, NC, NS, Mixer
from ..kernels.attention.mixture_of_heads import HeadGates
from ..kernels.attention.softmax import attention
from .appearance import CropNetwork
from .markov_prior import BEGIN, MarkovPrior
from .positions import PositionEncoding, step_table

GRIDS = {"amazon": (6, 14), "yogurt": (3, 9), "wine": (2, 11)}  # rows, columns of the published data sets
KeysValues = tuple[Tensor, Tensor]  # each (B, heads, L, d_model / heads)


@dataclass(eq=False)  # not frozen: Lightning converts the fields to another precision
class SceneBatch:
    """Scenes as tensors; scenes with fewer objects are padded at the end.

    Args:
        position: (S, N, 2) row and column of each object, in places of the grid.
        present: (S, N) bool, False for padding.
        target: (S,) index of the target; -1 if there is none.
        shown: (S,) bool: whether the model is given the position of the target.
        flagged: (S,) bool: whether fixations on the target are marked.
        appearance: (S, N, 3, H, W) crops, (S, N, features), or None for positions only.
    """

    position: Tensor
    present: Tensor
    target: Tensor
    shown: Tensor
    flagged: Tensor
    appearance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.present)

    def to(self, device: Any) -> "SceneBatch":
        """The same scenes on another device."""
        return replace(self, **{k: v.to(device) for k, v in self.__dict__.items() if v is not None})

    def rows(self, index: Tensor) -> "SceneBatch":
        """The scenes at these indices."""
        return replace(self, **{k: v[index] for k, v in self.__dict__.items() if v is not None})


class Memory(NamedTuple):
    """The encoder's output for each scene, which is the input of the decoder."""

    tokens: Tensor  # (S, N, d_appearance + 2 for the position): the parts of a fixation's token
    target: Tensor  # (S,) index of the target if fixations on it are marked, else -1
    begin: Tensor  # (S, d_model)
    visible: Tensor  # (S, N + 1) bool
    encoded: Tensor  # (S, N + 1, d_model)

    def rows(self, index: Tensor) -> "Memory":
        """The memory of some scenes, or of one scene several times."""
        return Memory(*(part[index] for part in self))


class State(NamedTuple):
    """The decoder's state for each row: keys and values of the steps so far and of the memory, and the objects."""

    memory: Memory
    steps: list[KeysValues | None]  # of each layer
    scene: list[KeysValues]  # of each layer
    scored: Tensor  # (B, N + 1, heads of the object attention x d_model)
    history: Tensor  # (B, length) the tokens so far

    def rows(self, index: Tensor) -> "State":
        """The rows at these indices, which may be in any order and repeated."""
        steps = [None if pair is None else (pair[0][index], pair[1][index]) for pair in self.steps]
        scene = [(keys[index], values[index]) for keys, values in self.scene]
        return State(self.memory.rows(index), steps, scene, self.scored[index], self.history[index])


class MultiheadAttention(EditableHeads):
    """Multi-head attention by the shared kernel, with the parameter names of PyTorch; it can return its weights.

    A mixer replaces softmax attention by another mechanism. Dropout is then applied to the outputs of the heads, since
    not every mechanism has attention weights. Gates multiply the heads of each token by factors.
    """

    def __init__(
        self, d_model: int, heads: int, dropout: float, mixer: Mixer | None = None, gates: HeadGates | None = None
    ):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.mixer, self.gates = mixer, gates
        self.balance: Tensor | None = None  # balance loss of the gates in the last training call
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    @property
    def output_weight(self) -> Tensor:
        return self.out_proj.weight

    @property
    def takes_bias(self) -> bool:
        return self.mixer is None or super().takes_bias

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of tokens (B, L, d_model)."""
        d_model = x.shape[-1]
        both = F.linear(x, self.in_proj_weight[d_model:], self.in_proj_bias[d_model:])
        keys, values = both.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return keys, values

    def forward(
        self,
        x: Tensor,
        keys_values: KeysValues,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        q_start: int = 0,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, d_model) -> (B, L, d_model), and the weights (B, heads, L, Lk) if requested."""
        d_model = x.shape[-1]
        q = F.linear(x, self.in_proj_weight[:d_model], self.in_proj_bias[:d_model])
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = keys_values
        options: dict[str, Any] = {"mask": mask, "causal": causal, "q_start": q_start}
        weights = None
        dropping = self.training and self.dropout > 0
        if self.touched:
            out, weights = self._edited(x, q, keys_values, return_weights, **options)
            return self.out_proj(out.transpose(1, 2).flatten(2)), weights
        if self.mixer is not None:
            out = F.dropout(self.mixer(q, keys, values, mask=mask).out, self.dropout, self.training)
        elif return_weights or dropping:
            out, weights = attention(q, keys, values, **options, return_weights=True)
            if dropping:
                out = (F.dropout(weights, self.dropout) @ values.to(weights.dtype)).to(x.dtype)
        else:
            out = attention(q, keys, values, **options)
        out = out.transpose(1, 2)  # (B, L, heads, channels)
        if self.gates is not None:
            chosen = self.gates(x)
            out = out * chosen.gates.unsqueeze(-1)
            self.balance = chosen.balance if self.training else None
        return self.out_proj(out.flatten(2)), weights

    def _edited(
        self, x: Tensor, q: Tensor, keys_values: KeysValues, return_weights: bool, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The heads (B, heads, L, channels) with the edits, and the weights if requested; without dropout of weights.

        Without an edit, they have the same bytes as in `forward`.
        """
        factors = None if self.gates is None else self.gates(x).gates
        if self.mixer is not None:
            return self.mix_heads(self.mixer, q, *keys_values, gates=factors, mask=options["mask"]).out, None
        causal, q_start = options["causal"], options["q_start"]
        given = {"mask": options["mask"], "pattern": CS if causal else NC, "q_start": q_start if causal else None}
        found: list[Seen] = []
        watch = self.watch
        try:
            self.watch = found.append
            out = self.mix_heads(SoftmaxAttention(), q, *keys_values, gates=factors, **given).out
        finally:
            self.watch = watch
        if watch is not None:
            watch(found[0])
        weights = found[0].weights
        return out, None if weights is None or not return_weights else weights()


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each with a residual connection and a norm after it."""

    def __init__(
        self,
        d_model: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        attention_dropout: float,
        mixer: Mixer | None = None,
        gates: HeadGates | None = None,
    ):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, heads, attention_dropout, mixer, gates)
        self.linear1, self.linear2 = nn.Linear(d_model, feed_forward), nn.Linear(feed_forward, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.before, self.between, self.after = ResidualPoint(), ResidualPoint(), ResidualPoint()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model)."""
        x = self.before(x)
        attended, _ = self.self_attn(x, self.self_attn.keys_values(x), mask=mask)
        x = self.between(self.norm1(x + self.dropout(attended)))
        fed = self.linear2(self.dropout(F.relu(self.linear1(x))))
        result: Tensor = self.after(self.norm2(x + self.dropout(fed)))
        return result


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the scene and feed-forward network, each with a residual connection and a
    norm after it."""

    def __init__(self, d_model: int, heads: int, feed_forward: int, dropout: float, attention_dropout: float):
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, heads, attention_dropout)
        self.multihead_attn = MultiheadAttention(d_model, heads, attention_dropout)
        self.linear1, self.linear2 = nn.Linear(d_model, feed_forward), nn.Linear(feed_forward, d_model)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.before, self.between, self.seen, self.after = (ResidualPoint() for _ in range(4))

    def forward(
        self, x: Tensor, past: KeysValues | None, scene: KeysValues, visible: Tensor, return_weights: bool = False
    ) -> tuple[Tensor, KeysValues, Tensor | None]:
        """New tokens (B, L, d_model) -> tokens of this shape, keys and values of all steps, weights on the scene."""
        x = self.before(x)
        own = self.self_attn.keys_values(x)
        before = 0
        if past is not None:
            before = past[0].shape[2]
            own = torch.cat([past[0], own[0]], 2), torch.cat([past[1], own[1]], 2)
        attended, _ = self.self_attn(x, own, causal=True, q_start=before)
        x = self.between(self.norm1(x + self.dropout(attended)))
        seen, weights = self.multihead_attn(x, scene, mask=visible[:, None, None], return_weights=return_weights)
        x = self.seen(self.norm2(x + self.dropout(seen)))
        fed = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.after(self.norm3(x + self.dropout(fed))), own, weights


class ObjectAttention(nn.Module):
    """One head of the output: the match between a decoder token and each token of the scene."""

    def __init__(self, d_model: int):
        super().__init__()
        self.encode_fc, self.decode_fc = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)


class Layers(nn.Module):
    """A stack of layers with the published parameter names."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class OneDPositionalEncoding(nn.Module):
    """Sinusoidal encoding of the time step."""

    pos_embedding: Tensor

    def __init__(self, steps: int, channels: int):
        super().__init__()
        self.register_buffer("pos_embedding", step_table(steps, channels))


def _encoder_layer(
    d_model: int,
    heads: int,
    feed_forward: int,
    dropout: float,
    attention_dropout: float,
    mixer: str | None,
    gates: str | None,
    place: Place,
) -> EncoderLayer:
    """A layer with the mechanism and the gates of these words."""
    chosen = None if mixer is None else mixer_of(mixer, place)
    if chosen is not None and NS not in chosen.patterns:
        raise ValueError(f"mixer must have self attention without causality, as objects have no order, got {mixer}")
    mixture = None if gates is None else gates_of(gates, d_model, heads)
    return EncoderLayer(d_model, heads, feed_forward, dropout, attention_dropout, chosen, mixture)


def _check_sizes(appearance: str, features: int, d_model: int, heads: int) -> None:
    if appearance not in ("cnn", "features", "none"):
        raise ValueError(f'appearance must be "cnn", "features" or "none", got {appearance!r}')
    if appearance == "features" and features < 1:
        raise ValueError(f'appearance "features" needs features, the length of the vectors, got {features}')
    if d_model % heads or d_model % 2:
        raise ValueError(f"d_appearance + d_position must be even and divisible by heads ({heads}), got {d_model}")


class OAT(nn.Module):
    """The network, which maps scenes and the fixations so far to scores of the next fixation.

    Args:
        rows: rows of the grid of positions.
        columns: columns of that grid.
        appearance: "cnn" (crops of 150 x 93 pixels), "features" (any vectors), or "none" (a learned constant).
        features: length of the given vectors with appearance "features".
        d_appearance: channels of the part of a token that holds the appearance.
        d_position: channels of the part that holds the position; the sum of both is d_model.
        heads: attention heads of encoder and decoder.
        layers: layers of each of them.
        feed_forward: width of their feed-forward parts.
        dropout: dropout of both.
        attention_dropout: dropout of the attention weights; by default `dropout`, as published. With 0, a training step
            takes half the time on a CPU.
        object_heads: number of heads of the object attention; with a single head there is no readout layer.
        positions: see `positions.PositionEncoding`.
        sigma: width of the position table.
        table: (max(rows, columns), ceil(d_position / 3)), the table with which published parameters were trained.
        steps: length of the longest path.
        vocabulary: number of objects N of a published file, which holds two unused layers; None leaves them out.
        mixer: mechanism by which the objects attend to each other in the encoder, in the notation of `mixer_of`, such
            as "workspace(slots=4)", or "graph_window(hops=1)" over near objects (see `near_objects`; the target's token
            and all objects attend to each other). None is softmax attention, as published.
        gates: mixture of the encoder's heads, such as "mixture_of_heads(shared=1, active=2)"; None uses all heads.
        prior_share: share of a `MarkovPrior` in the probabilities, below 1; the rest is the network's. In training
            mode, the scores are the network's own, which teaches it more. None is the published network.
    """

    def __init__(
        self,
        *,
        rows: int,
        columns: int,
        appearance: str = "cnn",
        features: int = 0,
        d_appearance: int = 256,
        d_position: int = 256,
        heads: int = 4,
        layers: int = 4,
        feed_forward: int = 512,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        object_heads: int = 2,
        positions: str = "learned",
        sigma: float = 2.0,
        table: Tensor | None = None,
        steps: int = 5000,
        vocabulary: int | None = None,
        mixer: str | None = None,
        gates: str | None = None,
        prior_share: float | None = None,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "table", "__class__")}
        super().__init__()
        self.arguments: dict[str, Any] = {
            name: value
            for name, value in given.items()
            if value is not None or name not in ("mixer", "gates", "prior_share")
        }
        d_model = d_appearance + d_position
        _check_sizes(appearance, features, d_model, heads)
        self.mixer, self.late = mixer, mixer is not None and "graph" in needs(mixer)
        if self.late and read_call(mixer or "", "mixer")[0] != "graph_window":
            raise ValueError(f"a graph of objects needs the mixer graph_window, got mixer {mixer}")
        place = Place(heads, d_model // heads, graph=torch.ones(1, 1, dtype=torch.bool) if self.late else None)
        self.rows, self.columns, self.d_model, self.appearance = rows, columns, d_model, appearance
        self.position = PositionEncoding(
            positions, rows=rows, columns=columns, channels=d_position, sigma=sigma, table=table
        )
        shape = (d_model, heads, feed_forward, dropout, dropout if attention_dropout is None else attention_dropout)
        self.transformer_encoder = Layers([_encoder_layer(*shape, mixer, gates, place) for _ in range(layers)])
        self.transformer_decoder = Layers([DecoderLayer(*shape) for _ in range(layers)])
        if vocabulary is not None:
            self.generator = nn.Linear(d_model, vocabulary + 2)
            self.LinearEmbedding = nn.Linear(3, d_position)
        self.onedpositional_encoding = OneDPositionalEncoding(steps, d_model)
        if appearance == "cnn":
            self.cnn_embedding = CropNetwork(d_appearance)
        elif appearance == "features":
            self.feature_embedding = nn.Linear(features, d_appearance)
        else:
            self.constant_embedding = nn.Parameter(torch.zeros(d_appearance))
        self.cross_attentions = nn.ModuleList(ObjectAttention(d_model) for _ in range(object_heads))
        self.readout = nn.Linear(object_heads, 1) if object_heads > 1 else None
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        if prior_share is not None and not 0 < prior_share < 1:
            raise ValueError(f"prior_share must be above 0 and below 1, got {prior_share}")
        self.prior_share = prior_share
        self.prior = None if prior_share is None else MarkovPrior(rows, columns)

    @classmethod
    def published(cls, data: str, **changes: Any) -> "OAT":
        """The published network for "amazon", "yogurt" or "wine", with random parameters and the two unused layers."""
        if data not in GRIDS:
            raise ValueError(f"data must be one of {', '.join(GRIDS)}, got {data!r}")
        rows, columns = GRIDS[data]
        return cls(**{"rows": rows, "columns": columns, "vocabulary": rows * columns, **changes})

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Load published parameters, whose names may have the prefix of a Lightning checkpoint.

        Raises:
            ValueError: a parameter is missing, unknown, or of another shape.
        """
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        own = self.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in state]
        wrong += [f"{name} is unknown" for name in state if name not in own]
        wrong += [
            f"{name} must have shape {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if wrong:
            raise ValueError(f"these are not parameters of this network: {'; '.join(wrong[:3])} ({len(wrong)} in all)")
        self.load_state_dict(state)

    def forward(self, scenes: SceneBatch, scene: Tensor, previous: Tensor) -> Tensor:
        """Scores with teacher forcing, (B, T, N + 2), for the objects, the end and, last, the padding class.

        Args:
            scenes: the scenes; each is encoded once.
            scene: (B,) index of the scene of each path.
            previous: (B, T) the token before each step: `BEGIN`, then object indices; any values after the end.
        """
        return self.step(self.start(self.encode(scenes), scene), previous)[0]

    def encode(self, scenes: SceneBatch) -> Memory:
        """Run the encoder."""
        looks = self._looks(scenes)  # (S, N, d_appearance)
        count, objects = scenes.present.shape
        device = scenes.position.device
        rows = torch.arange(count, device=device)
        flag = scenes.present.new_zeros(count, objects, dtype=torch.float32)
        tokens = torch.cat([looks, self.position(scenes.position, flag)], -1)
        has_target = scenes.target >= 0
        index = scenes.target.clamp(min=0)
        blank = self._blank(count)
        target_looks = torch.where(has_target.unsqueeze(-1), looks[rows, index], blank)
        place = self.position(scenes.position[rows, index], flag.new_ones(count), scenes.shown & has_target)
        x = torch.cat([tokens, torch.cat([target_looks, place], -1).unsqueeze(1)], 1)
        visible = torch.cat([scenes.present, scenes.present.new_ones(count, 1)], 1)
        # another device would have to be waited for, and a traced program must serve all scenes
        asks = visible.device.type == "cpu" and not torch.compiler.is_compiling()
        mask = None if asks and bool(visible.all()) else visible[:, None, None]
        encoders = cast(list[EncoderLayer], list(self.transformer_encoder.layers))
        for layer in encoders:
            if self.late:
                graph = F.pad(near_objects(scenes.position, scenes.present), (0, 1, 0, 1))
                window = cast(GraphWindowAttention, layer.self_attn.mixer)
                layer.self_attn.mixer = replace(window, graph=graph, everywhere=(objects,))
            x = layer(x, mask)
        middle = scenes.position.new_tensor([self.rows // 2, self.columns // 2]).expand(count, 2)
        begin = torch.cat([blank, self.position(middle, flag.new_zeros(count))], -1)
        target = torch.where(scenes.flagged, scenes.target, -1)
        return Memory(torch.cat([looks, scenes.position], -1), target, begin, visible, x)

    def take_balance(self) -> Tensor | None:
        """Return and clear the balance loss of the gated heads from the last `encode` in training mode.

        It is the mean over the layers, or None if no heads are gated.
        """
        found = []
        for layer in cast(list[EncoderLayer], list(self.transformer_encoder.layers)):
            if layer.self_attn.balance is not None:
                found.append(layer.self_attn.balance)
            layer.self_attn.balance = None  # a tensor with a history cannot be copied with the network
        return torch.stack(found).mean() if found else None

    def start(self, memory: Memory, scene: Tensor) -> State:
        """The decoder's state before the first fixation; `scene` (B,) holds the index of each path's scene."""
        layers = cast(list[DecoderLayer], list(self.transformer_decoder.layers))
        pairs = [layer.multihead_attn.keys_values(memory.encoded) for layer in layers]
        scored = torch.cat([head.encode_fc(memory.encoded) for head in self._heads], -1)
        return State(
            memory.rows(scene),
            [None] * len(pairs),
            [(k[scene], v[scene]) for k, v in pairs],
            scored[scene],
            scene.new_empty(scene.shape[0], 0),
        )

    def check_length(self, steps: int) -> None:
        """Raise a ValueError if paths of this number of steps are longer than the table of time steps."""
        most = len(self.onedpositional_encoding.pos_embedding)
        if steps > most:
            raise ValueError(f"a path may have at most {most} steps, got {steps}")

    def step(
        self, state: State, previous: Tensor, *, return_weights: bool = False
    ) -> tuple[Tensor, State, list[Tensor]]:
        """Extend the paths by one or more tokens.

        Args:
            state: the state from `start` or an earlier step.
            previous: (B, T) the new tokens, each of which precedes a step.
            return_weights: also return the attention weights on the scene.

        Returns:
            scores (B, T, N + 2) as in `forward`, the state after these tokens, and for each layer the attention weights
            (B, heads, T, N + 1) on the objects and the target's token.
        """
        start = state.history.shape[1]
        history = torch.cat([state.history, previous], 1)
        end = history.shape[1]
        self.check_length(end)
        table = self.onedpositional_encoding.pos_embedding
        x = self.dropout(self._fixations(state.memory, previous) + table[start:end, 0])
        steps: list[KeysValues | None] = []
        weights = []
        for layer, past, scene in zip(self.transformer_decoder.layers, state.steps, state.scene, strict=True):
            x, own, seen = layer(x, past, scene, state.memory.visible, return_weights)
            steps.append(own)
            if return_weights:
                weights.append(seen)
        scores = self._scores(x, state)
        if self.prior is not None and not self.training:
            memory = state.memory
            known = self.prior(memory.tokens[..., -2:], memory.visible[:, :-1], history, previous.shape[1])
            scores = self._mixed(scores[..., :-1], known)
        return scores, state._replace(steps=steps, history=history), weights

    def _mixed(self, scores: Tensor, known: Tensor) -> Tensor:
        """The scores of the mixture of the network and its prior, (B, T, N + 2), which are log-probabilities.

        Args:
            scores: (B, T, N + 1) scores of the network for the objects and the end.
            known: (B, T, N + 1) log-probabilities of the prior; -inf for what is impossible.
        """
        assert self.prior_share is not None
        impossible = torch.isneginf(known)
        own = scores.masked_fill(impossible, -torch.inf).log_softmax(-1)
        own, known = (part.masked_fill(impossible, 0.0) for part in (own, known))  # -inf - (-inf) has no gradient
        mixed = torch.logaddexp(own + math.log(1 - self.prior_share), known + math.log(self.prior_share))
        return F.pad(mixed.masked_fill(impossible, -torch.inf), (0, 1), value=-torch.inf)

    @property
    def _heads(self) -> list[ObjectAttention]:
        return cast(list[ObjectAttention], list(self.cross_attentions))

    def _scores(self, x: Tensor, state: State) -> Tensor:
        """s_h = <E_h m_j + a_h, D_h d_t + b_h> / sqrt(d_model); score = sum_h w_h s_h + w_0; s = 0 for padding."""
        parts = []
        for head, scored in zip(self._heads, state.scored.split(self.d_model, -1), strict=True):
            parts.append(head.decode_fc(x) @ scored.mT / self.d_model**0.5)
        s = F.pad(torch.stack(parts, -1), (0, 0, 0, 1))  # (B, T, N + 2, heads)
        scores = s.squeeze(-1) if self.readout is None else self.readout(s).squeeze(-1)
        hidden = F.pad(~state.memory.visible, (0, 1))
        return scores.masked_fill(hidden.unsqueeze(1), -torch.inf)

    def score_directions(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """The scores of `step` as a linear function of the decoder's token: directions (S, N + 1, d_model) and shifts.

        The scores are directions @ token + shift, with the shift (S, N + 1), without the padding class.
        """
        weights = memory.encoded.new_ones(1) if self.readout is None else self.readout.weight[0]
        shift: Tensor | None = None if self.readout is None else self.readout.bias
        directions = memory.encoded.new_zeros(())
        constant = memory.encoded.new_zeros(()) if shift is None else shift
        for weight, head in zip(weights, self._heads, strict=True):
            scored = head.encode_fc(memory.encoded) * (weight / self.d_model**0.5)
            directions = directions + scored @ head.decode_fc.weight
            constant = constant + scored @ head.decode_fc.bias
        return directions, constant

    def fixation_tokens(self, memory: Memory) -> Tensor:
        """(S, N, d_model) the token of a fixation on each object, before the encoding of the time step."""
        objects = memory.tokens.shape[1]
        every = torch.arange(objects, device=memory.tokens.device).expand(len(memory.tokens), objects)
        return self._fixations(memory, every)

    def _looks(self, scenes: SceneBatch) -> Tensor:
        count, objects = scenes.present.shape
        if self.appearance == "none":
            return self.constant_embedding.expand(count, objects, -1)
        if scenes.appearance is None:
            raise ValueError(f'appearance "{self.appearance}" needs crops or features of every object, got none')
        if self.appearance == "cnn":
            result: Tensor = self.cnn_embedding(scenes.appearance.flatten(0, 1)).unflatten(0, (count, objects))
            return result
        if scenes.appearance.shape[-1] != self.arguments["features"]:
            raise ValueError(
                f"features must be vectors of {self.arguments['features']}, got {scenes.appearance.shape[-1]}"
            )
        result = self.feature_embedding(scenes.appearance)
        return result

    def _blank(self, count: int) -> Tensor:
        """(count, d_appearance) appearance of a token that is not an object: that of an image or vector of ones."""
        if self.appearance == "none":
            return self.constant_embedding.expand(count, -1)
        if self.appearance == "features":
            result: Tensor = self.feature_embedding(
                self.feature_embedding.weight.new_ones(1, self.arguments["features"])
            ).expand(count, -1)
            return result
        result = self.cnn_embedding(self.cnn_embedding.fc.weight.new_ones(1, 3, 150, 93)).expand(count, -1)
        return result

    def _fixations(self, memory: Memory, previous: Tensor) -> Tensor:
        """(B, T, d_model) tokens of fixations, with the flag for fixations on the target if those are marked."""
        objects = memory.tokens.shape[1]
        index = previous.clamp(0, objects - 1).unsqueeze(-1).expand(-1, -1, memory.tokens.shape[-1])
        tokens = memory.tokens.gather(1, index)
        flag = ((previous == memory.target.unsqueeze(1)) & (previous >= 0)).to(tokens)
        embedded = torch.cat([tokens[..., :-2], self.position(tokens[..., -2:], flag)], -1)
        return torch.where((previous == BEGIN).unsqueeze(-1), memory.begin.unsqueeze(1), embedded)


def near_objects(position: Tensor, present: Tensor) -> Tensor:
    """Pairs of near objects, bool (S, N, N): no third object lies within the circle whose diameter joins the two.

    Args:
        position: (S, N, 2) row and column of each object.
        present: (S, N) bool; absent objects are near no other object and never count as a third one.

    Example:
        >>> row = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]]])
        >>> near_objects(row, torch.ones(1, 3).bool()).int().tolist()
        [[[0, 1, 0], [1, 0, 1], [0, 1, 0]]]
    """
    squared = (position.unsqueeze(2) - position.unsqueeze(1)).square().sum(-1)
    between = squared.unsqueeze(3) + squared.unsqueeze(2) < squared.unsqueeze(1)  # [k, i, j]: k between i and j
    near = ~(between & present[:, :, None, None]).any(1) & present.unsqueeze(1) & present.unsqueeze(2)
    return near & ~torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)


def log_probabilities(scores: Tensor, *, first: Tensor | None = None) -> Tensor:
    """Log-probabilities of the objects and the end, (B, T, N + 1); the padding class has probability 0.

    Args:
        scores: (B, T, N + 2) scores of a network.
        first: (B, T) bool: steps at which the path cannot end, since a path has at least one fixation.
    """
    allowed = scores[..., :-1]
    if first is not None:
        end = torch.arange(allowed.shape[-1], device=scores.device) == allowed.shape[-1] - 1
        allowed = allowed.masked_fill(first.unsqueeze(-1) & end, -torch.inf)
    return allowed.log_softmax(-1)
