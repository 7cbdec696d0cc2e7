// Rows are stored as floats. Alternative: store_levels.
alias Cache = f32; // host

@group(0) @binding(4) var<storage, read_write> keys: array<Cache>;
@group(0) @binding(5) var<storage, read_write> values: array<Cache>;

fn store_row(lane: u32, row: Row, to: u32) {
    for (var d = lane; d < row.dim; d += LANES) {
        let x = Cache(element(row, d));
        if row.is_value {
            values[to * row.dim + d] = x;
        } else {
            keys[to * row.dim + d] = x;
        }
    }
}
