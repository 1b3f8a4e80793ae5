"""torchvision's ImageNet networks under short names, with random weights: no download."""

from tersor.models.zoo.packages import torchvision_network

resnet18 = torchvision_network("resnet18")
resnet50 = torchvision_network("resnet50")
mobilenet_v2 = torchvision_network("mobilenet_v2")
mobilenet_v3_small = torchvision_network("mobilenet_v3_small")
efficientnet_b0 = torchvision_network("efficientnet_b0")
densenet121 = torchvision_network("densenet121")
googlenet = torchvision_network("googlenet")
regnet_y_400mf = torchvision_network("regnet_y_400mf")
resnext50_32x4d = torchvision_network("resnext50_32x4d")
