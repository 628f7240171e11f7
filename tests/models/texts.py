"""Short random texts with a rule to learn, and what tests of families for tokens do with a network."""

import copy

import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.config import Part
from autocompress.core.method import Context
from autocompress.core.registry import DISTILL
from autocompress.core.task import InputSpec
from autocompress.distill.activations import has_token_output, record_activations
from autocompress.distill.base import Activations, Batch
from autocompress.models.base import build_family_model

LENGTH, VOCABULARY, CLASSES = 12, 40, 5
INPUTS = (InputSpec((LENGTH,), vocabulary=VOCABULARY, missing=0),)
EXAMPLE = (torch.arange(LENGTH)[None] + 1,)
HEADS = {"label": CLASSES}


def build(family, heads=None, inputs=INPUTS, **knobs):
    torch.manual_seed(0)
    return build_family_model(Part.of(family, **knobs), inputs, heads or HEADS)


def tokens(count, seed=9, length=LENGTH):
    """Texts of 1 to ``length`` tokens, padding behind them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, VOCABULARY, (count, length), generator=generator)
    lengths = torch.randint(1, length + 1, (count, 1), generator=generator)
    return values * (torch.arange(length) < lengths)


def labels(texts):
    """The largest token decides."""
    return texts.amax(1) * CLASSES // VOCABULARY


# A test without gradients may be the first to ask for it.
@torch.enable_grad()
def settled(family, steps=40, **knobs):
    """Return a small network that has learned for a while."""
    model = build(family, **knobs).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for seed in range(steps):
        texts = tokens(48, seed)
        loss = F.cross_entropy(model(texts), labels(texts))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, texts=None):
    texts = tokens(500, 99) if texts is None else texts
    return float((model(texts).argmax(1) == labels(texts)).float().mean())


def context():
    texts = tokens(64)
    return Context(
        EXAMPLE,
        ((texts,),),
        targets=({"label": labels(texts)},),
        loss=lambda logits, targets: F.cross_entropy(logits, targets["label"]),
    )


@torch.no_grad()
def assert_graph_is(graph, model):
    """Check that an exported graph computes what a model does, for texts and for padding alone."""
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    texts = torch.cat([tokens(16), torch.zeros(1, LENGTH, dtype=torch.int64)])
    (found,) = session.run(None, {session.get_inputs()[0].name: texts.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(texts), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def assert_padding_is_nothing(model, length=LENGTH):
    """Check that a text gives the same logits whatever padding stands behind it, and padding alone finite ones."""
    texts = tokens(20, length=length // 2)
    longer = F.pad(texts, (0, length - length // 2))
    torch.testing.assert_close(model(texts), model(longer), atol=1e-5, rtol=1e-5)
    assert (longer > 0).any(1).all()
    alone = model(torch.zeros(3, length, dtype=torch.int64))
    assert alone.isfinite().all()
    # Not one answer for all: the tokens do count.
    assert float(model(texts).std(0).min()) > 1e-3


def replayed(method, config, state, fresh, done):
    """Return a fresh network after the method's restore, with the tensors of the one that was compressed."""
    model = method.restore(copy.deepcopy(fresh), config, state)
    model.load_state_dict(done.state_dict())
    return model.eval()


def linear_and_convolutions(model):
    return {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d)}


def assert_feature_terms_run(student, teacher):
    """Check that each term on layers gives a loss with a gradient for the student's first layers."""
    texts = tokens(16)
    for name in ("hint", "attention", "relational"):
        term = DISTILL.get(name)
        config = term.config()
        found = []
        for model in (student, teacher):
            names = term.select_layers(config, model)
            with record_activations(model, names) as caught:
                logits = {"label": model(texts)}
            seen = frozenset(name for name in names if has_token_output(model.get_submodule(name)))
            found.append(Activations(logits, dict(caught), seen))
        learned = term.build_adapter(config, *found)
        learned = learned if isinstance(learned, nn.Module) else nn.Identity()
        student.zero_grad()
        loss = term.loss(config, Batch(*found, {}, lambda *_: torch.zeros(()), learned))
        loss.backward()
        assert loss.isfinite()
        assert float(loss.detach()) > 0
        assert float(student.encoder.embedding.weight.grad.abs().sum()) > 0
        student.zero_grad()
