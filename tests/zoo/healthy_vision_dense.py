"""Healthy convolutional networks with dense or geometric outputs: segmentation, detection, decoding, warping."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import healthy
from .healthy_data import images, masks, pictures
from .healthy_vision import recognise


def double_conv(fan_in: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(fan_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(fan_out),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = double_conv(1, 8)
        self.down2 = double_conv(8, 16)
        self.bottom = double_conv(16, 32)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.conv2 = double_conv(32, 16)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.conv1 = double_conv(16, 8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.conv2(torch.cat([two, self.up2(x)], dim=1))
        return self.head(self.conv1(torch.cat([one, self.up1(x)], dim=1)))


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    chance = torch.sigmoid(logits)
    overlap = 2 * (chance * mask).sum(dim=(1, 2, 3)) + 1
    return 1 - (overlap / (chance.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3)) + 1)).mean()


@healthy(lr=0.03)
def unet_dice_and_bce(optimizer):
    """Skips concatenate; the deepest layers get the smallest gradients."""

    def loss(model, batch):
        x, mask = batch
        logits = model(x)
        return F.binary_cross_entropy_with_logits(logits, mask) + dice(logits, mask)

    model = UNet()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=masks())


@healthy(lr=0.1, precisions=("32-true",))
def fully_convolutional_dice(optimizer):
    """Dice alone: gradients are small everywhere, since they are divided by the number of pixels."""

    def loss(model, batch):
        return dice(model(batch[0]), batch[1])

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)
    )
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=masks())


class DetectorHead(nn.Module):
    """A small backbone, and RetinaNet's two towers with normal 0.01 weights and a prior bias."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.classes = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 3, padding=1))
        self.boxes = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 3, padding=1))
        for tower in (self.classes, self.boxes):
            for layer in tower:
                if isinstance(layer, nn.Conv2d):
                    nn.init.normal_(layer.weight, std=0.01)
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(self.classes[-1].bias, -math.log((1 - 0.01) / 0.01))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(x)
        return self.classes(features), self.boxes(features)


@healthy(lr=0.03)
def detector_focal_loss(optimizer):
    """Towers of normal 0.01 convolutions: tiny activations and gradients at first."""

    def loss(model, batch):
        x, mask = batch
        logits, boxes = model(x)
        cells = F.avg_pool2d(mask, 4)
        positive = (cells > 0.5).to(x.dtype)
        chance = torch.sigmoid(logits)
        right = chance * positive + (1 - chance) * (1 - positive)
        plain = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
        weight = (0.25 * positive + 0.75 * (1 - positive)) * (1 - right) ** 2
        error = F.smooth_l1_loss(boxes, cells.expand_as(boxes), reduction="none") * positive
        return ((weight * plain).sum() + error.sum()) / positive.sum().clamp(min=1)

    model = DetectorHead()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=masks())


@healthy(lr=0.05)
def conv_autoencoder(optimizer):
    """Strided convolutions, a narrow code, transposed convolutions and a sigmoid output."""

    def loss(model, batch):
        return F.mse_loss(model(batch), batch)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 8),
        nn.Linear(8, 144),
        nn.ReLU(),
        nn.Unflatten(1, (16, 3, 3)),
        nn.ConvTranspose2d(16, 16, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
        nn.Sigmoid(),
    )
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=pictures())


class SpatialTransformer(nn.Module):
    """The localisation's last layer starts as the identity: zero weight, bias (1, 0, 0, 0, 1, 0)."""

    def __init__(self):
        super().__init__()
        self.localization = nn.Sequential(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.fc_loc = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6))
        self.fc_loc[2].weight.data.zero_()
        self.fc_loc[2].bias.data.copy_(torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float))
        self.conv = nn.Conv2d(1, 12, 3, 2, 1)
        self.fc = nn.Linear(12 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.fc_loc(self.localization(x).flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.fc(F.relu(self.conv(x)).flatten(1))


@healthy(lr=0.02, precisions=("32-true",))
def spatial_transformer(optimizer):
    """PyTorch's tutorial: identity transform at first, no gradient in the localisation network's first layers."""
    return recognise(SpatialTransformer(), optimizer)


class StyleNet(nn.Module):
    """Fast style transfer's shape: reflection padding, instance norm, residual blocks, tanh output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU()
        )
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.ReflectionPad2d(1),
                nn.Conv2d(16, 16, 3),
                nn.InstanceNorm2d(16, affine=True),
                nn.ReLU(),
                nn.ReflectionPad2d(1),
                nn.Conv2d(16, 16, 3),
                nn.InstanceNorm2d(16, affine=True),
            )
            for _ in range(2)
        )
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.body:
            x = x + block(x)
        return torch.tanh(self.head(x))


@healthy(lr=0.03)
def instance_norm_style(optimizer):
    """Biases before instance norm get only rounding as gradient."""

    def loss(model, batch):
        x = batch[0]
        target = torch.tanh(0.5 * x.flip(1))
        return F.mse_loss(model(x), target)

    model = StyleNet()
    return TrainingSetup(
        model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=images(channels=3, size=12, rows=8)
    )


class SuperResolution(nn.Module):
    """ESPCN with the orthogonal initialisation of PyTorch's example."""

    def __init__(self, factor: int = 2):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 5, 1, 2)
        self.conv2 = nn.Conv2d(24, 24, 3, 1, 1)
        self.conv3 = nn.Conv2d(24, 12, 3, 1, 1)
        self.conv4 = nn.Conv2d(12, factor**2, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(factor)
        gain = nn.init.calculate_gain("relu")
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.orthogonal_(conv.weight, gain)
        nn.init.orthogonal_(self.conv4.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return self.shuffle(self.conv4(x))


@healthy(lr=0.01, optimizers=("sgd", "adam", "adamw"))
def super_resolution(optimizer):
    """The last convolution is orthogonal with gain 1 in front of a pixel shuffle."""

    def loss(model, batch):
        return F.mse_loss(model(F.avg_pool2d(batch, 2)), batch)

    model = SuperResolution()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=pictures())


class DnCNN(nn.Module):
    """Predicts the noise; the last convolution has no bias and no norm."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x)


@healthy(lr=0.03)
def denoising_cnn(optimizer):
    """The residual is the answer, so the network's output starts near the identity."""

    def loss(model, batch):
        return F.mse_loss(model(batch + 0.3 * torch.randn_like(batch)), batch)

    model = DnCNN()
    return TrainingSetup(model=model, loss=loss, optimizer=optimizer(model.parameters()), batches=pictures(rows=8))
