// pool2d_each: y = maximum or average of x under a window.
//
//   x, y  [batch, channels, height, width], or [batch, height, width, channels]
//
// A lane owns one element of y; neighbouring lanes write neighbouring addresses. Taps in the padding are left out. An
// average is divided by the number of its taps that lie in a box: the image, or the image with its padding.

alias Elem = f32; // host

const LANES: u32 = 256u;

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

    var pool: Pool;
    var counted = 0u;
    for (var tap_y = 0u; tap_y < params.kernel_height; tap_y++) {
        // From the padding's edge; less the padding they wrap around where they are not in the image.
        let from_top = at.y * params.stride_y + tap_y * params.dilation_y;
        let y = from_top - params.pad_top;
        for (var tap_x = 0u; tap_x < params.kernel_width; tap_x++) {
            let from_left = at.x * params.stride_x + tap_x * params.dilation_x;
            let x = from_left - params.pad_left;
            let in_rows = from_top - params.box_top < params.box_height;
            let in_columns = from_left - params.box_left < params.box_width;
            counted += select(0u, 1u, in_rows && in_columns);
            if y < params.in_height && x < params.in_width {
                pool = pool_add(pool, f32(image[image_index(Place(at.batch, y, x, at.channel), size)]));
            }
        }
    }
    out[index] = Elem(pool_result(pool, counted));
}
