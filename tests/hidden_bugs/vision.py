"""Small vision models: LeNet, spatial transformer, U-Net, denoisers, capsules, key points, image statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_nanstab import TrainingSetup
from pytest_nanstab.strategies import TensorSpec

from . import program


def _pictures(g, count, channels, size, low=0.05, high=0.95):
    """Smooth random shapes with some grain, never flat."""
    coarse = torch.rand(count, channels, 4, 4, generator=g)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    grain = torch.rand(count, channels, size, size, generator=g)
    return low + (high - low) * (0.8 * smooth + 0.2 * grain)


def _labelled(seed, batches, count, channels, size, classes):
    """Pictures with a bright stripe whose place is the class."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(batches):
        x = _pictures(g, count, channels, size, 0.05, 0.6)
        y = torch.randint(classes, (count,), generator=g)
        rows = (torch.arange(size) * classes // size).expand(count, size) == y[:, None]
        out.append((x + 0.35 * rows[:, None, :, None], y))
    return out


def _unit(*shape):
    return TensorSpec(shape=shape, dtype="float32", min_value=0.0, max_value=1.0)


def _with_adam(model, loss, lr, data, **more):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data, **more)


def _labels(classes):
    return TensorSpec(shape=("batch",), dtype="int64", min_value=0, max_value=classes - 1)


class LeNet(nn.Module):
    """LeNet-5 for 16 x 16 pictures."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 12, 3)
        self.fc1, self.fc2 = nn.Linear(108, 40), nn.Linear(40, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@program("LeNet")
def lenet_partition_function(fixed):
    """log(sum(exp(logits))) without taking off the maximum: exp overflows above 88."""
    model = LeNet()

    def loss(net, batch):
        images, labels = batch
        logits = net(images)
        if fixed:
            log_z = torch.logsumexp(logits, dim=1)
        else:
            log_z = torch.log(torch.exp(logits).sum(dim=1))  # bug: lenet_partition_function
        return (log_z - logits[torch.arange(len(labels)), labels]).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    data = _labelled(1, 5, 12, 1, 16, 5)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data, clip_grad_norm=2.0)


class SpatialTransformer(nn.Module):
    """Classifier behind an affine warp that a localisation net predicts."""

    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12), nn.ReLU())
        self.theta = nn.Linear(12, 6)
        nn.init.zeros_(self.theta.weight)
        self.theta.bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        self.classify = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(294, 4))

    def forward(self, x):
        theta = self.theta(self.look(x)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return self.classify(F.grid_sample(x, grid, align_corners=False)), theta


@program("spatial transformer")
def log_area_of_warp(fixed):
    """The log of the warp's determinant, which is negative once the warp mirrors the picture."""
    model = SpatialTransformer()

    def loss(net, batch):
        logits, theta = net(batch[0])
        det = theta[:, 0, 0] * theta[:, 1, 1] - theta[:, 0, 1] * theta[:, 1, 0]
        if fixed:
            det = det.clamp(min=1e-3)
        log_area = torch.log(det)  # bug: log_area_of_warp
        return F.cross_entropy(logits, batch[1]) + 0.5 * (log_area**2).mean()

    domain = (_unit("batch", 1, 16, 16), _labels(4))
    data = _labelled(2, 5, 8, 1, 16, 4)
    return _with_adam(model, loss, 1e-3, data, sizes={"batch": (1, 16)}, domain=domain)


