"""Healthy programs of tables, pairs and graphs: recommenders, word vectors, metric and contrastive learning."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import clusters, images


class MatrixFactorisation(nn.Module):
    def __init__(self, users: int = 60, items: int = 80, rank: int = 8):
        super().__init__()
        self.users, self.items = nn.Embedding(users, rank), nn.Embedding(items, rank)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.mean = nn.Parameter(torch.tensor(3.5))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        product = (self.users(user) * self.items(item)).sum(dim=1)
        return product + (self.user_bias(user) + self.item_bias(item)).squeeze(1) + self.mean


def ratings(rows: int = 128, count: int = 6) -> list[tuple[Tensor, Tensor, Tensor]]:
    users, items = torch.randn(60, 3), torch.randn(80, 3)
    batches = []
    for _ in range(count):
        user, item = torch.randint(60, (rows,)), torch.randint(80, (rows,))
        batches.append((user, item, (3.5 + (users[user] * items[item]).sum(dim=1) / 2).clamp(1, 5)))
    return batches


@healthy(lr=0.3, optimizers=("sgd", "adam", "adamw"))
def matrix_factorisation(optimizer):
    """Products of two tables of normal 0.1: their gradients are tenths of the biases'."""

    def loss(model, batch):
        user, item, rating = batch
        return F.mse_loss(model(user, item), rating)

    model = MatrixFactorisation()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=ratings())


class DLRM(nn.Module):
    """A bottom MLP, tables uniform within 1/sqrt(rows), pairwise dot products, a top MLP; MLPs normal as in DLRM."""

    def __init__(self, tables: tuple[int, ...] = (10, 50, 200), dim: int = 16):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, dim) for rows in tables)
        for table in self.tables:
            bound = 1 / math.sqrt(table.num_embeddings)
            nn.init.uniform_(table.weight, -bound, bound)
        self.bottom = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, dim), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(dim + 6, 32), nn.ReLU(), nn.Linear(32, 1))
        for layer in [*self.bottom, *self.top]:
            if isinstance(layer, nn.Linear):
                fan_out, fan_in = layer.weight.shape
                nn.init.normal_(layer.weight, std=math.sqrt(2 / (fan_in + fan_out)))
                nn.init.normal_(layer.bias, std=math.sqrt(1 / fan_out))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        vectors = torch.stack([bottom, *[table(sparse[:, i]) for i, table in enumerate(self.tables)]], dim=1)
        left, right = torch.tril_indices(4, 4, offset=-1)
        products = (vectors @ vectors.transpose(1, 2))[:, left, right]
        return self.top(torch.cat([bottom, products], dim=1)).squeeze(1)


@healthy(lr=0.1)
def recommendation_dlrm(optimizer):
    """Rows of the largest table are rarely seen."""

    def loss(model, batch):
        dense, sparse, click = batch
        return F.binary_cross_entropy_with_logits(model(dense, sparse), click)

    effect, direction = torch.randn(200), torch.randn(5)
    batches = []
    for _ in range(6):
        dense = torch.log1p(torch.rand(64, 5) * 50) / 2
        sparse = torch.stack([torch.randint(rows, (64,)) for rows in (10, 50, 200)], dim=1)
        odds = 2 * effect[sparse].sum(dim=1) + (dense - 1.4) @ direction * 3
        batches.append((dense, sparse, torch.bernoulli(torch.sigmoid(odds))))
    model = DLRM()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


class SkipGram(nn.Module):
    """word2vec: inputs uniform within 0.5/dim, outputs zero."""

    def __init__(self, vocab: int = 50, dim: int = 24, sparse: bool = False):
        super().__init__()
        self.inputs = nn.Embedding(vocab, dim, sparse=sparse)
        self.outputs = nn.Embedding(vocab, dim, sparse=sparse)
        nn.init.uniform_(self.inputs.weight, -0.5 / dim, 0.5 / dim)
        nn.init.zeros_(self.outputs.weight)

    def forward(self, centre: Tensor, others: Tensor) -> Tensor:
        return (self.outputs(others) @ self.inputs(centre)[..., None]).squeeze(-1)


