"""200 training steps of a small AlexNet on patches of a photo, every convolution compiled, beside plain torch."""

import copy
from collections import Counter
from importlib import resources
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_training import SmallAlexNet
from torch import Tensor, nn

import grouped_conv
from grouped_conv.images import BUNDLED_PHOTO
from grouped_conv.interpreting import through_driver

STEPS, BATCH, SIZE = 200, 4, 63


def patches() -> Tensor:
    """Patches of the bundled photo, normalised."""
    path = resources.files("grouped_conv.data") / BUNDLED_PHOTO
    photo = torch.from_numpy(np.array(Image.open(str(path)).convert("RGB")))
    pixels = photo.permute(2, 0, 1).float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    height, width = pixels.shape[1:]
    tops = torch.randint(height - SIZE, (STEPS * BATCH,), generator=generator)
    lefts = torch.randint(width - SIZE, (STEPS * BATCH,), generator=generator)
    cut = [pixels[:, t : t + SIZE, s : s + SIZE] for t, s in zip(tops.tolist(), lefts.tolist(), strict=True)]
    return torch.stack(cut).view(STEPS, BATCH, 3, SIZE, SIZE)


def train(model: nn.Module, data: Tensor) -> list[float]:
    """Losses of telling by how many quarter turns a patch was rotated."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    labels = torch.arange(BATCH) % 4
    losses = []
    for batch in data:
        turned = torch.stack(
            [torch.rot90(image, int(label), (1, 2)) for image, label in zip(batch, labels, strict=True)]
        )
        loss = F.cross_entropy(model(turned.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.native
@pytest.mark.sweep
def test_two_hundred_steps(native: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = SmallAlexNet().to(memory_format=torch.channels_last)
    plain, data = copy.deepcopy(model), patches()
    wanted = train(plain, data)
    with through_driver(), grouped_conv.trace() as calls:
        found = train(model, data)
    paths = Counter((call.problem.direction, call.path) for call in calls if hasattr(call.problem, "direction"))
    assert not any(path == "aten" for _, path in paths)
    assert paths.total() == STEPS * (4 + 3 + 4)  # the image needs no gradient
    with capsys.disabled():
        print(f"\nlosses {found[0]:.4f} .. {found[-1]:.4f}, torch's {wanted[0]:.4f} .. {wanted[-1]:.4f}; {dict(paths)}")
    assert sum(found[-20:]) < 0.9 * sum(found[:20])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=2e-2, atol=2e-2)
