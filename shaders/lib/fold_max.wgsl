// Reducing to a maximum, on integers that are ordered as the numbers are: compilers may assume that floats are neither
// NaN nor infinite. NaN is above everything. Alternative: fold_sum.
alias Partial = u32;

// −inf.
fn start() -> Partial {
    return 0x007fffffu;
}

fn taken(x: f32) -> Partial {
    let bits = bitcast<u32>(x);
    let key = select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
    return select(key, 0xffffffffu, (bits & 0x7fffffffu) > 0x7f800000u);
}

fn joined(a: Partial, b: Partial) -> Partial {
    return max(a, b);
}

fn finished(key: Partial) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}