def skip_grams() -> list[tuple[Tensor, Tensor, Tensor]]:
    """A word, one of its topic, four random words."""
    batches = []
    for _ in range(6):
        centre = torch.randint(50, (128,))
        near = (centre // 5) * 5 + torch.randint(5, (128,))
        labels = torch.zeros(128, 5)
        labels[:, 0] = 1
        batches.append((centre, torch.cat([near[:, None], torch.randint(50, (128, 4))], dim=1), labels))
    return batches


def negative_sampling(model, batch):
    centre, others, labels = batch
    return F.binary_cross_entropy_with_logits(model(centre, others), labels, reduction="none").sum(dim=1).mean()


@healthy(lr=1.0, optimizers=("sgd", "adam"))
def word2vec(optimizer):
    """Outputs of zero: the input table has no gradient in the first step, and tiny ones for a while."""
    model = SkipGram()
    return TrainingSetup(
        model=model, loss=negative_sampling, optimizer=optimizer(model.parameters()), batches=skip_grams()
    )


@healthy(lr=1.0, optimizers=("sgd",), precisions=("32-true",))
def sparse_embedding_gradients(optimizer):
    """Sparse gradients and SparseAdam."""
    model = SkipGram(sparse=True)
    own = torch.optim.SparseAdam(list(model.parameters()), lr=0.02)
    return TrainingSetup(model=model, loss=negative_sampling, optimizer=own, batches=skip_grams())


def encoder(inputs: int = 16, outputs: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, outputs))


@healthy(lr=0.05)
def siamese_contrastive(optimizer):
    """Pairs farther apart than the margin have no gradient; the distance has a small number under its root."""

    def loss(model, batch):
        x, y = batch
        one, two = model(x).chunk(2)
        same = (y[:16] == y[16:]).to(x.dtype)
        distance = (one - two).square().sum(dim=1).add(1e-6).sqrt()
        return (same * distance.square() + (1 - same) * F.relu(1.0 - distance).square()).mean()

    model = encoder()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=clusters())


@healthy(lr=0.05)
def triplet_margin(optimizer):
    """Easy triplets have no gradient; later few rows have any."""

    def loss(model, batch):
        anchor, positive, negative = (F.normalize(model(x), dim=1) for x in batch)
        return F.triplet_margin_loss(anchor, positive, negative, margin=0.5)

    centres = torch.randn(6, 16)
    batches = []
    for _ in range(6):
        kind = torch.randint(6, (32,))
        other = (kind + torch.randint(1, 6, (32,))) % 6
        batches.append(tuple(centres[k] + 0.8 * torch.randn(32, 16) for k in (kind, kind, other)))
    model = encoder()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


class TwoTowers(nn.Module):
    """CLIP: projections without bias of std dim^-0.5, a logit scale that starts at log(1 / 0.07)."""

    def __init__(self, dim: int = 48, joint: int = 24):
        super().__init__()
        self.image = nn.Sequential(nn.Flatten(), nn.Linear(144, dim), nn.GELU(), nn.LayerNorm(dim))
        self.text = nn.EmbeddingBag(40, dim, mode="mean")
        self.text_norm = nn.LayerNorm(dim)
        self.image_projection = nn.Parameter(torch.randn(dim, joint) * dim**-0.5)
        self.text_projection = nn.Parameter(torch.randn(dim, joint) * dim**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.text.weight, std=0.02)

    def forward(self, pictures: Tensor, words: Tensor) -> Tensor:
        one = F.normalize(self.image(pictures) @ self.image_projection, dim=1)
        two = F.normalize(self.text_norm(self.text(words)) @ self.text_projection, dim=1)
        return self.logit_scale.exp().clamp(max=100) * one @ two.t()


@healthy(lr=0.02)
def clip_two_towers(optimizer):
    """Cosines times 14 at first, from a learnt logarithm."""

    def loss(model, batch):
        logits = model(*batch)
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2

    batches = [(x, y[:, None] * 5 + torch.randint(5, (16, 3))) for x, y in images(classes=8)]
    model = TwoTowers()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


@healthy(lr=0.05)
def simclr_info_nce(optimizer):
    """Temperature 0.1 and -inf on the diagonal."""

    def loss(model, batch):
        views = torch.cat([batch + 0.3 * torch.randn_like(batch), batch + 0.3 * torch.randn_like(batch)])
        z = F.normalize(model(views), dim=1)
        similar = (z @ z.t() / 0.1).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
        half = len(batch)
        return F.cross_entropy(similar, torch.cat([torch.arange(half, 2 * half), torch.arange(half)]))

    model = encoder()
    batches = [x for x, _ in clusters()]
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=batches)


