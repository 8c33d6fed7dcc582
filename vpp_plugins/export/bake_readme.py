"""The page that stands beside baked axes."""


def readme(
    size_hw: tuple[int, int], *, padded: bool, difference: float, images: int, clipped: int, clippable: int
) -> str:
    """Return it as Markdown; the numbers are those of `Baked`."""
    height, width = size_hw
    return PAGE.format(
        width=width,
        height=height,
        shaped="padded to a square and resized" if padded else "stretched",
        difference=f"{255 * difference:.2f}",
        images=images,
        clipped=f"{clipped:,}",
        values=f"{3 * width * height * images:,}",
        clippable=f"{clippable:,}",
    )


PAGE = """# Axes for the model's images

Made by `vpp bake` from a trained global prompt. The step needs numpy and Pillow, and no other part of the library.

    from apply_axes import apply_axes, load_axes

    axes = load_axes("this folder")
    image = apply_axes(Image.open("photo.jpg"), axes)

Give `image` instead of the photograph to whatever serves the bare model, the one without VPP:

- vLLM: `llm.generate({{"prompt": prompt, "multi_modal_data": {{"image": image}}}})`.
- SGLang, llama.cpp's llama-server, and vLLM's server take images in chat messages: save `image` as PNG and send
  `{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,..."}}}}`.

`image` is {width} x {height} pixels: the photograph is {shaped} as the model's image processor would do it, which
then finds nothing left to resize. Do not resize it or save it as JPEG. Ask with the prompt that the model was trained
with, and read the answer's boxes as before, with the size of the photograph, not of `image`.

axes.npz holds `add` and `shade`: the result is image * (1 - shade) + add, colours from 0 to 1, rounded to 8 bits.
axes.png shows the axes to the eye and is not read.

Compared with the prompt in floating point on {images} images: at most {difference}/255 apart where nothing is
clipped; clipped were {clipped} of {values} colour values. With any image, {clippable} of an image's values could be.
"""
