// Left factors with rows of any length. Alternative: left_fours.
alias ElemA = f16; // host

@group(0) @binding(1) var<storage, read> a: array<ElemA>;

fn left_at(start: u32, row: u32, k: u32) -> f16 {
    if row >= params.m || k >= params.k {
        return 0.0h;
    }
    return f16(a[start + row * params.k + k]);
}

// Elements k to k + 3 of a row; zero past the edges.
fn left_four(start: u32, row: u32, k: u32) -> vec4<f16> {
    return vec4(
        left_at(start, row, k), left_at(start, row, k + 1u), left_at(start, row, k + 2u), left_at(start, row, k + 3u));
}
