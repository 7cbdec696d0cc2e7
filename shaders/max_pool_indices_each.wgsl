// max_pool_indices_each: out = the number of the largest element of x under a window, the first where several are.
//
//   x    [batch, channels, height, width], or [batch, height, width, channels]
//   out  likewise, one u32 for each window
//
// A lane owns one window; neighbouring lanes write neighbouring addresses. Taps in the padding are left out, and there is one
// in the image. A NaN counts as the largest. An element's number is its position in x, or what a tensor of x's shape says.

alias Elem = f32; // host

const LANES: u32 = 256u;

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
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<Elem>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

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
    let at = image_place(index, vec3(params.out_height, params.out_width, params.channels));
    let size = vec3(params.in_height, params.in_width, params.channels);

    var largest = 0.0;
    var position = 0u;
    var taken = false;
    for (var tap_y = 0u; tap_y < params.kernel_height; tap_y++) {
        // In the padding they wrap around.
        let y = at.y * params.stride_y + tap_y * params.dilation_y - params.pad_top;
        for (var tap_x = 0u; tap_x < params.kernel_width; tap_x++) {
            let x = at.x * params.stride_x + tap_x * params.dilation_x - params.pad_left;
            if y < params.in_height && x < params.in_width {
                let candidate = image_index(Place(at.batch, y, x, at.channel), size);
                let value = f32(image[candidate]);
                let larger = value > largest || is_nan(value);
                if !taken || (larger && !is_nan(largest)) {
                    largest = value;
                    position = candidate;
                    taken = true;
                }
            }
        }
    }
    out[index] = number(position);
}
