// conv2d_each: y = x * kernel + bias, one output element per lane; for groups of few channels, where tiles stand empty.
//
//   NCHW  x [batch, in, height, width]   kernel [out, in / groups, kernel_height, kernel_width]   y [batch, out, ..]
//   NHWC  x [batch, height, width, in]   kernel [kernel_height, kernel_width, in / groups, out]   y [batch, .., out]
//   bias [out]
//
// Neighbouring lanes write neighbouring addresses. Taps in the padding are skipped.

alias ElemX = f32; // host
alias ElemK = f32; // host
alias Elem = f32; // host

const LANES: u32 = 256u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    let out_channels = params.groups * params.out_group;
    if index >= params.pixels * out_channels {
        return;
    }
    let at = image_place(index, vec3(params.out_height, params.out_width, out_channels));
    let size = vec3(params.in_height, params.in_width, params.groups * params.in_group);
    let first_channel = at.channel / params.out_group * params.in_group;

    var sum = 0.0;
    for (var tap_y = 0u; tap_y < params.kernel_height; tap_y++) {
        // Coordinates in the padding before the image wrap around, past it.
        let y = at.y * params.stride_y + tap_y * params.dilation_y - params.pad_top;
        for (var tap_x = 0u; tap_x < params.kernel_width; tap_x++) {
            let x = at.x * params.stride_x + tap_x * params.dilation_x - params.pad_left;
            if y >= params.in_height || x >= params.in_width {
                continue;
            }
            for (var channel = 0u; channel < params.in_group; channel++) {
                let pixel = f32(image[image_index(Place(at.batch, y, x, first_channel + channel), size)]);
                let k = depth_of(Tap(channel, tap_y, tap_x));
                sum += pixel * f32(weights[kernel_index(k, at.channel)]);
            }
        }
    }
    out[index] = Elem(sum + column_bias(at.channel));
}
