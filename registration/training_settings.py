"""Settings of a training, shared by `training.train` and the command. Loads no heavy library."""

from dataclasses import dataclass
from pathlib import Path

from .choices import Contrast, FlowHead, Norm, Task, TrainingSimilarity

CHECKPOINT = Path("checkpoints") / "last.ckpt"  # path within the output folder of a training


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How NestedMorph is trained.

    Args:
        synthetic: a folder of label maps with FreeSurfer's numbers; the network is then trained on images that are
            drawn from them, in place of pairs of scans.
        task: which images of a folder form a pair: T1w and diffusion of one session, the atlas and each T1w, or the T1w
            images of two subjects. A list of pairs ignores it.
        contrast: the image that represents a diffusion series: b0 (mean b0), dwi (mean of the weighted volumes) or fa.
        atlas: the atlas image, for the task atlas-to-patient.
        spacing_mm: voxel spacing of the grid that the network sees, the same along all axes.
        size: size of that grid in voxels; scans are cropped or padded to it.
        similarity: similarity loss: ncc (local correlation, one contrast), mi (mutual information) or mind
            (self-similarity).
        similarity_weight: weight of the similarity loss; 0 leaves it out, which needs a label_weight above 0.
        smoothness: weight of the roughness of the displacement (mean squared first derivatives, in voxels).
        label_weight: weight of the soft Dice loss over the label maps; 0 trains without them.
        correspondence_weight: weight of the distance in mm between the place in the head that a voxel shows and the
            place found for it, which is known for synthetic images only.
        diffeomorphic: the network predicts a velocity field, which is integrated by scaling and squaring, so that the
            map does not fold.
        flow_head: how the network computes the displacement: published (filters of one channel at full resolution, as
            in the published model) or quarter (filters of all 48 channels at a quarter of the resolution, enlarged
            linearly), for trainings of your own.
        mixer: mechanism by which the fixed image attends to the moving image at the two coarse stages, such as
            "bilevel(regions=4, top=4)"; by default linear attention over both images together, as published.
        width: channels of the first stage of the network, an even number from 16; by default 48, as published.
        norm: normalisation in the gates of the network: batch, as published, or group (groups of channels of each
            pair), which does not depend on the size of the batch.
        learning_rate: learning rate of the first epoch; it falls to 0 as (1 - epoch / epochs)^0.9.
        epochs: number of passes through the training pairs.
        epoch_steps: number of steps of an epoch on synthetic images.
        one_contrast_epochs: number of first epochs in which both synthetic images of a pair have one contrast, which is
            easier to learn.
        batch_size: number of pairs whose gradients are computed together.
        accumulate: number of batches whose gradients are averaged for a step.
        longest_gradient: longer gradients are scaled down to this length; 0 leaves them as they are.
        workers: number of further processes that draw synthetic images while the network learns from the ones before;
            the results do not depend on it.
        seed: seed for the split, the weights, the augmentation and the order of the pairs.
    """

    synthetic: Path | None = None
    task: Task = "t1-dwi"
    contrast: Contrast = "b0"
    atlas: Path | None = None
    spacing_mm: float = 2.0
    size: tuple[int, int, int] = (96, 96, 96)
    similarity: TrainingSimilarity = "mi"
    similarity_weight: float = 1.0
    smoothness: float = 1.0
    label_weight: float = 0.0
    correspondence_weight: float = 0.0
    diffeomorphic: bool = False
    flow_head: FlowHead = "published"
    mixer: str | None = None
    width: int | None = None
    norm: Norm = "batch"
    learning_rate: float = 1e-4
    epochs: int = 500
    epoch_steps: int = 250
    one_contrast_epochs: int = 0
    batch_size: int = 1
    accumulate: int = 1
    longest_gradient: float = 0.0
    workers: int = 0
    seed: int = 0