def _block(cin, cout):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU(), nn.Conv2d(cout, cout, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    """A U-Net of two levels."""

    def __init__(self):
        super().__init__()
        self.down, self.bottom = _block(1, 6), _block(6, 12)
        self.up, self.merge = nn.ConvTranspose2d(12, 6, 2, stride=2), _block(12, 6)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        skip = self.down(x)
        up = self.up(self.bottom(F.max_pool2d(skip, 2)))
        return self.out(self.merge(torch.cat([skip, up], dim=1)))


@program("U-Net")
def unet_weighted_pixel_loss(fixed):
    """Pixel-wise softmax, then its log, weighted by a border map: p underflows at a wrong pixel."""
    g = torch.Generator().manual_seed(3)
    data = []
    for _ in range(4):
        image = _pictures(g, 4, 1, 16)
        mask = torch.bucketize(F.avg_pool2d(image, 3, 1, 1)[:, 0], torch.tensor([0.4, 0.6]))
        border = F.max_pool2d(mask[:, None].float(), 3, 1, 1)[:, 0] - mask
        data.append({"image": image, "mask": mask, "weight": 1 + 2 * border})
    model = UNet()

    def loss(net, batch):
        logits = net(batch["image"])
        if fixed:
            log_prob = F.log_softmax(logits, dim=1)
        else:
            log_prob = torch.log(F.softmax(logits, dim=1))  # bug: unet_weighted_pixel_loss
        one_hot = F.one_hot(batch["mask"], 3).permute(0, 3, 1, 2)
        return -(batch["weight"][:, None] * one_hot * log_prob).sum(1).mean()  # bug: unet_weighted_pixel_loss

    return _with_adam(model, loss, 2e-3, data)


@program("segmentation")
def focal_tversky(fixed):
    """(1 - TI) ** 0.75 has an infinite slope at a perfect score, e.g. an empty mask found empty (backward only)."""
    g = torch.Generator().manual_seed(4)
    images = [_pictures(g, 6, 1, 16) for _ in range(5)]
    data = [(x, (F.avg_pool2d(x, 5, 1, 2) > 0.5).float()) for x in images]
    middle = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(8, 1, 1))

    def loss(net, batch, alpha=0.7, smooth=1.0):
        p, t = torch.sigmoid(net(batch[0])).flatten(1), batch[1].flatten(1)
        tp = (p * t).sum(1)
        fn, fp = ((1 - p) * t).sum(1), (p * (1 - t)).sum(1)
        index = (tp + smooth) / (tp + alpha * fn + (1 - alpha) * fp + smooth)
        if fixed:
            return ((1 - index).clamp(min=1e-5) ** 0.75).mean()
        return ((1 - index) ** 0.75).mean()  # bug: focal_tversky

    domain = (_unit("batch", 1, 16, 16), _unit("batch", 1, 16, 16))
    return _with_adam(model, loss, 3e-3, data, sizes={"batch": (1, 8)}, domain=domain)


@program("SSIM")
def ssim_contrast_term(fixed):
    """sqrt(E[x^2] - E[x]^2) of a flat window: rounding makes it negative, or 0 with an infinite slope."""
    g = torch.Generator().manual_seed(5)
    clean = [_pictures(g, 6, 1, 16) for _ in range(5)]
    data = [((c + 0.1 * torch.randn(c.shape, generator=g)).clamp(0, 1), c) for c in clean]
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 3, padding=1))

    def statistics(x, window=7):
        mu = F.avg_pool2d(x, window, stride=1)
        var = F.avg_pool2d(x * x, window, stride=1) - mu * mu
        if fixed:
            var = var.clamp(min=1e-6)
        return mu, torch.sqrt(var)  # bug: ssim_contrast_term

    def loss(net, batch, c1=0.01**2, c2=0.03**2):
        noisy, target = batch
        restored = torch.clamp(noisy + net(noisy), -2, 3)
        mu_x, sd_x = statistics(restored)
        mu_y, sd_y = statistics(target)
        luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
        contrast = (2 * sd_x * sd_y + c2) / (sd_x**2 + sd_y**2 + c2)
        return F.l1_loss(restored, target) + 1 - (luminance * contrast).mean()

    return _with_adam(model, loss, 1e-3, data)


@program("PSNR")
def psnr_of_blank_frame(fixed):
    """A blank frame passes a bias-free residual net unchanged: the error is 0 and the PSNR infinite."""
    g = torch.Generator().manual_seed(6)
    clean = [_pictures(g, 6, 1, 14) for _ in range(5)]
    data = [((c + 0.08 * torch.randn(c.shape, generator=g)).clamp(0, 1), c) for c in clean]
    body = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU()]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU(), *body, nn.Conv2d(8, 1, 3, padding=1, bias=False)
    )

    def loss(net, batch):
        noisy, target = batch
        denoised = noisy - net(noisy)
        mse = ((denoised - target) ** 2).mean(dim=(1, 2, 3))
        if fixed:
            mse = mse + 1e-8
        psnr = 10 * torch.log10(1.0 / mse)  # bug: psnr_of_blank_frame
        return -psnr.mean()

    domain = (_unit("batch", 1, 14, 14), _unit("batch", 1, 14, 14))
    return _with_adam(model, loss, 1e-3, data, sizes={"batch": (1, 8)}, domain=domain)


@program("local contrast normalisation")
def local_contrast_normalisation(fixed):
    """A picture without any contrast (a black frame) is divided by its deviation, 0."""
    ramp = torch.exp(-(torch.linspace(-1.5, 1.5, 5) ** 2))
    kernel = (ramp[:, None] * ramp / ramp.sum() ** 2)[None, None]
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(128, 4))

    def blur(x):
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel)

    def normalise(x):
        centred = x - blur(x)
        sigma = torch.sqrt(blur(centred**2))
        divisor = torch.maximum(sigma, sigma.mean(dim=(1, 2, 3), keepdim=True))
        if fixed:
            divisor = divisor.clamp(min=1e-4)
        return centred / divisor  # bug: local_contrast_normalisation

    def loss(net, batch):
        return F.cross_entropy(net(normalise(batch[0])), batch[1])

    domain = (_unit("batch", 1, 14, 14), _labels(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = _labelled(7, 6, 10, 1, 14, 4)
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer, batches=data, sizes={"batch": (1, 16)}, domain=domain
    )


class GDN(nn.Module):
    """Generalised divisive normalisation across channels."""

    def __init__(self, channels, eps):
        super().__init__()
        self.eps = eps
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.3 * torch.eye(channels))

    def forward(self, x):
        pool = F.conv2d(x**2, (self.gamma**2)[:, :, None, None], self.beta**2 + self.eps)
        return x * torch.rsqrt(pool)  # bug: divisive_normalisation


