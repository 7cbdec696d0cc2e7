// elementwise_each: y = the last of a chain of steps, x₀ = input 0, xₙ₊₁ = f(xₙ) or f(xₙ, operand).
//
//   inputs  1 to 4 tensors that broadcast to y, read through strides of zero; f32, f16, or bool as one byte per element
//   y       dense
//
// A step is (code, operand, p, q): a function of the value with parameters p and q, or of the value and an operand,
// which is the input of that number, or p where there is no such input. Steps are the same for all lanes, so that no
// lane waits for another. A lane owns four elements, LANES apart, so that reads and writes are contiguous and a step is
// looked up once for all four. Lanes past the end compute the last element again and write nothing.

const LANES: u32 = 64u;
alias Elem = f32; // host

struct Params {
    steps: array<vec4<u32>, 8>,
    strides: array<vec4<u32>, 6>, // of the four inputs, the fastest axis first
    sizes: array<vec4<u32>, 2>,
    count: u32,
    axes: u32,
    step_count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(5) var<storage, read_write> y: array<Elem>;

// An f16 by its bits: not every device converts one without the feature, and the text is the same for f32.
fn widened(bits: u32) -> f32 {
    let magnitude = bits & 0x7fffu;
    let normal = bitcast<f32>((magnitude << 13u) + (112u << 23u));
    let finite = select(normal, f32(magnitude) * 5.9604645e-8, magnitude < 0x400u);
    let value = select(bitcast<u32>(finite), (magnitude << 13u) | 0x7f800000u, magnitude >= 0x7c00u);
    return bitcast<f32>(value | ((bits & 0x8000u) << 16u));
}

// Element `at` of an input, in the word that holds it.
fn decoded(per_word: u32, word: u32, at: u32) -> f32 {
    switch per_word {
        case 1u: { return bitcast<f32>(word); }
        case 2u: { return widened(extractBits(word, at % 2u * 16u, 16u)); }
        default: { return select(1.0, 0.0, extractBits(word, at % 4u * 8u, 8u) == 0u); }
    }
}

// Where the element is in each input.
fn offsets(at: u32) -> vec4<u32> {
    var rest = at;
    var result = vec4<u32>();
    for (var axis = 0u; axis < params.axes; axis++) {
        // The slowest axis takes what is left.
        if axis + 1u == params.axes {
            result += rest * params.strides[axis];
        } else {
            let size = params.sizes[axis / 4u][axis % 4u];
            result += rest % size * params.strides[axis];
            rest /= size;
        }
    }
    return result;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (workgroup.x + workgroup.y * workgroups.x) * 4u * LANES + lane;
    let at = first + LANES * vec4(0u, 1u, 2u, 3u);
    let last = vec4(params.count - 1u);
    let inside = min(at, last);
    let places = array(offsets(inside.x), offsets(inside.y), offsets(inside.z), offsets(inside.w));

    var value = operand(0u, places);
    for (var i = 0u; i < params.step_count; i++) {
        let step = params.steps[i];
        let p = bitcast<f32>(step.z);
        if step.x < FIRST_BINARY {
            value = select(mapped(step.x, p, bitcast<f32>(step.w), value), value, are_nan(value));
        } else {
            var other = vec4(p);
            if step.y < INPUTS {
                other = operand(step.y, places);
            }
            let result = combined(step.x, value, other);
            value = select(select(result, other, are_nan(other)), value, are_nan(value));
        }
    }

    for (var i = 0u; i < 4u; i++) {
        if at[i] < params.count {
            y[at[i]] = Elem(value[i]);
        }
    }
}
