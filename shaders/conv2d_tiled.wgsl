// conv2d_tiled: y = x * kernel + bias, as one product of patches and kernel for each group.
//
//   NCHW  x [batch, in, height, width]   kernel [out, in / groups, kernel_height, kernel_width]   y [batch, out, ..]
//   NHWC  x [batch, height, width, in]   kernel [kernel_height, kernel_width, in / groups, out]   y [batch, .., out]
//   bias [out]
//
// A row of the left factor is the patch under one output pixel, read where it lies (an implicit im2col); a column of
// the right one is the kernel of one output channel. Blocked as matmul_tiled: a workgroup of 16 × 16 lanes owns TILE
// pixels × TILE channels, a lane 4 × 4, and the depth is walked in steps of DEPTH. Neighbouring lanes read and write
// neighbouring addresses: along channels in NHWC, along pixels in NCHW, whose kernel is contiguous along the depth.
// Padding reads as zero, and so does all past the edges, where nothing is written.

alias ElemX = f32; // host
alias ElemK = f32; // host
alias Elem = f32; // host

const EDGE: u32 = 16u;
const TILE: u32 = 4u * EDGE;
const DEPTH: u32 = 16u;
const_assert DEPTH == EDGE; // one vec4 of each factor per lane and step

// Past every image, and far enough from the end of u32 for every dilated tap.
const OUTSIDE: u32 = 0x80000000u;

var<workgroup> wg_patches: array<vec4<f32>, DEPTH * EDGE>; // [k][pixel / 4]
var<workgroup> wg_weights: array<vec4<f32>, DEPTH * EDGE>; // [k][column / 4]

// The place of output channel 0 under this pixel, counted through the batch.
fn output_place(pixel: u32) -> Place {
    let line = pixel / params.out_width;
    return Place(line / params.out_height, line % params.out_height, pixel % params.out_width, 0u);
}

// The place that tap (0, 0) reads; coordinates in the padding before the image wrap around, past it.
fn corner_of(pixel: u32, group: u32) -> Place {
    let at = output_place(pixel);
    let y = at.y * params.stride_y - params.pad_top;
    let x = at.x * params.stride_x - params.pad_left;
    return Place(at.batch, select(OUTSIDE, y, pixel < params.pixels), x, group * params.in_group);
}

fn patch_element(corner: Place, k: u32) -> f32 {
    let tap = tap_of(k);
    let y = corner.y + tap.y * params.dilation_y;
    let x = corner.x + tap.x * params.dilation_x;
    if k >= params.depth || y >= params.in_height || x >= params.in_width {
        return 0.0;
    }
    let size = vec3(params.in_height, params.in_width, params.groups * params.in_group);
    return f32(image[image_index(Place(corner.batch, y, x, corner.channel + tap.channel), size)]);
}

fn weight(k: u32, column: u32, group: u32) -> f32 {
    if column >= params.out_group || k >= params.depth {
        return 0.0;
    }
    return f32(weights[kernel_index(k, group * params.out_group + column)]);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_n = (params.out_group + TILE - 1u) / TILE;
    let tiles_m = (params.pixels + TILE - 1u) / TILE;
    let tile = workgroup.x + workgroup.y * workgroups.x;
    let group = tile / (tiles_m * tiles_n);
    if group >= params.groups {
        return;
    }
    let first_pixel = tile / tiles_n % tiles_m * TILE;
    let first_column = tile % tiles_n * TILE;
    let slow = lane / EDGE;
    let fast = lane % EDGE;
    // A lane stages this k of these four pixels, and this k of these four columns.
    let patch_k = select(slow, fast, CHANNELS_LAST);
    let pixel_group = select(fast, slow, CHANNELS_LAST);
    let weight_k = pixel_group;
    let column_group = patch_k;

    var corners: array<Place, 4>;
    for (var r = 0u; r < 4u; r++) {
        corners[r] = corner_of(first_pixel + 4u * pixel_group + r, group);
    }
    var sum: array<vec4<f32>, 4>;
    for (var k = 0u; k < params.depth; k += DEPTH) {
        wg_patches[patch_k * EDGE + pixel_group] = vec4(
            patch_element(corners[0], k + patch_k),
            patch_element(corners[1], k + patch_k),
            patch_element(corners[2], k + patch_k),
            patch_element(corners[3], k + patch_k),
        );
        let column = first_column + 4u * column_group;
        wg_weights[weight_k * EDGE + column_group] = vec4(
            weight(k + weight_k, column, group),
            weight(k + weight_k, column + 1u, group),
            weight(k + weight_k, column + 2u, group),
            weight(k + weight_k, column + 3u, group),
        );
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            let pixels = wg_patches[d * EDGE + pixel_group];
            let columns = wg_weights[d * EDGE + column_group];
            sum[0] += pixels.x * columns;
            sum[1] += pixels.y * columns;
            sum[2] += pixels.z * columns;
            sum[3] += pixels.w * columns;
        }
        workgroupBarrier();
    }

    let size = vec3(params.out_height, params.out_width, params.groups * params.out_group);
    for (var r = 0u; r < 4u; r++) {
        let pixel = first_pixel + 4u * pixel_group + r;
        var at = output_place(pixel);
        for (var i = 0u; i < 4u; i++) {
            let column = first_column + 4u * column_group + i;
            if pixel < params.pixels && column < params.out_group {
                at.channel = group * params.out_group + column;
                out[image_index(at, size)] = Elem(sum[r][i] + column_bias(at.channel));
            }
        }
    }
}
