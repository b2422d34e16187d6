"""200 training steps of a small AlexNet on patches of photos, every convolution compiled, beside plain torch."""

import copy
from collections import Counter
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from networks import SmallAlexNet
from skimage import data
from torch import Tensor, nn

import grouped_conv
from grouped_conv.planning.interpreting import through_driver

STEPS, BATCH, SIZE = 200, 4, 63
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
"""The colour photographs that scikit-image carries in its own package."""


def patches() -> Tensor:
    """Patches of all photos, normalised, `[STEPS, BATCH, 3, SIZE, SIZE]`."""
    photos = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1).float() / 127.5 - 1 for name in PHOTOS]
    generator = torch.Generator().manual_seed(0)
    cut = []
    for _ in range(STEPS * BATCH):
        photo = photos[int(torch.randint(len(photos), (), generator=generator))]
        top, left = (int(torch.randint(size - SIZE, (), generator=generator)) for size in photo.shape[1:])
        cut.append(photo[:, top : top + SIZE, left : left + SIZE])
    return torch.stack(cut).view(STEPS, BATCH, 3, SIZE, SIZE)


def train(model: nn.Module, batches: Tensor) -> list[float]:
    """Losses of telling by how many quarter turns a patch was rotated."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    labels = torch.arange(BATCH) % 4
    losses = []
    for batch in batches:
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
    plain, batches = copy.deepcopy(model), patches()
    wanted = train(plain, batches)
    with through_driver(), grouped_conv.trace() as calls:
        found = train(model, batches)
    paths = Counter((call.problem.direction, call.path) for call in calls if hasattr(call.problem, "direction"))
    assert not any(path == "aten" for _, path in paths)
    assert paths.total() == STEPS * (4 + 3 + 4)  # the image needs no gradient
    with capsys.disabled():
        print(f"\nlosses {found[0]:.4f} .. {found[-1]:.4f}, torch's {wanted[0]:.4f} .. {wanted[-1]:.4f}; {dict(paths)}")
    assert sum(found[-20:]) < 0.9 * sum(found[:20])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=2e-2, atol=2e-2)
