"""ResNet-8 on CIFAR-10, accuracy against kilobytes: `python -m benchmarks.resnet8`."""
