"""Generative models: GANs, variational and other autoencoders, an RBM, discrete latents and an energy-based model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


def _adversarial(model, opt_d, d_loss, opt_g, g_loss, batches, **more):
    """Alternate one step of the discriminator and one of the generator."""

    def training_step(batch):
        opt_d.zero_grad()
        loss_d = d_loss(model, batch)
        loss_d.backward()
        opt_d.step()
        opt_g.zero_grad()
        loss_g = g_loss(model, batch)
        loss_g.backward()
        opt_g.step()
        return loss_d + loss_g

    return TrainingSetup(
        model=model, loss=d_loss, optimizer=[opt_d, opt_g], batches=batches, training_step=training_step, **more
    )


@program("GAN")
def gan_minimax_log_probabilities(fixed):
    """log D(x) + log(1 - D(G(z))): 1 - sigmoid is exactly 0 once the discriminator is sure of a fake (logit > 17)."""
    g = torch.Generator().manual_seed(1)
    centers = torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])
    modes = torch.randint(0, 8, (6, 24), generator=g)
    points = centers[modes] + 0.05 * torch.randn(6, 24, 2, generator=g)
    batches = [(real, torch.randn(24, 4, generator=g)) for real in points]
    gan = nn.Module()
    gan.G = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    gan.D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def log_fake(x):
        if fixed:
            return F.logsigmoid(-gan.D(x)).mean()
        return torch.log(1.0 - torch.sigmoid(gan.D(x))).mean()  # bug: gan_minimax_log_probabilities

    def d_loss(model, batch):
        real, z = batch
        if fixed:
            return -F.logsigmoid(model.D(real)).mean() - log_fake(model.G(z).detach())
        log_real = torch.log(torch.sigmoid(model.D(real))).mean()  # bug: gan_minimax_log_probabilities
        return -(log_real + log_fake(model.G(z).detach()))

    def g_loss(model, batch):
        return log_fake(model.G(batch[1]))

    opt_d, opt_g = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (gan.D, gan.G))
    return _adversarial(gan, opt_d, d_loss, opt_g, g_loss, batches)


class SNLinear(nn.Module):
    """Linear layer whose weight is divided by an estimate of its largest singular value."""

    def __init__(self, n_in, n_out, min_sigma):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_out, n_in)))
        self.bias, self.min_sigma = nn.Parameter(torch.zeros(n_out)), min_sigma
        self.register_buffer("u0", F.normalize(torch.randn(n_out), dim=0))

    def forward(self, x):
        u = self.u0
        with torch.no_grad():
            for _ in range(3):
                v = F.normalize(self.weight.t() @ u, dim=0, eps=1e-12)
                u = F.normalize(self.weight @ v, dim=0, eps=1e-12)
        sigma = torch.clamp_min(u @ self.weight @ v, self.min_sigma)
        weight = self.weight / sigma  # bug: conditional_gan_spectral_norm
        return F.linear(x, weight, self.bias)


@program("conditional GAN")
def conditional_gan_spectral_norm(fixed):
    """Spectral normalisation by hand divides a weight by its largest singular value, which is 0 for a zero weight."""
    g = torch.Generator().manual_seed(2)
    prototypes = torch.rand(4, 8, generator=g) * 1.6 - 0.8
    batches = []
    for _ in range(5):
        y = torch.randint(0, 4, (16,), generator=g)
        x = (prototypes[y] + 0.1 * torch.randn(16, 8, generator=g)).clamp(-1, 1)
        batches.append({"real": x, "label": y, "noise": torch.randn(16, 6, generator=g)})
    floor = 1e-2 if fixed else 0.0
    model = nn.ModuleDict(
        {
            "gen": nn.Sequential(nn.Linear(6 + 4, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8), nn.Tanh()),
            "disc": nn.Sequential(SNLinear(8 + 4, 24, floor), nn.LeakyReLU(0.2), SNLinear(24, 1, floor)),
        }
    )

    def generate(model, batch):
        onehot = F.one_hot(batch["label"], 4).float()
        return model["gen"](torch.cat([batch["noise"], onehot], dim=1)), onehot

    def hinge(model, batch):
        fake, onehot = generate(model, batch)
        real_score = model["disc"](torch.cat([batch["real"], onehot], dim=1))
        fake_score = model["disc"](torch.cat([fake.detach(), onehot], dim=1))
        return F.relu(1.0 - real_score).mean() + F.relu(1.0 + fake_score).mean()

    def g_loss(model, batch):
        return -model["disc"](torch.cat(generate(model, batch), dim=1)).mean()

    opt_g = torch.optim.Adam(model["gen"].parameters(), lr=1e-3, betas=(0.0, 0.9))
    opt_d = torch.optim.Adam(model["disc"].parameters(), lr=1e-3, betas=(0.0, 0.9))
    return _adversarial(model, opt_d, hinge, opt_g, g_loss, batches)


@program("WGAN-GP")
def wgan_gradient_penalty_sqrt(fixed):
    """sqrt of the squared gradient norm: the critic's gradient is exactly 0 where all its ReLUs are off."""
    g = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(6):
        t = torch.rand(20, generator=g) * 2 * math.pi
        real = torch.stack([t.cos(), 0.5 * (2 * t).sin()], dim=1) + 0.03 * torch.randn(20, 2, generator=g)
        batches.append((real, torch.randn(20, 3, generator=g).clamp(-4, 4), torch.rand(20, 1, generator=g)))
    model = nn.Module()
    model.generator = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 2))
    model.critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def gradient_penalty(critic, real, fake, alpha):
        x_hat = (alpha * real + (1 - alpha) * fake).requires_grad_(True)
        grads = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)[0]
        eps = 1e-12 if fixed else 0.0
        grad_norm = torch.sqrt(grads.pow(2).sum(dim=1) + eps)  # bug: wgan_gradient_penalty_sqrt
        return ((grad_norm - 1) ** 2).mean()

    def critic_loss(model, batch):
        real, z, alpha = batch
        fake = model.generator(z).detach()
        wasserstein = model.critic(fake).mean() - model.critic(real).mean()
        return wasserstein + 10.0 * gradient_penalty(model.critic, real, fake, alpha)

    def generator_loss(model, batch):
        return -model.critic(model.generator(batch[1])).mean()

    bounds = ((2, -2.0, 2.0), (3, -6.0, 6.0), (1, 0.0, 1.0))
    domain = tuple(TensorSpec(shape=("batch", n), min_value=low, max_value=high) for n, low, high in bounds)
    opt_c, opt_g = (torch.optim.RMSprop(net.parameters(), lr=2e-4) for net in (model.critic, model.generator))
    sizes = {"batch": (1, 32)}
    return _adversarial(model, opt_c, critic_loss, opt_g, generator_loss, batches, domain=domain, sizes=sizes)


