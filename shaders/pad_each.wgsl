// pad_each: y = x, and the fill around it.
//
//   x  dense, elements of 4, 2 or 1 bytes, kept 1, 2 or 4 to a word
//   y  dense, up to 6 axes, each with so many positions before those of x and so many after
//
// A lane owns one word of y. Elements that share the last word with what follows y keep that as it is.

const LANES: u32 = 256u;

struct Params {
    axes: array<vec4<u32>, 6>, // size in y, positions before, size in x and stride in x, the fastest axis first
    count: u32,
    axis_count: u32,
    fill: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

fn padded(at: u32) -> u32 {
    var rest = at;
    var place = 0u;
    for (var i = 0u; i < params.axis_count; i++) {
        let axis = params.axes[i];
        // Before x it wraps around, and is past its end.
        let position = rest % axis.x - axis.y;
        if position >= axis.z {
            return params.fill;
        }
        place += position * axis.w;
        rest /= axis.x;
    }
    return element(x[place / PER_WORD], place);
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
        word = with_element(word, at, padded(at));
    }
    y[owned] = word;
}
