"""Models that ask more of a tracer than a chain of layers does."""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Layers by name."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def conv(inputs, outputs, **knobs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **knobs)


class Dense(Net):
    def __init__(self):
        super().__init__(a=conv(1, 6), b=conv(6, 4), c=conv(10, 8), norm=nn.BatchNorm2d(18), fc=nn.Linear(18, 3))

    def forward(self, x):
        a = self.a(x).relu()
        ab = torch.cat([a, self.b(a).relu()], 1)
        return self.fc(self.norm(torch.cat([ab, self.c(ab).relu()], 1)).mean((2, 3)))


class AddedToConcat(Net):
    def __init__(self):
        super().__init__(a=conv(1, 6), b=conv(1, 2), c=conv(1, 8), d=conv(8, 4), fc=nn.Linear(4, 3))

    def forward(self, x):
        return self.fc(self.d((torch.cat([self.a(x), self.b(x)], 1) + self.c(x)).relu()).mean((2, 3)))


class Flatten(Net):
    def __init__(self):
        super().__init__(a=conv(1, 8), b=conv(8, 5), hidden=nn.Linear(5 * 64, 7), fc=nn.Linear(7, 3))

    def forward(self, x):
        return self.fc(self.hidden(self.b(self.a(x)).relu().flatten(1)).relu())


