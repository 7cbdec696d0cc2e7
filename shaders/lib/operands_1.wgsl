// 1 input, read as words that hold 1 element of f32, 2 of f16 or 4 of bool.
// Alternatives: operands_2, operands_3, operands_4.
const INPUTS: u32 = 1u;
const PER_WORD_0: u32 = 1u; // host

@group(0) @binding(1) var<storage, read> input_0: array<u32>;

// Four elements of an input, `places` being where each is in all inputs.
fn operand(input: u32, places: array<vec4<u32>, 4>) -> vec4<f32> {
    return vec4(
        decoded(PER_WORD_0, input_0[places[0][0] / PER_WORD_0], places[0][0]),
        decoded(PER_WORD_0, input_0[places[1][0] / PER_WORD_0], places[1][0]),
        decoded(PER_WORD_0, input_0[places[2][0] / PER_WORD_0], places[2][0]),
        decoded(PER_WORD_0, input_0[places[3][0] / PER_WORD_0], places[3][0]),
    );
}