@program("VAE")
def vae_bernoulli_likelihood_by_hand(fixed):
    """x log p + (1 - x) log(1 - p) with p a saturated sigmoid: 0 * log 0 even where the pixel is right."""
    batches = []
    for corners in torch.randint(0, 6, (5, 12, 2), generator=torch.Generator().manual_seed(4)).tolist():
        img = torch.zeros(12, 1, 8, 8)
        for i, (r, c) in enumerate(corners):
            img[i, 0, r : r + 3, c : c + 3] = 1.0
        batches.append(img)
    enc = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8))
    dec = nn.Sequential(nn.Linear(4, 96), nn.ReLU(), nn.Unflatten(1, (6, 4, 4)), nn.ConvTranspose2d(6, 1, 4, 2, 1))
    vae = nn.ModuleDict({"enc": enc, "dec": dec})

    def elbo_loss(model, x):
        mu, logvar = model["enc"](x).chunk(2, dim=1)
        logvar = logvar.clamp(-8.0, 8.0)
        logits = model["dec"](mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))
        kld = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1).mean()
        if fixed:
            return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.size(0) + kld
        recon = torch.sigmoid(logits)
        rec_loss = -(x * recon.log() + (1 - x) * (1 - recon).log())  # bug: vae_bernoulli_likelihood_by_hand
        return rec_loss.sum(dim=(1, 2, 3)).mean() + kld

    return TrainingSetup(model=vae, loss=elbo_loss, optimizer=torch.optim.Adam(vae.parameters(), 1e-3), batches=batches)