class Gate(Net):
    def __init__(self):
        super().__init__(a=conv(1, 8), down=nn.Linear(8, 4), up=nn.Linear(4, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        a = self.a(x)
        gate = self.up(self.down(a.mean((2, 3))).relu()).sigmoid()
        return self.fc((a * gate[:, :, None, None]).mean((2, 3)))


class Grouped(Net):
    def __init__(self):
        super().__init__(a=conv(1, 8), g=conv(8, 12, groups=4), b=conv(12, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        a = self.a(x).relu()
        return self.fc((self.b(self.g(a).relu()) + a).mean((2, 3)))


class Transposed(Net):
    def __init__(self):
        super().__init__(a=conv(1, 8), t=nn.ConvTranspose2d(8, 6, 2, stride=2), b=conv(6, 4), fc=nn.Linear(4, 3))

    def forward(self, x):
        return self.fc(self.b(self.t(self.a(x)).relu()).mean((2, 3)))


class Shared(Net):
    def __init__(self):
        super().__init__(a=conv(1, 8), s=conv(8, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        return self.fc(self.s(self.s(self.a(x)).relu()).mean((2, 3)))


class Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.PReLU(6), nn.Linear(6, 3), nn.PReLU())


class Arguments(Net):
    def __init__(self):
        super().__init__(a=nn.Linear(4, 8), fc=nn.Linear(8, 3))

    def forward(self, *inputs):
        return self.fc(sum(self.a(x) for x in inputs).relu())


class ReturnsHidden(Net):
    def __init__(self):
        super().__init__(a=nn.Linear(4, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3))

    def forward(self, x):
        hidden = self.b(self.a(x).relu())
        return {"coarse": hidden, "fine": self.c(hidden)}


class Recurrent(Net):
    def __init__(self):
        super().__init__(
            e=nn.Embedding(10, 8), r=nn.LSTM(8, 6, batch_first=True), hidden=nn.Linear(6, 12), fc=nn.Linear(12, 3)
        )

    def forward(self, x):
        return self.fc(self.hidden(self.r(self.e(x))[0][:, -1]).relu())


class Transformer(Net):
    def __init__(self):
        super().__init__(
            e=nn.Embedding(10, 8), t=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), fc=nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.fc(self.t(self.e(x)).mean(1))


class OwnAttention(Net):
    def __init__(self):
        super().__init__(e=nn.Embedding(10, 8), q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))
        self.up, self.down, self.fc = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 3)
        self.position = nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x):
        x = self.e(x) + self.position
        x = x + (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)
        return self.fc((x + self.down(F.gelu(self.up(x)))).mean(1))


class Normalized(Net):
    def __init__(self):
        super().__init__(a=conv(1, 8), n=nn.GroupNorm(2, 8), b=conv(8, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        return self.fc(self.b(self.n(self.a(x))).mean((2, 3)))


class MeanOverChannels(Net):
    def __init__(self):
        super().__init__(a=conv(1, 8), b=conv(1, 6), fc=nn.Linear(6, 3))

    def forward(self, x):
        return self.fc(self.b(self.a(x).mean(1, keepdim=True)).mean((2, 3)))


class Flipped(Net):
    """Reverses its channels, which moves every channel to another place."""

    def __init__(self):
        super().__init__(a=conv(1, 8), b=conv(8, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        return self.fc(self.b(self.a(x).flip(1)).mean((2, 3)))


class Shuffled(Flipped):
    """Mixes two blocks of channels by a view, as ShuffleNet does."""

    def forward(self, x):
        a = self.a(x)
        n, c, h, w = a.shape
        a = a.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.b(a).mean((2, 3)))


class Halved(Net):
    """Halves its channels, however many there are."""

    def __init__(self):
        super().__init__(a=conv(1, 8), b=conv(4, 4), c=conv(4, 6), fc=nn.Linear(10, 3))

    def forward(self, x):
        first, second = self.a(x).chunk(2, 1)
        return self.fc(torch.cat([self.b(first), self.c(second)], 1).mean((2, 3)))


class Auxiliary(Net):
    """Has a head that runs in training only."""

    def __init__(self):
        super().__init__(a=nn.Linear(4, 8), b=nn.Linear(8, 8), fc=nn.Linear(8, 3), extra=nn.Linear(8, 3))

    def forward(self, x):
        hidden = self.b(self.a(x).relu()).relu()
        return (self.fc(hidden), self.extra(hidden)) if self.training else self.fc(hidden)


class Idle(Net):
    """Has a layer that never runs."""

    def __init__(self):
        super().__init__(a=nn.Linear(4, 8), b=nn.Linear(8, 6), fc=nn.Linear(6, 3), never=nn.Linear(8, 3))

    def forward(self, x):
        return self.fc(self.b(self.a(x).relu()).relu())


class Unshuffled(Net):
    """Moves pixels into channels and back."""

    def __init__(self):
        super().__init__(a=conv(1, 8), b=conv(32, 16), c=conv(4, 6), fc=nn.Linear(6, 3))

    def forward(self, x):
        x = F.pixel_shuffle(self.b(F.pixel_unshuffle(self.a(x).relu(), 2)).relu(), 2)
        return self.fc(self.c(x).mean((2, 3)))


class TiedHidden(nn.Module):
    """The products with a tied table are read by a layer: they are its rows, and tokens select them."""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(10, 8)
        self.a = nn.Linear(8, 8)
        self.words = nn.Linear(8, 10)
        self.words.weight = self.e.weight
        self.fc = nn.Linear(10, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.words(torch.relu(self.a(self.e(x).mean(1))))))


class Tied(Net):
    """Predicts tokens with the table that it reads them from."""

    def __init__(self):
        super().__init__(e=nn.Embedding(10, 8), a=nn.Linear(8, 12), b=nn.Linear(12, 8), out=nn.Linear(8, 10))
        self.out.weight = self.e.weight

    def forward(self, x):
        x = self.e(x)
        return self.out((x + self.b(self.a(x).relu())).mean(1))


class Einsum(Net):
    def __init__(self):
        super().__init__(a=nn.Linear(4, 8), fc=nn.Linear(6, 3))
        self.matrix = nn.Parameter(torch.randn(6, 8))

    def forward(self, x):
        return self.fc(torch.einsum("bi,oi->bo", self.a(x).relu(), self.matrix).relu())


class Gated(Net):
    """Multiplies one half of its channels by the other."""

    def __init__(self):
        super().__init__(a=nn.Linear(4, 16), b=nn.Linear(8, 6), fc=nn.Linear(6, 3))

    def forward(self, x):
        first, second = self.a(x).chunk(2, -1)
        return self.fc((self.b(first * second.sigmoid())).relu())


class Heads(Net):
    """Attention with four heads and one matrix for queries, keys and values, behind a normalization."""

    def __init__(self):
        super().__init__(e=nn.Embedding(10, 16), norm=nn.LayerNorm(16), fc=nn.Linear(16, 3))
        self.attention = Net(qkv=nn.Linear(16, 48), out=nn.Linear(16, 16))
        self.attention.num_heads = 4

    def forward(self, x):
        x, attention = self.norm(self.e(x)), self.attention
        query, key, value = attention.qkv(x).chunk(3, -1)
        split = lambda part: part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # noqa: E731
        mixed = F.scaled_dot_product_attention(split(query), split(key), split(value))
        return self.fc((x + attention.out(mixed.transpose(1, 2).flatten(2))).mean(1))


class TokenMixer(Net):
    """Mixes positions by a layer, as MLP-Mixer does."""

    def __init__(self):
        super().__init__(e=nn.Embedding(10, 8), up=nn.Linear(5, 12), down=nn.Linear(12, 5), fc=nn.Linear(8, 3))

    def forward(self, x):
        x = self.e(x)
        return self.fc((x + self.down(self.up(x.transpose(1, 2)).relu()).transpose(1, 2)).mean(1))


class Masked(Net):
    """Takes another way where nothing is masked, as Hugging Face models do."""

    def __init__(self):
        super().__init__(e=nn.Embedding(10, 8), a=nn.Linear(8, 12), fc=nn.Linear(12, 3))

    def forward(self, x):
        mask = x != 0
        x = self.a(self.e(x)).relu()
        if not mask.all():
            x = x * mask[..., None]
        return self.fc(x.mean(1))


class Detached(Net):
    def __init__(self):
        super().__init__(a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        return self.fc(self.c(self.b(self.a(x).detach())))


class Branching(Net):
    def __init__(self):
        super().__init__(a=nn.Linear(4, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), fc=nn.Linear(8, 3))

    def forward(self, x):
        x = self.a(x)
        return self.fc(self.b(x) if x.sum() > 0 else self.c(x))


class BranchingOnShape(Branching):
    def forward(self, x):
        x = self.a(x)
        return self.fc(self.b(x) if len(x) == 1 else self.c(x))


IMAGE, VECTOR, TOKENS = (torch.zeros(1, 1, 8, 8),), (torch.zeros(1, 4),), (torch.arange(5)[None],)

# What a tracer can follow: class, example, layers that lose channels at ratio 1/2.
FOLLOWED = [
    (Dense, IMAGE, {"a", "b", "c"}),
    (AddedToConcat, IMAGE, {"a", "b", "c", "d"}),
    (Flatten, IMAGE, {"a", "b", "hidden"}),
    (Gate, IMAGE, {"a", "down", "up"}),
    (Grouped, IMAGE, {"a", "g", "b"}),
    (Transposed, IMAGE, {"a", "t", "b"}),
    (Shared, IMAGE, {"a", "s"}),
    (Mlp, VECTOR, {"0", "2"}),
    (Arguments, VECTOR * 2, {"a"}),
    (ReturnsHidden, VECTOR, {"a"}),
    (Recurrent, TOKENS, {"hidden"}),
    (Transformer, TOKENS, {"t.linear1", "t.self_attn.in_proj_weight"}),
    (OwnAttention, TOKENS, {"e", "v", "up", "down"}),
    (Normalized, IMAGE, {"b"}),
    (MeanOverChannels, IMAGE, {"b"}),
    (Flipped, IMAGE, {"a", "b"}),
    (Shuffled, IMAGE, {"a", "b"}),
    (Halved, IMAGE, {"a", "b", "c"}),
    (Detached, VECTOR, {"a", "b", "c"}),
    (BranchingOnShape, VECTOR, {"a", "b", "c"}),
    (Auxiliary, VECTOR, {"a", "b"}),
    (Idle, VECTOR, {"a", "b"}),
    (Unshuffled, IMAGE, {"a", "b", "c"}),
    (Tied, TOKENS, {"e", "a", "b"}),
    (TiedHidden, TOKENS, {"e", "a"}),
    (Einsum, VECTOR, {"a"}),
    (Gated, VECTOR, {"a", "b"}),
    (Heads, TOKENS, {"attention.qkv"}),
    (TokenMixer, TOKENS, {"e", "up"}),
    (Masked, TOKENS, {"e", "a"}),
]


class Silent(Branching):
    """Returns nothing that a trace could start from."""

    def forward(self, x):
        self.fc(self.a(x))


class Failing(Branching):
    def forward(self, x):
        raise ValueError("no such input")


class Dictionary(Branching):
    def forward(self, inputs):
        return self.fc(self.a(inputs["x"]))


# What no trace can follow: class, example, the reason in the message.
REFUSED = [
    (Branching, VECTOR, "layer '[bc]', which the example does not run, may read it"),
    (Silent, VECTOR, "Silent cannot be traced: it returns no tensor"),
    (Failing, VECTOR, "fails on its example: ValueError: no such input"),
    (Dictionary, ({"x": torch.zeros(1, 4)},), "inputs are tensors"),
]
