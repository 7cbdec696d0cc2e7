// What a step of a chain makes of a value x, by its code, with parameters p and q. What either function gives for NaN is
// unspecified. With functions.
const FIRST_BINARY: u32 = 16u; // codes from here on combine the value with another

fn mapped(code: u32, p: f32, q: f32, x: vec4<f32>) -> vec4<f32> {
    switch code {
        case 0u: { return select(x, p * x, x < vec4(0.0)); }
        case 1u: { return select(x, p * exp_minus_one(x), x < vec4(0.0)); }
        case 2u: { return 0.5 * x * erfc(-0.70710678 * x); }
        case 3u: { return gelu_tanh(x); }
        case 4u: { return x * sigmoid(p * x); }
        case 5u: { return tanh_of(x); }
        case 6u: { return sigmoid(x); }
        case 7u: { return clamp(p * x + q, vec4(0.0), vec4(1.0)); }
        case 8u: { return exp_of(x); }
        case 9u: { return log_of(x); }
        case 10u: { return sqrt_of(x); }
        case 11u: { return inverse_sqrt_of(x); }
        case 12u: { return abs(x); }
        case 13u: { return erf(x); }
        case 14u: { return softplus(x); }
        default: { return max(min(x, vec4(q)), vec4(p)); }
    }
}

fn combined(code: u32, x: vec4<f32>, other: vec4<f32>) -> vec4<f32> {
    switch code {
        case 16u: { return x + other; }
        case 17u: { return x - other; }
        case 18u: { return other - x; }
        case 19u: { return x * other; }
        case 20u: { return x / other; }
        case 21u: { return other / x; }
        case 22u: { return min(x, other); }
        case 23u: { return max(x, other); }
        case 24u: { return power(x, other); }
        default: { return power(other, x); }
    }
}
