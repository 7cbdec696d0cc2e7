// slice_each: y[i, j, …] = x[start + i · step, start + j · step, …], each axis with its own start and step.
//
//   x  dense, elements of 4, 2 or 1 bytes, kept 1, 2 or 4 to a word
//   y  dense, up to 6 axes
//
// A lane owns one word of y. Elements that share the last word with what follows y keep that as it is.

const LANES: u32 = 256u;

struct Params {
    axes: array<vec4<u32>, 6>, // size in y and stride in x modulo 2³², the fastest axis first
    count: u32,
    axis_count: u32,
    start: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn source(at: u32) -> u32 {
    var rest = at;
    var offset = params.start;
    for (var axis = 0u; axis < params.axis_count; axis++) {
        offset += rest % params.axes[axis].x * params.axes[axis].y;
        rest /= params.axes[axis].x;
    }
    return offset;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let owned = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    let first = owned * PER_WORD;
    if first >= params.count {
        return;
    }
    var word = y[owned];
    for (var at = first; at < min(first + PER_WORD, params.count); at++) {
        let place = source(at);
        word = with_element(word, at, element(x[place / PER_WORD], place));
    }
    y[owned] = word;
}
