// Queries, keys, values and weights of attention_fused in workgroup memory, queries and keys transposed.
//
// Rows, keys and dimensions past the end read as zero.

// A vector more than a row needs, so that lanes that write to neighbouring rows meet other banks.
const ROW_STRIDE: u32 = 2u * EDGE_Y + 1u;
const KEY_STRIDE: u32 = 2u * EDGE_X + 1u;
const KEYS_AT: u32 = CHUNK * ROW_STRIDE;
const VALUES_AT: u32 = KEYS * ROW_STRIDE;

// First queries [dimension][row / 4] and keys [dimension][key], in an order of their own; then, in the same place, weights
// [key][row / 4] and values [key][dimension / 4], where the rows' maxima and sums are before.
var<workgroup> wg_tile: array<vec4<f32>, max(KEYS_AT + CHUNK * KEY_STRIDE, VALUES_AT + KEY_SLICE * 2u * EDGE_X)>;
var<workgroup> wg_poisoned: atomic<u32>; // a value of the key tile is NaN or infinite

fn keep(at: u32, stride: u32, columns: mat4x4<f32>) {
    wg_tile[at] = columns[0];
    wg_tile[at + stride] = columns[1];
    wg_tile[at + 2u * stride] = columns[2];
    wg_tile[at + 3u * stride] = columns[3];
}

// CHUNK dimensions of the query rows and of one key tile, in blocks of 4 × 4.
fn stage_scores(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < 2u * EDGE_Y * (CHUNK / 4u); i += LANES) {
        let d = i % (CHUNK / 4u) * 4u;
        let row = i / (CHUNK / 4u) * 4u;
        keep(d * ROW_STRIDE + row / 4u, ROW_STRIDE, transpose(mat4x4<f32>(
            q_part(tile, row, first_d + d),
            q_part(tile, row + 1u, first_d + d),
            q_part(tile, row + 2u, first_d + d),
            q_part(tile, row + 3u, first_d + d),
        )));
    }
    for (var i = lane; i < 2u * EDGE_X * (CHUNK / 4u); i += LANES) {
        let d = i % (CHUNK / 4u) * 4u;
        let slot = i / (CHUNK / 4u);
        // The keys of a lane are EDGE_X apart.
        let key = first_key + slot % EDGE_X + slot / EDGE_X * 4u * EDGE_X;
        keep(KEYS_AT + d * KEY_STRIDE + slot, KEY_STRIDE, transpose(mat4x4<f32>(
            k_part(tile, key, first_d + d),
            k_part(tile, key + EDGE_X, first_d + d),
            k_part(tile, key + 2u * EDGE_X, first_d + d),
            k_part(tile, key + 3u * EDGE_X, first_d + d),
        )));
    }
}

// Weights, or scores, of four keys, EDGE_X apart, for four rows.
fn keep_weights(at: u32, columns: mat4x4<f32>) {
    keep(at, EDGE_X * ROW_STRIDE, columns);
}

fn kept_weights(at: u32) -> mat4x4<f32> {
    let stride = EDGE_X * ROW_STRIDE;
    return mat4x4<f32>(wg_tile[at], wg_tile[at + stride], wg_tile[at + 2u * stride], wg_tile[at + 3u * stride]);
}

// WIDTH dimensions of the values of KEY_SLICE keys.
fn stage_values(tile: Tile, first_key: u32, first_d: u32, lane: u32) {
    for (var i = lane; i < KEY_SLICE * 2u * EDGE_X; i += LANES) {
        let values = v_part(tile, first_key + i / (2u * EDGE_X), first_d + 4u * (i % (2u * EDGE_X)));
        if GUARDED && !all(finite(values)) {
            atomicStore(&wg_poisoned, 1u);
        }
        wg_tile[VALUES_AT + i] = values;
    }
}
