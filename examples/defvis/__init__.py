"""Deformable VisTR in small: video instance segmentation built on `stdeform.STDeformAttn`.

Tensors about objects are laid out (clip, slot or instance, frame) everywhere, so that predictions
and targets index alike. Boxes are (centre x, centre y, width, height) as fractions of the frame.
"""
