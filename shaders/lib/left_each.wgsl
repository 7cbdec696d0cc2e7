// Left factors with rows of any length. Alternative: left_fours.
alias ElemA = f16; // host

@group(0) @binding(1) var<storage, read> a: array<ElemA>;

fn left_at(start: u32, row: u32, k: u32) -> Factor {
    if row >= params.m || k >= params.k {
        return Factor();
    }
    return Factor(a[start + row * params.k + k]);
}

// Elements k to k + 3 of a row; zero past the edges.
fn left_four(start: u32, row: u32, k: u32) -> vec4<Factor> {
    return vec4(
        left_at(start, row, k), left_at(start, row, k + 1u), left_at(start, row, k + 2u), left_at(start, row, k + 3u));
}
