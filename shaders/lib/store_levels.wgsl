// Rows are stored as levels from −127 to 127 of a scale of their own, four levels in a word: the scale is the row's largest
// magnitude / 127, and zero for a row of zeros. Every invocation must call store_row. Alternative: store_floats.
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
@group(0) @binding(7) var<storage, read_write> key_scales: array<f32>;
@group(0) @binding(8) var<storage, read_write> value_scales: array<f32>;

fn store_row(lane: u32, row: Row, to: u32) {
    var largest = 0.0;
    for (var d = lane; d < row.dim; d += LANES) {
        largest = max(largest, abs(element(row, d)));
    }
    let scale = reduce_max(lane, largest) / 127.0;
    if lane == 0u {
        if row.is_value {
            value_scales[to] = scale;
        } else {
            key_scales[to] = scale;
        }
    }
    let words = row.dim / 4u;
    for (var word = lane; word < words; word += LANES) {
        var levels = 0u;
        for (var byte = 0u; byte < 4u; byte += 1u) {
            let level = select(round(element(row, 4u * word + byte) / scale), 0.0, scale == 0.0);
            levels |= (u32(i32(clamp(level, -127.0, 127.0))) & 0xffu) << (8u * byte);
        }
        if row.is_value {
            values[to * words + word] = levels;
        } else {
            keys[to * words + word] = levels;
        }
    }
}
