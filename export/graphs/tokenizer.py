"""The graphs of the image and the video family: what writes each one."""

from __future__ import annotations

from m2kit import contract
from m2kit.export.graphs.decoder import decoder
from m2kit.export.graphs.encoder import encoder
from m2kit.export.graphs.lfq import lfq
from m2kit.families.convolutional import ConvolutionalSpec

GRAPHS = {contract.ENCODER: encoder, ConvolutionalSpec.quantizer: lfq, contract.DECODER: decoder}
