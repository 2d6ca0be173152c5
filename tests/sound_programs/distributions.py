"""Distributions, reinforcement learning, generative models, optimisers."""

import copy
import math

import torch
from torch import distributions as D
from torch import nn
from torch.nn import functional as F

from . import T, data, mlp, sound, training


def adam(m, lr=1e-3):
    return torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr)


def frozen(m):
    return copy.deepcopy(m).requires_grad_(False)


def follow(target, source, rate):
    with torch.no_grad():
        for t, s in zip(target.parameters(), source.parameters()):
            t.lerp_(s, rate)


def real(size, limit=3, *rest):
    return T(("B", size, *rest) if size else ("B",), min_value=-limit, max_value=limit)


@sound
def normal_regression():
    """Normal(mu, softplus + 0.05) with a kl_divergence to a unit prior over a reparametrised code."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = mlp(4, 16, 6, act=nn.Tanh), mlp(3, 16, 2, act=nn.Tanh)

        def forward(self, x):
            mu, raw = self.enc(x).chunk(2, -1)
            q = D.Independent(D.Normal(mu, F.softplus(raw) + 0.05), 1)
            out, width = self.dec(q.rsample()).unbind(-1)
            return q, D.Normal(out, F.softplus(width) + 0.05)

    def loss(m, b):
        q, p = m(b[0])
        prior = D.Independent(D.Normal(torch.zeros(3), torch.ones(3)), 1)
        return (D.kl_divergence(q, prior) * 0.1 - p.log_prob(b[1])).mean()

    m = Net()
    return training(m, loss, adam(m), data(5, lambda s: (s.normal(6, 4), s.normal(6))), clip_grad_norm=5.0)


@sound
def categorical_reinforce():
    """Policy gradient with Categorical(logits), entropy bonus and a running baseline kept in a buffer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pi = mlp(4, 16, 3, act=nn.Tanh)
            self.register_buffer("base", torch.zeros(()))

    def loss(m, b):
        policy = D.Categorical(logits=m.pi(b["obs"]))
        with torch.no_grad():
            gain = b["reward"] - m.base
            m.base.lerp_(b["reward"].mean(), 0.1)
        return -(policy.log_prob(b["act"]) * gain + 0.01 * policy.entropy()).mean()

    m = Net()
    return training(
        m,
        loss,
        adam(m),
        data(6, lambda s: {"obs": s.normal(6, 4), "act": s.ints(0, 2, 6), "reward": s.uniform(-1, 1, 6)}),
    )


@sound
def bernoulli_divergence():
    """kl_divergence of Bernoullis whose logits are bounded by 8 tanh(z / 8); observed bits by log_prob."""
    m = nn.ModuleDict({"q": mlp(6, 12, 4), "p": mlp(4, 12, 6)})

    def loss(m, b):
        x = b.float()
        q = D.Bernoulli(logits=8 * torch.tanh(m["q"](x) / 8))
        prior = D.Bernoulli(logits=torch.zeros_like(q.logits))
        code = q.probs + (q.sample() - q.probs).detach()
        p = D.Independent(D.Bernoulli(logits=m["p"](code)), 1)
        return (D.kl_divergence(q, prior).sum(-1) - p.log_prob(x)).mean()

    return training(m, loss, adam(m), data(5, lambda s: s.ints(0, 1, 6, 6)), domain=T(("B", 6), "int64", 0, 1))


@sound
def beta_policy():
    """Beta with both parameters 1 + softplus, clamped at 100; actions between 0.01 and 0.99; kl to the old one."""
    m = mlp(4, 16, 2, act=nn.Tanh)

    def loss(m, b):
        a, c = (1 + F.softplus(m(b["obs"]))).clamp(max=100).unbind(-1)
        policy = D.Beta(a, c)
        anchor = D.Beta(torch.full_like(a, 2.0), torch.full_like(c, 2.0))
        return (-policy.log_prob(b["act"]) * b["adv"] + 0.1 * D.kl_divergence(policy, anchor)).mean()

    return training(
        m,
        loss,
        adam(m),
        data(5, lambda s: {"obs": s.normal(6, 4), "act": s.uniform(0.05, 0.95, 6), "adv": s.uniform(-1, 1, 6)}),
        domain={"obs": real(4), "act": T(("B",), min_value=0.01, max_value=0.99), "adv": real(0, 1)},
    )


