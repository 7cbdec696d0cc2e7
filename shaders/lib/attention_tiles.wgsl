// Queries, keys and values of attention_fused on their way into workgroup memory, queries and keys transposed.
//
// Rows, keys and dimensions past the end read as zero. With GUARDED, so do NaN and infinity in a value, and `poison` adds
// them for the rows that look at their key.

var<workgroup> wg_q: array<vec4<f32>, CHUNK * EDGE>; // [dimension][row / 4]
var<workgroup> wg_tile: array<vec4<f32>, CHUNK * EDGE>; // keys [dimension][key / 4], then values [key][dimension / 4]
var<workgroup> wg_poisoned: atomic<u32>; // the value tile holds a NaN or infinity

fn q_element(tile: Tile, row: u32, d: u32) -> f32 {
    if row >= tile.rows || query_of(tile, row) >= tile.s.q_count || d >= HEAD_DIM {
        return 0.0;
    }
    return q_at(place_of(tile, row), d);
}

fn k_element(tile: Tile, key: u32, d: u32) -> f32 {
    if key >= tile.length || d >= HEAD_DIM {
        return 0.0;
    }
    return k_at(staged_row(tile.kv_origin, tile.kv_start, key), d);
}

// CHUNK dimensions of the query rows and of one key tile.
fn stage_scores(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < CHUNK * EDGE; i += LANES) {
        let d = first_d + i % CHUNK;
        let row = 4u * (i / CHUNK);
        let key = first_key + row;
        let at = i % CHUNK * EDGE + i / CHUNK;
        wg_q[at] = vec4(
            q_element(tile, row, d), q_element(tile, row + 1u, d), q_element(tile, row + 2u, d), q_element(tile, row + 3u, d));
        wg_tile[at] = vec4(
            k_element(tile, key, d), k_element(tile, key + 1u, d), k_element(tile, key + 2u, d), k_element(tile, key + 3u, d));
    }
}

fn v_element(at: u32, d: u32) -> f32 {
    if d >= VALUE_DIM {
        return 0.0;
    }
    return v_at(at, d);
}

// CHUNK dimensions of one value tile.
fn stage_values(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < KEYS * EDGE; i += LANES) {
        let key = first_key + i / EDGE;
        let d = first_d + 4u * (i % EDGE);
        var values = vec4<f32>();
        if key < tile.length {
            let at = staged_row(tile.kv_origin, tile.kv_start, key);
            values = vec4(v_element(at, d), v_element(at, d + 1u), v_element(at, d + 2u), v_element(at, d + 3u));
        }
        if GUARDED {
            let finite = vec4(is_finite(values.x), is_finite(values.y), is_finite(values.z), is_finite(values.w));
            if !all(finite) {
                atomicStore(&wg_poisoned, 1u);
            }
            values = select(vec4<f32>(), values, finite);
        }
        wg_tile[i] = values;
    }
}

// Weight times value for what stage_values left out, where the weight is not zero: one row, four dimensions.
fn poison(tile: Tile, first_key: u32, first_d: u32, row: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var key = 0u; key < KEYS; key++) {
        let weight = wg_p[key * EDGE + row / 4u][row % 4u];
        if weight == 0.0 {
            continue;
        }
        let at = kv_row(tile.kv_origin, tile.kv_start, first_key + key);
        for (var i = 0u; i < 4u; i++) {
            let value = v_element(at, first_d + i);
            if !is_finite(value) {
                sum[i] += weight * value;
            }
        }
    }
    return sum;
}
