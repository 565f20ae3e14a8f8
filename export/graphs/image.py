"""The image family's graphs: what writes each one."""

from __future__ import annotations

from m2kit import contract
from m2kit.export.graphs.decoder import decoder
from m2kit.export.graphs.encoder import encoder
from m2kit.export.graphs.lfq import lfq
from m2kit.families.image import ImageTokenizerSpec

GRAPHS = {contract.ENCODER: encoder, ImageTokenizerSpec.quantizer: lfq, contract.DECODER: decoder}
