"""ADHDeepNet layer by layer, as published: the reference for the fast order of `adhdeepnet`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .adhdeepnet import ADHDeepNet


class LiteralADHDeepNet(ADHDeepNet):
    """A network with the same parameters and results, which computes every layer of the published table literally."""

    def features(self, x: Tensor) -> Tensor:
        """The 256 features (batch, 256) that are the input of the last layer."""
        self._check(x)
        h = self.norm1(self.temporal(x.unsqueeze(1)))  # (batch, F1, n_chans, n_times)
        h = F.elu(self.norm2(self.spatial(h)))  # (batch, F1 * D, 1, n_times)
        h = F.dropout(F.avg_pool2d(h, (1, 2)), self.drop_prob, self.training)
        a, b = h, h
        for layer in self.tower_a:
            a = layer(a)
        for layer in self.tower_b:
            b = layer(b)
        a, b = F.avg_pool2d(a, (1, 2)), F.avg_pool2d(b, (1, 2))
        c = self.tower_c(h)[..., : a.shape[-1]]
        d = self.tower_d(F.avg_pool2d(h, (1, 2)))
        h = F.elu(self.norm3(torch.cat([a, b, d, c], dim=1)))  # (batch, 256, 1, n_times // 4)
        h = h * self.excite1(h.mean((2, 3)))[..., None, None]
        for layer in self.last:
            h = layer(h)
        h = F.elu(self.norm4(h))
        h = h * self.excite2(h.mean((2, 3)))[..., None, None]
        return F.dropout(h, self.drop_prob, self.training).mean((2, 3))
