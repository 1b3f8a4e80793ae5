"""The networks of the five reports, and some of torchvision. One line a network; imported when asked for."""

NETWORKS = {
    "mnist": "mnist:mnist_net",
    "lenet": "lenet:lenet",
    "fashion": "fashion:fashion_net",
    "vgg16_half": "vgg:vgg16_half",
    "resnet20": "resnet_cifar:resnet20",
    "resnet56": "resnet_cifar:resnet56",
    "resnet18": "imagenet:resnet18",
    "resnet50": "imagenet:resnet50",
    "mobilenet_v2": "imagenet:mobilenet_v2",
    "mobilenet_v3_small": "imagenet:mobilenet_v3_small",
    "efficientnet_b0": "imagenet:efficientnet_b0",
    "densenet121": "imagenet:densenet121",
    "googlenet": "imagenet:googlenet",
    "regnet_y_400mf": "imagenet:regnet_y_400mf",
    "resnext50_32x4d": "imagenet:resnext50_32x4d",
}
"""name -> `module:function` below this package."""