@program("divisive normalisation")
def divisive_normalisation(fixed):
    """A beta of exactly zero leaves nothing under the root where a rectified channel is silent: 0 * inf."""
    g = torch.Generator().manual_seed(8)
    data = [_pictures(g, 6, 3, 12) for _ in range(5)]
    eps = 1e-5 if fixed else 0.0
    decoder = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), GDN(8, eps), decoder)

    def loss(net, image):
        return F.mse_loss(torch.sigmoid(net(image)), image)

    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data)


class Distilled(nn.Module):
    """A student and its frozen, bias-free teacher; both give a feature map, the student also gives scores."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False)
        ).requires_grad_(False)
        self.student = nn.Sequential(nn.Conv2d(1, 6, 5, stride=2, padding=2), nn.ELU())
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        features = self.student(x)
        rows = features.unflatten(2, (4, 2)).mean(dim=(3, 4))
        return self.head(rows.transpose(1, 2)).diagonal(dim1=1, dim2=2), features, torch.relu(self.teacher(x))


@program("knowledge distillation")
def attention_transfer(fixed):
    """The attention map of a black picture through a bias-free teacher is zero, and is divided by its norm."""
    model = Distilled()

    def attention(features):
        energy = features.pow(2).mean(dim=1).flatten(1)
        if fixed:
            return energy / torch.sqrt(energy.pow(2).sum(dim=1, keepdim=True) + 1e-6)
        return energy / energy.norm(dim=1, keepdim=True)  # bug: attention_transfer

    def loss(net, batch):
        scores, student, teacher = net(batch[0])
        transfer = (attention(student) - attention(teacher)).pow(2).mean()
        return F.cross_entropy(scores, batch[1]) + 50.0 * transfer

    domain = (_unit("batch", 1, 16, 16), _labels(4))
    data = _labelled(9, 6, 10, 1, 16, 4)
    return _with_adam(model, loss, 3e-3, data, sizes={"batch": (1, 16)}, domain=domain)


@program("histogram loss")
def soft_histogram_kl(fixed):
    """A bin that no pixel is near gets exactly 0 by underflow of the kernel, and its log is taken."""
    g = torch.Generator().manual_seed(10)
    data = [(_pictures(g, 4, 3, 10, 0.02, 0.6), _pictures(g, 4, 3, 10, 0.02, 0.98)) for _ in range(5)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), nn.Conv2d(8, 3, 1), nn.Sigmoid())
    centres = torch.linspace(0, 1, 12)

    def histogram(image, bandwidth=0.05):
        distance = (image.flatten(2).unsqueeze(-1) - centres) / bandwidth
        counts = torch.exp(-0.5 * distance**2).sum(dim=2)
        return counts / (counts.sum(dim=-1, keepdim=True) + 1e-6)

    def loss(net, batch):
        source, style = batch
        graded = net(source)
        want, have = histogram(style), histogram(graded)
        if fixed:
            want, have = want + 1e-6, have + 1e-6
        divergence = (want * (torch.log(want) - torch.log(have))).sum(-1)  # bug: soft_histogram_kl
        return divergence.mean() + F.l1_loss(graded.mean(1), source.mean(1))

    return _with_adam(model, loss, 3e-3, data)


class Inpainter(nn.Module):
    """Fills holes; the mask is a second channel."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, image, known):
        filled = self.net(torch.cat([image * known, known], dim=1))
        return torch.where(known > 0.5, image, filled), filled


@program("total variation")
def isotropic_total_variation(fixed):
    """sqrt(dx^2 + dy^2) where neighbouring output pixels are equal has an infinite slope (backward only)."""
    g = torch.Generator().manual_seed(11)
    pictures = [_pictures(g, 5, 1, 12) for _ in range(6)]
    data = [(p, torch.rand(p.shape, generator=g) < 0.75) for p in pictures]
    model = Inpainter()

    def total_variation(x):
        dx = x[:, :, :-1, 1:] - x[:, :, :-1, :-1]
        dy = x[:, :, 1:, :-1] - x[:, :, :-1, :-1]
        if fixed:
            return torch.sqrt(dx**2 + dy**2 + 1e-6).mean()
        return torch.sqrt(dx**2 + dy**2).mean()  # bug: isotropic_total_variation

    def loss(net, batch):
        picture, known = batch
        result, filled = net(picture, known.float())
        return F.l1_loss(filled, picture) + 0.1 * total_variation(filled) + 0.1 * result.var()

    domain = (_unit("batch", 1, 12, 12), TensorSpec(shape=("batch", 1, 12, 12), dtype="bool", kind="mask"))
    return _with_adam(model, loss, 2e-3, data, sizes={"batch": (1, 8)}, domain=domain)