class CountVAE(nn.Module):
    """scVI-like model of expression counts with a negative binomial likelihood."""

    def __init__(self, n_genes=20, n_latent=3):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(n_genes, 16), nn.ReLU(), nn.Linear(16, 2 * n_latent))
        self.decoder = nn.Sequential(nn.Linear(n_latent, 16), nn.ReLU(), nn.Linear(16, n_genes))
        self.px_r = nn.Parameter(torch.ones(n_genes))

    def forward(self, counts):
        mean, logvar = self.encoder(counts).chunk(2, dim=-1)
        logvar = logvar.clamp(-10.0, 5.0)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        return self.decoder(z), F.softplus(self.px_r) + 1e-3, mean, logvar


@program("VAE of counts")
def vae_negative_binomial_rate(fixed):
    """exp of the decoder's output is the NB mean; raw counts of a deeply sequenced cell push it above 88."""
    g = torch.Generator().manual_seed(5)
    profile = torch.rand(20, generator=g) * 4
    batches = [torch.poisson(profile.expand(16, 20), generator=g).long() for _ in range(6)]
    model = CountVAE()

    def nb_log_prob(x, mu, theta, eps=1e-8):
        log_theta_mu = torch.log(theta + mu + eps)
        log_p = theta * (torch.log(theta + eps) - log_theta_mu) + x * (torch.log(mu + eps) - log_theta_mu)
        return log_p + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)

    def loss(model, batch):
        x = batch.float()
        px_scale, theta, mean, logvar = model(x)
        if fixed:
            px_scale = px_scale.clamp(-12.0, 12.0)
        px_rate = torch.exp(px_scale)  # bug: vae_negative_binomial_rate
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).sum(-1)
        return (kl - nb_log_prob(x, px_rate, theta).sum(-1)).mean()

    return TrainingSetup(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.01),
        batches=batches,
        domain=TensorSpec(shape=("cells", 20), dtype="int64", min_value=0, max_value=3000),
        sizes={"cells": (1, 32)},
    )


@program("sigma-VAE")
def sigma_vae_optimal_sigma(fixed):
    """The analytic sigma of a channel is 0 when it is off in the whole batch and its ReLU output is exactly 0."""
    g = torch.Generator().manual_seed(6)
    t = torch.arange(12) / 12.0
    wave = 0.5 + 0.4 * torch.sin(2 * math.pi * (t + torch.rand(5, 16, 1, generator=g)))
    batches = list((wave + 0.02 * torch.randn(5, 16, 12, generator=g)).clamp(0.01, 1.0))
    encode = nn.Sequential(nn.Linear(12, 24), nn.ELU(), nn.Linear(24, 4))
    decode = nn.Sequential(nn.Linear(2, 24), nn.ELU(), nn.Linear(24, 12), nn.ReLU())

    def loss(model, x):
        mu, log_std = encode(x).chunk(2, dim=-1)
        log_std = 3.0 * torch.tanh(log_std)
        x_hat = decode(mu + log_std.exp() * torch.randn_like(mu))
        mse = ((x - x_hat) ** 2).mean(dim=0)
        if fixed:
            mse = mse + 1e-6
        log_sigma = torch.log(torch.sqrt(mse))  # bug: sigma_vae_optimal_sigma
        kl = 0.5 * (mu**2 + torch.exp(2 * log_std) - 1 - 2 * log_std).sum(-1).mean()
        return log_sigma.sum() + 0.1 * kl

    model = nn.ModuleList([encode, decode])
    return TrainingSetup(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3),
        batches=batches,
        domain=TensorSpec(shape=("batch", 12), min_value=0.0, max_value=1.0),
        sizes={"batch": (1, 24)},
    )


