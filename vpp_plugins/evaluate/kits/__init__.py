"""Bridges to evaluation kits: they ask in their own words and expect boxes 0 to 1 on the original image.

A model that writes padded coordinates, or pixels of a resized image, is scored far too low there. These wrappers ask
in the family's own words, and hand the kit the box in its frame.
"""
