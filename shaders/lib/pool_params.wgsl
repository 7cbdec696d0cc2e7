// What the techniques of pool2d are told. The box is what an average counts the taps in: the image, or the image with its padding.

struct Params {
    count: u32,
    channels: u32,
    in_height: u32,
    in_width: u32,
    out_height: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    dilation_y: u32,
    dilation_x: u32,
    pad_top: u32,
    pad_left: u32,
    box_top: u32,
    box_left: u32,
    box_height: u32,
    box_width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<Elem>;
@group(0) @binding(2) var<storage, read_write> out: array<Elem>;
