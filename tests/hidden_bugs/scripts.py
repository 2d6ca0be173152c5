"""Tutorial scripts, image, audio and generative models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


@program("softmax regression")
def softmax_script_cross_entropy(fixed):
    """log of a softmax output that underflows to 0 once a gap of logits passes about 104; 0 * -inf is NaN."""
    g = torch.Generator().manual_seed(11)
    n_pixels, n_class = 64, 10
    templates = torch.rand(n_class, n_pixels, generator=g)
    mnist = []
    for _ in range(6):
        digit = torch.randint(0, n_class, (32,), generator=g)
        pixels = 0.6 * templates[digit] + 0.4 * torch.rand(32, n_pixels, generator=g)
        mnist.append((pixels, F.one_hot(digit, n_class).float()))
    W, b = torch.zeros(n_pixels, n_class), torch.zeros(n_class)
    params = nn.ParameterDict({"W": nn.Parameter(W), "b": nn.Parameter(b)})

    def cross_entropy(params, batch):
        x, y_ = batch
        logits = x @ params["W"] + params["b"]
        if fixed:
            return -(y_ * torch.log_softmax(logits, 1)).sum(1).mean()
        y = torch.softmax(logits, 1)
        return -(y_ * torch.log(y)).sum(1).mean()  # bug: softmax_script_cross_entropy

    domain = (
        TensorSpec(shape=("batch", 64), min_value=0.0, max_value=1.0),
        TensorSpec(shape=("batch", 10), kind="one_hot"),
    )
    train_step = torch.optim.SGD(params.parameters(), lr=0.5)
    return TrainingSetup(
        model=params, loss=cross_entropy, optimizer=train_step, batches=mnist, domain=domain, sizes={"batch": (1, 64)}
    )


class _LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 12, 3)
        self.fc1, self.fc2 = nn.Linear(12 * 9, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.relu(self.conv2(x)), 2, ceil_mode=True)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@program("convolutional classifier")
def lenet_gather_log(fixed):
    """log of the picked softmax probability, which is exactly 0 for a confident mistake."""
    g = torch.Generator().manual_seed(12)
    glyphs = torch.rand(10, 1, 14, 14, generator=g)
    batches = []
    for _ in range(5):
        label = torch.randint(0, 10, (24,), generator=g)
        noise = torch.rand(24, 1, 14, 14, generator=g)
        batches.append({"image": (0.7 * glyphs[label] + 0.5 * noise - 0.1).clamp(0, 1), "label": label})
    net = _LeNet()

    def loss(net, batch):
        scores = net(batch["image"])
        rows = torch.arange(len(scores))
        if fixed:
            return -torch.log_softmax(scores, dim=1)[rows, batch["label"]].mean()
        picked = torch.softmax(scores, dim=1)[rows, batch["label"]]
        return torch.mean(-torch.log(picked))  # bug: lenet_gather_log

    return TrainingSetup(model=net, loss=loss, optimizer=torch.optim.Adam(net.parameters(), lr=1e-3), batches=batches)


@program("logistic regression")
def sigmoid_by_hand_backward(fixed):
    """exp(-z) overflows for z < -88: 1 / (1 + inf) is a fine 0 forward, but 0 * inf in the backward pass."""
    g = torch.Generator().manual_seed(13)
    truth = torch.randn(8, generator=g)
    batches = []
    for _ in range(6):
        x = torch.randn(40, 8, generator=g).clamp(-4, 4)
        batches.append((x, (x @ truth + 0.3 * torch.randn(40, generator=g) > 0).long()))
    model = nn.Sequential(nn.Linear(8, 12), nn.LeakyReLU(0.1), nn.Linear(12, 1))

    def sigmoid(z):
        if fixed:
            return torch.sigmoid(z)
        return 1.0 / (1.0 + torch.exp(-z))  # bug: sigmoid_by_hand_backward

    def loss(model, batch):
        x, y = batch
        p = sigmoid(model(x).squeeze(1))
        return F.binary_cross_entropy(p, y.float())

    domain = (
        TensorSpec(shape=("n", 8), min_value=-4.0, max_value=4.0),
        TensorSpec(shape=("n",), dtype="int64", min_value=0, max_value=1),
    )
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-3)
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes={"n": (1, 64)}
    )


@program("GAN")
def gan_minimax_log(fixed):
    """log(1 - D(G(z))) with a discriminator whose sigmoid is exactly 1 above 17 (or log(D) at exactly 0)."""
    g = torch.Generator().manual_seed(14)
    batches = []
    for _ in range(6):
        phi = 6.2832 * torch.rand(32, generator=g)
        ring = torch.stack([phi.cos(), phi.sin()], 1) + 0.05 * torch.randn(32, 2, generator=g)
        batches.append((ring, torch.rand(32, 6, generator=g) * 2 - 1))
    generator = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 2))
    discriminator = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1))
    gan = nn.ModuleDict({"G": generator, "D": discriminator})
    g_solver = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    d_solver = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def log_d(scores):
        return F.logsigmoid(scores) if fixed else torch.log(torch.sigmoid(scores))  # bug: gan_minimax_log

    def log_one_minus_d(scores):
        return F.logsigmoid(-scores) if fixed else torch.log(1.0 - torch.sigmoid(scores))  # bug: gan_minimax_log

    def d_loss(gan, batch):
        real, z = batch
        return -(log_d(gan["D"](real)) + log_one_minus_d(gan["D"](gan["G"](z).detach()))).mean()

    def training_step(batch):
        d_solver.zero_grad()
        loss = d_loss(gan, batch)
        loss.backward()
        d_solver.step()
        g_solver.zero_grad()
        g_loss = -log_d(gan["D"](gan["G"](batch[1]))).mean()
        g_loss.backward()
        g_solver.step()
        return loss.detach() + g_loss.detach()

    domain = (
        TensorSpec(shape=("n", 2), min_value=-1.5, max_value=1.5),
        TensorSpec(shape=("n", 6), min_value=-1.0, max_value=1.0),
    )
    return TrainingSetup(
        model=gan, loss=d_loss, optimizer=[g_solver, d_solver], batches=batches, training_step=training_step,
        domain=domain, sizes={"n": (1, 32)},
    )  # fmt: skip


class _VAE(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.enc, self.mu, self.logvar = nn.Linear(49, 24), nn.Linear(24, 4), nn.Linear(24, 4)
        self.dec = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 49))

    def encode(self, x):
        h = F.elu(self.enc(x))
        logvar = self.logvar(h)
        return self.mu(h), logvar.clamp(-10.0, 10.0) if self.fixed else logvar

    def forward(self, x, eps):
        mu, logvar = self.encode(x)
        z = mu + eps * torch.exp(0.5 * logvar)  # bug: vae_exp_logvar
        return self.dec(z), mu, logvar  # bug: vae_exp_logvar


@program("VAE")
def vae_exp_logvar(fixed):
    """exp(logvar) of an unbounded log-variance overflows in the KL term (or its root in the sampling step)."""
    g = torch.Generator().manual_seed(15)
    basis = torch.rand(3, 49, generator=g)
    batches = []
    for _ in range(5):
        x = (torch.rand(24, 3, generator=g) @ basis / 2).clamp(0, 1)
        batches.append({"data": {"x": x}, "eps": torch.randn(24, 4, generator=g).clamp(-5, 5)})
    vae = _VAE(fixed)

    def kl_divergence(mu, logvar):
        return -0.5 * torch.sum(1 + logvar - mu.pow(2) - torch.exp(logvar), dim=1)  # bug: vae_exp_logvar

    def elbo(vae, batch):
        x = batch["data"]["x"]
        recon, mu, logvar = vae(x, batch["eps"])
        rec = F.binary_cross_entropy_with_logits(recon, x, reduction="none").sum(1)
        return (rec + kl_divergence(mu, logvar)).mean()

    domain = {
        "data": {"x": TensorSpec(shape=("b", 49), min_value=0.0, max_value=1.0)},
        "eps": TensorSpec(shape=("b", 4), min_value=-5.0, max_value=5.0),
    }
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    return TrainingSetup(
        model=vae, loss=elbo, optimizer=optimizer, batches=batches, clip_grad_norm=5.0, domain=domain,
        sizes={"b": (2, 32)},
    )  # fmt: skip


class _RBM(nn.Module):
    def __init__(self, n_vis, n_hid, fixed):
        super().__init__()
        self.fixed = fixed
        self.W = nn.Parameter(0.05 * torch.randn(n_hid, n_vis))
        self.v_bias, self.h_bias = nn.Parameter(torch.zeros(n_vis)), nn.Parameter(torch.zeros(n_hid))

    def free_energy(self, v):
        wx_b = F.linear(v, self.W, self.h_bias)
        hidden = F.softplus(wx_b) if self.fixed else torch.log(1 + torch.exp(wx_b))  # bug: rbm_free_energy
        return -(v @ self.v_bias) - hidden.sum(1)

    @torch.no_grad()
    def gibbs(self, v, k=1):
        for _ in range(k):
            h = torch.bernoulli(torch.sigmoid(F.linear(v, self.W, self.h_bias)))
            v = torch.bernoulli(torch.sigmoid(F.linear(h, self.W.t(), self.v_bias)))
        return v


@program("RBM")
def rbm_free_energy(fixed):
    """exp of a hidden pre-activation above 88 overflows in log(1 + exp(.)) of the free energy."""
    g = torch.Generator().manual_seed(16)
    prototypes = (torch.rand(4, 36, generator=g) > 0.5).float()
    flips = [(torch.rand(20, 36, generator=g) < 0.08).float() for _ in range(6)]
    batches = [(prototypes[torch.randint(0, 4, (20,), generator=g)] - f).abs() for f in flips]
    rbm = _RBM(36, 16, fixed)

    def contrastive_divergence(rbm, v):
        return rbm.free_energy(v).mean() - rbm.free_energy(rbm.gibbs(v)).mean()

    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.05)
    return TrainingSetup(model=rbm, loss=contrastive_divergence, optimizer=optimizer, batches=batches)


class _UNet(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up, self.fuse = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.head, self.drop = nn.Conv2d(8, classes, 1), nn.Dropout(0.1)

    def forward(self, x):
        skip = torch.relu(self.down1(x))
        deep = self.drop(torch.relu(self.down2(F.max_pool2d(skip, 2))))
        return self.head(torch.relu(self.fuse(torch.cat([skip, self.up(deep)], 1))))


@program("U-Net")
def unet_pixel_softmax(fixed):
    """Pixel-wise softmax by hand: exp of a logit above 88 gives inf / inf."""
    g = torch.Generator().manual_seed(17)
    batches = []
    for _ in range(4):
        level = F.interpolate(torch.rand(6, 1, 4, 4, generator=g), scale_factor=3.0, mode="bilinear")
        target = (level[:, 0] > 0.4).long() + (level[:, 0] > 0.6).long()
        batches.append((level + 0.05 * torch.randn(6, 1, 12, 12, generator=g), target))

    def pixel_wise_softmax(output_map):
        if fixed:
            return torch.softmax(output_map, dim=1)
        exponential_map = torch.exp(output_map)  # bug: unet_pixel_softmax
        return exponential_map / exponential_map.sum(dim=1, keepdim=True)  # bug: unet_pixel_softmax

    def cost(net, batch):
        image, target = batch
        prediction = pixel_wise_softmax(net(image))
        onehot = F.one_hot(target, 3).permute(0, 3, 1, 2).float()
        entropy = -(onehot * torch.log(prediction.clamp(1e-10, 1.0))).sum(1).mean()
        intersection, union = (prediction * onehot).sum(), prediction.sum() + onehot.sum() + 1e-5
        return entropy + 1.0 - 2.0 * intersection / union

    net = _UNet()
    return TrainingSetup(model=net, loss=cost, optimizer=torch.optim.Adam(net.parameters(), lr=2e-3), batches=batches)


@program("autoencoder")
def sparse_code_kl(fixed):
    """KL sparsity penalty divides by the mean activation of a sigmoid unit (or 1 minus it), which can saturate."""
    g = torch.Generator().manual_seed(18)
    parts = torch.rand(5, 30, generator=g)
    batches = [{"patches": torch.sigmoid(3 * torch.randn(32, 5, generator=g) @ parts / 3)} for _ in range(5)]
    encoder, decoder, rho = nn.Linear(30, 14), nn.Linear(14, 30), 0.1
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def kl_bernoulli(rho_hat):
        if fixed:
            rho_hat = rho_hat.clamp(1e-4, 1 - 1e-4)
        return rho * torch.log(rho / rho_hat) + (1 - rho) * torch.log((1 - rho) / (1 - rho_hat))  # bug: sparse_code_kl

    def loss(model, batch):
        x = batch["patches"]
        code = torch.sigmoid(model["encoder"](x))
        penalty = kl_bernoulli(code.mean(0)).sum()
        return F.mse_loss(torch.sigmoid(model["decoder"](code)), x) + 0.02 * penalty

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-5)
    domain = {"patches": TensorSpec(shape=("n", 30), min_value=0.0, max_value=1.0)}
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=batches, domain=domain, sizes={"n": (1, 64)}
    )


@program("policy gradient")
def actor_critic_entropy(fixed):
    """Entropy bonus pi * log(pi) with a probability that underflows to 0; two optimizers."""
    g = torch.Generator().manual_seed(19)
    batches = []
    for _ in range(6):
        obs = torch.randn(24, 6, generator=g)
        action = torch.randint(0, 4, (24,), generator=g)
        reward = torch.where(action == obs[:, :4].argmax(1), 1.0, -0.2)
        batches.append({"obs": obs, "action": action, "return": reward})
    agent = nn.ModuleDict(
        {
            "actor": nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4)),
            "critic": nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)),
        }
    )
    actor_opt = torch.optim.Adam(agent["actor"].parameters(), lr=3e-3)
    critic_opt = torch.optim.SGD(agent["critic"].parameters(), lr=1e-2, momentum=0.9)

    def losses(agent, batch):
        value = agent["critic"](batch["obs"]).squeeze(1)
        preference = agent["actor"](batch["obs"])
        pi = torch.softmax(preference, dim=1)
        log_pi = torch.log_softmax(preference, dim=1) if fixed else torch.log(pi)  # bug: actor_critic_entropy
        entropy = -(pi * log_pi).sum(1).mean()
        advantage = (batch["return"] - value).detach()
        chosen = log_pi.gather(1, batch["action"][:, None]).squeeze(1)
        return -(chosen * advantage).mean() - 0.02 * entropy, F.smooth_l1_loss(value, batch["return"])

    def training_step(batch):
        policy_loss, value_loss = losses(agent, batch)
        for opt, part in ((actor_opt, policy_loss), (critic_opt, value_loss)):
            opt.zero_grad()
            part.backward()
            opt.step()
        return (policy_loss + value_loss).detach()

    return TrainingSetup(
        model=agent, loss=lambda agent, batch: sum(losses(agent, batch)), optimizer=(actor_opt, critic_opt),
        batches=batches, training_step=training_step,
    )  # fmt: skip


class _CapsNet(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.fixed = fixed
        self.primary = nn.Conv2d(1, 16, 5, stride=2, bias=False)
        self.route = nn.Parameter(0.1 * torch.randn(4 * 9, 5, 4, 6))

    def squash(self, s):
        squared = (s * s).sum(-1, keepdim=True)
        if self.fixed:
            return s * squared / ((1.0 + squared) * torch.sqrt(squared + 1e-8))
        return squared / (1.0 + squared) * s / torch.sqrt(squared)  # bug: capsule_squash_norm

    def forward(self, image):
        u = self.squash(self.primary(image).view(len(image), 4, 4, 9).transpose(2, 3).reshape(len(image), 36, 4))
        votes = torch.einsum("bni,ncio->bnco", u, self.route)
        return self.squash(votes.mean(1))


@program("capsules")
def capsule_squash_norm(fixed):
    """Squashing divides a capsule by its own length, which is 0 for a blank image (no bias in the convolution)."""
    g = torch.Generator().manual_seed(20)
    shapes = torch.rand(5, 1, 10, 10, generator=g)
    batches = []
    for _ in range(5):
        label = torch.randint(0, 5, (16,), generator=g)
        image = 0.8 * shapes[label] + 0.4 * torch.rand(16, 1, 10, 10, generator=g) - 0.2
        batches.append((image.clamp(0, 1), label))
    net = _CapsNet(fixed)

    def margin_loss(net, batch):
        image, label = batch
        squared = (net(image) ** 2).sum(-1)
        length = torch.sqrt(squared + 1e-8)
        t = F.one_hot(label, 5).float()
        return (t * F.relu(0.9 - length) ** 2 + 0.5 * (1 - t) * F.relu(length - 0.1) ** 2).sum(1).mean()

    return TrainingSetup(
        model=net, loss=margin_loss, optimizer=torch.optim.Adam(net.parameters(), lr=2e-3), batches=batches
    )


@program("audio")
def stft_magnitude_loss(fixed):
    """Magnitude sqrt(re^2 + im^2) of a silent output: finite loss, but an infinite slope times 0 backwards."""
    g = torch.Generator().manual_seed(21)
    t = torch.arange(256) / 256.0
    batches = []
    for _ in range(5):
        pitch, phase = 5 + 50 * torch.rand(8, 1, generator=g), 6.28 * torch.rand(8, 1, generator=g)
        clean = 0.6 * torch.sin(6.2832 * pitch * t + phase)
        batches.append({"noisy": (clean + 0.1 * torch.randn(8, 256, generator=g)).clamp(-1, 1), "clean": clean})
    denoiser = nn.Sequential(
        nn.Conv1d(1, 8, 9, padding=4, bias=False), nn.Tanh(), nn.Conv1d(8, 1, 9, padding=4, bias=False), nn.Tanh()
    )

    def magnitude(wave):
        spec = torch.stft(wave, 64, hop_length=32, window=torch.hann_window(64), return_complex=True)
        power = spec.real**2 + spec.imag**2
        return torch.sqrt(power + 1e-8) if fixed else torch.sqrt(power)  # bug: stft_magnitude_loss

    def loss(denoiser, batch):
        estimate = denoiser(batch["noisy"][:, None])[:, 0]
        spectral = (magnitude(estimate) - magnitude(batch["clean"])).abs().mean()
        return spectral + F.l1_loss(estimate, batch["clean"])

    wave = TensorSpec(shape=("clips", 256), min_value=-1.0, max_value=1.0)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    return TrainingSetup(
        model=denoiser, loss=loss, optimizer=optimizer, batches=batches, domain={"noisy": wave, "clean": wave},
        sizes={"clips": (1, 8)},
    )  # fmt: skip


@program("object detection")
def anchor_box_log(fixed):
    """Size target log(w / w_anchor) of an annotated box without extent."""
    g = torch.Generator().manual_seed(22)
    anchors = torch.tensor([[0.2, 0.2], [0.4, 0.25], [0.3, 0.6]])
    batches = []
    for _ in range(5):
        box = torch.cat([0.3 + 0.4 * torch.rand(12, 2, generator=g), 0.1 + 0.5 * torch.rand(12, 2, generator=g)], 1)
        image = box.repeat_interleave(36, 1).view(12, 4, 6, 6)[:, :3] + 0.05 * torch.rand(12, 3, 6, 6, generator=g)
        batches.append({"image": image.clamp(0, 1), "boxes": box})
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3 * 4))

    def encode(box):
        size = box[:, None, 2:].clamp(min=1e-3) if fixed else box[:, None, 2:]
        wh = torch.log(size / anchors)  # bug: anchor_box_log
        xy = box[:, None, :2].expand(-1, 3, -1)
        return torch.cat([(xy - 0.5) / anchors, wh], -1)

    def loss(net, batch):
        offsets = net(batch["image"]).view(-1, 3, 4)
        return F.smooth_l1_loss(offsets, encode(batch["boxes"]))

    domain = {
        "image": TensorSpec(shape=(12, 3, 6, 6), min_value=0.0, max_value=1.0),
        "boxes": TensorSpec(shape=(12, 4), min_value=0.0, max_value=1.0),
    }
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-4)
    return TrainingSetup(model=backbone, loss=loss, optimizer=optimizer, batches=batches, domain=domain)
