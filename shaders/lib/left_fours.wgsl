// Left factors whose rows are whole vectors of four. Alternative: left_each.
alias ElemA = f16; // host

@group(0) @binding(1) var<storage, read> a: array<vec4<ElemA>>;

// Elements k to k + 3 of a row, k a multiple of four; zero past the edges.
fn left_four(start: u32, row: u32, k: u32) -> vec4<Factor> {
    if row >= params.m || k >= params.k {
        return vec4<Factor>();
    }
    return vec4<Factor>(a[(start + row * params.k + k) / 4u]);
}
