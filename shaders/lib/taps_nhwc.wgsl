// The depth of a convolution, kernel [height, width, in / groups, out]: element k of the sum is a channel of its group
// and a position of the window. Alternative: taps_nchw.
struct Tap {
    channel: u32,
    y: u32,
    x: u32,
}

fn tap_of(k: u32) -> Tap {
    let width = params.kernel_width;
    let channels = params.in_group;
    return Tap(k % channels, k / channels / width, k / channels % width);
}

fn depth_of(tap: Tap) -> u32 {
    return (tap.y * params.kernel_width + tap.x) * params.in_group + tap.channel;
}

fn kernel_index(k: u32, column: u32) -> u32 {
    return k * params.out_group * params.groups + column;
}
