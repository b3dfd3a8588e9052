"""A UNet that trains in seconds: two levels, convolutions, attention, random frozen weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention of one head over the pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return self.to_out(F.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    """Two 3x3 convolutions with the time between them, attention, and an MLP of four times the size."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time_channels, channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = Attention(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        x = x + self.conv2(F.silu(self.norm2(h)))
        tokens = x.flatten(2).mT
        tokens = tokens + self.attention(tokens)
        tokens = tokens + self.mlp(self.norm3(tokens))
        return tokens.mT.reshape(x.shape)


class ToyUNet(nn.Module):
    """4 channels in and out; 32 channels, 64 at half the size, and 32 again with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(32, 32)
        self.conv_in = nn.Conv2d(4, 32, 3, padding=1)
        self.down = Block(32, 32)
        self.halve = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.middle = Block(64, 32)
        self.narrow = nn.Conv2d(64, 32, 3, padding=1)
        self.up = Block(32, 32)
        self.conv_out = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Returns an output for x [B, 4, H, W], H and W even, at times t [B] in 0..1."""
        time = F.silu(self.time(waves(t)))
        skip = self.down(self.conv_in(x), time)
        h = self.middle(self.halve(skip), time)
        h = self.narrow(F.interpolate(h, scale_factor=2.0))
        return self.conv_out(self.up(skip + h, time))


def waves(t: Tensor) -> Tensor:
    """Returns 16 sines and 16 cosines of each time, of 1 to 1000 radians from 0 to 1."""
    phases = t[:, None] * torch.logspace(0, 3, 16, dtype=t.dtype)
    return torch.cat([phases.sin(), phases.cos()], dim=1)


def toy_unet(seed: int = 0) -> ToyUNet:
    """Returns a network with random weights that do not learn; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ToyUNet().eval().requires_grad_(False)
