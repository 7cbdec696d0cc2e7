// 4 inputs, read as words that hold 1 element of f32, 2 of f16 or 4 of bool.
// Alternatives: operands_1, operands_2, operands_3.
const INPUTS: u32 = 4u;
const PER_WORD_0: u32 = 1u; // host
const PER_WORD_1: u32 = 1u; // host
const PER_WORD_2: u32 = 1u; // host
const PER_WORD_3: u32 = 1u; // host

@group(0) @binding(1) var<storage, read> input_0: array<u32>;
@group(0) @binding(2) var<storage, read> input_1: array<u32>;
@group(0) @binding(3) var<storage, read> input_2: array<u32>;
@group(0) @binding(4) var<storage, read> input_3: array<u32>;

// Four elements of an input, `places` being where each is in all inputs.
fn operand(input: u32, places: array<vec4<u32>, 4>) -> vec4<f32> {
    switch input {
        case 0u: {
            return vec4(
                decoded(PER_WORD_0, input_0[places[0][0] / PER_WORD_0], places[0][0]),
                decoded(PER_WORD_0, input_0[places[1][0] / PER_WORD_0], places[1][0]),
                decoded(PER_WORD_0, input_0[places[2][0] / PER_WORD_0], places[2][0]),
                decoded(PER_WORD_0, input_0[places[3][0] / PER_WORD_0], places[3][0]),
            );
        }
        case 1u: {
            return vec4(
                decoded(PER_WORD_1, input_1[places[0][1] / PER_WORD_1], places[0][1]),
                decoded(PER_WORD_1, input_1[places[1][1] / PER_WORD_1], places[1][1]),
                decoded(PER_WORD_1, input_1[places[2][1] / PER_WORD_1], places[2][1]),
                decoded(PER_WORD_1, input_1[places[3][1] / PER_WORD_1], places[3][1]),
            );
        }
        case 2u: {
            return vec4(
                decoded(PER_WORD_2, input_2[places[0][2] / PER_WORD_2], places[0][2]),
                decoded(PER_WORD_2, input_2[places[1][2] / PER_WORD_2], places[1][2]),
                decoded(PER_WORD_2, input_2[places[2][2] / PER_WORD_2], places[2][2]),
                decoded(PER_WORD_2, input_2[places[3][2] / PER_WORD_2], places[3][2]),
            );
        }
        default: {
            return vec4(
                decoded(PER_WORD_3, input_3[places[0][3] / PER_WORD_3], places[0][3]),
                decoded(PER_WORD_3, input_3[places[1][3] / PER_WORD_3], places[1][3]),
                decoded(PER_WORD_3, input_3[places[2][3] / PER_WORD_3], places[2][3]),
                decoded(PER_WORD_3, input_3[places[3][3] / PER_WORD_3], places[3][3]),
            );
        }
    }
}
