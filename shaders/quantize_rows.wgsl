// quantize_rows: scale = max |x| / 127 of a row, y = x / scale rounded to nearest even.
//
//   x  [rows, width]; y  [rows, width], signed levels, four to a word; scales  [rows]
//
// A workgroup owns four rows, which are whole words of y whatever the width. A row of zeros has scale 0 and levels 0; one that
// holds an infinity or NaN has scale infinity and levels 0, which read as NaN.
// Edges: rows past the end are left alone, also in the last word.

const LANES: u32 = 64u;
const ROWS: u32 = 4u;
alias Elem = f32; // host

struct Params {
    rows: u32,
    width: u32,
    infinity: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;

// The largest magnitude of a row. What is not finite counts as the largest float, and `unfit` is 1 for it.
struct Extent {
    magnitude: f32,
    unfit: f32,
}

fn extent(row: u32, lane: u32) -> Extent {
    var largest = Extent(0.0, 0.0);
    for (var d = lane; row < params.rows && d < params.width; d += LANES) {
        let value = f32(x[row * params.width + d]);
        if is_finite(value) {
            largest.magnitude = max(largest.magnitude, abs(value));
        } else {
            largest.unfit = 1.0;
        }
    }
    return Extent(reduce_max(lane, largest.magnitude), reduce_max(lane, largest.unfit));
}

fn level(value: f32, scale: f32) -> u32 {
    if scale == 0.0 || !is_finite(scale) {
        return 0u;
    }
    return bitcast<u32>(i32(clamp(round(value / scale), -127.0, 127.0))) & 0xffu;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (workgroup.x + workgroup.y * workgroups.x) * ROWS;
    if first >= params.rows {
        return;
    }
    var row_scales = vec4<f32>();
    for (var i = 0u; i < ROWS; i++) {
        let found = extent(first + i, lane);
        row_scales[i] = select(found.magnitude / 127.0, params.infinity, found.unfit != 0.0);
        if lane == i && first + i < params.rows {
            scales[first + i] = row_scales[i];
        }
    }
    let count = params.rows * params.width;
    for (var i = lane; i < params.width; i += LANES) {
        let at = first * params.width + 4u * i;
        var word = 0u;
        var kept = 0u;
        for (var j = 0u; j < 4u; j++) {
            if at + j < count {
                let row = (4u * i + j) / params.width;
                word |= level(f32(x[at + j]), row_scales[row]) << (8u * j);
            } else {
                kept |= 0xffu << (8u * j);
            }
        }
        if at < count {
            y[at / 4u] = word | (y[at / 4u] & kept);
        }
    }
}