@sound
def mixture_same_family():
    """MixtureSameFamily of Independent Normals with a floor under their scales."""
    m = mlp(3, 16, 15, act=nn.Tanh)

    def loss(m, b):
        raw = m(b[0])
        mu, scale = raw[:, 3:9].unflatten(1, (3, 2)), F.softplus(raw[:, 9:].unflatten(1, (3, 2))) + 0.1
        mixture = D.MixtureSameFamily(D.Categorical(logits=raw[:, :3]), D.Independent(D.Normal(mu, scale), 1))
        return -mixture.log_prob(b[1]).mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(6, 3), s.normal(6, 2))))


@sound
def tanh_transform_cached():
    """rsample and log_prob of a Normal under TanhTransform(cache_size=1); scale from a sigmoid."""
    m = mlp(4, 16, 4)

    def loss(m, b):
        mu, raw = m(b[0]).chunk(2, -1)
        base = D.Normal(5 * torch.tanh(mu / 5), 0.05 + torch.sigmoid(raw))
        policy = D.TransformedDistribution(base, [D.TanhTransform(cache_size=1)])
        act = policy.rsample()
        return ((act - b[1]).square() + 0.1 * policy.log_prob(act)).sum(-1).mean()

    return training(m, loss, adam(m), data(5, lambda s: (s.normal(5, 4), s.uniform(-1, 1, 5, 2))))


@sound
def sac_twin_critics():
    """SAC: 2 (log 2 - u - softplus(-2u)), log-std through tanh, clamped log-temperature, Polyak targets."""

    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.actor, self.q = mlp(3, 12, 2), nn.ModuleList([mlp(4, 12, 1), mlp(4, 12, 1)])
            self.target, self.log_alpha = frozen(self.q), nn.Parameter(torch.tensor(-1.0))

        def act(self, s):
            mu, raw = self.actor(s).unbind(-1)
            log_std = -4 + 2.5 * (torch.tanh(raw) + 1)
            z = torch.randn_like(mu)
            u = mu + log_std.exp() * z
            logp = -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)
            return torch.tanh(u), logp - 2 * (math.log(2) - u - F.softplus(-2 * u))

    def value(nets, s, a):
        return torch.stack([q(torch.cat([s, a[:, None]], 1))[:, 0] for q in nets])

    def parts(m, b):
        alpha = m.log_alpha.clamp(-8, 2).exp()
        with torch.no_grad():
            a2, logp2 = m.act(b["s2"])
            goal = b["r"] + 0.95 * ~b["done"] * (value(m.target, b["s2"], a2).amin(0) - alpha * logp2)
        a, logp = m.act(b["s"])
        yield lambda: F.mse_loss(value(m.q, b["s"], b["a"]), goal.expand(2, -1))
        yield lambda: (alpha.detach() * logp - value(m.q, b["s"], a).amin(0)).mean()
        yield lambda: -(alpha * (logp.detach() - 1)).mean()

    def step(b):
        total = 0.0
        for opt, part in zip(opts, parts(m, b)):
            opt.zero_grad()
            part_loss = part()
            part_loss.backward()
            nn.utils.clip_grad_norm_(m.parameters(), 10.0)
            opt.step()
            total = total + part_loss.detach()
        follow(m.target, m.q, 0.05)
        return total

    def make(s):
        return {
            "s": s.normal(6, 3),
            "a": s.uniform(-1, 1, 6),
            "r": s.uniform(-1, 1, 6),
            "s2": s.normal(6, 3),
            "done": s.uniform(0, 1, 6) < 0.2,
        }

    m = Agent()
    opts = [adam(m.q), adam(m.actor), torch.optim.Adam([m.log_alpha], 1e-3)]
    domain = {"s": real(3), "a": real(0, 1), "r": real(0, 1), "s2": real(3), "done": T(("B",), "bool")}
    return training(
        m, lambda m, b: sum(part() for part in parts(m, b)), opts, data(5, make), training_step=step, domain=domain
    )


