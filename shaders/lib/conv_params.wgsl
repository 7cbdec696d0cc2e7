// What the techniques of conv2d are told, and its tensors.

struct Params {
    pixels: u32,
    depth: u32,
    groups: u32,
    in_group: u32,
    out_group: u32,
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
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<ElemX>;
@group(0) @binding(2) var<storage, read> weights: array<ElemK>;
@group(0) @binding(3) var<storage, read_write> out: array<Elem>;
