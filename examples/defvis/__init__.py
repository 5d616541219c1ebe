"""Deformable VisTR in small: video instance segmentation built on `stdeform.STDeformAttn`.

Tensors about objects have the axes (clip, slot or instance, frame) everywhere, so predictions and
targets are indexed in the same way. Boxes are (centre x, centre y, width, height) as fractions of
the frame.
"""
