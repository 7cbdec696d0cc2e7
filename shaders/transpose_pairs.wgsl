// transpose_pairs: y[.., at] = x[.., permuted at] for 16-bit elements that WGSL has no type for.
//
//   x  any shape, two elements in a word, the lower half first; stride_n is what lies in x between two neighbours along axis n
//      of y
//   y  [size_0, .., size_5], with sizes of one in front where there are fewer axes; two elements in a word
//
// A lane owns one word of y. Where the number of elements is odd, the upper half of the last word is no part of y and stays.

const LANES: u32 = 256u;

struct Params {
    count: u32,
    size_1: u32,
    size_2: u32,
    size_3: u32,
    size_4: u32,
    size_5: u32,
    stride_0: u32,
    stride_1: u32,
    stride_2: u32,
    stride_3: u32,
    stride_4: u32,
    stride_5: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn half(at: u32) -> u32 {
    let place = source(at);
    return (x[place / 2u] >> (place % 2u * 16u)) & 0xffffu;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let word = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    let at = 2u * word;
    if at >= params.count {
        return;
    }
    if at + 1u < params.count {
        y[word] = half(at) | (half(at + 1u) << 16u);
    } else {
        y[word] = half(at) | (y[word] & 0xffff0000u);
    }
}
