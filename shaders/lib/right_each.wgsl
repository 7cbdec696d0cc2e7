// Right factors with rows of any length. Alternative: right_fours.
alias ElemB = f16; // host

@group(0) @binding(2) var<storage, read> b: array<ElemB>;

fn right_at(start: u32, row: u32, column: u32) -> Factor {
    let rows = select(params.k, params.n, TRANSPOSED_B);
    let width = select(params.n, params.k, TRANSPOSED_B);
    if row >= rows || column >= width {
        return Factor();
    }
    return Factor(b[start + row * width + column]);
}

// Elements `column` to `column` + 3 of a stored row; zero past the edges.
fn right_four(start: u32, row: u32, column: u32) -> vec4<Factor> {
    return vec4(
        right_at(start, row, column),
        right_at(start, row, column + 1u),
        right_at(start, row, column + 2u),
        right_at(start, row, column + 3u),
    );
}
