// Functions of four numbers that hold to f32 accuracy on every driver and where drivers may answer anything: builtin
// logarithms near 1, tangents of large numbers, everything at its poles. What they give for NaN is unspecified.
//
// erf and tanh: Moshier, Cephes 2.8, single precision, ndtrf.c and tanhf.c; relative errors below 2e-7.

fn are_nan(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}

// Compilers refuse these as constants.
fn infinity() -> vec4<f32> {
    var bits = vec4(0x7f800000u);
    return bitcast<vec4<f32>>(bits);
}

fn not_a_number() -> vec4<f32> {
    var bits = vec4(0x7fc00000u);
    return bitcast<vec4<f32>>(bits);
}

// |x| with the sign of s. Not by `and` and `or`: in a matmul's epilogue lavapipe on AVX-512, of Mesa 22 and 26, made s & ~x of them.
fn signed(x: vec4<f32>, s: vec4<f32>) -> vec4<f32> {
    let magnitude = abs(x);
    return select(magnitude, -magnitude, (bitcast<vec4<u32>>(s) >> vec4(31u)) == vec4(1u));
}

// Zero below e^-87, where results stop being normal, and infinity from where f32 ends.
fn exp_of(x: vec4<f32>) -> vec4<f32> {
    let inside = exp(clamp(x, vec4(-87.0), vec4(88.72)));
    return select(select(inside, infinity(), x > vec4(88.722835)), vec4(0.0), x < vec4(-87.0));
}

// artanh(s) / s from s², for |s| <= 1/3.
fn artanh_ratio(square: vec4<f32>) -> vec4<f32> {
    var sum = vec4(1.0 / 13.0);
    sum = sum * square + 1.0 / 11.0;
    sum = sum * square + 1.0 / 9.0;
    sum = sum * square + 1.0 / 7.0;
    sum = sum * square + 1.0 / 5.0;
    sum = sum * square + 1.0 / 3.0;
    return sum * square + 1.0;
}

// With x = 2ⁿ m: n ln 2 + 2 artanh((m − 1) / (m + 1)). Drivers' own may be off by 2⁻²¹ near 1, where it is zero.
fn log_of(x: vec4<f32>) -> vec4<f32> {
    let subnormal = x < vec4(1.1754944e-38);
    let bits = bitcast<vec4<u32>>(select(x, x * 8388608.0, subnormal));
    let exponent = vec4<i32>(bits >> vec4(23u)) - select(vec4(127), vec4(150), subnormal);
    let whole = bitcast<vec4<f32>>((bits & vec4(0x7fffffu)) | vec4(0x3f800000u));
    let large = whole > vec4(1.4142135);
    let m = select(whole, 0.5 * whole, large);
    let n = vec4<f32>(exponent + select(vec4(0), vec4(1), large));
    let s = (m - 1.0) / (m + 1.0);
    // ln 2 in two parts, of which the larger has nine bits, so that n times it is exact.
    let y = n * -2.1219444e-4 + 2.0 * s * artanh_ratio(s * s) + n * 0.6933594;
    let finite = select(select(y, -infinity(), x == vec4(0.0)), not_a_number(), x < vec4(0.0));
    return select(finite, x, x > vec4(3.4028234e38));
}

fn tanh_of(x: vec4<f32>) -> vec4<f32> {
    let t = min(abs(x), vec4(10.0));
    let z = min(t * t, vec4(0.5));
    var sum = vec4(-5.7049887e-3);
    sum = sum * z + 2.0639089e-2;
    sum = sum * z - 5.3739716e-2;
    sum = sum * z + 1.3331442e-1;
    sum = sum * z - 3.333328e-1;
    let far = 1.0 - 2.0 / (exp(2.0 * t) + 1.0);
    return signed(select(far, t + t * z * sum, t < vec4(0.625)), x);
}

// eˣ − 1 for x <= 0.
fn exp_minus_one(x: vec4<f32>) -> vec4<f32> {
    let t = tanh_of(0.5 * x);
    return 2.0 * t / (1.0 - t);
}

fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    let e = exp_of(-abs(x));
    return select(vec4(1.0), e, x < vec4(0.0)) / (1.0 + e);
}