@program("IWAE")
def iwae_log_mean_exp_by_hand(fixed):
    """exp of the importance weights' logarithms underflows for all samples of a datum: log(0)."""
    g = torch.Generator().manual_seed(7)
    template = (torch.rand(4, 20, generator=g) > 0.5).float()
    batches = []
    for _ in range(5):
        flip = (torch.rand(12, 20, generator=g) < 0.05).float()
        x = (template[torch.randint(0, 4, (12,), generator=g)] - flip).abs()
        batches.append((x, torch.randn(12, 5, 3, generator=g)))
    model = nn.ModuleDict(
        {
            "q": nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 6)),
            "p": nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 20)),
        }
    )

    def iwae_loss(model, batch):
        x, eps = batch
        mean, logvar = model["q"](x).unsqueeze(1).chunk(2, dim=-1)
        logvar = logvar.clamp(-6.0, 6.0)
        z = mean + (0.5 * logvar).exp() * eps
        x_logit = model["p"](z)
        log_px = (x.unsqueeze(1) * x_logit - F.softplus(x_logit)).sum(-1)
        log_w = log_px - 0.5 * (z**2).sum(-1) + 0.5 * (logvar + eps**2).sum(-1)
        if fixed:
            return -(torch.logsumexp(log_w, dim=1) - math.log(eps.size(1))).mean()
        return -torch.log(torch.exp(log_w).mean(dim=1)).mean()  # bug: iwae_log_mean_exp_by_hand

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return TrainingSetup(model=model, loss=iwae_loss, optimizer=optimizer, batches=batches)


class ReplicatedSoftmax(nn.Module):
    """RBM of word counts: the hidden biases are scaled by the length of the document."""

    def __init__(self, n_words, n_hidden):
        super().__init__()
        self.W = nn.Parameter(0.05 * torch.randn(n_words, n_hidden))
        self.a, self.b = nn.Parameter(torch.zeros(n_words)), nn.Parameter(torch.zeros(n_hidden))

    def hidden_input(self, v):
        return v @ self.W + v.sum(1, keepdim=True) * self.b

    @torch.no_grad()
    def gibbs(self, v):
        h = torch.bernoulli(torch.sigmoid(self.hidden_input(v)))
        return v.sum(1, keepdim=True) * torch.softmax(h @ self.W.t() + self.a, dim=1)


@program("RBM")
def rbm_free_energy_log1p_exp(fixed):
    """log(1 + exp(x)) in the free energy overflows for a long document."""
    g = torch.Generator().manual_seed(8)
    topics = torch.softmax(2 * torch.randn(3, 30, generator=g), dim=1)
    words = torch.multinomial(topics[torch.randint(0, 3, (96,), generator=g)], 25, replacement=True, generator=g)
    batches = list(F.one_hot(words, 30).sum(1).split(16))
    rbm = ReplicatedSoftmax(30, 8)

    def free_energy(v):
        wx_b = rbm.hidden_input(v)
        if fixed:
            return -(v @ rbm.a) - F.softplus(wx_b).sum(1)
        return -(v @ rbm.a) - torch.log(1 + torch.exp(wx_b)).sum(1)  # bug: rbm_free_energy_log1p_exp

    def contrastive_divergence(model, counts):
        v = counts.float()
        return (free_energy(v) - free_energy(model.gibbs(v))).mean()

    return TrainingSetup(
        model=rbm,
        loss=contrastive_divergence,
        optimizer=torch.optim.SGD(rbm.parameters(), lr=1e-3),
        batches=batches,
        domain=TensorSpec(shape=("docs", 30), dtype="int64", min_value=0, max_value=400),
        sizes={"docs": (1, 32)},
    )


@program("sparse autoencoder")
def sparse_autoencoder_kl_rho(fixed):
    """KL(rho || rho_hat): the mean activation of a saturated unit is exactly 1 (or 0)."""
    g = torch.Generator().manual_seed(9)
    basis = torch.randn(6, 24, generator=g)
    batches = [torch.randn(20, 6, generator=g) @ basis for _ in range(6)]
    encoder, decoder, rho, beta = nn.Linear(24, 16), nn.Linear(16, 24), 0.05, 3.0

    def loss(model, x):
        act = torch.sigmoid(encoder(x))
        rho_hat = act.mean(dim=0).clamp(1e-6, 1 - 1e-6) if fixed else act.mean(dim=0)
        kl_on = rho * torch.log(rho / rho_hat)  # bug: sparse_autoencoder_kl_rho
        kl_off = (1 - rho) * torch.log((1 - rho) / (1 - rho_hat))  # bug: sparse_autoencoder_kl_rho
        return F.mse_loss(decoder(act), x) + beta * (kl_on + kl_off).sum()

    model = nn.Sequential(encoder, nn.Sigmoid(), decoder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=batches)


