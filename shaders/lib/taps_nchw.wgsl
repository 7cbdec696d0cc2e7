// The depth of a convolution, kernel [out, in / groups, height, width]: element k of the sum is a channel of its group
// and a position of the window. Alternative: taps_nhwc.
struct Tap {
    channel: u32,
    y: u32,
    x: u32,
}

fn tap_of(k: u32) -> Tap {
    let width = params.kernel_width;
    let height = params.kernel_height;
    return Tap(k / width / height, k / width % height, k % width);
}

fn depth_of(tap: Tap) -> u32 {
    return (tap.channel * params.kernel_height + tap.y) * params.kernel_width + tap.x;
}

fn kernel_index(k: u32, column: u32) -> u32 {
    return column * params.depth + k;
}
