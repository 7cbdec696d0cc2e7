// Right factors whose rows, as they are stored, are whole vectors of four. Alternative: right_each.
alias ElemB = f16; // host

@group(0) @binding(2) var<storage, read> b: array<vec4<ElemB>>;

// Elements `column` to `column` + 3 of a stored row, `column` a multiple of four; zero past the edges.
fn right_four(start: u32, row: u32, column: u32) -> vec4<Factor> {
    let rows = select(params.k, params.n, TRANSPOSED_B);
    let width = select(params.n, params.k, TRANSPOSED_B);
    if row >= rows || column >= width {
        return vec4<Factor>();
    }
    return vec4<Factor>(b[(start + row * width + column) / 4u]);
}