@program("contractive autoencoder")
def contractive_autoencoder_frobenius(fixed):
    """sqrt of the Jacobian's squared norm: backward of sqrt(0) when every hidden unit is saturated."""
    g = torch.Generator().manual_seed(10)
    patterns = 4 * torch.rand(5, 16, generator=g)
    batches = [torch.softmax(3 * torch.randn(16, 5, generator=g), dim=1) @ patterns for _ in range(5)]
    model = nn.ParameterDict({"W": torch.randn(6, 16) * 0.3, "b_h": torch.zeros(6), "b_x": torch.zeros(16)})

    def loss(model, x):
        h = torch.sigmoid(F.linear(x, model["W"], model["b_h"]))
        x_hat = F.linear(h, model["W"].t(), model["b_x"])
        frob_sq = ((h * (1 - h)) ** 2) @ (model["W"] ** 2).sum(dim=1)
        if fixed:
            frob_sq = frob_sq + 1e-10
        contractive = torch.sqrt(frob_sq)  # bug: contractive_autoencoder_frobenius
        return F.mse_loss(x_hat, x) + 0.1 * contractive.mean()

    return TrainingSetup(model=model, loss=loss, optimizer=torch.optim.Adam(model.parameters(), 3e-3), batches=batches)


@program("denoising autoencoder")
def denoising_autoencoder_masked_error(fixed):
    """The error per row is divided by the number of corrupted entries; a row may have none."""
    g = torch.Generator().manual_seed(11)
    mixing = torch.randn(3, 18, generator=g)
    batches = []
    for _ in range(6):
        corrupt = torch.rand(14, 18, generator=g) < 0.3
        corrupt[:, 5] |= ~corrupt.any(dim=1)
        batches.append({"clean": torch.tanh(torch.randn(14, 3, generator=g) @ mixing), "corrupt": corrupt})
    net = nn.Sequential(nn.Linear(36, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 18))

    def loss(model, batch):
        m = batch["corrupt"].float()
        x_in = torch.cat([batch["clean"] * (1 - m), m], dim=1)
        err = (model(x_in) - batch["clean"]) ** 2
        count = m.sum(dim=1).clamp(min=1.0) if fixed else m.sum(dim=1)
        per_row = (err * m).sum(dim=1) / count  # bug: denoising_autoencoder_masked_error
        return per_row.mean()

    domain = {
        "clean": TensorSpec(shape=("batch", 18), min_value=-1.0, max_value=1.0),
        "corrupt": TensorSpec(shape=("batch", 18), dtype="bool", kind="mask", min_true=0),
    }
    optimizer, sizes = torch.optim.RMSprop(net.parameters(), lr=1e-3), {"batch": (1, 24)}
    return TrainingSetup(model=net, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes=sizes)


