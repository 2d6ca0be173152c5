"""Healthy convolutional classifiers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pytest_nanstab import TrainingSetup

from . import MakeOptimizer, healthy
from .healthy_data import cross_entropy, images


def recognise(model: nn.Module, optimizer: MakeOptimizer, channels: int = 1, size: int = 12) -> TrainingSetup:
    return TrainingSetup(
        model=model,
        loss=cross_entropy,
        optimizer=optimizer(model.parameters()),
        batches=images(channels, size),
    )


def he_init(model: nn.Module) -> nn.Module:
    """As in torchvision's ResNet."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def small_head(features: int) -> nn.Linear:
    """As in torchvision's MobileNet: normal with std 0.01."""
    head = nn.Linear(features, 4)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    return head


class LeNet(nn.Module):
    def __init__(self, activation: nn.Module, pool: type[nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(16 * 2 * 2, 48)
        self.fc2 = nn.Linear(48, 32)
        self.fc3 = nn.Linear(32, 4)
        self.activation, self.pool = activation, pool(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.conv1(x)))
        x = self.pool(self.activation(self.conv2(x))).flatten(1)
        return self.fc3(self.activation(self.fc2(self.activation(self.fc1(x)))))


@healthy(lr=0.03)
def lenet_tanh(optimizer):
    """The classic: tanh and average pooling."""
    return recognise(LeNet(nn.Tanh(), nn.AvgPool2d), optimizer)


@healthy(lr=0.03, optimizers=("adam", "adamw", "rmsprop"), precisions=("32-true",))
def lenet_sigmoid_xavier(optimizer):
    """The LeNet of "Dive into Deep Learning": sigmoid after four layers, small gradients in the first, Adam learns."""
    model = LeNet(nn.Sigmoid(), nn.AvgPool2d)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
    return recognise(model, optimizer)


@healthy(lr=0.03)
def lenet_relu(optimizer):
    """Max pooling: one pixel in four gets the gradient."""
    return recognise(LeNet(nn.ReLU(), nn.MaxPool2d), optimizer)


def vgg(norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for width in (12, 12, "pool", 24, 24, "pool", 32, 32, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 32), nn.ReLU(), nn.Dropout(), small_head(32))


@healthy(lr=0.02)
def vgg_plain_he(optimizer):
    """Six convolutions without norm, in-place ReLU, He's initialisation."""
    return recognise(he_init(vgg(norm=False)), optimizer)


@healthy(lr=0.01)
def vgg_batch_norm(optimizer):
    """Convolutions keep the bias that batch norm makes idle, as torchvision's do."""
    return recognise(he_init(vgg(norm=True)), optimizer)


class BasicBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or channels != planes:
            self.downsample = nn.Sequential(nn.Conv2d(channels, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + identity)


class ResNet(nn.Module):
    def __init__(self, zero_init_residual: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = BasicBlock(16, 16)
        self.layer2 = BasicBlock(16, 24, 2)
        self.layer3 = BasicBlock(24, 32, 2)
        self.fc = nn.Linear(32, 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


@healthy(lr=0.03)
def resnet(optimizer):
    """He's initialisation in fan-out mode, ReLU after the sum."""
    return recognise(ResNet(zero_init_residual=False), optimizer, channels=3)


@healthy(lr=0.03)
def resnet_zero_gamma(optimizer):
    """Zero gamma in the last norm of each block: its convolutions get no gradient in the first step."""
    return recognise(ResNet(zero_init_residual=True), optimizer, channels=3)


class FixupBlock(nn.Module):
    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(1))
        nn.init.kaiming_normal_(self.conv1.weight)
        self.conv1.weight.data.mul_(depth**-0.5)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.conv1(x + self.biases[0]) + self.biases[1])
        return F.relu(x + self.conv2(out + self.biases[2]) * self.scale + self.biases[3])


@healthy(lr=0.01)
def fixup_resnet(optimizer):
    """No norms: zero last convolutions, scaled first ones, scalar biases and multipliers, zero classifier."""
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    head = nn.Linear(16, 4)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    blocks = [FixupBlock(16, 4) for _ in range(4)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return recognise(nn.Sequential(stem, nn.ReLU(), nn.AvgPool2d(2), *blocks, *pool, head), optimizer, channels=3)


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, activation: type[nn.Module]):
        super().__init__()
        hidden = channels * 3
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def mobile(activation: type[nn.Module]) -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), activation()]
    blocks = [InvertedResidual(16, activation) for _ in range(3)]
    return he_init(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), small_head(16)))


