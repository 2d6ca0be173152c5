"""Policies, graphs, rankings and sequences whose formulas break off the beaten track."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


def rng(seed):
    """A seeded generator for the data."""
    return torch.Generator().manual_seed(seed)


def field(shape, low, high):
    """A field of integers or of reals, as its bounds are."""
    dtype = "float32" if isinstance(low, float) else "int64"
    return TensorSpec(shape=shape, dtype=dtype, min_value=low, max_value=high)


@program("policy gradient")
def ppo_with_k3_kl_penalty(fixed):
    """exp(old - new log prob) in the KL estimate overflows once the new mean is far from the actions."""

    class GaussianPolicy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))
            self.log_std = nn.Parameter(torch.full((2,), -0.3))

        def log_prob(self, obs, act):
            log_std = self.log_std.clamp(-5, 2)
            z = (act - self.body(obs)) / log_std.exp()
            return (-0.5 * z.pow(2) - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def loss(model, batch):
        obs, act, old_logp, adv = batch
        log_ratio = model.log_prob(obs, act) - old_logp
        if fixed:
            log_ratio = log_ratio.clamp(-10, 10)
        ratio = torch.exp(log_ratio)
        surrogate = torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
        approx_kl = (torch.exp(-log_ratio) - 1 + log_ratio).mean()  # bug: ppo_with_k3_kl_penalty
        return -surrogate + 0.2 * approx_kl

    g, batches = rng(0), []
    for _ in range(6):
        obs, noise = torch.randn(32, 6, generator=g), torch.randn(32, 2, generator=g)
        old_logp = (-0.5 * noise.pow(2) - 0.5 * math.log(2 * math.pi)).sum(-1)
        batches.append((obs, 0.3 * obs[:, :2] + noise, old_logp, torch.randn(32, generator=g)))
    model = GaussianPolicy()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, clip_grad_norm=0.5)


@program("policy gradient")
def actor_critic_entropy_bonus(fixed):
    """p * log p of a deterministic policy: an action's probability underflows to 0."""

    class ActorCritic(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
            self.actor, self.critic = nn.Linear(54, 5), nn.Linear(54, 1)

        def forward(self, frames):
            h = self.trunk(frames)
            return self.actor(h), self.critic(h).squeeze(-1)

    def loss(model, batch):
        frames, actions, returns = batch
        logits, value = model(frames)
        probs = torch.softmax(logits, dim=-1)
        if fixed:
            log_probs = torch.log_softmax(logits, dim=-1)
        else:
            log_probs = torch.log(probs)  # bug: actor_critic_entropy_bonus
        advantage = (returns - value).detach()
        policy_loss = -(log_probs.gather(1, actions[:, None]).squeeze(1) * advantage).mean()
        entropy = -(probs * log_probs).sum(-1).mean()
        return policy_loss + 0.5 * F.mse_loss(value, returns) - 0.02 * entropy

    g, batches = rng(1), []
    for _ in range(6):
        frames, actions = torch.rand(16, 2, 8, 8, generator=g), torch.randint(5, (16,), generator=g)
        batches.append((frames, actions, torch.randn(16, generator=g)))
    model = ActorCritic()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=7e-4, eps=1e-5)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("policy gradient")
def tanh_policy_cloning(fixed):
    """atanh and log(1 - a^2) of a demonstrated action that sits on the actuator limit of 1."""

    class SquashedPolicy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 24), nn.ELU(), nn.Linear(24, 4))

        def log_prob(self, obs, action):
            mean, log_std = self.net(obs).chunk(2, dim=-1)
            log_std = log_std.clamp(-4.0, 1.0)
            if fixed:
                action = action.clamp(-1 + 1e-6, 1 - 1e-6)
            pre_tanh = 0.5 * (torch.log1p(action) - torch.log1p(-action))  # bug: tanh_policy_cloning
            gaussian = -0.5 * ((pre_tanh - mean) / log_std.exp()) ** 2 - log_std
            return (gaussian - torch.log(1 - action.pow(2))).sum(-1)  # bug: tanh_policy_cloning

    def loss(policy, batch):
        return -policy.log_prob(*batch).mean()

    g, batches = rng(2), []
    for _ in range(5):
        obs = torch.randn(24, 5, generator=g).clamp(-3, 3)
        batches.append((obs, torch.tanh(0.5 * obs[:, :2] + 0.4 * torch.randn(24, 2, generator=g))))
    model = SquashedPolicy()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    domain = (field((24, 5), -3.0, 3.0), field((24, 2), -1.0, 1.0))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("value iteration network")
