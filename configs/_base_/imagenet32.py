"""200 classes of ImageNet at 32x32, in memory, enlarged to 64 for the ImageNet stem; a recipe of today's kind."""

from resdet.classification.build import classifier
from resdet.datasets.small_images import test_small_images, training_small_images

task = "classification"
metric = "classification"
train_data = dict(type=training_small_images, root="data/imagenet32")
test_data = dict(type=test_small_images, root="data/imagenet32")
model = dict(type=classifier, backbone="resnet18-half", window=2, label_smoothing=0.1)
loader = dict(batch_size=256, test_batch_size=500)
optimizer = dict(lr=0.2, batch_size=256, nesterov=True, weight_decay=2e-4)
schedule = dict(length=40, policy="cosine", warmup_steps=400, validate_every=4)
run = dict(log_every=50, checkpoint_every=400)
