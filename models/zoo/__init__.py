"""The networks of the five reports. One line a network; modules are imported when asked for."""

NETWORKS = {
    "mnist": "mnist:mnist_net",
    "lenet": "lenet:lenet",
    "fashion": "fashion:fashion_net",
    "vgg16_half": "vgg:vgg16_half",
    "resnet20": "resnet_cifar:resnet20",
    "resnet56": "resnet_cifar:resnet56",
}
"""name -> `module:function` below this package."""