@program("categorical VAE")
def gumbel_softmax_by_hand(fixed):
    """-log(-log(u)) on noise from numpy: u is 0, or rounds to exactly 1 in float32."""
    g = torch.Generator().manual_seed(12)
    roots = torch.randint(0, 12, (5, 8), generator=g)
    noise = torch.rand(5, 16, 3, 6, generator=g).clamp(1e-5, 1 - 1e-5)
    batches = [(roots[torch.randint(0, 5, (16,), generator=g)], u) for u in noise]
    encode = nn.Sequential(nn.Embedding(12, 8), nn.Flatten(), nn.Linear(64, 18), nn.Unflatten(1, (3, 6)))
    model = nn.ModuleDict({"encode": encode, "decode": nn.Linear(18, 8 * 12)})

    def sample(logits, u, tau=0.7):
        if fixed:
            u = u.clamp(1e-6, 1 - 1e-6)
        gumbel = -torch.log(-torch.log(u))  # bug: gumbel_softmax_by_hand
        return torch.softmax((logits + gumbel) / tau, dim=-1)

    def loss(model, batch):
        words, u = batch
        logits = model["encode"](words)
        recon = model["decode"](sample(logits, u).flatten(1)).view(-1, 8, 12)
        log_q = F.log_softmax(logits, dim=-1)
        kl = (log_q.exp() * (log_q + math.log(6))).sum(dim=(1, 2)).mean()
        return F.cross_entropy(recon.transpose(1, 2), words) + 0.05 * kl

    words = TensorSpec(shape=("batch", 8), dtype="int64", min_value=0, max_value=11)
    uniform = TensorSpec(shape=("batch", 3, 6), min_value=0.0, max_value=1.0)
    return TrainingSetup(
        model=model,
        loss=loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
        batches=batches,
        domain=(words, uniform),
        sizes={"batch": (1, 20)},
    )


@program("VQ-VAE")
def vq_codebook_perplexity(fixed):
    """p log p of the mean soft assignment: a code that lies far from the whole batch has p = 0."""
    g = torch.Generator().manual_seed(13)
    anchors = torch.randn(4, 10, generator=g)
    picks = torch.randint(0, 4, (5, 18), generator=g)
    batches = [anchors[pick] + 0.2 * torch.randn(18, 10, generator=g) for pick in picks]
    enc, dec, codebook = nn.Linear(10, 4), nn.Linear(4, 10), nn.Embedding(8, 4)

    def loss(model, x):
        z_e = enc(x)
        dist = ((z_e.unsqueeze(1) - codebook.weight) ** 2).sum(-1)
        z_q = codebook(dist.argmin(dim=1))
        vq_loss = F.mse_loss(z_q, z_e.detach()) + 0.25 * F.mse_loss(z_e, z_q.detach())
        avg_probs = torch.softmax(-dist, dim=1).mean(dim=0)
        eps = 1e-10 if fixed else 0.0
        entropy = -torch.sum(avg_probs * torch.log(avg_probs + eps))  # bug: vq_codebook_perplexity
        recon = F.mse_loss(dec(z_e + (z_q - z_e).detach()), x)
        return recon + vq_loss - 0.01 * torch.exp(entropy)

    model = nn.ModuleList([enc, dec, codebook])
    return TrainingSetup(model=model, loss=loss, optimizer=torch.optim.Adam(model.parameters(), 2e-3), batches=batches)


@program("energy-based model")
def energy_model_nce_odds(fixed):
    """Noise contrastive estimation with exp(-E): overflows for a low energy, and 1 - h or h is 0 for a sure one."""
    g = torch.Generator().manual_seed(14)
    side = torch.randint(0, 2, (6, 24, 1), generator=g) * 2.0 - 1.0
    data = side + 0.3 * torch.randn(6, 24, 2, generator=g)
    batches = list(zip(data, (1.5 * torch.randn(6, 24, 2, generator=g)).clamp(-4, 4), strict=True))
    energy = nn.Sequential(nn.Linear(2, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 1))

    def log_noise(x):
        return -(x**2).sum(1) / (2 * 1.5**2) - math.log(2 * math.pi * 1.5**2)

    def posterior(x):
        p_model = torch.exp(-energy(x).squeeze(1))  # bug: energy_model_nce_odds
        return p_model / (p_model + torch.exp(log_noise(x)))

    def nce_loss(model, batch):
        data, noise = batch
        if fixed:
            logit_data, logit_noise = (-model(x).squeeze(1) - log_noise(x) for x in (data, noise))
            return F.softplus(-logit_data).mean() + F.softplus(logit_noise).mean()
        h_data, h_noise = posterior(data), posterior(noise)
        return -torch.log(h_data).mean() - torch.log(1 - h_noise).mean()  # bug: energy_model_nce_odds

    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)
    return TrainingSetup(model=energy, loss=nce_loss, optimizer=optimizer, batches=batches)