@healthy(lr=0.02, optimizers=("sgd", "adam"))
def arcface_margin(optimizer):
    """Cosine logits with scale 16 and an angular margin, clamped off the ends of acos."""
    model = nn.ModuleDict({"encoder": encoder(), "classes": nn.Linear(16, 4, bias=False)})
    nn.init.xavier_uniform_(model["classes"].weight)

    def loss(model, batch):
        x, y = batch
        features = F.normalize(model["encoder"](x), dim=1)
        cosine = F.linear(features, F.normalize(model["classes"].weight, dim=1)).float()
        angle = torch.acos(cosine.clamp(-0.999, 0.999))
        target = torch.cos(angle + 0.2 * F.one_hot(y, 4))
        return F.cross_entropy(16 * target, y)

    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=clusters())


def graphs(nodes: int = 40, count: int = 4) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Communities: features, dense adjacency with self-loops, labels of all nodes."""
    centres = torch.randn(4, 12)
    batches = []
    for _ in range(count):
        y = torch.randint(4, (nodes,))
        chance = torch.where(y[:, None] == y, 0.3, 0.03)
        edges = (torch.rand(nodes, nodes) < chance).float().triu(1)
        batches.append((centres[y] + torch.randn(nodes, 12), edges + edges.t() + torch.eye(nodes), y))
    return batches


def node_loss(model, batch):
    x, adjacency, y = batch
    return F.cross_entropy(model(x, adjacency), y)


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(12, 32, bias=False)
        self.fc2 = nn.Linear(32, 4, bias=False)
        nn.init.xavier_uniform_(self.fc1.weight)
        nn.init.xavier_uniform_(self.fc2.weight)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        root = adjacency.sum(dim=1).rsqrt()
        adjacency = root[:, None] * adjacency * root
        x = F.dropout(F.relu(adjacency @ self.fc1(x)), 0.5, self.training)
        return adjacency @ self.fc2(x)


@healthy(lr=0.1)
def graph_convolution(optimizer):
    """Kipf and Welling's two layers with dropout 0.5."""
    model = GCN()
    return TrainingSetup(model=model, loss=node_loss, optimizer=optimizer(model.parameters()), batches=graphs())


class GATLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(inputs, outputs * heads, bias=False)
        self.source = nn.Parameter(torch.empty(heads, outputs))
        self.target = nn.Parameter(torch.empty(heads, outputs))
        for parameter in (self.linear.weight, self.source, self.target):
            nn.init.xavier_uniform_(parameter, gain=1.414)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.linear(x).unflatten(-1, (self.heads, -1))
        one, two = (h * self.source).sum(dim=-1), (h * self.target).sum(dim=-1)
        scores = F.leaky_relu(one[:, None] + two[None], 0.2)
        weights = scores.masked_fill(adjacency[..., None] == 0, -9e15).softmax(dim=1)
        return torch.einsum("ijh,jhf->ihf", weights, h).flatten(1)


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = GATLayer(12, 8, 4), GATLayer(32, 4, 1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.layer2(F.elu(self.layer1(x, adjacency)), adjacency)


@healthy(lr=0.03)
def graph_attention(optimizer):
    """Masked with -9e15, as in the well-known PyTorch port."""
    model = GAT()
    return TrainingSetup(model=model, loss=node_loss, optimizer=optimizer(model.parameters()), batches=graphs())


class GIN(nn.Module):
    """Sums over neighbours, so activations grow with degree; batch norm takes it back; learnt epsilon from 0."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(depth))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(12 if i == 0 else 32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
            for i in range(depth)
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for epsilon, layer in zip(self.epsilon, self.layers, strict=True):
            x = F.relu(layer(adjacency @ x + epsilon * x))
        return self.head(x)


@healthy(lr=0.01)
def graph_isomorphism(optimizer):
    """Sums over ten neighbours triple the scale per layer."""
    model = GIN()
    return TrainingSetup(model=model, loss=node_loss, optimizer=optimizer(model.parameters()), batches=graphs())
