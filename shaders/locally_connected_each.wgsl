// locally_connected_each: y[b, p, o] = bias[p, o] + Σ patch[b, p, k] · kernel[p, k, o], a convolution whose every
// output pixel p has a kernel of its own.
//
//   x       [batch, in_height, in_width, in]
//   kernel  [out_height · out_width, kernel_height · kernel_width · in, out]
//   bias    [out_height, out_width, out]
//   y       [batch, out_height, out_width, out]
//
// A lane owns one element of y; neighbouring lanes read neighbouring addresses of the kernel, which is most of what is
// read, and write neighbouring addresses. There is no padding.

alias ElemX = f32; // host
alias ElemK = f32; // host
alias Elem = f32; // host

const LANES: u32 = 256u;

struct Params {
    count: u32,
    in_height: u32,
    in_width: u32,
    in_channels: u32,
    out_height: u32,
    out_width: u32,
    out_channels: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<ElemX>;
@group(0) @binding(2) var<storage, read> weights: array<ElemK>;
@group(0) @binding(3) var<storage, read_write> out: array<Elem>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    if index >= params.count {
        return;
    }
    let channel = index % params.out_channels;
    let pixel = index / params.out_channels;
    let column = pixel % params.out_width;
    let row = pixel / params.out_width % params.out_height;
    let batch = pixel / (params.out_width * params.out_height);
    // The window's rows are contiguous in x, and all of it in the kernel.
    let run = params.kernel_width * params.in_channels;
    let place = row * params.out_width + column;
    var at_weight = place * params.kernel_height * run * params.out_channels + channel;

    var sum = 0.0;
    for (var tap = 0u; tap < params.kernel_height; tap++) {
        let line = batch * params.in_height + row * params.stride_y + tap;
        let start = (line * params.in_width + column * params.stride_x) * params.in_channels;
        for (var i = 0u; i < run; i++) {
            sum += f32(image[start + i]) * f32(weights[at_weight]);
            at_weight += params.out_channels;
        }
    }
    out[index] = Elem(sum + column_bias(place * params.out_channels + channel));
}