// max(x, 0) + ln(1 + e^−|x|).
fn softplus(x: vec4<f32>) -> vec4<f32> {
    let e = exp_of(-abs(x));
    let s = e / (2.0 + e);
    return max(x, vec4(0.0)) + 2.0 * s * artanh_ratio(s * s);
}

// For |x| < 1.
fn erf_near(x: vec4<f32>) -> vec4<f32> {
    let z = min(x * x, vec4(1.0));
    var sum = vec4(7.853861e-5);
    sum = sum * z - 8.010194e-4;
    sum = sum * z + 5.188328e-3;
    sum = sum * z - 2.6853812e-2;
    sum = sum * z + 1.1283585e-1;
    sum = sum * z - 3.7612626e-1;
    sum = sum * z + 1.1283792;
    return x * sum;
}

// erfc(t) for t >= 1.
fn erfc_tail(t: vec4<f32>) -> vec4<f32> {
    let q = 1.0 / clamp(t, vec4(1.0), vec4(20.0));
    let z = q * q;
    var middle = vec4(2.32682e-2);
    middle = middle * z - 1.3870394e-1;
    middle = middle * z + 3.6874247e-1;
    middle = middle * z - 5.824733e-1;
    middle = middle * z + 6.2100046e-1;
    middle = middle * z - 4.9445153e-1;
    middle = middle * z + 3.40488e-1;
    middle = middle * z - 2.741127e-1;
    middle = middle * z + 5.6382594e-1;
    var right = vec4(-1.0477664e1);
    right = right * z + 1.29772e1;
    right = right * z - 7.495519;
    right = right * z + 2.921019;
    right = right * z - 1.0152653;
    right = right * z + 4.2184634e-1;
    right = right * z - 2.8207675e-1;
    right = right * z + 5.641896e-1;
    return exp_of(-t * t) * q * select(right, middle, t < vec4(2.0));
}

fn erf(x: vec4<f32>) -> vec4<f32> {
    return select(signed(1.0 - erfc_tail(abs(x)), x), erf_near(x), abs(x) < vec4(1.0));
}

// 1 − erf(x), accurate where that is small.
fn erfc(x: vec4<f32>) -> vec4<f32> {
    let tail = erfc_tail(abs(x));
    return select(select(tail, 2.0 - tail, x < vec4(0.0)), 1.0 - erf_near(x), abs(x) < vec4(1.0));
}

// x (1 + tanh(u)) / 2 is x times a sigmoid of 2u. It has reached its limits long before ±100, where the cube is finite.
fn gelu_tanh(x: vec4<f32>) -> vec4<f32> {
    let c = clamp(x, vec4(-100.0), vec4(100.0));
    return x * sigmoid(1.5957691 * (c + 0.044715 * c * c * c));
}

fn sqrt_of(x: vec4<f32>) -> vec4<f32> {
    let positive = select(sqrt(abs(x)), x, (x == vec4(0.0)) | (x > vec4(3.4028234e38)));
    return select(positive, not_a_number(), x < vec4(0.0));
}

fn inverse_sqrt_of(x: vec4<f32>) -> vec4<f32> {
    let positive = select(inverseSqrt(abs(x)), vec4(0.0), x > vec4(3.4028234e38));
    return select(select(positive, infinity(), x == vec4(0.0)), not_a_number(), x < vec4(0.0));
}

// By multiplication for integers up to 15, through the logarithm otherwise.
fn power(x: vec4<f32>, exponent: vec4<f32>) -> vec4<f32> {
    let size = abs(exponent);
    let whole = floor(size) == size;
    var rest = vec4<u32>(min(size, vec4(15.0)));
    var base = x;
    var product = vec4(1.0);
    for (var bit = 0u; bit < 4u; bit++) {
        product *= select(vec4(1.0), base, (rest & vec4(1u)) == vec4(1u));
        base *= base;
        rest >>= vec4(1u);
    }
    let small = select(product, 1.0 / product, exponent < vec4(0.0));
    let magnitude = exp_of(exponent * log_of(abs(x)));
    let odd = whole & (floor(0.5 * size) != 0.5 * size);
    let negative = select(select(not_a_number(), magnitude, whole), -magnitude, odd);
    let large = select(magnitude, negative, x < vec4(0.0));
    return select(large, small, whole & (size < vec4(16.0)));
}
