// pool2d_wide: y = average of x under a window, for windows of many elements, such as the whole image.
//
//   x, y  [batch, channels, height, width], or [batch, height, width, channels]
//
// A workgroup owns one element of y; its lanes walk the taps together, LANES at a time, and one reduction joins them.
// Taps in the padding are left out. The sum is divided by the number of taps that lie in a box: the image, or the image
// with its padding.

const LANES: u32 = 256u; // host
alias Elem = f32; // host

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = workgroup.x + workgroup.y * workgroups.x;
    if index >= params.count {
        return;
    }
    let at = image_place(index, vec3(params.out_height, params.out_width, params.channels));
    let size = vec3(params.in_height, params.in_width, params.channels);

    var lane_sum = 0.0;
    var lane_counted = 0.0; // exact: f32 counts to 2^24, and larger windows round by less than the sum does
    for (var tap = lane; tap < params.kernel_height * params.kernel_width; tap += LANES) {
        // From the padding's edge; less the padding they wrap around where they are not in the image.
        let from_top = at.y * params.stride_y + tap / params.kernel_width * params.dilation_y;
        let from_left = at.x * params.stride_x + tap % params.kernel_width * params.dilation_x;
        let y = from_top - params.pad_top;
        let x = from_left - params.pad_left;
        let in_box = from_top - params.box_top < params.box_height && from_left - params.box_left < params.box_width;
        lane_counted += select(0.0, 1.0, in_box);
        if y < params.in_height && x < params.in_width {
            lane_sum += f32(image[image_index(Place(at.batch, y, x, at.channel), size)]);
        }
    }
    let sum = reduce_sum(lane, lane_sum);
    let counted = reduce_sum(lane, lane_counted);
    if lane == 0u {
        out[index] = Elem(sum / counted);
    }
}