def soft_value_iteration_network(fixed):
    """The soft maximum over the action channel is log(sum(exp(q))) by hand, and q outgrows exp."""

    class SoftVIN(nn.Module):
        def __init__(self, iterations=6):
            super().__init__()
            self.iterations = iterations
            self.reward = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1, bias=False))
            self.transition = nn.Conv2d(2, 8, 3, padding=1, bias=False)
            self.policy = nn.Linear(8, 4, bias=False)

        def forward(self, maze, row, col):
            r = self.reward(maze)
            v = torch.zeros_like(r)
            for _ in range(self.iterations):
                q = self.transition(torch.cat([r, v], dim=1))
                if fixed:
                    v = torch.logsumexp(q, dim=1, keepdim=True)
                else:
                    v = torch.log(torch.exp(q).sum(dim=1, keepdim=True))  # bug: soft_value_iteration_network
            return self.policy(q[torch.arange(len(maze)), :, row, col])

    def loss(model, batch):
        maze, row, col, best_action = batch
        return F.cross_entropy(model(maze, row, col), best_action)

    g, batches = rng(3), []
    for _ in range(4):
        walls = (torch.rand(12, 1, 8, 8, generator=g) < 0.3).float()
        goal = F.one_hot(torch.randint(64, (12,), generator=g), 64).float().view(12, 1, 8, 8)
        row, col, action = (torch.randint(n, (12,), generator=g) for n in (8, 8, 4))
        batches.append((torch.cat([walls, goal], dim=1), row, col, action))
    model = SoftVIN()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("graph network")
def gat_edge_softmax(fixed):
    """Edge softmax as exp over an index_add without taking the maximum off: exp overflows or a whole sum underflows."""

    class GATLayer(nn.Module):
        def __init__(self, n_in, n_out):
            super().__init__()
            self.lin = nn.Linear(n_in, n_out, bias=False)
            self.att_src = nn.Parameter(torch.randn(n_out) / n_out**0.5)
            self.att_dst = nn.Parameter(torch.randn(n_out) / n_out**0.5)

        def forward(self, x, src, dst):
            h = self.lin(x)
            score = F.leaky_relu((h @ self.att_src)[src] + (h @ self.att_dst)[dst], 0.2)
            if fixed:
                top = torch.full((len(x),), -math.inf).scatter_reduce(0, dst, score.detach(), "amax")
                score = score - top[dst]
            weight = torch.exp(score)  # bug: gat_edge_softmax
            total = torch.zeros(len(x)).index_add(0, dst, weight)
            alpha = weight / total[dst]  # bug: gat_edge_softmax
            return torch.zeros_like(h).index_add(0, dst, alpha[:, None] * h[src])

    class GAT(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = GATLayer(8, 16), GATLayer(16, 3)

        def forward(self, x, src, dst):
            return self.second(F.elu(self.first(x, src, dst)), src, dst)

    def loss(model, batch):
        x, src, dst, y = batch
        return F.cross_entropy(model(x, src, dst), y)

    g, loops, batches = rng(4), torch.arange(24), []
    for _ in range(4):
        src, dst = torch.randint(24, (72,), generator=g), torch.randint(24, (72,), generator=g)
        y = torch.randint(3, (24,), generator=g)
        x = torch.randn(24, 8, generator=g) + F.one_hot(y, 8)
        batches.append((x, torch.cat([src, loops]), torch.cat([dst, loops]), y))
    model = GAT()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=5e-4)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("graph network")
