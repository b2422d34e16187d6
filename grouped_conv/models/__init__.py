"""Whole networks built from the package's modules, and what a network costs in parameters and multiply-accumulates."""

from grouped_conv.models.alexnet import VARIANTS, AlexNet
from grouped_conv.models.cost import LayerCost, count_macs, layer_costs
from grouped_conv.nn.lrn_pool import LocalResponseNorm

__all__ = ["VARIANTS", "AlexNet", "LayerCost", "LocalResponseNorm", "count_macs", "layer_costs"]