class CapsuleNet(nn.Module):
    """Primary capsules of 4 numbers, routed to one capsule a class in two rounds."""

    def __init__(self, fixed):
        super().__init__()
        self.eps = 1e-6 if fixed else 0.0
        self.primary = nn.Conv2d(1, 12, 7, stride=3)
        self.route = nn.Parameter(0.3 * torch.randn(48, 3, 6, 4))

    def squash(self, s):
        square = (s**2).sum(dim=-1, keepdim=True)
        scale = square / (1 + square)
        return scale * s / torch.sqrt(square + self.eps)  # bug: capsule_squash

    def forward(self, x):
        u = self.squash(self.primary(x).view(len(x), 48, 4))
        votes = torch.einsum("pcij,bpj->bpci", self.route, u)
        agreement = torch.zeros(votes.shape[:3])
        for _ in range(2):
            v = self.squash((torch.softmax(agreement, dim=2).unsqueeze(-1) * votes).sum(dim=1))
            agreement = agreement + (votes.detach() * v.detach().unsqueeze(1)).sum(-1)
        return (v**2).sum(-1)


@program("capsules")
def capsule_squash(fixed):
    """The squash of a capsule whose votes are all zero (routing weights exactly zero): 0 / 0."""
    model = CapsuleNet(fixed)

    def loss(net, batch):
        activity = net(batch[0])
        target = F.one_hot(batch[1], 3)
        present, absent = F.relu(0.8 - activity) ** 2, F.relu(activity - 0.1) ** 2
        return (target * present + 0.5 * (1 - target) * absent).sum(1).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=_labelled(12, 5, 8, 1, 16, 3))


@program("key points")
def heatmap_spread(fixed):
    """The standard deviation of a heat map that has become one single pixel: sqrt at 0 (backward only)."""
    g = torch.Generator().manual_seed(13)
    axis = torch.linspace(-1, 1, 12)
    data = []
    for _ in range(5):
        points = torch.rand(6, 2, 2, generator=g) * 1.4 - 0.7
        bumps = torch.exp(-8 * ((axis - points[..., :1])[:, :, None] ** 2 + (axis - points[..., 1:])[..., None] ** 2))
        data.append((bumps + 0.1 * torch.rand(bumps.shape, generator=g), points))
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))

    def moments(heat):
        p = torch.softmax(2.0 * heat.flatten(2), dim=-1).view_as(heat)
        px, py = p.sum(dim=2), p.sum(dim=3)
        x, y = (px * axis).sum(-1, keepdim=True), (py * axis).sum(-1, keepdim=True)
        variance = (px * (axis - x) ** 2).sum(-1) + (py * (axis - y) ** 2).sum(-1)
        if fixed:
            variance = variance + 1e-6
        return torch.cat([x, y], dim=-1), torch.sqrt(variance)  # bug: heatmap_spread

    def loss(net, batch):
        place, spread = moments(net(batch[0]))
        return F.mse_loss(place, batch[1]) + 0.05 * ((spread - 0.3) ** 2).mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer, batches=data)


@program("low-light enhancement")
def srgb_transfer_curve(fixed):
    """torch.where hides the power of a black pixel in the forward pass, not in the backward pass."""
    g = torch.Generator().manual_seed(14)
    bright = [_pictures(g, 4, 3, 12) for _ in range(5)]
    data = [(0.004 + 0.3 * b**2, b) for b in bright]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh())

    def linear_to_srgb(linear):
        base = linear.clamp(min=0.0031308) if fixed else linear
        curved = 1.055 * base ** (1 / 2.4) - 0.055  # bug: srgb_transfer_curve
        return torch.where(linear <= 0.0031308, 12.92 * linear, curved)

    def loss(net, batch):
        raw, target = batch
        curve = net(raw)
        enhanced = raw
        for _ in range(2):
            enhanced = enhanced + curve * enhanced * (1 - enhanced)
        return F.l1_loss(linear_to_srgb(enhanced), target)

    domain = (_unit("batch", 3, 12, 12), _unit("batch", 3, 12, 12))
    return _with_adam(model, loss, 2e-3, data, sizes={"batch": (1, 8)}, domain=domain)