def gcn_isolated_node(fixed):
    """degree ** -0.5 of a node without any edge is inf, and inf times its zero row is NaN."""

    class GraphClassifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w2, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 2)
            self.dropout = nn.Dropout(0.1)

        def forward(self, x, adj):
            adj = 0.5 * (adj + adj.transpose(1, 2))
            degree = adj.sum(-1)
            if fixed:
                degree = degree.clamp(min=1e-4)
            d_inv_sqrt = torch.pow(degree, -0.5)  # bug: gcn_isolated_node
            a_hat = d_inv_sqrt[:, :, None] * adj * d_inv_sqrt[:, None, :]
            h = self.dropout(F.relu(a_hat @ self.w1(x)))
            return self.out(F.relu(a_hat @ self.w2(h)).mean(1))

    def loss(model, batch):
        x, adj, y = batch
        return F.cross_entropy(model(x, adj), y)

    g, batches = rng(5), []
    for _ in range(5):
        adj = torch.rand(8, 10, 10, generator=g) * (torch.rand(8, 10, 10, generator=g) < 0.4)
        adj = adj + torch.eye(10).roll(1, 0) * (1 - adj)  # every node has a strong neighbour
        batches.append((torch.randn(8, 10, 6, generator=g).clamp(-4, 4), adj, torch.randint(2, (8,), generator=g)))
    model = GraphClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    domain = (field(("graphs", 10, 6), -4.0, 4.0), field(("graphs", 10, 10), 0.0, 1.0), field(("graphs",), 0, 1))
    sizes = {"graphs": (2, 8)}
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes=sizes)


@program("graph network")
def neighbour_attention_pooling(fixed):
    """Softmax over the neighbours of a node that has none: every score is -inf."""

    class AttentiveAggregator(nn.Module):
        def __init__(self):
            super().__init__()
            self.key, self.query, self.v = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 1, bias=False)
            self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, node, neighbours, mask):
            e = self.v(torch.tanh(self.query(node)[:, None] + self.key(neighbours))).squeeze(-1)
            e = e.masked_fill(~mask, -1e9 if fixed else -math.inf)  # bug: neighbour_attention_pooling
            alpha = torch.softmax(e, dim=-1)  # bug: neighbour_attention_pooling
            pooled = (alpha[..., None] * neighbours * mask[..., None]).sum(1)
            return self.head(torch.cat([node, pooled], dim=-1)).squeeze(-1)

    def loss(model, batch):
        node, neighbours, mask, clicked = batch
        return F.binary_cross_entropy_with_logits(model(node, neighbours, mask), clicked)

    g, batches = rng(6), []
    for _ in range(5):
        mask = torch.arange(6) < torch.randint(1, 7, (16, 1), generator=g)
        node, neighbours = torch.rand(16, 8, generator=g), torch.rand(16, 6, 8, generator=g)
        batches.append((node, neighbours, mask, (node[:, 0] > neighbours[:, 0, 0]).float()))
    model = AttentiveAggregator()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mask = TensorSpec(shape=(16, 6), dtype="bool", kind="mask", min_true=0)
    domain = (field((16, 8), 0.0, 1.0), field((16, 6, 8), 0.0, 1.0), mask, field((16,), 0.0, 1.0))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("ranking")
