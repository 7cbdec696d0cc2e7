// One number is added to each column of a product. Alternative: column_bias_none.
alias ColumnElem = f32; // host

@group(0) @binding(10) var<storage, read> columns: array<ColumnElem>;

fn column_bias(column: u32) -> f32 {
    return f32(columns[column]);
}