@sound
def dueling_double_q():
    """Dueling double DQN: Huber loss, invertible value scaling sign(x)(sqrt(|x| + 1) - 1) of the goals."""

    class Dueling(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.v, self.a = mlp(4, 16), nn.Linear(16, 1), nn.Linear(16, 3)

        def forward(self, x):
            h = F.relu(self.body(x))
            a = self.a(h)
            return self.v(h) + a - a.mean(-1, keepdim=True)

    def squash(x):
        return x.sign() * ((x.abs() + 1).sqrt() - 1) + 1e-3 * x

    def widen(x):
        return x.sign() * ((((1 + 4e-3 * (x.abs() + 1 + 1e-3)).sqrt() - 1) / 2e-3).square() - 1)

    def loss(m, b):
        with torch.no_grad():
            best = m["online"](b["s2"]).argmax(-1, keepdim=True)
            goal = squash(b["r"] + 0.9 * widen(m["target"](b["s2"]).gather(1, best)[:, 0]))
        return F.smooth_l1_loss(m["online"](b["s"]).gather(1, b["a"][:, None])[:, 0], goal)

    def step(b):
        opt.zero_grad()
        value = loss(m, b)
        value.backward()
        opt.step()
        follow(m["target"], m["online"], 0.1)
        return value

    m = nn.ModuleDict({"online": Dueling()})
    m["target"] = frozen(m["online"])
    opt = adam(m["online"])
    return training(
        m,
        loss,
        opt,
        data(
            5,
            lambda s: {"s": s.normal(6, 4), "a": s.ints(0, 2, 6), "s2": s.normal(6, 4), "r": s.normal(6, scale=100.0)},
        ),
        training_step=step,
    )


@sound
def vtrace_actor_critic():
    """V-trace: importance ratios exp(clamp(log-ratio, max=0)), advantages over (std + 1e-3)."""
    m = nn.ModuleDict({"pi": mlp(3, 12, 3, act=nn.Tanh), "v": mlp(3, 12, 1, act=nn.Tanh)})

    def loss(m, b):
        logp = m["pi"](b["obs"]).log_softmax(-1)
        taken = logp.gather(-1, b["act"][..., None])[..., 0]
        v = m["v"](b["obs"])[..., 0]
        rho = (taken.detach() - b["old"]).clamp(max=0).exp()
        goals, ahead = [], v[:, -1].detach()
        for t in reversed(range(v.shape[1])):
            now = v[:, t].detach()
            ahead = now + rho[:, t] * (b["r"][:, t] + 0.9 * ahead - now)
            goals.append(ahead)
        goal = torch.stack(goals[::-1], 1)
        adv = rho * (goal - v.detach())
        adv = (adv - adv.mean()) / (adv.std(correction=0) + 1e-3)
        return -(taken * adv).mean() + F.huber_loss(v, goal) + 0.01 * (logp.exp() * logp).sum(-1).mean()

    def make(s):
        return {
            "obs": s.normal(4, 5, 3),
            "act": s.ints(0, 2, 4, 5),
            "old": s.uniform(-4, -0.1, 4, 5),
            "r": s.uniform(-1, 1, 4, 5),
        }

    domain = {
        "obs": real("T", 4, 3),
        "act": T(("B", "T"), "int64", 0, 2),
        "r": real("T", 1),
        "old": T(("B", "T"), min_value=-20, max_value=0),
    }
    return training(
        m, loss, torch.optim.RMSprop(m.parameters(), 1e-3, eps=1e-4), data(5, make), domain=domain, clip_grad_norm=1.0
    )


@sound
def ddpm_cosine():
    """Denoising diffusion: fixed schedule kept inside (1e-3, 0.999), min-SNR weights, sinusoidal times."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(8, 24, 4, act=nn.SiLU)
            share = torch.cos((torch.linspace(0, 1, 20) + 0.01) / 1.01 * math.pi / 2).square()
            self.register_buffer("keep", share.clamp(1e-3, 0.999))

        def forward(self, x, t):
            angle = t[:, None] / 20 * torch.tensor([1.0, 4.0])
            return self.net(torch.cat([x, angle.sin(), angle.cos()], 1))

    def loss(m, b):
        keep = m.keep[b["t"]][:, None]
        noisy = keep.sqrt() * b["x"] + (1 - keep).sqrt() * b["noise"]
        snr = keep / (1 - keep)
        return (snr.clamp(max=5) / snr * (m(noisy, b["t"]) - b["noise"]).square()).mean()

    m = Net()
    return training(
        m,
        loss,
        torch.optim.AdamW(m.parameters(), 1e-3),
        data(6, lambda s: {"x": s.uniform(-1, 1, 6, 4), "noise": s.normal(6, 4), "t": s.ints(0, 19, 6)}),
        domain={"x": real(4, 1), "noise": real(4, 4), "t": T(("B",), "int64", 0, 19)},
    )