def list_mle(fixed):
    """log of a reversed cumulative sum of exp(s - max): the tail of the list underflows to 0."""

    def loss(model, batch):
        docs, relevance = batch
        order = relevance.argsort(dim=1, descending=True, stable=True)
        scores = model(docs).squeeze(-1).gather(1, order)
        scores = scores - scores.max(dim=1, keepdim=True).values
        if fixed:
            log_tail = scores.flip(1).logcumsumexp(dim=1).flip(1)
        else:
            log_tail = torch.log(scores.exp().flip(1).cumsum(dim=1).flip(1))  # bug: list_mle
        return (log_tail - scores).sum(1).mean()

    g, batches = rng(7), []
    for _ in range(5):
        docs = torch.randn(8, 10, 12, generator=g)
        batches.append((docs, (docs[..., :3].sum(-1) + torch.randn(8, 10, generator=g)).clamp(0, 4).round().long()))
    model = nn.Sequential(nn.Linear(12, 24), nn.LeakyReLU(0.1), nn.Linear(24, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("ranking")
def approx_ndcg_without_relevant_items(fixed):
    """The ideal DCG of a query without a relevant document is 0: 0 / 0."""

    def approx_ranks(scores, temperature=0.5):
        margins = (scores[:, None, :] - scores[:, :, None]) / temperature
        return 0.5 + torch.sigmoid(margins).sum(-1)

    def loss(model, batch):
        docs, relevance = batch
        scores = model(docs).squeeze(-1)
        gains = torch.pow(2.0, relevance.float()) - 1
        dcg = (gains / torch.log2(1 + approx_ranks(scores))).sum(1)
        discounts = torch.log2(torch.arange(docs.shape[1]) + 2.0)
        ideal = (gains.sort(dim=1, descending=True).values / discounts).sum(1)
        ideal = ideal.clamp(min=1e-3) if fixed else ideal
        return 1 - (dcg / ideal).mean()  # bug: approx_ndcg_without_relevant_items

    g, batches = rng(8), []
    for _ in range(6):
        docs = torch.rand(12, 8, 10, generator=g)
        relevance = torch.randint(4, (12, 8), generator=g)
        relevance[:, 0] = 1 + torch.randint(3, (12,), generator=g)
        batches.append((docs, relevance))
    model = nn.Sequential(nn.Linear(10, 16), nn.SiLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    domain = (field(("queries", "docs", 10), 0.0, 1.0), field(("queries", "docs"), 0, 3))
    sizes = {"queries": (2, 12), "docs": (4, 12)}
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes=sizes)


@program("hand-written attention")
def attention_masked_after_exp(fixed):
    """The row maximum is taken with the padding still in: the real tokens' exp all underflow and the sum is 0."""

    class MaskedSelfAttention(nn.Module):
        def __init__(self, dim=16):
            super().__init__()
            self.tok, self.pos = nn.Embedding(40, dim), nn.Parameter(0.02 * torch.randn(10, dim))
            self.qkv = nn.Linear(dim, 3 * dim)
            self.norm, self.cls = nn.LayerNorm(dim), nn.Linear(dim, 2)

        def forward(self, tokens, mask):
            h = self.tok(tokens) + self.pos
            q, k, v = self.qkv(h).chunk(3, dim=-1)
            scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            if fixed:
                attn = torch.softmax(scores.masked_fill(~mask[:, None, :], float("-inf")), dim=-1)
            else:
                weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * mask[:, None, :]
                attn = weights / weights.sum(-1, keepdim=True)  # bug: attention_masked_after_exp
            h = self.norm(h + attn @ v) * mask[..., None]
            return self.cls(h.sum(1) / mask.sum(1, keepdim=True))

    def loss(model, batch):
        tokens, mask, y = batch
        return F.cross_entropy(model(tokens, mask), y)

    g, batches = rng(9), []
    for _ in range(5):
        tokens = torch.randint(1, 40, (8, 10), generator=g)
        mask = torch.arange(10) < torch.randint(2, 11, (8, 1), generator=g)
        batches.append((tokens * mask, mask, (tokens[:, 0] > 20).long()))
    model = MaskedSelfAttention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    padding = TensorSpec(shape=(8, 10), dtype="bool", kind="mask", min_true=1)
    domain = (field((8, 10), 0, 39), padding, field((8,), 0, 1))
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain)


@program("language model")
def char_lstm_perplexity_objective(fixed):
    """The perplexity exp(mean cross entropy) overflows once a confident model is wrong by more than 88 nats."""

    class CharLSTM(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 24, batch_first=True)
            self.decoder = nn.Linear(24, 20)

        def forward(self, chars):
            hidden, _ = self.lstm(self.embed(chars))  # bug: char_lstm_perplexity_objective
            return torch.log_softmax(self.decoder(hidden), dim=-1)

    def loss(model, batch):
        chars, lengths = batch
        nll = -model(chars[:, :-1]).gather(2, chars[:, 1:, None]).squeeze(2)
        valid = torch.arange(nll.shape[1]) < (lengths[:, None] - 1)
        cross_entropy = (nll * valid).sum() / valid.sum()
        if fixed:
            cross_entropy = cross_entropy.clamp(max=12.0)
        return torch.exp(cross_entropy)  # bug: char_lstm_perplexity_objective

    g, batches = rng(10), []
    for _ in range(4):
        steps = torch.randint(1, 4, (6, 9), generator=g).cumsum(1) % 20
        batches.append((steps, torch.randint(4, 10, (6,), generator=g)))
    model = CharLSTM()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    domain = (field((6, 9), 0, 19), TensorSpec(shape=(6,), dtype="int64", kind="lengths", min_value=2, max_value=9))
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, clip_grad_norm=1.0
    )