@healthy(lr=0.03)
def mobilenet_relu6(optimizer):
    """Depthwise convolutions and ReLU6: some units rest at 6."""
    return recognise(mobile(nn.ReLU6), optimizer, channels=3)


@healthy(lr=0.03)
def mobilenet_hardswish(optimizer):
    """Exactly 0 below -3."""
    return recognise(mobile(nn.Hardswish), optimizer, channels=3)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 4, 1)
        self.fc2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(scale))))


@healthy(lr=0.03)
def squeeze_excite(optimizer):
    """Sigmoid gates from a bottleneck of few ReLU units, whose gradients are tiny."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, 2, 1), nn.BatchNorm2d(fan_out), nn.ReLU(), SqueezeExcite(fan_out)]
    return recognise(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)), optimizer, channels=3
    )


@healthy(lr=0.03)
def resnext_and_dilated(optimizer):
    """Grouped and dilated convolutions: the fan in counts the group's channels only."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=4, dilation=4, groups=4),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    return recognise(model, optimizer)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dwconv(x).permute(0, 2, 3, 1)
        out = self.gamma * self.pwconv2(F.gelu(self.pwconv1(self.norm(out))))
        return x + out.permute(0, 3, 1, 2)


@healthy(lr=0.02)
def convnext_layer_scale(optimizer):
    """Layer scale 1e-6: gradients inside the blocks are a millionth of those outside at first."""
    model = nn.Sequential(nn.Conv2d(3, 24, 4, 4), *[ConvNeXtBlock(24) for _ in range(3)])
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(24), nn.Linear(24, 4))
    return recognise(nn.Sequential(model, head), optimizer, channels=3, size=16)


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8, layers: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + growth * index) for index in range(layers))
        self.convs = nn.ModuleList(
            nn.Conv2d(16 + growth * index, growth, 3, padding=1, bias=False) for index in range(layers)
        )
        self.last = nn.BatchNorm2d(16 + growth * layers)
        self.classifier = nn.Linear(16 + growth * layers, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], dim=1)
        return self.classifier(F.relu(self.last(x)).mean(dim=(2, 3)))


@healthy(lr=0.03)
def densenet(optimizer):
    """Every layer sees all before it, concatenated."""
    return recognise(DenseNet(), optimizer)


class Inception(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.branch1 = nn.Conv2d(channels, 8, 1)
        self.branch3 = nn.Sequential(nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1))
        self.branch5 = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 5, padding=2))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(channels, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.pooled(x)], dim=1))


@healthy(lr=0.03)
def inception(optimizer):
    """Branches of different depth and width; a bottleneck of four channels."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), Inception(16), Inception(32), nn.MaxPool2d(2))
    return recognise(nn.Sequential(*model, nn.Flatten(), nn.Linear(32 * 9, 4)), optimizer)


@healthy(lr=0.03)
def group_norm_silu(optimizer):
    """The blocks of diffusion models, as a classifier."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1)]
    for _ in range(3):
        layers += [nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1)]
    return recognise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 4)), optimizer)


@healthy(lr=0.02)
def weight_standardised(optimizer):
    """Weights are standardised in the forward pass, so their scale is free."""

    class StandardisedConv(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
            weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    layers: list[nn.Module] = []
    for fan_in, fan_out in ((1, 16), (16, 16), (16, 16)):
        layers += [StandardisedConv(fan_in, fan_out, 3, 2, 1), nn.GroupNorm(4, fan_out), nn.ReLU()]
    return recognise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 4)), optimizer)
