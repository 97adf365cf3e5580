"""CIFAR-10 with the paper's recipe (section 4.2): batch 128, lr 0.1, divided by 10 at 32k and 48k steps, 64k in all.

The paper trains on 45,000 images to choose and on all 50,000 for its table; train_data.split="train45k" with
test_data.split="val5k" is the former.
"""

from resdet.classification.build import classifier
from resdet.datasets.resident import test_cifar, training_cifar

task = "classification"
metric = "classification"
train_data = dict(type=training_cifar, root="data/cifar-10-python.tar.gz")
test_data = dict(type=test_cifar, root="data/cifar-10-python.tar.gz")
model = dict(
    type=classifier,
    backbone="cifar-resnet20",
    # Differs from the paper: it subtracts the mean image; these are the means and deviations of the training set's
    # channels, as every reimplementation has them.
    mean=(125.3, 123.0, 113.9),
    std=(63.0, 62.1, 66.7),
    window=8,
)
loader = dict(batch_size=128, test_batch_size=500)
optimizer = dict(lr=0.1, batch_size=128, weight_decay=1e-4)
schedule = dict(unit="step", length=64_000, milestones=(32_000, 48_000), validate_every=2_000)
run = dict(log_every=100, checkpoint_every=1_000)