@program("word vectors")
def skipgram_negative_sampling(fixed):
    """log(1 - sigmoid(score)) of a negative that scores above 17, log(sigmoid) of a positive far below 0."""

    class SkipGram(nn.Module):
        def __init__(self, vocab=50, dim=12):
            super().__init__()
            self.center, self.context = nn.Embedding(vocab, dim), nn.Embedding(vocab, dim)
            for table in (self.center, self.context):
                nn.init.normal_(table.weight, std=0.3)

    def loss(model, batch):
        center, context, negatives = batch
        v = model.center(center)
        positive_score = (v * model.context(context)).sum(-1)
        negative_score = torch.bmm(model.context(negatives), v[:, :, None]).squeeze(-1)
        if fixed:
            return -(F.logsigmoid(positive_score) + F.logsigmoid(-negative_score).sum(1)).mean()
        positive = torch.log(torch.sigmoid(positive_score))  # bug: skipgram_negative_sampling
        negative = torch.log(1 - torch.sigmoid(negative_score)).sum(1)  # bug: skipgram_negative_sampling
        return -(positive + negative).mean()

    g, batches = rng(11), []
    for _ in range(8):
        center = torch.randint(50, (32,), generator=g)
        context = (center + torch.randint(1, 4, (32,), generator=g)) % 50
        batches.append((center, context, torch.randint(50, (32, 5), generator=g)))
    model = SkipGram()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("sequence labelling")
def crf_forward_in_probability_space(fixed):
    """The forward variables are products of exp(potentials) over the sentence: they overflow, or all underflow."""

    class Tagger(nn.Module):
        def __init__(self, tags=5):
            super().__init__()
            self.embed, self.conv = nn.Embedding(30, 12), nn.Conv1d(12, 16, 3, padding=1)
            self.emit, self.trans = nn.Linear(16, tags), nn.Parameter(0.1 * torch.randn(tags, tags))

        def forward(self, words):
            h = F.relu(self.conv(self.embed(words).transpose(1, 2)))
            return self.emit(h.transpose(1, 2))

    def log_partition(emissions, trans):
        if fixed:
            score = emissions[:, 0]
            for t in range(1, emissions.shape[1]):
                score = torch.logsumexp(score[:, :, None] + trans, dim=1) + emissions[:, t]
            return torch.logsumexp(score, dim=-1)
        alpha = torch.exp(emissions[:, 0])  # bug: crf_forward_in_probability_space
        for t in range(1, emissions.shape[1]):
            alpha = (alpha @ torch.exp(trans)) * torch.exp(emissions[:, t])  # bug: crf_forward_in_probability_space
        return torch.log(alpha.sum(-1))  # bug: crf_forward_in_probability_space

    def loss(model, batch):
        words, tags = batch
        emissions = model(words)
        gold = emissions.gather(2, tags[..., None]).squeeze(-1).sum(1) + model.trans[tags[:, :-1], tags[:, 1:]].sum(1)
        return (log_partition(emissions, model.trans) - gold).mean()

    g, batches = rng(12), []
    for _ in range(5):
        words = torch.randint(30, (8, 9), generator=g)
        batches.append((words, (words + torch.randint(2, (8, 9), generator=g)) % 5))
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=1e-4)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)
